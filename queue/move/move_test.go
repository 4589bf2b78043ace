package move_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/move"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

func route(domain string) string { return "mx." + domain }

// kind makes stores of one kind.
type kind struct {
	name string
	make func(t *testing.T) store.Opener
}

var kinds = []kind{
	{"memory", func(*testing.T) store.Opener { return storetest.New() }},
	{"leveldb", func(*testing.T) store.Opener { return leveldb.Dir{Path: "/q", Disk: testmx.NewDisk()} }},
}

// TestMove moves between all kinds: what a message is, and what became of it, stays.
func TestMove(t *testing.T) {
	for _, from := range kinds {
		for _, to := range kinds {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				a, b := from.make(t), to.make(t)
				want := fill(t, a)
				damageOne(t, a)
				damaged := want["damaged"]
				delete(want, "damaged")
				result, err := moveAll(t, a, b, nil)
				if err != nil || result.Messages != len(want) || result.Quarantined != 1 || result.Left() != 0 {
					t.Fatalf("%+v, %v", result, err)
				}
				same(t, b, want)
				aside(t, b, damaged.id)
				empty(t, a)
				again, err := moveAll(t, a, b, nil)
				if err != nil || again != (move.Result{}) {
					t.Errorf("a second time: %+v, %v", again, err)
				}
				if back, err := moveAll(t, b, a, nil); err != nil || back.Messages != len(want) || back.Quarantined != 1 {
					t.Fatalf("back: %+v, %v", back, err)
				}
				same(t, a, want)
				empty(t, b)
			})
		}
	}
}

// TestKilled stops a move at each operation, with the last batch written and not.
// Then the move goes on; or the origin is in service before, and relays one; or mail
// goes back first. In the end each message is in one place, and once.
func TestKilled(t *testing.T) {
	for _, pair := range [][2]kind{{kinds[0], kinds[1]}, {kinds[1], kinds[0]}} {
		for _, then := range []string{"goes on", "origin in service", "goes back"} {
			t.Run(pair[0].name+" to "+pair[1].name+", "+then, func(t *testing.T) { killed(t, pair, then, 1) })
		}
	}
}

// killed stops at every step-th operation.
func killed(t *testing.T, pair [2]kind, then string, step int) {
	cuts := 0
	for ended := false; !ended; cuts += step {
		for _, applied := range []bool{false, true} {
			a, b := pair[0].make(t), pair[1].make(t)
			want := fill(t, a)
			damageOne(t, a)
			damaged := want["damaged"]
			delete(want, "damaged")
			c := &cut{left: cuts, applied: applied}
			if _, err := moveAll(t, a, b, c); err == nil {
				ended = true
				break
			}
			if then == "origin in service" {
				relayOne(t, a, want)
			}
			if then == "goes back" {
				// The owner of the target is told to return what it has.
				if _, err := moveAll(t, b, a, nil); err != nil {
					t.Fatalf("cut %d, applied %v: back: %v", cuts, applied, err)
				}
			}
			if _, err := moveAll(t, a, b, nil); err != nil {
				t.Fatalf("cut %d, applied %v: again: %v", cuts, applied, err)
			}
			if then == "goes back" {
				want = unordered(want)
			}
			same(t, b, want)
			aside(t, b, damaged.id)
			if empty(t, a); t.Failed() {
				t.Fatalf("cut %d, applied %v", cuts, applied)
			}
		}
	}
	if cuts < 8 {
		t.Errorf("only %d operations", cuts)
	}
}

// TestKilledDatabase is TestKilled with a real database, either way, at every third
// operation; at each of them it was run once.
func TestKilledDatabase(t *testing.T) {
	node := listertest.Primary(t)
	n := 0
	database := kind{"postgres", func(t *testing.T) store.Opener {
		n++
		c, err := postgres.ParseDSN(listertest.DSN(node))
		if err != nil {
			t.Fatal(err)
		}
		return postgres.Opener{Config: c, Password: func() (string, error) { return listertest.Password, nil },
			Spool: fmt.Sprint("spool ", n), Dir: t.TempDir(), OneMachine: true}
	}}
	for _, pair := range [][2]kind{{kinds[1], database}, {database, kinds[1]}} {
		t.Run(pair[0].name+" to "+pair[1].name, func(t *testing.T) { killed(t, pair, "goes on", 3) })
	}
}

