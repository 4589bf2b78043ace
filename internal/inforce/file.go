// Package inforce holds the policy in force on a secondary, and replaces it as a
// whole: File from a policy file, Primary from the primary's publisher. The last
// good policy stays until there is another good one.
package inforce

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// File holds the policy in force and takes over a changed one, or keeps
// the last good one when the new one is bad.
type File struct {
	path    string
	log     *slog.Logger
	metrics *metrics.Metrics
	now     atomic.Pointer[policy.Snapshot]

	mu      sync.Mutex // one reload at a time; guards what follows
	files   []string   // all that the policy was read from
	version float64
}

// OpenFile reads the first policy, without which nothing starts.
func OpenFile(path string, log *slog.Logger, m *metrics.Metrics) (*File, error) {
	f := &File{path: path, log: log, metrics: m, files: []string{path}}
	s, files, err := handwritten.Load(path, nil)
	if err != nil {
		return nil, err
	}
	f.files = files
	f.takeOver(s)
	return f, nil
}

// Current is the policy in force.
func (f *File) Current() *policy.Snapshot { return f.now.Load() }

// takeOver puts s in force. f.mu is held, or f is not shared yet.
func (f *File) takeOver(s *policy.Snapshot) {
	f.version++
	f.now.Store(s)
	f.metrics.PolicyLoaded.SetToCurrentTime()
	f.metrics.PolicyVersion.Set(f.version)
	stats := s.Stats()
	f.metrics.PolicyRcpts.Set(float64(stats.Recipients))
	f.log.Info("policy in force", "file", f.path, "version", f.version, "digest", Digest(s),
		"domains", stats.Domains, "recipients", stats.Recipients, "rules", stats.Rules)
}

// Digest is short, for people.
func Digest(s *policy.Snapshot) string {
	d := s.Digest()
	return fmt.Sprintf("sha256:%x", d[:8])
}

// Reload takes over a changed policy.
func (f *File) Reload(context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, files, err := handwritten.Load(f.path, f.now.Load())
	if err != nil {
		// What made it bad may be any of the old or the new files.
		f.files = append(f.files, files...)
		slices.Sort(f.files)
		f.files = slices.Compact(f.files)
		f.metrics.PolicyReloads.WithLabelValues("refused").Inc()
		f.log.Error("policy refused, the last good one stays in force", "file", f.path, "err", err)
		return
	}
	f.files = files
	if s.Digest() == f.now.Load().Digest() {
		f.metrics.PolicyReloads.WithLabelValues("unchanged").Inc()
		return
	}
	f.takeOver(s)
	f.metrics.PolicyReloads.WithLabelValues("changed").Inc()
}

// Files are all that the policy was read from.
func (f *File) Files() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.files)
}
