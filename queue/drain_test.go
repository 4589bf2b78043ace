package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
)

// bubble runs a subtest in a bubble with its own time.
func bubble(t *testing.T, name string, fn func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fn(t)
			leaveBubble()
		})
	})
}

// fakeHop is a Relayer whose next hop does what a test says.
type fakeHop struct {
	idle time.Duration // how long a session waits for the next message
	took time.Duration // for a message

	mu       sync.Mutex // guards the rest
	down     map[string]bool
	refuse   bool // no session opens, though Up says yes
	answer   func(dest string, to envelope.Recipient, attempt int) envelope.Reply
	broken   func(id string) bool // the session dies under this message
	attempts map[string]int       // by ID and address
	log      []string             // "ID address code", in order
	bodies   map[string]string
	flying   map[string]bool
	twice    []string // in two lanes at a time
	sessions int      // open now
	most     int
	opened   int
}

func newFakeHop() *fakeHop {
	return &fakeHop{idle: time.Second, took: time.Millisecond, down: map[string]bool{}, attempts: map[string]int{},
		bodies: map[string]string{}, flying: map[string]bool{}}
}

func (h *fakeHop) Up(dest string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.down[dest]
}

func (h *fakeHop) setDown(dest string, down bool) {
	h.mu.Lock()
	h.down[dest] = down
	h.mu.Unlock()
}

func (h *fakeHop) Relay(_ context.Context, dest string, next func(time.Duration) *envelope.Transfer) error {
	h.mu.Lock()
	h.sessions++
	h.opened++
	h.most = max(h.most, h.sessions)
	refuse := h.refuse
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.sessions--
		h.mu.Unlock()
	}()
	if refuse {
		return errors.New("connection refused")
	}
	t := next(h.idle)
	for t != nil {
		h.mu.Lock()
		if h.flying[t.Envelope.ID] {
			h.twice = append(h.twice, t.Envelope.ID)
		}
		h.flying[t.Envelope.ID] = true
		h.mu.Unlock()
		time.Sleep(h.took)
		replies, err := h.transact(dest, t)
		behind := (*envelope.Transfer)(nil)
		if err == nil {
			behind = next(0) // pipelined: taken before this one is settled
		}
		h.mu.Lock()
		delete(h.flying, t.Envelope.ID)
		h.mu.Unlock()
		t.Settle(replies, err)
		if err != nil {
			return err
		}
		if t = behind; t == nil {
			t = next(h.idle)
		}
	}
	return nil
}

func (h *fakeHop) transact(dest string, t *envelope.Transfer) ([]envelope.Reply, error) {
	f, err := t.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil && h.broken(t.Envelope.ID) {
		return nil, errors.New("connection reset by peer")
	}
	var replies []envelope.Reply
	for _, to := range t.Envelope.To {
		key := t.Envelope.ID + " " + to.Path.String()
		h.attempts[key]++
		reply := envelope.NewReply(250, "2.0.0", "ok")
		if h.answer != nil {
			reply = h.answer(dest, to, h.attempts[key])
		}
		h.log = append(h.log, fmt.Sprintf("%s %d", key, reply.Code))
		replies = append(replies, reply)
	}
	h.bodies[t.Envelope.ID] = string(body)
	return replies, nil
}

func (h *fakeHop) taken() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.log)
}

func (h *fakeHop) mostSessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most
}

// run drains q until the end of the test, which calls stop.
func run(t testing.TB, q *Queue) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		mustClose(t, q)
	}
}

func drainOptions(h *fakeHop) Options {
	o := options(newMemDisk())
	o.Relayer = h
	return o
}

