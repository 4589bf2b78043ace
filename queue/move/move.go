// Package move carries messages from one store into a queue: from a directory into
// a database and back, from a spool that was kept while the database was away, and
// from the spool of a machine that is dead.
//
// The two stores share no batch, so a message is in both of them for a moment. Three
// durable steps make sure that only one ever relays it:
//
//  1. the queue stores the message, with its origin's identity   (not in line)
//  2. the origin deletes it, and notes under its ID where it went
//  3. the queue takes the origin's identity away                 (in line)
//
// After a crash between two of them Run looks at the messages here that name the
// origin:
//
//	the origin has the message          step 2 comes next
//	it notes that the message came here step 3 comes next
//	neither: its own daemon settled it  the copy here is dropped
//
// The third case is an origin that was in service again before the move went on. The
// notes are deleted in the following step 2. Messages keep their IDs, their time,
// the state of each recipient and their order; what is quarantined stays so.
package move

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/store"
)

// Move is one move. The origin is the caller's, open, and in no other use.
type Move struct {
	From  store.Store
	To    *queue.Queue
	Route func(domain string) (dest string) // of the origin's lines, see queue.Options
	// Gently leaves the queue half of the time.
	Gently bool
	Moved  func(messages int) // is told of progress; may be nil
	// Ask asks a third store about a message of the origin that came from there; nil
	// where nobody can be asked, and Still is the answer.
	Ask func(store, to, id string) (Whereabouts, error)
}

// Whereabouts is what a store knows of a message that another one names it as the
// origin of.
type Whereabouts int

const (
	Still   Whereabouts = iota // it has the message
	Came                       // it notes that the message went to that other store
	Settled                    // neither: it relayed the message, or whatever its daemon did
	Gone                       // there is no such store any more
)

// Whereis asks a store about a message that came from there to the store of identity to.
func Whereis(s store.Store, to, id string) (Whereabouts, error) {
	there, err := store.Has(s, store.IDKey(id))
	if there || err != nil { // a note, if any, is of an earlier move
		return Still, err
	}
	switch where, err := s.Get(store.MovedKey(id)); {
	case err == nil && string(where) == to:
		return Came, nil
	case err == nil, errors.Is(err, store.ErrNotFound):
		return Settled, nil
	default:
		return Still, err
	}
}

// Result counts.
type Result struct {
	Messages    int `json:"messages"`    // moved
	Quarantined int `json:"quarantined"` // moved, or found to be damaged
	Dropped     int `json:"dropped"`     // copies here that the origin had settled meanwhile
	// Both stay at the origin.
	SameID int `json:"same_id"` // the queue has another message of the ID
	Coming int `json:"coming"`  // a third store, from which they came, may still have them
}

// Left counts the messages that stay at the origin.
func (r Result) Left() int { return r.SameID + r.Coming }

// Why says in words why messages stay, "" when none does.
func (r Result) Why() string {
	var why []string
	if r.SameID > 0 {
		why = append(why, fmt.Sprintf("%d because the target has another of the same ID", r.SameID))
	}
	if r.Coming > 0 {
		why = append(why, fmt.Sprintf("%d because another store, from which they were being moved, may still have them", r.Coming))
	}
	return strings.Join(why, ", ")
}

// Run moves all that there is. It may be stopped at any moment and run again. After
// an error of the origin's Apply it must be reopened first.
func (m Move) Run(ctx context.Context) (Result, error) {
	r := &run{Move: m, ctx: ctx}
	for _, step := range []func() error{r.begin, r.goOn, r.messages, r.quarantine, r.tidy} {
		if err := step(); err != nil {
			return r.Result, err
		}
	}
	return r.Result, nil
}

type run struct {
	Move
	Result
	ctx          context.Context
	origin, here string // identities
	totals       store.Totals
	in           *queue.Intake
	moving       map[string]*store.Record // by ID, those of the next batch
	notes        []string                 // IDs whose notes are of no use any more
}

func (r *run) begin() (err error) {
	if r.totals, err = store.LoadTotals(r.From); err != nil {
		return fmt.Errorf("origin: %w; `understudy queue verify` tells more", err)
	}
	if r.origin, err = store.Identity(r.From); err != nil {
		return err
	}
	if r.here, err = r.To.Identity(); err != nil {
		return err
	}
	if r.origin == r.here {
		return errors.New("origin and target are the same store")
	}
	r.in = r.To.Intake(r.origin, r.totals.Alive)
	r.moving = map[string]*store.Record{}
	return nil
}

