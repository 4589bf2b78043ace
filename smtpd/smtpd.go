// Package smtpd is the door: the SMTP server that other mail servers talk to.
//
// SMTP is a conversation in lines. The server (S) greets, the client (C) gives a
// command at a time, and each gets a reply, whose first digit says what became
// of it: 2 done, 3 go on, 4 not now, 5 never.
//
//	S: 220 mx2.example ESMTP Understudy
//	C: EHLO mail.sender.example
//	S: 250-mx2.example
//	S: 250-PIPELINING
//	S: 250 SIZE 10240000
//	C: MAIL FROM:<bob@sender.example> SIZE=512
//	S: 250 2.1.0 Ok
//	C: RCPT TO:<alice@corp.example>
//	S: 250 2.1.5 Ok
//	C: DATA
//	S: 354 End data with <CR><LF>.<CR><LF>
//	C: Subject: lunch
//	C:
//	C: ..and a line that began with a dot
//	C: .
//	S: 250 2.0.0 Ok: queued as 1A2B3C
//
// From MAIL to the reply after the dot it is a mail transaction. Each 2yz is a
// promise, and the last makes us answerable for the message. What goes wrong:
// two servers that end a line at different octets read different conversations
// (SMTP smuggling); a client is silent, drips, talks out of turn or without end;
// a reply quotes a client, and the client chose octets that end a line.
//
// A connection carries octets: it ends lines and data at CRLF and nowhere else,
// keeps replies until the client waits for them, and bounds every wait. A
// session is who the client is and what it said; it parses, keeps the order,
// and answers. A transaction is what MAIL began. What a command's answer is, a
// Decider decides: the policy's snapshot, or somebody around it. Where a message
// goes, a Keeper knows. The go-smtp library serves the connections and keeps the
// order of transactions a second time (docs/decisions/0011-go-smtp.md).
//
// Invariants:
//   - 250 to a message is sent only after Draft.Commit returned nil, or when the
//     Decider says that somebody else has answered for it.
//   - Only CRLF.CRLF ends a message. What goes to the Keeper, or on as it comes,
//     holds no bare CR, no bare LF, no NUL and no dot-stuffing.
//   - A mail transaction is judged by one Snapshot from MAIL to its end.
//   - In doubt the reply is 4yz. No error's text reaches a client.
//   - A connection owns at most one goroutine and a bounded amount of memory,
//     and Serve returns only when all have ended.
//
// RFC 5321 (SMTP), 1870 (SIZE), 2034 (enhanced codes), 2920 (pipelining), 3207
// (STARTTLS), 3461 (DSN parameters), 3848 (protocol names), 6152 (8BITMIME),
// 6531 (SMTPUTF8), 9422 (LIMITS); XCLIENT as in Postfix's XCLIENT_README and
// the PROXY protocol of HAProxy, versions 1 and 2.
package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/repeat"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// Asker asks the primary about the recipients of one mail transaction; Close
// ends it.
type Asker interface {
	// Ask returns what the primary answers to a recipient. An error says that
	// it can't be asked, now and for this client. It takes seconds at most.
	Ask(ctx context.Context, to *envelope.Recipient) (envelope.Reply, error)
	Close()
}

