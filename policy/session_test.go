package policy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// manyLists is a policy with n DNS lists, perhaps changed.
func manyLists(t testing.TB, n int, change ...func(*Spec)) *Snapshot {
	t.Helper()
	spec := NewSpec()
	spec.Addresses.VirtualMailbox.Domains = []string{"example.org"}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	for i := range n {
		spec.Restrictions.Client = append(spec.Restrictions.Client, Restriction{"reject_rbl_client", fmt.Sprintf("l%d.example", i)})
	}
	for _, c := range change {
		c(spec)
	}
	s, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	client = envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")}
	from   = envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "joe", Domain: "sender.example"}}
	to     = envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "alice", Domain: "example.org"}}
)

// slowResolver answers after a second, and notes how many wait at once.
type slowResolver struct {
	testmx.MapResolver
	now, most atomic.Int32
}

func (r *slowResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if ctx.Err() != nil {
		return r.MapResolver.LookupNetIP(ctx, network, host)
	}
	n := r.now.Add(1)
	defer r.now.Add(-1)
	for m := r.most.Load(); n > m && !r.most.CompareAndSwap(m, n); m = r.most.Load() {
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, &net.DNSError{Err: ctx.Err().Error(), IsTimeout: true}
	}
	return r.MapResolver.LookupNetIP(ctx, network, host)
}

func TestConnectStartsLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &slowResolver{}
		s := manyLists(t, 20).Session(r, client)
		defer s.Close()
		start := time.Now()
		if v := s.Connect(t.Context()); v.Action != Permit || time.Since(start) != 0 {
			t.Errorf("connect: %v after %v, want permit at once", v.Action, time.Since(start))
		}
		time.Sleep(10 * time.Second) // the client talks
		start = time.Now()
		s.Mail(t.Context(), from, MailParams{})
		if v := s.Rcpt(t.Context(), to); v.Action != Permit {
			t.Errorf("rcpt: %v", v)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("the recipient waited %v although all answers had come", d)
		}
		if most := r.most.Load(); most < 2 || most > maxFanOut {
			t.Errorf("%d look-ups at once, want 2 to %d", most, maxFanOut)
		}
		if n := r.Asked("ip4 1.2.0.192.l7.example"); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

// rememberingResolver answers whatever the ctx, as from a cache.
type rememberingResolver struct{ testmx.MapResolver }

func (r *rememberingResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	return r.MapResolver.LookupNetIP(context.Background(), network, host)
}

func (r *rememberingResolver) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return r.MapResolver.LookupAddr(context.Background(), addr)
}

// TestRememberedAnswers: what the Resolver knows at once needs no goroutine,
// and is asked for once in a session.
func TestRememberedAnswers(t *testing.T) {
	r := &rememberingResolver{testmx.MapResolver{IP: map[string][]string{"1.2.0.192.l0.example": {"127.0.0.2"}}}}
	s := manyLists(t, 2).Session(r, client)
	defer s.Close()
	s.Connect(t.Context())
	if s.lookups.cancel == nil {
		t.Error("the text of l0.example is not remembered, but nobody was sent to ask")
	}
	if s.lookups.session["list 1.2.0.192.l1.example"].done != closed {
		t.Error("an answer that was known at once is waited for")
	}
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Action != Reject {
		t.Errorf("got %v %v, want the client refused", v.Action, v.Reply)
	}
	if n := r.Asked("ip4 1.2.0.192.l1.example"); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	if n := r.Asked("ptr 192.0.2.1"); n != 1 {
		t.Errorf("PTR asked %d times, want once", n)
	}
}

func TestCloseCancelsLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &testmx.MapResolver{Block: make(chan struct{})}
		s := manyLists(t, 20).Session(r, client)
		ctx, cancel := context.WithCancel(t.Context())
		s.Connect(ctx)
		cancel() // the end of a command doesn't end the look-ups
		synctest.Wait()
		if n := r.Asked("ptr 192.0.2.1"); n != 1 {
			t.Errorf("PTR asked %d times", n)
		}
		s.Close() // returns, and the bubble would notice goroutines left over
	})
}

// TestCommandTimesOut: a command that can't wait for the DNS any longer gets
// the verdict of a DNS that failed, and nothing is remembered of it.
func TestCommandTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &testmx.MapResolver{Block: make(chan struct{}), IP: map[string][]string{"sender.example": {"192.0.2.9"}}}
		s := manyLists(t, 0, func(s *Spec) { s.Restrictions.Sender = []Restriction{{Kind: "reject_unknown_sender_domain"}} }).Session(r, client)
		defer s.Close()
		s.Connect(t.Context())
		s.Mail(t.Context(), from, MailParams{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if v := s.Rcpt(ctx, to); v.Action != Defer || v.Reply.Code != 450 {
			t.Errorf("got %v %v, want a deferral", v.Action, v.Reply)
		}
		close(r.Block)
		if v := s.Rcpt(t.Context(), to); v.Action != Permit {
			t.Errorf("got %v %v, want permit once the DNS answers", v.Action, v.Reply)
		}
		if c := s.Client(t.Context()); c.NameStatus != envelope.NameNotFound {
			t.Errorf("name status %v, want the answer that came late", c.NameStatus)
		}
	})
}

