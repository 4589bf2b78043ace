package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

const (
	askTime = 10 * time.Second // for one question, a new session included
	askQuit = time.Second      // for the reply to its QUIT
)

var (
	errResting   = errors.New("next hop is left alone: a stand-in is planned")
	errDown      = errors.New("next hop is down")
	errNoName    = errors.New("the client's address is unknown")
	errUnsayable = errors.New("the address can't be put into a command that the next hop takes")
	errXClient   = errors.New("it would judge us instead of the clients, since it doesn't offer us XCLIENT: add our address to smtpd_authorized_xclient_hosts there, and leave xclient on here")
)

// Inquiry asks next hops about the recipients of one mail transaction: EHLO,
// MAIL and RCPT in the client's name, and never DATA. It keeps a session to each
// next hop for that, unless somebody else needs its place. Its methods are
// called one after another.
type Inquiry struct {
	c      *Client
	route  func(domain string) (dest string)
	env    *envelope.Envelope
	size   int64
	asking map[*route]*asking
}

// Inquire begins an Inquiry; nobody is asked yet. env has the client with its
// names, the reverse-path and MAIL's parameters, size is that of SIZE= or 0. The
// Inquiry must be closed.
func (c *Client) Inquire(dest func(domain string) string, env *envelope.Envelope, size int64) *Inquiry {
	return &Inquiry{c: c, route: dest, env: env, size: size, asking: map[*route]*asking{}}
}

// asking is what one next hop is asked, and what came of it.
type asking struct {
	seat
	r       *route
	refused envelope.Reply // to the client, its HELO name or the reverse-path: counts for every recipient
	failed  error          // it can't be asked, for the rest of the transaction
}

