package postfix_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/policy/table"
)

// grey is an envelope of a message that rspamd greylists.
type grey struct {
	client, sender string
	rcpts          []string
}

// scan has an rspamd judge a message with it.
func (g grey) scan(t *testing.T, addr string) milter.Answer {
	t.Helper()
	wait := 20 * time.Second
	c := &milter.Client{Settings: milter.Settings{Version: 6, Default: "tempfail", Connecting: wait, Command: wait, Content: wait, Macros: &milter.Macros{}},
		Dial:   func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) },
		Macro:  func(string) (string, bool) { return "", false },
		Failed: func(err error) { t.Errorf("%v: %v", g, err) }}
	defer c.Close()
	ctx := t.Context()
	c.Connect(ctx, "mail.example.net", netip.MustParseAddr(g.client), 1025)
	c.Helo(ctx, "mail.example.net")
	c.Mail(ctx, []string{"<" + g.sender + ">"})
	for _, r := range g.rcpts {
		c.Rcpt(ctx, []string{"<" + r + ">"})
	}
	c.Data(ctx)
	a, err := c.Message(ctx, strings.NewReader("From: <x@example.net>\r\nSubject: grey\r\nMessage-ID: <"+g.client+g.sender+strings.Join(g.rcpts, "")+">\r\n\r\nbody of "+g.sender+g.client+strings.Join(g.rcpts, "")+"\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// decide is what a policy says, where a filter of ours stands for rspamd that puts
// everybody off in these words; with "" none does.
func (g grey) decide(t *testing.T, snap *policy.Snapshot, says string) string {
	t.Helper()
	ctx := t.Context()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr(g.client)})
	defer s.Close()
	s.StandIns(func(*policy.MilterUse) bool { return says != "" })
	box := func(a string) envelope.Mailbox {
		at := strings.LastIndexByte(a, '@')
		return envelope.Mailbox{Local: a[:max(at, 0)], Domain: a[at+1:]}
	}
	s.Connect(ctx)
	s.Helo(ctx, "mail.example.net")
	s.Mail(ctx, envelope.ReversePath{Mailbox: box(g.sender)}, policy.MailParams{})
	for _, r := range g.rcpts {
		if v := s.Rcpt(ctx, envelope.ForwardPath{Mailbox: box(r)}); v.Action != policy.Permit {
			t.Fatalf("%v: RCPT %s: %v", g, r, v.Reply)
		}
	}
	v := s.Data(ctx)
	if v.Action == policy.Permit {
		v = s.Message(ctx, policy.Message{Size: 100, Ask: func(context.Context, int) policy.Verdict {
			return policy.Verdict{Action: policy.Defer, Reply: envelope.Reply{Code: 451, Enhanced: "4.7.1", Text: says}}
		}})
	}
	if v.Action == policy.Permit {
		return "permit"
	}
	return v.Reply.String()
}

// TestRspamdGreylist: whom a real rspamd has let in is known by the same keys as in its
// Redis, and isn't put off: neither because of the choice for the milter, nor by an rspamd of the
// secondary. Whom it only has put off is.
func TestRspamdGreylist(t *testing.T) {
	addr, redis := testmx.FreeAddr(), testmx.FreeAddr()
	conf := testmx.StartGreylisting(t, addr, redis, "a word")
	let := []grey{
		{"192.0.2.77", "bob@sender.example", []string{"alice@example.org"}},
		{"2001:db8:1:2:3::4", "bob@sender.example", []string{"alice@example.org"}},
		{"192.0.2.78", "bob@sender.example", []string{"carol@example.org", "alice@example.org", "bob@example.org"}},
		{"192.0.2.79", "", []string{"alice@example.org"}},
		{"192.0.2.80", "Bob.B@Sender.EXAMPLE", []string{"ALICE@Example.ORG", "bob@example.org"}},
		{"192.0.2.81", "bob@twice.example", []string{"alice@example.org", "alice@example.org"}},
	}
	stranger := grey{"198.51.100.7", "bob@sender.example", []string{"alice@example.org"}}
	for _, g := range append(slices.Clone(let), stranger) {
		if a := g.scan(t, addr); a.Reply.String() != "451 4.7.1 Try again later" {
			t.Fatalf("rspamd about %v at first: %v", g, a)
		}
	}
	timer := time.NewTimer(2 * time.Second) // its timeout
	src := install(t, map[string]string{"main.cf": base + "relay_domains = example.org\nrelay_recipient_maps =\nsmtpd_milters = inet:" + addr + "\n"})
	src.Root = ""
	src.Filters = []string{"inet:" + addr + "=rspamd:" + conf}
	item := "smtpd_milters: inet:" + addr
	imported := func(choice string) (*policy.Spec, *policy.Snapshot, string) {
		t.Helper()
		src.Choices = fidelity.Choices{item: choice}
		spec, report, err := postfix.Import(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range report.Items {
			if it.ID() == item {
				return spec, snap, it.Why
			}
		}
		t.Fatal("the milter isn't in the report")
		return nil, nil, ""
	}
	spec, _, why := imported(fidelity.Defer)
	if !strings.HasSuffix(why, "; whom its greylisting has let in is known") {
		t.Errorf("report: %s", why)
	}
	g := spec.Filters.Milters[0].Greylist
	if g == nil {
		t.FailNow()
	}
	if n := spec.Tables[g.Known].Len(); n != 0 {
		t.Errorf("%d envelopes are known when nobody was let in", n)
	}
	<-timer.C
	var want []string
	for _, e := range let {
		if a := e.scan(t, addr); a.Action != milter.Continue {
			t.Fatalf("rspamd about %v after its timeout: %v", e, a)
		}
		want = append(want, g.Key(netip.MustParseAddr(e.client), e.sender, e.rcpts))
	}
	want = append(want, g.Key(netip.MustParseAddr(stranger.client), stranger.sender, stranger.rcpts))
	var got []string
	r := lister.Redis{Address: redis, Password: "a word"}
	if err := r.List(t.Context(), "rgm*", func(key, _ string, _ time.Duration) error {
		got = append(got, key)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("keys in Redis %q, computed %q", got, want)
	}

	spec, deferring, _ := imported(fidelity.Defer)
	known, err := spec.Tables[g.Known].Hashed(&table.Secret{1}, false, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables[g.Known] = known
	hashed, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	_, ignoring, _ := imported(fidelity.Ignore)
	for _, e := range let {
		if said := e.decide(t, deferring, ""); said != "permit" {
			t.Errorf("%v, without a filter: %s", e, said)
		}
		if said := e.decide(t, hashed, ""); said != "permit" {
			t.Errorf("%v, by keyed hashes: %s", e, said)
		}
		if said := e.decide(t, ignoring, "Try again later"); said != "permit" {
			t.Errorf("%v, greylisted by our rspamd: %s", e, said)
		}
		if said := e.decide(t, ignoring, "Try again in an hour"); said != "451 4.7.1 Try again in an hour" {
			t.Errorf("%v, put off for something else: %s", e, said)
		}
	}
	for _, e := range []grey{stranger, {"192.0.2.77", "bob@sender.example", []string{"bob@example.org"}}, {"192.0.2.77", "eve@sender.example", []string{"alice@example.org"}}} {
		if said := e.decide(t, deferring, ""); !strings.HasPrefix(said, "450 4.7.0 ") {
			t.Errorf("%v, without a filter: %s", e, said)
		}
		if said := e.decide(t, ignoring, "Try again later"); said != "451 4.7.1 Try again later" {
			t.Errorf("%v, greylisted by our rspamd: %s", e, said)
		}
	}
}