func TestClientNames(t *testing.T) {
	r := &testmx.MapResolver{
		PTR: map[string][]string{
			"192.0.2.1": {"Good.Example"}, "192.0.2.2": {"forged.example"}, "192.0.2.3": {"soft.example"},
			"192.0.2.4": {"192.0.2.4"}, "192.0.2.5": {"gone.example"}, "2001:db8::1": {"six.example"},
		},
		IP: map[string][]string{
			"good.example": {"192.0.2.9", "192.0.2.1"}, "forged.example": {"192.0.2.1"}, "six.example": {"2001:db8::1"},
		},
		Fail: []string{"soft.example", "ptr 192.0.2.6"},
	}
	snap := manyLists(t, 0)
	for _, test := range []struct {
		addr, name, reverse string
		status, rstatus     envelope.NameStatus
	}{
		{"192.0.2.1", "Good.Example", "Good.Example", envelope.NameOK, envelope.NameOK},
		{"192.0.2.2", "unknown", "forged.example", envelope.NameForged, envelope.NameOK},
		{"192.0.2.3", "unknown", "soft.example", envelope.NameTemp, envelope.NameOK},
		{"192.0.2.4", "unknown", "unknown", envelope.NameNotFound, envelope.NameNotFound},
		{"192.0.2.5", "unknown", "gone.example", envelope.NameForged, envelope.NameOK},
		{"192.0.2.6", "unknown", "unknown", envelope.NameTemp, envelope.NameTemp},
		{"192.0.2.7", "unknown", "unknown", envelope.NameNotFound, envelope.NameNotFound},
		{"2001:db8::1", "six.example", "six.example", envelope.NameOK, envelope.NameOK},
		{"::ffff:192.0.2.1", "Good.Example", "Good.Example", envelope.NameOK, envelope.NameOK},
	} {
		s := snap.Session(r, envelope.Client{Addr: netip.MustParseAddr(test.addr)})
		s.Connect(t.Context())
		c := s.Client(t.Context())
		s.Close()
		if c.Name != test.name || c.ReverseName != test.reverse || c.NameStatus != test.status || c.ReverseStatus != test.rstatus {
			t.Errorf("%s: got %+v, want %+v", test.addr, c, test)
		}
	}
}

// TestStatedNames: what XCLIENT says of the client is believed, not looked up.
func TestStatedNames(t *testing.T) {
	r := &testmx.MapResolver{}
	c := envelope.Client{Addr: client.Addr, NameStatus: envelope.NameTemp, Helo: "early.example"}
	s := manyLists(t, 0).Session(r, c)
	defer s.Close()
	s.Connect(t.Context())
	got := s.Client(t.Context())
	if got.Name != "unknown" || got.ReverseName != "unknown" || got.ReverseStatus != envelope.NameTemp || got.Helo != "early.example" {
		t.Errorf("got %+v", got)
	}
	if n := r.Asked("ptr 192.0.2.1"); n != 0 {
		t.Errorf("PTR asked %d times, want never", n)
	}
}

// TestSnapshotIsShared lets many sessions use one Snapshot at once.
func TestSnapshotIsShared(t *testing.T) {
	snap := manyLists(t, 3)
	r := &testmx.MapResolver{}
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for range 50 {
				s := snap.Session(r, client)
				s.Connect(t.Context())
				s.Mail(t.Context(), from, MailParams{})
				if v := s.Rcpt(t.Context(), to); v.Action != Permit {
					t.Errorf("got %v", v)
				}
				snap.Digest()
				s.Close()
			}
		})
	}
	wg.Wait()
}

// TestRecursionIsBounded: access tables may call each other without end.
func TestRecursionIsBounded(t *testing.T) {
	spec := NewSpec()
	spec.Classes = map[string][]Restriction{"again": {{"check_client_access", "loop"}}}
	spec.Restrictions.Client = []Restriction{{Kind: "again"}}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Tables = map[string]*table.Table{"loop": table.NewStatic("again")}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Reply.Code != 451 || v.Reply.Enhanced != "4.3.5" {
		t.Errorf("got %v", v.Reply)
	}
}

func TestStringsOfClosedSets(t *testing.T) {
	if got := fmt.Sprint(Permit, Defer, Reject, Discard, Hold, Action(9)); got != "permit defer reject discard hold invalid" {
		t.Error(got)
	}
	if got := fmt.Sprint(Connect, Helo, Mail, Rcpt, Data, EndOfData); got != "connect helo mail rcpt data message" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k] {
			t.Errorf("kind %s twice", k)
		}
		seen[k] = true
	}
}

// TestUnlimited: the limits by client have their own list of networks.
func TestUnlimited(t *testing.T) {
	spec := NewSpec()
	spec.MyNetworks = []string{"192.0.2.0/24"}
	spec.Limits.Client = ClientLimits{Connections: 1, Exceptions: []string{"!198.51.100.1", "198.51.100.0/24", ".example.net"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		client envelope.Client
		want   bool
	}{
		{envelope.Client{Addr: netip.MustParseAddr("198.51.100.2")}, true},
		{envelope.Client{Addr: netip.MustParseAddr("198.51.100.1")}, false},
		{envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")}, false},
		{envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: "mx.example.net"}, true},
	} {
		tt.client.NameStatus = envelope.NameOK
		s := snap.Session(&testmx.MapResolver{}, tt.client)
		if got := s.Unlimited(t.Context()); got != tt.want {
			t.Errorf("Unlimited of %v is %v, want %v", tt.client, got, tt.want)
		}
		s.Close()
	}
	spec.Limits.Client.IPv6Prefix = 129
	if _, err := Compile(spec); err == nil {
		t.Error("a prefix of 129 bits compiles")
	}
}
