package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

// op is one change that waits to be written. Many of them share a batch, and
// so a sync.
type op struct {
	// fill adds the change to the batch. Its error fails this op alone.
	fill func(*tx) error
	// done gets the outcome from the committer, once: nil means synced.
	done func(error)
	// size is roughly how many octets fill will add.
	size int
	// keep says that the change must be written even if the store has to be
	// reopened first: fill is then called again with tx.again set.
	keep bool
	// undo, called when the outcome is unknown, returns the op that reverts the
	// change after reopening. The waiting caller was told that it failed.
	undo func() *op
	// taken is set by the committer, or before that by a caller that gives up.
	taken atomic.Bool
}

// tx is a batch being filled.
type tx struct {
	q       *Queue
	batch   *store.Batch
	totals  store.Totals
	again   bool     // the ops were in a batch that failed, before reopening
	handed  bool     // another had the store between that batch and the reopening
	gone    bool     // the last replace found the message taken over by another queue
	indexed [][]byte // index keys that are new
	left    int64    // octets that leave the store
}

func (t *tx) put(key, value []byte) { t.batch.Put(key, value) }
func (t *tx) delete(key []byte)     { t.batch.Delete(key) }

// replace writes what became of a message: was nil for a new one, is nil for
// one that leaves. Only the holder of the message's claim may call it.
func (t *tx) replace(was, is *store.Record) error {
	t.gone = false
	if t.again || t.q.reopenedSince(was) {
		if applied, err := t.applied(was, is); err != nil || applied {
			return err
		}
	}
	t.totals.Add(was, -1)
	t.totals.Add(is, 1)
	var before, now []store.IndexEntry
	if was != nil {
		before = was.Index(t.q.route)
	}
	if is != nil {
		t.put(store.SeqKey(store.SpaceRecord, is.Seq), is.Encode())
		now = is.Index(t.q.route)
	}
	for _, e := range now {
		t.put(e.Key, e.Value)
		if !hasKey(before, e.Key) {
			t.indexed = append(t.indexed, e.Key)
		}
	}
	for _, e := range before {
		if !hasKey(now, e.Key) {
			t.delete(e.Key)
		}
	}
	if is == nil {
		t.delete(store.SeqKey(store.SpaceRecord, was.Seq))
		t.delete(store.IDKey(was.Env.ID))
		if was.Inline {
			t.delete(store.SeqKey(store.SpaceBody, was.Seq))
			t.left += was.Size
		}
	}
	return nil
}

// reopenedSince says that the store was reopened after a message was claimed. If it
// is shared, the message may have gone to another queue meanwhile.
func (q *Queue) reopenedSince(was *store.Record) bool {
	if was == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	at, claimed := q.flight[was.Seq]
	return claimed && at != q.opens
}

// applied says that there is nothing to do: the batch failed, but reached the disk,
// or the message isn't here any more.
func (t *tx) applied(was, is *store.Record) (bool, error) {
	if was == nil {
		return false, nil // new messages are never written again
	}
	b, err := t.q.store.Get(store.SeqKey(store.SpaceRecord, was.Seq))
	if errors.Is(err, store.ErrNotFound) { // else the batch that failed removed it, and was applied
		t.gone = is != nil || !t.again || t.handed
		return true, nil
	}
	return err == nil && is != nil && bytes.Equal(b, is.Encode()), err
}

func hasKey(entries []store.IndexEntry, key []byte) bool {
	for _, e := range entries {
		if bytes.Equal(e.Key, key) {
			return true
		}
	}
	return false
}

// insert gives a new message its number and puts it in line.
func (t *tx) insert(r *store.Record, body []byte) error {
	r.Seq = t.totals.Next
	t.totals.Next++
	if r.Env.Report {
		t.totals.Reports++
	}
	t.put(store.IDKey(r.Env.ID), binary.BigEndian.AppendUint64(nil, r.Seq))
	if r.Inline {
		t.put(store.SeqKey(store.SpaceBody, r.Seq), body)
	}
	return t.replace(nil, r)
}

// submit hands an op to the committer. It blocks while too many wait.
func (q *Queue) submit(o *op) {
	q.closing.RLock()
	defer q.closing.RUnlock()
	if q.closed {
		o.done(ErrClosed)
		return
	}
	q.ops <- o
}

// do submits an op and waits for its outcome.
func (q *Queue) do(o *op) error {
	result := make(chan error, 1)
	o.done = func(err error) { result <- err }
	q.submit(o)
	return <-result
}

// Reopening after a failed write is tried at these intervals.
const (
	reopenMin = 50 * time.Millisecond
	reopenMax = 2 * time.Second
)

// committer is the queue's only writer. It owns totals and everything here.
type committer struct {
	q       *Queue
	totals  store.Totals
	broken  error // why the store must be reopened before another write
	pending []*op // ops to keep, from batches that failed
	wait    time.Duration
	handed  int64       // sharer.Handovers when it was last opened
	batch   store.Batch // used again and again
	spare   *op         // taken from the channel, but too large for the last batch
}

// run writes batches until ops is closed and empty.
func (c *committer) run() {
	for {
		if c.broken != nil {
			if !c.recover() {
				return
			}
			continue
		}
		batch, open := c.collect()
		if len(batch) > 0 {
			c.write(batch, false)
		}
		if !open && c.broken == nil {
			c.saveTotals()
			return
		}
	}
}

