package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
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
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/queue/store"
)

func route(string) string { return "primary" }

// member is a secondary in this process, with a way to the database of its own.
type member struct {
	*Fleet
	queue   *queue.Queue
	way     *way
	metrics *metrics.Metrics
	says    Says
	mu      sync.Mutex // guards limit
	limit   Limit
	stop    context.CancelFunc
	ran     chan error
}

// way carries connections to the database until it is cut.
type way struct {
	net.Listener
	mu    sync.Mutex // guards the rest
	down  bool
	conns []net.Conn
}

func newWay(t *testing.T, to string) *way {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			w.mu.Lock()
			if err != nil || w.down {
				c.Close()
			} else {
				w.conns = append(w.conns, c, s)
				go func() { io.Copy(s, c); s.Close() }()
				go func() { io.Copy(c, s); c.Close() }()
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { l.Close(); w.cut(true) })
	return w
}

func (w *way) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down = down; down {
		for _, c := range w.conns {
			c.Close()
		}
		w.conns = nil
	}
}

// join makes a member. The fleet runs, the queue relays nothing.
func join(t *testing.T, node *listertest.Node, name string, says Says) *member {
	t.Helper()
	m := &member{way: newWay(t, node.Address()), metrics: metrics.New(prometheus.NewRegistry()), says: says, ran: make(chan error, 1)}
	c, err := postgres.ParseDSN("postgres://understudy@" + m.way.Addr().String() + "/understudy?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	own := postgres.Opener{Config: c, Password: func() (string, error) { return listertest.Password, nil }, Member: name, OneMachine: true, Lease: 2 * time.Second}
	spool := func(of string) postgres.Opener {
		o := own
		o.Spool = of
		return o
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil)).With("member", name)
	m.Fleet, err = New(Options{Spool: spool, Self: name, Route: route, Says: func() Says { return m.says }, Changed: func() {}, Limits: m.limits,
		AdoptAfter: 3 * time.Second, Beat: 200 * time.Millisecond, DeadAfter: time.Second, Log: log, Metrics: m.metrics})
	if err != nil {
		t.Fatal(err)
	}
	m.Beat(t.Context())
	o := spool(name)
	o.Patience = 20 * time.Second
	if m.queue, err = queue.Open(queue.Options{Store: o, Route: route, Metrics: m.metrics}); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	go func() { m.ran <- m.Run(ctx, m.queue) }()
	t.Cleanup(func() { m.leave(t) })
	return m
}

// leave stops a member, once.
func (m *member) leave(t *testing.T) {
	if m.stop == nil {
		return
	}
	m.stop()
	m.stop = nil
	if err := <-m.ran; err != nil {
		t.Error(err)
	}
	m.queue.Close()
}

func (m *member) accept(t *testing.T, n, size int) (ids []string) {
	t.Helper()
	for i := range n {
		env := &envelope.Envelope{From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "s", Domain: "example.org"}},
			To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "r", Domain: "example.com"}}}}}
		env.Client.Addr = netip.MustParseAddr("192.0.2.1")
		d, err := m.queue.Begin(env)
		if err == nil {
			fmt.Fprintf(d, "Subject: %d\r\n\r\n%s\r\n", i, strings.Repeat("x", size))
			err = d.Commit(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID())
	}
	return ids
}

