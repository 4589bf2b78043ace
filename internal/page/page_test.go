package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/queue"
)

const token = "0123456789abcdefghijklmnop"

// desk is a daemon with three messages: one waits, one is held, one is both.
type desk struct {
	mu     sync.Mutex // guards what follows
	done   []string
	broken error
	more   []queue.Info // messages behind those three
	walked int          // messages that were asked for
	cut    error        // ends a walk behind the first message
}

// hostile is what others may have put into an envelope or a reply.
const hostile = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e\x00"

func (d *desk) mail() []queue.Info {
	to := func(state string) queue.RecipientInfo {
		return queue.RecipientInfo{Address: hostile + state, State: state, Reason: "refused", Reply: "550 " + hostile + strings.Repeat("x", 5000)}
	}
	client := envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: hostile}
	return append([]queue.Info{
		{ID: "W", From: hostile, Client: client, Recipients: []queue.RecipientInfo{to("queued")}},
		{ID: "H", From: hostile, Client: client, Recipients: []queue.RecipientInfo{to("held")}},
		{ID: "B", From: hostile, Client: client, Recipients: []queue.RecipientInfo{to("held"), to("deferred")}},
	}, d.more...)
}

func (d *desk) Status(context.Context) (operator.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := operator.Status{Status: queue.Status{At: time.Now(), Accepted: 3, Waiting: true}}
	for _, m := range d.mail() {
		s.Messages++
		if anyHeld(m) {
			s.Held++
		}
	}
	s.Routes = slices.Grow(s.Routes, 1)[:1]
	s.Routes[0].Name, s.Routes[0].LastError = "primary", hostile+strings.Repeat("y", 5000)
	return s, d.broken
}

func (d *desk) Outages(context.Context) (all []outage.Outage, _ error) {
	for i := range 9 {
		all = append(all, outage.Outage{ID: i + 1, Route: "primary", Noticed: hostile, Accepted: 7, Refused: map[string]uint64{"a": 2, "b": 3}})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return all, d.broken
}

func (d *desk) OutageReport(_ context.Context, id int, format string) ([]byte, error) {
	if id != 7 || format != "html" {
		return nil, errors.New("there is no such outage")
	}
	return []byte("<h1>7</h1>"), nil
}

func (d *desk) Parity(context.Context, bool) (meter.Report, error) {
	rate := 0.99996
	return meter.Report{Rate: &rate, Same: 24999, Different: 1, Unexplained: 1}, nil
}

func (d *desk) Fleet(context.Context) (v fleet.View, _ error) {
	v.Self, v.Error, v.Adopts = "mx2", hostile, hostile
	for range 3 * maxMembers {
		m := fleet.Member{Name: hostile + strings.Repeat("z", 5000), Alive: true, Differs: true, Share: 1.0 / 3, Holder: hostile}
		m.Problem, m.Digest = hostile, hostile
		v.Members = append(v.Members, m)
	}
	return v, d.broken
}

func (d *desk) Message(_ context.Context, id string) (queue.Info, error) {
	for _, m := range d.mail() {
		if m.ID == id {
			return m, nil
		}
	}
	return queue.Info{}, queue.ErrNotFound
}

func (d *desk) Body(_ context.Context, id string) (io.ReadCloser, error) {
	if _, err := d.Message(context.Background(), id); err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader("Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nFrom: " + hostile + "\r\nContent-Type: text/html\r\n\r\n<script>alert(2)</script>\r\n")), nil
}

func (d *desk) Messages(_ context.Context, fn func(queue.Info) error) error {
	for _, m := range d.mail() {
		d.walked++
		if err := fn(m); err != nil {
			return err
		}
		if d.cut != nil {
			return d.cut
		}
	}
	return nil
}

func (d *desk) note(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = append(d.done, what)
	return nil
}
func (d *desk) Release(_ context.Context, id string) error { return d.note("release " + id) }
func (d *desk) Return(_ context.Context, id string) error {
	return d.Release(context.Background(), "return "+id)
}

func (d *desk) Remove(_ context.Context, id string) error { return d.note("remove " + id) }

