package policy

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// A Table's entries travel one by one, in order, so that a table of ten
// million recipients is neither a map nor a slice of strings on its way.

// Type is "set", "hash", "cidr", "regexp", "pcre", "static", "union" or "pipe".
func (t *Table) Type() string { return t.typ }

// Entry returns entry i of Len: its key and its value. Sets have no values, a
// static table no key; of a union or pipe the values are the names of its
// tables. Keys of sets and hashes ascend bytewise; other entries are in the
// order of their rank, and their keys may repeat. The caller must not change
// key.
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
	case typeHash:
		value = t.values[t.vals[i]]
	}
	return t.keys.key(i), value
}

// Find returns the index of a folded key of a set or hash, or -1.
func (t *Table) Find(key []byte) int { return t.keys.find(key) }

// TableBuilder makes a Table of entries that arrive in Entry's order.
type TableBuilder struct {
	t      *Table
	intern map[string]uint32
}

// NewTableBuilder starts a table of a type. entries and octets say how many
// entries and how many octets of keys are to be expected; 0 is unknown.
func NewTableBuilder(typ string, entries, octets int) (*TableBuilder, error) {
	b := &TableBuilder{t: &Table{typ: typ}, intern: map[string]uint32{}}
	switch typ {
	case typeSet, typeHash:
		b.t.keys = store{data: make([]byte, 0, octets), off: make([]uint32, 1, entries+1)}
		if typ == typeHash {
			b.t.vals = make([]uint32, 0, entries)
		}
	case typeCIDR, typeRegexp, typePCRE, typeStatic, typeUnion, typePipe:
	default:
		return nil, fmt.Errorf("table type %q is unknown", typ)
	}
	return b, nil
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
	if err := b.room(key, len(key)); err != nil {
		return err
	}
	t.keys.data = append(t.keys.data, key...)
	t.keys.off = append(t.keys.off, uint32(len(t.keys.data)))
	if t.typ == typeHash {
		t.vals = append(t.vals, b.val(value))
	}
	return nil
}

// AddRange appends the entries from to to (exclusive) of another table of the
// same type.
func (b *TableBuilder) AddRange(src *Table, from, to int) error {
	if src.typ != b.t.typ || from < 0 || to > src.Len() || from > to {
		return fmt.Errorf("entries %d to %d of a %s are no part of a %s", from, to, src.typ, b.t.typ)
	}
	if b.t.typ != typeSet && b.t.typ != typeHash {
		for i := from; i < to; i++ {
			k, v := src.Entry(i)
			if err := b.Add(k, []byte(v)); err != nil {
				return err
			}
		}
		return nil
	}
	if from == to {
		return nil
	}
	s, d := &src.keys, &b.t.keys
	lo, hi := s.off[from], s.off[to]
	if err := b.room(s.key(from), int(hi-lo)); err != nil {
		return err
	}
	base := uint32(len(d.data))
	d.data = append(d.data, s.data[lo:hi]...)
	for _, o := range s.off[from+1 : to+1] {
		d.off = append(d.off, o-lo+base)
	}
	if b.t.typ == typeHash {
		b.addVals(src, from, to)
	}
	return nil
}

func (b *TableBuilder) addVals(src *Table, from, to int) {
	known := make(map[uint32]uint32)
	for _, v := range src.vals[from:to] {
		n, ok := known[v]
		if !ok {
			n = b.val([]byte(src.values[v]))
			known[v] = n
		}
		b.t.vals = append(b.t.vals, n)
	}
}

// room refuses a key that doesn't ascend and octets that don't fit.
func (b *TableBuilder) room(key []byte, octets int) error {
	k := &b.t.keys
	if n := k.len(); n > 0 && bytes.Compare(k.key(n-1), key) >= 0 {
		return fmt.Errorf("key %q does not ascend", key)
	}
	if uint64(len(k.data))+uint64(octets) > math.MaxUint32 {
		return fmt.Errorf("keys take more than %d octets", uint32(math.MaxUint32))
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
	if spare := cap(t.keys.data) - len(t.keys.data); spare > len(t.keys.data)/8 {
		t.keys.data = bytes.Clone(t.keys.data)
	}
	return t, nil
}