// TestUnconfirmed: a message that its origin may still have is neither relayed nor
// changed.
func TestUnconfirmed(t *testing.T) {
	a, b := storetest.New(), storetest.New()
	want := fill(t, a)
	// Two batches are the identities, three changes are the large body's, one is the
	// messages'.
	if _, err := moveAll(t, a, b, &cut{left: 6}); err == nil {
		t.Fatal("not cut")
	}
	q := open(t, b, nil)
	coming := 0
	q.Walk(context.Background(), func(i queue.Info) error {
		if !i.Coming {
			return nil
		}
		coming++
		for name, do := range map[string]func(string) error{"hold": q.Hold, "release": q.Release, "remove": q.Remove, "return": q.Return} {
			if err := do(i.ID); !errors.Is(err, queue.ErrComing) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
	if err := q.Close(); err != nil || coming != len(want) {
		t.Fatalf("%d are coming, %v", coming, err)
	}
	if got := drain(t, b); len(got) != 0 {
		t.Errorf("relayed: %v", got)
	}
}

// TestThirdStore: messages that are still being moved to the origin stay there, and it is
// said why.
func TestThirdStore(t *testing.T) {
	a, b, c := storetest.New(), storetest.New(), storetest.New()
	want := fill(t, a)
	if _, err := moveAll(t, a, b, &cut{left: 6}); err == nil { // as in TestUnconfirmed
		t.Fatal("not cut")
	}
	result, err := moveAll(t, b, c, nil)
	if err != nil || result.Coming != len(want) || result.SameID != 0 || result.Messages != 0 || !strings.Contains(result.Why(), "may still have them") {
		t.Errorf("%+v, %q, %v", result, result.Why(), err)
	}
	if _, err := moveAll(t, a, b, nil); err != nil {
		t.Fatal(err)
	}
	if result, err := moveAll(t, b, c, nil); err != nil || result.Left() != 0 || result.Why() != "" || result.Messages != len(want) {
		t.Errorf("later: %+v, %q, %v", result, result.Why(), err)
	}
}

// TestGiverGone: what came from a store that is no more may have been relayed from there.
func TestGiverGone(t *testing.T) {
	a, b, c := storetest.New(), storetest.New(), storetest.New()
	want := fill(t, a)
	if _, err := moveAll(t, a, b, &cut{left: 6}); err == nil { // as in TestUnconfirmed
		t.Fatal("not cut")
	}
	from, err := b.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	q := open(t, c, nil)
	defer q.Close()
	m := move.Move{From: from, To: q, Route: route, Ask: func(string, string, string) (move.Whereabouts, error) { return move.Gone, nil }}
	if result, err := m.Run(t.Context()); err != nil || result.Messages != len(want) {
		t.Errorf("%+v, %v", result, err)
	}
	for id, is := range found(t, q) {
		if !is.info.MayHaveArrived {
			t.Errorf("%s isn't marked", id)
		}
	}
}

// TestOthersNotes: where messages went is still known when others have gone elsewhere.
func TestOthersNotes(t *testing.T) {
	a, b, c := storetest.New(), storetest.New(), storetest.New()
	want := fill(t, a)
	if _, err := moveAll(t, a, b, &cut{left: 6, applied: true}); err == nil { // as in TestUnconfirmed, and gone from there
		t.Fatal("not cut")
	}
	q := open(t, a, nil)
	commit(t, q, &envelope.Envelope{}, "Subject: 8\r\n\r\n", "a@keep.example")
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if result, err := moveAll(t, a, c, nil); err != nil || result.Messages != 1 {
		t.Errorf("to the third: %+v, %v", result, err)
	}
	if result, err := moveAll(t, a, b, nil); err != nil || result.Messages != len(want) || result.Dropped != 0 {
		t.Errorf("later: %+v, %v", result, err)
	}
	same(t, b, want)
}

// TestSameStore: a copy of a store isn't another one.
func TestSameStore(t *testing.T) {
	disk := testmx.NewDisk()
	a := leveldb.Dir{Path: "/q", Disk: disk}
	fill(t, a)
	if _, err := moveAll(t, a, leveldb.Dir{Path: "/other", Disk: disk}, &cut{left: 2}); err == nil { // it has an identity now
		t.Fatal("not cut")
	}
	b := leveldb.Dir{Path: "/q", Disk: disk.Clone()}
	if result, err := moveAll(t, a, b, nil); err == nil || !strings.Contains(err.Error(), "same store") {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestSameID: a message of an ID that the target gave to another one stays.
func TestSameID(t *testing.T) {
	a, b := storetest.New(), storetest.New()
	want := fill(t, a)
	other := a.Clone()
	if _, err := moveAll(t, other, b, nil); err != nil {
		t.Fatal(err)
	}
	s, err := b.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := want["queued"]
	seq, _ := store.SeqOf(s, m.id)
	rec, err := store.Load(s, seq)
	if err != nil {
		t.Fatal(err)
	}
	rec.Env.Received = rec.Env.Received.Add(time.Second)
	if err := errors.Join(s.Apply(store.Batch{{Key: store.SeqKey(store.SpaceRecord, seq), Value: rec.Encode()}}), s.Close()); err != nil {
		t.Fatal(err)
	}
	result, err := moveAll(t, a, b, nil)
	if err != nil || result.SameID != 1 || result.Coming != 0 || result.Why() != "1 because the target has another of the same ID" {
		t.Errorf("%+v, %q, %v", result, result.Why(), err)
	}
	delete(want, "damaged")
	same(t, a, map[string]mail{"queued": m})
}

// cut lets so many changes through, of either store, and none after them; applied
// lets the last batch through as well, and says that it failed.
type cut struct {
	applied bool

	mu    sync.Mutex // guards the rest; the queue's committer counts, too
	armed bool
	left  int
}

var errCut = errors.New("killed")

// spend counts a change. last is the one that is cut, and may be applied.
func (c *cut) spend() (last bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed {
		return false, nil
	}
	if c.left--; c.left < 0 {
		return c.left == -1, errCut
	}
	return false, nil
}

func (c *cut) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left < 0
}

func (c *cut) arm() {
	c.mu.Lock()
	c.armed = true
	c.mu.Unlock()
}

// end lets nothing more through: a killed process doesn't even close its queue.
func (c *cut) end() {
	c.mu.Lock()
	c.left = min(c.left, -1)
	c.mu.Unlock()
}

type cutOpener struct {
	store.Opener
	c *cut
}

func (o cutOpener) Open(alarm func(kind, detail string)) (store.Store, error) {
	s, err := o.Opener.Open(alarm)
	if err != nil {
		return nil, err
	}
	return &cutStore{s, o.c}, nil
}

type cutStore struct {
	store.Store
	c *cut
}

func (s *cutStore) Apply(b store.Batch) error {
	if last, err := s.c.spend(); err != nil {
		if s.c.applied && last {
			return errors.Join(err, s.Store.Apply(b))
		}
		return err
	}
	return s.Store.Apply(b)
}

func (s *cutStore) Remove(id string) error {
	if _, err := s.c.spend(); err != nil {
		return err
	}
	return s.Store.Remove(id)
}

func (s *cutStore) Create(id string) (store.Body, error) {
	if _, err := s.c.spend(); err != nil {
		return nil, err
	}
	b, err := s.Store.Create(id)
	return &cutBody{b, s.c}, err
}

func (s *cutStore) Reopen() error {
	if s.c.over() {
		return errCut
	}
	return s.Store.Reopen()
}

type cutBody struct {
	store.Body
	c *cut
}

func (b *cutBody) Commit() error {
	if _, err := b.c.spend(); err != nil {
		return err
	}
	return b.Body.Commit()
}

func moveAll(t *testing.T, from, to store.Opener, c *cut) (move.Result, error) {
	t.Helper()
	if c == nil {
		c = &cut{left: 1 << 30}
	}
	a, err := cutOpener{from, c}.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	q, err := queue.Open(queue.Options{Store: cutOpener{to, c}, Route: route})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	c.arm()
	defer c.end()
	return move.Move{From: a, To: q, Route: route}.Run(t.Context())
}

// mail is what must be found of a message.
type mail struct {
	id, body string
	info     queue.Info
}

// relayer answers by the recipient's domain, and keeps what it took.
type relayer struct {
	want int // settled messages until done is called
	done func()
	mu   sync.Mutex // guards got
	got  []string   // IDs
}

func (*relayer) Up(string) bool { return true }

func (k *relayer) Relay(_ context.Context, dest string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		reply := envelope.NewReply(250, "2.0.0", "ok")
		switch dest {
		case "mx.later.example":
			reply = envelope.NewReply(450, "4.2.0", "later")
		case "mx.refuse.example":
			reply = envelope.NewReply(550, "5.1.1", "never")
		}
		replies := make([]envelope.Reply, len(t.Envelope.To))
		for i := range replies {
			replies[i] = reply
		}
		t.Settle(replies, nil)
		k.mu.Lock()
		k.got = append(k.got, t.Envelope.ID)
		if len(k.got) == k.want {
			k.done()
		}
		k.mu.Unlock()
	}
	return nil
}

func open(t *testing.T, o store.Opener, k *relayer) *queue.Queue {
	t.Helper()
	q, err := queue.Open(queue.Options{Store: o, Route: route, Relayer: k})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// run drains until k has settled n messages.
func run(t *testing.T, q *queue.Queue, k *relayer, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	k.want, k.done = n, cancel
	if n == 0 {
		cancel()
	}
	if err := q.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := q.Healthy(); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, q *queue.Queue, env *envelope.Envelope, body string, to ...string) string {
	t.Helper()
	for _, a := range to {
		local, domain, _ := strings.Cut(a, "@")
		env.To = append(env.To, envelope.Recipient{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: domain}}, Notify: "FAILURE", Rule: "rcpt listed_recipient x"})
	}
	env.From = envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "s", Domain: "sender.example"}}
	env.Client.Addr = netip.MustParseAddr("192.0.2.7")
	d, err := q.Begin(env)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, body); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d.ID()
}

