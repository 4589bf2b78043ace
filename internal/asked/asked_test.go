package asked

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
)

// primary answers questions from a list of its own.
type primary struct {
	mu    sync.Mutex
	has   map[string]envelope.Reply
	err   error
	asked []string
	now   time.Time
	hold  chan struct{} // nil: answers at once
}

func (p *primary) ask(ctx context.Context, m envelope.Mailbox) (envelope.Reply, error) {
	p.mu.Lock()
	p.asked = append(p.asked, m.String())
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.has[m.String()]; ok || p.err != nil {
		return r, p.err
	}
	return envelope.NewReply(550, "5.1.1", "no such user"), nil
}

func newBook(t *testing.T, file string, p *primary) *Book {
	return Open(Options{File: file, Ask: p.ask, Domains: func() []string { return []string{"example.org"} }, Now: func() time.Time { return p.now },
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())})
}

var client = netip.MustParseAddr("192.0.2.1")

// look returns the reply's code, 0 for an error, and how often the primary was asked.
func look(t *testing.T, b *Book, p *primary, to string) (code, asked int) {
	t.Helper()
	m, err := envelope.ParseMailbox(to)
	if err != nil {
		t.Fatal(err)
	}
	before := len(p.asked)
	r, err := b.Lookup(t.Context(), client, m)
	if err != nil {
		r.Code = 0
	}
	return r.Code, len(p.asked) - before
}

func TestAges(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0), has: map[string]envelope.Reply{"alice@example.org": envelope.NewReply(250, "", "ok")}}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	for _, step := range []struct {
		after time.Duration
		to    string
		code  int
		asked int
	}{
		{0, "alice@example.org", 250, 1},
		{0, "ALICE@Example.ORG", 250, 0},
		{0, "bob@example.org", 550, 1},
		{noAgain, "bob@example.org", 550, 0},
		{time.Second, "bob@example.org", 550, 1}, // who may have come to be
		{time.Second, "bob@example.org", 550, 0},
		{noKept, "bob@example.org", 550, 1},
		{yesKept - noKept - noAgain - 2*time.Second, "alice@example.org", 250, 0},
		{time.Second, "alice@example.org", 250, 1},
	} {
		p.now = p.now.Add(step.after)
		if code, asked := look(t, b, p, step.to); code != step.code || asked != step.asked {
			t.Errorf("after %v, %s: %d, asked %d times; want %d, %d", step.after, step.to, code, asked, step.code, step.asked)
		}
	}
	// A "no" doesn't replace a "yes", and what can't be asked changes nothing.
	p.has = nil
	p.now = p.now.Add(8 * 24 * time.Hour)
	if due := b.due(); fmt.Sprint(due) != "[alice@example.org]" {
		t.Errorf("due: %v", due)
	}
	b.refresh(t.Context(), "alice@example.org")
	if code, _ := look(t, b, p, "alice@example.org"); code != 250 {
		t.Errorf("after a no: %d", code)
	}
	if due := b.due(); len(due) > 0 {
		t.Errorf("due again at once: %v", due)
	}
	p.err = errors.New("down")
	if code, _ := look(t, b, p, "carol@example.org"); code != 0 {
		t.Errorf("the primary is down: %d", code)
	}
}

// TestNoAgain: a "no" is asked again after three hours, when somebody wants it. What can't
// be asked then is as it was.
func TestNoAgain(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	want := func(code, asked int) {
		t.Helper()
		if c, a := look(t, b, p, "bob@example.org"); c != code || a != asked {
			t.Errorf("%d, asked %d times; want %d, %d", c, a, code, asked)
		}
	}
	want(550, 1)
	p.now, p.err = p.now.Add(noAgain+time.Second), errors.New("down")
	want(550, 1)
	want(550, 0) // not at once again
	p.now = p.now.Add(retryAfter + time.Second)
	for b.allow(p.now, client) { // until it may ask no more
	}
	want(550, 0)
	p.now, p.err, p.has = p.now.Add(time.Hour), nil, map[string]envelope.Reply{"bob@example.org": envelope.NewReply(250, "", "ok")}
	want(250, 1)
}

