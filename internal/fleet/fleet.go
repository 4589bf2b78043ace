// Package fleet makes one of several secondaries that share a database.
//
// Each member writes a line into the database every few seconds, and reads those of
// the others:
//
//	mx2.example.org  seen 2 s ago   policy 41, 3 sessions, primary up    spool: 1200 messages
//	mx3.example.org  seen 4 s ago   policy 41, 0 sessions, primary up    spool: 3 messages
//	mx4.example.org  seen 9 min ago                                      spool: 88 messages
//
// Only the database's clock stamps these lines, and only our own says for how long a stamp has stayed the
// same: after a failover the database's may be another. From that follows, without further talk:
//
//   - who lives: who was heard of in the last 15 seconds;
//   - the part of each in the primary's limits, by who has mail due (see parts.go);
//   - who probes the primary: the first of the living by name. The others look for
//     themselves when that one sees another state than they do;
//   - whose mail is adopted: that of a member silent for a minute, whose lease is over. Whoever
//     takes its spool first moves its mail into a queue of its own, and lets go when
//     the member is heard of again.
//
// Who doesn't hear of the others keeps to a small part of the limits, over a restart
// as well.
package fleet

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/repeat"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
)

const (
	beatEvery  = 3 * time.Second
	deadAfter  = 15 * time.Second
	adoptAfter = time.Minute
	// forgetAfter is how long limits leave something to a silent member, which may
	// only be cut off from the database.
	forgetAfter = time.Hour
)

// Says is what a member says of itself.
type Says struct {
	Software string          `json:"software,omitempty"`
	Epoch    uint64          `json:"epoch,omitempty"`
	Version  uint64          `json:"version,omitempty"` // of the policy in force
	Digest   string          `json:"digest,omitempty"`  // "" where members' differ by nature
	Staged   string          `json:"staged,omitempty"`  // deletions that wait for the operator here, or were rejected
	Sessions int             `json:"sessions"`          // of clients
	Relaying int             `json:"relaying"`          // sessions to next hops
	Twice    int64           `json:"twice,omitempty"`   // messages since its start that next hops may have twice
	Draining bool            `json:"draining,omitempty"`
	Up       map[string]bool `json:"up,omitempty"` // next hops, at most 100
	Problem  string          `json:"problem,omitempty"`
	Parts    map[string]Part `json:"parts,omitempty"` // of the limits that all share; nil: an older version, that takes an equal part
}

// Options of a Fleet.
type Options struct {
	// Spool is a member's spool, to be opened by this one.
	Spool func(member string) postgres.Opener
	Self  string
	Route func(domain string) (dest string)
	Says  func() Says
	// Limits lists what the members share, as it is used here now; nil for nothing.
	Limits func() []Limit
	// Changed is called after each change of Part.
	Changed func()
	// File keeps the names of the living for the next start; "" for none.
	File string
	// AdoptAfter is how long a member is silent before its mail is taken over; default
	// a minute.
	AdoptAfter time.Duration
	Beat       time.Duration // default 3 s
	DeadAfter  time.Duration // without a beat; default 15 s
	Log        *slog.Logger
	Metrics    *metrics.Metrics
}

// Fleet is this member's view of all.
type Fleet struct {
	o       Options
	members *postgres.Members
	queue   *queue.Queue // that adopts
	often   repeat.Log

	mu     sync.Mutex // guards the rest
	last   []Member   // by name
	heard  map[string]heard
	seen   []moment  // of late
	at     time.Time // of last, by our clock
	clock  time.Time // of last, by the database's
	err    error     // why last is old
	adopts string    // whose mail is being moved here
	kept   []string  // the living, as File has them
	parts  map[string]*part
	ok     time.Time // the last beat that came to the others began
	// resting has members whose mail isn't to be moved before that time.
	resting map[string]time.Time
}

