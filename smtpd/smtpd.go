// Package smtpd is the door: the SMTP server that other mail servers talk to.
//
// Its job is protocol hygiene and turning verdicts into replies. A front of
// our own owns every connection, outermost, and is the only one that reads
// what a client sends: it ends commands and data at CRLF and nowhere else,
// bounds every length and every wait, parses paths from the raw line, and
// answers HELO, STARTTLS, XCLIENT and their like itself. Behind it the go-smtp
// library keeps the order of a mail transaction; it sees commands that the
// front made anew, never a client's octets, and its replies are replaced.
//
// What it doesn't do: it decides nothing about clients, senders and recipients
// (package policy does), keeps no mail (the Spool does) and never parses a
// message beyond the borders of its header fields.
//
// Invariants:
//   - 250 to a message is sent only after Draft.Commit returned nil.
//   - Only CRLF.CRLF ends a message. What goes to the Spool holds no bare CR,
//     no bare LF, no NUL and no dot-stuffing.
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
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// Spool keeps accepted mail. An error that is or wraps an *envelope.ReplyError
// names the client's reply; any other is answered 451 4.3.0.
type Spool interface {
	// Ready says whether a message of size octets could be kept now.
	Ready(size int64) error
	// Begin opens a message and sets env.ID. The Draft reads env at Commit.
	Begin(env *envelope.Envelope) (Draft, error)
}

// Draft is a message being written: our Received field, then the content with
// CRLF line ends and without dot-stuffing. Exactly one of Commit and Abort
// ends it.
type Draft interface {
	io.Writer
	ID() string
	// Commit returns nil only when the message would survive a power cut.
	Commit(ctx context.Context) error
	Abort()
}

// Inquiry asks the primary about the recipients of one mail transaction; Close
// ends it.
type Inquiry interface {
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
	Spool    Spool
	// DeferUnanswered puts mail off when a blocklist in the DNS doesn't answer,
	// see policy.Session.
	DeferUnanswered bool

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
	Inquire func(env *envelope.Envelope, size int64) Inquiry

	Log     *slog.Logger
	Metrics *metrics.Metrics

	once  sync.Once
	crowd crowd

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
	s.crowd.all, s.crowd.from = make(map[*front]struct{}), make(map[netip.Prefix]int)
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
	fronts := &listener{Listener: ln, srv: s, ctx: sessions}
	lib := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &session{c.Conn().(*front)}, nil
	}))
	lib.Domain = s.Hostname
	lib.ErrorLog = slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn)

	failed := make(chan error, 1)
	go func() { failed <- lib.Serve(fronts) }()
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
	fronts.drain()
	deadline := time.NewTimer(s.ShutdownTimeout)
	defer deadline.Stop()
	select {
	case <-stopped:
	case <-deadline.C:
		cancel()
		fronts.kill()
		<-stopped
	}
	return err
}

// listener makes a front of every connection. It belongs to one Serve.
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
		if f := l.admit(c); f != nil {
			return f, nil
		}
		l.srv.Metrics.SMTPLimits.WithLabelValues("connections").Inc()
		_ = c.Close()
	}
}

// admit makes a front of c, or returns nil when there is no place for one.
func (l *listener) admit(c net.Conn) *front {
	if contains(l.srv.ProxyFrom, addrOf(c.RemoteAddr()).Addr()) {
		c = proxyproto.NewConn(c, proxyproto.WithPolicy(proxyproto.REQUIRE),
			proxyproto.SetReadHeaderTimeout(min(10*time.Second, l.srv.CommandTimeout)))
	}
	f := newFront(l, c)
	if !l.srv.crowd.add(f) {
		f.end()
		return nil
	}
	l.srv.Metrics.SessionsOpen.Inc()
	l.mu.Lock()
	draining := l.draining
	l.mu.Unlock()
	if draining {
		f.drain()
	}
	return f
}

func (l *listener) drain() {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.srv.crowd.each(l, (*front).drain)
}

func (l *listener) kill() { l.srv.crowd.each(l, func(f *front) { _ = f.raw.Close() }) }

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
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