// TestEverybody: a primary that accepts a made-up recipient is named, until it refuses one.
func TestEverybody(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	reply, replyErr := envelope.NewReply(250, "", "ok"), error(nil)
	var to []string
	b.o.Ask = func(_ context.Context, m envelope.Mailbox) (envelope.Reply, error) {
		to = append(to, m.String())
		return reply, replyErr
	}
	for _, step := range []struct {
		after time.Duration
		reply envelope.Reply
		err   error
		want  string
		due   bool
	}{
		{0, envelope.NewReply(451, "4.3.0", "later"), nil, "[]", true},
		{retryAfter - time.Second, envelope.Reply{}, nil, "[]", false},
		{time.Second, envelope.NewReply(250, "", "ok"), nil, "[example.org]", true},
		{trialEvery - time.Second, envelope.Reply{}, nil, "[example.org]", false},
		{time.Second, envelope.Reply{}, errors.New("down"), "[example.org]", true},
		{retryAfter, envelope.NewReply(550, "5.7.1", "blocked"), nil, "[example.org]", true},
		{retryAfter, envelope.NewReply(550, "5.1.1", "unknown"), nil, "[]", true},
	} {
		p.now = p.now.Add(step.after)
		reply, replyErr = step.reply, step.err
		domain := b.untried()
		if (domain != "") != step.due {
			t.Fatalf("after %v due: %q, want %v", step.after, domain, step.due)
		}
		if domain != "" {
			b.try(t.Context(), domain)
		}
		if s := b.Status(); fmt.Sprint(s.Everybody) != step.want || s.Yes+s.No > 0 {
			t.Errorf("%v, %v: %+v, want %s", step.reply, step.err, s, step.want)
		}
	}
	if len(to) != 5 || to[0] == to[1] || !strings.HasSuffix(to[0], "@example.org") {
		t.Errorf("asked about %q", to)
	}
}

// TestUnknown has replies that must make nobody unknown.
func TestUnknown(t *testing.T) {
	for _, tt := range []struct {
		reply envelope.Reply
		want  int
	}{
		{envelope.NewReply(250, "2.1.5", "ok"), 250},
		{envelope.NewReply(251, "", "will forward"), 250},
		{envelope.NewReply(550, "5.1.1", "x"), 550},
		{envelope.NewReply(550, "", "no such user"), 550},
		{envelope.NewReply(550, "5.1.10", "x"), 550},
		{envelope.NewReply(550, "5.4.1", "Recipient address rejected: Access denied"), 550},
		{envelope.NewReply(553, "5.1.3", "x"), 550},
		{envelope.NewReply(550, "5.7.1", "blocked"), 0},
		{envelope.NewReply(554, "5.7.1", "relay access denied"), 0},
		{envelope.NewReply(554, "", "no"), 0},
		{envelope.NewReply(550, "5.1.8", "bad sender"), 0},
		{envelope.NewReply(552, "5.2.2", "full"), 0},
		{envelope.NewReply(450, "4.2.0", "greylisted"), 0},
	} {
		p := &primary{now: time.Unix(1e9, 0), has: map[string]envelope.Reply{"a@example.org": tt.reply}}
		if code, _ := look(t, newBook(t, filepath.Join(t.TempDir(), "asked.json"), p), p, "a@example.org"); code != tt.want {
			t.Errorf("%v: %d, want %d", tt.reply, code, tt.want)
		}
	}
}

func TestLimits(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	asks := func(from netip.Addr, n int) int {
		before := len(p.asked)
		for i := range n {
			_, _ = b.Lookup(t.Context(), from, envelope.Mailbox{Local: fmt.Sprintf("%s-%d-%d", strings.ReplaceAll(from.String(), ":", "-"), i, before), Domain: "example.org"})
		}
		return len(p.asked) - before
	}
	if n := asks(client, 100); n != clientBurst {
		t.Errorf("one client causes %d questions", n)
	}
	if n := asks(netip.MustParseAddr("::ffff:"+client.String()), 5); n != 0 {
		t.Errorf("the same client by IPv6 causes %d questions", n)
	}
	if n := asks(netip.MustParseAddr("2001:db8::1"), 15) + asks(netip.MustParseAddr("2001:db8::2"), 15); n != clientBurst {
		t.Errorf("one /64 causes %d questions", n)
	}
	p.now = p.now.Add(3 * clientEvery)
	if n := asks(client, 100); n != 3 {
		t.Errorf("three minutes later %d questions", n)
	}
	total := 0
	for i := range 200 {
		total += asks(netip.AddrFrom4([4]byte{198, 51, byte(i), 1}), 5)
	}
	if total != totalBurst-3 {
		t.Errorf("all clients together cause %d questions", total)
	}
	if s := b.Status(); s.No != len(p.asked) {
		t.Errorf("%+v of %d", s, len(p.asked))
	}
}