func options(d *desk) Options {
	return Options{Hostname: "mx2.example.org", Desk: d, Metrics: prometheus.NewRegistry(), Token: token, Hosts: []string{"mx2.example.org"},
		Addresses: ForToken, Log: slog.New(slog.DiscardHandler)}
}

// request is one as a browser sends it; the headers are name, value, name, value.
func request(method, target string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.Host = "127.0.0.1:9627"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// TestWhoMayAsk: the page's own files are for all, what it asks for is for those
// who have the token or whom the proxy names, and no foreign name or page leads
// here.
func TestWhoMayAsk(t *testing.T) {
	const bearer = "Bearer " + token
	own := []string{"Authorization", bearer, "Origin", "http://127.0.0.1:9627", "Sec-Fetch-Site", "same-origin"}
	with := func(base []string, more ...string) []string { return append(append([]string{}, base...), more...) }
	token, proxied := func(*Options) {}, func(o *Options) { o.Header = "Remote-User" }
	for _, tt := range []struct {
		name           string
		options        func(*Options)
		method, target string
		headers        []string
		want           int
	}{
		{"page", token, "GET", "/", nil, 200},
		{"script", token, "GET", "/page.js", nil, 200},
		{"nothing else", token, "GET", "/page.go", nil, 404},
		{"page can't be changed", token, "POST", "/", own, 405},
		{"no token", token, "GET", "/api/mail", nil, 403},
		{"no token, events", token, "GET", "/api/events", nil, 403},
		{"wrong token", token, "GET", "/api/mail", []string{"Authorization", bearer + "x"}, 403},
		{"empty token", token, "GET", "/api/mail", []string{"Authorization", "Bearer "}, 403},
		{"token in the query", token, "GET", "/api/mail?token=0123456789abcdefghijklmnop", nil, 403},
		{"token as a cookie", token, "GET", "/api/mail", []string{"Cookie", "token=0123456789abcdefghijklmnop"}, 403},
		{"token", token, "GET", "/api/mail", []string{"Authorization", bearer}, 200},
		{"localhost", token, "GET", "/api/mail", with(own[:2], "Host", "localhost:9627"), 200},
		{"IPv6", token, "GET", "/api/mail", with(own[:2], "Host", "[::1]:9627"), 200},
		{"our name", token, "GET", "/api/mail", with(own[:2], "Host", "MX2.example.org"), 200},
		{"rebound name", token, "GET", "/", []string{"Host", "evil.example"}, 421},
		{"rebound name, token", token, "GET", "/api/mail", with(own[:2], "Host", "evil.example:9627"), 421},
		{"name that begins as ours", token, "GET", "/", []string{"Host", "localhost.evil.example"}, 421},
		{"foreign address", token, "GET", "/", []string{"Host", "192.0.2.1:9627"}, 421},
		{"no name", token, "GET", "/", []string{"Host", ""}, 421},
		{"asked by another site", token, "GET", "/api/mail", []string{"Authorization", bearer, "Sec-Fetch-Site", "cross-site"}, 403},
		{"release", token, "POST", "/api/mail/H/release", own, 200},
		{"remove", token, "POST", "/api/mail/H/remove", own, 200},
		{"release without token", token, "POST", "/api/mail/H/release", own[2:], 403},
		{"release without origin", token, "POST", "/api/mail/H/release", own[:2], 403},
		{"release from elsewhere", token, "POST", "/api/mail/H/release", []string{"Authorization", bearer, "Origin", "http://evil.example"}, 403},
		{"release from a sandbox", token, "POST", "/api/mail/H/release", []string{"Authorization", bearer, "Origin", "null"}, 403},
		{"release from another port", token, "POST", "/api/mail/H/release", []string{"Authorization", bearer, "Origin", "http://127.0.0.1:80"}, 403},
		{"release by GET", token, "GET", "/api/mail/H/release", own, 405},
		{"pre-flight", token, "OPTIONS", "/api/mail/H/release", own[2:], 405},
		{"another verb", token, "POST", "/api/mail/H/hold", own, 404},
		{"release what isn't held", token, "POST", "/api/mail/W/release", own, 409},
		{"remove what isn't held", token, "POST", "/api/mail/W/remove", own, 409},
		{"remove what others wait for", token, "POST", "/api/mail/B/remove", own, 409},
		{"release what others wait for", token, "POST", "/api/mail/B/release", own, 200},
		{"unknown message", token, "POST", "/api/mail/X/release", own, 409},
		{"nobody sees addresses", func(o *Options) { o.Addresses = ForNone }, "GET", "/api/mail", own, 403},
		{"nobody settles mail", func(o *Options) { o.Addresses = ForNone }, "POST", "/api/mail/H/release", own, 403},
		{"header without a proxy", token, "GET", "/api/mail", []string{"Remote-User", "alice"}, 403},
		{"proxy's user sees no addresses", proxied, "GET", "/api/mail", []string{"Remote-User", "alice"}, 403},
		{"proxy's user settles nothing", proxied, "POST", "/api/mail/H/release", with(own[2:], "Remote-User", "alice"), 403},
		{"proxy's user, for all", func(o *Options) { o.Header, o.Addresses = "Remote-User", ForAll }, "GET", "/api/mail", []string{"Remote-User", "alice"}, 200},
		{"proxy's user, from elsewhere", func(o *Options) { o.Header, o.Addresses = "Remote-User", ForAll }, "POST", "/api/mail/H/release", []string{"Remote-User", "alice", "Origin", "https://evil.example"}, 403},
		{"proxy that adds to the client's header", func(o *Options) { o.Header, o.Addresses = "Remote-User", ForAll }, "GET", "/api/mail", []string{"Remote-User", "admin", "Remote-User", "alice"}, 403},
		{"proxy without a user", func(o *Options) { o.Header, o.Addresses = "Remote-User", ForAll }, "GET", "/api/mail", []string{"Remote-User", ""}, 403},
		{"no token set, none sent", func(o *Options) { o.Token = "" }, "GET", "/api/mail", []string{"Authorization", "Bearer "}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &desk{}
			o := options(d)
			tt.options(&o)
			w := httptest.NewRecorder()
			New(o).Handler().ServeHTTP(w, request(tt.method, tt.target, tt.headers...))
			if w.Code != tt.want {
				t.Errorf("%s %s: %d, want %d: %s", tt.method, tt.target, w.Code, tt.want, w.Body)
			}
			if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") {
				t.Errorf("Content-Security-Policy: %q", csp)
			}
			if c := w.Header().Get("Set-Cookie"); c != "" {
				t.Errorf("sets a cookie: %s", c)
			}
			if strings.HasPrefix(tt.target, "/api/") && w.Code != 404 && w.Code != 405 && tt.target != "/api/events" {
				var answer map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || (answer["error"] == nil) != (w.Code == 200) {
					t.Errorf("%d with %q", w.Code, w.Body)
				}
			}
			if settled := strings.HasPrefix(tt.target, "/api/mail/") && tt.want == 200; settled != (len(d.done) == 1) {
				t.Errorf("did %q", d.done)
			}
		})
	}
}

