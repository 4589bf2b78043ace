package policy

import (
	"errors"
	"fmt"
	"iter"
	"strings"
)

// A Table's entries travel one by one, in order, so that a table of ten
// million recipients is neither a map nor a slice of strings on its way.

// hashedPrefix begins the types of tables whose keys are digests.
const hashedPrefix = "hashed_"

// Type is "set", "hash", "hashed_set", "hashed_hash", "cidr", "regexp", "pcre",
// "static", "union" or "pipe".
func (t *Table) Type() string {
	if t.secret != nil {
		return hashedPrefix + t.typ
	}
	return t.typ
}

// Keyed says that the table is a set or a hash, which a key is searched in.
func (t *Table) Keyed() bool { return t.typ == typeSet || t.typ == typeHash }

// Secret is what the keys are hashed under, nil when they are plain.
func (t *Table) Secret() *Secret { return t.secret }

// Entry returns entry i of Len: its key and its value. Sets have no values, a
// static table no key; of a union or pipe the values are the names of its
// tables. Keys of sets and hashes ascend bytewise; other entries are in the
// order of their rank, and their keys may repeat.
func (t *Table) Entry(i int) (key []byte, value string) {
	switch t.typ {
	case typeCIDR, typeRegexp, typePCRE:
		if r := &t.rules[i]; r.op == ruleMatch {
			value = t.values[r.val]
		}
		return []byte(t.rules[i].key()), value
	case typeStatic:
		return nil, t.values[i]
	case typeUnion, typePipe:
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

// Find returns the entry of a set or hash whose key is spelled as Entry does
// it, or -1.
func (t *Table) Find(key []byte) int {
	if i, found := t.keys.search(key); found {
		return i
	}
	return -1
}

// Diff calls removed and added, which may be nil, with the keys that only one
// of two tables has. What the two share it doesn't look at: that is most of
// two versions of which one was built with AddRange of the other. Keys are good
// until the function returns. Tables that are nil or have no keys count as empty.
func Diff(old, now *Table, removed, added func(key []byte)) {
	x, y := new(segments), new(segments)
	if old != nil {
		x = &old.keys
	}
	if now != nil {
		y = &now.keys
	}
	x.diff(y, func(left, both bool, key, _ []byte) {
		switch {
		case both:
		case left && removed != nil:
			removed(key)
		case !left && added != nil:
			added(key)
		}
	})
}

// TableBuilder makes a Table of entries that arrive in Entry's order.
type TableBuilder struct {
	t      *Table
	index  segmentsBuilder
	intern map[string]uint32
}

// NewTableBuilder starts a table of a type. secret is what its keys are hashed
// under, for the types that are hashed.
func NewTableBuilder(typ string, secret *Secret) (*TableBuilder, error) {
	plain, hashed := strings.CutPrefix(typ, hashedPrefix)
	b := &TableBuilder{t: &Table{typ: plain}, intern: map[string]uint32{}}
	switch plain {
	case typeSet, typeHash:
		b.index.valued = plain == typeHash
		if hashed && secret == nil {
			return nil, errors.New("there is no secret for a table of digests")
		}
		if hashed {
			b.index.fixed, b.t.secret = true, secret
		}
		return b, nil
	case typeCIDR, typeRegexp, typePCRE, typeStatic, typeUnion, typePipe:
		if !hashed {
			return b, nil
		}
	}
	return nil, fmt.Errorf("table type %q is unknown", typ)
}

// Add appends an entry. It copies what it keeps.
func (b *TableBuilder) Add(key, value []byte) error {
	t := b.t
	switch t.typ {
	case typeStatic:
		if len(key) > 0 || len(t.values) > 0 {
			return errors.New("a static table has one value and no key")
		}
		t.values = append(t.values, string(value))
		return nil
	case typeCIDR, typeRegexp, typePCRE:
		return t.addRule(string(key), string(value), func(v string) uint32 { return b.val([]byte(v)) })
	case typeUnion, typePipe:
		if len(key) > 0 || len(value) == 0 {
			return fmt.Errorf("an entry of a %s is the name of a table", t.typ)
		}
		t.tables = append(t.tables, string(value))
		return nil
	case typeSet:
		if len(value) > 0 {
			return fmt.Errorf("key %q of a set has a value", key)
		}
	}
	return b.index.add(key, value)
}

// Cut is a hint: versions of the table will differ between here and another
// such place. What lies between is what they share. The places must not lie
// further apart than 48 KiB.
func (b *TableBuilder) Cut() { b.index.cut() }

// AddRange appends the entries from to to (exclusive) of another table of the
// same type.
func (b *TableBuilder) AddRange(src *Table, from, to int) error {
	if src.Type() != b.t.Type() || from < 0 || to > src.Len() || from > to {
		return fmt.Errorf("entries %d to %d of a %s are no part of a %s", from, to, src.Type(), b.t.Type())
	}
	if b.t.Keyed() {
		return b.index.share(&src.keys, from, to)
	}
	for k, v := range src.Entries(from, to) {
		if err := b.Add(k, []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

func (b *TableBuilder) val(value []byte) uint32 {
	if i, ok := b.intern[string(value)]; ok {
		return i
	}
	return b.t.intern(b.intern, string(value))
}

// Table returns the table and ends the builder.
func (b *TableBuilder) Table() (*Table, error) {
	t := b.t
	b.t = nil
	if t.typ == typeStatic && len(t.values) == 0 {
		return nil, errors.New("a static table lacks its value")
	}
	if hasRules(t.typ) {
		return t, t.link()
	}
	b.index.cut()
	var err error
	t.keys, err = newSegments(b.index.segs)
	return t, err
}
