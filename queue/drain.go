package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// pollUp is how often a drain looks at Relayer.Up without having been woken.
const pollUp = 5 * time.Second

// idlePoll is how often it looks for work that nobody announced.
const idlePoll = time.Minute

// Run relays until ctx ends, then returns once its sessions have ended. It
// runs once at a time.
func (q *Queue) Run(ctx context.Context) error {
	if q.o.Relayer == nil {
		return errors.New("queue: Run without a Relayer")
	}
	var wg sync.WaitGroup
	q.mu.Lock()
	if q.started != nil {
		q.mu.Unlock()
		return errors.New("queue: Run runs already")
	}
	// Called with mu held, so that none starts once Run has begun to wait.
	q.started = func(d *dest) { wg.Go(func() { q.drain(ctx, d) }) }
	for _, d := range q.dests {
		q.started(d)
	}
	q.mu.Unlock()
	wg.Go(func() { q.reclaim(ctx) })
	if q.o.Return {
		wg.Go(func() { (&returner{q: q}).run(ctx) })
	}

	<-ctx.Done()
	q.mu.Lock()
	q.started = nil
	q.mu.Unlock()
	wg.Wait()
	return nil
}

// Wake tells the drain that a next hop answers again; "" means all of them.
func (q *Queue) Wake(name string) {
	q.each(name, func(d *dest) {
		d.mu.Lock()
		d.pace.wait = time.Time{}
		d.ring()
		d.mu.Unlock()
	})
}

// Reconsider has every destination look at MaxConnections and MaxRate again.
func (q *Queue) Reconsider() {
	q.each("", func(d *dest) {
		d.mu.Lock()
		d.ring()
		d.mu.Unlock()
	})
}

// Flush makes every deferred recipient due now.
func (q *Queue) Flush() {
	now := q.now()
	q.each("", func(d *dest) { d.flush(now) })
}

func (q *Queue) each(name string, fn func(*dest)) {
	q.mu.Lock()
	dests := make([]*dest, 0, len(q.dests))
	for _, d := range q.dests {
		if name == "" || d.name == name {
			dests = append(dests, d)
		}
	}
	q.mu.Unlock()
	for _, d := range dests {
		fn(d)
	}
}

// drain owns one destination: it starts lanes while there is work and room.
func (q *Queue) drain(ctx context.Context, d *dest) {
	var lanes sync.WaitGroup
	defer lanes.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(q.startLanes(ctx, d, &lanes))
		select {
		case <-ctx.Done():
			return
		case <-d.kick:
		case <-timer.C:
		}
	}
}

// startLanes starts as many as the pace allows and tells when to look again.
func (q *Queue) startLanes(ctx context.Context, d *dest, lanes *sync.WaitGroup) time.Duration {
	if !q.o.Relayer.Up(d.name) {
		d.mu.Lock()
		d.pace.down = true
		d.mu.Unlock()
		return pollUp
	}
	for ctx.Err() == nil {
		now := q.now()
		d.mu.Lock()
		p := &d.pace
		if p.down { // the canary goes first
			p.down = false
			p.reset()
		}
		switch {
		case p.wait.After(now):
			defer d.mu.Unlock()
			return p.wait.Sub(now)
		case p.idle > 0 || p.lanes >= d.room():
			defer d.mu.Unlock()
			return d.wakeIn(now, idlePoll)
		}
		p.lanes++ // under the lock that allows it: Demand never counts too few
		d.mu.Unlock()
		c := q.take(d, "")
		if c == nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			p.lanes--
			return d.wakeIn(now, idlePoll)
		}
		lanes.Go(func() { q.lane(ctx, d, c) })
	}
	return idlePoll
}

// room is the number of sessions allowed now, of those shared with others perhaps
// none. The caller holds mu.
func (d *dest) room() int {
	return min(int(d.pace.window), d.q.o.MaxConnections(d.name))
}

