package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/demo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// face is policy.Resolver, which this package must satisfy but can't import.
var _ interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
} = (*Resolver)(nil)

var zone = []string{
	"test. 300 IN SOA ns.test. root.test. 1 3600 600 86400 60",
	"test. 300 IN NS ns.test.",
	"a.test. 300 IN A 192.0.2.1",
	"a.test. 200 IN A 192.0.2.2",
	"both.test. 300 IN A 192.0.2.3",
	"both.test. 300 IN AAAA 2001:db8::3",
	"mx.test. 300 IN MX 20 b.test.",
	"mx.test. 300 IN MX 10 a.test.",
	"nullmx.test. 300 IN MX 0 .",
	`oddmx.test. 300 IN MX 0 b\@d\000.test.`,
	`txt.test. 300 IN TXT "v=spf1 " "\"-all\\\" \226\130\172"`,
	"1.2.0.192.in-addr.arpa. 300 IN PTR a.test.",
	`1.2.0.192.in-addr.arpa. 300 IN PTR in\010valid.test.`,
	"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 IN PTR v6.test.",
	"alias.test. 10 IN CNAME both.test.",
	"dangling.test. 300 IN CNAME nowhere.test.",
	"loop.test. 300 IN CNAME pool.test.",
	"pool.test. 300 IN CNAME loop.test.",
	"2.0.0.127.bl.test. 300 IN A 127.0.0.2",
	"3.0.0.127.bl.test. 300 IN A 127.255.255.254",
	"zero.test. 0 IN A 192.0.2.9",
	"week.test. 604800 IN A 192.0.2.10",
	"servfail.test. 300 IN A 192.0.2.11",
	"noauth.example. 300 IN TXT x",
}

// fixture is a DNS server, a Resolver that asks it, a clock and what the
// Resolver observed.
type fixture struct {
	*demo.DNS
	*Resolver
	mu   sync.Mutex
	seen []string
	skew time.Duration
}

func start(t *testing.T, o Options, records ...string) *fixture {
	t.Helper()
	d, err := demo.StartDNS(append(records, zone...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	f := &fixture{DNS: d}
	if o.Servers == nil {
		o.Servers = []string{d.Addr()}
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second // longer than a busy machine stalls
	}
	o.Observe = func(qtype, result string, _ time.Duration) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.seen = append(f.seen, qtype+" "+result)
	}
	f.Resolver = New(o)
	f.now = func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		return time.Now().Add(f.skew)
	}
	return f
}

func (f *fixture) observed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seen
	f.seen = nil
	return s
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.skew += d
}

// kindOf tells apart what callers must.
func kindOf(err error) string {
	var e *net.DNSError
	switch {
	case err == nil:
		return "ok"
	case !errors.As(err, &e):
		return fmt.Sprintf("%T", err)
	case e.IsNotFound && !e.IsTemporary && !e.IsTimeout:
		return "not found"
	case e.IsTimeout && e.IsTemporary && !e.IsNotFound:
		return "timeout"
	case e.IsTemporary && !e.IsNotFound:
		return "temporary"
	}
	return fmt.Sprintf("%+v", e)
}

