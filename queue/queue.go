package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/repeat"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue/store"
)

// Errors on which a caller branches.
var (
	ErrLocked       = store.ErrLocked
	ErrNewerVersion = store.ErrNewerVersion
	ErrDamaged      = store.ErrDamaged
	ErrNotFound     = store.ErrNoMessage
	// ErrBusy means that the message is being relayed right now; its outcome
	// is a moment away.
	ErrBusy   = errors.New("message is being relayed, try again in a moment")
	ErrClosed = errors.New("queue is closed")
	// ErrComing means that another store may still have the message.
	ErrComing = errors.New("message is being moved here from another store, which may still have it; try again when that is done")
)

// Relayer carries messages to a next hop.
type Relayer interface {
	// Relay opens one session to dest and relays what next yields, until next
	// returns nil or the session fails. next(wait) waits up to wait for a
	// message; next(0) never waits. Every Transfer taken is settled exactly
	// once, before Relay returns.
	Relay(ctx context.Context, dest string, next func(wait time.Duration) *envelope.Transfer) error
	// Up says whether dest is worth an attempt.
	Up(dest string) bool
}

// Options of a Queue. Store and Route are required, Relayer for Run.
type Options struct {
	// Store is opened for the life of the Queue, a leveldb.Dir for example.
	Store store.Opener
	// Route names the next hop of a recipient's domain ("" for <Postmaster>).
	// It is called often and MUST give the same answer for the life of the
	// Queue; it may answer differently at the next Open.
	Route          func(domain string) (dest string)
	Relayer        Relayer
	MaxAge         time.Duration         // deferred for longer ⇒ held; default 14 days
	MinFree        uint64                // octets that must stay free, 0 for none
	MinFreeInodes  uint64                // likewise
	MaxConnections func(dest string) int // sessions to dest at a time, asked again and again; default 10
	MaxRate        func(dest string) int // messages to dest a second; default 0, no limit; less than 0: none now
	// ByClient says that dest takes one client a session (XCLIENT): then a
	// session goes on with the same client's messages, as far as they are read
	// ahead. By default it doesn't.
	ByClient func(dest string) bool
	// Return has what the next hop refused, and what grew too old, returned to
	// senders for whom SPF or DKIM vouched. DSNs go where Route sends
	// store.Returns.
	Return   bool
	Hostname string // ours, in DSNs; default "localhost"
	Log      *slog.Logger
	Metrics  *metrics.Metrics
	// Now is the clock; by default one that ticks on when the wall clock is set.
	Now func() time.Time
}

func (o *Options) setDefaults() error {
	if o.Store == nil || o.Route == nil {
		return errors.New("queue: Store and Route are required")
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 14 * 24 * time.Hour
	}
	if o.MaxConnections == nil {
		o.MaxConnections = func(string) int { return 10 }
	}
	if o.MaxRate == nil {
		o.MaxRate = func(string) int { return 0 }
	}
	if o.ByClient == nil {
		o.ByClient = func(string) bool { return false }
	}
	if o.Hostname == "" {
		o.Hostname = "localhost"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = metrics.New(prometheus.NewRegistry())
	}
	if o.Now == nil {
		start := time.Now()
		o.Now = func() time.Time { return start.Add(time.Since(start)) }
	}
	return nil
}

// Queue is an open queue. Its methods may be called from any goroutine.
type Queue struct {
	Reader // whose store is the queue's
	o      Options
	log    *slog.Logger
	often  repeat.Log // of what fails for each message while the store is away
	m      *metrics.Metrics
	ids    ids

	opened time.Time
	age    int64 // totals.alive at Open

	closing sync.RWMutex // guards closed, and ops against being closed under a sender
	closed  bool
	ops     chan *op      // closed by Close
	written chan struct{} // closed when the committer has ended
	litter  chan string   // IDs whose bodies are to be removed; closed after the committer has ended
	cleaned chan struct{} // closed when they are
	poison  atomic.Pointer[error]
	left    atomic.Int64 // octets that have left the store, but not the disk
	twice   atomic.Int64 // messages that next hops may have twice

	failures   chan string // IDs for the returner
	overlooked atomic.Bool // … when it had no room

	mu     sync.Mutex   // guards what follows; never held over I/O
	totals store.Totals // as of the last batch
	oldest struct {     // see Stats
		seq uint64
		at  time.Time
	}
	flight  map[uint64]uint64 // claimed messages, in a lane or the operator's: opens at that time
	opens   uint64            // how often the store was reopened
	coming  map[uint64]coming // messages that another store may still have
	dests   map[string]*dest
	started func(*dest) // starts a destination's drain while Run runs, else nil

	space space
}

