package queue

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// Backoff of a deferred recipient.
const (
	backoffMin = time.Minute
	backoffMax = time.Hour
)

// backoff is the wait after the given number of attempts, varied by up to a
// fifth, so that recipients deferred together spread out.
func backoff(attempts int) time.Duration {
	d := backoffMin << min(max(attempts-1, 0), 6)
	d = min(d, backoffMax)
	return d - d/5 + rand.N(2*d/5)
}

// claim is one message on its way to one destination. Only its holder may change
// the message.
type claim struct {
	q       *Queue
	d       *dest
	e       entry
	rec     *store.Record
	to      []int // recipients of this attempt, as indexes into rec.rcpts
	lane    *lane
	taken   time.Time
	once    sync.Once
	damaged atomic.Pointer[error] // the body turned out to be damaged
	gone    bool                  // another queue has taken the message over; the committer's
}

// transfer is the claim as the relay sees it.
func (c *claim) transfer() *envelope.Transfer {
	c.taken = c.q.now()
	env := c.rec.Env
	env.To = make([]envelope.Recipient, len(c.to))
	for i, n := range c.to {
		env.To[i] = c.rec.Recipients[n].Recipient
	}
	return &envelope.Transfer{Envelope: &env, Size: c.rec.Size, Open: c.open, Held: c.q.held, Settle: c.settle}
}

// open reads the body and remembers when it is damaged: settle will put the
// message aside then. The end of it is an error when another may have taken the
// store over, and relay the message as well.
func (c *claim) open() (io.ReadCloser, error) {
	f, err := store.OpenBody(c.q.store, c.rec)
	if err != nil {
		c.noteDamage(err)
		return nil, err
	}
	return &notedReader{f, c}, nil
}

type notedReader struct {
	io.ReadCloser
	c *claim
}

func (r *notedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		if lost := r.c.q.held(); lost != nil {
			err = lost
		}
	case err != nil:
		r.c.noteDamage(err)
	}
	return n, err
}

func (c *claim) noteDamage(err error) {
	if errors.Is(err, store.ErrBody) {
		c.damaged.Store(&err)
	}
}

// settle is Transfer.Settle: it hands the outcome to the committer and returns.
func (c *claim) settle(replies []envelope.Reply, err error) {
	c.once.Do(func() { c.settleOnce(replies, err) })
}

// brokenSessions is how many sessions in a row a message may break before it
// counts as deferred: then the operator sees why, and it expires like others.
const brokenSessions = 5

// tally counts recipients by outcome.
type tally struct {
	relayed, deferred, held, expired, untried int

	contradicted int // of those held: listed by the policy, and unknown to the next hop
}

// listedRule begins the policy.Rule of a recipient whom a table lists.
const listedRule = "rcpt listed_recipient "

func (c *claim) settleOnce(replies []envelope.Reply, err error) {
	q := c.q
	if c.lane != nil {
		c.lane.settled(c)
	}
	is, n := c.outcome(replies, err)
	c.adjust(n)
	var o *op
	switch damaged := c.damaged.Load(); {
	case damaged != nil && n.relayed == 0:
		o = q.quarantineOp(c.rec, *damaged)
	case n.untried == len(c.to):
		q.release(c.e.seq)
		c.d.putBack(c.e, q.now())
		return
	default:
		o = &op{keep: true, size: 512 + 256*len(is.Recipients), fill: func(t *tx) error {
			left := is
			if len(is.Recipients) == 0 {
				left = nil
			}
			err := t.replace(c.rec, left)
			c.gone = t.gone
			return err
		}}
	}
	o.done = func(err error) { c.written(is, n, err) }
	q.submit(o)
}

// outcome applies the replies to a copy of the record. Recipients that are
// done leave it.
func (c *claim) outcome(replies []envelope.Reply, err error) (*store.Record, tally) {
	is, now := c.rec.Clone(), c.q.now()
	var n tally
	done := make(map[int]bool, len(c.to))
	for i, k := range c.to {
		var reply envelope.Reply
		if i < len(replies) {
			reply = replies[i]
		}
		switch {
		case reply.Zero() && err != nil && c.e.fails+1 < brokenSessions:
			n.untried++
		case reply.Positive():
			done[k] = true
			n.relayed++
		case reply.Permanent():
			r := &is.Recipients[k]
			r.State, r.Reason = store.Held, store.Refused
			c.tried(r, reply, now)
			n.held++
			if reply.UserUnknown() && strings.HasPrefix(r.Rule, listedRule) {
				n.contradicted++
			}
		default:
			switch {
			case reply.Zero() && err != nil:
				reply = envelope.NewReply(451, "4.4.2", "%d sessions in a row broke off under it, the last one so: %s", brokenSessions, err)
			case reply.Zero():
				reply = envelope.NewReply(451, "4.3.0", "no reply")
			}
			if c.q.put4xx(&is.Recipients[k], now) {
				n.expired++
			} else {
				n.deferred++
			}
			c.tried(&is.Recipients[k], reply, now)
		}
	}
	left := is.Recipients[:0]
	for k := range is.Recipients {
		if !done[k] {
			left = append(left, is.Recipients[k])
		}
	}
	is.Recipients = left
	return is, n
}

