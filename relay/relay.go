// Package relay is the SMTP client to the primary: it carries what the queue
// hands it to the next hop, and knows whether the next hop answers. On behalf of
// the door it asks the next hop about recipients (Inquire), and plays clients'
// sessions through to it (Live).
//
// It does not decide what is due, retry, or bounce; that is the queue's job.
// It looks up no MX: a route names its host.
//
// Invariants:
//   - A Transfer that was taken is settled exactly once, whatever happens.
//   - A recipient is settled positively only by a positive reply to the final
//     dot. If that reply gets lost, the recipient counts as not tried: the next
//     hop may get the message twice, never zero times.
//   - The final dot follows only content that was read to its end and has the
//     length that the Transfer states; else the connection is closed without
//     it. Content goes out as it is, but for dot-stuffing and Route.AuthResults.
//   - No text of a client's ends a command, and no text of the next hop's leaves
//     here uncleaned or longer than 256 octets, or in a live session 8 KiB.
//   - Every read and every write has a deadline.
//   - An Inquiry never sends DATA, and never hands out a reply that may be about
//     us instead of the client.
//   - A Live session says for certain, when it loses the next hop, whether that
//     can have the message. Only the reply to the dot is taken for one.
//   - What goes wrong before the first MAIL concerns the route, never a message;
//     so does a refusal of MAIL that any other MAIL meets with, too ("530 Must
//     issue STARTTLS"). Only a client that the next hop refuses at XCLIENT has
//     its own message deferred.
//
// Extensions that the next hop does not offer: 8-bit content goes out all the
// same, since converting it would break signatures; DSN parameters are dropped;
// a message that came by SMTPUTF8 gets 553 5.6.7 from us (RFC 6531 §3.5).
//
// RFC 5321, 2920 (pipelining, also across messages), 1870 (SIZE), 6152
// (8BITMIME), 6531 (SMTPUTF8), 3461 (DSN parameters), 3207 (STARTTLS), 2034
// (status codes), and Postfix's XCLIENT_README; the PROXY protocol of HAProxy, version 2.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
)

// The values of Route.TLS.
const (
	TLSOpportunistic = "opportunistic" // STARTTLS if it works, unverified; else plain text
	TLSRequire       = "require"       // STARTTLS with a verified certificate, or no session
	TLSOff           = "off"
)

// Route is the way to one next hop.
type Route struct {
	Name    string // label in logs and metrics, from the configuration
	Address string // host:port
	TLS     string // one of the TLS constants; "" is opportunistic
	TLSName string // name that the certificate must hold; "" is the host of Address
	TLSCA   string // PEM file of trusted roots; "" are the system's. Read anew for each session.

	// ProbeInterval is the time between two health probes, 10 s if 0. During
	// an outage's first ten minutes they come every 2 s, unless it is shorter.
	ProbeInterval time.Duration
	// XClient forwards each message's client to a next hop that offers XCLIENT.
	XClient bool
	// Proxy forwards it by a PROXY protocol header to a next hop that reads it,
	// in place of XCLIENT.
	Proxy bool
	// AuthResults puts our Authentication-Results before each message, and takes
	// away those that claim to be ours (package authres).
	AuthResults bool
	// MaxAsking bounds the sessions that ask about recipients at a time, 10 if 0.
	MaxAsking int
	// Live lets clients' sessions be played through, MaxLive at a time, 50 if 0.
	Live    bool
	MaxLive int
	// Timeouts that are 0 have the defaults of RFC 5321 §4.5.3.2.
	Timeouts Timeouts
}

// Timeouts bound each wait for the next hop. All but the first, LiveEnd and the last
// two are RFC 5321 §4.5.3.2's.
type Timeouts struct {
	Connect  time.Duration // TCP connect; 30 s
	Greeting time.Duration // initial 220; 5 min
	Command  time.Duration // reply to any command not named here, TLS handshake; 5 min
	DataInit time.Duration // 354; 2 min
	Block    time.Duration // writing up to 64 KiB; 3 min
	DataEnd  time.Duration // reply to the final dot; 10 min
	LiveEnd  time.Duration // the same while a client waits for it; 4 min
	Quit     time.Duration // reply to QUIT; 5 s
	Idle     time.Duration // how long an idle session waits for another message; 5 s
}

