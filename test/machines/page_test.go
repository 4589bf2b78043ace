package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestBlocks: the page has what is pasted, and bash can read it.
func TestBlocks(t *testing.T) {
	page, err := readPage("../../docs/FLEET.md")
	if err != nil {
		t.Fatal(err)
	}
	places := []string{"machine 1", "each machine", "the primary", "a machine that is left", "a machine that leaves", "the machine that goes"}
	for heading, want := range map[string]int{setUpHeading: 6, "Back to a directory": 1, "Replace a machine": 2, "Remove a member for good": 3} {
		if got := len(page[heading]); got != want {
			t.Errorf("%s: %d blocks, want %d", heading, got, want)
		}
	}
	for heading, blocks := range page {
		for _, b := range blocks {
			if !slices.Contains(places, b.where) {
				t.Errorf("%s: a block for %q", heading, b.where)
			}
			check := exec.Command("bash", "-n")
			check.Stdin = strings.NewReader(b.text)
			if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", heading, err, out)
			}
		}
	}
}
