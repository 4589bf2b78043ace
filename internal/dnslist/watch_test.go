package dnslist

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

const zone = "zen.list.example"

// The records of a list in each state.
var records = map[State][]string{
	OK:       {"2.0.0.127." + zone + ". 60 IN A 127.0.0.2"},
	Untested: {zone + ". 60 IN NS ns.example."},
	ListsAll: {"2.0.0.127." + zone + ". 60 IN A 203.0.113.9", "1.0.0.127." + zone + ". 60 IN A 203.0.113.9"},
	Refuses:  {"2.0.0.127." + zone + ". 60 IN A 127.255.255.254"},
	Silent:   nil,
}

func serve(t *testing.T, s State, more ...string) *resolver.Resolver {
	t.Helper()
	d, err := demo.StartDNS(append(more, records[s]...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	if s == Silent {
		d.Behave("2.0.0.127."+zone+".", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	return resolver.New(resolver.Options{Servers: []string{d.Addr()}, CacheSize: 1})
}

func TestAsk(t *testing.T) {
	addresses, names := policy.DNSList{Zone: zone, Addresses: true}, policy.DNSList{Zone: zone, Names: true}
	a := func(name, addr string) string { return name + "." + zone + ". 60 IN A " + addr }
	for name, tt := range map[string]struct {
		list    policy.DNSList
		records []string
		want    State
	}{
		"well":                           {addresses, []string{a("2.0.0.127", "127.0.0.2"), a("2.0.0.127", "127.0.0.4")}, OK},
		"an allowlist's codes":           {addresses, []string{a("2.0.0.127", "127.0.10.0")}, OK},
		"nobody":                         {addresses, []string{a("9.9.9.9", "127.0.0.2")}, Untested},
		"everybody":                      {addresses, []string{a("2.0.0.127", "127.0.0.2"), a("1.0.0.127", "127.0.0.2")}, ListsAll},
		"everybody but the test entry":   {addresses, []string{a("1.0.0.127", "127.0.0.2")}, ListsAll},
		"a parked domain":                {addresses, records[ListsAll], ListsAll},
		"refused":                        {addresses, records[Refuses], Refuses},
		"refused for the other alone":    {addresses, []string{a("2.0.0.127", "127.0.0.2"), a("1.0.0.127", "127.255.255.252")}, Refuses},
		"refused as URIBL does":          {names, []string{a("test", "127.0.0.1"), a("invalid", "127.0.0.1")}, Refuses},
		"refused as dnswl.org does":      {addresses, []string{a("2.0.0.127", "127.0.0.255")}, Refuses},
		"a list of names isn't asked so": {names, []string{a("1.0.0.127", "127.0.0.2"), a("test", "127.0.1.2")}, OK},
		"names, Spamhaus's entry":        {names, []string{a("dbltest.com", "127.0.1.2")}, OK},
		"names, all":                     {names, []string{a("test", "127.0.1.2"), a("invalid", "127.0.1.2")}, ListsAll},
		"names, none":                    {names, []string{a("example.com", "127.0.1.2")}, Untested},
		"an address list's names":        {addresses, []string{a("test", "127.0.1.2")}, Untested},
		"both, by name":                  {policy.DNSList{Zone: zone, Addresses: true, Names: true}, []string{a("test", "127.0.1.2")}, OK},
		"both, all addresses":            {policy.DNSList{Zone: zone, Addresses: true, Names: true}, []string{a("test", "127.0.1.2"), a("1.0.0.127", "127.0.0.2")}, ListsAll},
		"unknown, asked for everything":  {policy.DNSList{Zone: zone}, []string{a("test", "127.0.1.2")}, OK},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := demo.StartDNS(tt.records...)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p := Ask(t.Context(), resolver.New(resolver.Options{Servers: []string{d.Addr()}}), tt.list)
			if p.State != tt.want || len(p.Answers) == 0 {
				t.Errorf("got %s, want %s: %+v", p.State, tt.want, p.Answers)
			}
		})
	}
	if p := Ask(t.Context(), serve(t, Silent), addresses); p.State != Silent || !strings.HasPrefix(p.Answers[0].Got, "no answer: ") {
		t.Errorf("silent: got %+v", p)
	}
}

// bench is a Watch whose list, time and primary the test moves.
type bench struct {
	*Watch
	log bytes.Buffer
	reg *prometheus.Registry
	m   *metrics.Metrics
	now time.Time
}

func newBench(t *testing.T, rule Rule, file string, theirs State) *bench {
	t.Helper()
	b := &bench{now: time.Now(), reg: prometheus.NewRegistry()}
	b.m = metrics.New(b.reg)
	w, err := New(Options{
		Lists: func() []policy.DNSList { return []policy.DNSList{{Zone: zone, Addresses: true}} },
		Primary: func() []policysync.ListView {
			if theirs == "" {
				return nil
			}
			return []policysync.ListView{{Zone: zone, State: string(theirs), Checked: b.now}}
		},
		Rule: rule, File: file, Log: slog.New(slog.NewTextHandler(&b.log, nil)), Metrics: b.m, now: func() time.Time { return b.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Watch = w
	return b
}

// turn lets the list be in a state, and the watch find out.
func (b *bench) turn(t *testing.T, s State) View {
	t.Helper()
	b.o.Resolver = serve(t, s)
	b.now = b.now.Add(2 * every)
	b.round(t.Context())
	all := b.Views()
	if len(all) != 1 {
		t.Fatalf("got %d views, want 1", len(all))
	}
	return all[0]
}

// TestRule: what is set aside, by our view and the primary's.
func TestRule(t *testing.T) {
	for _, tt := range []struct {
		rule   Rule
		ours   State
		theirs State // "": not known
		alive  bool  // ours was seen well before
		state  State
		aside  bool
	}{
		{AsPrimary, OK, "", false, OK, false},
		{AsPrimary, ListsAll, "", false, ListsAll, true},
		{AsPrimary, ListsAll, OK, false, ListsAll, true},
		{AsPrimary, ListsAll, ListsAll, false, ListsAll, false}, // the primary refuses everybody
		{AsPrimary, ListsAll, Refuses, false, ListsAll, true},
		{AsPrimary, Refuses, "", false, Refuses, true},
		{AsPrimary, Refuses, OK, false, Refuses, true},
		{AsPrimary, Refuses, Refuses, false, Refuses, false},
		{AsPrimary, Untested, "", false, Untested, false}, // a private list without a test entry
		{AsPrimary, Untested, Untested, false, Untested, false},
		{AsPrimary, Untested, OK, false, Dead, true}, // its answers don't reach us
		{AsPrimary, Untested, "", true, Dead, true},
		{AsPrimary, Untested, Dead, true, Dead, false},
		{AsPrimary, Silent, OK, true, Silent, false},
		{SetAside, ListsAll, ListsAll, false, ListsAll, true},
		{SetAside, OK, ListsAll, false, OK, false},
		{Count, ListsAll, OK, false, ListsAll, false},
		{Count, Refuses, "", false, Refuses, false},
	} {
		t.Run(fmt.Sprintf("%s, %s here, %s there, alive %v", tt.rule, tt.ours, tt.theirs, tt.alive), func(t *testing.T) {
			b := newBench(t, tt.rule, "", tt.theirs)
			if tt.alive {
				b.turn(t, OK)
			}
			b.turn(t, tt.ours)
			v := b.turn(t, tt.ours) // the primary's view is known by now
			if v.State != string(tt.state) || v.Aside != tt.aside {
				t.Errorf("got %s, set aside %v; want %s, %v", v.State, v.Aside, tt.state, tt.aside)
			}
			want := 0
			if tt.aside {
				want = 1
			}
			if got := testutil.ToFloat64(b.m.DNSListsAside); int(got) != want {
				t.Errorf("metric: %v are set aside, want %d", got, want)
			}
			if got := testutil.ToFloat64(b.m.DNSLists.WithLabelValues(string(tt.state))); got != 1 {
				t.Errorf("metric: %v are %s, want 1", got, tt.state)
			}
			if got := strings.Count(b.log.String(), "is set aside"); got > 1 || got < want {
				t.Errorf("the log says so %d times:\n%s", got, b.log.String())
			}
		})
	}
}

// TestBack: a list that is well again counts again, at once; a restart doesn't
// forget what it knew; an old word of the primary's is none.
func TestBack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "dnsbl.json")
	b := newBench(t, AsPrimary, name, "")
	b.turn(t, OK)
	if v := b.turn(t, Untested); !v.Aside || v.State != string(Dead) {
		t.Fatalf("a list that has died: %+v", v)
	}
	b = newBench(t, AsPrimary, name, "")
	if _, aside := b.isAside("1.2.3.4." + zone); !aside {
		t.Error("after a restart the dead list counts")
	}
	if v := b.turn(t, OK); v.Aside || !strings.Contains(b.log.String(), "counts again") {
		t.Errorf("well again: %+v\n%s", v, b.log.String())
	}

	b = newBench(t, AsPrimary, "", ListsAll)
	b.turn(t, ListsAll)
	if v := b.turn(t, ListsAll); v.Aside {
		t.Fatalf("the primary sees the same: %+v", v)
	}
	b.o.Primary = nil
	b.now = b.now.Add(aged)
	if v := b.turn(t, ListsAll); !v.Aside {
		t.Errorf("the primary's word is %v old: %+v", aged, v)
	}
}

// TestOneOddAnswer sets nothing aside.
func TestOneOddAnswer(t *testing.T) {
	b := newBench(t, AsPrimary, "", "")
	b.turn(t, OK)
	odd, good := serve(t, Refuses), serve(t, OK)
	b.o.Resolver = &inTurn{[]Resolver{odd, good}}
	b.now = b.now.Add(2 * every)
	b.round(t.Context())
	if v := b.Views()[0]; v.State != string(OK) || v.Aside {
		t.Errorf("got %+v", v)
	}
}

// TestThrough judges clients through lists in each state, as a session does.
func TestThrough(t *testing.T) {
	spec := policy.NewSpec()
	spec.Addresses.Relay = policy.AddressClass{Domains: []string{"example.org"}}
	clients := []string{
		"4.113.0.203." + zone + ". 60 IN A 127.0.0.2", // listed, if the list is to be believed
	}
	for _, tt := range []struct {
		restrictions string
		state        State
		client       string
		code         int // 0: let in
	}{
		{"reject_rbl_client", OK, "203.0.113.4", 554},
		{"reject_rbl_client", OK, "203.0.113.5", 0},
		{"reject_rbl_client", ListsAll, "203.0.113.4", 0},
		{"reject_rbl_client", Refuses, "203.0.113.4", 0},
		{"reject_rbl_client", Dead, "203.0.113.4", 554}, // what it does list still counts
		{"reject_rbl_client", Dead, "203.0.113.5", 0},
		{"permit_dnswl_client reject", OK, "203.0.113.4", 0},
		{"permit_dnswl_client reject", OK, "203.0.113.5", 554},
		{"permit_dnswl_client reject", ListsAll, "203.0.113.5", 450},
		{"permit_dnswl_client reject", Dead, "203.0.113.5", 450},
	} {
		t.Run(fmt.Sprint(tt.restrictions, " ", tt.state, " ", tt.client), func(t *testing.T) {
			s := *spec
			s.Restrictions.Client = nil
			for kind := range strings.FieldsSeq(tt.restrictions) {
				r := policy.Restriction{Kind: kind}
				if kind != "reject" {
					r.Arg = zone
				}
				s.Restrictions.Client = append(s.Restrictions.Client, r)
			}
			s.DelayReject = false
			snap, err := policy.Compile(&s)
			if err != nil {
				t.Fatal(err)
			}
			w := &Watch{}
			if tt.state != OK {
				w.aside.Store(&map[string]State{zone: tt.state})
			}
			session := snap.Session(w.Through(serve(t, OK, clients...)), envelope.Client{Addr: netip.MustParseAddr(tt.client)})
			defer session.Close()
			v := session.Connect(t.Context())
			if got := v.Reply.Code; got != tt.code && !(tt.code == 0 && v.Action == policy.Permit) {
				t.Errorf("got %+v, want %d", v, tt.code)
			}
		})
	}
}

// inTurn asks one resolver for each probe, by the first question of one.
type inTurn struct{ next []Resolver }

func (r *inTurn) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	now := r.next[0]
	addrs, err := now.LookupNetIP(ctx, network, host)
	if len(r.next) > 1 {
		r.next = r.next[1:]
	}
	return addrs, err
}
