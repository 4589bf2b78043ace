package table

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

// ErrOrder says that a key isn't after the one before it.
var ErrOrder = errors.New("does not ascend")

// Builder makes a Table of entries that arrive in Entry's order.
type Builder struct {
	t      *Table
	index  segmentsBuilder
	intern map[string]uint32
	like   marked // the keys that the runs have met in it count
	runs   []*Run
}

// NewBuilder starts a table of a type. secret is what its keys are hashed
// under, for the types that are hashed.
func NewBuilder(typ string, secret *Secret) (*Builder, error) {
	plain, hashed := strings.CutPrefix(typ, hashedPrefix)
	b := &Builder{t: &Table{typ: plain}, intern: map[string]uint32{}}
	switch plain {
	case TypeSet, TypeHash:
		b.index.valued = plain == TypeHash
		if hashed && secret == nil {
			return nil, errors.New("there is no secret for a table of digests")
		}
		if hashed {
			b.index.fixed, b.t.secret = true, secret
		}
		return b, nil
	case TypeCIDR, TypeRegexp, TypePCRE, TypeStatic, TypeUnion, TypePipe:
		if !hashed {
			return b, nil
		}
	}
	return nil, fmt.Errorf("table type %q is unknown", typ)
}

// Add appends an entry. It copies what it keeps.
func (b *Builder) Add(key, value []byte) error {
	t := b.t
	switch t.typ {
	case TypeStatic:
		if len(key) > 0 || len(t.values) > 0 {
			return errors.New("a static table has one value and no key")
		}
		t.values = append(t.values, string(value))
		return nil
	case TypeCIDR, TypeRegexp, TypePCRE:
		return t.addRule(string(key), string(value), b.value)
	case TypeUnion, TypePipe:
		if len(key) > 0 || len(value) == 0 {
			return fmt.Errorf("an entry of a %s is the name of a table", t.typ)
		}
		t.tables = append(t.tables, string(value))
		return nil
	case TypeSet:
		if len(value) > 0 {
			return fmt.Errorf("key %q of a set has a value", key)
		}
	}
	return b.index.add(key, value)
}

// Like has the builder cut the table by itself, at the same places as another
// version of it. Where a set has the same keys as before, another version or nil,
// it shares memory with it.
func (b *Builder) Like(before *Table) {
	b.index.auto = true
	if before != nil && before.Type() == b.t.Type() {
		b.like = marked{before.keys, make([]uint64, before.Len()/64+1)}
		b.index.like = &b.like.segments
	}
}

// Cut is a hint: versions of the table will differ between here and another
// such place. What lies between is what they share. The places must not lie
// further apart than 48 KiB.
func (b *Builder) Cut() { b.index.cut() }