// has names what is in line.
func (m *member) has(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	if err := m.queue.Walk(t.Context(), func(i queue.Info) error { all[i.ID] = !i.Coming; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// await waits until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// TestAdoption: a member is cut off. Of two others each takes all of its mail or none,
// and it can change nothing any more until it is back; then it takes mail again.
func TestAdoption(t *testing.T) {
	node := listertest.Primary(t)
	lost, b, c := join(t, node, "mx2", Says{}), join(t, node, "mx3", Says{}), join(t, node, "mx4", Says{})
	ids := append(lost.accept(t, 300, 100), lost.accept(t, 3, 200_000)...)
	if err := lost.queue.Hold(ids[7]); err != nil {
		t.Fatal(err)
	}
	lost.way.cut(true)
	await(t, "adoption", func() bool {
		return testutil.ToFloat64(b.metrics.FleetAdopted)+testutil.ToFloat64(c.metrics.FleetAdopted) == float64(len(ids))
	})
	inB, inC := b.has(t), c.has(t)
	for _, id := range ids {
		if inB[id] == inC[id] {
			t.Errorf("%s: in line at mx3 %v, at mx4 %v", id, inB[id], inC[id])
		}
	}
	if len(inB)+len(inC) != len(ids) {
		t.Errorf("%d and %d messages of %d", len(inB), len(inC), len(ids))
	}
	for _, m := range []*member{b, c} {
		if i, err := m.queue.Get(ids[7]); err == nil && i.Recipients[0].Reason != "operator" {
			t.Errorf("held no more: %+v", i)
		}
	}
	lost.way.cut(false)
	await(t, "the lost one is back", func() bool { return lost.queue.Healthy() == nil })
	if left := lost.has(t); len(left) != 0 {
		t.Errorf("it still has %v", left)
	}
	lost.accept(t, 1, 10)
}

// TestBackInTime: a member that is heard of while its mail is moved gets the rest.
func TestBackInTime(t *testing.T) {
	node := listertest.Primary(t)
	lost, b := join(t, node, "mx2", Says{}), join(t, node, "mx3", Says{})
	ids := lost.accept(t, 600, 60_000)
	lost.way.cut(true)
	await(t, "adoption begins", func() bool { return testutil.ToFloat64(b.metrics.FleetAdopted) > 0 })
	lost.way.cut(false)
	await(t, "the lost one is back", func() bool { return lost.queue.Healthy() == nil && b.View().Adopts == "" })
	inB, here := b.has(t), lost.has(t)
	await(t, "no message is between the two", func() bool { inB = b.has(t); return len(b.queue.Origins()) == 0 })
	for _, id := range ids {
		if inB[id] == here[id] {
			t.Errorf("%s: in line at mx2 %v, at mx3 %v", id, here[id], inB[id])
		}
	}
	if len(inB) == 0 || len(here) == 0 {
		t.Errorf("%d are at mx3, %d at mx2", len(inB), len(here))
	}
}

// TestCutShort: messages that came here in a move that was cut short are in line once their
// origin notes that they went here, and only then. Those that it has, or has settled since,
// are forgotten, and those of an origin that nobody knows wait for it.
func TestCutShort(t *testing.T) {
	node := listertest.Primary(t)
	b := join(t, node, "mx3", Says{})
	here, err := b.queue.Identity()
	if err != nil {
		t.Fatal(err)
	}
	o := b.o.Spool("mx2")
	s, err := o.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	origin, err := store.Identity(s)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{"came": "1m84jpnqcczaqjs1", "elsewhere": "1m84jpnqcczaqjs2", "settled": "1m84jpnqcczaqjs3", "there": "1m84jpnqcczaqjs4", "there again": "1m84jpnqcczaqjs5"}
	var notes store.Batch
	for _, id := range []string{ids["came"], ids["there again"]} {
		notes.Put(store.MovedKey(id), []byte(here))
	}
	notes.Put(store.MovedKey(ids["elsewhere"]), []byte("another store"))
	for _, id := range []string{ids["there"], ids["there again"]} {
		notes.Put(store.IDKey(id), []byte{0, 0, 0, 0, 0, 0, 0, 1})
	}
	if err := s.Apply(notes); err != nil {
		t.Fatal(err)
	}
	const unknown = "1m84jpnqcczaqjs6"
	arrive := func(origin string, ids ...string) {
		in := b.queue.Intake(origin, 0)
		for _, id := range ids {
			r := &store.Record{Size: 2, Inline: true, Recipients: []store.Recipient{{Since: 1, Recipient: envelope.Recipient{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "r", Domain: "example.com"}}}}}}
			r.Env.ID, r.Env.Received, r.Env.Client.Addr = id, time.Unix(1000, 0), netip.MustParseAddr("192.0.2.1")
			if err := in.Add(r, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("\r\n")), nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := in.Store(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	arrive("a store that is gone", unknown)
	arrive(origin, slices.Sorted(maps.Values(ids))...)
	await(t, "the moves are settled", func() bool { return slices.Equal(b.queue.Origins(), []string{"a store that is gone"}) })
	if has := b.has(t); len(has) != 2 || !has[ids["came"]] || has[unknown] {
		t.Errorf("in line (true) or coming: %v", has)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func (m *member) limits() []Limit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []Limit{m.limit}
}

func (m *member) want(most, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = Limit{Key: "k", Most: most, Want: n}
}

// TestParts: the parts of a limit add up to it, whoever lives and has mail, and a member
// that is cut off keeps a little, which the others leave to it.
func TestParts(t *testing.T) {
	node := listertest.Primary(t)
	all := []*member{join(t, node, "mx2", Says{Up: map[string]bool{"primary": true}}), join(t, node, "mx3", Says{}), join(t, node, "mx4", Says{Version: 7})}
	parts := func(most int) (now [3]int) {
		for i, m := range all {
			now[i] = m.Part("k", most)
		}
		return now
	}
	for _, tt := range []struct {
		most  int
		wants [3]int
		want  [][3]int
	}{
		{90, [3]int{}, [][3]int{{30, 30, 30}}},
		{90, [3]int{900, 0, 0}, [][3]int{{84, 3, 3}}},
		{90, [3]int{0, 900, 20}, [][3]int{{3, 67, 20}}},
		{90, [3]int{60, 900, 90}, [][3]int{{30, 30, 30}}},
		{10, [3]int{0, 0, 2}, [][3]int{{2, 3, 5}, {3, 2, 5}, {2, 2, 6}, {3, 3, 4}}},
		{10, [3]int{7, 0, 0}, [][3]int{{8, 1, 1}}},
		{10, [3]int{70, 0, 0}, [][3]int{{10, 0, 0}}},
		{1, [3]int{70, 0, 0}, [][3]int{{1, 0, 0}}},
		{1, [3]int{5, 5, 5}, [][3]int{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}},
	} {
		for i, m := range all {
			m.want(tt.most, tt.wants[i])
		}
		await(t, fmt.Sprintf("parts of %+v", tt), func() bool { return slices.Contains(tt.want, parts(tt.most)) })
	}
	if up, known := all[0].Elsewhere("primary"); known {
		t.Errorf("the first doesn't probe: %v", up)
	}
	if up, known := all[1].Elsewhere("primary"); !known || !up {
		t.Errorf("the second isn't told: %v, %v", up, known)
	}
	await(t, "the policy differs at two", func() bool {
		return testutil.ToFloat64(all[0].metrics.FleetDiffers) == 1 && testutil.ToFloat64(all[1].metrics.FleetDiffers) == 1
	})
	if n := testutil.ToFloat64(all[2].metrics.FleetDiffers); n != 0 {
		t.Error("the newest policy differs")
	}
	for _, m := range all {
		m.want(10, 1000)
	}
	await(t, "parts of 10", func() bool { p := parts(10); return p[0]+p[1]+p[2] == 10 && p[0] > 1 })
	all[0].way.cut(true)
	await(t, "the first hears of nobody", func() bool { return testutil.ToFloat64(all[0].metrics.FleetUnheard) == 1 })
	await(t, "it keeps one, and leaves the others the rest", func() bool { p := parts(10); return p[0] == 1 && p[1]+p[2] == 9 })
	if v := all[0].View(); v.Error == "" || len(v.Members) != 3 {
		t.Errorf("%+v", v)
	}
	all[0].way.cut(false)
	await(t, "it is back", func() bool { p := parts(10); return p[0]+p[1]+p[2] == 10 && p[0] > 1 })
}

// TestPartsNeverAbove plays members that beat, read late, are cut off, die and come
// back in any order, with the database as the only thing in common: whatever happens, they
// never use more than the limit. In the end, when all is quiet, they use all of it.
func TestPartsNeverAbove(t *testing.T) {
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) { playParts(t, rand.New(rand.NewPCG(seed, 1))) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// player is a member whose beats are cut into steps.
type player struct {
	*Fleet
	use, want int
	cut, dead bool
	writing   map[string]Part // said, and not written yet
	began     time.Time
	read      []postgres.Member // and not heard yet
}

func playParts(t *testing.T, r *rand.Rand) {
	limit, n := 1+r.IntN(40), 1+r.IntN(5)
	rows := map[string]*postgres.Member{}
	seen := map[string]time.Time{}
	all := make([]*player, n)
	start := func(i int) {
		p := &player{want: all[i].want}
		p.Fleet = &Fleet{o: Options{Self: fmt.Sprint("mx", i), DeadAfter: deadAfter, Beat: beatEvery, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())},
			parts: map[string]*part{}, ok: time.Now()}
		for name := range rows { // as fleet.json has it
			p.last = append(p.last, Member{Name: name, Seen: -1, Alive: true})
		}
		slices.SortFunc(p.last, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
		all[i] = p
	}
	for i := range all {
		name := fmt.Sprint("mx", i)
		rows[name], seen[name] = &postgres.Member{Name: name, Says: []byte(`{"parts": {}}`)}, time.Now()
	}
	for i := range all {
		all[i] = &player{}
		start(i)
	}
	limits := func(p *player) []Limit { return []Limit{{Key: "k", Most: limit, Used: p.use, Want: p.want}} }
	step := func(p *player) { // a part of its next beat, or all of it
		switch {
		case p.writing == nil:
			p.lower(limits(p))
			p.writing, p.began = p.claim(limits(p)), time.Now()
		case p.read == nil && p.cut:
			p.hear(nil, time.Time{}, errors.New("cut off"))
			p.writing = nil
		case p.read == nil:
			b, _ := json.Marshal(Says{Parts: p.writing})
			rows[p.o.Self].Says, seen[p.o.Self] = b, time.Now()
			rows[p.o.Self].Beat++
			for name, m := range rows {
				m.Ago = time.Since(seen[name])
				p.read = append(p.read, *m)
			}
		default:
			p.hear(p.read, time.Now(), nil)
			p.confirm(p.began, p.writing)
			p.writing, p.read = nil, nil
		}
	}
	check := func() {
		sum := 0
		for _, p := range all {
			if !p.dead {
				part := p.Part("k", limit)
				switch {
				case p.use <= part:
					p.use = max(p.use, min(p.want, part))
				case time.Since(p.ok) >= deadAfter/2:
					p.use = part // the time until then is for sessions to end
				case r.IntN(4) == 0: // with its message
					p.use--
				}
				sum += p.use
			}
		}
		if sum > limit {
			t.Errorf("%d of %d in use", sum, limit)
		}
	}
	for range 400 {
		i := r.IntN(n)
		p := all[i]
		switch r.IntN(40) {
		case 0:
			p.dead, p.use = true, 0
		case 1:
			p.cut = !p.cut
		case 2, 3:
			p.want = r.IntN(2 * limit)
		}
		if p.dead && r.IntN(10) == 0 {
			start(i)
		}
		// Each goes on at least every 3 s, or it is dead: as Run and its time limits have it.
		for _, p := range all {
			for !p.dead && (r.IntN(2) == 0 || time.Since(p.began) > 3*time.Second) {
				if step(p); p.writing == nil {
					break
				}
			}
			check()
		}
		time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
	}
	for i, p := range all {
		if p.dead {
			start(i)
		}
		all[i].cut, all[i].want = false, limit
	}
	full := false // a turn of what doesn't divide takes two beats
	for beat := range 120 {
		sum := 0
		for _, p := range all {
			for range 3 {
				step(p)
			}
			check()
			sum += p.use
		}
		full = full || beat > 60 && sum == limit
		time.Sleep(3 * time.Second)
	}
	if !full {
		t.Errorf("less than %d in use in the end", limit)
	}
}

// TestForgetMember has docs/FLEET.md's statements take a member away that is gone for good,
// and nothing of the others.
func TestForgetMember(t *testing.T) {
	doc, err := os.ReadFile("../../docs/FLEET.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sql, _ := strings.Cut(string(doc), "### Remove a member for good")
	_, sql, _ = strings.Cut(sql, "psql <<EOF\n")
	sql, _, found := strings.Cut(sql, "    EOF\n")
	if !found {
		t.Fatal("the statements aren't in docs/FLEET.md")
	}
	node := listertest.Primary(t)
	gone, b := join(t, node, "mx4.example.org", Says{}), join(t, node, "mx3.example.org", Says{})
	ids := b.accept(t, 3, 100)
	if err := b.queue.Hold(ids[0]); err != nil {
		t.Fatal(err)
	}
	await(t, "both are heard of", func() bool { return len(b.View().Members) == 2 })
	node.SQL(t, strings.ReplaceAll(sql, "mx4.example.org", "mx3.example.org")) // one that lives loses nothing
	gone.leave(t)
	node.SQL(t, sql)
	await(t, "one is left", func() bool { v := b.View(); return len(v.Members) == 1 && v.Members[0].Name == "mx3.example.org" })
	if n := node.SQL(t, "SELECT count(DISTINCT spool) FROM understudy.kv"); n != "1" {
		t.Errorf("keys of %s spools", n)
	}
	if has := b.has(t); len(has) != 3 || b.queue.Healthy() != nil {
		t.Errorf("the other has %v, %v", has, b.queue.Healthy())
	}
}

// TestDefaults: what docs/FLEET.md says of the times.
func TestDefaults(t *testing.T) {
	f, err := New(Options{Spool: func(string) postgres.Opener { return postgres.Opener{} }})
	if err != nil {
		t.Fatal(err)
	}
	if f.o.Beat != 3*time.Second || f.o.DeadAfter != 15*time.Second || f.o.AdoptAfter != time.Minute {
		t.Errorf("beats each %v, dead after %v, adopted after %v", f.o.Beat, f.o.DeadAfter, f.o.AdoptAfter)
	}
}

// TestWants: what a member wants goes down slowly, so that parts don't follow each lull, and
// is never more than the limit.
func TestWants(t *testing.T) {
	f := &Fleet{o: Options{Self: "mx2", DeadAfter: deadAfter}, parts: map[string]*part{}, ok: time.Now()}
	for i, want := range []int{40, 30, 22, 16, 40} {
		limits := []Limit{{Key: "k", Most: 40, Want: map[int]int{0: 1000, 4: 41}[i]}}
		f.lower(limits)
		if got := f.claim(limits)["k"].Wants; got != want {
			t.Errorf("beat %d: wants %d, want %d", i, got, want)
		}
	}
}

// TestUnheard: for as long as the database was away nobody counts as silent, and of a beat that is
// new only our own clock says how old it may be.
func TestUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fleet{o: Options{Self: "mx2", AdoptAfter: time.Minute, DeadAfter: 15 * time.Second, Beat: 3 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())}}
		for _, tt := range []struct {
			when  string
			after time.Duration
			beat  int64
			ago   time.Duration // by the database's clock
			want  time.Duration
			sure  bool
		}{
			{"the first", 0, 1, time.Second, time.Second, false},
			{"the next", 3 * time.Second, 2, 0, 0, true},
			{"none", 3 * time.Second, 2, time.Hour, 3 * time.Second, true},
			{"one by another clock", 3 * time.Second, 3, 10 * time.Minute, 3 * time.Second, true},
			{"none, the database was away", 10 * time.Minute, 3, 10 * time.Minute, 9 * time.Second, true},
			{"one that may be old", 8 * time.Second, 4, 10 * time.Minute, 6 * time.Second, false},
			{"and the next", 3 * time.Second, 5, time.Second, time.Second, true},
			{"none for long", 6 * time.Second, 5, 0, 7 * time.Second, true},
			{"none for longer", 6 * time.Second, 5, 0, 13 * time.Second, true},
		} {
			time.Sleep(tt.after)
			f.hear([]postgres.Member{{Name: "mx3", Beat: tt.beat, Ago: tt.ago, Totals: store.Totals{Messages: 1}}}, time.Now(), nil)
			if h := f.heard["mx3"]; h.ago != tt.want || h.sure != tt.sure || !f.back("mx3") || f.orphan() != "" {
				t.Errorf("%s: silent for %v, sure %v, lives %v; want %v, %v", tt.when, h.ago, h.sure, f.back("mx3"), tt.want, tt.sure)
			}
		}
		time.Sleep(3 * time.Second)
		f.hear([]postgres.Member{{Name: "mx3", Beat: 5}}, time.Now(), nil)
		if f.back("mx3") {
			t.Error("silent for 16 s, and lives")
		}
	})
}

// TestClaims: a beat counts from when it began, not from its answer, and what is claimed is
// never less than what may be used.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := []Limit{{Key: "k", Most: 40, Want: 40}}
		make := func(others int) *Fleet {
			f := &Fleet{o: Options{Self: "mx2", DeadAfter: deadAfter, Beat: beatEvery, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())},
				parts: map[string]*part{"k": {Limit: limits[0], may: 20, target: 20}}, ok: time.Now()}
			f.hear([]postgres.Member{{Name: "mx2"}, {Name: "mx3", Says: fmt.Appendf(nil, `{"parts": {"k": {"c": %d, "w": 40}}}`, others)}}, time.Now(), nil)
			return f
		}
		f := make(20)
		time.Sleep(deadAfter/2 - time.Second)
		f.confirm(time.Now().Add(-3*time.Second), nil) // its answer took 3 s
		time.Sleep(deadAfter/2 - 3*time.Second)
		f.lower(limits)
		if n := f.Part("k", 40); n != aloneOf(40, false, 0, 2) {
			t.Errorf("%d at once, 7.5 s after the last beat began", n)
		}
		f = make(20)
		time.Sleep(deadAfter / 2)
		f.confirm(time.Now(), nil)
		if n := f.Part("k", 40); n != aloneOf(40, false, 0, 2) {
			t.Errorf("%d at once after a beat that took 7.5 s", n)
		}
		f.hear([]postgres.Member{{Name: "mx2"}, {Name: "mx3", Ago: forgetAfter - time.Second}, {Name: "mx4", Ago: forgetAfter}, {Name: "mx5", Ago: -1}}, time.Now(), nil)
		if names := f.listed(); !slices.Equal(names, []string{"mx2", "mx3"}) {
			t.Errorf("something is left to %q", names)
		}
		f = make(35) // more than it should
		if c := f.claim(limits)["k"].Claims; c != 20 {
			t.Errorf("claims %d, and may use 20", c)
		}
	})
}

