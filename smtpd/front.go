package smtpd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pires/go-proxyproto"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// front is one connection. go-smtp takes it for a net.Conn: its Read runs the
// SMTP session and hands go-smtp a made-up line whenever a command opens,
// extends or ends a mail transaction; its Write drops go-smtp's replies, in
// whose place ours are sent. All but drain and Close run in the connection's
// one goroutine.
type front struct {
	srv *Server
	ln  *listener
	ctx context.Context
	end context.CancelFunc
	raw net.Conn // the connection below TLS

	mu       sync.Mutex // guards the six below
	conn     net.Conn   // what we read and write: raw, or TLS over it
	reading  bool       // so that stress may shorten the wait
	deadline time.Time  // of that
	waiting  bool       // reading a command, so that a drain may break the wait
	draining bool
	listed   bool // a connect rule refuses the client

	in      input
	skipped int    // octets dropped of a line that is too long
	out     []byte // replies not yet written
	feed    string // what go-smtp reads next
	ours    bool   // we answer the command that go-smtp has in hand
	started bool
	over    bool   // the session has ended; the connection closes
	result  string // of the session, for the metric
	closing sync.Once

	place      int          // how many connections there were with this one
	counted    netip.Addr   // the client that this connection counts for
	entered    netip.Prefix // … with the policy's limits
	began      time.Time
	early      bool // the client spoke before our greeting
	pregreeted bool // … and gets no recipient through
	hasty      bool // … or said more than it was its turn to, ever
	xclient    bool // XCLIENT is allowed
	tls        *tls.ConnectionState
	forgot     bool // TLS started; the policy still knows the HELO of before

	client envelope.Client
	snap   *policy.Snapshot
	lim    policy.Limits
	policy *policy.Session
	// offered are the extensions of the last EHLO.
	offered []string
	tx      *transaction
	rcpt    envelope.Recipient // of the RCPT in hand
	// size is the last SIZE=, until a transaction ends. As in Postfix, a MAIL
	// without it repeats that of a MAIL that was refused.
	size int64
	// author says that there was an AUTH= since then.
	author bool

	verb      string // the command in hand, for metrics and logs
	mails     int    // mail transactions begun
	errs      int    // errors since the last accepted message
	junk      int    // NOOPs and their like since then
	unknown   int    // recipients refused as unknown
	overshoot int    // recipients beyond the limit
}

func newFront(l *listener, c net.Conn) *front {
	f := &front{srv: l.srv, ln: l, raw: c, conn: c, in: newInput(), ours: true, result: "aborted"}
	f.ctx, f.end = context.WithCancel(l.ctx)
	return f
}

// Read gives go-smtp its next line, running the session up to there.
func (f *front) Read(p []byte) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			f.panicked(r)
			n, err = 0, io.EOF
		}
	}()
	for len(f.feed) == 0 && !f.over {
		f.step()
	}
	if len(f.feed) == 0 {
		f.flush()
		return 0, io.EOF
	}
	n = copy(p, f.feed)
	f.feed = f.feed[n:]
	return n, nil
}

// panicked ends a session in which a bug of ours showed.
func (f *front) panicked(r any) {
	f.srv.Log.Error("smtp session panicked", "client", f.client.Addr, "panic", r, "stack", string(debug.Stack()))
	f.feed = ""
	f.hangUp("error", envelope.NewReply(421, "4.3.0", "%s Error: internal error", f.srv.Hostname))
	f.flush()
}

// Write takes go-smtp's replies. They are sent only where we have none.
func (f *front) Write(p []byte) (int, error) {
	if !f.ours {
		f.out = append(f.out, p...)
	}
	return len(p), nil
}

// bareNewline says whether a bare line feed ends a line as CRLF does. Where it
// is the policy that refuses it, code is that of its reply.
func (f *front) bareNewline() (allowed bool, code int) {
	switch f.srv.BareNewline {
	case "reject":
		return false, 0
	case "normalize":
		return true, 0
	}
	mode, code := f.policy.BareNewline(f.ctx)
	if mode == "" {
		return false, 0
	}
	return mode == "normalize", code
}