// TestRead: what a message says is plain text, for those who may see addresses
// where the configuration says so, and the log says who read it.
func TestRead(t *testing.T) {
	shown := func(o *Options) { o.ShowMail = true }
	bearer := []string{"Authorization", "Bearer " + token}
	for _, tt := range []struct {
		name, id string
		options  func(*Options)
		headers  []string
		want     int
	}{
		{"waiting", "W", shown, bearer, 200},
		{"held", "H", shown, bearer, 200},
		{"unknown", "X", shown, bearer, 404},
		{"without the token", "W", shown, nil, 403},
		{"from elsewhere", "W", shown, append([]string{"Sec-Fetch-Site", "cross-site"}, bearer...), 403},
		{"not said", "W", func(*Options) {}, bearer, 403},
		{"nobody sees addresses", "W", func(o *Options) { o.ShowMail, o.Addresses = true, ForNone }, bearer, 403},
		{"proxy's user", "W", func(o *Options) { o.ShowMail, o.Header = true, "Remote-User" }, []string{"Remote-User", "alice"}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(&desk{})
			tt.options(&o)
			var logged bytes.Buffer
			o.Log = slog.New(slog.NewTextHandler(&logged, nil))
			w := httptest.NewRecorder()
			New(o).Handler().ServeHTTP(w, request("GET", "/api/mail/"+tt.id+"/text", tt.headers...))
			if read := strings.Contains(logged.String(), "id="+tt.id+" by=token"); w.Code != tt.want || read != (tt.want == 200) {
				t.Errorf("%d, want %d: %s\nlogged: %s", w.Code, tt.want, w.Body, &logged)
			}
			if w.Code != 200 {
				return
			}
			text, kind := w.Body.String(), w.Header().Get("Content-Type")
			if !strings.Contains(text, "grüße") || strings.ContainsAny(text, "\x1b\u202e\x00") || strings.Contains(text, "alert(2)") {
				t.Errorf("it says %q", text)
			}
			if kind != "text/plain; charset=utf-8" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("as %q, %v", kind, w.Header())
			}
		})
	}
}