// Member is one as the others see it.
type Member struct {
	Name     string  `json:"name"`
	Seen     float64 `json:"seen_seconds"` // ago; -1 for never
	Alive    bool    `json:"alive"`
	Holder   string  `json:"holder,omitempty"` // of its spool, if another member's
	Messages int64   `json:"messages"`         // in its spool
	Held     int64   `json:"held"`
	Bytes    int64   `json:"bytes"`
	Share    float64 `json:"share"`          // of all messages
	Out      float64 `json:"out_per_second"` // leave its spool, lately
	Differs  bool    `json:"policy_differs,omitempty"`
	Says
}

// View is a fleet as one member sees it.
type View struct {
	Self    string    `json:"self"`
	At      time.Time `json:"at"`
	Error   string    `json:"error,omitempty"`
	Adopts  string    `json:"adopts,omitempty"`
	Members []Member  `json:"members"`
}

// New makes a member, unheard of before its first Beat.
func New(o Options) (*Fleet, error) {
	if o.AdoptAfter <= 0 {
		o.AdoptAfter = adoptAfter
	}
	if o.Beat <= 0 {
		o.Beat = beatEvery
	}
	if o.DeadAfter <= 0 {
		o.DeadAfter = deadAfter
	}
	m, err := o.Spool(o.Self).Members()
	if err != nil {
		return nil, err
	}
	f := &Fleet{o: o, members: m, heard: map[string]heard{}, resting: map[string]time.Time{}, parts: map[string]*part{}, ok: time.Now()}
	f.recall()
	return f, nil
}