func TestDrainInOrder(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.setDown("mx.example.com", true)
		o := drainOptions(h)
		o.MaxConnections = func(string) int { return 1 }
		q := mustOpen(t, o)
		var want []string
		bodies := map[string]string{}
		for i := range 100 {
			body := bodyOf(i*1500, i)
			id := mustAccept(t, q, body, "a@example.com")
			want = append(want, id+" a@example.com 250")
			bodies[id] = body
		}
		stop := run(t, q)
		time.Sleep(time.Hour)
		if len(h.taken()) != 0 {
			t.Error("attempts while the next hop is down")
		}
		h.setDown("mx.example.com", false)
		q.Wake("mx.example.com")
		time.Sleep(time.Second)
		if diff := cmp.Diff(want, h.taken()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(bodies, h.bodies); diff != "" {
			t.Errorf("bodies differ")
		}
		if s := q.Stats(); s.Messages != 0 || s.Bytes != 0 {
			t.Errorf("stats: %+v", s)
		}
		if h.opened != 1 {
			t.Errorf("%d sessions, want one", h.opened)
		}
		mustAccept(t, q, "later", "a@example.com") // drained at once, without a wake
		time.Sleep(time.Second)
		if n := len(h.taken()); n != 101 {
			t.Errorf("%d relayed, want 101", n)
		}
		if n := testutil.ToFloat64(q.m.RelayReplies.WithLabelValues("relayed")); n != 101 {
			t.Errorf("counted %v", n)
		}
		stop()
	})
}

// TestDrainByClient: where a client costs a session, its mail goes together,
// also after a restart; elsewhere the oldest goes first.
func TestDrainByClient(t *testing.T) {
	for _, byClient := range []bool{true, false} {
		bubble(t, fmt.Sprint(byClient), func(t *testing.T) {
			h := newFakeHop()
			o := drainOptions(h)
			o.MaxConnections = func(string) int { return 1 }
			o.ByClient = func(string) bool { return byClient }
			q := mustOpen(t, o)
			const clients, each = 3, 4
			want := make([]string, clients*each)
			for i := range want {
				env := mailTo("a@example.com")
				env.Client.Addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(i % clients)})
				id, err := commit(q, env, bodyOf(100, i))
				if err != nil {
					t.Fatal(err)
				}
				at := i
				if byClient {
					at = i%clients*each + i/clients
				}
				want[at] = id + " a@example.com 250"
			}
			mustClose(t, q)
			stop := run(t, mustOpen(t, o))
			time.Sleep(time.Second)
			if diff := cmp.Diff(want, h.taken()); diff != "" {
				t.Error(diff)
			}
			stop()
		})
	}
}

func TestDrainRampsUp(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.took = 50 * time.Millisecond
		o := drainOptions(h)
		o.MaxConnections = func(string) int { return 5 }
		q := mustOpen(t, o)
		for i := range 500 {
			mustAccept(t, q, bodyOf(100, i), "a@example.com", "b@example.com")
		}
		stop := run(t, q)
		time.Sleep(40 * time.Millisecond)
		if most := h.mostSessions(); most != 1 {
			t.Errorf("%d sessions before the canary came back", most)
		}
		time.Sleep(30 * time.Second)
		if most := h.mostSessions(); most != 5 {
			t.Errorf("%d sessions at most, want 5", most)
		}
		if len(h.taken()) != 1000 || len(h.twice) != 0 {
			t.Errorf("%d recipients relayed; in two lanes: %v", len(h.taken()), h.twice)
		}
		stop()
	})
}

// TestCanaryAfterOutage: a next hop that has just come back meets one session
// first, however many it stood before.
func TestCanaryAfterOutage(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.took = 50 * time.Millisecond
		o := drainOptions(h)
		o.MaxConnections = func(string) int { return 5 }
		q := mustOpen(t, o)
		backlog := func() {
			for i := range 500 {
				mustAccept(t, q, bodyOf(100, i), "a@example.com")
			}
		}
		backlog()
		stop := run(t, q)
		time.Sleep(30 * time.Second)
		if most := h.mostSessions(); most != 5 {
			t.Errorf("%d sessions at most, want 5", most)
		}
		h.setDown("mx.example.com", true)
		time.Sleep(time.Minute)
		backlog()
		time.Sleep(time.Minute)
		h.mu.Lock()
		h.most = 0
		h.mu.Unlock()
		h.setDown("mx.example.com", false)
		q.Wake("mx.example.com")
		time.Sleep(40 * time.Millisecond)
		if most := h.mostSessions(); most != 1 {
			t.Errorf("%d sessions before the canary came back", most)
		}
		stop()
	})
}

