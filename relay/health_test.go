package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/metrics"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// outage is a primary that can be down, and notes when it was asked.
type outage struct {
	primary
	began time.Time
	log   strings.Builder // what the client logs
	// elsewhere is Options.Elsewhere.
	elsewhere func(dest string) (up, known bool)

	mu     sync.Mutex
	down   bool
	silent bool // packets to it vanish
	frozen bool // its kernel answers, it doesn't
	asked  []time.Duration
}

func (o *outage) set(down bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down, o.asked = down, nil
}

func (o *outage) probes() []time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]time.Duration(nil), o.asked...)
}

func (o *outage) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	o.mu.Lock()
	o.asked = append(o.asked, time.Since(o.began))
	down, silent, frozen := o.down, o.silent, o.frozen
	o.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case down:
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if frozen {
			io.Copy(io.Discard, there)
			return
		}
		o.serve(there)
	}()
	return here, nil
}

// watch runs the probes of a new client until the test's end.
func (o *outage) watch(t *testing.T, r Route, onUp func(string)) *Client {
	c := newClient(t, r, nil)
	c.dial, c.onUp, c.elsewhere, c.log = o.dial, onUp, o.elsewhere, slog.New(slog.NewTextHandler(&o.log, nil))
	o.began = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ups atomic.Int32
		o := &outage{down: true}
		c := o.watch(t, Route{Name: "main"}, func(d string) {
			if d != dest {
				t.Errorf("OnUp(%q)", d)
			}
			ups.Add(1)
		})
		if c.Up(dest) || c.Up("elsewhere") {
			t.Error("up before anybody has asked")
		}
		synctest.Wait()
		if got := o.probes(); len(got) != 1 || c.Up(dest) {
			t.Errorf("probes %v, want one at once", got)
		}
		if got, want := testutil.ToFloat64(c.metrics.OutageStart.WithLabelValues("main")), float64(o.began.Unix()); got != want {
			t.Errorf("outage started at %v, want %v", got, want)
		}

		// Every 2 s for ten minutes, then every 10 s.
		time.Sleep(10*time.Minute - 1)
		synctest.Wait()
		if got := len(o.probes()); got != 300 {
			t.Errorf("%d probes in the first ten minutes, want 300", got)
		}
		o.set(true)
		time.Sleep(10*time.Minute + 1)
		synctest.Wait()
		if got := len(o.probes()); got != 61 {
			t.Errorf("%d probes in the next ten minutes, want 61", got)
		}

		// Up after one success, and probed still.
		o.set(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !c.Up(dest) || ups.Load() != 1 {
			t.Errorf("up %v, OnUp called %d times", c.Up(dest), ups.Load())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := len(o.probes()); got != 7 || ups.Load() != 1 {
			t.Errorf("%d probes while up, want 7; OnUp called %d times", got, ups.Load())
		}
		if got := testutil.ToFloat64(c.metrics.PrimaryUp.WithLabelValues("main")); got != 1 {
			t.Errorf("primary_up %v", got)
		}
		if got := testutil.ToFloat64(c.metrics.OutageStart.WithLabelValues("main")); got != 0 {
			t.Errorf("outage start %v", got)
		}
		want := []RouteStatus{{Name: "main", Address: "primary.example:25", Up: true, Since: o.began.Add(20*time.Minute + 10*time.Second)}}
		if diff := cmp.Diff(want, c.Status()); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
	})
}

// TestHealthNews: an outage is logged again when its reason is another, such as
// a next hop that was down and now turns out to be ourselves.
func TestHealthNews(t *testing.T) {
	r := newRoute(dest, Route{Name: "main"}, metrics.New(prometheus.NewRegistry()))
	for i, tt := range []struct {
		err  error
		is   health
		news bool
	}{
		{errors.New("read tcp 127.0.0.1:40112: i/o timeout"), down, true},
		{errors.New("read tcp 127.0.0.1:51230: i/o timeout"), down, false},
		{errors.New("the next hop is ourselves"), down, true},
		{nil, up, true},
		{nil, up, false},
	} {
		if is, news := r.observe(tt.err); is != tt.is || news != tt.news {
			t.Errorf("%d: %v is health %d, news %v", i, tt.err, is, news)
		}
	}
}

