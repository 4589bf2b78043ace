package queue

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
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
	found  totals
	want   fingerprint // the index that the records call for
	batch  leveldb.Batch
	put    int // octets in the batch
	damage int
}

// audit reads every record before the queue goes into service (D5): it
// quarantines what is damaged, compares the counts with those of the last
// batch, sees to it that every message is in the line of its present route,
// and removes body files that no record names (D7).
func (q *Queue) audit() error {
	said, err := q.store.loadTotals()
	if err != nil && !errors.Is(err, errRecord) && !errors.Is(err, leveldb.ErrNotFound) {
		return err
	}
	if err != nil {
		q.alarm("totals", err.Error())
	}
	a := &auditor{q: q, seed: maphash.MakeSeed()}
	a.found = totals{next: said.next, alive: said.alive, quarantined: said.quarantined}
	q.age = said.alive
	if err := q.store.scan([]byte{spaceRecord}, a.record); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := a.counts(said); err != nil {
		return err
	}
	if err := a.index(); err != nil {
		return fmt.Errorf("audit index: %w", err)
	}
	a.batch.Put([]byte{spaceTotals}, a.found.encode())
	if err := a.flush(); err != nil {
		return err
	}
	q.totals = a.found
	return q.sweep()
}

// record looks at one record.
func (a *auditor) record(key, value []byte) error {
	seq := keySeq(key)
	a.found.next = max(a.found.next, seq+1)
	r, err := decodeRecord(value)
	if err == nil && r.seq != seq {
		err = fmt.Errorf("%w: number %d under %d", errRecord, r.seq, seq)
	}
	if err == nil && !r.inline {
		err = a.q.checkBodyFile(r)
		if err != nil && !errors.Is(err, errBody) {
			// The disk fails, not the record: relaying will try again.
			a.q.log.Error("body not checked", "id", r.env.ID, "err", err)
			err = nil
		}
	}
	if err != nil {
		return a.quarantine(seq, value, err)
	}
	if a.q.clockWentBack(r) {
		raw := r.encode()
		a.batch.Put(key, raw)
		if a.put += len(raw); a.put > maxBatch {
			if err := a.flush(); err != nil {
				return err
			}
		}
	}
	a.found.add(r, 1)
	a.q.ids.raise(r.env.ID)
	for _, e := range r.index(a.q.o.Route) {
		a.want.add(a.seed, e.key)
		if dest, ok := keyDest(e.key); ok {
			a.q.dest(dest)
		}
	}
	return nil
}

// clockWentBack makes due what waits for a time further ahead than any wait
// is: the clock was wrong then, or is now.
func (q *Queue) clockWentBack(r *record) (changed bool) {
	now := q.now()
	for i := range r.rcpts {
		if c := &r.rcpts[i]; c.state == deferred && c.next > now.Add(2*backoffMax).UnixNano() {
			c.next, changed = now.UnixNano(), true
		}
	}
	return changed
}

// quarantine moves a record aside. Its body, its ID and so its file stay.
func (a *auditor) quarantine(seq uint64, value []byte, cause error) error {
	a.q.countQuarantined(seq, cause)
	a.found.quarantined++
	a.damage++
	a.batch.Put(seqKey(spaceQuarantine, seq), value)
	a.batch.Delete(seqKey(spaceRecord, seq))
	a.put += len(value)
	return a.flushAbove(maxBatch)
}

func (q *Queue) countQuarantined(seq uint64, cause error) {
	q.m.Quarantined.Inc()
	q.log.Error("queue record quarantined", "seq", seq, "cause", cut(cause.Error()))
}

func (a *auditor) flushAbove(n int) error {
	if a.put <= n {
		return nil
	}
	return a.flush()
}

func (a *auditor) flush() error {
	err := a.q.store.write(&a.batch)
	a.batch.Reset()
	a.put = 0
	return err
}

// counts compares what is there with what the last batch said. The totals
// ride in every batch: a batch that vanished before a later one shows here.
func (a *auditor) counts(said totals) error {
	got := a.found
	got.messages += int64(a.damage)
	if said.next != 0 && (got.messages != said.messages || got.next != said.next) {
		a.q.m.StoreAlarms.WithLabelValues("missing").Inc()
		a.q.log.Error("queue does not hold what its last batch says",
			"messages", got.messages, "expected", said.messages, "next", got.next, "expected_next", said.next)
	}
	return a.flush()
}

// index compares the index with the one called for, and rebuilds it if need be.
func (a *auditor) index() error {
	var have fingerprint
	spaces := []byte{spaceLine, spaceDeferred}
	for _, space := range spaces {
		err := a.q.store.scan([]byte{space}, func(key, _ []byte) error {
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
		err := a.q.store.scan([]byte{space}, func(key, _ []byte) error {
			a.batch.Delete(key)
			a.put += len(key)
			return a.flushAbove(maxBatch)
		})
		if err != nil {
			return err
		}
	}
	if err := a.flush(); err != nil {
		return err
	}
	return a.q.store.scan([]byte{spaceRecord}, func(_, value []byte) error {
		r, err := decodeRecord(value)
		if err != nil {
			return err
		}
		for _, e := range r.index(a.q.o.Route) {
			a.batch.Put(e.key, e.value)
			a.put += len(e.key) + len(e.value)
		}
		return a.flushAbove(maxBatch)
	})
}

// sweep removes body files that no record names: drafts and settled messages
// that a crash left behind (D7). A quarantined message keeps its ID, and so
// its file.
func (q *Queue) sweep() error {
	removed := 0
	for _, c := range strings.Split(idAlphabet, "") {
		names, err := q.disk.List(q.bodyDir(c))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep: %w", err)
		}
		for _, name := range names {
			if validID(name) {
				if known, err := q.store.has(idKey(name)); err != nil {
					return fmt.Errorf("sweep: %w", err)
				} else if known {
					continue
				}
			} else if !strings.HasSuffix(name, ".tmp") {
				continue // not ours
			}
			q.removeBody(q.bodyDir(c) + "/" + name)
			removed++
		}
	}
	if removed > 0 {
		q.log.Info("removed orphaned body files", "files", removed)
	}
	return nil
}

// quarantineOp moves a message aside that turned out damaged in service.
func (q *Queue) quarantineOp(r *record, cause error) *op {
	return &op{keep: true, size: 512, fill: func(t *tx) error {
		key := seqKey(spaceRecord, r.seq)
		raw, err := q.store.get(key)
		if errors.Is(err, leveldb.ErrNotFound) {
			return nil // an earlier batch did it
		}
		if err != nil {
			return err
		}
		q.countQuarantined(r.seq, cause)
		t.totals.add(r, -1)
		t.totals.quarantined++
		t.put(seqKey(spaceQuarantine, r.seq), raw)
		t.delete(key)
		for _, e := range r.index(q.o.Route) {
			t.delete(e.key)
		}
		return nil
	}}
}

// Quarantined counts the messages that were put aside.
func (q *Queue) Quarantined() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int(q.totals.quarantined)
}
