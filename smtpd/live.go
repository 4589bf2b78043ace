package smtpd

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// Player plays one client's session to the primary, in SMTP's order. A Reply is
// the primary's own; an error says that it is lost for the rest of the mail
// transaction, and is a MayHaveArrived if it may have the message.
type Player interface {
	// Mail opens a transaction. A zero Reply says that the primary will answer
	// with the first recipient.
	Mail(ctx context.Context, env *envelope.Envelope, size int64) (envelope.Reply, error)
	Rcpt(ctx context.Context, to *envelope.Recipient) (envelope.Reply, error)
	// Data's 354 says that the primary takes what is written from now on.
	Data(ctx context.Context) (envelope.Reply, error)
	io.Writer
	// End says that the message is complete and good.
	End(ctx context.Context) (envelope.Reply, error)
	// Reset ends the transaction. A message that End didn't end must not arrive.
	Reset()
	Close()
}

// MayHaveArrived is an error that says whether the primary may have the message.
type MayHaveArrived interface {
	error
	MayHaveArrived() bool
}

// Extensions are the service extensions that a primary offers, of those that a
// message depends on.
type Extensions struct {
	EightBit, UTF8, DSN bool
	Size                int64 // the largest message, 0 where none is named
}

// Live has the primary decide while it is up: PlayThrough is a Server's Decide.
type Live struct {
	// Play begins to play the session of a client whose connection comes from
	// peer. It connects to nobody yet.
	Play func(c *Command) Player
	// Offers are what the primary offered last; false while sessions aren't
	// played through.
	Offers func() (Extensions, bool)
	// Compare, if not nil, is told the snapshot's verdict on a command and the
	// primary's reply: 354 where it takes the message.
	Compare func(c *Command, snapshot policy.Verdict, primary envelope.Reply)
}

// PlayThrough returns the Decider for a client: the primary's word where there is
// one, and the snapshot's where there is none. docs/LIVE.md has every ending.
func (l *Live) PlayThrough(snapshot Decider) Decider {
	return &live{Live: l, snapshot: snapshot}
}

// live is one client's.
type live struct {
	*Live
	snapshot Decider
	player   Player   // nil before the first MAIL
	playing  bool     // the primary has the transaction so far
	refused  Decision // the snapshot's of MAIL, which the primary took all the same
}

// primaryRule is the rule of a verdict that the primary gave.
func primaryRule(at policy.Stage) policy.Rule { return policy.Rule{Stage: at, Kind: "primary"} }

func (l *live) Decide(ctx context.Context, c *Command) Decision {
	if c.At == policy.EndOfData && l.playing {
		return l.end(ctx, c)
	}
	d := l.snapshot.Decide(ctx, c)
	switch c.At {
	case policy.Connect:
		_, d.Live = l.Offers()
	case policy.Helo:
		_, d.Live = l.Offers()
		if offered, is := l.Offers(); is && c.Keywords != nil {
			d.Keywords = offered.cut(c.Keywords)
		}
	case policy.Mail:
		return l.mail(ctx, c, d)
	case policy.Rcpt:
		if l.playing {
			if reply, err := l.player.Rcpt(ctx, c.To); err == nil {
				return l.said(c, reply, d)
			}
			l.playing = false
		}
		if refused(l.refused.Verdict) && !refused(d.Verdict) {
			d = l.refused
			d.Overruled = true
		}
	case policy.Data:
		if !l.playing {
			break
		}
		reply, err := l.player.Data(ctx)
		switch {
		case err != nil:
			l.playing = false
		case reply.Code == 354:
			l.compare(c, d.Verdict, reply)
			return Decision{Verdict: policy.Verdict{Rule: primaryRule(c.At)}, Copy: l.player, Live: true}
		default:
			return l.said(c, reply, d)
		}
	}
	return d
}

// mail has the primary judge the reverse-path, in the client's name. The
// snapshot's postscreen goes before that: the primary's lets us pass.
func (l *live) mail(ctx context.Context, c *Command, d Decision) Decision {
	l.refused = Decision{}
	if c.Screened {
		return d
	}
	if l.player == nil {
		l.player = l.Play(c)
	}
	c.Env.Client = c.Client(ctx)
	reply, err := l.player.Mail(ctx, c.Env, c.Size)
	if err != nil {
		return d
	}
	l.playing = true
	if refused(d.Verdict) {
		l.refused = d
	}
	if reply.Zero() {
		return Decision{Live: true}
	}
	return l.said(c, reply, d)
}

// end has the primary judge the whole message. Without a reply of its own the
// message is kept, whatever the snapshot says, where the primary may have it:
// the sender must not be told that it hasn't arrived (RFC 1047).
func (l *live) end(ctx context.Context, c *Command) Decision {
	reply, err := l.player.End(ctx)
	unfiltered := *c
	unfiltered.Message.Ask = nil // the primary has decided, and its filters with it
	var may MayHaveArrived
	switch {
	case err == nil:
		d := l.said(c, reply, l.snapshot.Decide(ctx, &unfiltered))
		d.Elsewhere = !refused(d.Verdict)
		return d
	case errors.As(err, &may) && may.MayHaveArrived():
		l.snapshot.Decide(ctx, &unfiltered)
		c.Env.MayHaveArrived = true
		return Decision{Verdict: policy.Verdict{Rule: primaryRule(c.At)}, Live: true}
	}
	return l.snapshot.Decide(ctx, c)
}

// said is the primary's word, where the snapshot's would have been d.
func (l *live) said(c *Command, reply envelope.Reply, d Decision) Decision {
	v := policy.Verdict{Reply: reply, Rule: primaryRule(c.At), Unsure: d.Unsure} // the publisher may still learn of it
	switch {
	case reply.Temporary():
		v.Action = policy.Defer
	case !reply.Positive():
		v.Action = policy.Reject
	}
	l.compare(c, d.Verdict, reply)
	return Decision{Verdict: v, Live: true, Overruled: c.At == policy.Rcpt && refused(v) && (!refused(d.Verdict) || d.Overruled)}
}

// compare tells both words on a command, unless the snapshot has none: it refused
// the reverse-path.
func (l *live) compare(c *Command, snapshot policy.Verdict, primary envelope.Reply) {
	if l.Compare != nil && (c.At == policy.Mail || !refused(l.refused.Verdict)) {
		l.Compare(c, snapshot, primary)
	}
}

func (l *live) Reset() {
	l.snapshot.Reset()
	l.playing, l.refused = false, Decision{}
	if l.player != nil {
		l.player.Reset()
	}
}

func (l *live) Close() {
	l.snapshot.Close()
	if l.player != nil {
		l.player.Close()
	}
}

// cut takes from EHLO's keywords what the primary doesn't offer.
func (o Extensions) cut(keywords []string) []string {
	var left []string
	for _, k := range keywords {
		name, param, _ := strings.Cut(k, " ")
		if name == "8BITMIME" && !o.EightBit || name == "SMTPUTF8" && !o.UTF8 || name == "DSN" && !o.DSN {
			continue
		}
		if own, _ := strconv.ParseInt(param, 10, 64); name == "SIZE" && o.Size > 0 && (own == 0 || o.Size < own) {
			k = "SIZE " + strconv.FormatInt(o.Size, 10)
		}
		left = append(left, k)
	}
	return left
}
