package relay

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// begin says MAIL, in a session that takes us for the client: the one that rests,
// or a new one.
func (l *Live) begin(ctx context.Context) (envelope.Reply, error) {
	if l.r == nil || !l.r.Live {
		return l.lose(NotBegun, errNotLive)
	}
	if err := l.r.willing(l.peer, l.env.Client.Addr); err != nil {
		return l.lose(NotBegun, err)
	}
	if !sayable(l.env.From.Mailbox) {
		return l.lose(NotBegun, errUnsayable)
	}
	used := l.goOn()
	for {
		if !used {
			if reply, err, over := l.introduce(ctx); over {
				return reply, err
			}
		}
		reply, err := l.helloAgain(ctx)
		if err == nil && reply.Zero() {
			reply, err = l.mail(ctx)
		}
		if !used || err == nil && !ofSession(reply.Code) || errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return l.noteMail(reply, err)
		}
		l.close(false) // it ended while it rested, or won't have another message
		used = false
	}
}

// goOn takes up the session that rests, if that is the same client's.
func (l *Live) goOn() bool {
	if l.pool == nil || !l.wake() {
		return false
	}
	if l.s.r != l.r || l.identity != l.identityOn(l.s) || l.helo != "" && l.env.Client.Helo == "" {
		l.close(true)
		return false
	}
	return true
}

// identityOn is the client's identity but for its HELO, which may change.
func (l *Live) identityOn(s *session) string {
	client := l.env.Client
	client.Helo = ""
	return l.r.identityOf(&client, s.xclient)
}

// helloAgain says another HELO that the client has said since. That is refused
// as to the client itself, and ends an open transaction, too.
func (l *Live) helloAgain(ctx context.Context) (reply envelope.Reply, err error) {
	s, helo := l.s, l.env.Client.Helo
	if l.helo == helo {
		return reply, nil
	}
	if err := s.silent(); err != nil {
		return reply, err
	}
	stop := context.AfterFunc(ctx, func() { s.raw.Close() })
	defer stop()
	err = s.ehlo(heloName(helo))
	s.dirty = false
	var no *refusal
	switch {
	case err == nil:
		l.helo = helo
	case errors.As(err, &no) && no.judges():
		l.helo = ""
		return no.reply, nil
	}
	return reply, err
}

// introduce opens a session in the client's name; over says that there is no
// need of one any more: the next hop has judged the client, or is lost.
func (l *Live) introduce(ctx context.Context) (reply envelope.Reply, err error, over bool) {
	err = l.connect(ctx)
	var no *refusal
	switch {
	case err == nil:
		return reply, nil, false
	case l.s != nil && errors.As(err, &no): // become's: its word on the client
		l.close(false)
		return no.reply, nil, true
	case errors.As(err, &no) && no.judges() && l.r.refusal(err) != nil:
		return no.reply, nil, true
	}
	reply, err = l.lose(NotBegun, err)
	return reply, err, true
}

// connect opens a session in the client's name.
func (l *Live) connect(ctx context.Context) error {
	l.pool, l.client = l.r.live, l.env.Client.Addr
	if l.r.Proxy && !l.client.IsValid() {
		return errNoName
	}
	if err := l.pool.sitNow(l.client); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, liveOpen)
	defer cancel()
	t := l.r.Timeouts
	t.Connect, t.Quit = min(t.Connect, liveConnect), min(t.Quit, liveQuit)
	t.Greeting, t.Command, t.DataInit = min(t.Greeting, liveOpen), min(t.Command, liveCommand), min(t.DataInit, liveCommand)
	t.Block, t.DataEnd = min(t.Block, liveBlock), t.LiveEnd
	s, err := l.c.connect(ctx, l.r, &l.env.Client, l.r.TLS, t)
	if err != nil {
		l.leave()
		l.r.pauseLive(ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded))
		return err
	}
	l.s = s
	if !l.r.Proxy { // what a client is offered, whom it may refuse, is for that client
		l.r.noteOffers(s.caps)
	}
	stop := context.AfterFunc(ctx, func() { s.raw.Close() })
	err = s.become(&l.env.Client)
	if !stop() {
		err = cmp.Or(err, ctx.Err())
	}
	var no *refusal
	switch {
	case err == nil:
		l.identity, l.helo, s.whole = l.identityOn(s), l.env.Client.Helo, true
	case !errors.As(err, &no) || !no.judges():
		l.close(false)
		l.r.pauseLive(ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded))
	}
	return err
}