// collect blocks for one op and takes all that wait, up to maxBatch octets. It
// yields to other goroutines as long as that brings more ops to share the sync;
// on an idle machine this costs no time. open is false once the channel is
// closed and empty.
func (c *committer) collect() (batch []*op, open bool) {
	o := c.spare
	c.spare = nil
	if o == nil {
		if o, open = <-c.q.ops; !open {
			return nil, false
		}
	}
	for size := 0; ; {
		if len(batch) > 0 && size+o.size > store.MaxBatch {
			c.spare = o
			return batch, true
		}
		if o.taken.CompareAndSwap(false, true) {
			batch = append(batch, o)
			size += o.size
		}
		if len(c.q.ops) == 0 {
			runtime.Gosched()
		}
		select {
		case o, open = <-c.q.ops:
			if !open {
				return batch, false
			}
		default:
			return batch, true
		}
	}
}

// write commits ops in one synced batch and tells each its outcome.
func (c *committer) write(ops []*op, again bool) {
	c.batch.Reset()
	t := &tx{q: c.q, batch: &c.batch, totals: c.totals, again: again, handed: again && c.handovers() != c.handed}
	good := ops[:0:0]
	var lost error // the store was lost while the batch was filled
	for _, o := range ops {
		err := o.fill(t)
		switch {
		case err == nil:
			good = append(good, o)
		case o.keep && errors.Is(err, store.ErrReopening):
			good, lost = append(good, o), err
		default:
			o.done(err)
		}
	}
	if lost != nil {
		c.fail(good, lost)
		return
	}
	t.totals.Alive = c.q.aliveNow()
	t.put([]byte{store.SpaceTotals}, t.totals.Encode())
	if err := c.q.store.Apply(c.batch); err != nil {
		c.fail(good, err)
		return
	}
	c.q.m.Commits.Inc()
	c.totals = t.totals
	c.q.publish(t)
	for _, o := range good {
		o.done(nil)
	}
}

// sharer is a store that another process may take while this one can't reach it.
type sharer interface {
	Handovers() int64 // rises when another has had it
	Held() error      // nil while no other can have it
}

// held says whether the store is ours alone.
func (q *Queue) held() error {
	if s, ok := q.store.(sharer); ok {
		return s.Held()
	}
	return nil
}

func (c *committer) handovers() int64 {
	if s, ok := c.q.store.(sharer); ok {
		return s.Handovers()
	}
	return 0
}

// saveTotals is a batch without ops, at the end: it keeps the queue's age.
func (c *committer) saveTotals() {
	c.write(nil, false)
}

// fail poisons the store (D3).
func (c *committer) fail(ops []*op, err error) {
	c.q.m.StoreErrors.WithLabelValues("write").Inc()
	c.q.often.Error(c.q.log, "", "queue write failed; reopening the store before another", "err", err)
	c.broken, c.wait = err, reopenMin
	c.q.poison.Store(&err)
	for _, o := range ops {
		c.refuse(o, err)
	}
}

// refuse settles an op that can't be written now.
func (c *committer) refuse(o *op, err error) {
	if o.keep {
		c.pending = append(c.pending, o)
		return
	}
	if o.undo != nil {
		c.pending = append(c.pending, o.undo())
	}
	o.done(poisoned(err))
}

// recover tries once to reopen the store, then serves those who wait until
// the next try is due. It returns false when the queue was closed and could
// not be saved.
func (c *committer) recover() (goOn bool) {
	err := c.reopen()
	if err == nil {
		return true
	}
	c.q.m.StoreErrors.WithLabelValues("reopen").Inc()
	c.q.often.Error(c.q.log, err.Error(), "reopen queue store", "err", err, "retry_in", c.wait)
	timer := time.NewTimer(c.wait)
	defer timer.Stop()
	c.wait = min(2*c.wait, reopenMax)
	if c.spare != nil {
		c.turnAway(c.spare, err)
		c.spare = nil
	}
	for {
		select {
		case <-timer.C:
			return true
		case o, open := <-c.q.ops:
			if !open {
				for _, o := range c.pending {
					o.done(poisoned(err))
				}
				return false
			}
			c.turnAway(o, err)
		}
	}
}

// turnAway refuses an op that was never in a batch: there is nothing to undo.
func (c *committer) turnAway(o *op, err error) {
	if !o.taken.CompareAndSwap(false, true) {
		return
	}
	if o.keep {
		c.pending = append(c.pending, o)
		return
	}
	o.done(poisoned(err))
}

// reopen has the store reopened, takes over the totals that are in it
// and writes what is pending.
func (c *committer) reopen() error {
	s, was := c.q.store, c.q.store.Damaged()
	err := s.Reopen()
	if s.Damaged() && !was {
		c.q.log.Error("queue store is damaged; until the next start its tables are not merged, and the space of relayed mail stays taken. "+
			"Stop understudy when you can, and run `understudy queue repair`", "err", c.broken)
	}
	if err != nil {
		return err
	}
	t, err := store.LoadTotals(s)
	if err != nil {
		return err
	}
	c.totals, c.broken = t, nil
	c.q.m.StoreReopens.Inc()
	c.q.mu.Lock()
	c.q.opens++
	c.q.mu.Unlock()
	ops := c.pending
	c.pending = nil
	c.write(ops, true)
	if c.broken != nil { // it also proves that writes work
		return c.broken
	}
	c.handed = c.handovers()
	// The batch that failed may have put messages in line where the drain has
	// read already.
	c.q.each("", (*dest).rewind)
	c.q.poison.Store(nil)
	c.q.often.Over()
	c.q.log.Info("queue store reopened", "messages", c.totals.Messages)
	c.q.Wake("")
	return nil
}