// Verify asks the next hop dest about a recipient, in our own name and from nobody:
// EHLO, MAIL FROM:<>, RCPT. An error says that there is no answer about the recipient.
func (c *Client) Verify(ctx context.Context, dest string, m envelope.Mailbox) (reply envelope.Reply, err error) {
	r := c.routes[dest]
	if r == nil {
		return reply, fmt.Errorf("relay: no route %q", dest)
	}
	if !sayable(m) {
		return reply, errUnsayable
	}
	if err := r.unwilling(); err != nil && err != errXClient {
		return reply, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	a := seat{pool: r.asking}
	if err := r.asking.sit(ctx); err != nil {
		return reply, err
	}
	if a.s, err = c.connect(ctx, r, nil, r.TLS, r.askTimeouts()); err != nil {
		a.leave()
		return reply, err
	}
	stop := context.AfterFunc(ctx, func() { a.s.raw.Close() })
	reply, err = a.s.call(stepMail, nil, "MAIL FROM:<>")
	if err == nil && !reply.Positive() {
		err = &refusal{stepMail, reply}
	}
	if err == nil {
		reply, err = a.s.call(stepRcpt, nil, "RCPT TO:<", envelope.ForwardPath{Mailbox: m}.String(), ">")
	}
	if no := (&refusal{stepRcpt, reply}); err == nil && !reply.Positive() && !no.judges() {
		err = no
	}
	a.end(stop() && err == nil)
	return reply, err
}

// askTimeouts are those of a session for questions.
func (r *route) askTimeouts() Timeouts {
	t := r.Timeouts
	for _, d := range []*time.Duration{&t.Connect, &t.Greeting, &t.Command, &t.Block} {
		*d = min(*d, askTime)
	}
	t.Quit = min(t.Quit, askQuit)
	return t
}

// Ask returns what to's next hop answers to RCPT, or before that to the client.
// An error says that it can't be asked; a reply that may be about us instead of
// the client is one.
func (q *Inquiry) Ask(ctx context.Context, to *envelope.Recipient) (envelope.Reply, error) {
	r := q.c.routes[q.route(to.Path.Domain)]
	if r == nil {
		return envelope.Reply{}, fmt.Errorf("relay: no route for %q", to.Path.Domain)
	}
	a := q.asking[r]
	if a == nil {
		a = &asking{seat: seat{pool: r.asking}, r: r}
		q.asking[r] = a
	}
	if a.failed != nil || !a.refused.Zero() {
		return a.refused, a.failed
	}
	if !sayable(to.Path.Mailbox) || !sayable(q.env.From.Mailbox) {
		return envelope.Reply{}, errUnsayable
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	reply, err := q.ask(ctx, a, to)
	if err != nil && ctx.Err() != nil && !errors.Is(err, errNoSeat) {
		err = fmt.Errorf("no answer in time: %w", err)
	}
	a.failed = err
	return reply, err
}

// ask goes on in the session that rests, or in a new one.
func (q *Inquiry) ask(ctx context.Context, a *asking, to *envelope.Recipient) (reply envelope.Reply, err error) {
	fresh := !a.wake()
	if fresh {
		err := a.open(ctx, q.c, &q.env.Client)
		if no := a.r.refusal(err); no != nil && no.judges() {
			a.refused = no.reply
			return no.reply, nil
		}
		if err != nil {
			return reply, err
		}
	}
	raw := a.s.raw
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	if fresh {
		err = q.introduce(a, to)
	}
	if err == nil {
		reply, err = a.s.call(stepRcpt, nil, "RCPT TO:<", to.Path.String(), ">", a.s.rcptParams(to))
	}
	no := &refusal{stepRcpt, reply}
	if err == nil && !reply.Positive() && !no.judges() {
		err = no
	}
	switch inTime := stop(); {
	case err == nil && inTime:
		a.rest(seatRest, 0)
	case errors.As(err, &no) && no.judges():
		a.refused, reply, err = no.reply, no.reply, nil
		a.end(inTime)
	default:
		a.end(false)
	}
	return reply, err
}

// judges says that a reply is about the client and what it said. Others are
// about us or the session: it may end, TLS is wanted, a command is unknown.
func (e *refusal) judges() bool {
	switch c := e.reply.Code; {
	case c < 400, c == 421, ofSession(c):
		return false
	case e.step == stepXClient: // as in identify
		return c != 501 && c != 504 && c != 550
	}
	return true
}

// open opens a session, if there is a place for one.
func (a *asking) open(ctx context.Context, c *Client, client *envelope.Client) (err error) {
	r := a.r
	if err = r.unwilling(); err == nil && !r.XClient && !r.Proxy {
		err = c.mayAsk(r, "")
	}
	if err == nil {
		err = r.asking.sit(ctx)
	}
	if err != nil {
		return err
	}
	if a.s, err = c.connect(ctx, r, client, r.TLS, r.askTimeouts()); err != nil {
		a.leave()
	}
	return err
}

// introduce says who the client is and what it said. A refusal is the reply to
// that.
func (q *Inquiry) introduce(a *asking, to *envelope.Recipient) error {
	s := a.s
	if err := s.become(&q.env.Client); err != nil {
		return err
	}
	e := *q.env
	e.To = []envelope.Recipient{*to}
	if e.UTF8 && !s.caps.utf8 {
		return errUnsayable
	}
	reply, err := s.call(stepMail, nil, "MAIL FROM:<", e.From.String(), ">", s.mailParams(&envelope.Transfer{Envelope: &e, Size: cmp.Or(q.size, -1)}))
	if err == nil && !reply.Positive() {
		err = &refusal{stepMail, reply}
	}
	return err
}

// become makes the next hop take us for client, once in a session. A refusal is
// its reply to that.
func (s *session) become(client *envelope.Client) error {
	if err := s.c.mayAsk(s.r, s.caps.xclient); err != nil {
		return err
	}
	if !client.Addr.IsValid() {
		return errNoName
	}
	if s.r.Proxy {
		return nil // the header did it
	}
	reply, err := s.call(stepXClient, nil, xclient(*client, s.caps.xclient))
	if err == nil && reply.Code != 220 {
		err = &refusal{stepXClient, reply}
	}
	if err == nil && client.Helo != "" { // our own name must not be judged
		err = s.ehlo(heloName(client.Helo))
	}
	return err
}

// mayAsk says whether r's next hop would take us for a client, by the attributes
// of XCLIENT that it offers. The log says once that it won't.
func (c *Client) mayAsk(r *route, offered string) (err error) {
	if !r.Proxy && (!r.XClient || !strings.Contains(offered, " NAME ") || !strings.Contains(offered, " ADDR ")) {
		err = errXClient
	}
	r.mu.Lock()
	first := err != nil && !r.mute
	r.mute = err != nil
	r.mu.Unlock()
	if first {
		c.log.Warn("next hop can't be asked about recipients", "route", r.Name, "address", r.Address, "err", err)
	}
	return err
}

// unwilling says why there is no use in a session, as far as is known: probes
// keep that fresh.
func (r *route) unwilling() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.resting.Load():
		return errResting
	case r.health == down:
		return errDown
	case r.mute:
		return errXClient
	}
	return nil
}

// Close ends the sessions.
func (q *Inquiry) Close() {
	for _, a := range q.asking {
		if a.wake() {
			a.end(true)
		}
	}
}