func (t *Timeouts) defaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Connect, 30 * time.Second},
		{&t.Greeting, 5 * time.Minute},
		{&t.Command, 5 * time.Minute},
		{&t.DataInit, 2 * time.Minute},
		{&t.Block, 3 * time.Minute},
		{&t.DataEnd, 10 * time.Minute},
		{&t.LiveEnd, 4 * time.Minute},
		{&t.Quit, 5 * time.Second},
		{&t.Idle, 5 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

// shutdownGrace is what a transaction under way gets to end after its context
// has: breaking it off after the final dot would make a duplicate.
const shutdownGrace = 10 * time.Second

// Options are New's.
type Options struct {
	Routes   map[string]Route // by destination, the queue's key
	Hostname string           // ours: EHLO's argument
	Log      *slog.Logger     // nil discards
	Metrics  *metrics.Metrics // required
	// OnUp is called without locks held when a destination that was down or
	// unknown answers. It must not block. May be nil.
	OnUp func(dest string)
	// Asks says whether somebody means to Inquire: then Run's probes look
	// whether that is possible. May be nil.
	Asks func() bool
	// Elsewhere is how another secondary that probes sees a destination; not known
	// without one. While it agrees with what is known here, Run doesn't probe. May be
	// nil.
	Elsewhere func(dest string) (up, known bool)
	// Dial replaces the dialer of net. May be nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client relays to a set of next hops.
type Client struct {
	hostname  string
	log       *slog.Logger
	metrics   *metrics.Metrics
	onUp      func(dest string)
	asks      func() bool
	elsewhere func(dest string) (up, known bool)
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	routes    map[string]*route
	resting   *atomic.Bool // see Rest; the routes' too
}

// New returns a Client. No destination is up before Run has probed it.
func New(o Options) *Client {
	c := &Client{
		hostname:  o.Hostname,
		log:       o.Log,
		metrics:   o.Metrics,
		onUp:      o.OnUp,
		asks:      o.Asks,
		elsewhere: o.Elsewhere,
		dial:      o.Dial,
		routes:    make(map[string]*route, len(o.Routes)),
		resting:   new(atomic.Bool),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.onUp == nil {
		c.onUp = func(string) {}
	}
	if c.asks == nil {
		c.asks = func() bool { return false }
	}
	if c.dial == nil {
		c.dial = (&net.Dialer{KeepAlive: -1}).DialContext // each wait has a deadline: no probes, four system calls less
	}
	for dest, r := range o.Routes {
		c.routes[dest] = newRoute(dest, r, c.metrics)
		c.routes[dest].resting = c.resting
	}
	return c
}

// Relay opens a session to dest and relays what next yields, until next has
// waited Timeouts.Idle for nothing, ctx ends, or the session fails. Transfers
// that were not begun when the next hop ended a session tidily, or that need a
// session of their own because XCLIENT can't be repeated, go on in another
// session within the same call.
//
// next(wait) waits up to wait for a message, and returns nil for none; next(0)
// never waits. A failure to open a session marks the destination down, and
// then no Transfer has been taken; but for a route by PROXY, where the first comes
// before the session.
func (c *Client) Relay(ctx context.Context, dest string, next func(wait time.Duration) *envelope.Transfer) error {
	r, ok := c.routes[dest]
	if !ok {
		return fmt.Errorf("relay: no route to %q", dest)
	}
	var carried *envelope.Transfer
	for {
		if carried == nil && r.Proxy { // a connection is for one client
			if carried = next(r.Timeouts.Idle); carried == nil {
				return nil
			}
		}
		s, err := c.open(ctx, r, carried)
		if no := r.refusal(err); no != nil && carried != nil {
			refuseClient(carried, no.reply)
			if carried = nil; no.judges() {
				continue
			}
			return err
		}
		if err != nil {
			if carried != nil {
				carried.Settle(nil, err)
			}
			return err
		}
		carried, err = s.relay(ctx, next, carried)
		r.closed(s)
		c.noteFit(r, s, err)
		if err != nil && !errors.Is(err, errNewSession) {
			c.metrics.RelaySessions.WithLabelValues("failed").Inc()
			c.logFailed(s, err)
			return err
		}
		c.metrics.RelaySessions.WithLabelValues("ok").Inc()
		if err == nil {
			return nil
		}
	}
}

// logFailed names the message, if any, of which the next hop may have taken charge
// without our hearing it: that is relayed again.
func (c *Client) logFailed(s *session, err error) {
	attrs := []any{"route", s.r.Name, "relayed", s.done, "err", err}
	if s.unsure != "" {
		attrs = append(attrs, "unanswered", s.unsure)
	}
	c.log.Warn("relay session failed", attrs...)
}

// open opens a session for mail, to carry t first unless that is nil, and tells
// the route's health how that went.
func (c *Client) open(ctx context.Context, r *route, t *envelope.Transfer) (*session, error) {
	ctx, done := r.opening(ctx)
	defer done()
	var client *envelope.Client
	if t != nil {
		client = &t.Envelope.Client
	}
	s, err := c.connect(ctx, r, client, r.TLS, r.Timeouts)
	if client != nil && r.refusal(err) != nil {
		return nil, err // it may be up: probes tell
	}
	if err != nil {
		c.metrics.RelaySessions.WithLabelValues("failed").Inc()
		if ctx.Err() == nil {
			c.note(r, err)
		}
		return nil, err
	}
	r.opened(s)
	c.note(r, nil)
	c.noteOffer(r, s.caps.xclient)
	r.noteOffers(s.caps)
	return s, nil
}
