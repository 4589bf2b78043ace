package smtpd

import (
	"container/list"
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// When somebody who was put off is taken: the primary may be up from here and
// out of reach from there.
const (
	putOffTries = 3                // … after so many
	putOffApart = 4 * time.Minute  // of which each counts that comes so long after the one before
	putOffSince = 30 * time.Minute // and so long after the first
	putOffFor   = 24 * time.Hour   // one that doesn't come back is forgotten
	putOffSize  = 50_000           // and when there are more, of either kind

	// Whoever comes so soon after an outage has met it: a sender tries the primary
	// first, and waits there for up to five minutes (RFC 5321 §4.5.3.2).
	putOffBack = 5 * time.Minute
)

// PutOff sends clients to the primary while that is up, as it answers 451 to
// recipients that the snapshot lets in. Whoever comes back again and again is
// taken: a client's network, or whoever has this sender and this recipient.
// So is whoever can't have reached the primary, which was away a moment ago.
type PutOff struct {
	// Up says that the primary for domain is up, and wants to see all senders.
	Up func(domain string) bool
	// Back says when that primary came back from its last outage, zero if none was
	// seen. May be nil.
	Back func(domain string) time.Time
	// Recipients counts, by result: "deferred", "taken". May be nil.
	Recipients *prometheus.CounterVec

	once     sync.Once
	seed     maphash.Seed
	networks tries
	pairs    tries
}

// Around is a Server's Decide, or part of it.
func (p *PutOff) Around(snapshot Decider) Decider {
	p.once.Do(func() { p.seed = maphash.MakeSeed() })
	return putOff{snapshot, p}
}

type putOff struct {
	Decider
	*PutOff
}

func (p putOff) Decide(ctx context.Context, c *Command) Decision {
	d := p.Decider.Decide(ctx, c)
	if c.At != policy.Rcpt || refused(d.Verdict) || !p.Up(c.To.Path.Domain) {
		return d
	}
	now := time.Now()
	client := maphash.Comparable(p.seed, network(c.Client(ctx).Addr))
	pair := maphash.Comparable(p.seed, [2]envelope.Mailbox{c.Env.From.Mailbox, c.To.Path.Mailbox})
	known, result := p.networks.try(client, now), "taken"
	if again := p.pairs.try(pair, now); !known && !again && !p.wasAway(c.To.Path.Domain, now) {
		result = "deferred"
		d.Action, d.Rule = policy.Defer, policy.Rule{Stage: policy.Rcpt, Kind: "primary_is_up"}
		d.Reply = envelope.NewReply(451, "4.7.1", "<%s>: Recipient address rejected: the primary is up, use the MX record of the lowest preference", c.To.Path)
		d.Ask, d.Overruled, d.Ours = policy.Rule{}, true, true
	}
	if p.Recipients != nil {
		p.Recipients.WithLabelValues(result).Inc()
	}
	return d
}

// wasAway says that the primary was out of reach when who comes now tried it.
func (p *PutOff) wasAway(domain string, now time.Time) bool {
	return p.Back != nil && now.Sub(p.Back(domain)) < putOffBack
}

// tries remembers who came when, by a hash. Those that came once make way for
// others that came once, and never push out who came back.
type tries struct {
	mu    sync.Mutex // guards the rest
	known map[uint64]*list.Element
	once  list.List // of *visit, the last to come in front
	back  list.List
}

type visit struct {
	who         uint64
	first, last time.Time
	n           int
}

// try notes that who came, and says whether that was often enough.
func (t *tries) try(who uint64, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = make(map[uint64]*list.Element)
	}
	for _, l := range []*list.List{&t.once, &t.back} {
		for e := l.Back(); e != nil && (now.Sub(e.Value.(*visit).last) > putOffFor || l.Len() > putOffSize); e = l.Back() {
			delete(t.known, l.Remove(e).(*visit).who)
		}
	}
	e := t.known[who]
	if e == nil {
		t.known[who] = t.once.PushFront(&visit{who, now, now, 1})
		return false
	}
	v := e.Value.(*visit)
	if now.Sub(v.last) >= putOffApart {
		if v.n++; v.n == 2 {
			t.once.Remove(e)
			t.known[who] = t.back.PushFront(v)
		} else {
			t.back.MoveToFront(e)
		}
		v.last = now
	}
	return v.n >= putOffTries && now.Sub(v.first) >= putOffSince
}