func TestLookups(t *testing.T) {
	f := start(t, Options{})
	ctx := t.Context()
	ip := func(network, host string) func() (any, error) {
		return func() (any, error) { return f.LookupNetIP(ctx, network, host) }
	}
	mx := func(name string) func() (any, error) {
		return func() (any, error) {
			mxs, err := f.LookupMX(ctx, name)
			var s []string
			for _, m := range mxs {
				s = append(s, fmt.Sprint(m.Pref, " ", m.Host))
			}
			return s, err
		}
	}
	ptr := func(a string) func() (any, error) { return func() (any, error) { return f.LookupAddr(ctx, a) } }
	txt := func(n string) func() (any, error) { return func() (any, error) { return f.LookupTXT(ctx, n) } }
	long := strings.Repeat("a", 63)
	for name, tt := range map[string]struct {
		look func() (any, error)
		want string
		kind string
	}{
		"two addresses":       {ip("ip4", "a.test"), "[192.0.2.1 192.0.2.2]", "ok"},
		"final dot, case":     {ip("ip4", "A.Test."), "[192.0.2.1 192.0.2.2]", "ok"},
		"both families":       {ip("ip", "both.test"), "[192.0.2.3 2001:db8::3]", "ok"},
		"one family of two":   {ip("ip", "a.test"), "[192.0.2.1 192.0.2.2]", "ok"},
		"v6":                  {ip("ip6", "both.test"), "[2001:db8::3]", "ok"},
		"nodata":              {ip("ip6", "a.test"), "[]", "not found"},
		"nxdomain":            {ip("ip4", "no.test"), "[]", "not found"},
		"empty non-terminal":  {ip("ip4", "0.0.127.bl.test"), "[]", "not found"},
		"nowhere, no SOA":     {ip("ip", "no.example"), "[]", "not found"},
		"literal":             {ip("ip", "192.0.2.77"), "[192.0.2.77]", "ok"},
		"v6 literal as ip4":   {ip("ip4", "2001:db8::1"), "[]", "not found"},
		"literal with a zone": {ip("ip6", "fe80::1%lo"), "[]", "not found"},
		"alias":               {ip("ip4", "alias.test"), "[192.0.2.3]", "ok"},
		"dangling alias":      {ip("ip4", "dangling.test"), "[]", "not found"},
		"alias loop":          {ip("ip4", "loop.test"), "[]", "temporary"},
		"listed":              {ip("ip4", "2.0.0.127.bl.test"), "[127.0.0.2]", "ok"},
		"list refuses":        {ip("ip4", "3.0.0.127.bl.test"), "[127.255.255.254]", "ok"},
		"strange network":     {ip("tcp", "a.test"), "[]", "temporary"},
		"empty name":          {ip("ip4", ""), "[]", "not found"},
		"root":                {ip("ip4", "."), "[]", "not found"},
		"empty label":         {ip("ip4", "a..test"), "[]", "not found"},
		"leading dot":         {ip("ip4", ".test"), "[]", "not found"},
		"two final dots":      {ip("ip4", "a.test.."), "[]", "not found"},
		"label of 63":         {ip("ip4", long+".test"), "[]", "not found"},
		"label of 64":         {ip("ip4", long+"a.test"), "[]", "not found"},
		"name too long":       {ip("ip4", strings.Repeat(long+".", 4)+"test"), "[]", "not found"},
		"space":               {ip("ip4", "a b.test"), "[]", "not found"},
		"NUL":                 {ip("ip4", "a\x00b.test"), "[]", "not found"},
		"8 bit":               {ip("ip4", "bücher.test"), "[]", "not found"},
		"odd but possible":    {ip("ip4", `x'"\@;()$.test`), "[]", "not found"},
		"mx by preference":    {mx("mx.test"), "[10 a.test. 20 b.test.]", "ok"},
		"null mx":             {mx("nullmx.test"), "[0 .]", "ok"},
		"mx is no host name":  {mx("oddmx.test"), "[]", "not found"},
		"no mx":               {mx("a.test"), "[]", "not found"},
		"ptr":                 {ptr("192.0.2.1"), "[a.test.]", "ok"},
		"ptr v6":              {ptr("2001:db8::1"), "[v6.test.]", "ok"},
		"no ptr":              {ptr("192.0.2.2"), "[]", "not found"},
		"ptr of no address":   {ptr("a.test"), "[]", "not found"},
		"txt":                 {txt("txt.test"), `[v=spf1 "-all\" €]`, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := tt.look()
			if got := fmt.Sprint(v); got != tt.want || kindOf(err) != tt.kind {
				t.Errorf("got %s, %v; want %s, %s", got, err, tt.want, tt.kind)
			}
		})
	}
	ns, err := f.LookupNS(ctx, "test")
	if err != nil || len(ns) != 1 || ns[0].Host != "ns.test." {
		t.Errorf("LookupNS: got %v, %v", ns, err)
	}
}

