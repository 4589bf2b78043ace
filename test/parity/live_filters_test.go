package parity

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/relay"
)

// newPlainPair is a primary that takes mail for here.test, with these lines in its
// main.cf and services in its master.cf, and our door before it.
func newPlainPair(t *testing.T, d *demo.DNS, main string, master func(addr string) string, way relay.Route) *livePair {
	t.Helper()
	p := &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	run := filepath.Join(p.dir, "run")
	for _, dir := range []string{"run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const base = "relay_domains = here.test\nrelay_recipient_maps = inline:{alice@here.test=x bob@here.test=x}\nmydestination =\nlocal_recipient_maps =\n" +
		"smtpd_client_event_limit_exceptions = static:all\n"
	writeOld(t, filepath.Join(run, "main.cf"), testmx.Override(decisionsBase+base+fmt.Sprintf(testOnly, p.dir), main))
	writeOld(t, filepath.Join(run, "master.cf"), master(p.addr))
	spec, _, err := postfix.Import(t.Context(), postfix.Source{ConfigDir: run, Service: p.addr})
	if err != nil {
		t.Fatal(err)
	}
	p.start(d.Addr())
	l := &livePair{primary: p, primaryAs: p.dial, replies: map[string]int{}, hostname: "mx.example.org"}
	way.Name, way.Address, way.Live, way.MaxLive = "primary", p.addr, true, 4*parallel
	l.serve(t, spec, d.Addr(), way)
	return l
}

func smtpdAlone(addr string) string { return fmt.Sprintf(testmx.MasterCF, addr) }

// mailFrom is a session with one message.
func mailFrom(client, sender string, to []string, text string) parity.Session {
	c := []parity.Command{{Line: "EHLO mail.good.example"}, {Line: "MAIL FROM:<" + sender + ">"}}
	for _, one := range to {
		c = append(c, parity.Command{Line: "RCPT TO:<" + one + ">"})
	}
	return parity.Session{Client: parity.Client{Addr: netip.MustParseAddr(client), Name: "mail.good.example", Reverse: "mail.good.example"}, Commands: append(c, parity.Command{Line: "DATA", Message: text})}
}

// TestLiveRspamd: Debian's rspamd refuses GTUBE through us as it does itself.
func TestLiveRspamd(t *testing.T) {
	d := startWorld(t)
	rspamd := testmx.FreeAddr()
	testmx.StartRspamd(t, rspamd)
	l := newPlainPair(t, d, "smtpd_milters = inet:"+rspamd+"\nmilter_default_action = tempfail\n", smtpdAlone, relay.Route{XClient: true})
	l.compare(t, number(t, "SESSIONS", liveSessions), func(i int) parity.Session {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		text := fmt.Sprintf("From: <bob@good.example>\r\nTo: alice@here.test\r\nDate: %s\r\nMessage-ID: <%d@good.example>\r\nSubject: hello\r\n\r\nHello, %d.\r\n", time.Now().Format(time.RFC1123Z), i, i)
		if i%3 == 0 {
			text += testmx.GTUBE + "\r\n"
		}
		return mailFrom(fmt.Sprintf("198.18.1.%d", 1+i%200), "bob@good.example", []string{[]string{"alice", "bob", "nobody"}[r.IntN(3)] + "@here.test", "alice@here.test"}, text)
	})
	if l.replies["Gtube"] == 0 || l.replies["queued"] == 0 {
		t.Errorf("replies: %v", l.replies)
	}
}

// TestLivePostgrey: who is greylisted by Debian's postgrey comes again later, and
// is let in, through us as by the primary.
func TestLivePostgrey(t *testing.T) {
	d := startWorld(t)
	l := newPlainPair(t, d, "smtpd_recipient_restrictions = check_policy_service inet:"+startPostgrey(t, 1)+"\n", smtpdAlone, relay.Route{XClient: true})
	now := mailFrom("198.18.1.1", "bob@good.example", []string{"alice@here.test"}, "Subject: x\r\n\r\nx\r\n")
	last := func(dial parity.Dialer, s parity.Session) string {
		t.Helper()
		all, err := converse(t, dial, s)
		if err != nil {
			t.Fatal(err)
		}
		return all[len(all)-1].reply
	}
	for name, dial := range map[string]parity.Dialer{"through us": l.door, "the primary": l.primaryAs} {
		now.Commands[1].Line = "MAIL FROM:<" + strings.ReplaceAll(name, " ", ".") + "@good.example>"
		if got := last(dial, now); got != "554 5.5.1 Error: no valid recipients" {
			t.Errorf("%s, at first: %s", name, got)
		}
		deadline, got := time.Now().Add(20*time.Second), ""
		for got = last(dial, now); !strings.HasPrefix(got, "250") && time.Now().Before(deadline); got = last(dial, now) {
			<-time.After(300 * time.Millisecond)
		}
		if got != "250 2.0.0 Ok: queued as ID" {
			t.Errorf("%s, later: %s", name, got)
		}
	}
}

// TestLivePostscreen: a primary that hears of clients by PROXY in its postscreen,
// with DNS lists and an access list.
func TestLivePostscreen(t *testing.T) {
	d := startWorld(t)
	for i := range 8 {
		if err := d.Add(fmt.Sprintf("%d.3.18.198.list.example. 300 IN A 127.0.0.2", i)); err != nil {
			t.Fatal(err)
		}
	}
	l := newPlainPair(t, d, `postscreen_upstream_proxy_protocol = haproxy
smtpd_client_restrictions = check_client_access inline:{{198.18.1.7 = 554 5.7.1 not you}}
postscreen_access_list = cidr:{{198.18.4.0/24 reject}}
postscreen_blacklist_action = enforce
postscreen_dnsbl_sites = list.example
postscreen_dnsbl_action = enforce
postscreen_greet_wait = 1s
postscreen_greet_action = enforce
`, func(addr string) string {
		return strings.Replace(fmt.Sprintf(testmx.MasterCF, addr), "- - smtpd\n", "- 1 postscreen\nsmtpd pass - - n - - smtpd\ndnsblog unix - - n - 0 dnsblog\n", 1)
	}, relay.Route{Proxy: true})
	l.byProxy = true
	l.compare(t, number(t, "SESSIONS", liveSessions), func(i int) parity.Session {
		r := rand.New(rand.NewPCG(2, uint64(i)))
		client := fmt.Sprintf("198.18.%d.%d", []int{1, 1, 1, 3, 4}[r.IntN(5)], r.IntN(8))
		to := []string{[]string{"alice", "bob", "nobody"}[r.IntN(3)] + "@here.test", "alice@elsewhere.example", "bob@here.test"}[:1+r.IntN(3)]
		return mailFrom(client, []string{"bob@good.example", "bob@missing.example", ""}[r.IntN(3)], to, fmt.Sprintf("Subject: %d\r\n\r\nx\r\n", i))
	})
	for _, kind := range []string{"blocked using", "queued"} {
		if l.replies[kind] == 0 {
			t.Errorf("no reply had %q: %v", kind, l.replies)
		}
	}
}