// AddRange appends the entries from to to (exclusive) of another table of the
// same type.
func (b *Builder) AddRange(src *Table, from, to int) error {
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

// value returns the index of a value in the table's.
func (b *Builder) value(v string) uint32 {
	i, known := b.intern[v]
	if !known {
		i = uint32(len(b.t.values))
		b.t.values = append(b.t.values, v)
		b.intern[v] = i
	}
	return i
}

// Table returns the table and ends the builder.
func (b *Builder) Table() (*Table, error) {
	t := b.t
	b.t = nil
	if t.typ == TypeStatic && len(t.values) == 0 {
		return nil, errors.New("a static table lacks its value")
	}
	if hasRules(t.typ) {
		return t, t.link()
	}
	b.index.cut()
	var err error
	if t.keys, err = newSegments(b.index.segs); err == nil && len(b.runs) > 0 {
		t.keys, err = b.merged(t.keys)
	}
	return t, err
}

// segmentsBuilder makes segments of entries that ascend.
type segmentsBuilder struct {
	fixed, valued bool      // keys are digests; entries have values
	auto          bool      // it cuts by itself
	like          *segments // a set whose segments are taken where they are the same, or nil
	segs          []*segment

	open   segment // what is gathered for the next one, whole keys
	before []byte  // last key of segs
	intern map[string]uint16
}

func (b *segmentsBuilder) add(key, value []byte) error {
	if last := b.last(); last != nil && bytes.Compare(last, key) >= 0 {
		return fmt.Errorf("key %q %w", key, ErrOrder)
	}
	if b.fixed && len(key) != DigestSize {
		return fmt.Errorf("key %q is no digest of %d octets", key, DigestSize)
	}
	o := &b.open
	if n := len(o.data); n > 0 && n+len(key) > maxSegment || len(o.values) > 0 && len(o.values)+len(value) > 4*maxSegment {
		b.cut()
	}
	if len(key) > maxSegment {
		return fmt.Errorf("a key has %d octets; a table takes at most %d", len(key), maxSegment)
	}
	if b.valued {
		v, known := b.intern[string(value)]
		if !known {
			v = uint16(len(b.intern))
			if b.intern == nil {
				b.intern, o.starts = map[string]uint16{}, append(o.starts[:0], 0)
			}
			b.intern[string(value)] = v
			o.values = append(o.values, value...)
			o.starts = append(o.starts, uint32(len(o.values)))
		}
		o.vals = append(o.vals, v)
	}
	o.data = append(o.data, key...)
	if !b.fixed {
		o.ends = append(o.ends, uint16(len(o.data)))
	}
	o.n++
	if b.auto {
		b.cutAfter(key)
	}
	return nil
}

// last is the key added last, nil when there is none.
func (b *segmentsBuilder) last() []byte {
	if o := &b.open; o.n > 0 {
		return o.rest(o.n - 1)
	}
	if len(b.segs) == 0 {
		return nil
	}
	return b.before
}

// put appends a segment that is complete.
func (b *segmentsBuilder) put(s *segment) {
	b.segs = append(b.segs, s)
	b.before = s.appendKey(b.before[:0], s.n-1)
}

// cut ends the segment. It gets memory of its own, of the right size.
func (b *segmentsBuilder) cut() {
	o := &b.open
	if o.n == 0 {
		return
	}
	s := b.known(o)
	if s == nil {
		s = b.closed(o)
	}
	b.put(s)
	b.open = segment{data: o.data[:0], ends: o.ends[:0], vals: o.vals[:0], values: o.values[:0], starts: o.starts[:0]}
	b.intern = nil
}

// known is the segment of like with the keys of o, or nil.
func (b *segmentsBuilder) known(o *segment) *segment {
	if b.like == nil {
		return nil
	}
	i := b.like.segment(o.rest(0))
	if i < 0 || !b.like.segs[i].equal(o) {
		return nil
	}
	return b.like.segs[i]
}

// closed is o without what its keys have in common.
func (b *segmentsBuilder) closed(o *segment) *segment {
	n, m := o.common()
	if b.fixed {
		m = 0
	}
	first := o.rest(0)
	s := &segment{n: o.n, prefix: bytes.Clone(first[:n]), suffix: bytes.Clone(first[len(first)-m:])}
	s.data = make([]byte, 0, len(o.data)-o.n*(n+m))
	if !b.fixed {
		s.ends = make([]uint16, 0, o.n)
	}
	for i := range o.n {
		key := o.rest(i)
		s.data = append(s.data, key[n:len(key)-m]...)
		if !b.fixed {
			s.ends = append(s.ends, uint16(len(s.data)))
		}
	}
	if b.valued {
		s.vals, s.values, s.starts = slices.Clone(o.vals), bytes.Clone(o.values), slices.Clone(o.starts)
	}
	return s
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// cutAfter ends the segment with key, which was just added, if it is long enough
// and the key's hash says so, every few kilobytes: versions with the same keys are
// cut at the same places.
func (b *segmentsBuilder) cutAfter(key []byte) {
	n, chance := len(b.open.data), uint64(len(key))<<32
	if n >= 2*segmentSize || n >= segmentSize/2 && uint64(crc32.Checksum(key, castagnoli))*(segmentSize/2) < chance {
		b.cut()
	}
}

// share appends the entries from to to of another, as they are where whole
// segments fit.
func (b *segmentsBuilder) share(x *segments, from, to int) error {
	var key []byte
	for from < to {
		n, at := x.at(from)
		s := x.segs[n]
		if at == 0 && from+s.n <= to {
			b.cut()
			key = s.appendKey(key[:0], 0)
			if last := b.last(); last != nil && bytes.Compare(last, key) >= 0 {
				return fmt.Errorf("key %q %w", key, ErrOrder)
			}
			b.put(s)
			from += s.n
			continue
		}
		for ; at < s.n && from < to; at, from = at+1, from+1 {
			key = s.appendKey(key[:0], at)
			if err := b.add(key, s.value(at)); err != nil {
				return err
			}
		}
	}
	return nil
}
