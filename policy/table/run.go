package table

import (
	"bytes"
	"container/heap"
	"errors"
	"slices"
	"sync/atomic"
)

// A list of recipients may be ten million lines long, in any order. Its keys are
// gathered in runs, in parallel. Keys of an older version of the table are only
// marked there. The rest of each run is sorted, and the runs are merged; if the list
// was sorted, nearly all segments of the runs become the table's.

// Run gathers keys of a set that come in any order.
type Run struct {
	like  *marked
	known cursor // after the key found last in like
	keys  []string
	key   []byte
	run   segments
	err   error
}

// Run begins a run of keys, which come to those that are added otherwise. Each
// may be filled by a goroutine of its own. A key that several have counts once.
func (b *Builder) Run() *Run {
	r := &Run{like: &b.like, known: cursor{x: &b.like.segments}}
	b.runs = append(b.runs, r)
	return r
}

// Add takes a key.
func (r *Run) Add(key string) {
	if key = Fold(key); !r.marks(key) {
		r.keys = append(r.keys, key)
	}
}

// marks looks for key in like, first after the last one: most lists stay in
// their order.
func (r *Run) marks(key string) bool {
	m, k := r.like, &r.known
	if k.done() || string(k.key()) != key {
		r.key = append(r.key[:0], key...)
		i, found := m.search(r.key)
		if !found {
			return false
		}
		k.seg, k.at = m.at(i)
	}
	m.mark(int(m.before[k.seg]) + k.at)
	k.next()
	return true
}

// Sort ends the run. Builder.Table does so too, but one run after the other.
func (r *Run) Sort() {
	slices.Sort(r.keys)
	b := segmentsBuilder{auto: true}
	var key []byte
	for _, k := range slices.Compact(r.keys) {
		key = append(key[:0], k...)
		if r.err = b.add(key, nil); r.err != nil {
			return
		}
	}
	b.cut()
	r.keys = nil
	r.run, r.err = newSegments(b.segs)
}

// merged makes one of x, the runs and what they have marked.
func (b *Builder) merged(x segments) (segments, error) {
	all := []*segments{&x}
	for _, r := range b.runs {
		if r.keys != nil {
			r.Sort()
		}
		if r.err != nil {
			return segments{}, r.err
		}
		all = append(all, &r.run)
	}
	x, err := merge(all)
	if err == nil && b.like.len() > 0 {
		x, err = b.like.revised(&x)
	}
	return x, err
}

// marked is a table's keys, and which of them a new list has too.
type marked struct {
	segments
	marks []uint64
}

func (m *marked) mark(i int) { atomic.OrUint64(&m.marks[i/64], 1<<(i%64)) }

func (m *marked) has(i int) bool { return m.marks[i/64]&(1<<(i%64)) != 0 }

// hasAll says that the n keys from i on are marked.
func (m *marked) hasAll(i, n int) bool {
	for n > 0 && m.has(i) {
		i, n = i+1, n-1
	}
	return n == 0
}

// cursors is a heap of runs by the keys where they stand.
type cursors []*cursor

func (h cursors) Len() int           { return len(h) }
func (h cursors) Less(i, j int) bool { return bytes.Compare(h[i].buf, h[j].buf) < 0 }
func (h cursors) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)        { *h = append(*h, x.(*cursor)) }
func (h *cursors) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

// merge makes one of the runs and uses them up. A key that several have counts
// once.
func merge(runs []*segments) (segments, error) {
	b := segmentsBuilder{auto: true}
	var h cursors
	for _, x := range runs {
		if run := (&cursor{x: x}); !run.done() {
			run.key()
			h = append(h, run)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		var next []byte // the key where the run after the first stands
		for _, run := range h[1:min(3, len(h))] {
			if next == nil || bytes.Compare(run.buf, next) < 0 {
				next = run.buf
			}
		}
		if err := b.take(h[0], next); err != nil {
			return segments{}, err
		}
		if h[0].done() {
			heap.Pop(&h)
		} else {
			heap.Fix(&h, 0)
		}
	}
	b.cut()
	return newSegments(b.segs)
}

// take adds what c has up to next (nil: all), and drops it there: as they are,
// the segments that end before it.
func (b *segmentsBuilder) take(c *cursor, next []byte) error {
	var end []byte
	for ; !c.done(); c.drop() {
		key, s := c.key(), c.x.segs[c.seg]
		if next != nil && bytes.Compare(key, next) > 0 {
			return nil
		}
		if last := b.last(); last != nil && bytes.Compare(key, last) <= 0 {
			continue // another run had it
		}
		end = s.appendKey(end[:0], s.n-1)
		if c.at == 0 && (next == nil || bytes.Compare(end, next) < 0) {
			b.cut()
			b.put(s)
			c.at = s.n - 1
			continue
		}
		if err := b.add(key, nil); err != nil {
			return err
		}
	}
	return nil
}

// drop passes a key and forgets the segment that ends with it.
func (c *cursor) drop() {
	seg := c.seg
	if c.next(); c.seg != seg {
		c.x.segs[seg] = nil
	}
}

// revised makes one of the keys that are marked and those of more, which are
// others. It shares the segments where nothing changed.
func (m *marked) revised(more *segments) (segments, error) {
	b, c, i := segmentsBuilder{auto: true, like: &m.segments}, cursor{x: more}, 0
	var key []byte
	addMore := func(until []byte) (err error) { // nil: all
		for ; err == nil && !c.done() && (until == nil || bytes.Compare(c.key(), until) < 0); c.next() {
			err = b.add(c.key(), nil)
		}
		return err
	}
	for _, s := range m.segs {
		key = s.appendKey(key[:0], s.n-1)
		if b.open.n == 0 && m.hasAll(i, s.n) && (c.done() || bytes.Compare(key, c.key()) < 0) {
			b.put(s)
			i += s.n
			continue
		}
		for at := range s.n {
			if i++; !m.has(i - 1) {
				continue
			}
			key = s.appendKey(key[:0], at)
			if err := errors.Join(addMore(key), b.add(key, nil)); err != nil {
				return segments{}, err
			}
		}
	}
	if err := addMore(nil); err != nil {
		return segments{}, err
	}
	b.cut()
	return newSegments(b.segs)
}
