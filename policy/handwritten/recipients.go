package handwritten

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/pushed"
	"github.com/understudy-mx/understudy/policy/table"
)

func (p *file) recipients(n node, doms, domPaths []string) {
	b, err := table.NewBuilder(table.TypeSet, nil)
	if err != nil {
		panic("handwritten: " + err.Error()) // there are sets
	}
	var before *table.Table
	if p.before != nil {
		before = p.before.Spec().Tables[recipientsTable]
	}
	b.Like(before)
	here := p.newPiece(b)
	for _, domain := range p.asks {
		if err := here.add("@" + domain); err != nil {
			n.wrong(askedTable, "%v", err)
		}
	}
	vals, paths := n.strings("recipients")
	for i, v := range vals {
		if err := here.add(v); err != nil {
			n.wrong(paths[i], "%v", err)
		}
	}
	all, known := []*piece{here}, true
	if file := n.str("recipients_file"); file != "" {
		more, err := p.list(file, b)
		if err != nil {
			n.wrong("recipients_file", "%v; name a readable file, relative to this one", err)
			known = false
		}
		all = append(all, more...)
	}
	if dir := n.str("recipients_pushed"); dir != "" {
		all = append(all, p.pushed(n, dir, b, all)...)
	}
	used := make([]bool, len(p.domains))
	for _, c := range all {
		for i := range used {
			used[i] = used[i] || c.used[i]
		}
	}
	for i, v := range doms {
		if no, ours := p.domains[table.Fold(v)]; ours && known && !used[no] && !p.unsure[table.Fold(v)] {
			n.wrong(domPaths[i], "domain %q has no recipient; list some, or %q to accept every address", v, "@"+v)
		}
	}
	if p.spec.Tables[recipientsTable], err = b.Table(); err != nil {
		n.wrong("recipients", "%v; split the file", err)
	}
}

// A list of recipients may be ten million lines long. It is read in pieces of whole
// lines that are parsed in parallel.

// pieceSize is how much of a list one piece holds, at least.
const pieceSize = 256 << 10

// maxLine bounds a line of a list, which a file that is none may have as long as it is.
const maxLine = 1 << 20

var errLine = fmt.Errorf("the line is longer than %d octets; is it a list with an address a line?", maxLine)

// mark is what some programs begin a text with, U+FEFF.
var mark = []byte("\ufeff")

// piece is what a part of a list holds.
type piece struct {
	p     *file
	lines int
	run   *table.Run
	used  []bool    // domains by their number
	wrong []mistake // with lines of the piece
}

func (p *file) newPiece(b *table.Builder) *piece {
	return &piece{p: p, run: b.Run(), used: make([]bool, len(p.domains))}
}

// add takes an address or says what is wrong with it.
func (c *piece) add(addr string) error {
	local, domain, _ := cutLast(addr, "@")
	no, ours := c.p.domains[table.Fold(domain)]
	if ours {
		c.used[no] = true
	}
	switch {
	case domain == "" || !validLocal(local):
		return fmt.Errorf("%.100q is not an address; write user@example.org, or @example.org for every user", addr)
	case !ours:
		return fmt.Errorf("recipient %.100q is outside of the domains; add %.100q to domains or remove it", addr, domain)
	}
	c.run.Add(addr)
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

// list reads a file of recipients.
func (p *file) list(file string, b *table.Builder) ([]*piece, error) {
	path, r, err := p.open(file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return p.pieces(path, r, b)
}

// pushed reads the list that was pushed for each domain. Where none was yet, where it
// is stale, and while a deletion waits for the operator, an unknown recipient is put off.
func (p *file) pushed(n node, dir string, b *table.Builder, before []*piece) (all []*piece) {
	for _, domain := range slices.Sorted(maps.Keys(p.domains)) {
		no := p.domains[domain]
		path, r, err := p.open(filepath.Join(dir, pushed.ListName(domain)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if !slices.ContainsFunc(before, func(c *piece) bool { return c.used[no] }) {
				p.unsure[domain] = true
			}
			continue
		case err == nil:
			var more []*piece
			more, err = p.pushedList(path, r, b)
			all = append(all, more...)
		}
		if err != nil {
			n.wrong("recipients_pushed", "%v; name the directory push in the state directory of understudy", err)
			continue
		}
		_, mark, err := p.open(filepath.Join(dir, pushed.UnsureName(domain)))
		if err == nil {
			mark.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) { // in doubt, too
			p.unsure[domain] = true
		}
	}
	return all
}

func (p *file) pushedList(path string, r io.ReadCloser, b *table.Builder) ([]*piece, error) {
	defer r.Close()
	v, err := pushed.Verify(path, r)
	if err != nil {
		return nil, err
	}
	return p.pieces(path, v, b)
}

// pieces reads a list.
func (p *file) pieces(path string, r io.Reader, b *table.Builder) ([]*piece, error) {
	var all []*piece
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	err := eachPiece(r, func(text string) {
		c := p.newPiece(b)
		all = append(all, c)
		work.Go(func() error {
			c.read(path, text)
			c.run.Sort()
			return nil
		})
	})
	_ = work.Wait() // a run keeps its error
	lines := 0
	for _, c := range all {
		for _, m := range c.wrong[:min(len(c.wrong), max(0, 10*maxMistakes-len(p.mistakes)))] {
			m.line += lines
			p.mistakes = append(p.mistakes, m)
		}
		c.wrong, lines = nil, lines+c.lines
	}
	if errors.Is(err, errLine) {
		err = fmt.Errorf("%s:%d: %w", path, lines+1, err)
	}
	return all, err
}

// eachPiece cuts what r says into pieces of whole lines.
func eachPiece(r io.Reader, fn func(text string)) error {
	var buf []byte // a piece, and the line that was begun
	for first := true; ; first = false {
		n := len(buf)
		buf = slices.Grow(buf, pieceSize)[:n+pieceSize]
		m, err := io.ReadFull(r, buf[n:])
		buf = buf[:n+m]
		if first {
			buf = bytes.TrimPrefix(buf, mark)
		}
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
		case len(buf) > maxLine:
			return errLine
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

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// validLocal says that a local-part is written as in a command: quoted where, and
// only where, necessary. None stands for every user.
func validLocal(s string) bool {
	if envelope.PlainLocal(s) {
		return true
	}
	if len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r != ' ' && envelope.Unseen(r) }) {
		return false
	}
	if inner, quoted := strings.CutPrefix(s, `"`); quoted && strings.HasSuffix(inner, `"`) {
		inner = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(inner[:len(inner)-1])
		return (envelope.Mailbox{Local: inner}).String() == s
	}
	return (envelope.Mailbox{Local: s}).String() == s
}
