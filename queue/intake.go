package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/understudy-mx/understudy/queue/store"
)

// ErrOtherMessage means that the queue has another message of the same ID.
var ErrOtherMessage = errors.New("another message has this ID")

// coming is a message that another store may still have.
type coming struct{ id, origin string }

// Intake takes messages over from another store, see package move:
//
//	in.Add(…)       some messages
//	in.Store(ctx)   now they are durable here, and not in line yet
//	                … the source forgets them, durably
//	in.Confirm(ids) now they are in line
//
// Between Store and Confirm a message names its origin, in its record: who finds
// such a record after a crash asks the origin whether the message has left it.
// An Intake belongs to one goroutine, and an origin to one Intake at a time.
type Intake struct {
	q      *Queue
	origin string // the source's identity
	alive  int64  // the source's age, see store.Totals.Alive

	fresh  []arrival
	known  []string   // IDs that were here already, to be confirmed with the others
	newer  []replaced // of them, those that have changed at the origin since
	octets int

	nameless bool // a quarantined one without an ID was added
}

// arrival is a message, or a quarantined one, that isn't here yet.
type arrival struct {
	rec  *store.Record
	body []byte // unless it is outside of the keys

	raw []byte // the quarantined record, when rec is nil
	id  string // its ID, "" when unknown
}

// replaced is a record and what becomes of it, nil when it leaves.
type replaced struct{ was, is *store.Record }

// Intake begins to take messages from the store of that identity and age.
func (q *Queue) Intake(origin string, alive int64) *Intake {
	return &Intake{q: q, origin: origin, alive: alive}
}

// Identity is the name of the queue's store among all stores.
func (q *Queue) Identity() (string, error) {
	key := []byte{store.SpaceIdentity}
	if ok, err := store.Has(q.store, key); !ok && err == nil {
		err = q.do(&op{size: 64, fill: func(t *tx) error {
			if ok, err := store.Has(q.store, key); ok || err != nil {
				return err
			}
			t.put(key, store.NewIdentity())
			return nil
		}})
		if err != nil {
			return "", err
		}
	}
	b, err := q.store.Get(key)
	return string(b), err
}

// Knows says whether the queue has a message, and otherwise to which store it was
// moved last, "" when it has no note of that.
func (q *Queue) Knows(id string) (here bool, movedTo string, err error) {
	here, err = store.Has(q.store, store.IDKey(id))
	if err != nil || here {
		return here, "", err
	}
	b, err := q.store.Get(store.MovedKey(id))
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return false, string(b), err
}

