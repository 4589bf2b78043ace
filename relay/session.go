package relay

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// step is what a reply answers.
type step string

const (
	stepGreeting step = "the connection"
	stepEhlo     step = "EHLO"
	stepStartTLS step = "STARTTLS"
	stepXClient  step = "XCLIENT"
	stepRset     step = "RSET"
	stepMail     step = "MAIL"
	stepRcpt     step = "RCPT"
	stepData     step = "DATA"
	stepEnd      step = "the message"
	stepLoneDot  step = "an empty message" // ends a DATA that had no recipients
	stepQuit     step = "QUIT"
)

var (
	errOurselves   = errors.New("next hop greets with our own hostname: mail would loop; check the route's address and hostname")
	errNoStartTLS  = errors.New("next hop offers no STARTTLS, which the route requires")
	errUnsolicited = errors.New("next hop spoke out of turn")
)

// handshakeError is a TLS handshake that failed.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake with next hop: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// caps are the service extensions of the last EHLO reply that we use.
type caps struct {
	pipelining, size, eightBit, utf8, dsn, startTLS bool
	maxSize                                         int64  // SIZE's, 0 when it has none
	xclient                                         string // " NAME ADDR … ", "" when not offered
}

// add takes one line of an EHLO reply.
func (c *caps) add(line string) {
	keyword, params, _ := strings.Cut(strings.ToUpper(line), " ")
	switch keyword {
	case "PIPELINING":
		c.pipelining = true
	case "SIZE":
		c.size = true
		n, _ := strconv.ParseInt(params, 10, 64)
		c.maxSize = max(0, n)
	case "8BITMIME":
		c.eightBit = true
	case "SMTPUTF8":
		c.utf8 = true
	case "DSN":
		c.dsn = true
	case "STARTTLS":
		c.startTLS = true
	case "XCLIENT":
		c.xclient = " " + params + " "
	}
}

// session is one connection to a next hop. One goroutine owns it.
type session struct {
	c    *Client
	r    *route
	t    Timeouts
	raw  timedConn // closing it never waits
	conn net.Conn  // the TLS connection, once there is one
	br   *bufio.Reader
	bw   *bufio.Writer
	caps caps

	heard     atomic.Int64       // when the last reply came, in Unix nanoseconds
	name      string             // EHLO's argument, until XCLIENT
	identity  string             // the XCLIENT command in force, or whom the PROXY header names; "" for none
	xclient   string             // XCLIENT's attributes, also when it is offered no more
	noXClient bool               // the next hop offered XCLIENT, but does not take ours
	awaited   []awaited          // replies owed to us, in order
	active    []*transaction     // begun and not settled: one ending, one after it
	waiting   *envelope.Transfer // taken, to be begun when active is empty
	done      int                // messages that got their final reply
	unsure    string             // ID of the message that failed with its reply to the dot missing, "" for none
	dirty     bool               // a transaction is open that needs RSET
	whole     bool               // replies are passed on, all lines of them
	buf       []byte             // scratch for content
}

// timedConn gives each write a deadline. Reads get theirs where they happen.
type timedConn struct {
	net.Conn
	timeout time.Duration
}

// abort ends the connection, and drops what the next hop hasn't fetched of it: a
// message in there counts as not relayed, and must not arrive after all.
func (c timedConn) abort() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

func (c timedConn) Write(p []byte) (n int, err error) {
	for err == nil {
		if err = c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			break
		}
		var m int
		m, err = c.Conn.Write(p[n:min(len(p), n+64<<10)])
		if n += m; n == len(p) {
			break
		}
	}
	return n, err
}

// connect opens a session: greeting, EHLO, and STARTTLS as mode says. If the
// handshake fails and mode allows it, it goes on in plain text by a new
// connection. client, which may be nil, is whom it is for: a PROXY header says so.
func (c *Client) connect(ctx context.Context, r *route, client *envelope.Client, mode string, t Timeouts) (*session, error) {
	s, err := c.connectOnce(ctx, r, client, mode, t)
	var failed *handshakeError
	if mode == TLSOpportunistic && errors.As(err, &failed) && ctx.Err() == nil {
		c.log.Warn("going on in plain text", "route", r.Name, "err", err)
		s, err = c.connectOnce(ctx, r, client, TLSOff, t)
	}
	return s, err
}

