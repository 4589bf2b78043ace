// Package repeat keeps a log readable while something stays broken. A daemon that turns
// away thirty senders a second because its database is away would say so 23,000 times in a
// quarter of an hour; this way it says
//
//	12:00:07 message body not stored err="the database is away"
//	12:01:07 message body not stored err="the database is away" times=1790
//	12:02:07 message body not stored err="the database is away" times=1803
//
// The first line comes at once. What follows within a minute is one line at its end, with the
// latest attributes and how many there were. Lines that name a message, or a peer, don't
// belong here: metrics count, and only a log has names.
package repeat

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Every is how often a line comes while what it tells of goes on.
const Every = time.Minute

// most bounds how many lines are told apart.
const most = 100

// Log is where an owner's lines come that may come often. The zero Log is ready.
type Log struct {
	mu    sync.Mutex // guards lines
	lines map[string]*line
}

// line is one that was written less than Every ago.
type line struct {
	to    *slog.Logger
	level slog.Level
	msg   string
	args  []any
	times int // since it was written
	timer *time.Timer
}

// Error writes a line to log, or counts it. Lines are told apart by msg and about, which is
// one of few: what fails, for example.
func (l *Log) Error(log *slog.Logger, about, msg string, args ...any) {
	l.add(about, line{to: log, level: slog.LevelError, msg: msg, args: args})
}

// Warn is Error for warnings.
func (l *Log) Warn(log *slog.Logger, about, msg string, args ...any) {
	l.add(about, line{to: log, level: slog.LevelWarn, msg: msg, args: args})
}

func (l *Log) add(about string, n line) {
	key := n.msg + "\x00" + about
	l.mu.Lock()
	defer l.mu.Unlock()
	if was := l.lines[key]; was != nil {
		n.times, n.timer = was.times+1, was.timer
		*was = n
		return
	}
	if l.lines == nil {
		l.lines = map[string]*line{}
	}
	n.write()
	if len(l.lines) < most {
		l.lines[key] = &n
		n.timer = time.AfterFunc(Every, func() { l.again(key, &n) })
	}
}

// again writes what came since, and forgets a line that didn't come again.
func (l *Log) again(key string, n *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lines[key] != n: // it is over
	case n.finish():
		n.timer.Reset(Every)
	default:
		delete(l.lines, key)
	}
}

// finish writes what came since, if anything did.
func (n *line) finish() bool {
	if n.times == 0 {
		return false
	}
	n.args = append(slices.Clip(n.args), "times", n.times)
	n.write()
	n.times = 0
	return true
}

// Over says that what the lines told of is mended: what isn't written yet of them is, and the
// next one comes at once.
func (l *Log) Over() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, n := range l.lines {
		n.finish()
		n.timer.Stop()
		delete(l.lines, key)
	}
}

func (n *line) write() { n.to.Log(context.Background(), n.level, n.msg, n.args...) }