// mail says MAIL. What the client said in it by extensions that aren't there any
// more can't be said, and must not be left out: only a refusal counts then.
func (l *Live) mail(ctx context.Context) (reply envelope.Reply, err error) {
	e, caps := l.env, &l.s.caps
	said := *e
	said.To = nil
	params := l.s.mailParams(&envelope.Transfer{Envelope: &said, Size: cmp.Or(l.size, -1)})
	if e.UTF8 && !caps.utf8 || e.EightBit && !caps.eightBit || e.Ret+e.EnvID != "" && !caps.dsn {
		defer func() {
			if err == nil && reply.Positive() {
				reply, l.s.dirty = extChanged, true
			}
		}()
	}
	return l.call(ctx, stepMail, "MAIL FROM:<", asGiven(e.From.Mailbox, e.From.Dot), ">", params)
}

// asGiven is a mailbox with the dot that the client wrote after its domain: the
// reply repeats it.
func asGiven(m envelope.Mailbox, dot bool) string {
	if dot {
		return m.String() + "."
	}
	return m.String()
}

// noteMail takes over the reply to MAIL.
func (l *Live) noteMail(reply envelope.Reply, err error) (envelope.Reply, error) {
	switch {
	case err != nil:
		return l.lose(BeforeReply, err)
	case ofSession(reply.Code): // about us, not about the client
		return l.lose(BeforeReply, &refusal{stepMail, reply})
	case reply.Positive():
		l.open = true
		l.rest(liveRest, seatRest)
	default:
		l.pause()
	}
	return reply, nil
}

// say is call, but that a failure loses the next hop. A 421 says that it goes.
// While the client thinks, the session rests.
func (l *Live) say(ctx context.Context, at step, command ...string) (envelope.Reply, error) {
	if l.open && !l.wake() {
		return l.lose(BeforeReply, errOusted)
	}
	reply, err := l.call(ctx, at, command...)
	switch {
	case err != nil:
		return l.lose(BeforeReply, err)
	case l.open && reply.Code != 354:
		l.rest(liveRest, seatRest)
	}
	return reply, nil
}

// call says a command and returns the reply, one that makes sense. What the next
// hop has said before it was asked is no reply to this. If a transaction of
// before is still open there, RSET goes first, with PIPELINING in one go.
func (l *Live) call(ctx context.Context, at step, command ...string) (reply envelope.Reply, err error) {
	s := l.s
	stop := context.AfterFunc(ctx, func() { s.raw.Close() })
	defer stop()
	if err := s.silent(); err != nil {
		return reply, err
	}
	began := time.Now()
	if s.dirty {
		err = s.sayAfterReset(command...)
		s.dirty = false
	} else {
		err = s.say(command...)
	}
	if err == nil {
		reply, err = s.read(at, nil)
	}
	l.r.notePace(time.Since(began))
	if err == nil && (reply.Code == 421 || reply.Code < 400 && !answers(at, reply.Code)) {
		err = &refusal{at, reply}
	}
	return reply, err
}

// answers says that a positive code answers what was said, RFC 5321 §4.3.2: a
// greeting, say, is no reply to a message.
func answers(at step, code int) bool {
	switch at {
	case stepData:
		return code == 354
	case stepRcpt:
		return code == 250 || code == 251 || code == 252
	}
	return code == 250
}

// finish sends the dot and waits for the reply to it.
func (l *Live) finish() {
	s := l.s
	err := s.silent() // else its reply to the dot couldn't be told from what it said before
	if l.cr {
		err = errOctets
	}
	if err != nil {
		l.lastWord(InMessage, err)
		return
	}
	if err = l.stuff.end(); err == nil {
		err = s.bw.Flush()
	}
	if err != nil {
		l.lastWord(AfterDot, err)
		return
	}
	reply, err := s.read(stepEnd, nil)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.lose(Late, err)
	case err != nil:
		l.lose(AfterDot, err)
	case reply.Code < 400 && !answers(stepEnd, reply.Code):
		l.lose(AfterDot, &refusal{stepEnd, reply})
	default:
		l.final = reply
		if s.done++; reply.Code == 421 {
			l.close(false)
			return
		}
		l.pause()
	}
}

