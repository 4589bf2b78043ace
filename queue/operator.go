package queue

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Info is a message as the operator sees it.
type Info struct {
	ID         string          `json:"id"`
	Seq        uint64          `json:"seq"` // place in the line
	Accepted   time.Time       `json:"accepted"`
	Size       int64           `json:"size"` // octets of content
	From       string          `json:"from"` // "" for the null reverse-path
	Client     envelope.Client `json:"client"`
	Recipients []RecipientInfo `json:"recipients"` // not the ones that are done
}

// RecipientInfo is one of its recipients.
type RecipientInfo struct {
	Address     string    `json:"address"`
	Destination string    `json:"destination"`
	State       string    `json:"state"`             // queued, deferred, held
	Reason      string    `json:"reason,omitempty"`  // of a held one: refused, expired, operator, policy
	HeldBy      string    `json:"held_by,omitempty"` // the policy rule that holds it
	Attempts    int       `json:"attempts"`          // answered ones
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Reply       string    `json:"reply,omitempty"` // the last one
	Rule        string    `json:"rule,omitempty"`  // the policy rule that let it in
}

func (q *Queue) info(r *record) Info {
	i := Info{ID: r.env.ID, Seq: r.seq, Accepted: r.env.Received, Size: r.size,
		From: r.env.From.String(), Client: r.env.Client}
	for k := range r.rcpts {
		c := &r.rcpts[k]
		ri := RecipientInfo{Address: c.Path.String(), Destination: q.o.Route(c.Path.Domain),
			State: c.state.String(), Reason: c.reason.String(), Attempts: c.attempts, Rule: c.Rule}
		if c.state == deferred {
			ri.NextAttempt = time.Unix(0, c.next)
		}
		if !c.reply.Zero() {
			ri.Reply = c.reply.String()
		} else if c.reason == byPolicy {
			ri.HeldBy = c.reply.Text
		}
		i.Recipients = append(i.Recipients, ri)
	}
	return i
}

// Walk calls fn for every message, oldest first, until it fails or ctx ends.
// It holds up nobody, and fn may take its time; messages that come or go
// meanwhile may or may not be seen. A damaged record is left out.
func (q *Queue) Walk(ctx context.Context, fn func(Info) error) error {
	return q.store.scan([]byte{spaceRecord}, func(_, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := decodeRecord(value)
		if err != nil {
			return nil
		}
		return fn(q.info(rec))
	})
}

// find loads a message by its ID.
func (q *Queue) find(id string) (*record, error) {
	seq, err := q.store.seqOf(id)
	if err != nil {
		return nil, err
	}
	r, err := q.store.load(seq)
	if err == nil && (r == nil || r.env.ID != id) {
		err = ErrNotFound
	}
	return r, err
}

// Get shows one message, or fails with ErrNotFound.
func (q *Queue) Get(id string) (Info, error) {
	r, err := q.find(id)
	if err != nil {
		return Info{}, err
	}
	return q.info(r), nil
}

// Body reads a message's content. The last Read fails when the content is not
// what was accepted.
func (q *Queue) Body(id string) (io.ReadCloser, error) {
	r, err := q.find(id)
	if err != nil {
		return nil, err
	}
	return q.openBody(r)
}

// Hold keeps a message from being relayed until Release. ErrNotFound, ErrBusy.
func (q *Queue) Hold(id string) error {
	return q.change(id, func(r *record) bool {
		changed := false
		for i := range r.rcpts {
			if c := &r.rcpts[i]; c.state != held {
				c.state, c.reason, c.next = held, byOperator, 0
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
	return q.change(id, func(r *record) bool {
		changed := false
		for i := range r.rcpts {
			if c := &r.rcpts[i]; c.state == held {
				c.state, c.reason, c.next = queued, unheld, 0
				c.since, c.alive = now, alive
				changed = true
			}
		}
		return changed
	})
}

// Remove forgets a message for good. One that is being relayed is left alone:
// ErrBusy. ErrNotFound.
func (q *Queue) Remove(id string) error {
	return q.change(id, func(r *record) bool {
		r.rcpts = nil
		return true
	})
}

// change claims a message, lets fn change its copy and writes it. A message
// without recipients is removed.
func (q *Queue) change(id string, fn func(*record) bool) error {
	seq, err := q.store.seqOf(id)
	if err != nil {
		return err
	}
	if err := q.claim(seq); err != nil {
		return err
	}
	defer q.release(seq)
	was, err := q.find(id)
	if err != nil {
		return err
	}
	is := was.clone()
	if !fn(is) {
		return nil
	}
	if len(is.rcpts) == 0 {
		is = nil
	}
	err = q.do(&op{size: 1024, fill: func(t *tx) error { return t.replace(was, is) }})
	var reply *envelope.ReplyError
	if errors.As(err, &reply) {
		return errors.New("queue store can't be written; the change may or may not have been made")
	}
	if err == nil && is == nil && !was.inline {
		q.removeBody(q.bodyFile(id))
	}
	return err
}
