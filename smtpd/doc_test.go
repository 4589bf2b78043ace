package smtpd

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLimitsAreDocumented compares the limits that the code counts with those
// that the manual page lists.
func TestLimitsAreDocumented(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	counted := find(t, regexp.MustCompile(`limit\("(\w+)"\)|dismiss\("\w+", "(\w+)"|return "(\w+)", |return "(connections_\w+)"|"(client_\w+)"|SMTPLimits\.WithLabelValues\("(\w+)"\)`), files...)
	documented := find(t, regexp.MustCompile(`(?m)^	\{"(\w+)", "`), "../internal/config/limits.go")
	if diff := cmp.Diff(documented, counted); diff != "" {
		t.Errorf("limits (-manual +code):\n%s", diff)
	}
}

// find returns what the pattern's groups match in the files that aren't tests.
func find(t *testing.T, pattern *regexp.Regexp, files ...string) []string {
	t.Helper()
	var found []string
	for _, file := range files {
		if matched, _ := filepath.Match("*_test.go", file); matched {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range pattern.FindAllStringSubmatch(string(b), -1) {
			for _, group := range m[1:] {
				if group != "" {
					found = append(found, group)
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
