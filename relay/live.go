package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Ending is how a live session lost its next hop. Until the dot is out, the next
// hop has nothing; after it, nobody but the next hop knows.
type Ending string

const (
	NotBegun    Ending = "not_begun"    // it wasn't asked
	BeforeReply Ending = "before_reply" // to MAIL, RCPT or DATA
	InMessage   Ending = "in_message"   // before the dot
	AfterDot    Ending = "after_dot"    // no reply to the dot, or none that makes sense
	Late        Ending = "late"         // no reply to the dot in time
)

// LostError says that the next hop decides no more in this mail transaction.
type LostError struct {
	Ending Ending
	Err    error
}

func (e *LostError) Error() string { return fmt.Sprintf("live (%s): %v", e.Ending, e.Err) }
func (e *LostError) Unwrap() error { return e.Err }

// MayHaveArrived says that the next hop may have the whole message.
func (e *LostError) MayHaveArrived() bool { return e.Ending == AfterDot || e.Ending == Late }

// Bounds on a live session: a client waits for each reply, RFC 5321 §4.5.3.2
// gives it as much as five minutes, and two for DATA.
const (
	liveOpen    = 15 * time.Second // for a session in the client's name
	liveConnect = 5 * time.Second
	liveCommand = 20 * time.Second
	liveBlock   = 20 * time.Second // for up to 64 KiB of the message
	liveQuit    = time.Second
	liveLength  = 10 * time.Minute // for the message: a client that drips holds no session longer

	liveSlow   = 10 * time.Second // a reply that takes longer is slow
	liveSlows  = 3                // so many in a row …
	livePaused = 30 * time.Second // … and the next hop is left alone for so long
)

var (
	errNotLive  = errors.New("the configuration doesn't want it")
	errLoop     = errors.New("the client is the next hop")
	errSlow     = errors.New("next hop has become slow")
	errOusted   = errors.New("the client took its time, and somebody else the session")
	errLong     = errors.New("the client sends the message too slowly")
	errOctets   = errors.New("content has a NUL or a line end that is not CRLF")
	extChanged  = envelope.NewReply(451, "4.3.0", "Service extensions have changed, try again")
	otherRoute  = envelope.NewReply(452, "4.5.3", "Recipient goes another way, send the message again for it")
	tooLongPath = envelope.NewReply(501, "5.1.3", "Bad recipient address syntax")
)

// Live plays one client's session through to the next hop, in the client's name,
// one mail transaction after another. Its methods are called one after another,
// in SMTP's order. A reply that comes back is the next hop's own, whole; an
// error is a *LostError, and holds until the next Mail.
//
// Content goes out only after 354, and the dot only when End is called. What
// could end a message early in somebody's eyes (a bare CR or LF, a NUL) isn't
// passed on. A session stays open for a moment after a transaction and while its
// client thinks; then, or when it is wanted for another client, it closes.
type Live struct {
	seat
	c    *Client
	dest func(domain string) string
	peer netip.Addr

	env      *envelope.Envelope
	size     int64
	r        *route         // the transaction's, nil before it is known
	identity string         // whom the session is for
	helo     string         // … and that client's HELO, as last said there
	open     bool           // a transaction is, at the next hop
	goAhead  bool           // … and had its 354
	refused  envelope.Reply // to MAIL, where that went out with the first RCPT
	final    envelope.Reply // that came before the dot
	lost     *LostError
	began    time.Time // the message
	stuff    stuffer
	cr       bool // the content passed on so far ends in a CR, which is kept back
}

// Live begins to play a client's session; nobody is connected yet. peer is at
// the other end of the client's connection. It must be closed.
func (c *Client) Live(dest func(domain string) string, peer netip.Addr) *Live {
	return &Live{c: c, dest: dest, peer: peer}
}

// Mail begins a mail transaction with MAIL, of which size is SIZE= or 0. With
// more than one route it is the first recipient that tells whose word counts:
// then the reply is zero, and the next hop's comes with that recipient's.
func (l *Live) Mail(ctx context.Context, env *envelope.Envelope, size int64) (envelope.Reply, error) {
	l.Reset()
	l.env, l.size, l.r, l.lost = env, size, nil, nil
	l.refused, l.final = envelope.Reply{}, envelope.Reply{}
	if len(l.c.routes) > 1 {
		if _, live := l.c.LiveOffers(); !live {
			return l.lose(NotBegun, errDown)
		}
		return envelope.Reply{}, nil
	}
	for _, r := range l.c.routes {
		l.r = r
	}
	return l.begin(ctx)
}

// Rcpt puts a recipient to the next hop.
func (l *Live) Rcpt(ctx context.Context, to *envelope.Recipient) (envelope.Reply, error) {
	r := l.c.routes[l.dest(to.Path.Domain)]
	if l.r == nil {
		l.r = r
		reply, err := l.begin(ctx)
		if err != nil || !reply.Positive() {
			l.refused = reply
			return reply, err
		}
	}
	switch {
	case l.lost != nil:
		return envelope.Reply{}, l.lost
	case r != l.r:
		return otherRoute, nil
	case !l.refused.Zero():
		return l.refused, nil
	case !sayable(to.Path.Mailbox):
		return tooLongPath, nil
	case !l.s.caps.dsn && to.Notify+to.ORcpt != "":
		return extChanged, nil
	}
	return l.say(ctx, stepRcpt, "RCPT TO:<", asGiven(to.Path.Mailbox, to.Path.Dot), ">", l.s.rcptParams(to))
}

