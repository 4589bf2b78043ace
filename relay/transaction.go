package relay

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// maxPath bounds a path in a command. RFC 5321 §4.5.3.1.3 has 256 octets;
// SMTPUTF8 and generous servers take more.
const maxPath = 1024

// transaction is one Transfer under way.
type transaction struct {
	t       *envelope.Transfer
	body    io.ReadCloser
	started time.Time

	replies []envelope.Reply // final ones; zero while there is none
	ok      []bool           // RCPT accepted, so that the final reply is this recipient's
	accept  int              // how many are ok
	heard   bool             // some reply was about this transaction
	goAhead bool             // 354
	ended   bool             // the final dot is written
	unfit   envelope.Reply   // to MAIL, if it was about the session
	settled bool
}

// awaited is a reply that the next hop owes us.
type awaited struct {
	step step
	x    *transaction // nil for RSET and a lone dot
	rcpt int
}

func newTransaction(t *envelope.Transfer) *transaction {
	n := len(t.Envelope.To)
	return &transaction{t: t, replies: make([]envelope.Reply, n), ok: make([]bool, n)}
}

// prepare makes a transaction of t. When this next hop can't have t at all, or
// its content can't be opened, it settles t and returns nil: that harms no
// session.
func (s *session) prepare(t *envelope.Transfer) *transaction {
	x := newTransaction(t)
	if r := s.impossible(t.Envelope); !r.Zero() {
		x.fill(r)
		x.settle(nil)
		return nil
	}
	body, err := t.Open()
	if err != nil {
		x.settle(&contentError{err})
		return nil
	}
	x.body = s.content(t, body)
	return x
}

// impossible returns the reply for an envelope that can't be put into this next
// hop's commands, and a zero Reply for all others.
func (s *session) impossible(e *envelope.Envelope) envelope.Reply {
	ok := len(e.To) > 0 && sayable(e.From.Mailbox)
	for i := range e.To {
		ok = ok && sayable(e.To[i].Path.Mailbox)
	}
	switch {
	case !ok:
		return envelope.NewReply(554, "5.6.0", "Envelope can't be relayed")
	case e.UTF8 && !s.caps.utf8:
		return envelope.NewReply(553, "5.6.7", "Message needs SMTPUTF8, which the next hop does not offer")
	}
	return envelope.Reply{}
}

