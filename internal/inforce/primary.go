package inforce

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// stateEvery is how often changes of state that have no event, such as growing
// stale, are looked for.
const stateEvery = 5 * time.Second

// Primary keeps the policy in step with the primary's. Pairing the secondary anew
// replaces the follower.
type Primary struct {
	options policysync.FollowerOptions
	changed chan struct{} // capacity 1: another policy is in force
	joins   chan *joining
	ended   chan struct{} // closed when Run has ended

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

// Follow opens the follower with all of its options but OnChange; it is no error
// that nothing is paired yet.
func Follow(o policysync.FollowerOptions) (*Primary, error) {
	f := &Primary{options: o, changed: make(chan struct{}, 1), joins: make(chan *joining), ended: make(chan struct{})}
	f.options.OnChange = f.wake
	o.Metrics.Follower(func() metrics.FollowerStats { return metrics.FollowerStats{State: policysync.StateNone} })
	err := f.open()
	if errors.Is(err, fs.ErrNotExist) {
		o.Log.Warn("not paired yet, clients are answered 421: run `understudy invite` on the primary and paste its line here")
		err = nil
	}
	return f, err
}

func (f *Primary) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// open takes the pairing that the disk holds into use.
func (f *Primary) open() error {
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

// Close ends the follower.
func (f *Primary) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != nil {
		f.now.Close()
		f.now = nil
	}
}

// Current is the policy in force, nil before the first.
func (f *Primary) Current() *policy.Snapshot {
	if p := f.inForce.Load(); p != nil {
		return p.Current()
	}
	return nil
}

// Unsure notes a recipient about whom the primary must be asked.
func (f *Primary) Unsure(recipient string) {
	if p := f.inForce.Load(); p != nil {
		p.Unsure(recipient)
	}
}

// Use lets the operator ask the follower.
func (f *Primary) Use(ask func(*policysync.Follower) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.now == nil {
		return errNotPaired
	}
	return ask(f.now)
}

// Run follows until ctx ends, across pairings.
func (f *Primary) Run(ctx context.Context) error {
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
func (f *Primary) pair(j *joining) (err error) {
	if j.joined, err = policysync.Join(j.ctx, f.options.Dir, j.invitation); err != nil {
		return err
	}
	f.options.Log.Info("paired with the primary", "primary", j.joined.Address, "name", j.joined.Name, "fingerprint", j.joined.Fingerprint)
	return f.open()
}

// Join asks Run to pair.
func (f *Primary) Join(ctx context.Context, invitation string) (*policysync.Joined, error) {
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
func (f *Primary) watch(ctx context.Context) *joining {
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
		_ = f.Use(func(p *policysync.Follower) error {
			s := p.Status()
			f.noteState(&last, &s)
			last = s
			return nil
		})
	}
}

// noteChange tells of another policy in force.
func (f *Primary) noteChange() {
	s := f.Current()
	if s == nil {
		return
	}
	_ = f.Use(func(p *policysync.Follower) error {
		st, stats := p.Status(), s.Stats()
		f.options.Metrics.PolicyLoaded.SetToCurrentTime()
		f.options.Metrics.PolicyVersion.Set(float64(st.Version))
		f.options.Metrics.PolicyRcpts.Set(float64(stats.Recipients))
		f.options.Log.Info("policy in force", "primary", st.Primary, "version", st.Version, "state", st.State, "staged", st.Staged,
			"domains", stats.Domains, "recipients", stats.Recipients, "rules", stats.Rules)
		return nil
	})
}

// noteState tells what has changed for better or worse. Alarms are logged where
// they arise.
func (f *Primary) noteState(last, s *policysync.Status) {
	switch {
	case s.State == last.State:
	case s.State == policysync.StateStale:
		f.options.Log.Error("policy is stale: unknown recipients are answered 450 until the primary's publisher answers", "signed", s.Signed)
	case last.State == policysync.StateStale:
		f.options.Log.Info("policy is fresh again", "signed", s.Signed)
	}
	if s.Staged != last.Staged {
		level := slog.LevelInfo
		if s.Staged == policysync.StagedPending {
			level = slog.LevelWarn
		}
		f.options.Log.Log(context.Background(), level, "mass deletion", "state", cmp.Or(s.Staged, "none"), "version", s.Version)
	}
	if last.Alarm != "" && s.Alarm == "" {
		f.options.Log.Info("policy sync is well again", "after", string(last.Alarm))
	}
	switch {
	case s.Notice == last.Notice:
	case s.Notice == "":
		f.options.Log.Info("the primary's sources are well again")
	default:
		f.options.Log.Warn("the primary has trouble with its sources; the policy may be out of date", "notice", s.Notice)
	}
}