// Data says DATA. What is written after the next hop's 354 goes to it.
func (l *Live) Data(ctx context.Context) (envelope.Reply, error) {
	if l.lost != nil {
		return envelope.Reply{}, l.lost
	}
	reply, err := l.say(ctx, stepData, "DATA")
	if err == nil && reply.Code == 354 {
		l.goAhead, l.cr, l.began, l.stuff = true, false, time.Now(), stuffer{w: l.s.bw, last: [2]byte{'\r', '\n'}}
	}
	return reply, err
}

// Write passes content on: lines that end in CRLF, no dot-stuffing. It never
// fails: End tells.
func (l *Live) Write(p []byte) (int, error) {
	if l.goAhead {
		if err := l.pass(p); err != nil {
			l.lastWord(InMessage, err)
		}
	}
	return len(p), nil
}

// pass is Write while there is somebody to pass it to.
func (l *Live) pass(p []byte) error {
	switch {
	case len(p) == 0:
		return nil
	case !cleanLines(p, l.cr):
		return errOctets
	}
	if time.Since(l.began) > liveLength {
		return errLong
	}
	if l.cr {
		if err := l.stuff.write([]byte("\r")); err != nil {
			return err
		}
	}
	if l.cr = p[len(p)-1] == '\r'; l.cr {
		p = p[:len(p)-1]
	}
	return l.stuff.write(p)
}

// cleanLines says that p has no NUL and that each CR is followed by LF and each
// LF preceded by CR. cr says that a CR came before p; one at its end may yet be
// followed.
func cleanLines(p []byte, cr bool) bool {
	if len(p) == 0 || bytes.IndexByte(p, 0) >= 0 {
		return len(p) == 0
	}
	crs, lfs := bytes.Count(p, []byte("\r")), 0
	if cr {
		crs++
	}
	if bytes.HasSuffix(p, []byte("\r")) {
		crs--
	}
	for rest := p; ; lfs++ {
		i := bytes.IndexByte(rest, '\n')
		switch {
		case i < 0:
			return crs == lfs
		case i > 0 && rest[i-1] != '\r', i == 0 && !(len(rest) == len(p) && cr):
			return false
		}
		rest = rest[i+1:]
	}
}

// End says that the message is complete and good, and returns the next hop's
// reply to it. After a LostError the message is the caller's.
func (l *Live) End(ctx context.Context) (envelope.Reply, error) {
	if l.goAhead {
		raw := l.s.raw
		stop := context.AfterFunc(ctx, func() { raw.Close() })
		l.finish()
		stop()
	}
	if l.lost != nil {
		return envelope.Reply{}, l.lost
	}
	ending := "refused"
	switch {
	case l.final.Positive():
		ending = "accepted"
	case l.final.Temporary():
		ending = "deferred"
	}
	l.c.metrics.LiveMessages.WithLabelValues(ending).Inc()
	return l.final, nil
}

// Reset ends the transaction, if one is open, without a message.
func (l *Live) Reset() {
	switch {
	case !l.open:
	case l.goAhead: // after a 354 nothing else says "forget it"
		l.close(false)
	case l.wake():
		l.pause()
		l.s.dirty = true
	}
	l.open = false
}

// Close ends the session.
func (l *Live) Close() {
	l.Reset()
	if l.pool != nil && l.wake() {
		l.close(true)
	}
}

// OurReply says that a Live session's reply was ours: the next hop wasn't asked.
func OurReply(r envelope.Reply) bool { return r == extChanged || r == otherRoute || r == tooLongPath }

// Offers are the service extensions that a client can be offered: what all next
// hops of live sessions offered last.
type Offers struct {
	EightBit, UTF8, DSN bool
	Size                int64 // the largest message, 0 where none is named
}

// LiveOffers returns what to offer a client, and false while its session
// wouldn't be played through.
func (c *Client) LiveOffers() (o Offers, live bool) {
	o = Offers{true, true, true, 0}
	for _, r := range c.routes {
		if !r.Live || r.willing() != nil {
			continue
		}
		r.mu.Lock()
		caps, known := r.pace.caps, r.pace.known
		r.mu.Unlock()
		if !known {
			continue
		}
		live = true
		o.EightBit, o.UTF8, o.DSN = o.EightBit && caps.eightBit, o.UTF8 && caps.utf8, o.DSN && caps.dsn
		if o.Size == 0 || caps.maxSize > 0 && caps.maxSize < o.Size {
			o.Size = caps.maxSize
		}
	}
	return o, live
}

// IsNextHop says that mail for domain goes to the server at addr.
func (c *Client) IsNextHop(dest string, addr netip.Addr) bool {
	r := c.routes[dest]
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return addr.IsValid() && r.pace.host == addr
}