func TestDeferral(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.answer = func(_ string, to envelope.Recipient, attempt int) envelope.Reply {
			if to.Path.Local == "busy" && attempt < 4 {
				return envelope.NewReply(450, "4.2.1", "mailbox busy")
			}
			return envelope.NewReply(250, "2.0.0", "ok")
		}
		q := mustOpen(t, drainOptions(h))
		id := mustAccept(t, q, "body", "a@example.com", "busy@example.com")
		stop := run(t, q)
		time.Sleep(time.Second)
		i, err := q.Get(id)
		if err != nil || len(i.Recipients) != 1 {
			t.Fatalf("%+v, %v", i, err)
		}
		r := i.Recipients[0]
		if wait := time.Until(r.NextAttempt); r.State != "deferred" || r.Attempts != 1 ||
			r.Reply != "450 4.2.1 mailbox busy" || wait < 40*time.Second || wait > 80*time.Second {
			t.Errorf("deferred: %+v", r)
		}
		if s := q.Stats(); s.Deferred != 1 {
			t.Errorf("stats: %+v", s)
		}
		time.Sleep(30 * time.Second)
		if n := len(h.taken()); n != 2 {
			t.Errorf("%d attempts before it is due", n-1)
		}
		q.Flush()
		time.Sleep(time.Second)
		if n := len(h.taken()); n != 3 {
			t.Errorf("%d attempts after Flush, want 2", n-1)
		}
		time.Sleep(20 * time.Minute)
		if n := len(h.taken()); n != 5 || q.Stats().Messages != 0 {
			t.Errorf("%d attempts in the end, want 4; %+v", n-1, q.Stats())
		}
		stop()
	})
}

func TestRefusedAfterAcceptanceIsHeld(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		refuse := true
		h.answer = func(_ string, to envelope.Recipient, _ int) envelope.Reply {
			if to.Path.Local == "gone" && refuse {
				return envelope.NewReply(550, "5.1.1", "no such user")
			}
			return envelope.NewReply(250, "2.0.0", "ok")
		}
		q := mustOpen(t, drainOptions(h))
		env := mailTo("gone@example.com", "a@example.com")
		env.To[0].Rule = listedRule + "users gone@example.com"
		id, err := commit(q, env, "body")
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, q)
		time.Sleep(15 * 24 * time.Hour)
		i, err := q.Get(id)
		want := []RecipientInfo{{Address: "gone@example.com", Destination: "mx.example.com", State: "held",
			Reason: "refused", Attempts: 1, Reply: "550 5.1.1 no such user", Rule: "rcpt listed_recipient users gone@example.com"}}
		if diff := cmp.Diff(want, i.Recipients); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if n := testutil.ToFloat64(q.m.RelayReplies.WithLabelValues("held")); n != 1 {
			t.Errorf("counted %v", n)
		}
		if n := testutil.ToFloat64(q.m.Contradicted.WithLabelValues("relay", "listed")); n != 1 {
			t.Errorf("counted %v of the policy's lists contradicted", n)
		}
		refuse = false
		if err := q.Release(id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if q.Stats().Messages != 0 {
			t.Errorf("not relayed after release: %+v", q.Stats())
		}
		stop()
	})
}

func TestExpiredIsHeld(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.answer = func(string, envelope.Recipient, int) envelope.Reply {
			return envelope.NewReply(450, "4.0.0", "not today")
		}
		o := drainOptions(h)
		o.MaxAge = 24 * time.Hour
		q := mustOpen(t, o)
		id := mustAccept(t, q, "body", "a@example.com")
		stop := run(t, q)
		time.Sleep(23 * time.Hour)
		if i, _ := q.Get(id); i.Recipients[0].State != "deferred" {
			t.Errorf("after 23 h: %+v", i)
		}
		time.Sleep(3 * time.Hour)
		i, _ := q.Get(id)
		if i.Recipients[0].State != "held" || i.Recipients[0].Reason != "expired" {
			t.Errorf("after 26 h: %+v", i)
		}
		n := len(h.taken())
		time.Sleep(24 * time.Hour)
		if len(h.taken()) != n {
			t.Error("attempts for a held message")
		}
		stop()
	})
}

