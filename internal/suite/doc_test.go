package suite

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//go:generate env UPDATE=1 go test -run ^TestPrimariesDoc$ .

const (
	docFile = "../../docs/primaries/suites.md"
	docMark = "<!-- The rest is generated from internal/suite/table.go by `make generate`. -->\n"
)

// TestPrimariesDoc keeps the pages of the suites.
func TestPrimariesDoc(t *testing.T) {
	old, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(old), docMark)
	if !ok {
		t.Fatalf("%s lacks %q", docFile, docMark)
	}
	want := head + docMark + pages()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(docFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(old)); diff != "" {
		t.Errorf("run make generate (-want +got):\n%s", diff)
	}
}

func pages() string {
	var b strings.Builder
	b.WriteString("\n## Suites\n\n| suite | preset | Postfix | known by |\n| --- | --- | --- | --- |\n")
	for _, s := range Suites {
		s := s.Renamed(nil)
		where, by := "on the machine", []string{}
		if len(s.Prefix) > 0 {
			where = "`" + strings.Join(s.Prefix, " ") + "`"
		}
		for _, c := range s.Containers {
			by = append(by, "a running container of the image `"+c.Image+"`")
		}
		for _, m := range s.Marks {
			by = append(by, "`"+m+"`")
		}
		fmt.Fprintf(&b, "| [%s](#%s) | `%s` | %s | %s |\n", s.Title, s.Name, s.Name, where, strings.Join(by, ", "))
	}
	for _, s := range Suites {
		s := s.Renamed(nil)
		fmt.Fprintf(&b, "\n### %s\n\n%s. Made after %s.\n\n", s.Name, s.Title, s.From)
		fmt.Fprintf(&b, "    understudy policy import postfix --suite %s -o policy.json   # what would be known\n\n", s.Name)
		if len(s.Filters) > 0 {
			b.WriteString("| beside Postfix | at | a secondary |\n| --- | --- | --- |\n")
			for _, f := range s.Filters {
				fmt.Fprintf(&b, "| %s | `%s` | %s |\n", f.Program, f.Where, f.Does)
			}
			b.WriteString("\n")
		}
		if s.Main != "" {
			fmt.Fprintf(&b, "- For the secondary, put `mynetworks` and `smtpd_authorized_xclient_hosts` with its address into %s.\n", s.Main)
		}
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "- %s\n", n)
		}
	}
	return b.String()
}
