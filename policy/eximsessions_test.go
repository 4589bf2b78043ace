package policy_test

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// TestEximSessions plays the sessions of testdata/exim to the policies that came of the
// configurations there. What is wanted is what a real Exim 4.96 answered (TestSessions of
// policy/exim).
func TestEximSessions(t *testing.T) {
	files, err := filepath.Glob("testdata/exim/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			p := playerOf(t, file)
			defer p.end()
			for line := range strings.Lines(string(p.bodies["sessions"])) {
				cmd, want, given := strings.Cut(strings.TrimSuffix(line, "\n"), " => ")
				if !given {
					continue
				}
				p.where, want = cmd, strings.Replace(want, "EHLO argument", "HELO argument", 1)
				verb, arg, _ := strings.Cut(cmd, " ")
				v := p.command(verb, arg)
				if verb == "connect" {
					want, v.Close = strings.TrimSuffix(want, " (close)"), false // the door hangs up
				}
				if v.Rule.Kind == "acl_syntax" && strings.HasPrefix(want, strconv.Itoa(v.Reply.Code)) {
					continue // the door's own words
				}
				if answer(v, "") != want && answer(v, v.Reply.Enhanced) != want {
					t.Errorf("%s\n got %s\nwant %s", cmd, answer(v, v.Reply.Enhanced), want)
				}
			}
		})
	}
}

// answer is a verdict as the sessions have it. Exim's own texts have no code of RFC 3463.
func answer(v policy.Verdict, dsn string) string {
	switch {
	case v.Reply.Zero() && (v.Action == policy.Discard || v.Lost):
		return "discard"
	case v.Reply.Zero():
		return "permit"
	}
	text := strings.ReplaceAll(v.Reply.Text, "\n", "|")
	if dsn != "" {
		text = dsn + " " + text
	}
	text = strconv.Itoa(v.Reply.Code) + " " + text
	if v.Close {
		text += " (close)"
	}
	return text
}