// A wall clock that jumps a year ahead between two runs expires nothing.
func TestClockJumpDoesNotExpire(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.answer = func(string, envelope.Recipient, int) envelope.Reply {
			return envelope.NewReply(450, "4.0.0", "not today")
		}
		o := drainOptions(h)
		q := mustOpen(t, o)
		id := mustAccept(t, q, "body", "a@example.com")
		mustClose(t, q)
		o.Metrics = nil
		o.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
		q = mustOpen(t, o)
		stop := run(t, q)
		time.Sleep(time.Hour)
		if i, err := q.Get(id); err != nil || i.Recipients[0].State != "deferred" || i.Recipients[0].Attempts < 3 {
			t.Errorf("%+v, %v", i, err)
		}
		stop()
	})
}

func TestTwoDestinations(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.setDown("mx.example.net", true)
		q := mustOpen(t, drainOptions(h))
		id := mustAccept(t, q, "body", "a@example.com", "b@example.net", "c@example.com")
		mustAccept(t, q, "body", "d@example.com")
		stop := run(t, q)
		time.Sleep(time.Minute)
		if i, err := q.Get(id); err != nil || len(i.Recipients) != 1 || i.Recipients[0].Address != "b@example.net" {
			t.Errorf("%+v, %v", i, err)
		}
		h.setDown("mx.example.net", false)
		q.Wake("")
		time.Sleep(time.Second)
		if q.Stats().Messages != 0 || len(h.twice) != 0 {
			t.Errorf("%+v; in two lanes: %v", q.Stats(), h.twice)
		}
		for _, a := range []string{"a@example.com", "b@example.net", "c@example.com"} {
			if n := h.attempts[id+" "+a]; n != 1 {
				t.Errorf("%s: %d attempts", a, n)
			}
		}
		stop()
	})
}

// A message under which every session dies must not keep the rest waiting, and
// its attempts don't count.
func TestBrokenMessageDoesNotBlock(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		q := mustOpen(t, drainOptions(h))
		bad := mustAccept(t, q, "bad", "a@example.com")
		h.broken = func(id string) bool { return id == bad }
		for i := range 50 {
			mustAccept(t, q, bodyOf(10, i), "a@example.com")
		}
		stop := run(t, q)
		time.Sleep(time.Minute)
		i, err := q.Get(bad)
		if r := i.Recipients[0]; err != nil || r.State != "deferred" || r.Attempts != 1 || !strings.Contains(r.Reply, "451 4.4.2 5 sessions in a row") || !strings.Contains(r.Reply, "reset by peer") {
			t.Errorf("%+v, %v", i, err)
		}
		if len(h.taken()) != 50 {
			t.Errorf("%d relayed, want 50", len(h.taken()))
		}
		h.mu.Lock()
		h.broken = nil
		h.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if q.Stats().Messages != 0 {
			t.Errorf("%+v", q.Stats())
		}
		stop()
	})
}

// What breaks every session doesn't do so for ever: it is held like other mail
// that grew too old.
func TestBrokenMessageExpires(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		o := drainOptions(h)
		o.MaxAge = 24 * time.Hour
		q := mustOpen(t, o)
		bad := mustAccept(t, q, "bad", "a@example.com")
		h.broken = func(id string) bool { return true }
		stop := run(t, q)
		time.Sleep(30 * time.Hour)
		if i, err := q.Get(bad); err != nil || i.Recipients[0].State != "held" || i.Recipients[0].Reason != "expired" {
			t.Errorf("%+v, %v", i, err)
		}
		stop()
	})
}

