package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestTry breaks a little package of which it is known what its tests notice.
func TestTry(t *testing.T) {
	reasons := map[string]bool{
		"testdata/little/little.go: Limit: n > most: or equal": true,
		"testdata/little/little.go: Limit: if n > most: never": true, // but it is noticed
		"testdata/little/little.go: Limit: gone":               true,
		"testdata/other.go: Limit: gone":                       true,
	}
	var out bytes.Buffer
	left, err := try(t.Context(), &out, []string{"./testdata/little", "./testdata/little/user"}, selection{n: 100, workers: 2, seed: "1", run: "^Test"}, reasons)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(out.String()) {
		result, rest, _ := strings.Cut(line, " ")
		if _, what, found := strings.Cut(rest, "little.go: "); found {
			got[strings.TrimSpace(strings.Split(what, " by ")[0])] = result
		}
	}
	want := map[string]string{
		"Limit: returns zeros at once":         killed,
		"Limit: if n > most: never":            stale,
		"Limit: if n > most: always":           killed,
		"Limit: n > most: or equal":            explained,
		"Limit: gone: there is no such mutant": stale,
		"Limit: without return most":           killed,
		"Both: returns zeros at once":          killed,
		"Both: a && b: the first alone":        killed,
		"Both: a && b: the second alone":       survived,
		"Nobody: returns zeros at once":        unmet,
		"Nobody: without *p = 7":               unmet,
		"Nobody: 7 plus one":                   unmet,
		"Lent: returns zeros at once":          killed,
		"Lent: 3 plus one":                     killed,
	}
	for what, result := range want {
		if got[what] != result {
			t.Errorf("%s: %q, want %q", what, got[what], result)
		}
	}
	if len(got) != len(want) || left != 6 {
		t.Errorf("%d survive or are stale; all: %v", left, got)
	}
}
