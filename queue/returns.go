package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/understudy-mx/understudy/internal/dsn"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// NotReturned says why a message isn't returned to its sender.
type NotReturned string

func (e NotReturned) Error() string { return "not returned: " + string(e) }

const (
	// returnEvery is how often the drain looks for what could not be returned
	// before.
	returnEvery = time.Hour
	// returnsPerHour bounds the DSNs that one reverse-path gets by itself:
	// whoever has a signed message of somebody's can send it again and again.
	returnsPerHour = 20
	// maxReturnees bounds the reverse-paths that get one in an hour.
	maxReturnees = 100_000
)

// Return makes a DSN about the held recipients of a message, puts it in line and
// forgets them, in one batch. The sender gets none unless SPF or DKIM vouched
// for it. ErrNotFound, ErrBusy, NotReturned.
func (q *Queue) Return(id string) error {
	return q.giveBack(id, "operator", func(c *store.Recipient) bool { return c.State == store.Held })
}

// failed says that nobody but the sender can do anything about a recipient.
func failed(c *store.Recipient) bool {
	return c.State == store.Held && (c.Reason == store.Refused || c.Reason == store.Expired)
}

// unvouched is why a message's sender gets no DSN whatever happens; "" if it may.
func unvouched(r *store.Record) string {
	auth := &r.Env.Auth
	signatures := ""
	for _, s := range auth.DKIM {
		signatures += ", " + s.Result + " for " + store.Cut(s.Domain)
	}
	switch {
	case r.Env.Report:
		return "it is a report of our own"
	case !dsn.Answerable(r.Env.From):
		return "its sender takes no reports"
	case !auth.Checked:
		return `SPF and DKIM weren't checked when it came; that begins with return = "vouched" under [queue]`
	case auth.Vouched == "":
		return fmt.Sprintf("neither SPF (%s) nor DKIM (%d signatures%s) vouched for its sender; a forged one would get the report", auth.SPF, len(auth.DKIM), signatures)
	}
	return ""
}

// giveBack returns the recipients that pick chooses. by is the metric's label.
func (q *Queue) giveBack(id, by string, pick func(*store.Recipient) bool) error {
	was, release, err := q.claimed(id)
	if err != nil {
		return err
	}
	defer release()
	if why := unvouched(was); why != "" {
		return NotReturned(why)
	}
	is, gone := was.Clone(), []dsn.Recipient(nil)
	is.Recipients = is.Recipients[:0]
	chosen := 0
	for i := range was.Recipients {
		c := &was.Recipients[i]
		if pick(c) {
			chosen++
			if dsn.Wanted(c.Notify) {
				gone = append(gone, reported(c))
				continue
			}
		}
		is.Recipients = append(is.Recipients, *c)
	}
	switch {
	case chosen == 0:
		return NotReturned("none of its recipients is held")
	case len(gone) == 0:
		return NotReturned("its sender asked for no report of a failure (NOTIFY)")
	case len(is.Recipients) == 0:
		is = nil
	}
	report, err := q.report(was, is, gone)
	if err != nil {
		return err
	}
	if is == nil && !was.Inline {
		q.removeBody(id)
	}
	q.m.Returned.WithLabelValues(by).Add(float64(len(gone)))
	q.log.Info("returned to its sender", "id", id, "report", report, "from", store.Cut(was.Env.From.String()),
		"recipients", len(gone), "vouched", was.Env.Auth.Vouched, "by", by)
	return nil
}

func reported(c *store.Recipient) dsn.Recipient {
	r := dsn.Recipient{Recipient: c.Recipient, Reply: c.Reply, Expired: c.Reason == store.Expired}
	if c.Last != 0 {
		r.Last = time.Unix(0, c.Last)
	}
	return r
}

