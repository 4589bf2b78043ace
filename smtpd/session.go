package smtpd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// session is who the client is and what it said. It runs in the connection's
// goroutine, which is go-smtp's.
type session struct {
	srv     *Server
	conn    *connection
	library *library
	ctx     context.Context
	end     context.CancelFunc
	closing sync.Once

	began   time.Time // zero before the greeting
	over    bool      // the connection closes
	result  string    // for the metric
	verb    string    // the command in hand, for metrics and logs
	command Command   // … as it is decided

	client envelope.Client
	tls    *tls.ConnectionState
	visitor
	counters

	decider Decider
	filters *filtering // around it; nil where nobody stands for a milter
	args    []string   // address and parameters of the MAIL or RCPT in hand, as they came
	policy  *policy.Session
	snap    *policy.Snapshot
	lim     policy.Limits
	offered []string // the extensions of the last EHLO
	cut     []string // … and those that the Decider took from it
	cutSize int64    // … and its limit on a message's size, 0 when it has none
	esmtp   bool     // the last greeting, also a refused one, was EHLO
	forgot  bool     // TLS started; the policy still knows the HELO of before

	tx   *transaction
	rcpt envelope.Recipient // of the RCPT in hand
	// size is the last SIZE=, until a transaction ends. As in Postfix, a MAIL
	// without it repeats that of a MAIL that was refused.
	size int64
	// author says that there was an AUTH= since then.
	author bool
	// lost says that a recipient was accepted, until a message comes, who gets no copy
	// of it. As in Exim, RSET doesn't end that.
	lost bool
}

// visitor is what the client's standing is, and how it behaved.
type visitor struct {
	counted    netip.Addr   // the client that the connection counts for
	entered    netip.Prefix // … with the policy's limits
	xclient    bool         // XCLIENT is allowed
	early      bool         // it spoke before our greeting
	pregreeted bool         // … and gets no recipient through
	hasty      bool         // … or said more than it was its turn to, ever
}

func newSession(c *connection) *session {
	s := &session{srv: c.ln.srv, conn: c, result: "aborted"}
	s.ctx, s.end = context.WithCancel(c.ln.ctx)
	s.library = &library{Conn: c.raw, s: s}
	return s
}

// next does one thing: greets, or reads one command and deals with it.
func (s *session) next() {
	if s.began.IsZero() {
		s.start()
		s.library.hand("HELO client", nil) // makes go-smtp's session
		return
	}
	s.verb = "other"
	if s.tooManyErrors() {
		return
	}
	s.conn.await(s.srv.CommandTimeout, s.began.Add(s.srv.SessionTimeout))
	line, err := s.conn.line()
	var command string
	if err == nil {
		command, err = checkCommand(line, s.bareNewline, s.takesAnyOctet(line))
	}
	if err != nil {
		s.noCommand(err)
		return
	}
	if s.slowDown(); !s.over {
		s.obey(s.policy.Command(command))
	}
}

// takesAnyOctet says that a command needn't be UTF-8. An Exim judges every HELO name,
// and forgets the one before it.
func (s *session) takesAnyOctet(line []byte) bool {
	if s.snap.Protocol().NoUTF8 {
		return true
	}
	verb, _, _ := bytes.Cut(bytes.TrimLeft(line, space), []byte(" "))
	return s.snap.Spec().ACL != nil && (bytes.EqualFold(verb, []byte("EHLO")) || bytes.EqualFold(verb, []byte("HELO")))
}

// noCommand answers what isn't a command line.
func (s *session) noCommand(err error) {
	timeout := errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case errors.Is(err, errDraining):
		s.dismiss("aborted", "", "4.3.2", "Service shutting down")
	case errors.Is(err, errBusy):
		s.dismiss("refused", "stress", "4.7.0", "Error: too busy for you")
	case timeout && time.Since(s.began) >= s.srv.SessionTimeout:
		s.dismiss("timeout", "session_time", "4.7.0", "Error: session too long")
	case errors.Is(err, errTooLong):
		s.limit("command_length")
		s.reply(envelope.NewReply(500, "5.5.2", "Error: command too long"))
	case errors.Is(err, errBadUTF8):
		s.reply(envelope.NewReply(500, "5.5.2", "Error: bad UTF-8 syntax"))
	case errors.Is(err, errBadOctet):
		s.reply(envelope.NewReply(500, "5.5.2", "Error: bad character in command"))
	case errors.Is(err, errBareLF):
		_, code := s.bareNewline()
		s.hangUp("error", bareLF(cmp.Or(code, 500)))
	case errors.Is(err, errFlood):
		s.dismiss("error", "command_length", "4.5.2", "Error: command too long")
	case timeout:
		s.dismiss("timeout", "command_timeout", "4.4.2", "Error: timeout exceeded")
	default:
		s.over = true // the client has gone
	}
}

func bareLF(code int) envelope.Reply {
	return envelope.NewReply(code, "5.5.2", "Error: bare <LF> received")
}

var (
	errBadOctet = errors.New("control character in command")
	errBadUTF8  = errors.New("command is not UTF-8")
	errBareLF   = errors.New("bare line feed")
)

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

// bareNewline says whether a bare line feed ends a line as CRLF does. Where it
// is the policy that refuses it, code is that of its reply.
func (s *session) bareNewline() (allowed bool, code int) {
	switch s.srv.BareNewline {
	case "reject":
		return false, 0
	case "normalize":
		return true, 0
	}
	mode, code := s.policy.BareNewline(s.ctx)
	if mode == "" {
		return false, 0
	}
	return mode == "normalize", code
}

// known is the client with all that is known of it.
func (s *session) known(ctx context.Context) envelope.Client {
	c := s.policy.Client(ctx)
	c.Helo, c.Protocol, c.TLS = s.client.Helo, s.client.Protocol, s.client.TLS
	return c
}

// close ends the session and its connection.
func (s *session) close() {
	_ = s.conn.flush()
	s.end()
	if s.tx != nil {
		s.endTransaction()
	}
	if s.entered.IsValid() { // before the client sees the end, and connects again
		s.srv.crowd.rates.leave(s.entered)
	}
	if s.over && (s.result != "completed" || len(s.conn.in.pending()) > 0) {
		s.conn.linger() // after QUIT a client says nothing more
	}
	_ = s.conn.raw.Close()
	if s.decider != nil {
		s.decider.Close()
	}
	if s.policy != nil {
		s.policy.Close()
	}
	s.conn.in.release()
	s.srv.crowd.leave(s.conn, s.counted)
	s.srv.Metrics.SessionsOpen.Dec()
	s.srv.Metrics.Sessions.WithLabelValues(s.result).Inc()
}

// grow makes the goroutine's stack as large as most sessions need it while there
// is little on it to copy: doubling it step by step costs a short one 2 to 3 %.
//
//go:noinline
func grow(i int) byte {
	var room [8 << 10]byte
	return room[i]
}
