package table

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestHashedTable: a table hashed step by step is the one hashed at once, it
// comes through JSON, and it holds no key.
func TestHashedTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	secret, other := &Secret{7}, &Secret{8}
	keys := make([]string, 5000)
	for i := range keys {
		keys[i] = fmt.Sprintf("user%d@d%d.example", i, i%7)
	}
	at := func(n int) *Table {
		list := slices.Clone(keys[:n])
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		table, err := NewSet(list)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	var before, hashed *Table
	for _, n := range []int{0, 1, 4000, 4001, 3990, 5000, 0, 10} {
		now := at(n)
		next, err := now.Hashed(secret, false, before, hashed)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := now.Hashed(secret, false, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(whole)
		got, _ := json.Marshal(next)
		if next.Len() != n || string(want) != string(got) {
			t.Fatalf("%d keys: hashed step by step there are %d, and they differ", n, next.Len())
		}
		back := new(Table)
		if err := json.Unmarshal(got, back); err != nil || back.Len() != n {
			t.Fatalf("back from JSON: %d entries, %v", back.Len(), err)
		}
		if strings.Contains(string(got), "user") {
			t.Error("an address is left in the table")
		}
		before, hashed = now, next
	}
	a, _ := before.Hashed(other, false, before, hashed)
	if a.Find(NewHasher(secret).Digest([]byte(keys[0]))) >= 0 || a.Find(NewHasher(other).Digest([]byte(keys[0]))) < 0 {
		t.Error("the secret makes no difference")
	}
}

// TestDiff compares random tables with what maps say, and looks whether what
// they share is shared in memory too.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		old, now := map[string]string{}, map[string]string{}
		for i := range r.IntN(3000) {
			k := fmt.Sprintf("key%05d", i*7)
			if old[k] = "1"; r.IntN(100) > 0 {
				now[k] = "1"
			}
			if r.IntN(100) == 0 {
				now[k+"x"] = "1"
			}
		}
		a, err := NewHash(old)
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewHash(now)
		if err != nil {
			t.Fatal(err)
		}
		removed, added := map[string]bool{}, map[string]bool{}
		Diff(a, b, func(key []byte) { removed[string(key)] = true }, func(key []byte) { added[string(key)] = true })
		for k := range old {
			if _, kept := now[k]; removed[k] == kept {
				t.Fatalf("%s: removed %v, kept %v", k, removed[k], kept)
			}
		}
		for k := range now {
			if _, was := old[k]; added[k] == was {
				t.Fatalf("%s: added %v, was %v", k, added[k], was)
			}
		}
		if len(removed) > len(old) || len(added) > len(now) {
			t.Fatal("more was reported than there is")
		}
	}
	big, _ := NewSet(strings.Fields(strings.Repeat("x ", 1)))
	for i := range 5 {
		b, _ := NewBuilder("set", nil)
		if err := b.AddRange(big, 0, big.Len()); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(fmt.Appendf(nil, "y%d", i), nil); err != nil {
			t.Fatal(err)
		}
		next, err := b.Table()
		if err != nil {
			t.Fatal(err)
		}
		if next.keys.segs[0] != big.keys.segs[0] {
			t.Fatal("a segment was copied that could be shared")
		}
		big = next
	}
}
