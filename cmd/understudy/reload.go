package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// How changes of files are noticed.
const (
	restFor   = 200 * time.Millisecond // a file is read when it has not changed for so long
	maxLooks  = 25                     // or after so many looks, whatever it does
	pollEvery = 10 * time.Second       // for what inotify does not show: network file systems, moved parents
)

// policyFile holds the policy in force and takes over a changed one, or keeps
// the last good one when the new one is bad.
type policyFile struct {
	path    string
	log     *slog.Logger
	metrics *metrics.Metrics
	now     atomic.Pointer[policy.Snapshot]

	mu      sync.Mutex // one reload at a time; guards what follows
	files   []string   // all that the policy was read from
	version float64
}

// loadPolicy reads the first policy, without which nothing starts.
func loadPolicy(path string, log *slog.Logger, m *metrics.Metrics) (*policyFile, error) {
	p := &policyFile{path: path, log: log, metrics: m, files: []string{path}}
	s, files, err := readPolicy(path, nil)
	if err != nil {
		return nil, err
	}
	p.files = files
	p.takeOver(s)
	return p, nil
}

// readPolicy is policy.Reload; an error that is the system's says what it is about.
func readPolicy(path string, before *policy.Snapshot) (*policy.Snapshot, []string, error) {
	s, files, err := handwritten.Load(path, before)
	if _, ok := err.(*fs.PathError); ok {
		err = fmt.Errorf("read policy: %w", err)
	}
	return s, files, err
}

// takeOver puts s in force. p.mu is held, or p is not shared yet.
func (p *policyFile) takeOver(s *policy.Snapshot) {
	p.version++
	p.now.Store(s)
	p.metrics.PolicyLoaded.SetToCurrentTime()
	p.metrics.PolicyVersion.Set(p.version)
	stats := s.Stats()
	p.metrics.PolicyRcpts.Set(float64(stats.Recipients))
	p.log.Info("policy in force", "file", p.path, "version", p.version, "digest", digest(s),
		"domains", stats.Domains, "recipients", stats.Recipients, "rules", stats.Rules)
}

func digest(s *policy.Snapshot) string {
	d := s.Digest()
	return fmt.Sprintf("sha256:%x", d[:8])
}

func (p *policyFile) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, files, err := readPolicy(p.path, p.now.Load())
	if err != nil {
		// What made it bad may be any of the old or the new files.
		p.files = merge(p.files, files)
		p.metrics.PolicyReloads.WithLabelValues("refused").Inc()
		p.log.Error("policy refused, the last good one stays in force", "file", p.path, "err", err)
		return
	}
	p.files = files
	if s.Digest() == p.now.Load().Digest() {
		p.metrics.PolicyReloads.WithLabelValues("unchanged").Inc()
		return
	}
	p.takeOver(s)
	p.metrics.PolicyReloads.WithLabelValues("changed").Inc()
}

func (p *policyFile) watched() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.files)
}

func merge(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

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

// watcher calls reload when one of files() changes, and when now is called. It watches their directories, because editors and deployments replace
// files rather than write them.
type watcher struct {
	files  func() []string
	reload func()
	force  chan chan struct{} // asks for a reload at once; the value is closed after it
	rest   time.Duration      // restFor, or another
	log    *slog.Logger

	notify *fsnotify.Watcher // nil: poll only
	seen   map[string]stamp
}

// run works until ctx ends. read is when the files were last read.
func (w *watcher) run(ctx context.Context, read time.Time) error {
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
			w.again()
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

// now reloads, and returns when that is done or ctx has ended.
func (w *watcher) now(ctx context.Context) {
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
func (w *watcher) check(ctx context.Context, quiet bool) {
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
	w.again()
}

// rested says that what changed in now was last written long enough ago.
func (w *watcher) rested(now map[string]stamp) bool {
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

func (w *watcher) again() {
	began := time.Now()
	w.reload()
	w.remember(began)
}

// remember notes the state of the files that were read at some time after
// began. One that changed about then may have been read before the change, so
// it is left out and read again.
func (w *watcher) remember(began time.Time) {
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
