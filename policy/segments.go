package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
)

// Bounds of a segment in octets: where a builder that nobody told where to cut
// does so, and what 16-bit offsets reach.
const (
	segmentSize = 16 << 10
	maxSegment  = math.MaxUint16
)

// segment is an immutable run of sorted keys. A key costs two octets and those
// that it hasn't in common with the whole segment.
type segment struct {
	n      int
	prefix []byte   // of every key
	data   []byte   // the rest of each
	ends   []uint16 // of each key in data; nil: every key has DigestSize octets
	vals   []uint16 // hash: for each key its index in values
	// values are the distinct values of the segment, in one block.
	values []byte
	starts []uint32 // of each value, and where the last one ends
}

// rest is key i without the prefix.
func (s *segment) rest(i int) []byte {
	if s.ends == nil {
		size := DigestSize - len(s.prefix)
		return s.data[i*size : (i+1)*size]
	}
	from := 0
	if i > 0 {
		from = int(s.ends[i-1])
	}
	return s.data[from:s.ends[i]]
}

// appendKey appends key i.
func (s *segment) appendKey(b []byte, i int) []byte {
	return append(append(b, s.prefix...), s.rest(i)...)
}

func (s *segment) value(i int) []byte {
	if s.vals == nil {
		return nil
	}
	return s.distinct(int(s.vals[i]))
}

func (s *segment) distinct(v int) []byte { return s.values[s.starts[v]:s.starts[v+1]] }

// segments is an immutable sorted list of keys. It holds a million recipients in
// some 30 MB, a look-up allocates nothing, and one version of a table shares
// with the next all segments but those that changed.
type segments struct {
	segs   []*segment
	first  store    // the first key of each segment, close together
	before []uint32 // keys before each segment, and all
}

func newSegments(segs []*segment) (x segments, err error) {
	x = segments{segs: segs, before: make([]uint32, 1, len(segs)+1)}
	x.first.off = make([]uint32, 1, len(segs)+1)
	n := 0
	for _, s := range segs {
		x.first.append(s.prefix, s.rest(0))
		if n += s.n; uint64(n) > math.MaxUint32 || uint64(len(x.first.data)) > math.MaxUint32 {
			return x, fmt.Errorf("a table holds at most %d keys", uint32(math.MaxUint32))
		}
		x.before = append(x.before, uint32(n))
	}
	return x, nil
}

func (x *segments) len() int {
	if len(x.before) == 0 {
		return 0
	}
	return int(x.before[len(x.before)-1])
}

// at finds entry i: its segment and its place there.
func (x *segments) at(i int) (segment, place int) {
	s := sort.Search(len(x.segs), func(s int) bool { return int(x.before[s+1]) > i })
	return s, i - int(x.before[s])
}

// search returns the number of keys before key, and whether it is there.
func (x *segments) search(key []byte) (entry int, found bool) {
	n := x.first.after(key) - 1
	if n < 0 {
		return 0, false
	}
	s := x.segs[n]
	if !bytes.HasPrefix(key, s.prefix) { // the segment's first key is before key, so all are
		return int(x.before[n+1]), false
	}
	key = key[len(s.prefix):]
	lo, hi := 0, s.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := bytes.Compare(s.rest(mid), key); {
		case c == 0:
			return int(x.before[n]) + mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return int(x.before[n]) + lo, false
}

// cursor walks segments.
type cursor struct {
	x       *segments
	seg, at int
	buf     []byte
}

func (c *cursor) done() bool { return c.seg >= len(c.x.segs) }

// key is good until the next call.
func (c *cursor) key() []byte {
	c.buf = c.x.segs[c.seg].appendKey(c.buf[:0], c.at)
	return c.buf
}

// value is nil at the end, and without values.
func (c *cursor) value() []byte {
	if c.done() {
		return nil
	}
	return c.x.segs[c.seg].value(c.at)
}

func (c *cursor) next() {
	if c.at++; c.at == c.x.segs[c.seg].n {
		c.seg, c.at = c.seg+1, 0
	}
}

// skip passes the segments that both have in common here.
func (c *cursor) skip(o *cursor) {
	for c.at == 0 && o.at == 0 && !c.done() && !o.done() && c.x.segs[c.seg] == o.x.segs[o.seg] {
		c.seg++
		o.seg++
	}
}

// diff calls only with each key that only one of two has, left saying which,
// and for both of them where the values differ. What they share it doesn't look
// at. Keys and values are good until only returns.
func (x *segments) diff(o *segments, only func(left, both bool, key, value []byte)) {
	a, b := cursor{x: x}, cursor{x: o}
	for {
		a.skip(&b)
		order := 0
		var left, right []byte
		if !a.done() {
			left = a.key()
		}
		if !b.done() {
			right = b.key()
		}
		switch {
		case a.done() && b.done():
			return
		case b.done():
			order = -1
		case a.done():
			order = 1
		default:
			order = bytes.Compare(left, right)
		}
		differ := order != 0 || !bytes.Equal(a.value(), b.value())
		if order <= 0 {
			if differ {
				only(true, order == 0, left, a.value())
			}
			a.next()
		}
		if order >= 0 {
			if differ {
				only(false, order == 0, right, b.value())
			}
			b.next()
		}
	}
}

// segmentsBuilder makes segments of entries that ascend.
type segmentsBuilder struct {
	fixed, valued bool // keys are digests; entries have values
	segs          []*segment

	open   segment // what is gathered for the next one, whole keys
	before []byte  // last key of segs
	intern map[string]uint16
}

func (b *segmentsBuilder) add(key, value []byte) error {
	if last := b.last(); last != nil && bytes.Compare(last, key) >= 0 {
		return fmt.Errorf("key %q does not ascend", key)
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
	first, last, n := o.rest(0), o.rest(o.n-1), 0
	for n < len(first) && n < len(last) && first[n] == last[n] {
		n++
	}
	s := &segment{n: o.n, prefix: bytes.Clone(first[:n]), data: make([]byte, 0, len(o.data)-o.n*n)}
	for i := range o.n {
		s.data = append(s.data, o.rest(i)[n:]...)
		if !b.fixed {
			s.ends = append(s.ends, uint16(len(s.data)))
		}
	}
	s.ends = slices.Clone(s.ends)
	if b.valued {
		s.vals, s.values, s.starts = slices.Clone(o.vals), bytes.Clone(o.values), slices.Clone(o.starts)
	}
	b.put(s)
	b.open = segment{data: o.data[:0], ends: o.ends[:0], vals: o.vals[:0], values: o.values[:0], starts: o.starts[:0]}
	b.intern = nil
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
				return fmt.Errorf("key %q does not ascend", key)
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

// sorted makes segments of entries in any order.
func sorted(keys []string, value func(key string) string) (segments, error) {
	slices.SortFunc(keys, cmp.Compare[string])
	b := segmentsBuilder{valued: value != nil}
	var v, k []byte
	for i, key := range keys {
		if i > 0 && keys[i-1] == key {
			return segments{}, fmt.Errorf("key %q appears twice", key)
		}
		if value != nil {
			v = append(v[:0], value(key)...)
		}
		k = append(k[:0], key...)
		if err := b.add(k, v); err != nil {
			return segments{}, err
		}
		if len(b.open.data) >= segmentSize {
			b.cut()
		}
	}
	b.cut()
	return newSegments(b.segs)
}