// TestRests: a member whose mail can't be moved now is left alone for a while, and no
// member adopts its own mail, or that of one whose spool is held.
func TestRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fleet{o: Options{Self: "mx2", AdoptAfter: time.Minute, DeadAfter: 15 * time.Second, Beat: 3 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())},
			resting: map[string]time.Time{}}
		mail := store.Totals{Messages: 1}
		hear := func() {
			f.hear([]postgres.Member{{Name: "dead", Ago: time.Hour, Totals: mail}, {Name: "empty", Ago: time.Hour}, {Name: "held", Ago: time.Hour, Totals: mail, Holder: "mx3"},
				{Name: "mx2", Ago: time.Hour, Totals: mail}}, time.Now(), nil)
		}
		hear()
		if name := f.orphan(); name != "" {
			t.Errorf("%s is adopted at once", name)
		}
		time.Sleep(15 * time.Second)
		hear()
		if name := f.orphan(); name != "dead" {
			t.Errorf("%q is adopted", name)
		}
		f.rests("dead")
		for range 59 {
			time.Sleep(time.Second)
			if name := f.orphan(); name != "" {
				t.Fatalf("%q is adopted meanwhile", name)
			}
		}
		time.Sleep(time.Second)
		if name := f.orphan(); name != "dead" {
			t.Errorf("%q is adopted in the end", name)
		}
		f.hear(nil, time.Time{}, errors.New("away"))
		if name := f.orphan(); name != "" {
			t.Errorf("%q is adopted by one that hears of nobody", name)
		}
	})
}