func (c *Client) connectOnce(ctx context.Context, r *route, client *envelope.Client, mode string, t Timeouts) (*session, error) {
	dialCtx, cancel := context.WithTimeout(ctx, t.Connect)
	conn, err := c.dial(dialCtx, "tcp", r.Address)
	cancel()
	if err != nil {
		return nil, err
	}
	r.noteHost(conn.RemoteAddr())
	raw := timedConn{conn, t.Block}
	conn = raw
	s := &session{
		c: c, r: r, t: t, raw: raw, conn: conn, name: c.hostname,
		br: newReplyReader(conn),
		bw: bufio.NewWriterSize(conn, commandBuffer),
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if r.Proxy {
		err = s.proxy(client)
	}
	if err == nil {
		err = s.hello(ctx, mode)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) hello(ctx context.Context, mode string) error {
	reply, err := s.read(stepGreeting, s.notOurselves())
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		return &refusal{stepGreeting, reply}
	}
	if err := s.ehlo(s.name); err != nil {
		return err
	}
	switch {
	case mode == TLSOff:
		return nil
	case s.caps.startTLS:
		return s.startTLS(ctx, mode)
	case mode == TLSRequire:
		return errNoStartTLS
	}
	return nil
}

// ehlo says EHLO, or HELO if that is refused (RFC 5321 §3.2), and takes over
// the extensions that are offered.
func (s *session) ehlo(name string) error {
	var offered caps
	own := s.notOurselves()
	reply, err := s.call(stepEhlo, func(line string) error {
		if own != nil {
			err := own(line)
			own = nil
			return err
		}
		offered.add(line)
		return nil
	}, "EHLO ", name)
	if err != nil {
		return err
	}
	if reply.Permanent() {
		offered = caps{}
		if reply, err = s.call(stepEhlo, s.notOurselves(), "HELO ", name); err != nil {
			return err
		}
	}
	if !reply.Positive() {
		return &refusal{stepEhlo, reply}
	}
	s.caps = offered
	if offered.xclient != "" {
		s.xclient = offered.xclient
	}
	return nil
}

// notOurselves returns a check of a greeting: its first word is the server's
// name, RFC 5321 §4.2.
func (s *session) notOurselves() func(line string) error {
	first := true
	return func(line string) error {
		name, _, _ := strings.Cut(line, " ")
		own := first && s.c.hostname != "" &&
			strings.EqualFold(strings.TrimSuffix(name, "."), strings.TrimSuffix(s.c.hostname, "."))
		first = false
		if own {
			return errOurselves
		}
		return nil
	}
}

// startTLS secures the session, RFC 3207, and says EHLO again: what was offered
// in plain text does not count.
func (s *session) startTLS(ctx context.Context, mode string) error {
	config, err := s.tlsConfig(mode)
	if err != nil {
		return err
	}
	reply, err := s.call(stepStartTLS, nil, "STARTTLS")
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		if mode == TLSRequire || reply.Code == 421 {
			return &refusal{stepStartTLS, reply}
		}
		return nil
	}
	if s.br.Buffered() > 0 {
		return errUnsolicited // in plain text, where replies in TLS belong
	}
	conn := tls.Client(s.conn, config)
	s.conn.SetReadDeadline(time.Now().Add(s.t.Command))
	if err := conn.HandshakeContext(ctx); err != nil {
		return &handshakeError{err}
	}
	s.conn = conn
	s.br = newReplyReader(conn)
	s.bw.Reset(conn)
	s.xclient = ""
	return s.ehlo(s.name)
}

func (s *session) tlsConfig(mode string) (*tls.Config, error) {
	name := s.r.TLSName
	if name == "" {
		name, _, _ = net.SplitHostPort(s.r.Address)
	}
	config := &tls.Config{ServerName: name, InsecureSkipVerify: mode != TLSRequire}
	if mode == TLSRequire && s.r.TLSCA != "" {
		pem, err := os.ReadFile(s.r.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("read the route's CA certificates: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the route's CA certificates: no certificate in %s", s.r.TLSCA)
		}
	}
	return config, nil
}

// call sends one command by itself and returns its reply. No other reply may
// be owed.
func (s *session) call(at step, each func(line string) error, command ...string) (envelope.Reply, error) {
	if err := s.say(command...); err != nil {
		return envelope.Reply{}, err
	}
	return s.read(at, each)
}

// say sends one command by itself.
func (s *session) say(command ...string) error {
	if err := s.write(command...); err != nil {
		return err
	}
	return s.bw.Flush()
}

// sayAfterReset sends RSET before a command, in one go where that is allowed, and
// reads the reply to RSET.
func (s *session) sayAfterReset(command ...string) error {
	if !s.caps.pipelining {
		if reply, err := s.call(stepRset, nil, "RSET"); err != nil || !reply.Positive() {
			return cmp.Or(err, error(&refusal{stepRset, reply}))
		}
		return s.say(command...)
	}
	if err := s.write("RSET"); err != nil {
		return err
	}
	if err := s.say(command...); err != nil {
		return err
	}
	reply, err := s.read(stepRset, nil)
	if err == nil && !reply.Positive() {
		err = &refusal{stepRset, reply}
	}
	return err
}

// write puts one line into the buffer. A next hop that has spoken although
// nothing was owed has lost the thread, and so have we.
func (s *session) write(parts ...string) error {
	if len(s.awaited) == 0 && s.br.Buffered() > 0 {
		return errUnsolicited
	}
	for _, p := range parts {
		s.bw.WriteString(p) // its error sticks
	}
	_, err := s.bw.WriteString("\r\n")
	return err
}

// read reads one reply, with the deadline of what it answers. An error of each
// comes back.
func (s *session) read(at step, each func(line string) error) (envelope.Reply, error) {
	s.conn.SetReadDeadline(time.Now().Add(s.timeout(at))) // fails on a closed connection only, as the read will
	var objection error
	var reply envelope.Reply
	var err error
	if s.whole && each == nil {
		reply, err = readWhole(s.br)
	} else {
		reply, err = readReply(s.br, func(line string) {
			if each != nil && objection == nil {
				objection = each(line)
			}
		})
	}
	if err != nil {
		return envelope.Reply{}, fmt.Errorf("wait for the reply to %s: %w", at, err)
	}
	s.heard.Store(time.Now().UnixNano())
	return reply, objection
}

func (s *session) timeout(at step) time.Duration {
	switch at {
	case stepGreeting:
		return s.t.Greeting
	case stepData:
		return s.t.DataInit
	case stepEnd, stepLoneDot:
		return s.t.DataEnd
	case stepQuit:
		return s.t.Quit
	}
	return s.t.Command
}

// quit ends the session tidily. The reply does not matter, but waiting for it
// spares the next hop a log line about a lost connection.
func (s *session) quit() {
	s.call(stepQuit, nil, "QUIT")
	s.conn.Close()
}