// sayable says that m is one argument of a command, whole, inside angle
// brackets. Mailbox.String quotes a local-part, but would mask its control
// characters, and takes the domain as it is.
func sayable(m envelope.Mailbox) bool {
	return len(m.Local)+len(m.Domain) <= maxPath &&
		!strings.ContainsFunc(m.Local, isControl) &&
		!strings.ContainsAny(m.Domain, " <>@\"\\") && !strings.ContainsFunc(m.Domain, isControl)
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// needsUTF8 says that e is relayed by SMTPUTF8 where that is offered. Elsewhere
// only what the client gave us by it can't be relayed (RFC 6531 §3.5: the
// header may need it); a local-part that it gave us as it is goes on like that,
// as Postfix takes and sends it, and the next hop judges.
func needsUTF8(e *envelope.Envelope) bool {
	need := e.UTF8 || !isASCII(e.From.Local) || !isASCII(e.From.Domain)
	for i := range e.To {
		need = need || !isASCII(e.To[i].Path.Local) || !isASCII(e.To[i].Path.Domain)
	}
	return need
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// begin sends x's commands up to DATA, after RSET if a transaction is open.
// With PIPELINING their replies are left to drain, but for those that do not
// fit the window; without, it waits for each.
func (s *session) begin(x *transaction) error {
	s.active = append(s.active, x)
	if s.dirty {
		s.dirty = false
		if err := s.command(awaited{step: stepRset}, "RSET"); err != nil {
			return err
		}
	}
	x.started = time.Now()
	e := x.t.Envelope
	if err := s.command(awaited{step: stepMail, x: x}, "MAIL FROM:<", e.From.String(), ">", s.mailParams(x.t)); err != nil {
		return err
	}
	open := len(e.To)
	for i, to := range e.To {
		if !x.replies[i].Zero() {
			break // MAIL was refused
		}
		if err := s.command(awaited{stepRcpt, x, i}, "RCPT TO:<", to.Path.String(), ">", s.rcptParams(&to)); err != nil {
			return err
		}
	}
	for _, r := range x.replies {
		if !r.Zero() {
			open--
		}
	}
	if open == 0 {
		return nil // nobody left to send DATA for
	}
	return s.command(awaited{step: stepData, x: x}, "DATA")
}

func (s *session) mailParams(t *envelope.Transfer) string {
	p, e := "", t.Envelope
	if s.caps.size && t.Size >= 0 {
		p += " SIZE=" + strconv.FormatInt(t.Size+int64(len(s.authResults(t))), 10)
	}
	if s.caps.eightBit && e.EightBit {
		p += " BODY=8BITMIME"
	}
	if s.caps.utf8 && needsUTF8(e) {
		p += " SMTPUTF8"
	}
	if s.caps.dsn {
		p += param(" RET=", e.Ret) + param(" ENVID=", e.EnvID)
	}
	return p
}

func (s *session) rcptParams(to *envelope.Recipient) string {
	if !s.caps.dsn {
		return ""
	}
	return param(" NOTIFY=", to.Notify) + param(" ORCPT=", to.ORcpt)
}

// param returns a parameter that a client gave, and "" for one that is absent
// or is not an esmtp-value of a sane length. ORCPT may have 500 octets, RFC
// 3461 §5.4.
func param(name, value string) string {
	if value == "" || len(value) > 500 {
		return ""
	}
	for i := range len(value) {
		if value[i] <= ' ' || value[i] > '~' {
			return ""
		}
	}
	return name + value
}

// window is how many replies may be owed to us. It keeps them below what socket
// buffers hold, so that we and the next hop can't block each other, both waiting
// to write (RFC 2920 §3.1).
const window = 100

// command queues a command whose reply handle will get.
func (s *session) command(a awaited, parts ...string) error {
	if err := s.write(parts...); err != nil {
		return err
	}
	s.awaited = append(s.awaited, a)
	if !s.caps.pipelining || len(s.awaited) >= window {
		return s.drain()
	}
	return nil
}

// stillOurs asks the queue once more before a final dot goes out: finding the next
// message may have taken a database's time.
func (s *session) stillOurs() error {
	if len(s.awaited) == 0 || s.awaited[0].step != stepEnd || s.bw.Buffered() == 0 {
		return nil
	}
	x := s.awaited[0].x
	if x.t.Held == nil {
		return nil
	}
	if err := x.t.Held(); err != nil {
		x.ended = false
		return &contentError{err}
	}
	return nil
}

// drain sends what is queued and reads all replies that are owed.
func (s *session) drain() error {
	if err := s.stillOurs(); err != nil {
		return err
	}
	if err := s.bw.Flush(); err != nil {
		if len(s.awaited) > 0 && s.awaited[0].step == stepEnd {
			return s.lastWord(s.awaited[0].x, err)
		}
		return err
	}
	for len(s.awaited) > 0 {
		a := s.awaited[0]
		reply, err := s.read(a.step, nil)
		if err != nil {
			return err
		}
		s.awaited = s.awaited[1:]
		if err := s.handle(a, reply); err != nil {
			return err
		}
	}
	return nil
}

// handle takes a reply to a. The error ends the session: after 421 the next hop
// closes, and after a reply that makes no sense nothing else does.
func (s *session) handle(a awaited, r envelope.Reply) error {
	out := &refusal{a.step, r}
	x := a.x
	if s.done > 0 && out.endsSession() {
		return out // enough of this session, not of this message
	}
	if r.Code/100 == 3 && a.step != stepData {
		return out
	}
	if x != nil {
		x.heard = true
		if ofSession(r.Code) { // it must neither hold nor return a message
			r = envelope.NewReply(450, "4.5.0", "Session refused: %.230s", r)
		}
	}
	switch a.step {
	case stepRset:
		if !r.Positive() {
			return out
		}
	case stepMail:
		if ofSession(out.reply.Code) {
			x.unfit = out.reply
		}
		if !r.Positive() {
			x.fill(r)
		}
	case stepRcpt:
		switch {
		case !x.replies[a.rcpt].Zero(): // MAIL was refused
		case r.Positive():
			x.ok[a.rcpt] = true
			x.accept++
		default:
			x.replies[a.rcpt] = r
		}
	case stepData:
		switch {
		case r.Code == 354:
			x.goAhead = true
		case r.Code < 400:
			return out
		default:
			x.refuse(r)
		}
	case stepEnd:
		x.refuse(r) // or the opposite
		s.done++
		s.c.metrics.RelayDuration.Observe(time.Since(x.started).Seconds())
		s.finish(x)
	}
	if r.Code == 421 {
		return out
	}
	return nil
}

// send goes on from x's replies up to DATA, all of which are in: content and
// final dot, whose reply is left to drain; or the end, if nobody is to get x.
func (s *session) send(x *transaction) error {
	switch {
	case !x.goAhead:
		if err := s.fit(x); err != nil {
			return err
		}
		s.dirty = true
		s.finish(x)
		return nil
	case x.accept == 0: // RFC 2920 §3.1: DATA rode along, and must be ended
		s.dirty = true
		s.finish(x)
		return s.command(awaited{step: stepLoneDot}, ".")
	case s.br.Buffered() > 0:
		return errUnsolicited
	}
	if s.buf == nil { // sessions that only ask or are live need neither
		if err := s.bw.Flush(); err != nil {
			return s.lastWord(x, err)
		}
		s.buf, s.bw = make([]byte, chunk), bufio.NewWriterSize(s.conn, chunk)
	}
	err := writeContent(s.bw, x.body, s.buf)
	var ours *contentError
	switch {
	case errors.As(err, &ours):
		return err
	case err != nil:
		return s.lastWord(x, err)
	}
	x.ended = true
	s.awaited = append(s.awaited, awaited{step: stepEnd, x: x})
	return nil
}

// fit looks, after a refusal of MAIL that seems to be about the session, whether
// it is: then no message passes, and x counts as not tried. A next hop that takes
// another MAIL refused this one.
func (s *session) fit(x *transaction) error {
	if x.unfit.Zero() {
		return nil
	}
	reply, err := s.call(stepRset, nil, "RSET")
	if err == nil && reply.Positive() {
		reply, err = s.call(stepMail, nil, "MAIL FROM:<>")
		if err == nil && reply.Code != 421 && !ofSession(reply.Code) {
			return nil
		}
	}
	clear(x.replies)
	return cmp.Or(err, error(&refusal{stepMail, x.unfit}))
}

// lastWord looks why the next hop hung up amid the content. A refusal that it
// sent before counts: the message would meet with it again and again.
func (s *session) lastWord(x *transaction, err error) error {
	s.conn.SetReadDeadline(time.Now().Add(s.t.Quit))
	r, rerr := readReply(s.br, nil)
	if rerr != nil || !r.Temporary() && !r.Permanent() {
		return fmt.Errorf("send the message: %w", err)
	}
	x.refuse(r)
	return &refusal{stepEnd, r}
}

// finish settles x with the replies that it has.
func (s *session) finish(x *transaction) {
	for i := range s.active {
		if s.active[i] == x {
			s.active = append(s.active[:i], s.active[i+1:]...)
			break
		}
	}
	x.settle(nil)
}

// fill is the reply for all recipients that have none.
func (x *transaction) fill(r envelope.Reply) {
	for i := range x.replies {
		if x.replies[i].Zero() {
			x.replies[i] = r
		}
	}
}

// refuse is the reply for all recipients that RCPT accepted.
func (x *transaction) refuse(r envelope.Reply) {
	for i := range x.replies {
		if x.ok[i] {
			x.replies[i] = r
		}
	}
}

// settle hands the outcome to the queue. An err does not count when each
// recipient got its final reply anyway.
func (x *transaction) settle(err error) {
	if x.settled {
		panic("relay: transfer settled twice")
	}
	x.settled = true
	if x.body != nil {
		x.body.Close()
	}
	if x.complete() {
		err = nil
	}
	x.t.Settle(x.replies, err)
}

// complete says that each recipient has its final reply.
func (x *transaction) complete() bool {
	return !slices.ContainsFunc(x.replies, envelope.Reply.Zero)
}
