// Package table holds the look-up tables of a policy.
//
// A set lists keys, such as recipients; a hash gives each key a value. Both are
// sorted, and a million addresses take some 30 MB: a segment of some 16 KiB
// stores once what all of its keys begin and end with. In
//
//	anna@example.org  annabel@example.org  anne@example.org
//
// that is "ann" and "@example.org", and "a", "abel" and "e" are left. The next
// version of a table shares all segments but those that changed, so that Diff of
// two versions of ten million keys looks at a few thousand.
//
// A hashed set or hash knows digests in place of keys. That of anna@example.org
// has 18 octets,
//
//	HMAC-SHA-256(secret, "d" + "example.org")[:6] + HMAC-SHA-256(secret, "k" + "anna@example.org")[:12]
//
// so that the keys of a domain lie together and can be counted, and nobody without
// the secret can test a guess.
//
// cidr, regexp and pcre tables are rules in order, of which the first that
// matches gives the value. With
//
//	!/@example\.org$/i        DUNNO
//	/^(.*)-bounces@/i         REJECT no bounces to $1
//
// list-bounces@example.org is refused with "no bounces to list". A union asks
// several tables at once, a pipe one after the other.
//
// A Builder makes a Table, which never changes afterwards; a Reader looks keys up
// in it without allocating memory.
package table

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// Types of look-up tables. "hashed_set" and "hashed_hash" are those whose keys
// are digests.
const (
	TypeSet    = "set"    // keys without values: recipients
	TypeHash   = "hash"   // keys with values, equal but for case
	TypeCIDR   = "cidr"   // networks with values, the first that matches wins
	TypeRegexp = "regexp" // POSIX extended regular expressions with values
	TypePCRE   = "pcre"   // likewise, Perl's
	TypeStatic = "static" // one value for every key
	TypeUnion  = "union"  // other tables: all their values, joined with commas
	TypePipe   = "pipe"   // other tables: the value of one is the key of the next

	hashedPrefix = "hashed_"
)

// Table is an immutable look-up table. Keys are folded to lower case, as
// Postfix does for its indexed tables.
type Table struct {
	typ    string
	secret *Secret             // set, hash: keys are digests under it; nil: they are plain
	keys   segments            // set, hash: with the values of a hash
	values []string            // cidr, regexp, pcre, static: the distinct values
	rules  []rule              // cidr, regexp, pcre
	nets   *bart.Table[uint32] // cidr without conditions: index in rules
	tables []string            // union, pipe: the names of the members
}

// NewSet returns a table of keys without values. It takes keys over.
func NewSet(keys []string) (*Table, error) {
	for i := range keys {
		keys[i] = Fold(keys[i])
	}
	return keyed(TypeSet, keys, nil)
}

// NewHash returns a table of keys with values.
func NewHash(entries map[string]string) (*Table, error) {
	folded := make(map[string]string, len(entries))
	for k, v := range entries {
		f := Fold(k)
		if _, dup := folded[f]; dup {
			return nil, fmt.Errorf("key %q appears twice", f)
		}
		folded[f] = v
	}
	return keyed(TypeHash, slices.Collect(maps.Keys(folded)), folded)
}

func keyed(typ string, keys []string, values map[string]string) (*Table, error) {
	b, err := NewBuilder(typ, nil)
	if err != nil {
		return nil, err
	}
	b.Like(nil)
	slices.Sort(keys)
	var k, v []byte
	for i, key := range keys {
		if i > 0 && keys[i-1] == key {
			return nil, fmt.Errorf("key %q appears twice", key)
		}
		k, v = append(k[:0], key...), append(v[:0], values[key]...)
		if err := b.Add(k, v); err != nil {
			return nil, err
		}
	}
	return b.Table()
}

// NewCIDR returns a table of networks, each a [prefix, value] pair: the first
// that matches wins. "!" negates a prefix; "if PREFIX" and "endif" put a
// condition on the rules between them, and have no value.
func NewCIDR(rules [][2]string) (*Table, error) { return newRules(TypeCIDR, rules) }

// NewRegexp returns a table of POSIX extended regular expressions, each a
// ["/pattern/flags", value] pair; "!", "if" and "endif" as for NewCIDR. The
// pattern has no escapes but its own. The flags are those in force: "i" ignores
// case, "m" is REG_NEWLINE, "x" (which must be there) means extended. Patterns
// are asked the whole key only.
func NewRegexp(rules [][2]string) (*Table, error) { return newRules(TypeRegexp, rules) }

// NewPCRE is NewRegexp for patterns of PCRE, with the flags "imsxAEUX".
func NewPCRE(rules [][2]string) (*Table, error) { return newRules(TypePCRE, rules) }