// A next hop that refuses sessions is no message's fault: once it answers
// again, the first in line doesn't wait.
func TestRefusedSessionsCostNoMessage(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.refuse = true
		q := mustOpen(t, drainOptions(h))
		mustAccept(t, q, "body", "a@example.com")
		stop := run(t, q)
		time.Sleep(10 * time.Minute)
		h.mu.Lock()
		if h.opened < 3 {
			t.Errorf("%d sessions tried", h.opened)
		}
		h.refuse = false
		h.mu.Unlock()
		q.Wake("")
		time.Sleep(time.Second)
		if len(h.taken()) != 1 || q.Stats().Messages != 0 {
			t.Errorf("relayed %v, queue %+v", h.taken(), q.Stats())
		}
		stop()
	})
}

func TestBusy(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.took = time.Minute
		q := mustOpen(t, drainOptions(h))
		id := mustAccept(t, q, "body", "a@example.com")
		stop := run(t, q)
		time.Sleep(time.Second)
		for name, fn := range map[string]func(string) error{"Hold": q.Hold, "Release": q.Release, "Remove": q.Remove} {
			if err := fn(id); !errors.Is(err, ErrBusy) {
				t.Errorf("%s in flight: %v", name, err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := q.Remove(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Remove after: %v", err)
		}
		stop()
	})
}

func TestDamagedBodyIsQuarantinedNotRelayed(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		disk := newMemDisk()
		o := options(disk)
		o.Relayer = h
		q := mustOpen(t, o)
		inline := mustAccept(t, q, "good", "a@example.com")
		large := mustAccept(t, q, bodyOf(200_000, 1), "a@example.com")
		mustAccept(t, q, "another", "a@example.com")
		var b store.Batch
		b.Put(store.SeqKey(store.SpaceBody, 1), []byte("evil"))
		if err := q.store.Apply(b); err != nil {
			t.Fatal(err)
		}
		body := disk.Bytes(bodyFile(large))
		body[0] = 'X'
		disk.SetBytes(bodyFile(large), body)
		stop := run(t, q)
		time.Sleep(time.Minute)
		if len(h.taken()) != 1 || q.Quarantined() != 2 || q.Stats().Messages != 0 {
			t.Errorf("relayed %v, quarantined %d, %+v", h.taken(), q.Quarantined(), q.Stats())
		}
		if _, err := q.Get(inline); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get: %v", err)
		}
		stop()
	})
}

// A record for two destinations that turns out damaged in service is put aside
// once, though both of them meet it before that is written.
func TestDamagedRecordOfTwoDestinations(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		disk := newMemDisk()
		o := options(disk)
		o.Relayer = h
		q := mustOpen(t, o)
		held := mustAccept(t, q, "held", "a@example.com")
		if err := q.Hold(held); err != nil {
			t.Fatal(err)
		}
		mustAccept(t, q, "damaged", "a@example.com", "b@example.net")
		raw, err := q.store.Get(store.SeqKey(store.SpaceRecord, 2))
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)-1] ^= 1
		var b store.Batch
		b.Put(store.SeqKey(store.SpaceRecord, 2), raw)
		if err := q.store.Apply(b); err != nil {
			t.Fatal(err)
		}
		disk.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpSync {
				time.Sleep(time.Second) // both reach the committer while it is at work
			}
			return nil
		})
		busy := make(chan error, 1)
		go func() { busy <- q.Healthy() }()
		synctest.Wait()
		stop := run(t, q)
		time.Sleep(time.Minute)
		disk.Fault(nil)
		if err := <-busy; err != nil {
			t.Error(err)
		}
		stats := q.Stats()
		if n := testutil.ToFloat64(q.m.Quarantined); q.Quarantined() != 1 || n != 1 || stats.Messages != 1 || stats.Held != 1 {
			t.Errorf("quarantined %d, counted %v, %+v", q.Quarantined(), n, stats)
		}
		if len(q.flight) != 0 {
			t.Errorf("still claimed: %v", q.flight)
		}
		for _, d := range []string{"mx.example.com", "mx.example.net"} {
			if ok, err := store.Has(q.store, store.LineKey(d, 2)); ok || err != nil {
				t.Errorf("still in the line for %s: %v, %v", d, ok, err)
			}
		}
		stop()
	})
}

// halfHop answers for a message's first recipient, and breaks off.
type halfHop struct {
	mu  sync.Mutex // guards got
	got []string
}

func (*halfHop) Up(string) bool { return true }