// TestDictionary has 100,000 guesses from one address, then from 200, then from more
// than are counted, in 100 s each: the primary hears no more than PUSH.md says, and
// what is remembered is bounded.
func TestDictionary(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	const guesses, each = 100_000, time.Millisecond
	for _, c := range []struct{ clients, most int }{
		{1, clientBurst + int(guesses*each/clientEvery) + 1},
		{200, totalBurst + int(guesses*each/totalEvery) + 1},
		{3 * maxClients, totalBurst + int(guesses*each/totalEvery) + 1},
	} {
		p.now = p.now.Add(24 * time.Hour)
		p.asked = nil
		for i := range guesses {
			p.now = p.now.Add(each)
			n := i % c.clients
			_, _ = b.Lookup(t.Context(), netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), envelope.Mailbox{Local: fmt.Sprintf("guess%d", i), Domain: "example.org"})
		}
		if n := len(p.asked); n > c.most || n < c.most/2 {
			t.Errorf("%d addresses: the primary is asked %d times, want at most %d and not much less", c.clients, n, c.most)
		}
		if len(b.clients) > maxClients || len(b.entries) > maxNo || len(b.asking) > 0 {
			t.Errorf("%d addresses: %d clients, %d answers, %d questions are kept", c.clients, len(b.clients), len(b.entries), len(b.asking))
		}
	}
}

// TestGarbage opens files that nobody of ours wrote, or that a wrong clock dated.
func TestGarbage(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	good := `{"a":"alice@example.org","y":true,"t":"2001-09-08T00:00:00Z","q":"2001-09-08T00:00:00Z"}` + "\n"
	for name, text := range map[string]string{
		"cut off":      good + good[:40],
		"NULs":         strings.Repeat("\x00", 4096) + "\n" + good,
		"other JSON":   "[]\nnull\n7\n{}\n" + good + `{"a":7}` + "\n",
		"no addresses": `{"a":"x","y":true}` + "\n" + `{"a":"@example.org","y":true}` + "\n" + `{"a":"B@example.org","y":true}` + "\n" + good,
		"long":         `{"a":"` + strings.Repeat("a", 1<<20) + `@example.org","y":true}` + "\n" + good,
		"twice":        good + good,
	} {
		file := filepath.Join(t.TempDir(), "asked.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s := newBook(t, file, p).Status(); s.Yes != 1 || s.No != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	file := filepath.Join(t.TempDir(), "asked.json")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(good, "2001", "2999")), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBook(t, file, p)
	p.now = p.now.Add(yesKept + time.Second)
	if code, asked := look(t, b, p, "alice@example.org"); code != 550 || asked != 1 {
		t.Errorf("dated in the future, after its time: %d, asked %d", code, asked)
	}
}

// TestExpiry: what is too old doesn't count, stands in no answer's way, and is dropped.
func TestExpiry(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0), has: map[string]envelope.Reply{"alice@example.org": envelope.NewReply(250, "", "ok")}}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	look(t, b, p, "alice@example.org")
	look(t, b, p, "bob@example.org")
	p.now = p.now.Add(noAgain + time.Second)
	if due := b.due(); len(due) != 0 {
		t.Errorf("a no is asked again by itself: %v", due)
	}
	p.err = errors.New("down")
	p.now = p.now.Add(noKept - noAgain - time.Second)
	if code, _ := look(t, b, p, "bob@example.org"); code != 550 {
		t.Errorf("after three days: %d", code)
	}
	p.now = p.now.Add(time.Second)
	if code, _ := look(t, b, p, "bob@example.org"); code != 0 {
		t.Errorf("after more than three days: %d", code)
	}
	p.has, p.err = nil, nil
	p.now = p.now.Add(yesKept)
	for _, asked := range []int{1, 0} {
		if code, n := look(t, b, p, "alice@example.org"); code != 550 || n != asked {
			t.Errorf("after a month, and deleted: %d, asked %d", code, n)
		}
	}
	p.now = p.now.Add(noKept + time.Second)
	if due := b.due(); len(due) != 0 || len(b.entries) != 0 {
		t.Errorf("%v are due, %d are kept", due, len(b.entries))
	}
	b.refresh(t.Context(), "alice@example.net")
	if n := len(p.asked); p.asked[n-1] == "alice@example.net" {
		t.Error("the primary is asked about a domain that isn't its own")
	}
}