// step does one thing: greets, or reads one command and deals with it.
func (f *front) step() {
	if !f.started {
		f.started = true
		f.start()
		f.feed = "HELO client\r\n" // makes go-smtp's session
		return
	}
	f.verb = "other"
	if f.tooManyErrors() {
		return
	}
	line, err := f.readCommand()
	if err == nil {
		if f.slowDown(); f.over {
			return
		}
		f.command(f.policy.Command(line))
		return
	}
	timeout := errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case f.isDraining():
		f.hangUp("aborted", f.closing421())
	case errors.Is(err, errBusy):
		f.limit("stress")
		f.hangUp("refused", envelope.NewReply(421, "4.7.0", "%s Error: too busy for you", f.srv.Hostname))
	case timeout && time.Since(f.began) >= f.srv.SessionTimeout:
		f.limit("session_time")
		f.hangUp("timeout", envelope.NewReply(421, "4.7.0", "%s Error: session too long", f.srv.Hostname))
	case errors.Is(err, errTooLong):
		f.limit("command_length")
		f.reply(envelope.NewReply(500, "5.5.2", "Error: command too long"))
	case errors.Is(err, errBadUTF8):
		f.reply(envelope.NewReply(500, "5.5.2", "Error: bad UTF-8 syntax"))
	case errors.Is(err, errBadOctet):
		f.reply(envelope.NewReply(500, "5.5.2", "Error: bad character in command"))
	case errors.Is(err, errBareLF):
		_, code := f.bareNewline()
		f.hangUp("error", bareLF(cmp.Or(code, 500)))
	case errors.Is(err, errFlood):
		f.limit("command_length")
		f.hangUp("error", envelope.NewReply(421, "4.5.2", "%s Error: command too long", f.srv.Hostname))
	case timeout:
		f.limit("command_timeout")
		f.hangUp("timeout", timeoutReply(f.srv.Hostname))
	default:
		f.over = true // the client has gone
	}
}

func bareLF(code int) envelope.Reply {
	return envelope.NewReply(code, "5.5.2", "Error: bare <LF> received")
}

func (f *front) closing421() envelope.Reply {
	return envelope.NewReply(421, "4.3.2", "%s Service shutting down", f.srv.Hostname)
}

func timeoutReply(hostname string) envelope.Reply {
	return envelope.NewReply(421, "4.4.2", "%s Error: timeout exceeded", hostname)
}

var (
	errBadOctet = errors.New("control character in command")
	errBadUTF8  = errors.New("command is not UTF-8")
	errBareLF   = errors.New("bare line feed")
	errDraining = errors.New("shutting down")
	errBusy     = errors.New("under stress")
)

// readCommand reads a command line, without its CRLF.
func (f *front) readCommand() (string, error) {
	f.in.shrink()
	deadline := time.Now().Add(f.srv.crowd.patience(f.srv.CommandTimeout))
	if last := f.began.Add(f.srv.SessionTimeout); last.Before(deadline) {
		deadline = last
	}
	for {
		if f.isDraining() {
			return "", errDraining
		}
		if f.isUnwanted() {
			return "", errBusy
		}
		line, err := f.in.line(&f.skipped)
		if err != nil {
			return "", err
		}
		if line != nil {
			return checkCommand(line, f.bareNewline, f.snap.Protocol().NoUTF8)
		}
		if err := f.fill(deadline, true); err != nil {
			if f.isUnwanted() {
				err = errBusy
			}
			return "", err
		}
	}
}

// checkCommand takes the line's end off and refuses what no command may hold.
func checkCommand(line []byte, bareNewline func() (bool, int), anyOctet bool) (string, error) {
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	} else if allowed, _ := bareNewline(); !allowed {
		return "", errBareLF
	}
	if bytes.ContainsAny(line, "\x00\r") {
		return "", errBadOctet
	}
	if !anyOctet && !utf8.Valid(line) {
		return "", errBadUTF8
	}
	return string(line), nil
}

