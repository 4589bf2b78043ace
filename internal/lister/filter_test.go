package lister

import (
	"strings"
	"testing"
)

// TestFilter: a directory's filter is taken whole, or refused.
func TestFilter(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("(!", n) + "(a=b)" + strings.Repeat(")", n) }
	for text, want := range map[string]string{ // "" for refused
		"a=b":                        "(a=b)",
		" (a=b) ":                    "(a=b)",
		"( & (a=b) (c=d) )":          "(&(a=b)(c=d))",
		"(|(a=b)(!(c=d))(&(e=f)))":   "(|(a=b)(!(c=d))(&(e=f)))",
		nested(maxNesting):           nested(maxNesting),
		nested(maxNesting + 1):       "",
		"":                           "",
		"(":                          "",
		"(a=b":                       "",
		"(&)":                        "",
		"(&(a=b)":                    "",
		"(!(a=b)(c=d))":              "",
		"(&(a=b)c=d)":                "",
		"(a=b)(c=d)":                 "",
		"(a=b) and more":             "",
		strings.Repeat("(&", 10_000): "",
	} {
		f, err := ParseFilter(text)
		if (err == nil) != (want != "") || err == nil && f.String() != want {
			t.Errorf("%.60q: %v, %v", text, f, err)
		}
	}
}
