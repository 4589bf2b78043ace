package test

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestRFCs: every RFC that the code cites has a row in docs/RFCS.md.
func TestRFCs(t *testing.T) {
	out, err := exec.Command("git", "grep", "-ohE", "RFC [0-9]{3,5}", "--", "../*.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	rows := map[string]bool{}
	number := regexp.MustCompile(`\d{3,5}`)
	for line := range strings.Lines(readFile(t, "../docs/RFCS.md")) {
		if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), "|"); ok {
			for _, n := range number.FindAllString(cell, -1) {
				rows[n] = true
			}
		}
	}
	cited := number.FindAllString(string(out), -1)
	if len(cited) < 100 {
		t.Fatalf("%d citations found: the search is broken", len(cited))
	}
	for _, n := range cited {
		if !rows[n] {
			t.Errorf("RFC %s is cited and has no row in docs/RFCS.md", n)
			rows[n] = true
		}
	}
}

// TestFuzzTargets: .ci/fuzz names every fuzz target there is.
func TestFuzzTargets(t *testing.T) {
	out, err := exec.Command("git", "grep", "-E", "^func Fuzz", "--", "../*_test.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	list := strings.Fields(readFile(t, "../.ci/fuzz"))
	for _, m := range regexp.MustCompile(`(?m)^\.\./(.*)/\w+\.go:func (Fuzz\w+)`).FindAllStringSubmatch(string(out), -1) {
		if target := m[1] + ":" + m[2]; !slices.ContainsFunc(list, func(w string) bool { return strings.TrimSuffix(w, ";") == target }) {
			t.Errorf(".ci/fuzz lacks %s", target)
		}
	}
}