// report writes the DSN and makes it durable in the batch in which the message
// becomes is: a crash leaves the one or the other, never neither or both.
func (q *Queue) report(was, is *store.Record, gone []dsn.Recipient) (id string, err error) {
	env := &envelope.Envelope{Report: true,
		// Nobody is told when a DSN fails.
		To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: was.Env.From.Mailbox}, Notify: "NEVER"}}}
	d, err := q.Begin(env)
	if err != nil {
		return "", err
	}
	defer d.Abort()
	body, err := store.OpenBody(q.store, was)
	if err != nil {
		return "", err
	}
	defer body.Close()
	r := dsn.Report{Hostname: q.o.Hostname, ID: d.ID(), Now: env.Received, Envelope: &was.Env, Size: was.Size, Recipients: gone}
	env.UTF8 = r.UTF8()
	env.EightBit, err = r.WriteTo(d, body)
	if errors.Is(err, dsn.ErrAutomatic) {
		return "", NotReturned(err.Error())
	}
	if err != nil {
		return "", err
	}
	return d.ID(), d.commitFor(was, is)
}

// commitFor makes the draft durable in the batch in which was becomes is.
func (d *Draft) commitFor(was, is *store.Record) error {
	q, r := d.q, d.record()
	if d.file != nil {
		if err := d.closeFile(); err != nil {
			return err
		}
	}
	// Should the outcome stay unknown, the next start sees whether a record names
	// the body.
	d.stored = false
	return q.do(&op{keep: true, size: len(d.buf) + 1024 + 256*len(was.Recipients), fill: func(t *tx) error {
		if t.again {
			switch _, err := store.SeqOf(q.store, r.Env.ID); {
			case err == nil:
				return nil // the batch that failed is in the store
			case !errors.Is(err, ErrNotFound):
				return err
			}
		}
		if err := t.replace(was, is); err != nil {
			return err
		}
		return t.insert(r, d.buf)
	}})
}

// noteFailed has the returner look at a message.
func (q *Queue) noteFailed(id string) {
	if !q.o.Return {
		return
	}
	select {
	case q.failures <- id:
	default:
		q.overlooked.Store(true)
	}
}

// returner returns what failed: at once what fails while it runs, and now and
// then all that is held, as after a crash.
type returner struct {
	q     *Queue
	given map[string]int // DSNs in this hour, by reverse-path
}

func (r *returner) run(ctx context.Context) {
	r.given = map[string]int{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-r.q.failures:
			r.give(id)
		case <-timer.C:
			r.given = map[string]int{}
			r.all(ctx)
			timer.Reset(returnEvery)
		}
		if len(r.q.failures) == 0 && r.q.overlooked.Swap(false) {
			r.all(ctx)
		}
	}
}

// all looks at every message that is held.
func (r *returner) all(ctx context.Context) {
	if r.q.Stats().Held == 0 {
		return
	}
	err := store.Scan(r.q.store, []byte{store.SpaceRecord}, func(_, value []byte) error {
		rec, err := store.DecodeRecord(value)
		if err != nil || unvouched(rec) != "" {
			return ctx.Err()
		}
		for i := range rec.Recipients {
			if c := &rec.Recipients[i]; failed(c) && dsn.Wanted(c.Notify) {
				r.give(rec.Env.ID)
				break
			}
		}
		return ctx.Err()
	})
	if err != nil && ctx.Err() == nil {
		r.q.readFailed(err)
	}
}

// give returns one message; what can't be returned stays held.
func (r *returner) give(id string) {
	rec, err := r.q.find(id)
	if err != nil || unvouched(rec) != "" {
		return
	}
	from := rec.Env.From.String()
	switch n := r.given[from]; {
	case n == returnsPerHour:
		r.given[from]++ // said once
		r.q.log.Warn("not returned for now, held: its sender got enough reports in this hour", "id", id, "from", store.Cut(from))
		return
	case n > returnsPerHour || n == 0 && len(r.given) >= maxReturnees:
		return
	}
	err = r.q.giveBack(id, "queue", failed)
	var no NotReturned
	switch {
	case err == nil:
		r.given[from]++
	case errors.As(err, &no):
		r.q.log.Info("held", "id", id, "why", no.Error())
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBusy): // the holder of the claim may have released it
		r.q.log.Error("held, not returned for now", "id", id, "err", err)
	}
}
