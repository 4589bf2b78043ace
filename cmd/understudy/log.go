package main

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/config"
)

// newLogger writes to w as the configuration says.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // config lets nothing else through
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || c.Format == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func isTerminal(w io.Writer) bool {
	if g, ok := w.(*gatherer); ok {
		w = g.w
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Lines wait for others so long, or until there are so many octets of them.
const (
	gatherFor  = 10 * time.Millisecond
	gatherUpTo = 32 << 10
)

// gatherer writes what comes within a moment at once: a busy server logs
// thousands of lines a second, and each would be a system call, and a wake-up
// of whoever collects the log. A process that is killed loses its last moment.
type gatherer struct {
	w io.Writer

	mu      sync.Mutex // guards the rest; held over a write, so that lines keep their order
	lines   []byte
	waiting bool // flush will be called
}

func (g *gatherer) Write(line []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines = append(g.lines, line...)
	if len(g.lines) >= gatherUpTo {
		return len(line), g.write()
	}
	if !g.waiting {
		g.waiting = true
		time.AfterFunc(gatherFor, g.flush)
	}
	return len(line), nil
}

// flush writes what waits. Call it before the process ends.
func (g *gatherer) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = false
	_ = g.write() // there is nowhere to say that the log can't be written
}

func (g *gatherer) write() error {
	if len(g.lines) == 0 {
		return nil
	}
	_, err := g.w.Write(g.lines)
	g.lines = g.lines[:0]
	return err
}
