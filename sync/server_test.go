package policysync

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServerRefuses: what a paired follower in wrong hands, or a stranger, may
// send to the publisher.
func TestServerRefuses(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	c := f.http.(*client)
	for _, tt := range []struct {
		name, method, target, body string
		want                       int
	}{
		{"head", "GET", "/v1/head?after=0", "", 200},
		{"index chunk", "GET", "/v1/chunks/" + hex.EncodeToString(p.head.index[0].hash[:]), "", 200},
		{"after is no number", "GET", "/v1/head?after=x", "", 400},
		{"after is missing", "GET", "/v1/head", "", 400},
		{"after is too large", "GET", "/v1/head?after=18446744073709551616", "", 400},
		{"unknown chunk", "GET", "/v1/chunks/" + strings.Repeat("0", 64), "", 404},
		{"short name", "GET", "/v1/chunks/00", "", 400},
		{"upper case name", "GET", "/v1/chunks/" + strings.Repeat("A", 64), "", 400},
		{"name that climbs", "GET", "/v1/chunks/..%2f..%2fserver.key", "", 400},
		{"other method", "PUT", "/v1/head?after=0", "", 405},
		{"other path", "GET", "/v2/head", "", 404},
		{"report", "POST", "/v1/report", `{"version":1}`, 204},
		{"report that is no JSON", "POST", "/v1/report", "{", 400},
		{"report with an unknown field", "POST", "/v1/report", `{"next_hop":"x"}`, 400},
		{"report with more behind it", "POST", "/v1/report", `{} {}`, 400},
		{"report too long", "POST", "/v1/report", `{"digest":"` + strings.Repeat("a", maxRequest) + `"}`, 400},
		{"pin that is none", "POST", "/v1/key", `{"pin":"00"}`, 400},
		{"own pin", "POST", "/v1/key", `{"pin":"` + c.self.String() + `"}`, 409},
		{"invitation that is none", "POST", "/v1/join", `{"invite":"","proof":""}`, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, c.base+tt.target, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.want {
				t.Errorf("answer %s, want %d", resp.Status, tt.want)
			}
			if tt.want >= 400 && (bytes.Contains(b, []byte(p.o.Dir)) || len(b) > 100) {
				t.Errorf("the refusal tells more than it must: %q", b)
			}
		})
	}
}

// TestHandshakes: who doesn't even get to ask.
func TestHandshakes(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	p.join(t, "mx2")
	with := func(edit func(*tls.Config)) *tls.Config {
		cfg, err := tlsConfig(testKey('x'), func(Pin) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		edit(cfg)
		return cfg
	}
	rsaLike, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, rsaLike.Public(), rsaLike)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cfg  *tls.Config
	}{
		{"stranger", with(func(*tls.Config) {})},
		{"no key", with(func(c *tls.Config) { c.Certificates = nil })},
		{"key of another kind", with(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: rsaLike}}
		})},
		{"TLS 1.2", with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })},
		{"HTTP/1.1", with(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} })},
		{"no protocol", with(func(c *tls.Config) { c.NextProtos = nil })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", p.addr, tt.cfg)
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.WriteString(conn, "GET /v1/head?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
			if b, err := io.ReadAll(conn); err == nil && len(b) > 0 || bytes.Contains(b, []byte(headMagic)) {
				t.Errorf("the publisher answered %.60q", b)
			}
		})
	}
}

// link is a line between follower and primary that a test can cut.
type link struct {
	addr string
	left atomic.Int64 // octets from the primary until the cut
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{addr: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			k.carry(ctx, c, to)
		}
	}()
	t.Cleanup(func() { cancel(); l.Close(); <-done })
	return k
}