func TestInvalidNameIsNotAsked(t *testing.T) {
	f := start(t, Options{Servers: []string{"127.0.0.1:1"}})
	if _, err := f.LookupTXT(t.Context(), "no name"); kindOf(err) != "not found" {
		t.Errorf("got %v", err)
	}
	if got := f.observed(); got != nil {
		t.Errorf("observed %q", got)
	}
}

func TestMisbehaviour(t *testing.T) {
	const name = "a.test"
	for what, tt := range map[string]struct {
		behaviour demo.Behaviour
		timeout   time.Duration
		kind      string
		observed  string
		udp, tcp  int
	}{
		"servfail":        {demo.Behaviour{Rcode: dns.RcodeServerFailure}, 0, "temporary", "A servfail", 1, 0},
		"refused":         {demo.Behaviour{Rcode: dns.RcodeRefused}, 0, "temporary", "A servfail", 1, 0},
		"silent":          {demo.Behaviour{Drop: true}, 200 * time.Millisecond, "timeout", "A timeout", 2, 0},
		"one packet lost": {demo.Behaviour{DropNext: 1}, 500 * time.Millisecond, "ok", "A ok", 2, 0},
		"truncated":       {demo.Behaviour{Truncate: true}, 0, "ok", "A ok", 1, 1},
		"forgeries first": {demo.Behaviour{Forge: true}, 0, "ok", "A ok", 1, 0},
		"forgeries only":  {demo.Behaviour{Forge: true, Drop: true}, 200 * time.Millisecond, "timeout", "A timeout", 2, 0},
		"late":            {demo.Behaviour{Delay: time.Hour}, 200 * time.Millisecond, "timeout", "A timeout", 2, 0},
	} {
		t.Run(what, func(t *testing.T) {
			f := start(t, Options{Timeout: tt.timeout})
			f.Behave(name, tt.behaviour)
			addrs, err := f.LookupNetIP(t.Context(), "ip4", name)
			if kindOf(err) != tt.kind {
				t.Errorf("got %v, %v; want %s", addrs, err, tt.kind)
			}
			if want := 2; err == nil && (len(addrs) != want || addrs[0] == netip.MustParseAddr(demo.Forged)) {
				t.Errorf("got %v", addrs)
			}
			if diff := cmp.Diff([]string{tt.observed}, f.observed()); diff != "" {
				t.Error(diff)
			}
			if u, c := f.Asked(name, "udp"), f.Asked(name, "tcp"); u != tt.udp || c != tt.tcp {
				t.Errorf("asked %d times over UDP, %d over TCP; want %d, %d", u, c, tt.udp, tt.tcp)
			}
		})
	}
}

// An RRset beyond 1,232 octets comes truncated, for real.
func TestLargeAnswer(t *testing.T) {
	var records []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("large.test. 60 IN A 198.51.100.%d", i))
	}
	f := start(t, Options{}, records...)
	addrs, err := f.LookupNetIP(t.Context(), "ip4", "large.test")
	if err != nil || len(addrs) != 200 || f.Asked("large.test", "tcp") != 1 {
		t.Errorf("got %d addresses, %v, %d over TCP", len(addrs), err, f.Asked("large.test", "tcp"))
	}
}

// A response beyond what we read is a failure, not a missing name.
func TestEndlessAnswer(t *testing.T) {
	var records []string
	for i := range 80 {
		records = append(records, fmt.Sprintf(`endless.test. 60 IN TXT "%d%s"`, i, strings.Repeat("x", 250)))
	}
	f := start(t, Options{}, records...)
	if _, err := f.LookupTXT(t.Context(), "endless.test"); kindOf(err) != "temporary" {
		t.Errorf("got %v", err)
	}
}

