package publisher

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/understudy-mx/understudy/policy/postfix/maillog"
)

const (
	tailRead = 256 << 10 // octets in one look
	tailMark = 64        // octets before the place to read on, by which to know it again
)

// tail follows a file that others write and rotate. What is there at first isn't
// read; a file that comes later is, from its start.
type tail struct {
	path  string
	f     *os.File
	began bool // the first look is over
	at    int64
	mark  []byte // what stood before at
	moved bool   // another file is written now; this one is read once more
	lines
}

// lines cuts octets into lines, and leaves out those that are too long.
type lines struct {
	max    int
	line   []byte // begun
	tooBig bool   // line is; the rest of it is skipped
}

// look calls emit for each new line. more says that there is more to read now.
func (t *tail) look(emit func(line []byte)) (more bool, err error) {
	if t.f == nil {
		f, err := os.Open(t.path)
		if err != nil {
			t.began = true
			return false, err
		}
		t.f, t.at, t.mark, t.moved, t.lines = f, 0, nil, false, lines{max: maillog.MaxLine}
		if !t.began {
			t.began = true
			if t.at, err = f.Seek(0, io.SeekEnd); err != nil {
				return false, t.fail(err)
			}
			return false, t.remember()
		}
	}
	if err := t.check(); err != nil {
		return false, t.fail(err)
	}
	b := make([]byte, tailRead)
	n, err := t.f.ReadAt(b, t.at)
	if err != nil && err != io.EOF {
		return false, t.fail(err)
	}
	if n > 0 {
		t.at += int64(n)
		t.take(b[:n], emit)
		return true, t.remember()
	}
	now, err := os.Stat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // renamed: the writer may still have ours
	}
	if err != nil {
		return false, t.fail(err)
	}
	mine, err := t.f.Stat()
	switch {
	case err != nil:
		return false, t.fail(err)
	case os.SameFile(now, mine) || now.Size() == 0:
		return false, nil
	case t.moved:
		t.close()
	}
	t.moved = true
	return true, nil
}

// check goes back to the start of a file that was truncated, also of one that has
// grown since.
func (t *tail) check() error {
	was := make([]byte, len(t.mark))
	_, err := t.f.ReadAt(was, t.at-int64(len(was)))
	if err != nil && err != io.EOF {
		return err
	}
	if !bytes.Equal(was, t.mark) {
		t.at, t.mark, t.lines = 0, nil, lines{max: maillog.MaxLine}
	}
	return nil
}

func (t *tail) remember() error {
	t.mark = make([]byte, min(tailMark, t.at))
	if _, err := t.f.ReadAt(t.mark, t.at-int64(len(t.mark))); err != nil && err != io.EOF {
		return t.fail(err)
	}
	return nil
}

func (l *lines) take(b []byte, emit func([]byte)) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		b = rest
		if l.tooBig = l.tooBig || len(l.line)+len(part) > l.max; !l.tooBig {
			l.line = append(l.line, part...)
		}
		if !ended {
			return
		}
		if !l.tooBig {
			emit(l.line)
		}
		l.line, l.tooBig = l.line[:0], false
	}
}

func (t *tail) fail(err error) error {
	t.close()
	return err
}

func (t *tail) close() {
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
}