// carry serves one connection at a time, which is all that a follower makes.
func (k *link) carry(ctx context.Context, down net.Conn, to string) {
	defer down.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { up.Close(); down.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() { defer close(sent); _, _ = io.Copy(up, down); up.Close() }()
	b := make([]byte, 4096)
	for {
		n, err := up.Read(b)
		if left := k.left.Add(-int64(n)); err != nil || left < 0 {
			break
		}
		if _, err := down.Write(b[:n]); err != nil {
			break
		}
	}
	up.Close()
	down.Close()
	<-sent
}

// counting counts how often each chunk came whole.
type counting struct {
	remote
	mu    sync.Mutex
	whole map[hash]int
}

func (c *counting) chunk(ctx context.Context, h hash) ([]byte, error) {
	b, err := c.remote.chunk(ctx, h)
	if err == nil {
		c.mu.Lock()
		c.whole[h]++
		c.mu.Unlock()
	}
	return b, err
}

// TestLinkCut cuts the line after ever more octets, in the midst of chunks, and
// restarts the follower every other time. No chunk comes twice, and in the end
// all is there.
func TestLinkCut(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, names(30_000, "example.org")...))
	dir := p.join(t, "mx2")
	k := newLink(t, p.addr)
	whole := map[hash]int{}
	open := func() *Follower {
		f := p.follow(t, dir, "example.org")
		f.http.(*client).base = "https://" + k.addr
		f.http = &counting{remote: f.http, whole: whole}
		return f
	}
	f, cuts := open(), 0
	for octets := int64(6000); ; cuts++ {
		k.left.Store(octets)
		before := len(f.store.have)
		err := f.poll(t.Context())
		if err == nil {
			break
		}
		if got := alarmOf(err, ""); got != AlarmUnreachable && got != AlarmRefused {
			t.Fatalf("cut %d: %v", cuts, err)
		}
		if f.Current() != nil {
			t.Fatal("a part of a snapshot is in force")
		}
		if len(f.store.have) == before {
			octets += 3000 // not one whole chunk came through
		}
		if cuts > 200 {
			t.Fatal("no end")
		}
		if cuts%2 == 1 {
			f.http.close()
			f = open()
		}
	}
	for h, n := range whole {
		if n != 1 || !f.store.has(h) {
			t.Errorf("chunk %x came %d times", h[:4], n)
		}
	}
	if len(whole) != len(f.store.have) {
		t.Errorf("%d chunks came, %d are stored", len(whole), len(f.store.have))
	}
	if cuts < 3 {
		t.Errorf("only %d cuts", cuts)
	}
	if got := rcpt(t, f.Current(), "user0029999@example.org"); got != 250 {
		t.Errorf("the last recipient is answered %d", got)
	}
	t.Logf("%d cuts", cuts)
}

// TestRun follows through changes, a primary that dies and comes back on the
// same address with the same state, and the end.
func TestRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir, addr := t.TempDir(), l.Addr().String()
	serve := func(l net.Listener) (*Publisher, func()) {
		p, err := OpenPublisher(PublisherOptions{Dir: dir, Address: addr, Metrics: newMetrics()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Serve(ctx, l) }()
		return p, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	p, stop := serve(l)
	token, err := p.Invite("mx2")
	if err != nil {
		t.Fatal(err)
	}
	fdir := t.TempDir()
	if _, err := Join(t.Context(), fdir, token); err != nil {
		t.Fatal(err)
	}
	changes := make(chan struct{}, 16)
	f, err := OpenFollower(FollowerOptions{Dir: fdir, Domains: []string{"example.org"}, Metrics: newMetrics(),
		OnChange: func() { changes <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	publish := func(n int) {
		if err := p.Publish(snapshot(t, newSpec(t, []string{"example.org"}, names(n, "example.org")...))); err != nil {
			t.Fatal(err)
		}
		<-changes
		if got := f.Current().Stats().Recipients; got != n {
			t.Fatalf("%d recipients, want %d", got, n)
		}
	}
	for n := 1; n <= 5; n++ {
		publish(n)
	}
	stop()
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	p, stop = serve(l)
	publish(6)
	if s := f.Status(); s.Version != 6 || s.State != StateFresh {
		t.Errorf("status %+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	stop()
}

// TestPeerLimits: one follower can't have the publisher wait for it without
// end, and what it says about itself is bounded.
func TestPeerLimits(t *testing.T) {
	p := newTestPublisher(t)
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, peerPolls)
	for range peerPolls {
		go func() { done <- f.poll(ctx) }() // there is no policy yet: all of them wait
	}
	for range peerPolls {
		<-p.waiting
	}
	if err := f.poll(t.Context()); alarmOf(err, "") != AlarmUnreachable {
		t.Errorf("one poll too many: %v", err)
	}
	cancel()
	for range peerPolls {
		<-done
	}
	if _, err := f.http.post(t.Context(), "/v1/report", Report{Digest: strings.Repeat("é", 100), State: "a\x00\nb", Health: Health{Problem: strings.Repeat("x", 1000)}}, 10); err != nil {
		t.Fatal(err)
	}
	r := p.Peers()[0].Report
	if len(r.Digest) != 64 || r.State != "a  b" || len(r.Health.Problem) != 256 {
		t.Errorf("the publisher keeps %+v", r)
	}
}

// TestNotice: what is wrong with a source shows at the follower, without a new
// version.
func TestNotice(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	poll(t, f)
	p.SetNotice("sql: connection refused\n" + strings.Repeat("é", maxNotice))
	raw, err := f.http.head(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	h, err := openHead(raw, f.pair.keys())
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != 1 || h.identity != f.cur.head.identity || !strings.HasPrefix(h.Notice, "sql: connection refused ") || len(h.Notice) > maxNotice {
		t.Errorf("version %d with notice %.60q", h.Version, h.Notice)
	}
	if err := f.renew(h, raw); err != nil || f.Status().Notice != h.Notice {
		t.Errorf("the follower shows %.60q: %v", f.Status().Notice, err)
	}
}