// lastWord looks why the next hop hung up. A refusal that it sent before is its
// reply to the message; 421 only says that it goes.
func (l *Live) lastWord(ending Ending, err error) {
	if errors.Is(err, errOctets) || errors.Is(err, errLong) {
		l.lose(ending, err)
		return
	}
	l.s.conn.SetReadDeadline(time.Now().Add(l.s.t.Quit))
	r, rerr := readWhole(l.s.br)
	if rerr != nil || r.Code < 400 || r.Code == 421 {
		l.lose(ending, err)
		return
	}
	l.final = r
	l.close(false)
}

// lose gives up the next hop for the rest of the transaction.
func (l *Live) lose(ending Ending, err error) (envelope.Reply, error) {
	l.lost = &LostError{ending, err}
	if ending == NotBegun {
		l.c.metrics.LiveUnused.WithLabelValues(unusedReason(err)).Inc()
		return envelope.Reply{}, l.lost
	}
	l.c.metrics.LiveMessages.WithLabelValues(string(ending)).Inc()
	l.c.log.Warn("next hop lost in a live session", "route", l.r.Name, "ending", string(ending), "client", l.client, "err", err)
	l.r.pauseLive(errors.Is(err, os.ErrDeadlineExceeded))
	if l.open = false; l.s != nil {
		l.close(false)
	}
	return envelope.Reply{}, l.lost
}

// pause lets the session rest: no transaction is open.
func (l *Live) pause() {
	l.open, l.goAhead = false, false
	l.rest(seatRest, 0)
}

// close ends the session, tidily or at once.
func (l *Live) close(tidily bool) {
	l.open, l.goAhead = false, false
	l.end(tidily)
}

// silent returns an error if the next hop has sent something that nothing was
// asked for, or has closed the connection, as far as that has come here.
func (s *session) silent() (err error) {
	n := s.br.Buffered()
	if raw, ok := s.plainTCP(); ok && n == 0 {
		err = raw.Control(func(fd uintptr) {
			var e error
			n, _, e = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			if n == 0 && e == nil {
				n = -1
			} else if e != nil {
				n = 0
			}
		})
	} else if n == 0 {
		s.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err = s.br.Peek(1); err == nil {
			n = 1
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
	switch {
	case err == nil && n > 0:
		err = errUnsolicited
	case err == nil && n < 0:
		err = io.EOF
	}
	return err
}

// plainTCP is the connection where what the kernel has received is what a read
// would return.
func (s *session) plainTCP() (syscall.RawConn, bool) {
	t, _ := s.conn.(timedConn) // TLS has no Conn here
	c, ok := t.Conn.(syscall.Conn)
	if !ok {
		return nil, false
	}
	raw, err := c.SyscallConn()
	return raw, err == nil
}

// unusedReason is the metric's label.
func unusedReason(err error) string {
	switch {
	case errors.Is(err, errNotLive):
		return "route"
	case errors.Is(err, errResting):
		return "stand_in"
	case errors.Is(err, errDown):
		return "down"
	case errors.Is(err, errNoSeat):
		return "full"
	case errors.Is(err, errSlow):
		return "slow"
	case errors.Is(err, errLoop):
		return "loop"
	case errors.Is(err, errXClient), errors.Is(err, errNoName):
		return "unnamed"
	}
	return "failed"
}

// pace is what a route knows of its live sessions' replies. The route's mu
// guards it.
type pace struct {
	slow  int       // slow replies in a row
	until time.Time // the next hop is left alone
	host  netip.Addr
	caps  caps
	known bool // caps are
}

// willing says why no live session should begin now, for a client with either of
// these addresses.
func (r *route) willing(of ...netip.Addr) error {
	if err := r.unwilling(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.health != up {
		return errDown
	}
	if time.Now().Before(r.pace.until) {
		return errSlow
	}
	for _, a := range of {
		if a == r.pace.host && !a.IsLoopback() && a.IsValid() {
			return errLoop
		}
	}
	return nil
}

// notePace takes over how long a reply took.
func (r *route) notePace(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if took < liveSlow {
		r.pace.slow = 0
		return
	}
	if r.pace.slow++; r.pace.slow >= liveSlows {
		r.pace.slow, r.pace.until = 0, time.Now().Add(livePaused)
	}
}

// pauseLive leaves the next hop alone for a while, if it didn't answer in time:
// probes find out whether it is down.
func (r *route) pauseLive(late bool) {
	if !late {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.until = time.Now().Add(livePaused)
}

// noteHost takes over where the next hop is.
func (r *route) noteHost(a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pace.host = tcp.AddrPort().Addr().Unmap().WithZone("")
	}
}