func (h *halfHop) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := next(0)
	if t == nil {
		return nil
	}
	replies := make([]envelope.Reply, len(t.Envelope.To))
	replies[0] = envelope.NewReply(250, "2.0.0", "ok")
	h.got = append(h.got, t.Envelope.To[0].Path.String())
	err := errors.New("connection reset by peer")
	t.Settle(replies, err)
	return err
}

// Whom a session that broke off said nothing about is tried again, without a
// restart.
func TestUntriedRecipientsGoOn(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := new(halfHop)
		o := options(newMemDisk())
		o.Relayer = h
		q := mustOpen(t, o)
		mustAccept(t, q, "body", "a@example.com", "b@example.com", "c@example.com")
		stop := run(t, q)
		time.Sleep(5 * time.Minute)
		stop()
		if diff := cmp.Diff([]string{"a@example.com", "b@example.com", "c@example.com"}, h.got); diff != "" {
			t.Error(diff)
		}
	})
}

// Settles caught by a failing disk are written once it is back: the message is
// not relayed again.
func TestSettleSurvivesPoison(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := newFakeHop()
		h.took = time.Second
		disk := newMemDisk()
		o := options(disk)
		o.Relayer = h
		q := mustOpen(t, o)
		id := mustAccept(t, q, bodyOf(100_000, 1), "a@example.com")
		stop := run(t, q)
		time.Sleep(500 * time.Millisecond)
		disk.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpSync {
				return errDisk
			}
			return nil
		})
		time.Sleep(10 * time.Second)
		wantReply(t, q.Ready(0), 451, "4.3.0")
		if q.Healthy() == nil {
			t.Error("healthy on a failing disk")
		}
		_, err := accept(q, "no", "a@example.com")
		wantReply(t, err, 451, "4.3.0")
		disk.Fault(nil)
		time.Sleep(5 * time.Second)
		if err := q.Healthy(); err != nil {
			t.Error(err)
		}
		if s := q.Stats(); s.Messages != 0 || s.Bytes != 0 || h.attempts[id+" a@example.com"] != 1 {
			t.Errorf("%+v, %d attempts", s, h.attempts[id+" a@example.com"])
		}
		if disk.Bytes(bodyFile(id)) != nil {
			t.Error("body file left")
		}
		if testutil.ToFloat64(q.m.StoreReopens) < 1 {
			t.Error("not counted")
		}
		stop()
	})
}

// blinkHop takes everything; the store can't be read while it asks for the second
// message the first time.
type blinkHop struct {
	store.Store
	closed atomic.Bool
	got    int
}

func (h *blinkHop) Get(key []byte) ([]byte, error) {
	if h.closed.Load() {
		return nil, store.ErrReopening
	}
	return h.Store.Get(key)
}

func (h *blinkHop) Page(r store.Range, fn func(key, value []byte) bool) error {
	if h.closed.Load() {
		return store.ErrReopening
	}
	return h.Store.Page(r, fn)
}

func (*blinkHop) Up(string) bool { return true }

func (h *blinkHop) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; {
		blink := h.got == 0
		h.got++
		var following *envelope.Transfer
		if blink {
			h.closed.Store(true)
			following = next(0)
			h.closed.Store(false)
		}
		t.Settle([]envelope.Reply{envelope.NewReply(250, "2.0.0", "ok")}, nil)
		if t = following; t == nil && !blink {
			t = next(0)
		}
	}
	return nil
}

// A message that can't be read while the store is reopened keeps its place in
// line: it is relayed without a restart.
func TestUnreadableMessageGoesOn(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		h := new(blinkHop)
		o := options(newMemDisk())
		o.Relayer = h
		q := mustOpen(t, o)
		h.Store = q.store
		q.store = h
		for range 3 {
			mustAccept(t, q, "body", "a@example.com")
		}
		stop := run(t, q)
		time.Sleep(5 * time.Minute)
		if s := q.Stats(); h.got != 3 || s.Messages != 0 {
			t.Errorf("%d messages were relayed, %d are left", h.got, s.Messages)
		}
		stop()
	})
}
