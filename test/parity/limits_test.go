package parity

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/smtpd"
)

// limitsMain is what the main.cf of each case begins with; clients come by PROXY.
const limitsMain = `smtpd_upstream_proxy_protocol = haproxy
relay_domains = corp.example
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
mynetworks = 203.0.113.0/24
smtpd_tls_security_level = may
smtpd_tls_chain_files = %s
`

// TestLimitsLikePostfix plays what each limit by client is about to a real
// Postfix and to us. A line is a client, or nothing for a pause, and what it
// does: connect (the last one stays open), listen, a command, or TLS, which
// stands for STARTTLS and its handshake.
func TestLimitsLikePostfix(t *testing.T) {
	for _, tt := range []struct{ name, main, script string }{
		{"counts", `anvil_rate_time_unit = 1h
smtpd_client_connection_count_limit = 3
smtpd_client_connection_rate_limit = 4
smtpd_client_message_rate_limit = 3
smtpd_client_recipient_rate_limit = 5
smtpd_client_new_tls_session_rate_limit = 2
smtpd_client_event_limit_exceptions = 192.0.2.9
`, `192.0.2.1 connect
192.0.2.1 connect
192.0.2.1 connect
192.0.2.1 connect
192.0.2.2 connect
192.0.2.2 QUIT
192.0.2.2 connect
192.0.2.2 QUIT
192.0.2.2 connect
192.0.2.2 QUIT
192.0.2.2 connect
192.0.2.2 QUIT
192.0.2.2 connect
192.0.2.3 connect
192.0.2.3 MAIL <x@y.example>
192.0.2.3 MAIL FROM:<a b>
192.0.2.3 MAIL FROM:<x@y.example>
192.0.2.3 MAIL FROM:<x@y.example>
192.0.2.3 RSET
192.0.2.3 MAIL FROM:<x@y.example> FOO=bar
192.0.2.3 MAIL FROM:<x@y.example>
192.0.2.3 MAIL FROM:<a b>
192.0.2.3 connect
192.0.2.3 MAIL FROM:<x@y.example>
192.0.2.4 connect
192.0.2.4 RCPT TO:<a@corp.example>
192.0.2.4 VRFY
192.0.2.4 VRFY a@corp.example
192.0.2.4 MAIL FROM:<x@y.example>
192.0.2.4 RCPT TO:<a@corp.example>
192.0.2.4 RCPT TO:<a@elsewhere.example>
192.0.2.4 RCPT TO:<a b>
192.0.2.4 RCPT TO:<a@corp.example> FOO=bar
192.0.2.4 RCPT TO:<a@corp.example>
192.0.2.4 RCPT TO:<a b>
192.0.2.4 VRFY a@corp.example
192.0.2.4 RSET
192.0.2.4 MAIL FROM:<x@y.example>
192.0.2.4 RCPT TO:<a@corp.example>
192.0.2.5 connect
192.0.2.5 TLS
192.0.2.5 HELO x
192.0.2.5 connect
192.0.2.5 TLS
192.0.2.5 NOOP
192.0.2.5 connect
192.0.2.5 TLS
192.0.2.5 listen
192.0.2.5 connect
192.0.2.5 STARTTLS
192.0.2.5 NOOP
2001:db8::1 connect
2001:db8::1 connect
2001:db8::1 connect
2001:db8::1 connect
2001:db8::2 connect
192.0.2.9 connect
192.0.2.9 connect
192.0.2.9 connect
192.0.2.9 connect
192.0.2.9 connect
203.0.113.1 connect
203.0.113.1 connect
203.0.113.1 connect
203.0.113.1 connect
127.0.0.1 connect
127.0.0.1 connect
127.0.0.1 connect
127.0.0.1 connect
127.0.0.1 XCLIENT ADDR=192.0.2.1
127.0.0.1 connect
127.0.0.1 XCLIENT ADDR=192.0.2.6
127.0.0.1 MAIL FROM:<x@y.example>
127.0.0.1 RSET
127.0.0.1 MAIL FROM:<x@y.example>
127.0.0.1 RSET
127.0.0.1 MAIL FROM:<x@y.example>
127.0.0.1 RSET
127.0.0.1 MAIL FROM:<x@y.example>
192.0.2.6 connect
192.0.2.6 MAIL FROM:<x@y.example>
192.0.2.6 connect
192.0.2.6 connect
`},
		{"window", `anvil_rate_time_unit = 5s
smtpd_client_message_rate_limit = 1
`, `192.0.2.1 connect
192.0.2.1 MAIL FROM:<x@y.example>
192.0.2.1 RSET
192.0.2.1 MAIL FROM:<x@y.example>
 6500ms
192.0.2.1 MAIL FROM:<x@y.example>
192.0.2.1 RSET
192.0.2.1 MAIL FROM:<x@y.example>
`},
	} {
		t.Run(tt.name, func(t *testing.T) { limitsAlike(t, tt.name, tt.main, tt.script) })
	}
}

