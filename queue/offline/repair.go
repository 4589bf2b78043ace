package offline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/store"
)

// Repaired is what Repair did.
type Repaired struct {
	Aside       string   `json:"aside"` // the store as it was found, to be kept
	Messages    int      `json:"messages"`
	Quarantined int      `json:"quarantined"`
	Notes       []string `json:"notes"` // at most maxProblems
	More        int      `json:"more"`  // notes beyond
}

func (r *Repaired) add(format string, args ...any) { add(&r.Notes, &r.More, format, args...) }

// Repair makes a new store from the readable parts of a damaged one, and opens it
// once, which audits it. The damaged one is kept as it was. Unreadable parts are
// lost to the queue; an incomplete message is quarantined. LevelDB forgets in
// which order its files replaced each other, so mail that has left may be back.
//
// A crash leaves the damaged store in place, or the repaired one.
// It calls read after each record.
// ErrLocked, leveldb.ErrWhole, ErrNewerVersion, fs.ErrNotExist.
func Repair(dir leveldb.Dir, route func(domain string) (dest string), read func()) (Repaired, error) {
	var done Repaired
	if err := repairStore(dir, &done, read); err != nil {
		return done, fmt.Errorf("repair queue %s: %w", dir, err)
	}
	q, err := queue.Open(queue.Options{Store: dir, Route: route})
	if err != nil {
		return done, fmt.Errorf("open repaired %w", err)
	}
	s := q.Status()
	done.Messages, done.Quarantined = s.Messages, s.Quarantined
	return done, q.Close()
}

func repairStore(dir leveldb.Dir, done *Repaired, read func()) error {
	built, err := dir.Rebuild(done.add)
	if err != nil {
		return err
	}
	defer built.Close()
	if built.Replaced == "" {
		r := &repair{store: built, done: done, read: read}
		for _, step := range []func() error{r.format, r.records, r.orphans, r.counts} {
			if err := errors.Join(step(), r.flush(0)); err != nil {
				return err
			}
		}
		if err := r.strays(built); err != nil {
			return err
		}
		if err := built.Swap(time.Now()); err != nil {
			return err
		}
	}
	done.Aside = built.Replaced
	return nil
}

// repair makes a rebuilt store consistent.
type repair struct {
	read  func() // after each record
	store store.Store
	done  *Repaired
	batch store.Batch
	next  uint64 // above all numbers found
}

// flush writes the batch when it has more than so many changes.
func (r *repair) flush(above int) error {
	if len(r.batch) <= above {
		return nil
	}
	err := r.store.Apply(r.batch)
	r.batch.Reset()
	return err
}

func (r *repair) format() error {
	err := store.CheckFormat(r.store)
	if errors.Is(err, store.ErrNotFound) {
		r.batch.Put([]byte{store.SpaceFormat}, store.FormatValue(store.FormatVersion))
		r.done.add("the format's version is lost; it was taken to be %d", store.FormatVersion)
		return nil
	}
	return err
}

// records makes sure that each message is found by its ID; otherwise its body's
// file would count as orphaned.
func (r *repair) records() error {
	return store.Scan(r.store, []byte{store.SpaceRecord}, func(key, value []byte) error {
		r.read()
		seq := store.KeySeq(key)
		r.next = max(r.next, seq+1)
		rec, err := store.DecodeRecord(value)
		if err != nil {
			return nil // the audit's
		}
		at, err := store.SeqOf(r.store, rec.Env.ID)
		if err != nil && !errors.Is(err, store.ErrNoMessage) || at == seq {
			return err
		}
		r.batch.Put(store.IDKey(rec.Env.ID), binary.BigEndian.AppendUint64(nil, seq))
		return r.flush(1000)
	})
}

// orphans quarantines each body or ID whose record is lost: what is left can be
// exported.
func (r *repair) orphans() error {
	put := map[uint64]bool{}
	orphan := func(seq uint64) error {
		if put[seq] {
			return nil
		}
		for _, space := range []byte{store.SpaceRecord, store.SpaceQuarantine} {
			if ok, err := store.Has(r.store, store.SeqKey(space, seq)); ok || err != nil {
				return err
			}
		}
		put[seq] = true
		r.batch.Put(store.SeqKey(store.SpaceQuarantine, seq), nil)
		r.done.add("number %d: the record is lost; see queue quarantine export", seq)
		return r.flush(1000)
	}
	err := store.Scan(r.store, []byte{store.SpaceBody}, func(key, _ []byte) error { return orphan(store.KeySeq(key)) })
	if err != nil {
		return err
	}
	return store.Scan(r.store, []byte{store.SpaceID}, func(_, value []byte) error {
		if len(value) != 8 {
			return nil
		}
		return orphan(binary.BigEndian.Uint64(value))
	})
}

// counts makes the totals such that no number is given twice.
func (r *repair) counts() error {
	t, err := store.LoadTotals(r.store)
	if err != nil && !errors.Is(err, store.ErrRecord) && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	t.Quarantined = 0
	err = store.Scan(r.store, []byte{store.SpaceQuarantine}, func(key, _ []byte) error {
		r.next = max(r.next, store.KeySeq(key)+1)
		t.Quarantined++
		return nil
	})
	t.Next = max(t.Next, r.next, 1)
	r.batch.Put([]byte{store.SpaceTotals}, t.Encode())
	return err
}

// strays moves bodies aside that nothing names any more: the next start would
// remove them, and one may be a message's whose record and ID are lost.
func (r *repair) strays(built *leveldb.Rebuild) error {
	return built.Bodies(func(id string) error {
		known, err := store.Has(built, store.IDKey(id))
		if known || err != nil {
			return err
		}
		name, err := built.SetAside(id)
		if err == nil {
			r.done.add("a body of which nothing else is left is now %s", name)
		}
		return err
	})
}
