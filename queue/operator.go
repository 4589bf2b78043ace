package queue

import (
	"errors"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// Hold keeps a message from being relayed until Release. ErrNotFound, ErrBusy.
func (q *Queue) Hold(id string) error {
	return q.change(id, func(r *store.Record) bool {
		changed := false
		for i := range r.Recipients {
			if c := &r.Recipients[i]; c.State != store.Held {
				c.State, c.Reason, c.Next = store.Held, store.ByOperator, 0
				changed = true
			}
		}
		return changed
	})
}

// Release puts a message's held recipients back in line, at its old place; its
// age counts from now. ErrNotFound, ErrBusy.
func (q *Queue) Release(id string) error {
	now, alive := q.now().UnixNano(), q.aliveNow()
	return q.change(id, func(r *store.Record) bool {
		changed := false
		for i := range r.Recipients {
			if c := &r.Recipients[i]; c.State == store.Held {
				c.State, c.Reason, c.Next = store.Queued, store.NotHeld, 0
				c.Since, c.Alive = now, alive
				changed = true
			}
		}
		return changed
	})
}

// Remove forgets a message for good. One that is being relayed is left alone:
// ErrBusy. ErrNotFound.
func (q *Queue) Remove(id string) error {
	return q.change(id, func(r *store.Record) bool {
		r.Recipients = nil
		return true
	})
}

// claimed claims a message and reads it. release ends the claim.
func (q *Queue) claimed(id string) (was *store.Record, release func(), err error) {
	seq, err := store.SeqOf(q.store, id)
	if err != nil {
		return nil, nil, err
	}
	if err := q.claim(seq); err != nil {
		return nil, nil, err
	}
	if was, err = q.find(id); err != nil {
		q.release(seq)
		return nil, nil, err
	}
	if was.Origin != "" {
		q.release(seq)
		return nil, nil, ErrComing
	}
	return was, func() { q.release(seq) }, nil
}

// change claims a message, lets fn change its copy and writes it. A message
// without recipients is removed.
func (q *Queue) change(id string, fn func(*store.Record) bool) error {
	was, release, err := q.claimed(id)
	if err != nil {
		return err
	}
	defer release()
	is := was.Clone()
	if !fn(is) {
		return nil
	}
	if len(is.Recipients) == 0 {
		is = nil
	}
	err = q.do(&op{size: 1024, fill: func(t *tx) error { return t.replace(was, is) }})
	var reply *envelope.ReplyError
	if errors.As(err, &reply) {
		return errors.New("queue store can't be written; the change may or may not have been made")
	}
	if err == nil && is == nil && !was.Inline {
		q.removeBody(id)
	}
	return err
}