// tried notes an answered attempt.
func (c *claim) tried(r *store.Recipient, reply envelope.Reply, now time.Time) {
	r.Attempts++
	r.Last = now.UnixNano()
	r.Reply = envelope.Reply{Code: min(max(reply.Code, 0), 999), Enhanced: store.Cut(reply.Enhanced), Text: store.Cut(reply.Text)}
}

// put4xx defers a recipient, or holds it when it has been in line for too
// long by the wall clock and by the queue's own age.
func (q *Queue) put4xx(r *store.Recipient, now time.Time) (tooOld bool) {
	old := now.UnixNano()-r.Since >= int64(q.o.MaxAge) && q.aliveNow()-r.Alive >= int64(q.o.MaxAge)
	if old {
		r.State, r.Reason, r.Next = store.Held, store.Expired, 0
		return true
	}
	r.State = store.Deferred
	r.Next = now.Add(backoff(r.Attempts + 1)).UnixNano()
	return false
}

// adjust tells the pace how the next hop answered.
func (c *claim) adjust(n tally) {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case n.deferred+n.expired > 0:
		d.pace.bad(c.q.now())
	case n.untried == len(c.to): // the session's failure counts once, when it ends
	case c.rec.Inline && d.pace.took(c.q.now().Sub(c.taken)): // how long a large one takes is the link's affair
		d.pace.bad(c.q.now())
	default:
		d.pace.good(d.q.o.MaxConnections(d.name))
	}
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// written runs when the outcome is durable, or can't be made so.
func (c *claim) written(is *store.Record, n tally, err error) {
	q := c.q
	q.release(c.e.seq)
	c.countTwice(n, err)
	if err != nil {
		// Only at shutdown, or when the record could not be read: it stays as
		// it was, and may be relayed twice.
		q.log.Error("outcome not stored", "id", c.rec.Env.ID, "err", err)
		c.d.putBack(c.e, q.now())
		return
	}
	counter := q.m.RelayReplies
	if c.rec.Env.Report {
		counter = q.m.Reports
	}
	count := func(result string, n int) {
		if n > 0 {
			counter.WithLabelValues(result).Add(float64(n))
		}
	}
	count("relayed", n.relayed)
	count("deferred", n.deferred)
	count("held", n.held)
	count("expired", n.expired)
	if n.contradicted > 0 {
		q.m.Contradicted.WithLabelValues("relay", "listed").Add(float64(n.contradicted))
	}
	if n.relayed > 0 {
		q.m.RelayedBytes.Add(float64(c.rec.Size))
	}
	c.log(is, n)
	if n.held+n.expired > 0 {
		q.noteFailed(c.rec.Env.ID)
	}
	if len(is.Recipients) == 0 && !c.rec.Inline {
		q.litter <- c.rec.Env.ID
	}
	if n.untried > 0 && (n.relayed > 0 || c.damaged.Load() == nil) { // else it was put aside
		c.d.putBack(c.e, q.now())
	}
}

// countTwice counts a message that the next hop may have twice.
func (c *claim) countTwice(n tally, err error) {
	why := ""
	switch {
	case n.relayed == 0:
		return
	case err != nil:
		why = "unnoted"
	case c.gone:
		why = "moved"
		c.q.log.Warn("relayed a message that another secondary has taken over, and relays as well", "id", c.rec.Env.ID)
	case c.rec.Env.MayHaveArrived:
		why = "doubt"
		c.q.log.Warn("relayed a message that the primary may have had before", "id", c.rec.Env.ID)
	default:
		return
	}
	c.q.m.RelayedTwice.WithLabelValues(why).Inc()
	c.q.twice.Add(1)
}

func (c *claim) log(is *store.Record, n tally) {
	id := c.rec.Env.ID
	c.q.log.Info("relay attempt", "id", id, "dest", c.d.name, "relayed", n.relayed,
		"deferred", n.deferred, "held", n.held, "expired", n.expired, "untried", n.untried)
	if n.held == 0 {
		return
	}
	for i := range is.Recipients {
		r := &is.Recipients[i]
		if r.State == store.Held && r.Reason == store.Refused {
			what := "refused after we accepted it: held (parity incident)"
			if is.Env.Report {
				what = "DSN of ours refused: held"
			}
			c.q.log.Error(what, "id", id,
				"to", store.Cut(r.Path.String()), "reply", store.Cut(r.Reply.String()), "rule", store.Cut(r.Rule))
		}
	}
}