// TestHostile: what others wrote arrives as printable, bounded text.
func TestHostile(t *testing.T) {
	d := &desk{}
	p := New(options(d))
	s := newSampler()
	p.update(t.Context(), s)
	picture, _ := p.board.look()
	if !bytes.Contains(picture, []byte(`"messages":3,`)) || !bytes.Contains(picture, []byte(`"hostname":"mx2.example.org"`)) {
		t.Errorf("the picture: %s", picture)
	}
	if m := p.board.past.Minutes.part; len(m) != 1 || m[0][1] != 1 || m[0][4] != 0 {
		t.Errorf("the moment is %v; one waits, and the primary is down", m)
	}
	mail := httptest.NewRecorder()
	p.Handler().ServeHTTP(mail, request("GET", "/api/mail", "Authorization", "Bearer "+token))
	if n := strings.Count(mail.Body.String(), "onerror"); n < 6 {
		t.Fatalf("the hostile text isn't in the answer: %s", mail.Body)
	}
	for name, answer := range map[string][]byte{"now": picture, "mail": mail.Body.Bytes()} {
		if len(answer) > 10_000 {
			t.Errorf("%s: %d octets", name, len(answer))
		}
		for _, bad := range []string{"<", ">", "\x1b", `\u001b`, "\u202e", `\u202e`, `\u0000`} {
			if bytes.Contains(answer, []byte(bad)) {
				t.Errorf("%s holds %q: %s", name, bad, answer)
			}
		}
	}
	if n := bytes.Count(picture, []byte("onerror")); n != 1 { // the next hop's error alone
		t.Errorf("the picture holds an envelope: %s", picture)
	}
	if n := len(s.outages); n != maxOutages || s.outages[0].ID != 9 || s.outages[0].Refused != 5 {
		t.Errorf("%d outages, the first %+v; want the last %d, the latest first", n, s.outages, maxOutages)
	}
	d.broken = errors.New(hostile)
	p.update(t.Context(), newSampler())
	if picture, _ := p.board.look(); !bytes.Contains(picture, []byte(`"outages":[]`)) || !bytes.Contains(picture, []byte(`"verdicts":[]`)) {
		t.Errorf("lists that aren't known: %s", picture)
	}
	if picture, _ := p.board.look(); bytes.Contains(picture, []byte("\u202e")) || !bytes.Contains(picture, []byte(`"error"`)) {
		t.Errorf("a daemon that doesn't answer: %s", picture)
	}
}

// TestFleet: what other secondaries say of themselves is shown as text, bounded; without
// a shared database nobody is asked.
func TestFleet(t *testing.T) {
	p := New(options(&desk{}))
	p.update(t.Context(), newSampler())
	if picture, _ := p.board.look(); !bytes.Contains(picture, []byte(`"fleet":null`)) {
		t.Errorf("a fleet of none: %s", picture)
	}
	o := options(&desk{})
	o.Fleet = true
	p = New(o)
	p.update(t.Context(), newSampler())
	picture, _ := p.board.look()
	var got now
	if err := json.Unmarshal(picture, &got); err != nil || got.Fleet == nil {
		t.Fatalf("%v: %s", err, picture)
	}
	f := *got.Fleet
	if len(f.Members) != maxMembers || f.More != 2*maxMembers || f.Self != "mx2" {
		t.Errorf("%d members, %d more, from %q", len(f.Members), f.More, f.Self)
	}
	m := f.Members[0]
	if !m.Alive || !m.Differs || m.Share != 0.333 || !strings.HasPrefix(m.Problem, "its spool is held by ") {
		t.Errorf("%+v", m)
	}
	for _, s := range []string{f.Error, f.Adopts, m.Name, m.Digest, m.Problem} {
		if len(s) > maxText+10 || strings.ContainsAny(s, "\x1b\u202e\x00") || s == "" {
			t.Errorf("shown: %q", s)
		}
	}
}