// lane is one session to a destination.
type lane struct {
	q      *Queue
	d      *dest
	ctx    context.Context
	first  *claim
	client string     // whose mail comes first, "" for anybody's
	mu     sync.Mutex // guards open
	open   []*claim   // taken and not settled
}

// lane relays first and then what else is in line, until there is nothing
// more, the session fails, or the pace wants fewer sessions.
func (q *Queue) lane(ctx context.Context, d *dest, first *claim) {
	l := &lane{q: q, d: d, ctx: ctx, first: first, open: []*claim{first}}
	first.lane = l
	err := q.o.Relayer.Relay(ctx, d.name, l.next)
	if l.first != nil { // no session opened, and that isn't the message's doing
		l.settled(first)
		q.release(first.e.seq)
		d.keep(first.e)
	}
	l.mu.Lock()
	left := l.open
	l.mu.Unlock()
	for _, c := range append([]*claim(nil), left...) {
		if err == nil {
			err = errors.New("session ended without settling what it took")
		}
		c.settle(nil, err)
	}
	failed := err != nil && ctx.Err() == nil
	d.mu.Lock()
	d.pace.lanes--
	if failed {
		d.pace.failed(q.now())
	}
	d.ring()
	d.mu.Unlock()
	if failed {
		q.log.Warn("relay session failed", "dest", d.name, "err", store.Cut(err.Error()))
	}
}

func (l *lane) next(wait time.Duration) *envelope.Transfer {
	if c := l.first; c != nil {
		l.first = nil
		return l.goOn(c)
	}
	timer := time.NewTimer(max(0, wait))
	defer timer.Stop()
	for {
		l.d.mu.Lock()
		bell, stop := l.d.bell, l.d.pace.lanes > l.d.room()
		l.d.mu.Unlock()
		if stop || l.ctx.Err() != nil || !l.q.o.Relayer.Up(l.d.name) {
			return nil
		}
		if c := l.q.take(l.d, l.client); c != nil {
			l.mu.Lock()
			c.lane = l
			l.open = append(l.open, c)
			l.mu.Unlock()
			return l.goOn(c)
		}
		if wait <= 0 || !l.idle(bell, timer) {
			return nil
		}
	}
}

// goOn hands a claim out, and remembers whose mail it is if that matters.
func (l *lane) goOn(c *claim) *envelope.Transfer {
	if l.q.o.ByClient(l.d.name) {
		l.client = string(store.ClientSum(&c.rec.Env.Client))
	}
	return c.transfer()
}

// idle waits for the bell; false means that the wait is over.
func (l *lane) idle(bell chan struct{}, timer *time.Timer) bool {
	l.count(1)
	defer l.count(-1)
	wait := time.NewTimer(l.due())
	defer wait.Stop()
	select {
	case <-bell:
	case <-wait.C:
	case <-timer.C:
		return false
	case <-l.ctx.Done():
		return false
	}
	return true
}

func (l *lane) due() time.Duration {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.wakeIn(l.q.now(), idlePoll)
}

// count keeps the number of idle lanes. One that goes back to work kicks the
// drain, which may want another beside it.
func (l *lane) count(n int) {
	l.d.mu.Lock()
	l.d.pace.idle += n
	if n < 0 {
		select {
		case l.d.kick <- struct{}{}:
		default:
		}
	}
	l.d.mu.Unlock()
}

// settled forgets a claim that Relay has settled.
func (l *lane) settled(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.open {
		if l.open[i] == c {
			l.open = append(l.open[:i], l.open[i+1:]...)
			return
		}
	}
}

// busy says that a message is claimed.
func (q *Queue) busy(seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, claimed := q.flight[seq]
	return claimed
}