// Coming lists the messages of an origin that wait for Confirm or Forget.
func (q *Queue) Coming(origin string) (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.coming {
		if c.origin == origin {
			ids = append(ids, c.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Origins lists the stores from which messages are Coming.
func (q *Queue) Origins() (origins []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.coming {
		if !slices.Contains(origins, c.origin) {
			origins = append(origins, c.origin)
		}
	}
	return origins
}

// Full says that Store is due.
func (in *Intake) Full() bool {
	return in.octets >= store.MaxBatch || len(in.fresh)+len(in.known) >= 256
}

// Add takes a message and copies its body. One that is here already, from an
// earlier attempt, is recognised by its ID. ErrOtherMessage.
func (in *Intake) Add(r *store.Record, open func() (io.ReadCloser, error)) error {
	is := r.Clone()
	is.Origin = in.origin
	age := in.q.aliveNow() - in.alive
	for i := range is.Recipients {
		is.Recipients[i].Alive += age
	}
	known, err := in.recognise(is)
	if err != nil || known {
		return err
	}
	a := arrival{rec: is, id: is.Env.ID}
	if a.body, err = in.body(is.Env.ID, is.Inline, open); err != nil {
		return err
	}
	in.add(a, 512+256*len(is.Recipients))
	return nil
}

func (in *Intake) add(a arrival, size int) {
	in.fresh = append(in.fresh, a)
	in.octets += len(a.body) + len(a.raw) + size
}

// recognise says that a message is here already. If it isn't confirmed yet, the
// origin's record is the newer one.
func (in *Intake) recognise(is *store.Record) (bool, error) {
	seq, err := store.SeqOf(in.q.store, is.Env.ID)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	here, err := store.Load(in.q.store, seq)
	switch {
	case err != nil:
		return false, err
	case here == nil, here.Sum != is.Sum, here.Size != is.Size, !here.Env.Received.Equal(is.Env.Received),
		here.Origin != "" && here.Origin != in.origin: // a third store has to be asked first
		return false, ErrOtherMessage
	case here.Origin != "":
		is.Seq = here.Seq
		in.newer = append(in.newer, replaced{here, is})
	}
	in.known = append(in.known, is.Env.ID)
	return true, nil
}

// body reads a body that belongs among the keys, and copies another one.
func (in *Intake) body(id string, inline bool, open func() (io.ReadCloser, error)) ([]byte, error) {
	from, err := open()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if inline {
		return io.ReadAll(from)
	}
	s := in.q.store
	if err := s.Remove(id); err != nil { // what an earlier attempt left
		return nil, err
	}
	to, err := s.Create(id)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{to}, from, make([]byte, 64<<10))
	if err == nil {
		err = to.Commit()
	}
	if err != nil {
		return nil, errors.Join(err, to.Close(), s.Remove(id))
	}
	return nil, nil
}

// AddQuarantined takes over a quarantined record, and what there is of its body: nil,
// or outside of the keys when it has an ID.
func (in *Intake) AddQuarantined(id string, raw []byte, inline bool, open func() (io.ReadCloser, error)) error {
	if id != "" {
		seq, err := store.SeqOf(in.q.store, id)
		if err == nil {
			var aside bool
			if aside, err = store.Has(in.q.store, store.SeqKey(store.SpaceQuarantine, seq)); err == nil && !aside {
				err = ErrOtherMessage
			}
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	a := arrival{raw: raw, id: id}
	if open != nil {
		var err error
		if a.body, err = in.body(id, inline, open); err != nil {
			return err
		}
	}
	if id == "" && !in.nameless {
		// The source forgets one after the other: an earlier attempt may have left
		// the first of them here, and no other.
		in.nameless = true
		if known, err := in.asideAlready(a.raw, a.body); known || err != nil {
			return err
		}
	}
	in.add(a, 512)
	return nil
}

// asideAlready looks for a quarantined record that has no ID to be known by, and its
// body.
func (in *Intake) asideAlready(raw, body []byte) (known bool, err error) {
	err = store.Scan(in.q.store, []byte{store.SpaceQuarantine}, func(key, value []byte) error {
		if known || !bytes.Equal(value, raw) {
			return nil
		}
		here, err := in.q.store.Get(store.SeqKey(store.SpaceBody, store.KeySeq(key)))
		if errors.Is(err, ErrNotFound) {
			here, err = nil, nil
		}
		known = err == nil && bytes.Equal(here, body)
		return err
	})
	return known, err
}

// Store makes durable what was added, and names the messages that the source may
// forget and Confirm then puts in line.
func (in *Intake) Store(ctx context.Context) (ids []string, err error) {
	fresh, newer := in.fresh, in.newer
	ids = in.known
	defer func() { in.octets = 0 }()
	in.fresh, in.known, in.newer = nil, nil, nil
	if err := ctx.Err(); err != nil || len(fresh)+len(newer) == 0 {
		return ids, err
	}
	if err := in.q.Ready(int64(in.octets)); err != nil {
		return nil, err
	}
	err = in.q.do(&op{size: in.octets, fill: func(t *tx) error {
		for i := range fresh {
			if err := t.arrive(&fresh[i]); err != nil {
				return err
			}
		}
		return t.replaceAll(newer)
	}})
	if err != nil {
		return nil, err
	}
	in.q.mu.Lock()
	defer in.q.mu.Unlock()
	for _, a := range fresh {
		if a.rec != nil {
			in.q.coming[a.rec.Seq] = coming{a.id, in.origin}
			ids = append(ids, a.id)
		}
	}
	return ids, nil
}

// arrive gives a message of another store its number here.
func (t *tx) arrive(a *arrival) error {
	if a.rec != nil {
		t.totals.Reports++ // it was accepted elsewhere
		if a.rec.Env.Report {
			t.totals.Reports-- // insert counts it
		}
		return t.insert(a.rec, a.body)
	}
	seq := t.totals.Next
	t.totals.Next++
	t.totals.Reports++
	t.totals.Quarantined++
	t.put(store.SeqKey(store.SpaceQuarantine, seq), a.raw)
	if a.id != "" {
		t.put(store.IDKey(a.id), binary.BigEndian.AppendUint64(nil, seq))
	}
	if a.body != nil {
		t.put(store.SeqKey(store.SpaceBody, seq), a.body)
	}
	return nil
}

func (t *tx) replaceAll(all []replaced) error {
	for _, r := range all {
		if err := t.replace(r.was, r.is); err != nil {
			return err
		}
	}
	return nil
}

// Confirm puts messages in line that their origin has forgotten. mayHaveArrived
// says that nobody knows whether it had relayed them before.
func (q *Queue) Confirm(origin string, ids []string, mayHaveArrived bool) error {
	return q.settleComing(origin, ids, func(r *store.Record) *store.Record {
		is := r.Clone()
		is.Origin = ""
		is.Env.MayHaveArrived = is.Env.MayHaveArrived || mayHaveArrived
		return is
	})
}

// Forget drops the copies of messages that their origin has kept, or settled by
// itself.
func (q *Queue) Forget(origin string, ids []string) error {
	return q.settleComing(origin, ids, func(*store.Record) *store.Record { return nil })
}

// settleComing replaces records of that origin, in one batch. Others are left
// alone.
func (q *Queue) settleComing(origin string, ids []string, fn func(*store.Record) *store.Record) error {
	var changes []replaced
	o := &op{size: 512 * len(ids)}
	for _, id := range ids {
		r, err := q.find(id)
		if errors.Is(err, ErrNotFound) || err == nil && r.Origin != origin {
			continue
		}
		if err != nil {
			return fmt.Errorf("load %s: %w", id, err)
		}
		changes = append(changes, replaced{r, fn(r)})
	}
	o.fill = func(t *tx) error { return t.replaceAll(changes) }
	if len(changes) > 0 {
		if err := q.do(o); err != nil {
			return err
		}
	}
	q.mu.Lock()
	maps.DeleteFunc(q.coming, func(_ uint64, c coming) bool { return c.origin == origin && slices.Contains(ids, c.id) })
	q.mu.Unlock()
	for _, c := range changes {
		if c.is == nil && !c.was.Inline {
			q.removeBody(c.was.Env.ID)
		}
	}
	return nil
}