// Server is an SMTP server. Its fields must not change once Serve runs; zero
// values of limits mean the default that stands beside them.
type Server struct {
	Hostname string
	Policy   func() *policy.Snapshot // the snapshot in force; nil while there is none
	Resolver policy.Resolver
	Keep     Keeper
	// Decide, if not nil, puts a Decider around the snapshot's own, one for
	// each client: after the connection, and after XCLIENT.
	Decide func(snapshot Decider) Decider
	// IsNextHop, if not nil, says that mail for domain goes to the server at addr:
	// what went there by us and comes back from it runs in a circle.
	IsNextHop func(domain string, addr netip.Addr) bool
	// Filters stand for milters of the primary's.
	Filters []*Filter
	// DeferUnanswered puts mail off when a blocklist in the DNS doesn't answer,
	// see policy.Session.
	DeferUnanswered bool
	// Greylist is what the policy's greylisting remembers by; nil: nothing.
	Greylist policy.GreyMemory

	// Vouch has SPF and DKIM checked for each message that is kept, for its
	// Envelope's Auth, although the policy's filters don't.
	Vouch bool

	TLS         *tls.Config    // nil: no STARTTLS; see CertFile
	XClientFrom []netip.Prefix // clients that may use XCLIENT
	ProxyFrom   []netip.Prefix // peers that must send a PROXY protocol header

	MaxConnections           int           // 1000, over all listeners
	MaxConnectionsPerClient  int           // 50, per IPv4 address or IPv6 /64
	MaxConnectionsPerNetwork int           // 200, per IPv4 /24 or IPv6 /48
	MaxTransactions          int           // 1000 in a session, then 421
	MaxUnknownRecipients     int           // 20 in a session, then 421
	MaxHeaderBytes           int           // 512 KiB, a message's header section
	MaxHeaderFields          int           // 1000
	MaxLine                  int           // 10 MiB, a line of the message: Postfix has no bound
	SessionTimeout           time.Duration // 1 h, at a command
	CommandTimeout           time.Duration // 5 min for a whole command line
	DataTimeout              time.Duration // 3 min for a piece of the message
	MinRate                  int           // 500 octets a second, from one DataTimeout after DATA
	ShutdownTimeout          time.Duration // 30 s
	// GreetWait is how long to listen before the greeting, 0 not to.
	// GreetAction says what becomes of a client that speaks meanwhile:
	// "ignore" (the default) only counts it, "enforce" answers 550 at RCPT,
	// "drop" answers 521 and hangs up.
	GreetWait   time.Duration
	GreetAction string
	// BareNewline says what becomes of a line feed without its carriage
	// return: "reject", "normalize", or what the policy says, which is
	// "reject" where it says nothing.
	BareNewline string
	// Unsure, if not nil, is told of each recipient that was refused only
	// because the primary has to be asked about it first (Verdict.Unsure).
	Unsure func(recipient string)
	// Inquire begins to ask the primary, for policy.Verdict.Ask. env has the
	// client with its names, the reverse-path and MAIL's parameters, size is
	// that of SIZE= or 0. If nil, the primary can't be asked.
	Inquire func(env *envelope.Envelope, size int64) Asker
	// Verify says whether the primary has a recipient, for policy.Verdict.Ask where
	// MustVerify says so: 2yz, 5yz or, for now, an error or 4yz. If nil, nobody knows.
	Verify func(ctx context.Context, client netip.Addr, to envelope.Mailbox) (envelope.Reply, error)

	Log     *slog.Logger
	Metrics *metrics.Metrics

	once         sync.Once
	often        repeat.Log // of messages that can't be kept
	crowd        crowd
	contradicted sync.Map // of a policy.Rule without its key: Compare has logged one of it

	askOnce sync.Once
	asking  *tls.Config // TLS that asks clients for a certificate
}

// tlsConfig is one configuration for all sessions of a kind, so that they can be
// resumed.
func (s *Server) tlsConfig(askCert bool) *tls.Config {
	if !askCert {
		return s.TLS
	}
	s.askOnce.Do(func() {
		s.asking = s.TLS.Clone()
		s.asking.ClientAuth = tls.RequestClientCert
	})
	return s.asking
}