// TestMail: the first that wait and the held are shown, each with its recipients,
// as far as the bounds go, and no more of the queue is read than that takes.
func TestMail(t *testing.T) {
	many := func(n int, state string, recipients int) (all []queue.Info) {
		for range n {
			all = append(all, queue.Info{ID: state, Recipients: slices.Repeat([]queue.RecipientInfo{{State: state}}, recipients)})
		}
		return all
	}
	for _, tt := range []struct {
		name                  string
		more                  []queue.Info
		waiting, held, walked int
		cut                   bool
	}{
		{"all of a short queue", nil, 1, 2, 3, false},
		{"a long line", many(1000, "queued", 1), maxWaiting, 2, 3 + maxWaiting - 1, false},
		{"held mail behind a long line", append(many(1000, "deferred", 1), many(1, "held", 1)...), maxWaiting, 3, 1004, false},
		{"much held mail", many(1000, "held", 1), 1, maxHeld, maxHeld + 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &desk{more: tt.more}
			w := httptest.NewRecorder()
			New(options(d)).Handler().ServeHTTP(w, request("GET", "/api/mail", "Authorization", "Bearer "+token))
			var got mailNow
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Waiting) != tt.waiting || len(got.Held) != tt.held || got.Cut != tt.cut || d.walked != tt.walked {
				t.Errorf("%d waiting, %d held, cut %v, %d read; want %+v", len(got.Waiting), len(got.Held), got.Cut, d.walked, tt)
			}
			if h := got.Held; h[0].ID != "H" || !h[0].AllHeld || h[1].ID != "B" || h[1].AllHeld {
				t.Errorf("held: %+v", h[:2])
			}
		})
	}
	for _, tt := range []struct {
		name string
		d    *desk
		want int
		cut  bool
	}{{"a walk that ends early", &desk{cut: context.DeadlineExceeded}, 200, true}, {"no daemon", &desk{broken: errors.New("gone")}, 503, false}} {
		w := httptest.NewRecorder()
		New(options(tt.d)).Handler().ServeHTTP(w, request("GET", "/api/mail", "Authorization", "Bearer "+token))
		var got mailNow
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != tt.want || got.Cut != tt.cut {
			t.Errorf("%s: %d, cut %v, %v", tt.name, w.Code, got.Cut, err)
		}
	}
	if m := shown(many(1, "queued", 30)[0]); len(m.Recipients) != maxRecipients || m.More != 30-maxRecipients {
		t.Errorf("of 30 recipients %d are shown, and %d more", len(m.Recipients), m.More)
	}
}

// TestPolicyNow: the policy comes from the metrics, and what they don't say any
// more is forgotten.
func TestPolicyNow(t *testing.T) {
	r := prometheus.NewRegistry()
	gauge := func(name string, value float64, labels prometheus.Labels) prometheus.Collector {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, ConstLabels: labels})
		g.Set(value)
		r.MustRegister(g)
		return g
	}
	gauge("understudy_policy_version", 7, nil)
	gauge("understudy_policy_loaded_timestamp_seconds", 100, nil)
	gauge("understudy_policy_recipients", 12, nil)
	gauge("understudy_sync_state", 0, prometheus.Labels{"state": "fresh"})
	gauge("understudy_sync_state", 1, prometheus.Labels{"state": "stale"})
	signed := gauge("understudy_sync_signed_timestamp_seconds", 90, nil)
	staged := gauge("understudy_sync_staged_deletion", 1, prometheus.Labels{"decision": "pending"})
	var c counts
	start := time.Now()
	want := policyNow{Version: 7, Loaded: 100, Signed: 90, Recipients: 12, State: "stale", Staged: "pending"}
	if got, list := c.read(r, start); got != want || len(list) != 0 {
		t.Errorf("got %+v and %v, want %+v", got, list, want)
	}
	r.Unregister(signed)
	r.Unregister(staged)
	want.Signed, want.Staged = 0, ""
	if got, _ := c.read(r, start.Add(countEvery)); got != want {
		t.Errorf("later: got %+v, want %+v", got, want)
	}
}