// claim takes a message for one lane or one operation of the operator: until
// release nobody else touches it. It fails while another has it and while the
// store is to be reopened.
func (q *Queue) claim(seq uint64) error {
	if err := q.poison.Load(); err != nil {
		return poisoned(*err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, claimed := q.flight[seq]; claimed {
		return ErrBusy
	}
	q.flight[seq] = q.opens
	return nil
}

func (q *Queue) release(seq uint64) {
	q.mu.Lock()
	delete(q.flight, seq)
	q.mu.Unlock()
}

// take claims the next message in a destination's line, client's before others;
// nil when there is none.
func (q *Queue) take(d *dest, client string) *claim {
	for q.poison.Load() == nil {
		now := q.now()
		e, ok := d.next(now, client)
		if !ok {
			return nil
		}
		if q.claim(e.seq) != nil {
			d.later(e)
			continue
		}
		c, err := q.load(d, e, now)
		if errors.Is(err, store.ErrRecord) {
			q.quarantineRaw(d, e, err)
			continue
		}
		if err != nil {
			q.readFailed(err)
			q.release(e.seq)
			if errors.Is(err, store.ErrReopening) {
				d.later(e)
			} else {
				d.putBack(e, now)
			}
			return nil
		}
		if c != nil {
			return c
		}
		q.release(e.seq)
	}
	return nil
}

// next is pop within the max rate. A store that can't be read just now yields
// nothing; its reopening rings.
func (d *dest) next(now time.Time, client string) (e entry, ok bool) {
	e, ok, err := d.popWithin(now, client)
	if err != nil {
		d.q.readFailed(err)
	}
	return e, ok
}

func (d *dest) popWithin(now time.Time, client string) (e entry, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rate := d.q.o.MaxRate(d.name)
	if rate < 0 || d.pace.free.After(now) {
		return e, false, nil
	}
	if e, ok, err = d.pop(now, client); ok {
		d.pace.spend(now, rate)
	}
	return e, ok, err
}

// later keeps an entry whose message is claimed by another.
func (d *dest) later(e entry) {
	d.mu.Lock()
	e.wait = d.q.now().Add(minWait)
	d.again = append(d.again, e)
	d.mu.Unlock()
}

// load makes a claim of an entry, or nil when nothing is due of it any more. It
// fails with errRecord when the record is damaged, or was put aside for that.
func (q *Queue) load(d *dest, e entry, now time.Time) (*claim, error) {
	r, err := store.Load(q.store, e.seq)
	if err != nil {
		return nil, err
	}
	if r == nil { // settled since it was read ahead, or put aside
		aside, err := store.Has(q.store, store.SeqKey(store.SpaceQuarantine, e.seq))
		if aside {
			err = store.ErrRecord
		}
		return nil, err
	}
	c := &claim{q: q, d: d, e: e, rec: r}
	for i := range r.Recipients {
		rc := &r.Recipients[i]
		due := rc.State == store.Queued || rc.State == store.Deferred && (rc.Next <= now.UnixNano() || rc.Last < e.flushed)
		if due && r.Dest(rc, q.route) == d.name {
			c.to = append(c.to, i)
		}
	}
	if len(c.to) == 0 {
		return nil, nil
	}
	return c, nil
}

func (q *Queue) readFailed(err error) {
	if errors.Is(err, store.ErrReopening) {
		return
	}
	q.m.StoreErrors.WithLabelValues("read").Inc()
	q.often.Error(q.log, "", "read queue store", "err", err)
}

// quarantineRaw moves a record aside that can't be decoded any more, and takes
// it out of d's line. The claim ends when that is written: another destination
// that meets the record then has only its own line to take it out of.
func (q *Queue) quarantineRaw(d *dest, e entry, cause error) {
	moved := false
	q.submit(&op{
		size: 1024,
		fill: func(t *tx) error {
			t.delete(e.key)
			key := store.SeqKey(store.SpaceRecord, e.seq)
			raw, err := q.store.Get(key)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			moved = true
			t.totals.Messages-- // its octets can't be known; the next audit counts anew
			t.totals.Quarantined++
			t.put(store.SeqKey(store.SpaceQuarantine, e.seq), raw)
			t.delete(key)
			return nil
		},
		done: func(err error) {
			q.release(e.seq)
			switch {
			case err != nil:
				d.later(e)
			case moved:
				q.countQuarantined(e.seq, cause)
			}
		},
	})
}