// goOn settles what an earlier attempt left between two steps.
func (r *run) goOn() error {
	var came, dropped []string
	for _, id := range r.To.Coming(r.origin) {
		switch where, err := Whereis(r.From, r.here, id); {
		case err != nil:
			return err
		case where == Came:
			came = append(came, id)
		case where == Settled:
			dropped = append(dropped, id)
		}
	}
	if err := r.To.Confirm(r.origin, came, false); err != nil {
		return err
	}
	r.count(came)
	if r.Dropped = len(dropped); r.Dropped > 0 {
		if err := r.To.Forget(r.origin, dropped); err != nil {
			return err
		}
	}
	return store.Scan(r.From, []byte{store.SpaceMoved}, func(key, where []byte) error {
		if string(where) == r.here { // confirmed, now or before
			r.notes = append(r.notes, string(key[1:]))
		}
		return nil
	})
}

// apply writes a batch at the origin, with its counts.
func (r *run) apply(b store.Batch) error {
	b.Put([]byte{store.SpaceTotals}, r.totals.Encode())
	return r.From.Apply(b)
}

func (r *run) messages() error {
	err := store.Scan(r.From, []byte{store.SpaceRecord}, func(key, value []byte) error {
		rec, err := store.DecodeRecordOf(store.KeySeq(key), value)
		if err == nil && rec.Origin != "" {
			var ours bool
			if ours, err = r.disown(rec); err != nil || !ours {
				return err
			}
		}
		if err == nil {
			err = r.in.Add(rec, func() (io.ReadCloser, error) { return store.OpenBody(r.From, rec) })
		}
		switch {
		case errors.Is(err, queue.ErrOtherMessage):
			r.SameID++
			return nil
		case errors.Is(err, store.ErrRecord), errors.Is(err, store.ErrBody):
			return r.setAside(store.KeySeq(key), value, rec)
		case err != nil:
			return fmt.Errorf("message number %d: %w", store.KeySeq(key), err)
		}
		r.moving[rec.Env.ID] = rec
		if !r.in.Full() {
			return nil
		}
		return r.flush()
	})
	if err != nil {
		return err
	}
	return r.flush()
}

// disown looks at a message that the origin itself was being given. Its giver knows
// whose it is; where that can't be asked it is left.
func (r *run) disown(rec *store.Record) (ours bool, err error) {
	where := Still
	switch {
	case rec.Origin == r.here:
		where, err = r.whereHere(rec.Env.ID)
	case r.Ask != nil:
		where, err = r.Ask(rec.Origin, r.origin, rec.Env.ID)
	}
	switch {
	case err != nil:
		return false, err
	case where == Came, where == Gone:
		rec.Env.MayHaveArrived = rec.Env.MayHaveArrived || where == Gone
		rec.Origin = ""
		return true, nil
	case where == Still && rec.Origin != r.here:
		r.Coming++
		return false, nil
	}
	r.Dropped++ // the giver has it, or settled it
	r.totals.Add(rec, -1)
	var b store.Batch
	forget(&b, rec, r.Route)
	if err := r.apply(b); err != nil || rec.Inline {
		return false, err
	}
	return false, r.From.Remove(rec.Env.ID)
}

// whereHere is Whereis for the queue.
func (r *run) whereHere(id string) (Whereabouts, error) {
	here, movedTo, err := r.To.Knows(id)
	switch {
	case err != nil || here:
		return Still, err
	case movedTo == r.origin:
		return Came, nil
	}
	return Settled, nil
}

// setAside quarantines a message at the origin that can't be read, as an audit does.
func (r *run) setAside(seq uint64, value []byte, rec *store.Record) error {
	var b store.Batch
	if r.totals.Quarantined++; rec == nil {
		r.totals.Messages--
	} else {
		if err := r.To.Forget(r.origin, []string{rec.Env.ID}); err != nil {
			return err
		}
		r.totals.Add(rec, -1)
		for _, e := range rec.Index(r.Route) {
			b.Delete(e.Key)
		}
	}
	b.Put(store.SeqKey(store.SpaceQuarantine, seq), append([]byte(nil), value...))
	b.Delete(store.SeqKey(store.SpaceRecord, seq))
	return r.apply(b)
}

// forget takes a message's keys away.
func forget(b *store.Batch, rec *store.Record, route func(string) string) {
	b.Delete(store.IDKey(rec.Env.ID))
	b.Delete(store.SeqKey(store.SpaceRecord, rec.Seq))
	if rec.Inline {
		b.Delete(store.SeqKey(store.SpaceBody, rec.Seq))
	}
	for _, e := range rec.Index(route) {
		b.Delete(e.Key)
	}
}