func TestOtherServer(t *testing.T) {
	other, err := demo.StartDNS(zone...)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f := start(t, Options{Timeout: 50 * time.Millisecond})
	f.servers = append(f.servers, other.Addr())
	for _, b := range []demo.Behaviour{{Rcode: dns.RcodeServerFailure}, {Drop: true}} {
		f.Behave("a.test", b)
		f.advance(time.Hour)
		if _, err := f.LookupNetIP(t.Context(), "ip4", "a.test"); err != nil {
			t.Errorf("%+v: %v", b, err)
		}
	}
	if n := other.Asked("a.test", "udp"); n != 2 {
		t.Errorf("the other server was asked %d times", n)
	}
	f.advance(time.Hour)
	n := f.Asked("b.test", "udp")
	f.LookupNetIP(t.Context(), "ip4", "b.test")
	if f.Asked("b.test", "udp") != n {
		t.Error("the server that failed was asked first again")
	}
	other.Behave("a.test", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	f.Behave("a.test", demo.Behaviour{Rcode: dns.RcodeRefused})
	if _, err := f.LookupNetIP(t.Context(), "ip6", "a.test"); kindOf(err) != "temporary" {
		t.Errorf("both fail: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close() // the port answers by ICMP now
	f := start(t, Options{Servers: []string{pc.LocalAddr().String()}})
	if _, err := f.LookupMX(t.Context(), "a.test"); kindOf(err) != "temporary" {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"MX error"}, f.observed()); diff != "" {
		t.Error(diff)
	}
}

func TestCache(t *testing.T) {
	for what, tt := range map[string]struct {
		name      string
		behaviour demo.Behaviour
		kept      time.Duration // still cached just before; 0 for not at all
	}{
		"least TTL of the set": {"a.test", demo.Behaviour{}, 200 * time.Second},
		"TTL of the alias":     {"alias.test", demo.Behaviour{}, 10 * time.Second},
		"no TTL":               {"zero.test", demo.Behaviour{}, 0},
		"TTL capped":           {"week.test", demo.Behaviour{}, maxTTL},
		"nxdomain":             {"no.test", demo.Behaviour{}, 60 * time.Second},
		"nodata":               {"txt.test", demo.Behaviour{}, 60 * time.Second},
		"nxdomain without SOA": {"no.example", demo.Behaviour{}, 0},
		"servfail":             {"servfail.test", demo.Behaviour{Rcode: dns.RcodeServerFailure}, failureTTL},
	} {
		t.Run(what, func(t *testing.T) {
			f := start(t, Options{})
			f.Behave(tt.name, tt.behaviour)
			look := func() string {
				_, err := f.LookupNetIP(t.Context(), "ip4", tt.name)
				return kindOf(err)
			}
			first := look()
			if tt.kept > 0 {
				f.advance(tt.kept - 500*time.Millisecond)
				if again := look(); again != first || f.Asked(tt.name, "udp") != 1 {
					t.Errorf("cached: got %s after %s, asked %d times", again, first, f.Asked(tt.name, "udp"))
				}
				f.advance(time.Second)
			}
			if again := look(); again != first || f.Asked(tt.name, "udp") != 2 {
				t.Errorf("expired: got %s after %s, asked %d times", again, first, f.Asked(tt.name, "udp"))
			}
		})
	}
}

// A context that has ended still gets what is in the cache, and asks nobody.
func TestEndedContext(t *testing.T) {
	f := start(t, Options{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.LookupNetIP(ended, "ip4", "a.test"); kindOf(err) != "temporary" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := f.Asked("a.test", "udp"); n != 0 {
		t.Errorf("asked %d times", n)
	}
	if _, err := f.LookupNetIP(t.Context(), "ip4", "a.test"); err != nil {
		t.Fatal(err)
	}
	if addrs, err := f.LookupNetIP(ended, "ip4", "a.test"); err != nil || len(addrs) != 2 {
		t.Errorf("got %v, %v", addrs, err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(100)
	now := time.Now()
	hot := question{"hot.", 1}
	for i := range 10000 {
		c.put(question{fmt.Sprint(i), 1}, answer{ttl: time.Hour}, now)
		if i == 0 {
			c.put(hot, answer{ttl: time.Hour}, now)
		}
		if _, ok := c.get(hot, now); !ok {
			t.Fatalf("what was asked for lately went, at %d", i)
		}
		if n := len(c.young) + len(c.old); n > 100 {
			t.Fatalf("%d entries", n)
		}
	}
	c.put(question{"large.", 1}, answer{ttl: time.Hour, txts: []string{strings.Repeat("x", maxEntry)}}, now)
	if _, ok := c.get(question{"large.", 1}, now); ok {
		t.Error("kept an entry beyond the bound")
	}
}

// What is asked by many at once is asked once.
func TestJoin(t *testing.T) {
	f := start(t, Options{})
	f.Behave("a.test", demo.Behaviour{Delay: 50 * time.Millisecond})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if addrs, err := f.LookupNetIP(t.Context(), "ip4", "a.test"); err != nil || len(addrs) != 2 {
				t.Errorf("got %v, %v", addrs, err)
			}
		})
	}
	wg.Wait()
	if n := f.Asked("a.test", "udp"); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if n := len(f.observed()); n != 50 {
		t.Errorf("observed %d look-ups", n)
	}
}

// A caller who gives up neither spoils it for others nor leaves anything
// running; goleak looks for the rest.
func TestGiveUp(t *testing.T) {
	f := start(t, Options{Timeout: time.Hour})
	f.Behave("a.test", demo.Behaviour{Drop: true})
	patient, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := f.LookupNetIP(patient, "ip4", "a.test")
		ended <- err
	}()
	hurried, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := f.LookupNetIP(hurried, "ip4", "a.test")
	if kindOf(err) != "timeout" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the other caller got %v", err)
	default:
	}
	stop()
	if err := <-ended; kindOf(err) != "temporary" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := len(f.flights); n != 0 {
		t.Errorf("%d flights left", n)
	}
	f.Behave("a.test", demo.Behaviour{})
	if _, err := f.LookupNetIP(t.Context(), "ip4", "a.test"); err != nil {
		t.Errorf("the failure of those who gave up was kept: %v", err)
	}
}

// flagged starts a server that gives every question the same answer, and counts
// them.
func flagged(t *testing.T, answer dns.Msg) (addr string, asked *atomic.Int32) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int32)
	started, ended := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			asked.Add(1)
			m := answer.Copy()
			m.Id, m.Response, m.Question = q.Id, true, q.Question
			w.WriteMsg(m)
		})}
	go func() { defer close(ended); s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { s.Shutdown(); <-ended })
	return pc.LocalAddr().String(), asked
}