// TestDrainRate: how fast each member's spool empties, as seen over the last ten seconds.
func TestDrainRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fleet{o: Options{Self: "mx2", DeadAfter: time.Second, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())}}
		hear := func(next2, waiting2, next3, waiting3 int64) [2]float64 {
			f.hear([]postgres.Member{
				{Name: "mx3", Totals: store.Totals{Next: uint64(next3), Messages: waiting3}},
				{Name: "mx2", Totals: store.Totals{Next: uint64(next2), Messages: waiting2}},
			}, time.Now(), nil)
			time.Sleep(2 * time.Second)
			return [2]float64{f.last[0].Out, f.last[1].Out}
		}
		for i, tt := range []struct {
			next2, waiting2, next3, waiting3 int64
			want                             [2]float64
		}{
			{101, 100, 1, 0, [2]float64{}},
			{101, 80, 1, 0, [2]float64{10, 0}},         // 20 in 2 s
			{121, 80, 11, 10, [2]float64{10, 0}},       // and 20 of 20 new ones
			{121, 80, 11, 10, [2]float64{40.0 / 6, 0}}, // nothing
			{121, 80, 11, 0, [2]float64{5, 10.0 / 8}},  //
			{121, 80, 11, 0, [2]float64{4, 1}},         //
			{121, 80, 11, 0, [2]float64{2, 1}},         // the first one is forgotten
			{121, 80, 11, 0, [2]float64{0, 1}},         //
			{1, 0, 11, 0, [2]float64{0, 1}},            // another spool of that name
		} {
			if got := hear(tt.next2, tt.waiting2, tt.next3, tt.waiting3); got != tt.want {
				t.Errorf("beat %d: %v a second, want %v", i, got, tt.want)
			}
		}
	})
}