// flush moves what was added.
func (r *run) flush() error {
	began := time.Now()
	ids, err := r.in.Store(r.ctx)
	if err != nil {
		return err
	}
	if err := r.forget(ids); err != nil {
		return err
	}
	if err := r.To.Confirm(r.origin, ids, false); err != nil {
		return err
	}
	r.count(ids)
	r.notes = ids
	clear(r.moving)
	if !r.Gently || len(ids) == 0 {
		return r.ctx.Err()
	}
	select {
	case <-time.After(time.Since(began)):
	case <-r.ctx.Done():
	}
	return r.ctx.Err()
}

func (r *run) count(ids []string) {
	r.Messages += len(ids)
	if r.Moved != nil {
		r.Moved(len(ids))
	}
}

// forget deletes messages at the origin, and notes where they went; of the messages
// before them the notes go.
func (r *run) forget(ids []string) error {
	if len(ids)+len(r.notes) == 0 {
		return nil
	}
	var b store.Batch
	for _, id := range r.notes {
		b.Delete(store.MovedKey(id))
	}
	var files []string
	for _, id := range ids {
		rec := r.moving[id]
		b.Put(store.MovedKey(id), []byte(r.here))
		forget(&b, rec, r.Route)
		if !rec.Inline {
			files = append(files, id)
		}
		r.totals.Add(rec, -1)
	}
	if err := r.apply(b); err != nil {
		return err
	}
	r.notes = nil
	for _, id := range files {
		if err := r.From.Remove(id); err != nil {
			return err
		}
	}
	return nil
}

// quarantine moves what was put aside, damaged as it is. Nothing relays it, so it
// needs no middle step.
func (r *run) quarantine() error {
	ids := map[uint64]string{} // of those whose record may not tell
	err := store.Scan(r.From, []byte{store.SpaceID}, func(key, value []byte) error {
		if len(value) != 8 {
			return nil
		}
		seq := binary.BigEndian.Uint64(value)
		aside, err := store.Has(r.From, store.SeqKey(store.SpaceQuarantine, seq))
		if aside {
			ids[seq] = string(key[1:])
		}
		return err
	})
	if err != nil {
		return err
	}
	reader := queue.NewReader(r.From, r.Route)
	return store.Scan(r.From, []byte{store.SpaceQuarantine}, func(key, value []byte) error {
		seq, raw := store.KeySeq(key), append([]byte(nil), value...)
		id := ids[seq]
		inline, err := store.Has(r.From, store.SeqKey(store.SpaceBody, seq))
		if err != nil {
			return err
		}
		open := func() (io.ReadCloser, error) { return reader.QuarantineBody(seq) }
		if body, err := open(); errors.Is(err, queue.ErrNotFound) || id == "" && !inline {
			open = nil
		} else if err != nil {
			return err
		} else {
			body.Close()
		}
		err = r.in.AddQuarantined(id, raw, inline, open)
		if errors.Is(err, queue.ErrOtherMessage) {
			r.SameID++
			return nil
		}
		if err == nil {
			_, err = r.in.Store(r.ctx)
		}
		if err != nil {
			return fmt.Errorf("quarantined number %d: %w", seq, err)
		}
		return r.forgetAside(id, seq)
	})
}

func (r *run) forgetAside(id string, seq uint64) error {
	var b store.Batch
	b.Delete(store.SeqKey(store.SpaceQuarantine, seq))
	b.Delete(store.SeqKey(store.SpaceBody, seq))
	if id != "" {
		b.Delete(store.IDKey(id))
	}
	r.totals.Quarantined--
	if err := r.apply(b); err != nil {
		return err
	}
	r.Quarantined++
	if id == "" {
		return nil
	}
	return r.From.Remove(id)
}

// tidy leaves an origin as a new one: without notes, and without bodies and index
// keys that belong to nothing.
func (r *run) tidy() error {
	if err := r.forget(nil); err != nil {
		return err
	}
	if r.totals.Messages > 0 || r.Left() > 0 {
		return nil
	}
	for _, space := range []byte{store.SpaceLine, store.SpaceDeferred} {
		var b store.Batch
		err := store.Scan(r.From, []byte{space}, func(key, _ []byte) error {
			b.Delete(append([]byte(nil), key...))
			if len(b) < 1000 {
				return nil
			}
			err := r.From.Apply(b)
			b.Reset()
			return err
		})
		if err == nil && len(b) > 0 {
			err = r.From.Apply(b)
		}
		if err != nil {
			return err
		}
	}
	return r.From.Bodies(func(id string) error {
		if known, err := store.Has(r.From, store.IDKey(id)); known || err != nil {
			return err
		}
		return r.From.Remove(id)
	})
}