// A server that neither knows nor recurses has not said that there is nothing,
// whatever its code: another is asked, and without one it is a failure.
func TestLame(t *testing.T) {
	cname := &dns.CNAME{Hdr: dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: "gone.test."}
	for _, test := range []struct {
		name   string
		answer dns.Msg
		want   string // alone
		lame   bool
	}{
		{"nothing", dns.Msg{}, "temporary", true},
		{"nothing, authoritative", dns.Msg{MsgHdr: dns.MsgHdr{Authoritative: true}}, "not found", false},
		{"nothing, recursive", dns.Msg{MsgHdr: dns.MsgHdr{RecursionAvailable: true}}, "not found", false},
		{"NXDOMAIN", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}}, "temporary", true},
		{"NXDOMAIN behind an alias", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}, Answer: []dns.RR{cname}}, "temporary", true},
		{"NXDOMAIN, authoritative", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError, Authoritative: true}}, "not found", false},
		{"NXDOMAIN, recursive", dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError, RecursionAvailable: true}}, "not found", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			first, asked := flagged(t, test.answer)
			alone := New(Options{Servers: []string{first}})
			if _, err := alone.LookupNetIP(t.Context(), "ip4", "a.test"); kindOf(err) != test.want {
				t.Errorf("alone: got %v, want %s", err, test.want)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
			second := start(t, Options{})
			both := New(Options{Servers: []string{first, second.Addr()}})
			addrs, err := both.LookupNetIP(t.Context(), "ip4", "a.test")
			if known := len(addrs) == 2 && err == nil; known != test.lame {
				t.Errorf("with another server: got %v, %v", addrs, err)
			}
		})
	}
}

