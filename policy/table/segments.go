package table

import (
	"bytes"
	"fmt"
	"math"
	"sort"
)

// Sizes of a segment in octets: roughly where a builder cuts by itself, and the
// limit of 16-bit offsets.
const (
	segmentSize = 16 << 10
	maxSegment  = math.MaxUint16
)

// segment is an immutable run of sorted keys. A key costs two octets and those that
// it doesn't share with the whole segment.
type segment struct {
	n      int
	prefix []byte   // of every key
	suffix []byte   // of every key, after the prefix
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
// ends with after them.
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
	firsts []byte   // the first key of each segment, close together
	begins []uint32 // of each segment's first key in firsts, and the end of the last
	before []uint32 // keys before each segment, and all
}

func newSegments(segs []*segment) (x segments, err error) {
	x = segments{segs: segs, begins: make([]uint32, 1, len(segs)+1), before: make([]uint32, 1, len(segs)+1)}
	n := 0
	for _, s := range segs {
		x.firsts = s.appendKey(x.firsts, 0)
		x.begins = append(x.begins, uint32(len(x.firsts)))
		if n += s.n; uint64(n) > math.MaxUint32 || uint64(len(x.firsts)) > math.MaxUint32 {
			return x, fmt.Errorf("a table holds at most %d keys", uint32(math.MaxUint32))
		}
		x.before = append(x.before, uint32(n))
	}
	return x, nil
}

// segment is the last segment whose first key isn't after key, -1 for none.
func (x *segments) segment(key []byte) int {
	return sort.Search(len(x.segs), func(i int) bool {
		return bytes.Compare(x.firsts[x.begins[i]:x.begins[i+1]], key) > 0
	}) - 1
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
	n := x.segment(key)
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
