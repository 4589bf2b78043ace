package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// errNewSession says that the work goes on, but needs another session.
var errNewSession = errors.New("another session is needed")

// relay runs transactions, carried first, until next has nothing left or the
// session fails; then the connection is closed. With errNewSession the caller
// should go on in another session, and gets the Transfer, if any, that was
// taken but not begun in this one. All others are settled.
//
// With PIPELINING one message takes one round trip: after its final dot go the
// next one's MAIL, RCPTs and DATA, as RFC 2920 §3.1 allows, and their replies
// come with the reply to the dot.
func (s *session) relay(ctx context.Context, next func(time.Duration) *envelope.Transfer, carried *envelope.Transfer) (*envelope.Transfer, error) {
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(shutdownGrace, s.raw.abort)
	})
	defer stop()

	s.waiting = carried
	var x *transaction // its commands are out
	var err error
	for {
		if x == nil {
			if x, err = s.first(ctx, next); err != nil {
				return s.fail(ctx, err)
			}
			if x == nil {
				s.quit()
				return nil, nil
			}
		}
		if err = s.drain(); err == nil {
			err = s.send(x)
		}
		if err == nil {
			x, err = s.behind(ctx, next)
		}
		if err == nil && x == nil {
			err = s.drain()
		}
		if err != nil {
			return s.fail(ctx, err)
		}
	}
}

// first begins a transaction when none is under way. It waits for a message,
// and returns nil when there is none.
func (s *session) first(ctx context.Context, next func(time.Duration) *envelope.Transfer) (*transaction, error) {
	for {
		if s.waiting == nil && ctx.Err() == nil {
			s.waiting = next(s.t.Idle)
		}
		if s.waiting == nil {
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := s.identify(s.waiting); err != nil {
			return nil, err
		}
		t := s.waiting
		s.waiting = nil
		if x := s.prepare(t); x != nil {
			return x, s.begin(x)
		}
	}
}

// behind begins the next transaction after the final dot of the one before, if
// a message is there and nothing forbids it. Its XCLIENT would: the reply to
// that is a new greeting.
func (s *session) behind(ctx context.Context, next func(time.Duration) *envelope.Transfer) (*transaction, error) {
	for s.caps.pipelining && ctx.Err() == nil {
		t := next(0)
		if t == nil {
			return nil, nil
		}
		if s.identityFor(t) != s.identity {
			s.waiting = t
			return nil, nil
		}
		if x := s.prepare(t); x != nil {
			return x, s.begin(x)
		}
	}
	return nil, nil
}

// fail ends the session and settles what is under way. A Transfer of which the
// next hop has said nothing goes on in another session, when this one ended as
// sessions may: the next hop had enough of it, or XCLIENT can't be repeated. A
// session that ends so before it got anything done is a failure, and so this
// can't go round in circles.
func (s *session) fail(ctx context.Context, err error) (*envelope.Transfer, error) {
	var again *envelope.Transfer
	tidy := errors.Is(err, errNewSession) || s.done > 0 && hungUp(err)
	for i, x := range s.active {
		if tidy && i == 0 && !x.heard && ctx.Err() == nil {
			x.body.Close()
			again = x.t
			continue
		}
		if x.ended && !x.complete() {
			s.unsure = x.t.Envelope.ID
		}
		x.settle(err)
	}
	if s.waiting != nil {
		if tidy && again == nil && len(s.active) == 0 && ctx.Err() == nil {
			again = s.waiting
		} else {
			s.waiting.Settle(nil, err)
		}
	}
	s.active, s.waiting = nil, nil
	switch {
	case errors.Is(err, errNewSession):
		s.quit()
		return again, err
	case s.unsure != "":
		s.raw.abort()
		return nil, err
	case again != nil:
		s.conn.Close()
		s.c.log.Debug("next hop ended the session", "route", s.r.Name, "relayed", s.done, "err", err)
		return again, errNewSession
	}
	s.conn.Close()
	return nil, err
}

// hungUp says that the next hop closed the connection, or announced that it
// will.
func hungUp(err error) bool {
	var r *refusal
	if errors.As(err, &r) {
		return r.reply.Code == 421 || r.endsSession()
	}
	for _, lost := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}

// endsSession says that MAIL was refused because of the session.
func (e *refusal) endsSession() bool {
	return e.step == stepMail && (e.reply.Code == 421 || ofSession(e.reply.Code))
}

// identityFor is the identity that t wants in force.
func (s *session) identityFor(t *envelope.Transfer) string {
	if s.noXClient {
		return ""
	}
	return s.r.identityOf(&t.Envelope.Client, s.xclient)
}

// identify makes the next hop take us for t's client. Postfix takes that once a
// session: it then knows us for somebody who may not say XCLIENT. A next hop
// that does not understand our XCLIENT, or makes nothing of it (a new greeting
// is the only yes), gets the message without it. One that refuses this client, at
// XCLIENT or at the EHLO after it, defers the message: it may not be lost for
// that, and must not hold up the others.
//
// Another session is asked for only in one that has had a client, so that this
// can't go round in circles.
func (s *session) identify(t *envelope.Transfer) error {
	want := s.identityFor(t)
	if want == s.identity {
		return nil
	}
	if s.r.Proxy || s.identity != "" && (want == "" || s.caps.xclient == "") {
		return errNewSession
	}
	if s.dirty {
		s.dirty = false
		if reply, err := s.call(stepRset, nil, "RSET"); err != nil || !reply.Positive() {
			return cmp.Or(err, error(&refusal{stepRset, reply}))
		}
	}
	reply, err := s.call(stepXClient, nil, want)
	if err != nil {
		return err
	}
	switch c := reply.Code; {
	case c == 220:
		s.identity = want
		s.c.noteXClient(s.r, "")
		err = s.ehlo(cmp.Or(heloName(t.Envelope.Client.Helo), s.c.hostname))
	case c/100 == 3:
		return &refusal{stepXClient, reply}
	case s.identity != "" && (c < 400 || c >= 500 && c <= 504):
		return errNewSession
	case c < 400, c >= 500 && c <= 504, c == 550 && s.identity == "":
		return s.withoutXClient(reply)
	default:
		err = &refusal{stepXClient, reply}
	}
	var refused *refusal
	if !errors.As(err, &refused) {
		return err
	}
	s.waiting = nil
	refuseClient(t, refused.reply)
	return errNewSession
}

// refuseClient defers a message whose client the next hop refuses.
func refuseClient(t *envelope.Transfer, reply envelope.Reply) {
	x := newTransaction(t)
	x.fill(envelope.NewReply(450, "4.7.0", "Client refused: %.230s", reply))
	x.settle(nil)
}

// withoutXClient goes on as ourselves. A reply that is no refusal may mean that
// the session begins anew.
func (s *session) withoutXClient(reply envelope.Reply) error {
	s.noXClient = true
	if reply.Code != 501 && reply.Code != 550 { // that may be about one client
		s.c.noteXClient(s.r, fmt.Sprintf("it answers XCLIENT with %q", reply.String()))
	}
	if reply.Positive() {
		return s.ehlo(s.c.hostname)
	}
	return nil
}