// TestOtherClock: after 31 s another server is in charge, whose clock is ten minutes off. A member that lives is
// never taken for dead, and who died before is adopted when it would have been; by
// one that has just started, after it has listened for a while.
func TestOtherClock(t *testing.T) {
	const died, failover, back = 19, 31, 34
	for name, tt := range map[string]struct {
		off    time.Duration
		starts int // when the listener does
		adopts int // when it takes the mail of the dead
	}{
		"ahead":                     {10 * time.Minute, 0, died + 60},
		"behind":                    {-10 * time.Minute, 0, died + 60},
		"ahead, and a fresh start":  {10 * time.Minute, 33, 33 + 15},
		"behind, and a fresh start": {-10 * time.Minute, 33, 33 + 60},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &Fleet{o: Options{Self: "mx2", AdoptAfter: time.Minute, DeadAfter: 15 * time.Second, Beat: 3 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())}}
				clock := time.Now
				beats := map[string]time.Time{}
				adopted := -1
				for second := range 120 {
					if second == failover {
						clock = func() time.Time { return time.Now().Add(tt.off) }
					}
					if second%3 == 1 && (second < failover || second >= back) {
						beats["mx3"] = clock()
						if second <= died {
							beats["dead"] = clock()
						}
					}
					if second >= tt.starts && second%3 == 0 && second > 0 {
						all := []postgres.Member{{Name: "mx2"}}
						for name, at := range beats {
							all = append(all, postgres.Member{Name: name, Beat: at.UnixMicro(), Ago: max(0, clock().Sub(at)), Totals: store.Totals{Messages: 5}})
						}
						f.hear(all, clock(), nil)
						if who := f.orphan(); who == "mx3" {
							t.Errorf("after %d s mx3 is adopted", second)
						} else if who == "dead" && adopted < 0 {
							adopted = second
						}
						if second != tt.starts && !f.back("mx3") {
							t.Errorf("after %d s mx3 is taken for dead", second)
						}
					}
					time.Sleep(time.Second)
				}
				if adopted < tt.adopts || adopted > tt.adopts+5 {
					t.Errorf("the dead one is adopted after %d s, want %d", adopted, tt.adopts)
				}
			})
		})
	}
}