// TestHealthByRelay: a session that can't be opened is an outage at once, and
// the eager probes begin.
func TestHealthByRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &outage{}
		c := o.watch(t, Route{}, func(string) {})
		time.Sleep(3 * time.Second)
		if !c.Up(dest) {
			t.Fatal("not up")
		}
		o.set(true)
		none := func(time.Duration) *envelope.Transfer { t.Error("took mail"); return nil }
		if err := c.Relay(context.Background(), dest, none); err == nil || c.Up(dest) {
			t.Errorf("Relay returned %v, up %v", err, c.Up(dest))
		}
		if s := c.Status()[0]; s.Up || s.LastError != "connection refused" || time.Since(s.Since) != 0 {
			t.Errorf("status %+v", s)
		}
		o.set(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !c.Up(dest) {
			t.Error("not up again after 2 s")
		}
	})
}

// TestHealthSilent: a probe that gets no answer at all must not delay the next.
func TestHealthSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &outage{silent: true}
		c := o.watch(t, Route{}, func(string) {})
		time.Sleep(61 * time.Second)
		o.mu.Lock()
		o.silent = false
		o.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !c.Up(dest) {
			t.Errorf("not up 2 s after the primary is; probes at %v", o.probes())
		}
	})
}

// TestHealthTooManySessions: a primary that serves us elsewhere is not down.
func TestHealthTooManySessions(t *testing.T) {
	c := newClient(t, Route{}, func(conn net.Conn) { io.WriteString(conn, "421 4.7.0 too many connections\r\n") })
	r := c.routes[dest]
	c.note(r, nil)
	s := new(session)
	r.opened(s)
	c.probe(context.Background(), r)
	if !c.Up(dest) {
		t.Error("down although a session is open")
	}
	r.closed(s)
	c.probe(context.Background(), r)
	if c.Up(dest) {
		t.Error("up although no session is open")
	}
	if got := testutil.ToFloat64(c.metrics.Probes.WithLabelValues("failed")); got != 2 {
		t.Errorf("%v failed probes", got)
	}
}

// TestHealthStale: sessions that an outage silenced end when it does, so that
// the backlog moves; one that was heard meanwhile goes on.
func TestHealthStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &outage{}
		c := o.watch(t, Route{}, func(string) {})
		synctest.Wait()
		var wg sync.WaitGroup
		defer wg.Wait()
		release := make(chan struct{})
		stuck := func(conn net.Conn) { // answers DATA after a minute, and then no more
			defer conn.Close()
			buf := make([]byte, 1<<10)
			io.WriteString(conn, greeting)
			conn.Read(buf)
			io.WriteString(conn, pipe)
			conn.Read(buf)
			time.Sleep(time.Minute)
			io.WriteString(conn, ok+ok+goAhead)
			conn.Read(buf)
			<-release
			io.WriteString(conn, ok)
			conn.Read(buf)
		}
		relay := func(box *outbox) {
			r := c.routes[dest]
			s, err := c.connectOver(t, r, func(conn net.Conn) { wg.Go(func() { stuck(conn) }) })
			if err != nil {
				t.Error(err)
				return
			}
			r.opened(s)
			s.relay(context.Background(), box.next, nil)
			r.closed(s)
		}
		var silenced, alive outbox
		a := silenced.add("x\r\n", mail("a@x.example", "b@y.example"))
		b := alive.add("x\r\n", mail("a@x.example", "b@y.example"))
		wg.Go(func() { relay(&silenced) })
		time.Sleep(90 * time.Second) // silenced now waits for its final reply
		wg.Go(func() { relay(&alive) })
		time.Sleep(time.Second)
		o.set(true)
		time.Sleep(70 * time.Second) // the outage is noticed, and alive got its 354 during it
		if c.Up(dest) {
			t.Fatal("no outage")
		}
		o.set(false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !c.Up(dest) || a.settled != 1 || a.err == nil {
			t.Errorf("up %v; the silenced session's message was settled %d times with %v, %v", c.Up(dest), a.settled, a.replies, a.err)
		}
		close(release)
		synctest.Wait()
		if b.settled != 1 || b.err != nil {
			t.Errorf("the other's was settled %d times with %v, %v", b.settled, b.replies, b.err)
		}
	})
}

