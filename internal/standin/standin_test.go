package standin

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWindow: a window ends by itself or when it is ended, goes on after a restart,
// and one whose time has passed meanwhile ends at once.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "standin.json")
		log := slog.New(slog.DiscardHandler)
		var told []string
		change := func(w *Window) {
			if w == nil {
				told = append(told, "over")
			} else {
				told = append(told, w.Reason)
			}
		}
		run := func(b *Book) (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); b.Run(ctx) }()
			return func() { cancel(); <-done }
		}
		b := Open(file, log, change)
		stop := run(b)
		w, err := b.Begin(time.Now(), 2*time.Hour, "new disks")
		if err != nil || w.Until.Sub(w.Began) != 2*time.Hour {
			t.Fatal(w, err)
		}
		time.Sleep(90 * time.Minute)
		stop()
		b = Open(file, log, change) // a restart
		stop = run(b)
		synctest.Wait()
		if now := b.Now(); now == nil || *now != w {
			t.Errorf("after a restart: %+v, want %+v", now, w)
		}
		time.Sleep(29 * time.Minute)
		if b.Now() == nil {
			t.Error("it ended too early")
		}
		time.Sleep(2 * time.Minute)
		if b.Now() != nil {
			t.Error("it doesn't end by itself")
		}
		if err := b.End(); err == nil {
			t.Error("one that isn't there was ended")
		}
		if _, err := b.Begin(time.Now(), time.Hour, "more disks"); err != nil {
			t.Error(err)
		}
		if longer, err := b.Begin(time.Now(), 3*time.Hour, "still more"); err != nil || time.Until(longer.Until) < 179*time.Minute {
			t.Error(longer, err)
		}
		if err := b.End(); err != nil || b.Now() != nil {
			t.Error(err)
		}
		if _, err := b.Begin(time.Now(), time.Hour, "again"); err != nil {
			t.Error(err)
		}
		stop()
		time.Sleep(2 * time.Hour) // nobody runs
		b = Open(file, log, change)
		stop = run(b)
		synctest.Wait()
		if b.Now() != nil {
			t.Error("one whose time has passed is open")
		}
		stop()
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("its file is there: %v", err)
		}
		if got, want := strings.Join(told, "|"), "new disks|new disks|over|more disks|still more|over|again|again|over"; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	})
}

// TestWindowMistakes: what can't be a window is refused, and a damaged file is put
// aside.
func TestWindowMistakes(t *testing.T) {
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "standin.json")
	quiet := func(*Window) {}
	b := Open(file, slog.New(slog.NewTextHandler(&log, nil)), quiet)
	for _, tt := range []struct {
		length time.Duration
		reason string
	}{{0, "x"}, {-time.Hour, "x"}, {Shortest - 1, "x"}, {Longest + 1, "x"}, {time.Hour, ""}, {time.Hour, strings.Repeat("x", MaxReason+1)}} {
		if _, err := b.Begin(time.Now(), tt.length, tt.reason); err == nil || b.Now() != nil {
			t.Errorf("%v %.10q is taken", tt.length, tt.reason)
		}
	}
	if w, err := b.Begin(time.Now(), time.Hour, "a\x1b[31m\nb"); err != nil || strings.ContainsAny(w.Reason, "\x1b\n") {
		t.Errorf("%q, %v", w.Reason, err)
	}
	if _, err := b.Begin(time.Now().Add(6*24*time.Hour), 3*24*time.Hour, "x"); err == nil {
		t.Error("it is made longer than one may be")
	}
	for _, text := range []string{"", "{}", `{"began":"2026-01-01T00:00:00Z"}`, "null", `{"began":"2026-01-01T00:00:00Z","until":"2036-01-01T00:00:00Z"}`} {
		log.Reset()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b := Open(file, slog.New(slog.NewTextHandler(&log, nil)), quiet); b.Now() != nil || !strings.Contains(log.String(), "begin it anew") {
			t.Errorf("%q: %+v, log %s", text, b.Now(), log.String())
		}
		if _, err := os.Stat(file + ".damaged"); err != nil {
			t.Errorf("%q isn't put aside: %v", text, err)
		}
	}
	b = Open(filepath.Join(t.TempDir(), "no", "directory"), slog.New(slog.DiscardHandler), quiet)
	if _, err := b.Begin(time.Now(), time.Hour, "x"); err == nil || b.Now() != nil {
		t.Error("a window that isn't kept is open")
	}
}
