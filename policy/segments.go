package policy

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"sort"
)

// Sizes of a segment in octets: where a builder that nobody told where to cut
// does so, about, and what 16-bit offsets reach.
const (
	segmentSize = 16 << 10
	maxSegment  = math.MaxUint16
)

// segment is an immutable run of sorted keys. A key costs two octets and those
// that it hasn't in common with the whole segment.
type segment struct {
	n      int
	prefix []byte   // of every key
	suffix []byte   // of every key, behind the prefix
	data   []byte   // what is left of each
	ends   []uint16 // of each key in data; nil: every key has DigestSize octets
	vals   []uint16 // hash: for each key its index in values
	// values are the distinct values of the segment, in one block.
	values []byte
	starts []uint32 // of each value, and where the last one ends
}

// rest is key i without the prefix and the suffix.
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
	return append(append(append(b, s.prefix...), s.rest(i)...), s.suffix...)
}

// compare compares key i with another, both without the prefix.
func (s *segment) compare(i int, key []byte) int {
	r := s.rest(i)
	if c := bytes.Compare(r, key[:min(len(r), len(key))]); c != 0 || len(r) > len(key) {
		return c
	}
	return bytes.Compare(s.suffix, key[len(r):])
}

// equal says whether s holds the keys of o, which has no values.
func (s *segment) equal(o *segment) bool {
	if s.n != o.n || s.vals != nil {
		return false
	}
	var key []byte
	for i := range s.n {
		if key = s.appendKey(key[:0], i); !bytes.Equal(key, o.rest(i)) {
			return false
		}
	}
	return true
}

// common counts the octets that every key of s begins with, and those that it
// ends with behind them.
func (s *segment) common() (prefix, suffix int) {
	first, last := s.rest(0), s.rest(s.n-1)
	for prefix < min(len(first), len(last)) && first[prefix] == last[prefix] {
		prefix++
	}
	end := first[prefix:]
	for i := 1; i < s.n && len(end) > 0; i++ {
		key := s.rest(i)[prefix:]
		for !bytes.HasSuffix(key, end) {
			end = end[1:]
		}
	}
	return prefix, len(end)
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
		x.first.data = s.appendKey(x.first.data, 0)
		x.first.off = append(x.first.off, uint32(len(x.first.data)))
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
		switch c := s.compare(mid, key); {
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
	fixed, valued bool      // keys are digests; entries have values
	like          *segments // a set whose segments are taken where they are the same, or nil
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
	i := b.like.first.find(o.rest(0))
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

// cutBehind ends the segment behind key, which was just added, if that is long
// enough and key such a one as comes every few kilobytes: where another version
// has the same keys it is cut at the same places.
func (b *segmentsBuilder) cutBehind(key []byte) {
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
		b.cutBehind(k)
	}
	b.cut()
	return newSegments(b.segs)
}