// connectOver opens a session to serve, past the Client's dialer.
func (c *Client) connectOver(t *testing.T, r *route, serve func(net.Conn)) (*session, error) {
	over := *c
	over.dial = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		serve(there)
		return here, nil
	}
	return over.connect(context.Background(), r, nil, r.TLS, r.Timeouts)
}

// TestUnfitForMail: a next hop that refuses every MAIL because of the session is
// down, by the reply that it gives. Probes say MAIL as well until a session has
// brought mail, so that the health doesn't go up and down.
func TestUnfitForMail(t *testing.T) {
	const must = "530 5.7.0 Must issue a STARTTLS command first"
	synctest.Test(t, func(t *testing.T) {
		var ups atomic.Int32
		o := &outage{primary: primary{want: must}}
		c := o.watch(t, Route{Name: "main"}, func(string) { ups.Add(1) })
		synctest.Wait()
		var box outbox
		first := box.add("1\r\n", mail("a@x.example", "b@y.example"))
		box.add("2\r\n", mail("a@x.example", "c@y.example"))
		if err := c.Relay(t.Context(), dest, box.next); err == nil || !strings.Contains(err.Error(), must) {
			t.Errorf("Relay returned %v", err)
		}
		box.check(t)
		if len(box.todo) != 1 || first.err == nil || !first.replies[0].Zero() {
			t.Errorf("%d messages left, the first got %v, %v", len(box.todo), first.replies, first.err)
		}
		o.set(false)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if s := c.Status()[0]; s.Up || !strings.Contains(s.LastError, must) || ups.Load() != 1 {
			t.Errorf("%+v, %d times up", s, ups.Load())
		}
		if n := len(o.probes()); n != 150 {
			t.Errorf("%d probes, want 150", n)
		}
		if n := strings.Count(o.log.String(), "next hop is down"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, o.log.String())
		}
		o.primary.mu.Lock()
		o.want = ""
		o.primary.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !c.Up(dest) || ups.Load() != 2 {
			t.Errorf("up %v, %d times", c.Up(dest), ups.Load())
		}
		if err := c.Relay(t.Context(), dest, box.next); err != nil || len(o.accepted) != 1 || c.routes[dest].thorough {
			t.Errorf("Relay returned %v, %d accepted, thorough %v", err, len(o.accepted), c.routes[dest].thorough)
		}
		box.check(t)
	})
}

// TestWithoutXClient: what keeps a next hop from being told the clients is said
// once, and taken back when it is over.
func TestWithoutXClient(t *testing.T) {
	var log strings.Builder
	c := newClient(t, Route{XClient: true}, nil)
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	r := c.routes[dest]
	state := func() (string, float64, int) {
		return c.Status()[0].WithoutXClient, testutil.ToFloat64(c.metrics.WithoutXClient.WithLabelValues("default")), strings.Count(log.String(), "\n")
	}
	for i, tt := range []struct {
		do    func()
		why   string
		gauge float64
		lines int
	}{
		{func() { c.noteOffer(r, " NAME ADDR ") }, "", 0, 0},
		{func() { c.noteOffer(r, "") }, notOffered, 1, 1},
		{func() { c.noteOffer(r, "") }, notOffered, 1, 1},
		{func() { c.noteOffer(r, " NAME ADDR ") }, "", 0, 2},
		{func() { c.noteXClient(r, "no") }, "no", 1, 3},
		{func() { c.noteOffer(r, " NAME ADDR ") }, "no", 1, 3}, // an offer alone proves nothing
		{func() { c.noteXClient(r, "") }, "", 0, 4},
		{func() { r.XClient = false; c.noteOffer(r, "") }, "", 0, 4},
	} {
		tt.do()
		if why, gauge, lines := state(); why != tt.why || gauge != tt.gauge || lines != tt.lines {
			t.Errorf("%d: %q, gauge %v, %d lines; want %q, %v, %d", i, why, gauge, lines, tt.why, tt.gauge, tt.lines)
		}
	}
}