// fill puts a message of every kind into a store.
func fill(t *testing.T, o store.Opener) map[string]mail {
	t.Helper()
	k := &relayer{}
	q := open(t, o, k)
	large := "Subject: large\r\n\r\n" + strings.Repeat("0123456789abcdef0123456789abcdef\r\n", 3000)
	vouched := envelope.Auth{Checked: true, SPF: "pass", Vouched: "spf", DKIM: []envelope.Signature{{Domain: "sender.example", Result: "pass"}}}
	ids := map[string]string{
		"deferred": commit(t, q, &envelope.Envelope{}, "Subject: 1\r\n\r\n", "a@later.example"),
		"half":     commit(t, q, &envelope.Envelope{}, "Subject: 2\r\n\r\n", "a@later.example", "b@gone.example"),
		"refused":  commit(t, q, &envelope.Envelope{Auth: vouched}, "Subject: 3\r\n\r\n", "a@refuse.example"),
		"returned": commit(t, q, &envelope.Envelope{Auth: vouched}, "Subject: 4\r\n\r\n", "a@refuse.example", "b@later.example"),
	}
	run(t, q, k, 6)
	if err := q.Return(ids["returned"]); err != nil {
		t.Fatal(err)
	}
	ids["policy"] = commit(t, q, &envelope.Envelope{Hold: true, HoldRule: "rcpt hold"}, "Subject: 5\r\n\r\n", "a@keep.example")
	ids["operator"] = commit(t, q, &envelope.Envelope{}, "Subject: 6\r\n\r\n", "a@keep.example")
	if err := q.Hold(ids["operator"]); err != nil {
		t.Fatal(err)
	}
	ids["large"] = commit(t, q, &envelope.Envelope{MayHaveArrived: true}, large, "a@keep.example")
	ids["damaged"] = commit(t, q, &envelope.Envelope{}, "Subject: damaged\r\n\r\n", "a@keep.example")
	ids["queued"] = commit(t, q, &envelope.Envelope{Received: time.Unix(1700000000, 5), Ret: "HDRS", EnvID: "e1"}, "Subject: 7\r\n\r\n", "a@keep.example")
	all := map[string]mail{}
	for name, m := range found(t, q) {
		for known, id := range ids {
			if id == name {
				name = known
			}
		}
		if m.info.Report {
			name = "report"
		}
		all[name] = m
	}
	if len(all) != 10 {
		t.Fatalf("%d messages: %v", len(all), slices.Collect(maps.Keys(all)))
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// found is what a queue has, by ID.
func found(t *testing.T, q *queue.Queue) map[string]mail {
	t.Helper()
	all := map[string]mail{}
	err := q.Walk(t.Context(), func(i queue.Info) error {
		f, err := q.Body(i.ID)
		if err != nil {
			return err
		}
		defer f.Close()
		body, err := io.ReadAll(f)
		if _, twice := all[i.ID]; twice {
			t.Errorf("%s is there twice", i.ID)
		}
		all[i.ID] = mail{i.ID, string(body), i}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// same compares a store's mail with the wanted, and drains what is to be relayed: each
// once.
func same(t *testing.T, o store.Opener, want map[string]mail) {
	t.Helper()
	watched := metrics.New(prometheus.NewRegistry())
	q, err := queue.Open(queue.Options{Store: o, Route: route, Metrics: watched})
	if err != nil {
		t.Fatal(err)
	}
	got := found(t, q)
	var before uint64
	for _, m := range slices.SortedFunc(maps.Values(want), func(x, y mail) int { return int(x.info.Seq) - int(y.info.Seq) }) {
		is, ok := got[m.id]
		if delete(got, m.id); !ok {
			t.Errorf("%s (%+v) is lost", m.id, m.info.Recipients)
			continue
		}
		if m.info.Seq != 0 && is.info.Seq <= before {
			t.Errorf("%s came before its turn", m.id)
		}
		before, is.info.Seq = is.info.Seq, m.info.Seq
		if diff := cmp.Diff(m.info, is.info, cmpopts.EquateComparable(netip.Addr{})); diff != "" || is.body != m.body {
			t.Errorf("%s changed: %s, %d octets of %d", m.id, diff, len(is.body), len(m.body))
		}
	}
	for id := range got {
		t.Errorf("%s is there too", id)
	}
	if n := testutil.ToFloat64(watched.StoreAlarms.WithLabelValues("missing")); n != 0 {
		t.Error("counts are off")
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

// unordered is mail whose order doesn't matter.
func unordered(all map[string]mail) map[string]mail {
	for name, m := range all {
		m.info.Seq = 0
		all[name] = m
	}
	return all
}

// drain relays what is in line, and names it.
func drain(t *testing.T, o store.Opener) []string {
	t.Helper()
	k := &relayer{}
	q := open(t, o, k)
	defer q.Close()
	n := 0
	for _, m := range found(t, q) {
		if !m.info.Coming && m.info.Recipients[0].State == "queued" {
			n++
		}
	}
	run(t, q, k, n)
	return k.got
}

// relayOne has the store's own daemon settle its queued message, if it still has it.
func relayOne(t *testing.T, o store.Opener, want map[string]mail) {
	t.Helper()
	q := open(t, o, nil)
	defer q.Close()
	switch err := q.Remove(want["queued"].id); {
	case err == nil:
		delete(want, "queued")
	case !errors.Is(err, queue.ErrNotFound): // that one was moved
		t.Fatal(err)
	}
}

// damageOne changes the body of the message so called, which a reader then notices.
func damageOne(t *testing.T, o store.Opener) {
	t.Helper()
	s, err := o.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	err = store.Scan(s, []byte{store.SpaceBody}, func(key, value []byte) error {
		if !strings.Contains(string(value), "damaged") {
			return nil
		}
		return s.Apply(store.Batch{{Key: slices.Clone(key), Value: []byte("Subject: Damaged\r\n\r\n")}})
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
}

// aside finds the one that was put aside, damaged as it is.
func aside(t *testing.T, o store.Opener, id string) {
	t.Helper()
	q := open(t, o, nil)
	defer q.Close()
	n := 0
	q.WalkQuarantine(t.Context(), func(item queue.Quarantine) error {
		n++
		f, err := q.QuarantineBody(item.Seq)
		if err != nil || item.ID != id {
			t.Fatalf("%+v, %v", item, err)
		}
		defer f.Close()
		if body, _ := io.ReadAll(f); string(body) != "Subject: Damaged\r\n\r\n" {
			t.Errorf("it says %q", body)
		}
		return nil
	})
	if n != 1 || q.Quarantined() != 1 {
		t.Errorf("%d put aside, %d counted", n, q.Quarantined())
	}
}

// empty says that a store is as a new one, but for its counts and its identity.
func empty(t *testing.T, o store.Opener) {
	t.Helper()
	s, err := o.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	store.Scan(s, nil, func(key, _ []byte) error {
		if len(key) > 1 {
			t.Errorf("key %q is left", key)
		}
		return nil
	})
	s.Bodies(func(id string) error {
		t.Errorf("body %s is left", id)
		return nil
	})
	if got, err := store.LoadTotals(s); err != nil || got.Messages+got.Held+got.Deferred+got.Bytes+got.Quarantined != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestNameless: quarantined records that are destroyed, alike and without an ID are moved
// each with its own body, and once, wherever the move is cut.
func TestNameless(t *testing.T) {
	want := []string{"one", "two", "three"}
	for cuts := 0; ; cuts++ {
		for _, applied := range []bool{false, true} {
			a, b := storetest.New(), storetest.New()
			open(t, a, nil).Close()
			s, err := a.Open(nil)
			if err != nil {
				t.Fatal(err)
			}
			var batch store.Batch
			totals, err := store.LoadTotals(s)
			for _, body := range want {
				batch.Put(store.SeqKey(store.SpaceQuarantine, totals.Next), []byte("destroyed"))
				batch.Put(store.SeqKey(store.SpaceBody, totals.Next), []byte(body))
				totals.Next++
				totals.Quarantined++
			}
			batch.Put([]byte{store.SpaceTotals}, totals.Encode())
			if err := errors.Join(err, s.Apply(batch), s.Close()); err != nil {
				t.Fatal(err)
			}
			_, err = moveAll(t, a, b, &cut{left: cuts, applied: applied})
			done := err == nil
			for i := 0; err != nil; i++ {
				if _, err = moveAll(t, a, b, nil); err != nil && i > 3 {
					t.Fatal(err)
				}
			}
			q := open(t, b, nil)
			var got []string
			q.WalkQuarantine(t.Context(), func(item queue.Quarantine) error {
				f, err := q.QuarantineBody(item.Seq)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(f)
				f.Close()
				got = append(got, string(body))
				return nil
			})
			if !slices.Equal(got, want) || q.Quarantined() != len(want) {
				t.Errorf("cut %d, applied %v: %q, %d counted", cuts, applied, got, q.Quarantined())
			}
			q.Close()
			if done {
				return
			}
		}
	}
}