// TestBounds: what is remembered has a bound, and addresses have.
func TestBounds(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	for i := range maxYes + 10 {
		b.keep(&entry{Address: fmt.Sprintf("y%d@example.org", i), Yes: true, At: p.now})
	}
	for i := range maxNo + 10 {
		b.keep(&entry{Address: fmt.Sprintf("n%d@example.org", i), At: p.now})
	}
	b.keep(&entry{Address: "y1@example.org", Yes: true, At: p.now}) // is there
	b.Heard(envelope.Mailbox{Local: strings.Repeat("a", maxAddress), Domain: "example.org"}, envelope.NewReply(550, "5.1.1", "User unknown"))
	if s := b.Status(); s.Yes != maxYes || s.No != maxNo || b.entries[strings.Repeat("a", maxAddress)+"@example.org"] != nil {
		t.Errorf("%+v", s)
	}
}

// TestRunSaves: what is learned is saved each minute, and at the end.
func TestRunSaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &primary{now: time.Now()}
		file := filepath.Join(t.TempDir(), "asked.json")
		b := newBook(t, file, p)
		ctx, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { _ = b.Run(ctx) })
		saved := func() int { return newBook(t, file, p).Status().No }
		_, _ = b.Lookup(ctx, client, envelope.Mailbox{Local: "bob", Domain: "example.org"})
		time.Sleep(saveEvery + time.Second)
		synctest.Wait()
		if n := saved(); n != 1 {
			t.Errorf("after a minute %d are saved", n)
		}
		_, _ = b.Lookup(ctx, client, envelope.Mailbox{Local: "carol", Domain: "example.org"})
		stop()
		work.Wait()
		if n := saved(); n != 2 {
			t.Errorf("at the end %d are saved", n)
		}
	})
}

