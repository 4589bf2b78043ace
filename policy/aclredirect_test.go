package policy

import (
	"strings"
	"testing"
)

// TestIncludes: a list's files are read where it names them; those that lead back to
// themselves, or to too many others, make it wait.
func TestIncludes(t *testing.T) {
	files := map[string][]string{
		"include;/list":  {"# members", "a@example.org,", "bob, :include:/more"},
		"include;/more":  {"c@example.org"},
		"include;/loop":  {"a@example.org", ":include:/loop"},
		"include;/twice": {strings.Repeat(":include:/twice,", 50)},
		"include;/empty": {""},
	}
	for text, want := range map[string]string{
		":include:/list":                       "a@example.org bob@q.example c@example.org",
		"x@example.org, :include: /more":       "x@example.org c@example.org",
		":include:/empty":                      "",
		":include:/gone":                       "waits",
		"x@example.org, :include:/gone":        "waits",
		":include:/loop":                       "waits",
		":include:/twice":                      "waits",
		strings.Repeat(":include:/more,", 100): strings.TrimSpace(strings.Repeat("c@example.org ", 100)),
		strings.Repeat(":include:/more,", 101): "waits",
	} {
		d := redirection{qualify: "q.example", files: files}
		d.read(text)
		got := strings.Join(d.all, " ")
		if d.absent {
			got = "waits"
		}
		if got != want || d.malformed || d.included > maxIncludes+1 {
			t.Errorf("%.40s: %.80q after %d files, want %.80q", text, got, d.included, want)
		}
	}
}
