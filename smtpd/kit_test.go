package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message is what a fakeSpool accepted.
type message struct {
	env  envelope.Envelope
	body string // our Received field included
}

// content is the message without our Received field.
func (m message) content() string {
	rest := m.body
	for {
		line, behind, _ := strings.Cut(rest, "\r\n")
		if rest != m.body && !strings.HasPrefix(line, "\t") {
			return rest
		}
		rest = behind
	}
}

// fakeSpool keeps what is committed and fails as it is told.
type fakeSpool struct {
	mu       sync.Mutex
	messages []message
	open     int
	live     int // drafts that nobody has ended

	ready, begin, write, commit error
	panics                      bool
	hold                        chan struct{} // Commit waits for it
}

func (s *fakeSpool) Ready(int64) error { return s.ready }

func (s *fakeSpool) Begin(env *envelope.Envelope) (Draft, error) {
	if s.begin != nil {
		return nil, s.begin
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	s.live++
	env.ID = fmt.Sprintf("ID%d", s.open)
	return &fakeDraft{s: s, env: env}, nil
}

func (s *fakeSpool) accepted() []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]message(nil), s.messages...)
}

type fakeDraft struct {
	s    *fakeSpool
	env  *envelope.Envelope
	b    bytes.Buffer
	done bool
}

func (d *fakeDraft) ID() string { return d.env.ID }
func (d *fakeDraft) Spare()     {}
func (d *fakeDraft) Abort()     { d.finish() }
func (d *fakeDraft) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.b.Bytes())), nil
}
func (d *fakeDraft) finish() {
	if d.done {
		panic("draft ended twice")
	}
	d.done = true
	d.s.mu.Lock()
	d.s.live--
	d.s.mu.Unlock()
}

func (d *fakeDraft) Write(p []byte) (int, error) {
	if d.s.panics {
		panic("spool")
	}
	if d.s.write != nil {
		return 0, d.s.write
	}
	return d.b.Write(p)
}

func (d *fakeDraft) Commit(ctx context.Context) error {
	d.finish()
	if d.s.hold != nil {
		select {
		case <-d.s.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.s.commit != nil {
		return d.s.commit
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.messages = append(d.s.messages, message{*d.env, d.b.String()})
	return nil
}

// pipeListener is a listener for net.Pipe, so that tests control every write
// and may run in a synctest bubble.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects as a client with the given address.
func (l *pipeListener) dial(from string) net.Conn {
	client, server := net.Pipe()
	addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 4321))
	l.conns <- pipeConn{server, addr}
	return client
}

type pipeConn struct {
	net.Conn
	from net.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.from }

// newServer makes a server that accepts mail for corp.example.
func newServer(t testing.TB) (*Server, *fakeSpool) {
	spool := new(fakeSpool)
	snap := snapshot(t, nil)
	t.Cleanup(func() { // after the server has ended
		if spool.live != 0 {
			t.Errorf("%d drafts were neither committed nor aborted", spool.live)
		}
	})
	return &Server{
		Hostname: "mx.test", Policy: func() *policy.Snapshot { return snap }, Resolver: new(testmx.MapResolver), Keep: spool,
		ShutdownTimeout: 5 * time.Second,
	}, spool
}

// snapshot is a policy: mail for corp.example's alice, carol, ü and long is
// accepted; so is any client but 192.0.2.66, whose refusal is told at RCPT.
func snapshot(t testing.TB, change func(*policy.Spec)) *policy.Snapshot {
	t.Helper()
	listed, err := table.NewSet([]string{"alice@corp.example", "carol@corp.example", "x@bücher.example"})
	if err != nil {
		t.Fatal(err)
	}
	clients, err := table.NewHash(map[string]string{
		"192.0.2.66": "REJECT go away", "192.0.2.67": "521 hang up", "192.0.2.68": "DISCARD", "192.0.2.69": "HOLD", "192.0.2.70": "DEFER later",
	})
	if err != nil {
		t.Fatal(err)
	}
	spec := policy.NewSpec()
	spec.Tables = map[string]*table.Table{"recipients": listed, "clients": clients}
	spec.Addresses.Relay = policy.AddressClass{Domains: []string{"bücher.example", "corp.example"}, Recipients: []string{"recipients"}}
	spec.Restrictions.Client = []policy.Restriction{{Kind: "check_client_access", Arg: "clients"}}
	spec.Restrictions.Relay = []policy.Restriction{{Kind: "reject_unauth_destination"}}
	if change != nil {
		change(spec)
	}
	s, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs s on ln until the test ends, or until the returned function.
func serve(t testing.TB, s *Server, ln net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// talk serves s on the loopback and plays script on one connection.
func talk(t *testing.T, s *Server, script string) {
	t.Helper()
	ln := listen(t)
	stop := serve(t, s, ln)
	c := dial(t, ln)
	testmx.Dialogue(t, c, script)
	c.Close()
	stop()
}

// reader reads replies, one line each.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func newClient(t testing.TB, c net.Conn) *client {
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if s == "" {
		return // net.Pipe would wait for a reader even so
	}
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send %q: %v", s, err)
	}
}

// want reads one reply and checks its beginning.
func (c *client) want(prefix string) string {
	c.t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("want %q: %v after %q", prefix, err, line)
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if !strings.HasPrefix(line, prefix) {
			c.t.Fatalf("want %q, got %q", prefix, line)
		}
		return line
	}
}

func (c *client) wantClosed() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || isTimeout(err) {
		c.t.Fatalf("want the connection closed, got %q, %v", b, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// writePair writes a new certificate for name and its key.
func writePair(t testing.TB, dir, name string) (certFile, keyFile string) {
	t.Helper()
	cert, key := testmx.Certificate(name, nil)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	replaceFile(t, keyFile, key)
	replaceFile(t, certFile, cert)
	return certFile, keyFile
}

func replaceFile(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// tlsConfig is a server's TLS configuration with a fresh certificate.
func tlsConfig(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(writePair(t, t.TempDir(), "mx.test"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// startTLS greets and starts TLS on c.
func startTLS(t testing.TB, c net.Conn, conf *tls.Config) *tls.Conn {
	t.Helper()
	p := newClient(t, c)
	p.want("220 ")
	p.send("STARTTLS\r\n")
	p.want("220 2.0.0")
	if conf == nil {
		conf = &tls.Config{InsecureSkipVerify: true}
	}
	tc := tls.Client(c, conf)
	if err := tc.Handshake(); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return tc
}

func pipeAddr(ip string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 4321))
}

// hostileClient speaks without listening; what the server says is thrown away.
type hostileClient struct {
	net.Conn
	gone chan struct{} // closed when the server has hung up
}

func openHostile(t testing.TB, ln *pipeListener) *hostileClient {
	c := &hostileClient{Conn: ln.dial("203.0.113.1"), gone: make(chan struct{})}
	go func() {
		defer close(c.gone)
		_, _ = io.Copy(io.Discard, c)
	}()
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *hostileClient) closed() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

func (c *hostileClient) send(s string) bool {
	_, err := io.WriteString(c.Conn, s)
	return err == nil
}
