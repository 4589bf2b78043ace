package pushed

import (
	"bufio"
	"bytes"
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
)

// A list may have millions of lines in any order, and memory is bounded: it is
// sorted in runs, which are merged from the disk.

// runSize is how many octets of addresses are sorted at a time.
const runSize = 4 << 20

// header is the first line of a list, with room for the digest of the others.
const (
	headerStart = "# understudy list, sha256 "
	headerSize  = len(headerStart) + 2*sha256.Size + 1
)

// sorter takes addresses in any order and writes them sorted, once each.
type sorter struct {
	l    *list
	most int
	n    int // added
	buf  []byte
	ends []int
	runs []string // names of sorted files
}

func (s *sorter) add(addr string) error {
	if s.n++; s.n > s.most {
		return fmt.Errorf("%w: more than %d; see max_recipients under [push]", ErrTooLong, s.most)
	}
	if len(s.buf)+len(addr) > runSize {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.buf = append(s.buf, addr...)
	s.ends = append(s.ends, len(s.buf))
	return nil
}

// sorted returns the addresses in memory.
func (s *sorter) sorted() []string {
	text, start := string(s.buf), 0
	all := make([]string, len(s.ends))
	for i, end := range s.ends {
		all[i], start = text[start:end], end
	}
	slices.Sort(all)
	s.buf, s.ends = s.buf[:0], s.ends[:0]
	return slices.Compact(all)
}

// spill moves what is in memory to a file.
func (s *sorter) spill() error {
	f, err := s.l.store.o.disk.Create(s.l.store.o.Dir)
	if err != nil {
		return err
	}
	s.runs = append(s.runs, f.Name())
	w := bufio.NewWriter(f)
	for _, addr := range s.sorted() {
		w.WriteString(addr)
		w.WriteByte('\n')
	}
	return errors.Join(w.Flush(), f.Close()) // not synced: it doesn't outlive the request
}

// close removes the runs.
func (s *sorter) close() {
	for _, name := range s.runs {
		_ = s.l.store.o.disk.Remove(name) // the next start does it else
	}
}

// each calls fn for all addresses in order.
func (s *sorter) each(fn func(addr string) error) error {
	rest := s.sorted()
	var h cursors
	defer h.close()
	if len(rest) > 0 {
		h = append(h, &cursor{line: rest[0], mem: rest[1:]})
	}
	for _, name := range s.runs {
		c, err := s.l.open(name)
		if err != nil {
			return err
		}
		h = append(h, c)
		if err := c.next(); err != nil {
			return err
		}
	}
	heap.Init(&h)
	last := ""
	for len(h) > 0 {
		c := h[0]
		if c.line != last {
			if err := fn(c.line); err != nil {
				return err
			}
			last = c.line
		}
		if err := c.next(); err == io.EOF {
			c.close()
			heap.Pop(&h)
		} else if err != nil {
			return err
		} else {
			heap.Fix(&h, 0)
		}
	}
	return nil
}

// cursor is at a line of a sorted file, or of memory.
type cursor struct {
	line string
	mem  []string
	r    *bufio.Reader
	f    io.Closer
}

func (l *list) open(name string) (*cursor, error) {
	f, err := l.store.o.disk.Open(name)
	if err != nil {
		return nil, err
	}
	return &cursor{r: bufio.NewReaderSize(f, 32<<10), f: f}, nil
}

// next moves to the next line, or returns io.EOF.
func (c *cursor) next() error {
	if c.r == nil {
		if len(c.mem) == 0 {
			return io.EOF
		}
		c.line, c.mem = c.mem[0], c.mem[1:]
		return nil
	}
	b, err := c.r.ReadSlice('\n')
	if err == io.EOF && len(b) > 0 {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	c.line = string(b[:len(b)-1])
	return nil
}

func (c *cursor) close() {
	if c.f != nil {
		c.f.Close()
	}
}

// cursors is a heap.
type cursors []*cursor

func (h cursors) Len() int           { return len(h) }
func (h cursors) Less(i, j int) bool { return h[i].line < h[j].line }
func (h cursors) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)        { *h = append(*h, x.(*cursor)) }
func (h *cursors) Pop() any {
	old := *h
	c := old[len(old)-1]
	*h = old[:len(old)-1]
	return c
}
func (h cursors) close() {
	for _, c := range h {
		c.close()
	}
}

// writer writes a list to a temporary file.
type writer struct {
	f   file
	w   *bufio.Writer
	sum hash.Hash
	n   int
}

func (l *list) create() (*writer, error) {
	f, err := l.store.o.disk.Create(l.store.o.Dir)
	if err != nil {
		return nil, err
	}
	w := &writer{f: f, w: bufio.NewWriterSize(f, 64<<10), sum: sha256.New()}
	_, err = w.w.WriteString(strings.Repeat("#", headerSize-1) + "\n")
	return w, err
}

func (w *writer) add(addr string) error {
	w.n++
	line := append([]byte(addr), '\n')
	w.sum.Write(line)
	_, err := w.w.Write(line)
	return err
}

// finish makes the file durable, and returns its ETag.
func (w *writer) finish() (string, error) {
	etag := hex.EncodeToString(w.sum.Sum(nil))
	err := w.w.Flush()
	if err == nil {
		_, err = w.f.WriteAt([]byte(headerStart+etag+"\n"), 0)
	}
	if err == nil {
		err = w.f.Sync()
	}
	return etag, errors.Join(err, w.f.Close())
}

// ETag is the tag of a list of addresses that are folded, sorted and distinct.
func ETag(addrs []string) string {
	sum := sha256.New()
	for _, a := range addrs {
		io.WriteString(sum, a)
		sum.Write([]byte{'\n'})
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// walk opens a list at its first address.
func (l *list) walk(ending string) (*cursor, error) {
	c, err := l.open(l.path(ending))
	if err == nil {
		if err = c.next(); err == nil && !strings.HasPrefix(c.line, headerStart) {
			err = fmt.Errorf("%s is no list", l.path(ending))
		}
		if err != nil {
			c.close()
		}
	}
	return c, err
}

// sum checks a list and counts it.
func (l *list) sum(ending string) (etag string, n int, err error) {
	f, err := l.store.o.disk.Open(l.path(ending))
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	v, err := Verify(l.path(ending), f)
	if err != nil {
		return "", 0, err
	}
	buf := make([]byte, 64<<10)
	for {
		m, err := v.Read(buf)
		n += bytes.Count(buf[:m], []byte{'\n'})
		if err == io.EOF {
			return v.want, n, nil
		}
		if err != nil {
			return "", 0, err
		}
	}
}

// Verified reads a list's lines, and fails at their end if they aren't those that
// were stored.
type Verified struct {
	name, want string
	r          io.Reader
	sum        hash.Hash
}

// Verify reads a list's header. name is for errors.
func Verify(name string, r io.Reader) (*Verified, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil || !bytes.HasPrefix(head, []byte(headerStart)) || head[headerSize-1] != '\n' {
		return nil, fmt.Errorf("%s is no list that was pushed; push it again", name)
	}
	return &Verified{name: name, want: string(head[len(headerStart) : headerSize-1]), r: r, sum: sha256.New()}, nil
}

func (v *Verified) Read(b []byte) (int, error) {
	n, err := v.r.Read(b)
	v.sum.Write(b[:n])
	if err == io.EOF && hex.EncodeToString(v.sum.Sum(nil)) != v.want {
		err = fmt.Errorf("%s is damaged; push it again", v.name)
	}
	return n, err
}