// serve runs a page until the test ends.
func serve(t *testing.T, o Options) (addr string) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(o).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func watchEvents(t *testing.T, addr string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestEvents: the past comes first, then pictures; so many watchers are served
// and one more is not, until one leaves.
func TestEvents(t *testing.T) {
	addr := serve(t, options(&desk{}))
	var first *http.Response
	for range maxWatchers {
		first = watchEvents(t, addr)
		if first.StatusCode != 200 || first.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s %s", first.Status, first.Header)
		}
	}
	if more := watchEvents(t, addr); more.StatusCode != 503 || more.Header.Get("Retry-After") == "" {
		t.Errorf("one watcher too many: %s", more.Status)
	}
	var got []string
	for sc := bufio.NewScanner(first.Body); len(got) < 3 && sc.Scan(); {
		if event, ok := strings.CutPrefix(sc.Text(), "event: "); ok {
			got = append(got, event)
		}
	}
	if strings.Join(got, " ") != "history now now" {
		t.Errorf("events: %q", got)
	}
	first.Body.Close()
	for again := watchEvents(t, addr); again.StatusCode != 200; again = watchEvents(t, addr) {
		if again.StatusCode != 503 || t.Context().Err() != nil {
			t.Fatal(again.Status)
		}
	}
}

// stuck is a connection whose other end reads nothing.
type stuck struct {
	http.ResponseWriter
	deadlines []time.Time
}

func (s *stuck) SetReadDeadline(time.Time) error { return nil }
func (s *stuck) SetWriteDeadline(d time.Time) error {
	s.deadlines = append(s.deadlines, d)
	return nil
}
func (s *stuck) Write([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestSlowReader: who doesn't take an event in time loses the connection and
// gives back the place.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(options(&desk{}))
		w := &stuck{ResponseWriter: httptest.NewRecorder()}
		p.events(w, request("GET", "/api/events"), caller{})
		if len(w.deadlines) != 1 || w.deadlines[0] != time.Now().Add(eventTimeout) {
			t.Errorf("deadlines %v", w.deadlines)
		}
		if len(p.watchers) != 0 {
			t.Error("the place is still taken")
		}
	})
}

// TestSeries: a long step is its last depth, its mean rates, and down if it ever
// was; the oldest points make room.
func TestSeries(t *testing.T) {
	s := series{Step: 10, max: 3}
	for i := range 50 {
		p := point{float64(i), float64(i), float64(i % 2), 4, 1}
		if i == 25 {
			p[4] = 0
		}
		s.add(p)
	}
	want := []point{{19, 19, 0.5, 4, 1}, {29, 29, 0.5, 4, 0}, {39, 39, 0.5, 4, 1}}
	if !slices.Equal(s.Points, want) {
		t.Errorf("got %v, want %v", s.Points, want)
	}
}

// TestVerdicts: those of late come first, and an old one isn't of late.
func TestVerdicts(t *testing.T) {
	r := prometheus.NewRegistry()
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "understudy_policy_verdicts_total"}, []string{"stage", "action", "rule"})
	r.MustRegister(total)
	var c counts
	start := time.Now()
	total.WithLabelValues("rcpt", "reject", "old").Add(7)
	c.read(r, start)
	total.WithLabelValues("rcpt", "permit", "new").Add(2)
	total.WithLabelValues("mail", "permit", "none").Add(9)
	total.WithLabelValues("mail", "reject", "none").Add(1)
	if _, list := c.read(r, start.Add(time.Second)); len(list) != 1 {
		t.Errorf("read again within %v: %v", countEvery, list)
	}
	_, list := c.read(r, start.Add(time.Minute))
	want := []verdict{{"rcpt", "permit", "new", 2, 2}, {"mail", "reject", "none", 1, 1}, {"rcpt", "reject", "old", 0, 7}}
	if !slices.Equal(list, want) {
		t.Errorf("got %v, want %v", list, want)
	}
	c.read(r, start.Add(11*time.Minute))
	if _, list := c.read(r, start.Add(22*time.Minute)); list[0].Recent+list[1].Recent+list[2].Recent != 0 {
		t.Errorf("after ten quiet minutes: %v", list)
	}
}