func (s *Server) init() {
	setDefault(&s.MaxConnections, 1000)
	setDefault(&s.MaxConnectionsPerClient, 50)
	setDefault(&s.MaxConnectionsPerNetwork, 200)
	setDefault(&s.MaxTransactions, 1000)
	setDefault(&s.MaxUnknownRecipients, 20)
	setDefault(&s.MaxHeaderBytes, 512<<10)
	setDefault(&s.MaxHeaderFields, 1000)
	setDefault(&s.MaxLine, 10<<20)
	setDefault(&s.SessionTimeout, time.Hour)
	setDefault(&s.GreetAction, "ignore")
	setDefault(&s.CommandTimeout, 5*time.Minute)
	setDefault(&s.DataTimeout, 3*time.Minute)
	setDefault(&s.MinRate, 500)
	setDefault(&s.ShutdownTimeout, 30*time.Second)
	setDefault(&s.Hostname, "localhost")
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Metrics == nil {
		s.Metrics = metrics.New(prometheus.NewRegistry())
	}
	s.crowd.max, s.crowd.perClient, s.crowd.perNetwork = s.MaxConnections, s.MaxConnectionsPerClient, s.MaxConnectionsPerNetwork
	s.initFilters()
	s.crowd.mu.Lock() // Sessions may be asked already
	defer s.crowd.mu.Unlock()
	s.crowd.all, s.crowd.from = make(map[*connection]struct{}), make(map[netip.Prefix]int)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serve answers the clients that connect to ln until ctx ends or ln fails.
// Then clients get 421 at their next command, a message whose data is on its
// way may be finished within ShutdownTimeout, and what is still open after
// that is closed. Serve closes ln and returns when each of its connections and
// goroutines has ended; nil when ctx ended. Several Serves may share a Server.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.once.Do(s.init)
	sessions, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	doors := &listener{Listener: ln, srv: s, ctx: sessions}
	lib := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return c.Conn().(*library), nil
	}))
	lib.Domain = s.Hostname
	lib.ErrorLog = slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn)

	failed := make(chan error, 1)
	go func() { failed <- lib.Serve(doors) }()
	var err error
	select {
	case <-ctx.Done():
		_ = ln.Close() // Shutdown does, but only once lib.Serve has got so far
		<-failed       // no connection is accepted from here on
	case err = <-failed:
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		// Closes ln and waits for every connection's goroutine; its error
		// is that of closing ln, which may be closed already.
		_ = lib.Shutdown(context.Background())
	}()
	doors.drain()
	deadline := time.NewTimer(s.ShutdownTimeout)
	defer deadline.Stop()
	select {
	case <-stopped:
	case <-deadline.C:
		cancel()
		doors.kill()
		<-stopped
	}
	return err
}

// listener makes a session of every connection. It belongs to one Serve.
type listener struct {
	net.Listener
	srv *Server
	ctx context.Context // ends when sessions must end at once

	mu       sync.Mutex // guards draining
	draining bool
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil, net.ErrClosed
			}
			return nil, err
		}
		if s := l.admit(c); s != nil {
			return s.library, nil
		}
		l.srv.Metrics.SMTPLimits.WithLabelValues("connections").Inc()
		_ = c.Close()
	}
}

// admit makes a session of c, or returns nil when there is no place for one.
func (l *listener) admit(c net.Conn) *session {
	if contains(l.srv.ProxyFrom, addrOf(c.RemoteAddr()).Addr()) {
		c = proxyproto.NewConn(c, proxyproto.WithPolicy(proxyproto.REQUIRE),
			proxyproto.SetReadHeaderTimeout(min(10*time.Second, l.srv.CommandTimeout)))
	}
	s := newSession(openConnection(l, c))
	if !l.srv.crowd.add(s.conn) {
		s.end()
		return nil
	}
	l.srv.Metrics.SessionsOpen.Inc()
	l.mu.Lock()
	draining := l.draining
	l.mu.Unlock()
	if draining {
		s.conn.drain()
	}
	return s
}

func (l *listener) drain() {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.srv.crowd.each(l, (*connection).drain)
}

func (l *listener) kill() { l.srv.crowd.each(l, func(c *connection) { _ = c.raw.Close() }) }

// contains says that a prefix of list holds a.
func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// addrOf returns a's address, unmapped, and port; zero when it has none.
func addrOf(a net.Addr) netip.AddrPort {
	tcp, _ := a.(*net.TCPAddr)
	ap := tcp.AddrPort() // none of another network's
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// initFilters sets up the metrics of all filters, so that an alert sees them before the first
// message.
func (s *Server) initFilters() {
	m := s.Metrics
	for _, f := range s.Filters {
		m.FilterUp.WithLabelValues(f.Name).Set(1)
		for _, result := range []string{"passed", "refused", "discarded", "held", "away", "edit_dropped"} {
			m.FilterAnswers.WithLabelValues(f.Name, result)
		}
	}
}
