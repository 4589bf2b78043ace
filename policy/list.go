package policy

import (
	"bytes"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// A list of recipients may be ten million lines long. It is read in pieces of
// whole lines that are looked at side by side. What the table of before has too
// is only marked there. The rest of each piece becomes a sorted run, and the
// runs are merged: of a list that is sorted already, nearly all segments of the
// runs are the table's.

// pieceSize is how much of a list one piece holds, at least.
const pieceSize = 256 << 10

// piece is what a part of a list holds.
type piece struct {
	p     *tomlPolicy
	lines int
	keys  []string
	key   []byte
	used  []bool    // domains by their number
	wrong []mistake // with lines of the piece
	known cursor    // behind the key found last in the table of before
	run   segments
	err   error // of making the run
}

func (p *tomlPolicy) newPiece() *piece {
	return &piece{p: p, used: make([]bool, len(p.domains)), known: cursor{x: &p.like.segments}}
}

// marked is a table's keys, and which of them a new list has too.
type marked struct {
	segments
	marks []uint64
}

func newMarked(t *Table) *marked {
	if t == nil || t.secret != nil {
		return &marked{}
	}
	return &marked{t.keys, make([]uint64, t.Len()/64+1)}
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

// add takes an address or says what is wrong with it.
func (c *piece) add(addr string) error {
	local, domain, found := cutLast(addr, "@")
	no, ours := c.p.domains[fold(domain)]
	if ours {
		c.used[no] = true
	}
	switch {
	case !found || domain == "" || local != "" && !validLocal(local):
		return fmt.Errorf("%q is not an address; write user@example.org, or @example.org for every user", addr)
	case !ours:
		return fmt.Errorf("recipient %q is outside of the domains; add %q to domains or remove it", addr, domain)
	}
	if key := fold(addr); !c.marks(key) {
		c.keys = append(c.keys, key)
	}
	return nil
}

// marks looks for key in the table of before, first behind the last one: most
// lists stay in their order.
func (c *piece) marks(key string) bool {
	m, k := c.p.like, &c.known
	if k.done() || string(k.key()) != key {
		c.key = append(c.key[:0], key...)
		i, found := m.search(c.key)
		if !found {
			return false
		}
		k.seg, k.at = m.at(i)
	}
	m.mark(int(m.before[k.seg]) + k.at)
	k.next()
	return true
}

// read reads lines. file is what they are called in mistakes.
func (c *piece) read(file, text string) {
	c.lines = eachLine(text, func(line, col int, text string) {
		if err := c.add(text); err != nil && len(c.wrong) < 10*maxMistakes {
			c.wrong = append(c.wrong, mistake{file, line, col, err.Error()})
		}
	})
}

// sort makes the run.
func (c *piece) sort() {
	slices.Sort(c.keys)
	var b segmentsBuilder
	var key []byte
	for _, k := range slices.Compact(c.keys) {
		key = append(key[:0], k...)
		if c.err = b.add(key, nil); c.err != nil {
			return
		}
		b.cutBehind(key)
	}
	b.cut()
	c.keys = nil
	c.run, c.err = newSegments(b.segs)
}

// list reads a file of recipients.
func (p *tomlPolicy) list(file string) ([]*piece, error) {
	path, r, err := p.open(file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []*piece
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	err = eachPiece(r, func(text string) {
		c := p.newPiece()
		all = append(all, c)
		work.Go(func() error {
			c.read(path, text)
			c.sort()
			return nil
		})
	})
	_ = work.Wait() // each piece has its own error
	lines := 0
	for _, c := range all {
		for _, m := range c.wrong[:min(len(c.wrong), max(0, 10*maxMistakes-len(p.mistakes)))] {
			m.line += lines
			p.mistakes = append(p.mistakes, m)
		}
		c.wrong, lines = nil, lines+c.lines
	}
	return all, err
}

// eachPiece cuts what r says into pieces of whole lines.
func eachPiece(r io.Reader, fn func(text string)) error {
	var buf []byte // a piece, and the line that was begun
	for {
		n := len(buf)
		buf = slices.Grow(buf, pieceSize)[:n+pieceSize]
		m, err := io.ReadFull(r, buf[n:])
		buf = buf[:n+m]
		end := 0
		if i := bytes.LastIndexByte(buf[n:], '\n'); i >= 0 { // before n there is none
			end = n + i + 1
		}
		if err != nil {
			end = len(buf)
		}
		if end > 0 {
			fn(string(buf[:end]))
			buf = buf[:copy(buf, buf[end:])]
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// eachLine calls fn for each line of a list file that isn't blank or a
// comment, with its number and the column where it starts, and counts them all.
func eachLine(text string, fn func(line, col int, text string)) (lines int) {
	for line := range strings.Lines(text) {
		lines++
		line = strings.TrimRight(line, "\r\n")
		if i := strings.IndexByte(line, '#'); i == 0 || i > 0 && (line[i-1] == ' ' || line[i-1] == '\t') {
			line = line[:i]
		}
		trimmed := strings.TrimLeft(line, " \t")
		col := len(line) - len(trimmed) + 1
		if trimmed = strings.TrimRight(trimmed, " \t"); trimmed != "" {
			fn(lines, col, trimmed)
		}
	}
	return lines
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
func merge(all []*piece) (segments, error) {
	var b segmentsBuilder
	var h cursors
	for _, c := range all {
		if c.err != nil {
			return segments{}, c.err
		}
		if run := (&cursor{x: &c.run}); !run.done() {
			run.key()
			h = append(h, run)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		var next []byte // the key where the run behind the first stands
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
		b.cutBehind(key)
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
	b, c, i := segmentsBuilder{like: &m.segments}, cursor{x: more}, 0
	var key []byte
	add := func(key []byte) error {
		err := b.add(key, nil)
		b.cutBehind(key)
		return err
	}
	addMore := func(until []byte) (err error) { // nil: all
		for ; err == nil && !c.done() && (until == nil || bytes.Compare(c.key(), until) < 0); c.next() {
			err = add(c.key())
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
			if err := errors.Join(addMore(key), add(key)); err != nil {
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