// TestPartOverRestart: a member that starts while the database is away keeps to little by the
// members that there were, and a damaged file is no news of any.
func TestPartOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "fleet.json")
		start := func(self string) *Fleet {
			f, err := New(Options{Self: self, File: file, DeadAfter: time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
				Metrics: metrics.New(prometheus.NewRegistry()), Spool: func(string) postgres.Opener { return postgres.Opener{} }})
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		alone := func(f *Fleet) int {
			limits := []Limit{{Key: "k", Most: 100}}
			f.lower(limits)
			if n := f.Part("k", 100); n != 0 {
				t.Errorf("%d at once: the others may still have them", n)
			}
			time.Sleep(2 * f.o.DeadAfter)
			f.lower(limits)
			return f.Part("k", 100)
		}
		f := start("mx3")
		if n := alone(f); n != 100 {
			t.Errorf("the first start of all: %d", n)
		}
		f.hear([]postgres.Member{{Name: "mx2", Totals: store.Totals{Messages: 3}}, {Name: "mx3"}, {Name: "mx4"},
			{Name: "dead", Ago: time.Hour, Totals: store.Totals{Messages: 1}}, {Name: "never", Ago: -1}}, time.Now(), nil)
		f.keep()
		if n := testutil.ToFloat64(f.o.Metrics.FleetMembers); n != 3 {
			t.Errorf("%v members", n)
		}
		for _, m := range f.View().Members {
			if want := map[string]float64{"mx2": 0.75, "dead": 0.25}[m.Name]; m.Share != want {
				t.Errorf("%s has %v of all mail, want %v", m.Name, m.Share, want)
			}
		}
		sum, parts := 0, map[string]int{}
		for _, self := range []string{"mx2", "mx3", "mx4"} {
			again := start(self)
			parts[self] = alone(again)
			sum += parts[self]
			again.hear(nil, time.Time{}, errors.New("away"))
			again.keep()
			again.lower([]Limit{{Key: "k", Most: 100}})
			if n := again.Part("k", 100); n != parts[self] {
				t.Errorf("%s: %d, and %d once it asked", self, parts[self], n)
			}
			if up, known := again.Elsewhere("primary"); known {
				t.Errorf("%s: knows that the primary is up: %v", self, up)
			}
			if name := again.orphan(); name != "" {
				t.Errorf("%s adopts %s", self, name)
			}
			if v := again.View(); v.Error != "away" || !v.At.IsZero() || len(v.Members) != 3 {
				t.Errorf("%s: %+v", self, v)
			}
		}
		if sum != 4+4+4 {
			t.Errorf("the parts of 100: %v", parts)
		}
		f.hear([]postgres.Member{{Name: "mx3"}}, time.Now(), nil)
		f.keep()
		if n := alone(start("mx3")); n != 100 {
			t.Errorf("alone since: %d", n)
		}
		if err := os.WriteFile(file, []byte(`["mx2", 7`), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := alone(start("mx3")); n != 100 {
			t.Errorf("of a damaged file: %d", n)
		}
	})
}