// TestHealthFrozen: a session that a primary was frozen under before it greeted
// ends with the outage, and is no outage of its own. It would wait for the
// greeting for five minutes, and the canary's place with it.
func TestHealthFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ups atomic.Int32
		o := &outage{}
		c := o.watch(t, Route{}, func(string) { ups.Add(1) })
		synctest.Wait()
		freeze := func(frozen bool) {
			o.mu.Lock()
			o.frozen = frozen
			o.mu.Unlock()
		}
		freeze(true)
		ended := make(chan error, 1)
		go func() {
			ended <- c.Relay(t.Context(), dest, func(time.Duration) *envelope.Transfer { t.Error("took mail"); return nil })
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.Up(dest) {
			t.Fatal("up while it is frozen")
		}
		freeze(false)
		time.Sleep(probeReply + 3*time.Second) // the probe under way ends first
		synctest.Wait()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("Relay returned without an error")
			}
		default:
			t.Error("the session still waits for a greeting")
		}
		if s := c.Status()[0]; !s.Up || ups.Load() != 2 {
			t.Errorf("%+v, %d times up", s, ups.Load())
		}
	})
}

// TestEndOfProbe: a probe that the daemon's own end breaks off tells no outage.
func TestEndOfProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &outage{began: time.Now()}
		c := newClient(t, Route{Name: "main"}, nil)
		c.dial, c.log = o.dial, slog.New(slog.NewTextHandler(&o.log, nil))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Run(ctx)
		}()
		synctest.Wait()
		o.mu.Lock()
		o.silent = true
		o.mu.Unlock()
		time.Sleep(11 * time.Second)
		if got := len(o.probes()); got != 2 {
			t.Errorf("%d probes, want a second one under way", got)
		}
		cancel()
		<-done
		failed := testutil.ToFloat64(c.metrics.Probes.WithLabelValues("failed"))
		if !c.Up(dest) || failed != 0 || strings.Contains(o.log.String(), "down") {
			t.Errorf("up %v, %v probes failed, the log:\n%s", c.Up(dest), failed, &o.log)
		}
	})
}

// TestNoOutage: what a session may end with that says nothing of the next: 421 to
// MAIL, which defers the message, and 501 or 550 to one client's XCLIENT.
func TestNoOutage(t *testing.T) {
	p := &primary{want: "421 4.3.2 not now"}
	c := newClient(t, Route{}, p.serve)
	var box outbox
	box.add("x\r\n", mail("a@x.example", "b@y.example"))
	if err := c.Relay(t.Context(), dest, box.next); err == nil || !c.Up(dest) {
		t.Errorf("421 to MAIL: Relay returned %v, up %v", err, c.Up(dest))
	}
	box.check(t)

	for _, refusal := range []string{"501 5.5.4 Bad ADDR syntax", "550 5.7.1 Not this client"} {
		script := append(hello("PIPELINING", "XCLIENT ADDR"), turn{"XCLIENT ADDR=IPV6:2001:db8::1\r\n", refusal + "\r\n"}, turn{quit, bye})
		c = newClient(t, Route{XClient: true}, func(conn net.Conn) {
			if err := play(conn, script); err != nil {
				t.Error(err)
			}
		})
		s, err := c.open(t.Context(), c.routes[dest], nil)
		if err != nil {
			t.Fatal(err)
		}
		e := mail("a@x.example", "b@y.example")
		e.Client.Addr = netip.MustParseAddr("2001:db8::1")
		if err := s.identify(&envelope.Transfer{Envelope: &e}); err != nil || c.Status()[0].WithoutXClient != "" {
			t.Errorf("%s: %v, %+v", refusal, err, c.Status())
		}
		s.quit()
	}
}
