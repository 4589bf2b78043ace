package table

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLikeShares counts the segments that a version with one recipient more
// has in common with the one before, in a sorted list and in one that isn't.
func TestLikeShares(t *testing.T) {
	for _, sort := range []bool{true, false} {
		r := rand.New(rand.NewPCG(1, 5))
		var lines []string
		for range 200_000 {
			lines = append(lines, fmt.Sprintf("user%d@a.example", r.IntN(1<<40)))
		}
		if sort {
			slices.Sort(lines)
		}
		load := func(before *Table) *Table {
			t.Helper()
			b, err := NewBuilder(TypeSet, nil)
			if err != nil {
				t.Fatal(err)
			}
			b.Like(before)
			for half := range slices.Chunk(lines, len(lines)/2) {
				r := b.Run()
				for _, l := range half {
					r.Add(l)
				}
			}
			table, err := b.Table()
			if err != nil || table.Len() != len(lines) {
				t.Fatal(table.Len(), err)
			}
			return table
		}
		one := load(nil)
		lines = slices.Insert(lines, 100_000, "user5.x@a.example")
		two := load(one)
		known, shared := map[*segment]bool{}, 0
		for _, s := range one.keys.segs {
			known[s] = true
		}
		for _, s := range two.keys.segs {
			if known[s] {
				shared++
			}
		}
		if shared*10 < 9*len(two.keys.segs) {
			t.Errorf("sorted %v: of %d segments %d are shared", sort, len(two.keys.segs), shared)
		}
	}
}

// TestSearchWithinAffixes looks for keys near those of segments whose keys
// begin and end alike: what they end with counts in their order.
func TestSearchWithinAffixes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 6))
	for round := range 300 {
		word := func(letters string, n int) string {
			b := make([]byte, r.IntN(n+1))
			for i := range b {
				b[i] = letters[r.IntN(len(letters))]
			}
			return string(b)
		}
		begin, end := word("ab.", 2), word("@ab.", 3)
		var keys []string
		for range 1 + r.IntN(30) {
			keys = append(keys, begin+word("ab.@", 4)+end)
		}
		slices.Sort(keys)
		keys = slices.Compact(keys)
		table, err := NewSet(slices.Clone(keys))
		if err != nil {
			t.Fatal(err)
		}
		x := &table.keys
		var got []string
		for c := (cursor{x: x}); !c.done(); c.next() {
			got = append(got, string(c.key()))
		}
		if diff := cmp.Diff(keys, got); diff != "" {
			t.Fatalf("round %d: %s", round, diff)
		}
		for range 200 {
			key := begin[:r.IntN(len(begin)+1)] + word("ab.@", 5) + end[r.IntN(len(end)+1):]
			at, found := x.search([]byte(key))
			if want, is := slices.BinarySearch(keys, key); at != want || found != is {
				t.Fatalf("round %d: %q in %q: got %d, %v, want %d, %v", round, key, keys, at, found, want, is)
			}
		}
		if !bytes.HasSuffix([]byte(keys[0]), x.segs[0].suffix) {
			t.Fatal("wrong suffix")
		}
	}
}