func limitsAlike(t *testing.T, name, limits, script string) {
	dns := startDNS(t)
	p := &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	run, pair := filepath.Join(p.dir, "run"), filepath.Join(p.dir, "pair.pem")
	for _, dir := range []string{"run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cert := writePair(t, pair)
	main := testmx.Override(decisionsBase+fmt.Sprintf(testOnly, p.dir), fmt.Sprintf(limitsMain, pair)+limits)
	writeOld(t, filepath.Join(run, "main.cf"), main)
	writeOld(t, filepath.Join(run, "master.cf"), fmt.Sprintf(testmx.MasterCF, p.addr))
	p.start(dns.Addr())
	theirs := playLimits(t, p.dial, script)
	ours := func(main string) []string {
		writeOld(t, filepath.Join(run, "main.cf"), main)
		spec, _, err := postfix.Import(t.Context(), postfix.Source{ConfigDir: run, Service: p.addr})
		if err != nil {
			t.Fatal(err)
		}
		dial, stop := serveLimited(t, spec, dns, cert)
		defer stop()
		return playLimits(t, dial, script)
	}
	got := ours(main)
	refused := 0
	for n, line := range strings.Split(strings.TrimSuffix(script, "\n"), "\n") {
		if got[n] != theirs[n] {
			t.Errorf("%s: Postfix %q, we %q", line, theirs[n], got[n])
		}
		if strings.Contains(theirs[n], "Error: too m") {
			refused++
		}
	}
	t.Logf("%d replies, %d of them refusals for too much", len(got), refused)
	test := "TestLimitsLikePostfix/" + name
	matters := func(what string) bool { return !slices.Equal(ours(testmx.Without(main, what)), got) }
	for _, what := range testmx.Evidence(t, evidenceFile, test, testmx.Mentioned(limits), matters) {
		if !matters(what) {
			t.Errorf("%s doesn't matter here, though evidence.txt says so", what)
		}
	}
}

// serveLimited is serve for one primary's limits, with TLS and PROXY.
func serveLimited(t *testing.T, spec *policy.Spec, dns *demo.DNS, cert tls.Certificate) (parity.Dialer, func()) {
	t.Helper()
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	srv := &smtpd.Server{
		Hostname: "mx.example.org", Policy: func() *policy.Snapshot { return snap }, TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
		Resolver: resolver.New(resolver.Options{Servers: []string{dns.Addr()}, Timeout: 30 * time.Second}), Keep: smtpd.Nowhere{},
		XClientFrom: local, ProxyFrom: local,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // TLS writes where the client writes, too: a pipe would hang
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	var d net.Dialer
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", ln.Addr().String()) }, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

// playLimits returns the last line of each reply, "" for a pause.
func playLimits(t *testing.T, dial parity.Dialer, script string) []string {
	t.Helper()
	open := map[string]*bufio.ReadWriter{}
	conns := map[string]net.Conn{}
	var replies []string
	for line := range strings.Lines(script) {
		from, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if from == "" {
			d, err := time.ParseDuration(what)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d) // Postfix's clock is the real one
			replies = append(replies, "")
			continue
		}
		if what == "connect" {
			c, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			family, to := "TCP4", "127.0.0.1"
			if strings.Contains(from, ":") {
				family, to = "TCP6", "::1"
			}
			conns[from], open[from] = c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
			what = fmt.Sprintf("PROXY %s %s %s 4321 25", family, from, to)
		}
		handshake := what == "TLS"
		if handshake {
			what = "STARTTLS"
		}
		if what == "listen" { // in vain, where evidence is sought
			_ = conns[from].SetReadDeadline(time.Now().Add(5 * time.Second))
		}
		got := exchange(open[from], what)
		if handshake && strings.HasPrefix(got, "220 ") {
			secure := tls.Client(conns[from], &tls.Config{InsecureSkipVerify: true})
			if err := secure.Handshake(); err != nil {
				t.Fatal(err)
			}
			open[from] = bufio.NewReadWriter(bufio.NewReader(secure), bufio.NewWriter(secure))
		}
		if what == "QUIT" || strings.HasPrefix(got, "421 ") {
			_, _ = io.Copy(io.Discard, open[from]) // it counts until then
		}
		replies = append(replies, got)
	}
	return replies
}

// exchange says what and returns the last line of the reply, a greeting's code
// only, or that the server has hung up.
func exchange(c *bufio.ReadWriter, what string) string {
	if what != "listen" {
		_, _ = c.WriteString(what + "\r\n")
	}
	_ = c.Flush() // where the server has hung up, what it said last is there to be read
	for {
		line, err := c.ReadString('\n')
		switch {
		case err != nil:
			return "closed"
		case strings.HasPrefix(line, "220 ") && !strings.HasPrefix(line, "220 2.0.0"):
			return "220"
		case len(line) > 3 && line[3] != '-':
			return strings.TrimSpace(line)
		}
	}
}

// writePair writes a new key and a certificate for it, in the order that
// Postfix wants.
func writePair(t *testing.T, file string) tls.Certificate {
	t.Helper()
	certPEM, keyPEM := testmx.Certificate("mx.example.org", nil)
	writeOld(t, file, string(keyPEM)+string(certPEM))
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
