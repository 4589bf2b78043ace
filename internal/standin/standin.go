// Package standin keeps planned windows in which a secondary stands in for its
// primary although that may be up: an operator begins one before a maintenance, and
// it ends by itself or when the operator says so. It outlives the daemon.
package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
)

// Bounds of a window.
const (
	Shortest  = time.Minute
	Longest   = 7 * 24 * time.Hour
	MaxReason = 200 // octets
)

// Window is one.
type Window struct {
	Began  time.Time `json:"began"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// Book has the window that is open, in a file.
type Book struct {
	name   string
	log    *slog.Logger
	change func(*Window)
	wake   chan struct{} // one token: look at the clock again

	mu  sync.Mutex // held also while change is told, which so hears in order
	now *Window    // nil: none
}

// Open goes on with the window that a file has. change is told each change, and of a
// window that is open already; nil says that none is. A damaged file is put aside:
// then no window is open.
func Open(name string, log *slog.Logger, change func(*Window)) *Book {
	b := &Book{name: name, log: log, change: change, wake: make(chan struct{}, 1)}
	var w Window
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return b
	}
	if err == nil {
		if err = json.Unmarshal(text, &w); err == nil && (w.Began.IsZero() || w.Until.IsZero() || w.Until.Sub(w.Began) > Longest) {
			err = errors.New("it has no window")
		}
		if err != nil {
			err = errors.Join(err, os.Rename(name, name+".damaged"))
		}
	}
	if err != nil {
		log.Error("a planned stand-in can't be read, and isn't gone on with; begin it anew if it is wanted", "file", name, "err", err)
		return b
	}
	b.now = &w
	change(&w)
	return b
}

// Now is the window that is open, nil for none.
func (b *Book) Now() *Window {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// Begin opens a window from now on, or gives the open one another end and reason.
func (b *Book) Begin(now time.Time, length time.Duration, reason string) (Window, error) {
	switch {
	case length < Shortest || length > Longest:
		return Window{}, fmt.Errorf("%v is no length for a stand-in; choose from %v to %v", length, Shortest, Longest)
	case reason == "" || len(reason) > MaxReason:
		return Window{}, fmt.Errorf("a stand-in needs a reason of up to %d octets", MaxReason)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now = now.UTC().Truncate(time.Second)
	w := Window{now, now.Add(length), service.Printable(reason)}
	if b.now != nil {
		w.Began = b.now.Began
		if w.Until.Sub(w.Began) > Longest {
			return Window{}, fmt.Errorf("the stand-in since %s would be longer than %v", w.Began.Format(time.RFC3339), Longest)
		}
	}
	text, err := json.Marshal(w)
	if err == nil {
		err = service.ReplaceFile(b.name, text)
	}
	if err != nil {
		return Window{}, fmt.Errorf("keep the stand-in: %w", err)
	}
	b.log.Warn("stand-in begins: the primary gets no mail, the policy decides", "until", w.Until, "reason", w.Reason)
	b.set(&w)
	return w, nil
}

// End closes the window.
func (b *Book) End() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return errors.New("there is no stand-in")
	}
	return b.end("ended by the operator")
}

// end closes the window. The caller holds mu.
func (b *Book) end(why string) error {
	if err := os.Remove(b.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the stand-in: %w", err)
	}
	b.log.Info("stand-in is over: the primary gets mail again", "why", why, "began", b.now.Began)
	b.set(nil)
	return nil
}

func (b *Book) set(w *Window) {
	b.now = w
	b.change(w)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run closes a window whose time is over, until ctx ends. The wall clock counts: it
// is looked at once a minute at least.
func (b *Book) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-b.wake:
		}
		timer.Reset(b.look(time.Now()))
	}
}

// look closes the window if its time is over, and says when to look again.
func (b *Book) look(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == nil {
		return time.Minute
	}
	left := b.now.Until.Sub(now.Round(0))
	if left > 0 {
		return min(left, time.Minute)
	}
	if err := b.end("its time is over"); err != nil {
		b.log.Error("the stand-in's file can't be removed", "err", err)
		b.set(nil) // after a restart it is over at once, too
	}
	return time.Minute
}
