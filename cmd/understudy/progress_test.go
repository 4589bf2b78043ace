package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// TestProgress: nothing in the first second, then at most two lines a second, with
// rate and time to go, and a clean line in the end.
func TestProgress(t *testing.T) {
	for _, tt := range []struct {
		total int
		want  string
	}{
		{1000, "\r200 of 1000 messages, 200/s, 4s to go\x1b[K\r300 of 1000 messages, 200/s, 3s to go\x1b[K\r\x1b[K"},
		{0, "\r200 messages, 200/s\x1b[K\r300 messages, 200/s\x1b[K\r\x1b[K"},
	} {
		var out strings.Builder
		p := newProgress("message", tt.total)
		at := p.begun
		p.out, p.now = &out, func() time.Time { return at }
		for range 30 { // 200 a second
			at = at.Add(50 * time.Millisecond)
			p.step(10)
		}
		p.end()
		if out.String() != tt.want {
			t.Errorf("of %d: got %q, want %q", tt.total, out.String(), tt.want)
		}
	}
	p := newProgress("message", 1)
	if p.out != nil && !isTerminal(os.Stderr) {
		t.Error("it talks to what is no terminal")
	}
}

// TestHelpFits: the first help that people see fits a screen of 80 by 24, with
// the prompt below it.
func TestHelpFits(t *testing.T) {
	var out strings.Builder
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	if err := overview(&out, parser.Model.Node); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) > 23 {
		t.Errorf("%d lines:\n%s", len(lines), out.String())
	}
	for _, l := range lines {
		if len(l) > 80 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
	for _, c := range parser.Model.Children {
		if !c.Hidden && c.Name != "version" && !strings.Contains(out.String(), "\n  "+c.Name+" ") {
			t.Errorf("%s isn't in the overview", c.Name)
		}
	}
}

// talkers are commands whose output is a list or a finding, by the first word of
// their help. Whatever they print is there as JSON, too.
var talkers = []string{"List", "Show", "Check", "Look", "Watch", "Measure"}

// TestJSON: every command that lists or shows something has --json.
func TestJSON(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, leaf := range parser.Model.Leaves(true) {
		words := strings.Fields(leaf.Help)
		if strings.HasPrefix(leaf.Help, "On the ") && len(words) > 3 { // "On the primary: list ..."
			_, rest, _ := strings.Cut(leaf.Help, ": ")
			words = strings.Fields(strings.ToUpper(rest[:1]) + rest[1:])
		}
		talks := false
		for _, verb := range talkers {
			talks = talks || words[0] == verb
		}
		if !talks && leaf.Name != "list" && leaf.Name != "show" && leaf.Name != "status" {
			continue
		}
		found++
		json := false
		for _, f := range leaf.Flags {
			json = json || f.Name == "json"
		}
		if !json {
			t.Errorf("%s has no --json: %s", leaf.FullPath(), leaf.Help)
		}
	}
	if found < 12 {
		t.Errorf("%d commands looked at: the search is broken", found)
	}
}

// TestRunbookCommands: the commands that alerts and the runbook name are there.
func TestRunbookCommands(t *testing.T) {
	parser, err := newParser(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range []string{"../../docs/RUNBOOK.md", "../../docs/CONTAINER.md", "../../metrics/alerts.yml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?:`|: \"|-- |; |, |    |understudy )understudy ([a-z]+)( [a-z]+)?").FindAllStringSubmatch(string(text), -1) {
			n := parser.Model.Node
			for _, word := range m[1:] {
				if len(n.Children) == 0 || word == "" {
					break
				}
				i := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == strings.TrimSpace(word) })
				if i < 0 {
					t.Errorf("%s names %q, which isn't a command", file, strings.TrimSpace(m[0]))
					break
				}
				n = n.Children[i]
			}
			found++
		}
	}
	if found < 50 {
		t.Errorf("%d commands found: the search is broken", found)
	}
}
