package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"time"
)

// maxSession bounds what a mail server may say in one session, octets.
const maxSession = 1 << 20

// server is how a mail server behaves towards this machine.
type server struct {
	err      error         // why nothing more is known
	code     int           // of the greeting
	greeting string        // its last line
	lines    int           // of the greeting
	wait     time.Duration // before it
	plain    map[string]string
	secure   map[string]string // the EHLO keywords inside TLS; nil without
	chain    []*x509.Certificate
	tlsErr   error // why STARTTLS failed
	conn     *dialogue
}

// keywords are those of the session as it would be used.
func (s *server) keywords() map[string]string {
	if s.secure != nil {
		return s.secure
	}
	return s.plain
}

// server returns what is known of the server at an address, after a session
// that ended after EHLO.
func (x *exam) server(ctx context.Context, addr string) server {
	return memo(x, x.servers, addr, func() server {
		s := x.greet(ctx, addr, "")
		if s.conn != nil {
			s.conn.quit()
		}
		return s
	})
}

// dialogue is an SMTP session.
type dialogue struct {
	conn net.Conn
	text *textproto.Conn
	wait time.Duration
}

// greet opens a session, with TLS if the server offers it; whose certificate it
// is gets looked at later. preface goes out before all else. The caller closes
// s.conn.
func (x *exam) greet(ctx context.Context, addr, preface string) (s server) {
	begin := time.Now()
	conn, err := x.dial(ctx, addr)
	if err != nil {
		return server{err: err}
	}
	d := newDialogue(conn, x.Timeout)
	defer func() {
		if s.err != nil {
			conn.Close()
			s.conn = nil
		}
	}()
	s.conn = d
	if _, err := io.WriteString(conn, preface); err != nil {
		s.err = err
		return s
	}
	code, text, err := d.reply()
	s.wait = time.Since(begin)
	lines := strings.Split(text, "\n")
	s.code, s.lines, s.greeting = code, len(lines), lines[len(lines)-1]
	if err != nil || code != 220 {
		s.err = fmt.Errorf("it greets with %d %s", code, s.greeting)
		if err != nil {
			s.err = fmt.Errorf("it doesn't greet: %w", err)
		}
		return s
	}
	if s.plain, s.err = d.ehlo(x.Hostname); s.err != nil {
		return s
	}
	if _, offered := s.plain["STARTTLS"]; !offered {
		return s
	}
	code, text, err = d.say("STARTTLS")
	if err != nil || code != 220 {
		s.tlsErr = errors.Join(fmt.Errorf("STARTTLS got %d %s", code, text), err)
		return s
	}
	secure := tls.Client(conn, &tls.Config{ServerName: hostOf(addr), InsecureSkipVerify: true}) // verified by the checks, which say why
	conn.SetDeadline(time.Now().Add(x.Timeout))
	if err := secure.HandshakeContext(ctx); err != nil {
		s.tlsErr, s.err = err, fmt.Errorf("TLS: %w", err)
		return s
	}
	s.chain = secure.ConnectionState().PeerCertificates
	s.conn = newDialogue(secure, x.Timeout)
	s.secure, s.err = s.conn.ehlo(x.Hostname)
	return s
}

// dial connects to the first address of a host that answers, as the DNS that we
// ask has them.
func (x *exam) dial(ctx context.Context, addr string) (conn net.Conn, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	h := x.addrs(ctx, host)
	for _, a := range h.addrs {
		dialer := net.Dialer{Timeout: x.Timeout}
		if conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, cmp.Or(err, h.err)
}

func newDialogue(c net.Conn, wait time.Duration) *dialogue {
	limited := struct {
		io.Reader
		io.Writer
		io.Closer
	}{io.LimitReader(c, maxSession), c, c}
	return &dialogue{c, textproto.NewConn(limited), wait}
}

// say sends a command and returns the reply, its lines joined by LF.
func (d *dialogue) say(format string, args ...any) (code int, text string, err error) {
	d.conn.SetDeadline(time.Now().Add(d.wait))
	if err := d.text.PrintfLine(format, args...); err != nil {
		return 0, "", err
	}
	return d.reply()
}

func (d *dialogue) reply() (code int, text string, err error) {
	d.conn.SetDeadline(time.Now().Add(d.wait))
	code, text, err = d.text.ReadResponse(0)
	var protocol *textproto.Error
	if errors.As(err, &protocol) {
		err = nil // a refusal is a reply
	}
	return code, text, err
}

// ehlo returns the keywords with their parameters, in capitals.
func (d *dialogue) ehlo(name string) (map[string]string, error) {
	code, text, err := d.say("EHLO %s", name)
	if err != nil || code != 250 {
		return nil, errors.Join(fmt.Errorf("EHLO got %d %s", code, text), err)
	}
	keywords := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		keywords[strings.ToUpper(k)] = v
	}
	return keywords, nil
}

func (d *dialogue) quit() {
	_, _, _ = d.say("QUIT") // it is closed in any case
	d.conn.Close()
}
