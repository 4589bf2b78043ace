package table

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T) func(*Table, error) *Table {
	return func(tb *Table, err error) *Table {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return tb
	}
}

// TestReader looks keys up in tables of every type.
func TestReader(t *testing.T) {
	must := must(t)
	hash := must(NewHash(map[string]string{"a@Example.org": "REJECT", "b@example.org": "OK", "c@example.org": "REJECT"}))
	var r Reader
	for name, tt := range map[string]struct {
		t    *Table
		want map[string]string // "-" is none
	}{
		"set":    {must(NewSet([]string{"A@example.org"})), map[string]string{"a@example.org": "", "b@example.org": "-"}},
		"hash":   {hash, map[string]string{"a@example.org": "REJECT", "b@example.org": "OK", "": "-", "z": "-"}},
		"hashed": {must(hash.Hashed(&Secret{1}, true, nil, nil)), map[string]string{"a@example.org": "REJECT", "b@example.org": "OK", "z": "-"}},
		"other":  {must(hash.Hashed(&Secret{2}, true, nil, nil)), map[string]string{"c@example.org": "REJECT", "b@": "-"}},
		"static": {NewStatic("x$1"), map[string]string{"a": "x$1"}},
		"union":  {NewUnion([]string{"a"}), map[string]string{"a": "-"}},
		"cidr": {must(NewCIDR([][2]string{{"10.1.0.0/16", "in"}, {"10.0.0.0/8", "$out"}, {"10.1.1.0/24", "in"}, {"2001:db8::1", "six"}})),
			map[string]string{"10.1.1.1": "in", "10.2.0.1": "$out", "2001:db8::1": "six", "2001:db8::2": "-", "name": "-"}},
		"cidr with conditions": {must(NewCIDR([][2]string{{"if 10.0.0.0/8", ""}, {"!10.1.0.0/16", "other"}, {"10.1.0.0/16", "one"}, {"endif", ""}, {"!192.0.2.0/24", "rest"}})),
			map[string]string{"10.2.0.1": "other", "10.1.0.1": "one", "192.0.2.1": "-", "198.51.100.1": "rest", "::1": "-", "name": "-"}},
		"cidr of all": {must(NewCIDR([][2]string{{"0.0.0.0/0", "four"}, {"::/0", "six"}})),
			map[string]string{"10.1.1.1": "four", "::1": "six", "name": "-"}},
		"cidr of all but": {must(NewCIDR([][2]string{{"!2001:db8::/32", "six"}, {"!10.0.0.0/8", "four"}})),
			map[string]string{"10.1.1.1": "-", "::1": "six", "2001:db8::1": "-", "192.0.2.1": "four", "name": "-"}},
		"regexp": {must(NewRegexp([][2]string{{"/^(a+)(b)?$/ix", "$1-${2}-$(1) $$"}, {"/^c/x", ""}})),
			map[string]string{"aab": "aa-b-aa $", "A": "A--A $", "c": "", "b": "-"}},
		"pcre": {must(NewPCRE([][2]string{{"if /x/", ""}, {`/^\d+(?=x)/`, "digits"}, {"endif", ""}, {"!/y/", "no y"}})),
			map[string]string{"12x": "digits", "ax": "no y", "axy": "-", "12": "no y"}},
	} {
		for key, want := range tt.want {
			addr, _ := netip.ParseAddr(key)
			got := "-"
			i, err := r.Find(tt.t, []byte(key), addr)
			if err == nil && i >= 0 {
				got, err = r.Value(tt.t, i, []byte(key))
			}
			if err != nil || got != want {
				t.Errorf("%s: %q: %q, %v; want %q", name, key, got, err, want)
			}
		}
		if tt.t.Is(TypeUnion) {
			if !slices.Equal(tt.t.Members(), []string{"a"}) {
				t.Errorf("members %q", tt.t.Members())
			}
			continue
		}
		parts := make([][]string, tt.t.Parts())
		for part := range parts {
			for v, fixed := range tt.t.Values(part) {
				if fixed != (v != "" || name != "regexp" || len(parts[part]) == 1) {
					t.Errorf("%s: %q fixed: %v", name, v, fixed)
				}
				parts[part] = append(parts[part], v)
			}
			if s := slices.Sorted(slices.Values(parts[part])); name != "regexp" && len(slices.Compact(s)) < len(parts[part]) {
				t.Errorf("%s: a value stands twice in %q", name, parts[part])
			}
		}
		for i := range tt.t.Len() {
			if _, v := tt.t.Entry(i); v != "" && !strings.Contains(v, "$") && !tt.t.Is(TypeSet) {
				if part, at := tt.t.ValueAt(i); parts[part][at] != v {
					t.Errorf("%s: entry %d has %q, not %q", name, i, parts[part][at], v)
				}
			}
		}
	}
	values := 0
	for range hash.Values(0) {
		values++
	}
	if values != 2 {
		t.Errorf("%d values, want each once", values)
	}
}

