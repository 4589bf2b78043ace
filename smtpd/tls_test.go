package smtpd

import (
	"crypto/tls"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

func TestTLS(t *testing.T) {
	s, spool := newServer(t)
	s.TLS = tlsConfig(t)
	ln := listen(t)
	stop := serve(t, s, ln)
	cache := tls.NewLRUClientSessionCache(1)
	conf := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache, ServerName: "mx.test"}
	for i := range 2 {
		c := startTLS(t, dial(t, ln), conf)
		if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
			t.Errorf("connection %d resumed: %v", i, resumed)
		}
		// RFC 3207 §4.2: what was said before counts no more; STARTTLS is not offered again.
		testmx.Dialogue(t, c, `C: RCPT TO:<alice@corp.example>
S: 503
C: EHLO secure.example
S: /(?s)^250-mx.test\n250-PIPELINING\n250-SIZE 10240000\n250-8BITMIME\n250-SMTPUTF8\n250-ENHANCEDSTATUSCODES\n250-DSN\n250 LIMITS RCPTMAX=1000$/
C: STARTTLS
S: 554 5.5.1
`+transactionHead+`S: 354
C: .
S: 250
C: QUIT
S: 221
S: CLOSED
`)
		c.Close()
	}
	old := newClient(t, dial(t, ln))
	old.want("220")
	old.send("STARTTLS\r\n")
	old.want("220")
	if err := tls.Client(old, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake(); err == nil {
		t.Error("TLS 1.1 accepted")
	}
	old.Close()
	stop()
	if got := spool.accepted()[0].body; !strings.Contains(got, "\r\n\t(using TLSv1.3 with cipher TLS_") || !strings.Contains(got, "with ESMTPS id") {
		t.Errorf("Received: %q", got)
	}
	if n := testutil.ToFloat64(s.Metrics.TLSHandshakes.WithLabelValues("failed")); n != 1 {
		t.Errorf("%v failed handshakes counted", n)
	}
}

func TestCertFile(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := writePair(t, dir, "one.test")
	m := metrics.New(prometheus.NewRegistry())
	c, err := OpenCertFile(certFile, keyFile, slog.New(slog.DiscardHandler), m)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		pair, err := c.Config().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.DNSNames[0]
	}
	if name() != "one.test" {
		t.Fatalf("got %s", name())
	}
	if err := os.WriteFile(certFile, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err == nil || testutil.ToFloat64(m.CertReloads.WithLabelValues("refused")) != 1 {
		t.Errorf("a broken pair was taken: %v", err)
	}
	if name() != "one.test" {
		t.Errorf("the broken pair replaced the good one: %s", name())
	}
	writePair(t, dir, "two.test")
	if err := c.Reload(); err != nil || name() != "two.test" {
		t.Errorf("got %s, %v", name(), err)
	}
	if _, err := OpenCertFile(certFile, dir+"/missing", slog.New(slog.DiscardHandler), m); err == nil {
		t.Error("a missing key is no error")
	}
}

// TestClientCert: a policy that looks at certificates has clients asked for one. Who
// shows one is refused for now only, in a resumed session, too.
func TestClientCert(t *testing.T) {
	pair, err := tls.LoadX509KeyPair(writePair(t, t.TempDir(), "client.test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		ask    bool
		show   bool
		asked  bool
		refuse string
	}{
		{"asked, shown", true, true, true, "450 4.7.0 <bob@corp.example>: Recipient address rejected: only the primary knows this certificate"},
		{"asked, none", true, false, true, "550 5.1.1"},
		{"not asked", false, true, false, "550 5.1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newServer(t)
			snap := snapshot(t, func(spec *policy.Spec) {
				spec.Protocol.AskCert = tt.ask
				spec.Restrictions.Recipient = []policy.Restriction{
					{Kind: "permit_tls_clientcerts"}, {Kind: "reject_unauth_destination"}, {Kind: "reject_unlisted_recipient"},
				}
			})
			s.Policy = func() *policy.Snapshot { return snap }
			s.TLS = tlsConfig(t)
			ln := listen(t)
			stop := serve(t, s, ln)
			asked := false
			conf := &tls.Config{
				InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "mx.test",
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if asked = true; tt.show {
						return &pair, nil
					}
					return new(tls.Certificate), nil
				},
			}
			for i := range 2 {
				c := startTLS(t, dial(t, ln), conf)
				if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
					t.Errorf("connection %d resumed: %v", i, resumed)
				}
				testmx.Dialogue(t, c, "C: EHLO x.example\nS: 250\nC: MAIL FROM:<a@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\n"+
					"C: RCPT TO:<bob@corp.example>\nS: "+tt.refuse+"\nC: QUIT\nS: 221\nS: CLOSED\n")
				c.Close()
			}
			if asked != tt.asked {
				t.Errorf("asked for a certificate: %v", asked)
			}
			stop()
		})
	}
}

// TestPatienceUnderTLS: a client that lets nearly its whole time pass before
// each command keeps its session: a read that ends early is taken up again.
func TestPatienceUnderTLS(t *testing.T) {
	bubble(t, func(s *Server) { s.TLS = tlsConfig(t) }, func(t *testing.T, s *Server, ln *pipeListener) {
		c := newClient(t, startTLS(t, ln.dial("192.0.2.1"), nil))
		defer c.Close()
		for range 5 {
			time.Sleep(s.CommandTimeout - time.Second)
			c.send("NOOP\r\n")
			c.want("250")
		}
		start := time.Now()
		c.want("421 4.4.2")
		if d := time.Since(start); d != s.CommandTimeout {
			t.Errorf("hung up on after %v", d)
		}
	})
}
