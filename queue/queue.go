package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
)

// Errors on which a caller branches.
var (
	ErrLocked       = errors.New("queue is in use by another process")
	ErrNewerVersion = errors.New("queue was written by a newer version")
	ErrNotFound     = errors.New("no such message")
	// ErrBusy means that the message is being relayed right now; its outcome
	// is a moment away.
	ErrBusy   = errors.New("message is being relayed, try again in a moment")
	ErrClosed = errors.New("queue is closed")
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

// Options of a Queue. Dir and Route are required, Relayer for Run.
type Options struct {
	// Dir is the queue's directory. It is made, mode 0700, when missing.
	Dir string
	// Route names the next hop of a recipient's domain ("" for <Postmaster>).
	// It is called often and MUST give the same answer for the life of the
	// Queue; it may answer differently at the next Open.
	Route          func(domain string) (dest string)
	Relayer        Relayer
	MaxAge         time.Duration         // deferred for longer ⇒ held; default 14 days
	MinFree        uint64                // octets that must stay free, 0 for none
	MinFreeInodes  uint64                // likewise
	MaxConnections func(dest string) int // sessions to dest at a time; default 10
	MaxRate        func(dest string) int // messages to dest a second; default 0, no limit
	// ByClient says that dest takes one client a session (XCLIENT): then a
	// session goes on with the same client's messages, as far as they are read
	// ahead. By default it doesn't.
	ByClient func(dest string) bool
	Log      *slog.Logger
	Metrics  *metrics.Metrics
	// Now is the clock; by default one that ticks on when the wall clock is set.
	Now func() time.Time
	// Disk stands in for the file system, in tests. nil is the real one.
	Disk Disk

	writeBuffer int // see store
}

func (o *Options) setDefaults() error {
	if o.Dir == "" || o.Route == nil {
		return errors.New("queue: Dir and Route are required")
	}
	o.Dir = filepath.Clean(o.Dir)
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
	if o.Disk == nil {
		o.Disk = osDisk{}
	}
	return nil
}

// Queue is an open queue. Its methods may be called from any goroutine.
type Queue struct {
	o     Options
	disk  Disk
	log   *slog.Logger
	m     *metrics.Metrics
	lock  io.Closer
	store *store
	ids   ids

	opened time.Time
	age    int64 // totals.alive at Open

	closing sync.RWMutex // guards closed, and ops against being closed under a sender
	closed  bool
	ops     chan *op      // closed by Close
	written chan struct{} // closed when the committer has ended
	litter  chan string   // body files to unlink; closed after the committer has ended
	cleaned chan struct{} // closed when they are unlinked
	poison  atomic.Pointer[error]
	left    atomic.Int64 // octets that have left the store, but not the disk

	mu     sync.Mutex // guards what follows; never held over I/O
	totals totals     // as of the last batch
	oldest struct {   // see Stats
		seq uint64
		at  time.Time
	}
	flight  map[uint64]bool // claimed messages: in a lane, or the operator's
	dests   map[string]*dest
	started func(*dest) // starts a destination's drain while Run runs, else nil

	space struct {
		sync.Mutex    // guards the rest; held over one statfs
		at            time.Time
		bytes, inodes uint64
		err           error
	}
}

// Open opens the queue, audits it and makes it ready to accept. Errors that a
// caller tells apart: ErrLocked, ErrNewerVersion, ErrDamaged, and fs.ErrPermission.
func Open(o Options) (*Queue, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	q := &Queue{
		o: o, disk: o.Disk, log: o.Log, m: o.Metrics,
		ops: make(chan *op, 256), written: make(chan struct{}),
		litter: make(chan string, 256), cleaned: make(chan struct{}),
		flight: map[uint64]bool{}, dests: map[string]*dest{},
	}
	q.opened = q.now()
	if err := q.open(); err != nil {
		return nil, fmt.Errorf("queue %s: %w", o.Dir, damaged(err))
	}
	c := &committer{q: q, totals: q.totals, batch: new(leveldb.Batch)}
	go func() {
		defer close(q.written)
		c.run()
	}()
	go func() { // not the committer: unlinking a large file takes a while
		defer close(q.cleaned)
		for name := range q.litter {
			q.removeBody(name)
		}
	}()
	return q, nil
}

func (q *Queue) open() (err error) {
	if err := q.disk.Mkdir(q.o.Dir); err != nil {
		return err
	}
	// The directory may be new; the one above may not be ours to open.
	if err := q.disk.SyncDir(filepath.Dir(q.o.Dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if q.lock, err = q.disk.Lock(q.o.Dir); err != nil {
		return err
	}
	q.store = &store{dir: filepath.Join(q.o.Dir, "store"), disk: q.disk, m: q.m, warn: q.alarm, writeBuffer: q.o.writeBuffer}
	defer func() {
		if err != nil {
			q.store.close()
			q.lock.Close()
		}
	}()
	if err := q.makeBodyDirs(); err != nil {
		return err
	}
	if err := openStore(q.store); err != nil {
		return err
	}
	return q.audit()
}

// alarm is told when LevelDB gave up data.
func (q *Queue) alarm(kind, line string) {
	q.m.StoreAlarms.WithLabelValues(kind).Inc()
	q.log.Error("queue store complains about its data", "kind", kind, "line", cut(line))
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
	err := q.store.close()
	if lerr := q.lock.Close(); err == nil {
		err = lerr
	}
	return err
}

func (q *Queue) now() time.Time { return q.o.Now() }

// aliveNow is how long the queue has been open, in this run and all before.
func (q *Queue) aliveNow() int64 { return q.age + max(0, int64(q.now().Sub(q.opened))) }

// The replies that the queue gives.
var (
	replyPoisoned = envelope.NewReply(451, "4.3.0", "Message store unavailable, try again later")
	replyNoSpace  = envelope.NewReply(452, "4.3.1", "Insufficient system storage, try again later")
)

// poisoned is the reply to mail that can't be stored: 452 when that is for want
// of space, 451 else.
func poisoned(err error) error {
	reply := replyPoisoned
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		reply = replyNoSpace
	}
	return &envelope.ReplyError{Reply: reply, Err: err}
}

// asReply makes any error one that names its reply.
func asReply(err error) error {
	var r *envelope.ReplyError
	if err == nil || errors.As(err, &r) {
		return err
	}
	return poisoned(err)
}

// Ready says whether a message of size octets (0 when unknown) can be
// accepted now. Its errors are *envelope.ReplyError: 452 4.3.1 below the floor
// of free space, 451 4.3.0 while the store can't be written.
func (q *Queue) Ready(size int64) error {
	if err := q.poison.Load(); err != nil {
		return poisoned(*err)
	}
	bytes, inodes, err := q.free()
	if err != nil {
		q.m.StoreErrors.WithLabelValues("statfs").Inc()
		return poisoned(err)
	}
	if bytes < q.o.MinFree+uint64(max(0, size)) || inodes < q.o.MinFreeInodes {
		return &envelope.ReplyError{Reply: replyNoSpace,
			Err: fmt.Errorf("%d octets and %d inodes free", bytes, inodes)}
	}
	return nil
}

// free is the space left, at most a second old.
func (q *Queue) free() (bytes, inodes uint64, err error) {
	s, now := &q.space, q.now()
	s.Lock()
	defer s.Unlock()
	if age := now.Sub(s.at); s.at.IsZero() || age > time.Second || age < 0 {
		s.bytes, s.inodes, s.err = q.disk.Free(q.o.Dir)
		s.at = now
	}
	return s.bytes, s.inodes, s.err
}

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
		if dest, ok := keyDest(key); ok {
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
		Messages: int(t.messages), Held: int(t.held), Deferred: int(t.deferred),
		Bytes: t.bytes, FreeBytes: free, Damaged: q.store.damaged.Load(),
	}
	if t.messages > 0 {
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
	r := from([]byte{spaceRecord}, nil)
	r.Start = seqKey(spaceRecord, known.seq)
	found := known
	found.at = time.Time{}
	err := q.store.page(r, func(key, value []byte) bool {
		if found.seq = keySeq(key); found.seq == known.seq && !known.at.IsZero() {
			found.at = known.at
			return false
		}
		rec, err := decodeRecord(value)
		if err == nil {
			found.at = rec.env.Received
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

// cut bounds a text that goes into the log or a record.
func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}