// TestTogether asks once for many who want the same answer.
func TestTogether(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0), hold: make(chan struct{})}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	var work sync.WaitGroup
	for range 20 {
		work.Go(func() {
			if r, err := b.Lookup(t.Context(), client, envelope.Mailbox{Local: "a", Domain: "example.org"}); err != nil || r.Code != 550 {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	close(p.hold)
	work.Wait()
	if len(p.asked) != 1 {
		t.Errorf("asked %d times", len(p.asked))
	}
}

func TestWarmAndSaved(t *testing.T) {
	p := &primary{now: time.Unix(1e9, 0)}
	file := filepath.Join(t.TempDir(), "asked.json")
	b := newBook(t, file, p)
	if n := b.Warm([]string{"alice@example.org", "Alice@example.org", "x@example.net", "nonsense", "bob@example.org"}); n != 2 {
		t.Errorf("%d are new", n)
	}
	for _, b := range []*Book{b, newBook(t, file, p)} { // as after a crash
		if code, asked := look(t, b, p, "alice@example.org"); code != 250 || asked != 0 {
			t.Errorf("from a log: %d, asked %d", code, asked)
		}
	}
	// The primary doesn't have her any more: a log's word counts less.
	b.refresh(t.Context(), "alice@example.org")
	b.save()
	b = newBook(t, file, p)
	if code, _ := look(t, b, p, "alice@example.org"); code != 550 {
		t.Errorf("asked about since: %d", code)
	}
	if s := b.Status(); s.Yes != 1 || s.No != 1 || s.Log != 1 {
		t.Errorf("saved: %+v", s)
	}
}

func TestReadLog(t *testing.T) {
	const log = `Nov 29 18:00:00 mx1 postfix/lmtp[7]: 4XyZ: to=<alice@example.org>, relay=d[private/lmtp], delay=0.1, delays=0/0/0/0, dsn=2.0.0, status=sent (250 2.0.0 Saved)
Nov 29 18:00:00 mx1 postfix/virtual[7]: 4XyZ: to=<bob@example.org>, orig_to=<sales@example.org>, relay=virtual, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (delivered to maildir)
Nov 29 18:00:00 mx1 postfix/smtp[7]: 4XyZ: to=<no@example.org>, relay=none, delay=0, delays=0/0/0/0, dsn=5.1.1, status=bounced (host said: status=sent)
Nov 29 18:00:00 mx1 postfix/smtp[7]: 4XyZ: to=<no@example.org>, relay=none, delay=0, delays=0/0/0/0, dsn=4.4.1, status=deferred (x)
2026-11-29 18:00:00 1abcde-000001-AB => carol <Carol@example.org> R=localuser T=local_delivery
2026-11-29 18:00:00 1abcde-000001-AB -> dave@example.org R=smarthost T=remote_smtp H=h [192.0.2.1]
2026-11-29 18:00:00 1abcde-000001-AB == no@example.org R=smarthost T=remote_smtp defer (-53)
2026-11-29 18:00:00 1abcde-000001-AB ** no@example.org R=nobody: Unrouteable address
2026-11-29 18:00:00 1abcde-000001-AB <= no@sender.example H=h P=esmtp S=100
`
	var got []string
	if err := ReadLog(strings.NewReader(log+strings.Repeat("x", 1<<20)+"\n"+"end"), func(a string) { got = append(got, a) }); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, " "); s != "alice@example.org bob@example.org sales@example.org Carol@example.org dave@example.org" {
		t.Errorf("got %s", s)
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add("x: to=<a@b>, orig_to=<c@d>, status=sent (x)\n")
	f.Add("=> a <a@b> R=x")
	f.Fuzz(func(t *testing.T, s string) {
		if err := ReadLog(strings.NewReader(s), func(a string) {
			if strings.Contains(a, "\n") {
				t.Errorf("%q", a)
			}
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestHeard: what the primary says to clients in sessions that are played through counts, too,
// but for refusals that may be about the client.
func TestHeard(t *testing.T) {
	p := &primary{err: errors.New("the primary is down"), now: time.Unix(1e9, 0)}
	b := newBook(t, filepath.Join(t.TempDir(), "asked.json"), p)
	for _, h := range []struct {
		to    string
		reply envelope.Reply
		want  int
	}{
		{"Alice@example.org", envelope.NewReply(250, "2.1.5", "Ok"), 250},
		{"nobody@example.org", envelope.NewReply(550, "5.1.1", "User unknown"), 550},
		{"alice@example.org", envelope.NewReply(550, "5.1.1", "User unknown"), 250}, // a "yes" stays
		{"nobody@example.org", envelope.NewReply(250, "2.1.5", "Ok"), 250},          // a "no" doesn't
		{"blocked@example.org", envelope.NewReply(554, "5.7.1", "Client host blocked"), 0},
		{"plain@example.org", envelope.NewReply(550, "", "blocked"), 0},
		{"later@example.org", envelope.NewReply(450, "4.2.0", "Greylisted"), 0},
	} {
		m, err := envelope.ParseMailbox(h.to)
		if err != nil {
			t.Fatal(err)
		}
		b.Heard(m, h.reply)
		if got, _ := look(t, b, p, strings.ToLower(h.to)); got != h.want {
			t.Errorf("%s after %s: %d, want %d", h.to, h.reply.String(), got, h.want)
		}
	}
	p.now = p.now.Add(yesKept + time.Second)
	if got, _ := look(t, b, p, "alice@example.org"); got != 0 {
		t.Errorf("after a month: %d", got)
	}
}
