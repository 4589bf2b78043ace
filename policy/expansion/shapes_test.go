package expansion

import (
	"slices"
	"strings"
	"testing"
)

// TestShapes: which files a string may name.
func TestShapes(t *testing.T) {
	values := func(typ string, file *String) ([]string, bool) {
		if typ == "passwd" {
			return []string{"x:1:1::/home/a:/bin/sh", "x:2:2::/home/b:/bin/sh"}, true
		}
		return nil, false
	}
	for s, want := range map[string]string{
		"/etc/aliases":                                                "/etc/aliases",
		"/etc/v/$domain/x":                                            "/etc/v/*/x",
		"/etc/v/${lc:$domain}":                                        "/etc/v/*",
		"/v/${lookup{$domain}dsearch{/v}}/x":                          "/v/*/x /v//x",
		"/v/${lookup{$domain}dsearch{/v}{$value}fail}/x":              "/v/*/x",
		"${if eq{a}{b}{/one}{/two}}":                                  "/one /two",
		"${extract{5}{:}{${lookup{root}passwd{x}}}{$value}}/.forward": "/.forward /home/a/.forward /home/b/.forward",
		"${lookup{$domain}lsearch{/x}}":                               "!",
		"/v/${sg{$local_part}{x}{}}.off":                              "/v/*.off",
	} {
		p, err := Parse(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		all, ok := p.Shapes(values)
		slices.Sort(all)
		got := strings.Join(slices.Compact(all), " ")
		if !ok {
			got = "!"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

// TestQuote: what is quoted expands to itself.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "plain", "a$b{c}\\d\n:\t", `\N$x\N`} {
		p, err := Parse(Quote(s))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := p.Constant(); !ok || got != s {
			t.Errorf("%q: %q", s, got)
		}
	}
}