func newRules(typ string, rules [][2]string) (*Table, error) {
	b, err := NewBuilder(typ, nil)
	if err != nil {
		return nil, err
	}
	b.t.rules = make([]rule, 0, len(rules))
	for _, r := range rules {
		if err := b.Add([]byte(r[0]), []byte(r[1])); err != nil {
			return nil, err
		}
	}
	return b.Table()
}

// NewUnion returns a table that asks other tables, by their names in the Spec,
// and joins what they say with commas.
func NewUnion(tables []string) *Table { return &Table{typ: TypeUnion, tables: tables} }

// NewPipe returns a table that asks the first of other tables, the second with
// what the first says, and so on.
func NewPipe(tables []string) *Table { return &Table{typ: TypePipe, tables: tables} }

// NewStatic returns a table that has one value for every key.
func NewStatic(value string) *Table { return &Table{typ: TypeStatic, values: []string{value}} }

// Fold brings a key to the case in which tables hold it. It returns s itself
// when there is nothing to fold.
func Fold(s string) string { return strings.ToLower(s) }

// Type is one of the types, "" for the zero Table.
func (t *Table) Type() string {
	if t.secret != nil {
		return hashedPrefix + t.typ
	}
	return t.typ
}

// Is says that the table is of one of the types, its keys hashed or not.
func (t *Table) Is(types ...string) bool { return slices.Contains(types, t.typ) }

// Keyed says that the table is a set or a hash, which a key is searched in.
func (t *Table) Keyed() bool { return t.Is(TypeSet, TypeHash) }

// Whole says that the table is asked about whole keys only, not about their
// parents and parts.
func (t *Table) Whole() bool { return hasRules(t.typ) }

// Members are the names of the tables that a union or pipe asks.
func (t *Table) Members() []string { return t.tables }

// Secret is what the keys are hashed under, nil when they are plain.
func (t *Table) Secret() *Secret { return t.secret }

// Len returns the number of entries.
func (t *Table) Len() int {
	switch {
	case t.Keyed():
		return t.keys.len()
	case hasRules(t.typ):
		return len(t.rules)
	}
	return len(t.tables) + len(t.values)
}

// Entry returns entry i of Len: its key and its value. Sets have no values, a
// static table no key; of a union or pipe the values are the names of its
// tables. Keys of sets and hashes ascend bytewise; other entries are in the
// order of their rank, and their keys may repeat.
func (t *Table) Entry(i int) (key []byte, value string) {
	switch t.typ {
	case TypeCIDR, TypeRegexp, TypePCRE:
		if r := &t.rules[i]; r.op == ruleMatch {
			value = t.values[r.val]
		}
		return []byte(t.rules[i].key()), value
	case TypeStatic:
		return nil, t.values[i]
	case TypeUnion, TypePipe:
		return nil, t.tables[i]
	}
	seg, at := t.keys.at(i)
	return t.keys.segs[seg].appendKey(nil, at), string(t.keys.segs[seg].value(at))
}

// Entries yields the entries from to to (exclusive) as Entry does. Keys are
// good until the next one.
func (t *Table) Entries(from, to int) iter.Seq2[[]byte, string] {
	return func(yield func([]byte, string) bool) {
		if !t.Keyed() {
			for i := from; i < to; i++ {
				if !yield(t.Entry(i)) {
					return
				}
			}
			return
		}
		if from >= to {
			return
		}
		c := cursor{x: &t.keys}
		for c.seg, c.at = t.keys.at(from); from < to; from++ {
			if !yield(c.key(), string(c.value())) {
				return
			}
			c.next()
		}
	}
}

// Parts is how many parts Values has.
func (t *Table) Parts() int {
	if t.typ == TypeHash {
		return len(t.keys.segs)
	}
	return 1
}

// Values yields the values of a part of the table, each once, and whether a
// value is the same whatever the key is: that of a pattern may have $1 in it.
func (t *Table) Values(part int) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		if t.typ == TypeHash {
			s := t.keys.segs[part]
			for v := range len(s.starts) - 1 {
				if !yield(string(s.distinct(v)), true) {
					return
				}
			}
			return
		}
		for _, v := range t.values {
			fixed := true
			if isPatterns(t.typ) {
				v, fixed = fixedValue(v)
			}
			if !yield(v, fixed) {
				return
			}
		}
	}
}

// ValueAt is which of Values an entry has.
func (t *Table) ValueAt(entry int) (part, value int) {
	switch {
	case t.typ == TypeHash:
		part, at := t.keys.at(entry)
		return part, int(t.keys.segs[part].vals[at])
	case hasRules(t.typ):
		return 0, int(t.rules[entry].val)
	}
	return 0, 0
}

// Find returns the entry of a set or hash whose key is spelled as Entry does
// it, or -1.
func (t *Table) Find(key []byte) int {
	if i, found := t.keys.search(key); found {
		return i
	}
	return -1
}
