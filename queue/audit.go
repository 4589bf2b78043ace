package queue

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/understudy-mx/understudy/queue/store"
)

// fingerprint tells two sets of index keys apart, in any order.
type fingerprint struct {
	n   int
	xor uint64
}

func (f *fingerprint) add(seed maphash.Seed, key []byte) {
	f.n++
	f.xor ^= maphash.Bytes(seed, key)
}

// auditor walks the store at start-up.
type auditor struct {
	q      *Queue
	seed   maphash.Seed
	found  store.Totals
	want   fingerprint // the index that the records call for
	batch  store.Batch
	put    int // octets in the batch
	damage int
}

// audit reads every record before the queue goes into service (D5): it
// quarantines what is damaged, compares the counts with those of the last
// batch, sees to it that every message is in the line of its present route,
// and removes body files that no record names (D7).
func (q *Queue) audit() error {
	if err := store.Convert(q.store); err != nil {
		return err
	}
	said, err := store.LoadTotals(q.store)
	if err != nil && !errors.Is(err, store.ErrRecord) && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err != nil {
		q.alarm("totals", err.Error())
	}
	a := &auditor{q: q, seed: maphash.MakeSeed()}
	a.found = store.Totals{Next: said.Next, Alive: said.Alive, Quarantined: said.Quarantined, Reports: said.Reports}
	q.age = said.Alive
	if err := store.Scan(q.store, []byte{store.SpaceRecord}, a.record); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := a.counts(said); err != nil {
		return err
	}
	if err := a.index(); err != nil {
		return fmt.Errorf("audit index: %w", err)
	}
	a.batch.Put([]byte{store.SpaceTotals}, a.found.Encode())
	if err := a.flush(); err != nil {
		return err
	}
	q.totals = a.found
	return q.sweep()
}

// record looks at one record.
func (a *auditor) record(key, value []byte) error {
	seq := store.KeySeq(key)
	a.found.Next = max(a.found.Next, seq+1)
	r, err := store.DecodeRecordOf(seq, value)
	if err == nil && !r.Inline {
		err = store.CheckBody(a.q.store, r)
		if err != nil && !errors.Is(err, store.ErrBody) {
			// The disk fails, not the record: relaying will try again.
			a.q.log.Error("body not checked", "id", r.Env.ID, "err", err)
			err = nil
		}
	}
	if err != nil {
		return a.quarantine(seq, value, err)
	}
	if a.q.clockWentBack(r) {
		raw := r.Encode()
		a.batch.Put(slices.Clone(key), raw)
		if a.put += len(raw); a.put > store.MaxBatch {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
	a.found.Add(r, 1)
	a.q.ids.raise(r.Env.ID)
	if r.Origin != "" {
		a.q.coming[seq] = coming{r.Env.ID, r.Origin}
	}
	for _, e := range r.Index(a.q.route) {
		a.want.add(a.seed, e.Key)
		if dest, ok := store.KeyDest(e.Key); ok {
			a.q.dest(dest)
		}
	}
	return nil
}

// clockWentBack makes due every message that waits for longer than the longest
// wait: the clock was wrong then, or is now.
func (q *Queue) clockWentBack(r *store.Record) (changed bool) {
	now := q.now()
	for i := range r.Recipients {
		if c := &r.Recipients[i]; c.State == store.Deferred && c.Next > now.Add(2*backoffMax).UnixNano() {
			c.Next, changed = now.UnixNano(), true
		}
	}
	return changed
}

// quarantine moves a record aside. Its body, its ID and so its file stay.
func (a *auditor) quarantine(seq uint64, value []byte, cause error) error {
	a.q.countQuarantined(seq, cause)
	a.found.Quarantined++
	a.damage++
	a.batch.Put(store.SeqKey(store.SpaceQuarantine, seq), slices.Clone(value))
	a.batch.Delete(store.SeqKey(store.SpaceRecord, seq))
	a.put += len(value)
	return a.flushAbove(store.MaxBatch)
}

func (q *Queue) countQuarantined(seq uint64, cause error) {
	q.m.Quarantined.Inc()
	q.log.Error("queue record quarantined", "seq", seq, "cause", store.Cut(cause.Error()))
}

func (a *auditor) flushAbove(n int) error {
	if a.put <= n {
		return nil
	}
	return a.flush()
}

func (a *auditor) flush() error {
	err := a.q.store.Apply(a.batch)
	a.batch.Reset()
	a.put = 0
	return err
}

// counts compares the records with the totals of the last batch. Every batch
// has totals, so that a batch missing before a later one shows here.
func (a *auditor) counts(said store.Totals) error {
	got := a.found
	got.Messages += int64(a.damage)
	if said.Next != 0 && (got.Messages != said.Messages || got.Next != said.Next) {
		a.q.m.StoreAlarms.WithLabelValues("missing").Inc()
		a.q.log.Error("queue does not hold what its last batch says",
			"messages", got.Messages, "expected", said.Messages, "next", got.Next, "expected_next", said.Next)
	}
	return a.flush()
}

// index compares the index with the expected one, and rebuilds it if need be.
func (a *auditor) index() error {
	var have fingerprint
	spaces := []byte{store.SpaceLine, store.SpaceDeferred}
	for _, space := range spaces {
		err := store.Scan(a.q.store, []byte{space}, func(key, _ []byte) error {
			have.add(a.seed, key)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if have == a.want {
		return nil
	}
	a.q.log.Warn("queue index does not match its messages; building it anew (routes changed, or damage)",
		"entries", have.n, "expected", a.want.n)
	for _, space := range spaces {
		err := store.Scan(a.q.store, []byte{space}, func(key, _ []byte) error {
			a.batch.Delete(slices.Clone(key))
			a.put += len(key)
			return a.flushAbove(store.MaxBatch)
		})
		if err != nil {
			return err
		}
	}
	if err := a.flush(); err != nil {
		return err
	}
	return store.Scan(a.q.store, []byte{store.SpaceRecord}, func(_, value []byte) error {
		r, err := store.DecodeRecord(value)
		if err != nil {
			return err
		}
		for _, e := range r.Index(a.q.route) {
			a.batch.Put(e.Key, e.Value)
			a.put += len(e.Key) + len(e.Value)
		}
		return a.flushAbove(store.MaxBatch)
	})
}

// sweep removes body files that no record names: drafts and settled messages
// that a crash left behind (D7). A quarantined message keeps its ID, and so
// its file.
func (q *Queue) sweep() error {
	removed := 0
	err := q.store.Bodies(func(id string) error {
		known, err := store.Has(q.store, store.IDKey(id))
		if err == nil && !known {
			q.removeBody(id)
			removed++
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if removed > 0 {
		q.log.Info("removed orphaned body files", "files", removed)
	}
	return nil
}

// quarantineOp quarantines a message that turned out to be damaged in service.
func (q *Queue) quarantineOp(r *store.Record, cause error) *op {
	return &op{keep: true, size: 512, fill: func(t *tx) error {
		key := store.SeqKey(store.SpaceRecord, r.Seq)
		raw, err := q.store.Get(key)
		if errors.Is(err, store.ErrNotFound) {
			return nil // an earlier batch did it
		}
		if err != nil {
			return err
		}
		q.countQuarantined(r.Seq, cause)
		t.totals.Add(r, -1)
		t.totals.Quarantined++
		t.put(store.SeqKey(store.SpaceQuarantine, r.Seq), raw)
		t.delete(key)
		for _, e := range r.Index(q.route) {
			t.delete(e.Key)
		}
		return nil
	}}
}

// Quarantined counts the messages that were put aside.
func (q *Queue) Quarantined() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int(q.totals.Quarantined)
}