// A server that stops in the middle of a chain is asked for the rest.
func TestUnfinishedChain(t *testing.T) {
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("n%d.test.", i))
	}
	s := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		var i int
		fmt.Sscanf(q.Question[0].Name, "n%d.", &i)
		rr, _ := dns.NewRR(names[i] + " 60 IN A 192.0.2.1")
		if i > 0 {
			rr, _ = dns.NewRR(names[i] + " 60 IN CNAME " + names[i-1])
		}
		m.Answer = []dns.RR{rr}
		w.WriteMsg(m)
	})}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	s.PacketConn, s.NotifyStartedFunc = pc, func() { close(started) }
	ended := make(chan struct{})
	go func() { defer close(ended); s.ActivateAndServe() }()
	<-started
	defer func() { s.Shutdown(); <-ended }()
	r := New(Options{Servers: []string{pc.LocalAddr().String()}})
	if _, err := r.LookupNetIP(t.Context(), "ip4", "n8.test"); err != nil {
		t.Errorf("8 steps: %v", err)
	}
	if _, err := r.LookupNetIP(t.Context(), "ip4", "n9.test"); kindOf(err) != "temporary" {
		t.Errorf("9 steps: %v", err)
	}
}

func TestServerAddresses(t *testing.T) {
	got := serverAddresses([]string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:5353", "[2001:db8::1]"})
	want := []string{"192.0.2.1:53", "192.0.2.1:5353", "[2001:db8::1]:53", "[2001:db8::1]:5353", "[2001:db8::1]:53"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if r := New(Options{}); len(r.servers) == 0 {
		t.Error("no server by default")
	}
}

// FuzzResponse feeds a server's octets to all that reads them.
func FuzzResponse(f *testing.F) {
	query := new(dns.Msg)
	query.SetQuestion("a.test.", dns.TypeTXT)
	query.Id = 4711
	for _, r := range append(zone, "a.test. 60 IN TXT \"\\\\\\\"\\000\\255\"", "a.test. 1 IN CNAME a.test.") {
		rr, err := dns.NewRR(r)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg)
		m.SetReply(query)
		m.Answer, m.Ns = []dns.RR{rr}, []dns.RR{rr}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := response(b, query)
		if err == nil && (m.Id != 4711 || !strings.EqualFold(m.Question[0].Name, "a.test.")) {
			t.Fatalf("took %v", m)
		}
		if m == nil {
			return
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypePTR, dns.TypeTXT, dns.TypeNS} {
			c := chain{qtype: qtype, name: "a.test.", ttl: maxTTL}
			a := c.follow(m)
			if a.ttl < 0 || a.ttl > maxTTL || c.steps > maxChain+1 {
				t.Fatalf("%+v %+v", a, c)
			}
			for _, h := range a.hosts {
				if strings.Trim(h.name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
					t.Fatalf("host name %q", h.name)
				}
			}
			_ = a.err("a.test")
		}
	})
}

// FuzzUnescape sends strings the way they come: the library's unpacking first.
func FuzzUnescape(f *testing.F) {
	f.Add([]byte("v=spf1 -all"))
	f.Add([]byte("\\\"\x00\xff\\123"))
	f.Fuzz(func(t *testing.T, s []byte) {
		if len(s) > 255 {
			return
		}
		wire := append([]byte{0, 0, 16, 0, 1, 0, 0, 0, 0, 0, byte(len(s) + 1), byte(len(s))}, s...)
		wire[9], wire[10] = byte((len(s)+1)>>8), byte(len(s)+1)
		rr, _, err := dns.UnpackRR(wire, 0)
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		a.add(rr)
		if len(a.txts) != 1 || a.txts[0] != string(s) {
			t.Errorf("got %q, want %q", a.txts, s)
		}
	})
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"", ".", "a.test", "A.test.", `x'"\@;()$.test`, "a..b", strings.Repeat("a.", 127)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := canonical(s)
		if !ok {
			return
		}
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		m.Response = true
		b[2] |= 0x80
		if _, err := response(b, m); err != nil {
			t.Errorf("%q doesn't come back as it went: %v", name, err)
		}
	})
}