// TestToken: one is made where there is none, and a bad one is refused.
func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	made, err := Token(file)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if again, err := Token(file); again != made || len(made) < minToken || err != nil {
		t.Errorf("read again: %q, %v; made %q", again, err, made)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Token(file); err == nil {
		t.Errorf("a file for all: %q", got)
	}
	for _, bad := range []string{"", "short", "0123456789 0123456789", "0123456789\x000123456789", "0123456789é0123456789", "0123456789\x7f0123456789"} {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Token(file); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

// TestSocket: it is for its owner and group alone.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("listens twice")
	}
	go http.Serve(l, New(options(&desk{})).Handler()) //nolint:errcheck // ends with the listener
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), "<title>Understudy") {
		t.Errorf("%s, %v", b, err)
	}
}

// TestDayIsKept: a page begins with the day that the page before it ended with,
// without what is older than a day, out of order, or from the future; and anew
// where the file is damaged.
func TestDayIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		file := filepath.Join(t.TempDir(), "page.json")
		watch := func(long time.Duration) *Page {
			p := New(Options{Desk: &desk{}, Metrics: prometheus.NewRegistry(), History: file, Log: slog.New(slog.NewTextHandler(&log, nil))})
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			p.watch(ctx)
			return p
		}
		begin := time.Now()
		first := watch(10*time.Minute + 30*time.Second).board.past.Day.Points
		if len(first) != 6 {
			t.Fatalf("after ten minutes and a half: %v", first)
		}
		time.Sleep(time.Hour)
		second := watch(5 * time.Minute).board.past.Day.Points
		if len(second) < 8 || !slices.Equal(second[:6], first) || second[6][0] < float64(begin.Add(70*time.Minute).Unix()) {
			t.Errorf("the next page has %v, the first had %v", second, first)
		}
		time.Sleep(24 * time.Hour)
		if third := watch(time.Second).board.past.Day.Points; len(third) == 0 || third[0][0] < float64(begin.Add(time.Hour).Unix()) {
			t.Errorf("a day later it has %v", third)
		}
		future := float64(time.Now().Add(time.Hour).Unix())
		if err := os.WriteFile(file, fmt.Appendf(nil, "[[%.0f,1,1,1,1]]", future), 0o600); err != nil {
			t.Fatal(err)
		}
		if p := watch(time.Second).board.past.Day.Points; len(p) != 1 || p[0][0] == future {
			t.Errorf("the future is drawn: %v", p)
		}
		if log.Len() > 0 {
			t.Errorf("logged: %s", log.String())
		}
		if err := os.WriteFile(file, []byte("[["), 0o600); err != nil {
			t.Fatal(err)
		}
		if p := watch(time.Second).board.past.Day.Points; len(p) != 1 || !strings.Contains(log.String(), "begins anew") {
			t.Errorf("of a damaged file it has %v, logged: %s", p, log.String())
		}
	})
}

// TestReport: an outage's report comes as a file, to those who are known.
func TestReport(t *testing.T) {
	p := New(Options{Desk: &desk{}, Metrics: prometheus.NewRegistry(), Token: token, Log: slog.New(slog.DiscardHandler)})
	for _, tt := range []struct {
		path, token string
		code        int
		want        string
	}{
		{"/api/outages/7/report", token, 200, "<h1>7</h1>"},
		{"/api/outages/7/report", "", 403, "token"},
		{"/api/outages/8/report", token, 404, "no such outage"},
		{"/api/outages/x%0a/report", token, 404, "no outage has the number"},
	} {
		r := httptest.NewRequest("GET", "http://localhost"+tt.path, nil)
		if tt.token != "" {
			r.Header.Set("Authorization", "Bearer "+tt.token)
		}
		w := httptest.NewRecorder()
		p.Handler().ServeHTTP(w, r)
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s: %d %s", tt.path, w.Code, w.Body)
		}
		if saved := w.Header().Get("Content-Disposition"); (saved == "attachment; filename=outage-7.html") != (tt.code == 200) {
			t.Errorf("%s: Content-Disposition %q", tt.path, saved)
		}
	}
}