// TestPolicyDiffers: policies from files have no version, only their content.
func TestPolicyDiffers(t *testing.T) {
	says := func(digest string, version uint64) []byte {
		return fmt.Appendf(nil, `{"digest": %q, "version": %d}`, digest, version)
	}
	for name, tt := range map[string]struct {
		says    [3][]byte
		differs [3]bool
	}{
		"files alike":                {[3][]byte{says("a", 0), says("a", 0), says("a", 0)}, [3]bool{}},
		"another file":               {[3][]byte{says("a", 0), says("b", 0), says("a", 0)}, [3]bool{false, true, false}},
		"an older one":               {[3][]byte{says("a", 6), says("b", 7), says("b", 7)}, [3]bool{true, false, false}},
		"hashed alike":               {[3][]byte{says("", 7), says("", 7), says("", 7)}, [3]bool{}},
		"hashed, one lags":           {[3][]byte{says("", 7), says("", 6), says("", 7)}, [3]bool{false, true, false}},
		"hashed for some":            {[3][]byte{says("", 7), says("a", 7), says("", 7)}, [3]bool{}},
		"hashed for another":         {[3][]byte{says("a", 7), says("", 7), says("b", 7)}, [3]bool{false, false, true}},
		"file and paired":            {[3][]byte{says("a", 7), says("a", 0), says("a", 7)}, [3]bool{false, true, false}},
		"not paired":                 {[3][]byte{says("a", 7), says("", 0), says("a", 7)}, [3]bool{false, true, false}},
		"one waits for its operator": {[3][]byte{says("", 7), []byte(`{"version": 7, "staged": "pending"}`), says("", 7)}, [3]bool{false, true, false}},
		"another epoch":              {[3][]byte{[]byte(`{"epoch": 2, "version": 1}`), says("", 7), says("", 7)}, [3]bool{false, true, true}},
	} {
		var all []postgres.Member
		for i, b := range tt.says {
			all = append(all, postgres.Member{Name: fmt.Sprint("mx", i), Says: b})
		}
		for i, m := range view(all, time.Second) {
			if m.Differs != tt.differs[i] {
				t.Errorf("%s: %s differs: %v", name, m.Name, m.Differs)
			}
		}
	}
}
