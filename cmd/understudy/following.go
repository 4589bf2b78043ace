package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// syncDir holds the pairing with the primary, and its policy.
func syncDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "sync") }

// stateEvery is how often changes of state that have no event, such as growing
// stale, are looked for.
const stateEvery = 5 * time.Second

// following keeps the policy that of the primary. The follower is replaced when
// the secondary is paired anew.
type following struct {
	options policysync.FollowerOptions
	log     *slog.Logger
	metrics *metrics.Metrics
	changed chan struct{} // capacity 1: another policy is in force
	joins   chan *joining
	ended   chan struct{} // closed when run has ended

	inForce atomic.Pointer[policysync.Follower] // nil: not paired yet

	mu  sync.RWMutex // read while the follower is asked, written to replace it
	now *policysync.Follower
}

// joining is a pairing that the operator asked for.
type joining struct {
	ctx        context.Context
	invitation string
	done       chan error // capacity 1
	joined     *policysync.Joined
}

var errNotPaired = errors.New("this secondary is not paired: run `understudy invite` on the primary and paste its line here")

// follow opens the follower; it is no error that nothing is paired yet.
func (d *daemon) follow() (*following, error) {
	f := &following{log: d.log, metrics: d.metrics, changed: make(chan struct{}, 1), joins: make(chan *joining), ended: make(chan struct{})}
	f.options = policysync.FollowerOptions{
		Dir: syncDir(d.cfg), Domains: d.cfg.Sync.Domains, StaleAfter: d.cfg.Sync.StaleAfter, MaxOctets: int64(d.cfg.Sync.MaxSize),
		Report: d.health, Log: d.log, Metrics: d.metrics, OnChange: f.wake,
	}
	f.metrics.Follower(func() metrics.FollowerStats { return metrics.FollowerStats{State: policysync.StateNone} })
	err := f.open()
	if errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("not paired yet, clients are answered 421: run `understudy invite` on the primary and paste its line here")
		err = nil
	}
	return f, err
}

func (f *following) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// open takes the pairing that the disk holds into use.
func (f *following) open() error {
	p, err := policysync.OpenFollower(f.options)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != nil {
		f.now.Close()
	}
	f.now = p
	f.inForce.Store(p)
	f.wake()
	return nil
}

func (f *following) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != nil {
		f.now.Close()
		f.now = nil
	}
}

// current is the policy in force, nil before the first.
func (f *following) current() *policy.Snapshot {
	if p := f.inForce.Load(); p != nil {
		return p.Current()
	}
	return nil
}

// unsure notes a recipient whom the primary has to be asked about. A policy
// from a file has nobody to ask.
func (d *daemon) unsure(recipient string) {
	if d.sync == nil {
		return
	}
	if p := d.sync.inForce.Load(); p != nil {
		p.Unsure(recipient)
	}
}

// use lets the operator ask the follower.
func (f *following) use(ask func(*policysync.Follower) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.now == nil {
		return errNotPaired
	}
	return ask(f.now)
}

// run follows until ctx ends, across pairings.
func (f *following) run(ctx context.Context) error {
	defer close(f.ended)
	for ctx.Err() == nil {
		following, stop := context.WithCancel(ctx)
		var work sync.WaitGroup
		if p := f.inForce.Load(); p != nil {
			work.Go(func() { _ = p.Run(following) }) // its errors are alarms, logged there
		}
		j := f.watch(ctx)
		stop()
		work.Wait()
		if j != nil {
			j.done <- f.pair(j)
		}
	}
	return nil
}

// pair replaces the pairing, or keeps the old one if that fails.
func (f *following) pair(j *joining) (err error) {
	if j.joined, err = policysync.Join(j.ctx, f.options.Dir, j.invitation); err != nil {
		return err
	}
	f.log.Info("paired with the primary", "primary", j.joined.Address, "name", j.joined.Name, "fingerprint", j.joined.Fingerprint)
	return f.open()
}

// join asks run to pair.
func (f *following) join(ctx context.Context, invitation string) (*policysync.Joined, error) {
	j := &joining{ctx: ctx, invitation: invitation, done: make(chan error, 1)}
	select {
	case f.joins <- j:
	case <-f.ended:
		return nil, errors.New("the daemon is stopping")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	err := <-j.done // happens after joined is set
	return j.joined, err
}

// watch logs what happens to the policy until ctx ends or somebody joins.
func (f *following) watch(ctx context.Context) *joining {
	tick := time.NewTicker(stateEvery)
	defer tick.Stop()
	var last policysync.Status
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-f.joins:
			return j
		case <-f.changed:
			f.noteChange()
		case <-tick.C:
		}
		_ = f.use(func(p *policysync.Follower) error {
			s := p.Status()
			f.noteState(&last, &s)
			last = s
			return nil
		})
	}
}

// noteChange tells of another policy in force.
func (f *following) noteChange() {
	s := f.current()
	if s == nil {
		return
	}
	_ = f.use(func(p *policysync.Follower) error {
		st, stats := p.Status(), s.Stats()
		f.metrics.PolicyLoaded.SetToCurrentTime()
		f.metrics.PolicyVersion.Set(float64(st.Version))
		f.metrics.PolicyRcpts.Set(float64(stats.Recipients))
		f.log.Info("policy in force", "primary", st.Primary, "version", st.Version, "state", st.State, "staged", st.Staged,
			"domains", stats.Domains, "recipients", stats.Recipients, "rules", stats.Rules)
		return nil
	})
}

// noteState tells what has changed for better or worse. Alarms are logged where
// they arise.
func (f *following) noteState(last, s *policysync.Status) {
	switch {
	case s.State == last.State:
	case s.State == policysync.StateStale:
		f.log.Error("policy is stale: unknown recipients are answered 450 until the primary's publisher answers", "signed", s.Signed)
	case last.State == policysync.StateStale:
		f.log.Info("policy is fresh again", "signed", s.Signed)
	}
	if s.Staged != last.Staged {
		level := slog.LevelInfo
		if s.Staged == policysync.StagedPending {
			level = slog.LevelWarn
		}
		f.log.Log(context.Background(), level, "mass deletion", "state", cmp.Or(s.Staged, "none"), "version", s.Version)
	}
	if last.Alarm != "" && s.Alarm == "" {
		f.log.Info("policy sync is well again", "after", string(last.Alarm))
	}
	switch {
	case s.Notice == last.Notice:
	case s.Notice == "":
		f.log.Info("the primary's sources are well again")
	default:
		f.log.Warn("the primary has trouble with its sources; the policy may be out of date", "notice", s.Notice)
	}
}

// health is what the primary's operator is told about us.
func (d *daemon) health() policysync.Health {
	q := d.queue.Stats()
	h := policysync.Health{Software: versionLine(), QueueMessages: q.Messages, Problem: problem(d.ready(), q)}
	if !q.Oldest.IsZero() {
		h.QueueOldest = int64(max(0, time.Since(q.Oldest).Seconds()))
	}
	return h
}

// problem is the worst of what is wrong, "" when all is well.
func problem(ready error, q metrics.QueueStats) string {
	switch {
	case ready != nil:
		return ready.Error()
	case q.Damaged:
		return "the queue's store is " + storeDamaged
	case q.Held > 0:
		return plural(q.Held, "message") + " held"
	}
	return ""
}
