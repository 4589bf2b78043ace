package main

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
)

// demoLog listens to the daemon's log: it remembers which rule refused which
// client, and the last warnings, in case the show goes wrong.
type demoLog struct {
	slog.Handler // formats warnings
	shared       *demoNotes
}

type demoNotes struct {
	mu       sync.Mutex        // guards what follows
	rules    map[string]string // by the client's address
	warnings bytes.Buffer
}

const (
	maxDemoRules    = 1000
	maxDemoWarnings = 8 << 10
)

func newDemoLog() *demoLog {
	notes := &demoNotes{rules: make(map[string]string)}
	return &demoLog{slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}), notes}
}

// Write keeps a formatted warning while there is room.
func (n *demoNotes) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.warnings.Len()+len(b) <= maxDemoWarnings {
		n.warnings.Write(b)
	}
	return len(b), nil
}

// rule returns the rule that the daemon refused a client by.
func (l *demoLog) rule(client string) string {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	return l.shared.rules[client]
}

func (l *demoLog) warnings() string {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	return l.shared.warnings.String()
}

// Enabled lets verdicts through, which are logged at level Info.
func (l *demoLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle takes one line of the log.
func (l *demoLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "verdict" {
		var client, rule string
		r.Attrs(func(a slog.Attr) bool {
			switch a.Key {
			case "client":
				client = a.Value.String()
			case "rule":
				rule = a.Value.String()
			}
			return true
		})
		l.shared.mu.Lock()
		if len(l.shared.rules) < maxDemoRules {
			l.shared.rules[client] = rule
		}
		l.shared.mu.Unlock()
	}
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs and WithGroup keep the notes.
func (l *demoLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &demoLog{l.Handler.WithAttrs(attrs), l.shared}
}

func (l *demoLog) WithGroup(name string) slog.Handler {
	return &demoLog{l.Handler.WithGroup(name), l.shared}
}
