package table

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestBuilder takes tables apart and puts them together again, by entries
// and by ranges.
func TestBuilder(t *testing.T) {
	must := must(t)
	for _, src := range []*Table{
		must(NewSet([]string{"b@example.org", "a@example.org", "c@example.org"})),
		must(NewSet(nil)),
		must(NewHash(map[string]string{"x": "REJECT", "a": "OK", "b": "REJECT"})),
		must(NewCIDR([][2]string{{"10.0.0.0/8", "OK"}, {"2001:db8::1", "REJECT"}, {"0.0.0.0/0", "OK"}})),
		must(NewCIDR([][2]string{{"if !10.0.0.0/8", ""}, {"!192.0.2.0/24", "OK"}, {"endif", ""}})),
		must(NewRegexp([][2]string{{"/^a(b)/ix", "REJECT $1"}, {"if !/c/mx", ""}, {"/./x", "$$"}})),
		must(NewPCRE([][2]string{{"!/(?=a)b/is", "OK"}, {"/x/", "OK"}})),
		NewStatic("REJECT no"), NewUnion([]string{"a", "b"}), NewPipe([]string{"b", "a"}),
	} {
		for cut := range src.Len() + 1 {
			t.Run(fmt.Sprintf("%s of %d cut at %d", src.Type(), src.Len(), cut), func(t *testing.T) {
				b, err := NewBuilder(src.Type(), nil)
				if err != nil {
					t.Fatal(err)
				}
				for i := range cut {
					k, v := src.Entry(i)
					if err := b.Add(k, []byte(v)); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.AddRange(src, cut, src.Len()); err != nil {
					t.Fatal(err)
				}
				got := must(b.Table())
				want, _ := json.Marshal(src)
				have, _ := json.Marshal(got)
				if diff := cmp.Diff(string(want), string(have)); diff != "" {
					t.Error(diff)
				}
				for i := range src.keys.len() {
					if k, _ := src.Entry(i); got.Find(k) != i {
						t.Errorf("%q found at %d, not %d", k, got.Find(k), i)
					}
				}
			})
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, typ string
		entries   [][2]string
	}{
		{"same key", "set", [][2]string{{"a", ""}, {"a", ""}}},
		{"descending", "hash", [][2]string{{"b", "1"}, {"a", "1"}}},
		{"value in a set", "set", [][2]string{{"a", "1"}}},
		{"host bits", "cidr", [][2]string{{"10.0.0.1/8", "OK"}}},
		{"second static value", "static", [][2]string{{"", "OK"}, {"", "OK"}}},
		{"static key", "static", [][2]string{{"a", "OK"}}},
		{"no static value", "static", nil},
		{"key in a union", "union", [][2]string{{"a", "b"}}},
		{"key in a pipe", "pipe", [][2]string{{"a", "b"}}},
		{"unknown type", "cdb", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := NewBuilder(tt.typ, nil)
			for _, e := range tt.entries {
				if err == nil {
					err = b.Add([]byte(e[0]), []byte(e[1]))
				}
			}
			if err == nil {
				_, err = b.Table()
			}
			if err == nil {
				t.Error("built")
			}
		})
	}
	set, _ := NewSet([]string{"a", "b"})
	b, _ := NewBuilder("set", nil)
	if b.AddRange(set, 1, 3) == nil || b.AddRange(NewStatic("x"), 0, 1) == nil {
		t.Error("a range outside of the table, or of another type, was taken")
	}
	if b.AddRange(set, 1, 2) != nil || b.AddRange(set, 0, 1) == nil {
		t.Error("a descending range was taken")
	}
}