// Open opens the queue, audits it and makes it ready to accept. Errors that a
// caller tells apart: ErrLocked, ErrNewerVersion, ErrDamaged, and fs.ErrPermission.
func Open(o Options) (*Queue, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	q := &Queue{
		o: o, log: o.Log, m: o.Metrics,
		ops: make(chan *op, 256), written: make(chan struct{}),
		litter: make(chan string, 256), cleaned: make(chan struct{}),
		failures: make(chan string, 256),
		flight:   map[uint64]uint64{}, coming: map[uint64]coming{}, dests: map[string]*dest{},
	}
	q.opened = q.now()
	if err := q.open(); err != nil {
		return nil, fmt.Errorf("queue %s: %w", o.Store, err)
	}
	c := &committer{q: q, totals: q.totals}
	go func() {
		defer close(q.written)
		c.run()
	}()
	go func() { // not the committer: removing a large body takes a while
		defer close(q.cleaned)
		for id := range q.litter {
			q.removeBody(id)
		}
	}()
	return q, nil
}

func (q *Queue) open() error {
	s, err := q.o.Store.Open(q.alarm)
	if err != nil {
		return err
	}
	q.Reader = NewReader(s, q.o.Route)
	if err := q.audit(); err != nil {
		s.Close()
		return err
	}
	return nil
}

// alarm is told when the store gave up data.
func (q *Queue) alarm(kind, line string) {
	q.m.StoreAlarms.WithLabelValues(kind).Inc()
	q.log.Error("queue store complains about its data", "kind", kind, "line", store.Cut(line))
}

// Close writes what waits and closes the store. Run must have returned.
func (q *Queue) Close() error {
	q.closing.Lock()
	if q.closed {
		q.closing.Unlock()
		return ErrClosed
	}
	q.closed = true
	close(q.ops)
	q.closing.Unlock()
	<-q.written
	close(q.litter)
	<-q.cleaned
	return q.store.Close()
}

func (q *Queue) now() time.Time { return q.o.Now() }

// aliveNow is how long the queue has been open, in this run and all before.
func (q *Queue) aliveNow() int64 { return q.age + max(0, int64(q.now().Sub(q.opened))) }

// healthyWithin bounds how long a write and sync may take in good health.
const healthyWithin = 10 * time.Second

// Healthy writes to the store and syncs it. The error's text is ours.
func (q *Queue) Healthy() error {
	if q.poison.Load() != nil {
		return errors.New("queue store is being reopened after a failed write")
	}
	result := make(chan error, 1)
	q.submit(&op{ // every batch writes the totals, so an empty one is a real write
		fill: func(*tx) error { return nil },
		done: func(err error) { result <- err },
	})
	timer := time.NewTimer(healthyWithin)
	defer timer.Stop()
	select {
	case err := <-result:
		if err != nil {
			return errors.New("queue store can't be written")
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("queue store took longer than %v to sync", healthyWithin)
	}
}

// publish makes a durable batch known: counts, and the lines that grew.
func (q *Queue) publish(t *tx) {
	q.mu.Lock()
	q.totals = t.totals
	q.mu.Unlock()
	q.left.Add(t.left)
	for _, key := range t.indexed {
		if dest, ok := store.KeyDest(key); ok {
			q.dest(dest).noticed(key)
		}
	}
}

// Stats are the queue's counts. It reads no more than the oldest record.
func (q *Queue) Stats() metrics.QueueStats {
	q.mu.Lock()
	t := q.totals
	q.mu.Unlock()
	free, _, _ := q.free()
	s := metrics.QueueStats{
		Messages: int(t.Messages), Held: int(t.Held), Deferred: int(t.Deferred),
		Bytes: t.Bytes, FreeBytes: free, Damaged: q.store.Damaged(), Away: q.poison.Load() != nil,
	}
	if t.Messages > 0 {
		s.Oldest = q.oldestTime()
	}
	return s
}

// oldestTime finds the first record from where it was last time, which skips
// the deleted ones before it.
func (q *Queue) oldestTime() time.Time {
	q.mu.Lock()
	known := q.oldest
	q.mu.Unlock()
	r := store.From([]byte{store.SpaceRecord}, nil)
	r.Start = store.SeqKey(store.SpaceRecord, known.seq)
	found := known
	found.at = time.Time{}
	err := q.store.Page(r, func(key, value []byte) bool {
		if found.seq = store.KeySeq(key); found.seq == known.seq && !known.at.IsZero() {
			found.at = known.at
			return false
		}
		rec, err := store.DecodeRecord(value)
		if err == nil {
			found.at = rec.Env.Received
		}
		return err != nil
	})
	if err != nil {
		return known.at
	}
	q.mu.Lock()
	q.oldest = found
	q.mu.Unlock()
	return found.at
}
