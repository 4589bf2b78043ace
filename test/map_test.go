package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMap: every file, function and type that the map and CONTRIBUTING.md name
// is there.
func TestMap(t *testing.T) {
	code, err := exec.Command("git", "grep", "-hE", `^(func|type|var|const)|^	[A-Z][A-Za-z]*[ (]`, "--", "../*.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	packages, err := exec.Command("go", "list", "-f", "{{.Name}}", "../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	quoted := regexp.MustCompile("`([^`\n]+)`")
	name := regexp.MustCompile(`^[A-Za-z]+(\.[A-Za-z]+)?$`)
	checked := 0
	for _, doc := range []string{"docs/ARCHITECTURE.md", "CONTRIBUTING.md"} {
		for _, m := range quoted.FindAllStringSubmatch(readFile(t, "../"+doc), -1) {
			word := m[1]
			path := filepath.Join("..", word)
			_, err := os.Stat(path)
			switch {
			case strings.HasPrefix(word, "make ") || strings.HasPrefix(word, "go "):
				target := strings.Fields(word)[1]
				if strings.HasPrefix(word, "make ") && !strings.Contains("\n"+readFile(t, "../Makefile"), "\n"+target+":") {
					t.Errorf("%s names %s, which the Makefile lacks", doc, word)
				}
			case strings.Contains(word, "/") || strings.HasSuffix(word, ".go") || strings.HasSuffix(word, ".md"):
				if err != nil {
					t.Errorf("%s names %s, which isn't there", doc, word)
				}
				checked++
			case err == nil:
			case name.MatchString(word):
				if !defined(string(code), string(packages), word) {
					t.Errorf("%s names %s, which nothing defines", doc, word)
				}
				checked++
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d names checked: the search is broken", checked)
	}
}

// defined says that a line of code defines X, or the method or field X.Y; X may
// be a package.
func defined(code, packages, word string) bool {
	owner, member, two := strings.Cut(word, ".")
	expr := `(?m)^(func|type|var|const) (\([^)]*\) )?` + owner + `\b`
	if two && regexp.MustCompile(`(?m)^`+owner+`$`).MatchString(packages) {
		expr = `(?m)^(func|type|var|const) ` + member + `\b`
	} else if two {
		expr = `(?m)^func \(\w+ \*?` + owner + `\) ` + member + `\b`
	}
	return regexp.MustCompile(expr).MatchString(code)
}