// fill writes what is to be written and reads what the client sends, until
// deadline. A wait for a command ends when the server drains.
func (f *front) fill(deadline time.Time, command bool) error {
	if err := f.flush(); err != nil {
		return err
	}
	f.mu.Lock()
	if command && f.draining {
		f.mu.Unlock()
		return errDraining
	}
	f.reading, f.waiting, f.deadline = true, command, deadline
	err := f.conn.SetReadDeadline(deadline)
	f.mu.Unlock()
	if err == nil {
		err = f.in.fill(f.conn)
	}
	f.mu.Lock()
	f.reading, f.waiting = false, false
	f.mu.Unlock()
	return err
}

func (f *front) isDraining() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.draining
}

// drain makes the session end at its next command.
func (f *front) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	if f.waiting {
		_ = f.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// hurry shortens the wait of a session when stress begins. A client that is
// listed needn't wait at all: readCommand hangs up on it.
func (f *front) hurry() {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := time.Now().Add(stressTimeout)
	if f.waiting && f.listed {
		by = time.Unix(1, 0)
	}
	if f.reading && by.Before(f.deadline) {
		f.deadline = by
		_ = f.conn.SetReadDeadline(by)
	}
}

// isUnwanted says that the place is needed for somebody else.
func (f *front) isUnwanted() bool {
	if !f.srv.crowd.stressed.Load() {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.listed
}

// reply queues a reply to the command in hand. Replies leave together, when
// the client has nothing more to say for now.
func (f *front) reply(r envelope.Reply) {
	if r.Code < 200 || r.Code > 599 {
		r = envelope.NewReply(451, "4.3.5", "Server configuration error")
	}
	if f.snap != nil && f.snap.Spec().SoftBounce {
		r = r.Softened()
	}
	f.srv.Metrics.Commands.WithLabelValues(f.verb, class(r.Code)).Inc()
	f.out = appendReply(f.out, r)
	if r.Code >= 400 {
		f.errs++
	}
	if r.Code == 421 || r.Code == 521 {
		f.over = true
	}
}

func class(code int) string {
	return [...]string{"2xx", "3xx", "4xx", "5xx"}[code/100-2]
}

// hangUp answers and ends the session. A zero reply is not sent.
func (f *front) hangUp(result string, r envelope.Reply) {
	if f.over {
		return
	}
	if !r.Zero() {
		f.reply(r)
	}
	f.result, f.over = result, true
}

// appendReply writes r on the wire: every line with both codes (RFC 2034 §4),
// nothing in it that could end a line early, no line above 512 octets.
func appendReply(b []byte, r envelope.Reply) []byte {
	line, rest, more := strings.Cut(r.Text, "\n")
	for more {
		b = appendLine(b, r.Code, '-', r.Enhanced, line)
		line, rest, more = strings.Cut(rest, "\n")
	}
	return appendLine(b, r.Code, ' ', r.Enhanced, line)
}

func appendLine(b []byte, code int, sep byte, enhanced, line string) []byte {
	b = append(strconv.AppendInt(b, int64(code), 10), sep)
	if enhanced != "" {
		b = append(append(b, enhanced...), ' ')
	}
	line = line[:min(len(line), 510-len("550 5.7.1 "))]
	for len(line) > 0 {
		r, n := utf8.DecodeRuneInString(line)
		switch {
		case unicode.IsControl(r), r == utf8.RuneError && n == 1:
			b = append(b, '?')
		default:
			b = append(b, line[:n]...)
		}
		line = line[n:]
	}
	return append(b, "\r\n"...)
}

// flush writes the replies that wait.
func (f *front) flush() error {
	if len(f.out) == 0 {
		return nil
	}
	out := f.out
	f.out = f.out[:0]
	if cap(f.out) > maxCommand {
		f.out = nil
	}
	if err := f.conn.SetWriteDeadline(time.Now().Add(f.srv.CommandTimeout)); err != nil {
		return err
	}
	_, err := f.conn.Write(out)
	return err
}

const maxSlowDown = 10 * time.Second

// limit counts that the client ran into one of our bounds.
func (f *front) limit(name string) { f.srv.Metrics.SMTPLimits.WithLabelValues(name).Inc() }

// tooManyErrors hangs up on a client that makes too many.
func (f *front) tooManyErrors() bool {
	hard := f.limits().HardErrors
	switch {
	case hard > 0 && f.errs >= hard:
		f.limit("errors")
		f.hangUp("error", envelope.NewReply(421, "4.7.0", "%s Error: too many errors", f.srv.Hostname))
	case f.unknown >= f.srv.MaxUnknownRecipients:
		f.limit("unknown_recipients")
		f.hangUp("error", envelope.NewReply(421, "4.7.0", "%s Error: too many unknown recipients", f.srv.Hostname))
	}
	return f.over
}

// slowDown makes a client wait for a reply once it has made as many errors as
// the policy's soft limit, as Postfix does: smtpd_error_sleep_time, at most
// maxSlowDown. Under stress nobody is kept that way.
func (f *front) slowDown() {
	limits := f.limits()
	if limits.SoftErrors == 0 || f.errs < limits.SoftErrors || f.lim.ErrorSleep == 0 {
		return
	}
	f.limit("soft_errors")
	if f.srv.crowd.stressed.Load() {
		f.hangUp("error", envelope.NewReply(421, "4.7.0", "%s Error: too many errors", f.srv.Hostname))
		return
	}
	if f.flush() != nil { // what is ready needn't wait
		f.over = true
		return
	}
	t := time.NewTimer(min(time.Duration(f.lim.ErrorSleep)*time.Second, maxSlowDown))
	defer t.Stop()
	select {
	case <-t.C:
	case <-f.ctx.Done():
	}
}

// limits are the policy's of errors, under stress those that it has for then.
func (f *front) limits() policy.StressLimits {
	l := &f.lim
	now := policy.StressLimits{SoftErrors: l.SoftErrors, HardErrors: l.HardErrors, JunkCommands: l.JunkCommands}
	if f.srv.crowd.stressed.Load() {
		now.SoftErrors = cmp.Or(l.Stress.SoftErrors, now.SoftErrors)
		now.HardErrors = cmp.Or(l.Stress.HardErrors, now.HardErrors)
		now.JunkCommands = cmp.Or(l.Stress.JunkCommands, now.JunkCommands)
	}
	return now
}

// Close ends the session; go-smtp calls it, maybe more than once.
func (f *front) Close() error {
	f.closing.Do(func() {
		_ = f.flush()
		f.end()
		if f.tx != nil {
			f.tx.endInquiry()
		}
		if f.entered.IsValid() { // before the client sees the end, and connects again
			f.srv.crowd.rates.leave(f.entered)
		}
		f.linger()
		_ = f.raw.Close()
		if f.policy != nil {
			f.policy.Close()
		}
		f.in.release()
		f.srv.crowd.leave(f, f.counted)
		f.srv.Metrics.SessionsOpen.Dec()
		f.srv.Metrics.Sessions.WithLabelValues(f.result).Inc()
	})
	return nil
}

// linger lets the client read our last reply: to close while its octets lie
// unread would reset the connection and may destroy the reply.
func (f *front) linger() {
	if !f.over || f.result == "completed" && len(f.in.pending()) == 0 {
		return // after QUIT a client says nothing more
	}
	if t, ok := f.conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	raw := f.raw
	if p, ok := raw.(*proxyproto.Conn); ok {
		raw = p.Raw()
	}
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if raw.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(raw, 256<<10))
	}
}

// LocalAddr and the rest make a net.Conn. go-smtp sets no deadlines here: it
// is given no time-outs.
func (f *front) LocalAddr() net.Addr { return f.raw.LocalAddr() }

// RemoteAddr is the client's address as the session has it.
func (f *front) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.client.Addr, f.client.Port))
}

func (f *front) SetDeadline(time.Time) error      { return nil }
func (f *front) SetReadDeadline(time.Time) error  { return nil }
func (f *front) SetWriteDeadline(time.Time) error { return nil }
