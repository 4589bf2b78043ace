package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// runScript runs a program there: $1 is the mark, $2 the directory, the rest the
// program. Its first output is the mark, its last the mark and three digits.
const runScript = `m=$1 d=$2; shift 2; printf '%s' "$m"
PATH=$PATH:/usr/sbin:/sbin LC_ALL=C; export PATH LC_ALL
if [ -z "$d" ] || cd "$d"; then "$@"; s=$?; else s=125; fi
printf '%s%03d' "$m" "$s"`

// behind is the command that runs a program behind the prefix.
func (h *Host) behind(p Program, mark string) []string {
	inner := append([]string{"sh", "-c", runScript, "sh", mark, p.Dir}, p.Argv...)
	if slices.ContainsFunc(h.Prefix, func(w string) bool { return path.Base(w) == "ssh" }) {
		// ssh joins the words, and the shell there takes them apart.
		for i, w := range inner {
			inner[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return slices.Concat(h.Prefix, inner)
}

// ending is an output without the mark at its beginning, and that and the status at its end.
type ending struct {
	r     io.Reader
	mark  string
	begun func() // called once the first mark is there
	tail  []byte // not yet passed on: it may be the mark
	done  bool
}

func newEnding() *ending { return &ending{mark: rand.Text()} }

func (e *ending) size() int { return len(e.mark) + 3 }

func (e *ending) Read(p []byte) (int, error) {
	for !e.done && (e.begun != nil || len(e.tail) <= e.size()) {
		b := make([]byte, 32<<10)
		n, err := e.r.Read(b)
		e.tail = append(e.tail, b[:n]...)
		if rest, is := bytes.CutPrefix(e.tail, []byte(e.mark)); e.begun != nil && is {
			e.begun()
			e.begun, e.tail = nil, rest
		} else if e.begun != nil && len(e.tail) > len(e.mark) {
			return 0, errPrefixTalks
		}
		if err == io.EOF {
			e.done = true
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, e.tail[:max(0, len(e.tail)-e.size())])
	e.tail = e.tail[n:]
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	if _, whole := e.status(); !whole {
		return 0, io.ErrUnexpectedEOF
	}
	return 0, io.EOF
}

// status is the program's, once all has been read.
func (e *ending) status() (status int, whole bool) {
	rest, is := bytes.CutPrefix(e.tail, []byte(e.mark))
	if !e.done || !is || e.begun != nil {
		return 0, false
	}
	status, err := strconv.Atoi(string(rest))
	return status, err == nil
}

// ended tells the program's failure from that of the command before it.
func (h *Host) ended(e *ending, readErr, err error, said string) (error, error) {
	status, whole := e.status()
	switch {
	case whole && status == 126, whole && status == 127:
		return readErr, fmt.Errorf("%w there: %s", ErrStart, lastLine(said))
	case whole && status != 0:
		return readErr, &ExitError{status}
	case whole:
		return readErr, nil
	case errors.Is(readErr, errPrefixTalks):
		err = errPrefixTalks
	case readErr != nil && !errors.Is(readErr, io.ErrUnexpectedEOF):
		return readErr, nil // its reader has stopped it
	}
	if err == nil {
		err = errors.New("its output ends in the middle")
	}
	if line := lastLine(said); line != "" {
		err = fmt.Errorf("%w: %s", err, line)
	}
	return nil, fmt.Errorf("%s: %w", h, err)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// errPrefixTalks means that the command before a program writes to its output.
var errPrefixTalks = errors.New("it prints something before the program does")

const notThere = 44 // exit status

// shTime bounds a script that reads a file or looks at some.
const shTime = 2 * time.Minute

// sh runs a script there and returns its output.
func (h *Host) sh(ctx context.Context, script string, max int64, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, shTime, fmt.Errorf("%s takes more than %v to read a file", h, shTime))
	defer cancel()
	said := &beginning{}
	var out []byte
	readErr, err := h.Run(ctx, Program{Argv: append([]string{"sh", "-c", script, "sh"}, args...), Stderr: said}, func(r io.Reader) (err error) {
		out, err = io.ReadAll(io.LimitReader(r, max+1))
		if int64(len(out)) > max {
			return errTooMuch
		}
		return err
	})
	var exit *ExitError
	switch {
	case errors.Is(readErr, errTooMuch):
		return out, nil // the caller says so
	case errors.As(err, &exit) && exit.Status == notThere:
		return nil, fs.ErrNotExist
	case exit != nil && said.Len() > 0:
		return nil, errors.New(lastLine(said.String()))
	}
	return out, errors.Join(err, readErr)
}

var errTooMuch = errors.New("too much")

func (h *Host) cat(ctx context.Context, name string, max int64) ([]byte, error) {
	const script = `[ -e "$1" ] || exit 44; [ ! -d "$1" ] || { echo "$1: is a directory" >&2; exit 1; }; exec cat -- "$1"`
	b, err := h.sh(ctx, script, max, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return b, err
}

const maxNames = 1 << 20 // octets of a list of names

// globBehind lets the shell there look. The pattern's directory is taken as it is.
func (h *Host) globBehind(ctx context.Context, pattern string) ([]string, error) {
	dir, last := path.Split(pattern)
	out, err := h.sh(ctx, `cd "$1" 2>/dev/null || exit 0; for f in *; do case $f in $2) printf '%s\n' "$f";; esac; done`, maxNames, dir, last)
	var names []string
	for line := range strings.Lines(string(out)) {
		if name := path.Join(dir, strings.TrimSuffix(line, "\n")); name != pattern {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// stampsBehind asks for all at once, by stat(1) of GNU or of busybox.
func (h *Host) stampsBehind(ctx context.Context, names []string) (map[string]string, error) {
	out, err := h.sh(ctx, `for f; do stat -L -c '%d %i %s %y %z' "$f" 2>/dev/null || echo; done`, maxNames, names...)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(names) {
		return nil, fmt.Errorf("%s: stat gave %d lines for %d files", h, len(lines), len(names))
	}
	all := map[string]string{}
	for i, name := range names {
		all[name] = lines[i]
	}
	return all, nil
}
