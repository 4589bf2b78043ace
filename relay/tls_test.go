package relay

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// certificate makes a self-signed one for name, and a file that trusts it.
func certificate(t *testing.T, name string) (*tls.Config, string) {
	t.Helper()
	cert, key := testmx.Certificate(name, nil)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, file
}

// overTCP is a dialer to serve over the loopback: both sides of a handshake that
// fails may write at once, which a pipe without a buffer doesn't take.
func overTCP(t *testing.T, serve func(net.Conn)) func(context.Context, string, string) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
}

func TestTLS(t *testing.T) {
	good, ca := certificate(t, "primary.example")
	_, otherCA := certificate(t, "primary.example")
	none := filepath.Join(t.TempDir(), "none.pem")
	if err := os.WriteFile(none, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		route  Route
		config *tls.Config // nil: not offered
		secure int
		conns  int32
		err    string
	}{
		{"opportunistic, unverified", Route{TLS: TLSOpportunistic}, good, 1, 1, ""},
		{"opportunistic, not offered", Route{TLS: TLSOpportunistic}, nil, 0, 1, ""},
		{"opportunistic, handshake fails", Route{TLS: TLSOpportunistic}, &tls.Config{}, 0, 2, ""},
		{"off", Route{TLS: TLSOff}, good, 0, 1, ""},
		{"require", Route{TLS: TLSRequire, TLSCA: ca}, good, 1, 1, ""},
		{"require, name of its own", Route{TLS: TLSRequire, TLSCA: ca, TLSName: "primary.example", Address: "192.0.2.1:25"}, good, 1, 1, ""},
		{"require, other name", Route{TLS: TLSRequire, TLSCA: ca, TLSName: "other.example"}, good, 0, 1, "other.example"},
		{"require, other CA", Route{TLS: TLSRequire, TLSCA: otherCA}, good, 0, 1, "handshake"},
		{"require, system roots", Route{TLS: TLSRequire}, good, 0, 1, "handshake"},
		{"require, not offered", Route{TLS: TLSRequire, TLSCA: ca}, nil, 0, 1, "no STARTTLS"},
		{"require, no CA file", Route{TLS: TLSRequire, TLSCA: ca + ".gone"}, good, 0, 1, "CA certificates"},
		{"require, no CA in file", Route{TLS: TLSRequire, TLSCA: none}, good, 0, 1, "no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &primary{config: test.config}
			var box outbox
			m := box.add("x\r\n", mail("a@x.example", "b@y.example"))
			var conns atomic.Int32
			c := newClient(t, test.route, nil)
			c.dial = overTCP(t, func(conn net.Conn) {
				conns.Add(1)
				p.serve(conn)
			})
			err := c.Relay(context.Background(), dest, box.next)
			box.check(t)
			if test.err == "" {
				if err != nil || m.err != nil || m.settled != 1 || !m.replies[0].Positive() {
					t.Errorf("Relay returned %v, settled with %v, %v", err, m.replies, m.err)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.err) || m.settled != 0 {
				t.Errorf("Relay returned %v, want %q; settled %d times", err, test.err, m.settled)
			}
			if got := c.Up(dest); got != (test.err == "") {
				t.Errorf("up: %v", got)
			}
			if conns.Load() != test.conns {
				t.Errorf("%d connections, want %d", conns.Load(), test.conns)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if test.err == "" && p.secure != test.secure {
				t.Errorf("%d sessions in TLS, want %d", p.secure, test.secure)
			}
		})
	}
}

// TestStartTLSInjection: what comes in plain text behind the reply to STARTTLS
// must not count as said in TLS.
func TestStartTLSInjection(t *testing.T) {
	for _, mode := range []string{TLSOpportunistic, TLSRequire} {
		c := newClient(t, Route{TLS: mode}, func(conn net.Conn) {
			buf := make([]byte, 1<<10)
			io.WriteString(conn, greeting)
			conn.Read(buf)
			io.WriteString(conn, "250-primary.example\r\n250 STARTTLS\r\n")
			conn.Read(buf)
			io.WriteString(conn, "220 go\r\n250-primary.example\r\n250 PIPELINING\r\n")
		})
		err := c.Relay(context.Background(), dest, new(outbox).next)
		if err == nil || !strings.Contains(err.Error(), "out of turn") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// TestStartTLSRefused goes on in plain text where that is allowed.
func TestStartTLSRefused(t *testing.T) {
	script := append(hello("STARTTLS"), turn{"STARTTLS\r\n", "454 4.7.0 no\r\n"})
	var box outbox
	checkScripts(t, &box, Route{TLS: TLSOpportunistic}, [][]turn{append(script, turn{quit, bye})}, nil, "")
	checkScripts(t, &box, Route{TLS: TLSRequire}, [][]turn{script}, nil, "STARTTLS with 454")
}

// TestXClientInPlainTextOnly: what was offered before STARTTLS doesn't count
// after it. One session is enough.
func TestXClientInPlainTextOnly(t *testing.T) {
	config, _ := certificate(t, "primary.example")
	p := &primary{config: config, plain: "XCLIENT NAME ADDR HELO"}
	var box outbox
	for i := range 3 {
		e := mail("a@x.example", "b@y.example")
		e.Client = envelope.Client{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Helo: "h"}
		box.add("x\r\n", e)
	}
	var conns atomic.Int32
	c := newClient(t, Route{TLS: TLSOpportunistic, XClient: true}, nil)
	c.dial = overTCP(t, func(conn net.Conn) {
		conns.Add(1)
		p.serve(conn)
	})
	if err := c.Relay(t.Context(), dest, box.next); err != nil || conns.Load() != 1 || len(p.accepted) != 3 {
		t.Errorf("Relay returned %v; %d connections, %d accepted", err, conns.Load(), len(p.accepted))
	}
	box.check(t)
	if s := c.Status()[0]; s.WithoutXClient != notOffered {
		t.Errorf("status %+v", s)
	}
}
