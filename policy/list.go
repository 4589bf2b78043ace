package policy

import (
	"bytes"
	"container/heap"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// A list of recipients may be ten million lines long. It is read in pieces of
// whole lines that are looked at side by side. Each piece becomes a sorted
// run, and the runs are merged: of a list that is sorted already, nearly all
// segments of the runs are the table's.

// pieceSize is how much of a list one piece holds, at least.
const pieceSize = 1 << 20

// piece is what a part of a list holds.
type piece struct {
	p     *tomlPolicy
	lines int
	keys  []string
	used  []bool    // domains by their number
	wrong []mistake // with lines of the piece
	run   segments
	err   error // of making the run
}

func (p *tomlPolicy) newPiece() *piece { return &piece{p: p, used: make([]bool, len(p.domains))} }

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
	c.keys = append(c.keys, fold(addr))
	return nil
}

// read reads lines. file is what they are called in mistakes.
func (c *piece) read(file, text string) {
	c.lines = eachLine(text, func(line, col int, text string) {
		if err := c.add(text); err != nil && len(c.wrong) < 10*maxMistakes {
			c.wrong = append(c.wrong, mistake{file, line, col, err.Error()})
		}
	})
}

// sort makes the run. Where it is the same as like (nil: none), it shares its
// memory.
func (c *piece) sort(like *segments) {
	slices.Sort(c.keys)
	b := segmentsBuilder{like: like}
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
func (p *tomlPolicy) list(file string, like *segments) ([]*piece, error) {
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
			c.sort(like)
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

// merge makes one of the runs. A key that several have counts once.
func merge(all []*piece, like *segments) (segments, error) {
	b := segmentsBuilder{like: like}
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

// take adds what c has up to next (nil: all): as they are, the segments that
// end before it.
func (b *segmentsBuilder) take(c *cursor, next []byte) error {
	var end []byte
	for ; !c.done(); c.next() {
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