// TestJSON: what is read is written alike.
func TestJSON(t *testing.T) {
	secret := strings.Repeat("ab", 32)
	digest := strings.Repeat("0c", DigestSize)
	for _, text := range []string{
		`{"type":"set"}`, `{"type":"set","keys":["<a&b>","c"]}`, `{"type":"hash","entries":{"a":"1","b":""}}`, `{"type":"static","value":"x"}`,
		`{"type":"cidr","rules":[["if 10.0.0.0/8",""],["!10.1.1.1","x"],["endif",""]]}`, `{"type":"pcre","rules":[["/(a)/is","$1"]]}`,
		`{"type":"regexp","rules":[["/a/ix","b"]]}`, `{"type":"union","tables":["a","b"]}`, `{"type":"pipe","tables":["a"]}`,
		`{"type":"set","secret":"` + secret + `","keys":["` + digest + `"]}`, `{"type":"hash","secret":"` + secret + `","entries":{"` + digest + `":"v"}}`,
	} {
		var tb Table
		if err := json.Unmarshal([]byte(text), &tb); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := tb.MarshalJSON(); err != nil || string(got) != text {
			t.Errorf("%s: written as %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		`{"type":"btree"}`: "unknown table type", `{"type":"set","sort":1}`: "unknown field", `{"type":"set","keys":["a","A"]}`: "twice",
		`{"type":"set","secret":"` + secret + `","keys":["0c"]}`:  "no digest of 18 octets",
		`{"type":"set","secret":"` + secret + `","keys":["zz"]}`:  "invalid byte",
		`{"type":"static","secret":"` + secret + `","value":"x"}`: "unknown", `{"type":"set","secret":"ab"}`: "64 hexadecimal digits",
	} {
		if err := json.Unmarshal([]byte(text), new(Table)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestRefused: what no table can hold.
func TestRefused(t *testing.T) {
	rule := func(pattern, value string) func() (*Table, error) {
		return func() (*Table, error) { return NewPCRE([][2]string{{pattern, value}}) }
	}
	prefix := func(p string) func() (*Table, error) {
		return func() (*Table, error) { return NewCIDR([][2]string{{p, ""}}) }
	}
	for want, make := range map[string]func() (*Table, error){
		`"a" appears twice`: func() (*Table, error) { return NewSet([]string{"a", "b", "A"}) },
		`"k" appears twice`: func() (*Table, error) { return NewHash(map[string]string{"k": "", "K": ""}) },
		"at most 65535":     func() (*Table, error) { return NewSet([]string{strings.Repeat("x", 1<<16)}) },
		"takes at most 65535": func() (*Table, error) {
			b, err := NewBuilder(TypeSet, nil)
			b.Run().Add(strings.Repeat("x", 1<<16))
			if err != nil {
				return nil, nil
			}
			return b.Table()
		},
		"no secret":             func() (*Table, error) { _, err := NewBuilder("hashed_set", nil); return nil, err },
		`"hashed_static" is un`: func() (*Table, error) { _, err := NewBuilder("hashed_static", new(Secret)); return nil, err },
		"$2 is no group":        rule("/(a)/", "$2"), "$0 is no group": rule("/(a)/", "$0"), "$x is no group": rule("/(a)/", "${x}"),
		"$1x is no group": rule("/(a)/", "$1x"), "$1 is no group": rule("!/(a)/", "$1"), "$1234 is no group": rule("/(a)/", "$1234"), "$ is no group": rule("/(a)/", "a$"),
		"$1y is no group": rule("/(a)/", "${1y"), "want /pattern/flags": rule("a/", ""), "without its if": rule("endif", ""), "has a value": rule("if /a/", "x"),
		"not an IP address": prefix("fe80::1%eth0"), `"name" is not an IP`: prefix("name"), "host bits; write 10.0.0.0/8": prefix("10.0.0.1/8"), "not an IP prefix": prefix("::ffff:10.0.0.0/104"),
	} {
		if _, err := make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if longest, err := NewSet([]string{strings.Repeat("x", 1<<16-1)}); err != nil || longest.Len() != 1 {
		t.Errorf("the longest key: %v", err)
	}
}

// TestCuts: a table that nobody cuts has segments of some 16 KiB, and one with
// large values more of them.
func TestCuts(t *testing.T) {
	must := must(t)
	entries, keys := map[string]string{}, []string(nil)
	for i := range 20_000 {
		key := fmt.Sprintf("user%d@example.org", i*7919)
		entries[key], keys = strings.Repeat("v", i%97)+fmt.Sprint(i), append(keys, key)
	}
	set, hash := must(NewSet(slices.Clone(keys))), must(NewHash(entries))
	hashed := must(set.Hashed(&Secret{3}, false, nil, nil))
	for name, tb := range map[string]*Table{"set": set, "hash": hash, "hashed": hashed} {
		octets := 0
		for i, s := range tb.keys.segs {
			n := 0
			for at := range s.n {
				n += len(s.appendKey(nil, at))
			}
			if octets += n; n > 2*segmentSize+100 || n < segmentSize/2 && i < len(tb.keys.segs)-1 {
				t.Errorf("%s: segment %d of %d has %d octets", name, i, len(tb.keys.segs), n)
			}
		}
		if mean := octets / len(tb.keys.segs); mean < segmentSize*2/3 || mean > segmentSize*3/2 {
			t.Errorf("%s: segments have %d octets on an average", name, mean)
		}
	}
	var r Reader
	for _, key := range keys {
		i, _ := r.Find(hashed, []byte(key), netip.Addr{})
		if _, v := hash.Entry(hash.Find([]byte(key))); v != entries[key] || i < 0 || set.Find([]byte(key)) < 0 {
			t.Fatalf("%s: %q, %d", key, v, i)
		}
	}
}

// TestHashedAgain: a hash whose values change, under another secret or of
// another type than before, is hashed as it would be at once.
func TestHashedAgain(t *testing.T) {
	must := must(t)
	one, two := &Secret{1}, &Secret{2}
	old := must(NewHash(map[string]string{"a@x.example": "1", "b@y.example": "1", "c@x.example": "1", "": "1"}))
	now := must(NewHash(map[string]string{"a@x.example": "2", "b@y.example": "1", "d@x.example": "1", "": "3"}))
	set := must(NewSet([]string{"a@x.example", "e@x.example"}))
	many, changed := map[string]string{}, map[string]string{}
	for i := range 5000 {
		many[fmt.Sprint(i)], changed[fmt.Sprint(i)] = "old", "new"
	}
	all, other := must(NewHash(many)), must(NewHash(changed))
	if got := must(other.Hashed(one, true, all, must(all.Hashed(one, true, nil, nil)))); got.Len() != 5000 || got.keys.segs[0].value(0)[0] != 'n' {
		t.Errorf("%d keys, %q", got.Len(), got.keys.segs[0].value(0))
	}
	for name, tt := range map[string]struct{ before, hashed *Table }{
		"values": {old, must(old.Hashed(one, true, nil, nil))}, "secret": {old, must(old.Hashed(two, true, nil, nil))},
		"as a set": {old, must(old.Hashed(one, false, nil, nil))}, "type": {set, must(set.Hashed(one, false, nil, nil))},
		"plain": {old, old}, "nothing hashed": {old, nil}, "nothing before": {nil, must(old.Hashed(one, true, nil, nil))},
	} {
		for _, values := range []bool{true, false} {
			want, _ := json.Marshal(must(now.Hashed(one, values, nil, nil)))
			got, _ := json.Marshal(must(now.Hashed(one, values, tt.before, tt.hashed)))
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s, values %v: %s", name, values, diff)
			}
		}
	}
}

// TestTag: the keys of a domain have one tag, and stand side by side. A key
// without a domain has a tag, too, and the same after others.
func TestTag(t *testing.T) {
	a, b := NewHasher(&Secret{1}), NewHasher(&Secret{1})
	b.Digest([]byte("x@example.org"))
	if first, later := string(a.Digest([]byte("x"))), string(b.Digest([]byte("x"))); first != later || strings.HasPrefix(first, "\x00\x00\x00") {
		t.Errorf("%x, then %x", first, later)
	}
	tag := func(key string) string { return string(a.Digest([]byte(key))[:TagSize]) }
	for _, key := range []string{"bob@example.org", "a@b@example.org", "@example.org"} {
		if tag(key) != tag("alice@example.org") || tag(key) == tag("alice@example.com") || tag(key) == tag("alice") {
			t.Errorf("%s isn't with its domain", key)
		}
	}
}

// TestRuns: runs of random keys, of which many occur several times, make the
// set of all, alone and beside another version.
func TestRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	var before *Table
	for round := range 20 {
		b, err := NewBuilder(TypeSet, nil)
		if err != nil {
			t.Fatal(err)
		}
		b.Like(before)
		var all []string
		add := func(run *Run, first, n int) {
			for range n {
				key := fmt.Sprintf("user%06d@example.org", first+r.IntN(n))
				all = append(all, key)
				run.Add(key)
			}
		}
		for range 1 + r.IntN(4) {
			run := b.Run()
			for range 3 {
				add(run, r.IntN(10)*10_000, r.IntN(4000)) // long stretches of its own, and some that others have
			}
			if r.IntN(2) == 0 {
				run.Sort()
			}
		}
		slices.Sort(all)
		all = slices.Compact(all)
		got, err := b.Table()
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for key := range got.Entries(0, got.Len()) {
			keys = append(keys, string(key))
		}
		if !slices.Equal(keys, all) {
			t.Fatalf("round %d: %d keys, want %d", round, len(keys), len(all))
		}
		before = got
	}
}