// Run beats until ctx ends, and adopts into q.
func (f *Fleet) Run(ctx context.Context, q *queue.Queue) error {
	f.queue = q
	defer f.members.Close()
	var adoption sync.WaitGroup
	defer adoption.Wait()
	adopting := make(chan struct{}, 1)
	tick := time.NewTicker(f.o.Beat)
	defer tick.Stop()
	for {
		f.Beat(ctx)
		select {
		case adopting <- struct{}{}:
			adoption.Go(func() {
				defer func() { <-adopting }()
				f.adoptOne(ctx)
			})
		default:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Beat tells the others that this member lives, and hears of them.
func (f *Fleet) Beat(ctx context.Context) {
	f.lower(f.limits())
	f.o.Changed()
	says, began := f.o.Says(), time.Now()
	says.Parts = f.claim(f.limits())
	b, err := json.Marshal(says)
	var all []postgres.Member
	var clock time.Time
	if err == nil {
		short, cancel := context.WithTimeout(ctx, f.o.DeadAfter/4)
		all, clock, err = f.members.Beat(short, f.o.Self, b)
		cancel()
	}
	if ctx.Err() != nil {
		return
	}
	f.hear(all, clock, err)
	f.keep()
	if err == nil {
		f.confirm(began, says.Parts)
		f.o.Changed()
	}
}

// hear takes over what was heard of the others.
func (f *Fleet) hear(all []postgres.Member, clock time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if (err == nil) != (f.err == nil) {
		if err != nil {
			f.o.Log.Warn("the other members aren't heard of; soon a small part of the limits is left", "members", f.living(), "err", err)
		} else {
			f.o.Log.Info("the other members are heard of again")
		}
	}
	if f.err = err; err != nil {
		f.o.Metrics.FleetUnheard.Set(1)
		return
	}
	f.at, f.clock = time.Now(), clock
	f.listen(all)
	f.last = view(all, f.o.DeadAfter)
	f.drain(all)
	f.o.Metrics.FleetUnheard.Set(0)
	f.o.Metrics.FleetMembers.Set(float64(f.living()))
	differs := 0.0
	for _, m := range f.last {
		if m.Name == f.o.Self && m.Differs {
			differs = 1
		}
	}
	f.o.Metrics.FleetDiffers.Set(differs)
}

// heard is what we know of a member's last beat.
type heard struct {
	beat  int64
	ago   time.Duration // at the time at, -1 for never
	at    time.Time
	since time.Time // when we first saw this beat
	sure  bool      // that it was new then
}

// listen sets how long members have been silent. The database's clock counts for
// those that we first hear of; then only ours does, and only while we hear of the others at all. The caller
// holds mu.
func (f *Fleet) listen(all []postgres.Member) {
	now := make(map[string]heard, len(all))
	for i := range all {
		p := &all[i]
		h, known := f.heard[p.Name]
		went := min(f.at.Sub(h.at), 2*f.o.Beat)
		switch {
		case !known:
			h = heard{beat: p.Beat, ago: p.Ago, since: f.at}
		case p.Beat != h.beat:
			h = heard{beat: p.Beat, ago: min(p.Ago, went), since: f.at, sure: f.at.Sub(h.at) < f.o.DeadAfter/2}
		case h.ago >= 0:
			h.ago += went
		}
		h.at = f.at
		now[p.Name] = h
		p.Ago = h.ago
	}
	f.heard = now
}

// outOver is how far back a member's rate looks.
const outOver = 10 * time.Second

// moment is how many messages have left each spool by then, in all.
type moment struct {
	at   time.Time
	left map[string]int64
}

// drain fills in how fast the spools empty. The caller holds mu.
func (f *Fleet) drain(all []postgres.Member) {
	now := moment{f.at, map[string]int64{}}
	for _, p := range all {
		now.left[p.Name] = int64(p.Totals.Next) - p.Totals.Messages
	}
	f.seen = append(f.seen, now)
	for len(f.seen) > 2 && now.at.Sub(f.seen[1].at) >= outOver {
		f.seen = f.seen[1:]
	}
	first := f.seen[0]
	took := now.at.Sub(first.at).Seconds()
	for i := range f.last {
		m := &f.last[i]
		if before, known := first.left[m.Name]; known && took > 0 {
			m.Out = max(0, float64(now.left[m.Name]-before)/took) // a new spool counts anew
		}
	}
}

// view sorts the members and compares their policies: who hasn't the newest of those
// that living members have differs.
func view(all []postgres.Member, deadAfter time.Duration) []Member {
	var members []Member
	var messages int64
	var newest *Says
	for _, p := range all {
		m := Member{Name: p.Name, Seen: p.Ago.Seconds(), Alive: p.Ago >= 0 && p.Ago < deadAfter,
			Messages: p.Totals.Messages, Held: p.Totals.Held, Bytes: p.Totals.Bytes}
		if p.Ago < 0 {
			m.Seen = -1
		}
		if p.Holder != p.Name {
			m.Holder = p.Holder
		}
		_ = json.Unmarshal(p.Says, &m.Says) // of a newer version: what can't be read is missing
		messages += m.Messages
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	for i := range members { // of the same version, the first by name has it
		if m := &members[i]; m.Alive && (newest == nil || m.Epoch > newest.Epoch || m.Epoch == newest.Epoch && m.Version > newest.Version) {
			newest = &m.Says
		}
	}
	for i := range members {
		m := &members[i]
		m.Share = float64(m.Messages) / float64(max(1, messages))
		m.Differs = m.Alive && m.differs(newest)
	}
	return members
}

// differs compares policies. A hashed one is known by its version alone, which
// names one content of one publisher.
func (s *Says) differs(from *Says) bool {
	return s.Epoch != from.Epoch || s.Version != from.Version || s.Staged != from.Staged ||
		s.Digest != from.Digest && s.Digest != "" && from.Digest != ""
}

// View is all that is known.
func (f *Fleet) View() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := View{Self: f.o.Self, At: f.at, Members: slices.Clone(f.last), Adopts: f.adopts}
	if f.err != nil {
		v.Error = f.err.Error()
	}
	return v
}

// living counts the members that live, at least this one. The caller holds mu.
func (f *Fleet) living() int {
	n := 0
	for _, m := range f.last {
		if m.Alive || m.Name == f.o.Self {
			n++
		}
	}
	return max(1, n)
}

// Elsewhere is how the member that probes sees a next hop. It isn't known to that
// member itself, nor without news.
func (f *Fleet) Elsewhere(dest string) (up, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || time.Since(f.at) > f.o.DeadAfter {
		return false, false
	}
	for _, m := range f.last {
		if m.Name == f.o.Self {
			return false, false
		}
		if m.Alive {
			up, known = m.Up[dest]
			return up, known
		}
	}
	return false, false
}
