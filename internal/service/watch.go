package service

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// How changes of files are noticed.
const (
	RestFor   = 200 * time.Millisecond // usual: a file is read when it has not changed for so long
	maxLooks  = 25                     // or after so many looks, whatever it does
	pollEvery = 10 * time.Second       // for what inotify does not show: network file systems, moved parents
)

// stamp tells one state of a file from another.
type stamp struct {
	inode        uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// stamps looks at files. What is not there, or changed after since, has no
// stamp: it will count as changed at the next look.
func stamps(files []string, since time.Time) map[string]stamp {
	all := make(map[string]stamp, len(files))
	for _, name := range files {
		fi, err := os.Stat(name)
		if err != nil {
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && time.Unix(st.Ctim.Unix()).Before(since) {
			all[name] = stamp{st.Ino, st.Size, st.Mtim, st.Ctim}
		}
	}
	return all
}

// Watcher calls one function when a file named by another one changes, and when Now
// is called. It watches directories, because editors and deployments replace files
// rather than write them.
type Watcher struct {
	files  func() []string
	reload func(context.Context)
	force  chan chan struct{} // asks for a reload at once; the value is closed after it
	rest   time.Duration
	log    *slog.Logger

	notify *fsnotify.Watcher // nil: poll only
	seen   map[string]stamp
}

// Watch makes a Watcher. A file is read again once it has rested for so long.
func Watch(files func() []string, reload func(context.Context), rest time.Duration, log *slog.Logger) *Watcher {
	return &Watcher{files: files, reload: reload, force: make(chan chan struct{}), rest: rest, log: log}
}

// Run works until ctx ends. read is when the files were last read.
func (w *Watcher) Run(ctx context.Context, read time.Time) error {
	var events chan fsnotify.Event
	var failures chan error
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("can't watch files, looking at them now and then instead", "err", err, "every", pollEvery)
	} else {
		defer notify.Close()
		w.notify, events, failures = notify, notify.Events, notify.Errors
	}
	w.remember(read)
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	soon := time.NewTimer(0) // whatever changed before we began to watch
	defer soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case done := <-w.force:
			w.again(ctx)
			close(done)
		case <-events:
			soon.Reset(w.rest)
		case err := <-failures:
			w.log.Warn("watching files", "err", err)
			soon.Reset(w.rest)
		case <-soon.C:
			w.check(ctx, true)
		case <-poll.C:
			w.check(ctx, false)
		}
	}
}

// Now reloads, and returns when that is done or ctx has ended.
func (w *Watcher) Now(ctx context.Context) {
	done := make(chan struct{})
	select {
	case w.force <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// check reloads if something changed, once it has come to rest. quiet: no
// event came for that long, and if the files' own times say so too, it has.
func (w *Watcher) check(ctx context.Context, quiet bool) {
	files := w.files()
	now := stamps(files, forever)
	if maps.Equal(now, w.seen) {
		return
	}
	for looks := maxLooks; looks > 0 && !(quiet && looks == maxLooks && w.rested(now)); looks-- {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.rest):
		}
		next := stamps(files, forever)
		if maps.Equal(now, next) {
			break
		}
		now = next
	}
	w.again(ctx)
}

// rested says that what changed in now was last written long enough ago.
func (w *Watcher) rested(now map[string]stamp) bool {
	for name := range w.seen {
		if _, there := now[name]; !there {
			return false // removed: who knows when
		}
	}
	for name, s := range now {
		if age := time.Since(time.Unix(s.ctime.Unix())); s != w.seen[name] && age < w.rest {
			return false
		}
	}
	return true
}

var forever = time.Unix(1<<40, 0)

func (w *Watcher) again(ctx context.Context) {
	began := time.Now()
	w.reload(ctx)
	w.remember(began)
}

// remember notes the state of the files that were read at some time after
// began. One that changed about then may have been read before the change, so
// it is left out and read again.
func (w *Watcher) remember(began time.Time) {
	files := w.files()
	w.seen = stamps(files, began.Add(-10*time.Millisecond))
	if w.notify == nil {
		return
	}
	for _, name := range files {
		for _, dir := range []string{filepath.Dir(name), targetDir(name)} {
			if err := w.notify.Add(dir); err != nil { // again is no error
				w.log.Debug("can't watch directory", "dir", dir, "err", err)
			}
		}
	}
}

// targetDir is where the file really lies that name may be a symbolic link to.
func targetDir(name string) string {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		real = name
	}
	return filepath.Dir(real)
}
