package postfix_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

const screenMain = "postscreen_upstream_proxy_protocol = haproxy\npostscreen_cache_map =\npostscreen_greet_wait = 4s\n" +
	"smtpd_client_restrictions =\nsmtpd_helo_restrictions =\nsmtpd_sender_restrictions =\nsmtpd_recipient_restrictions =\n" +
	"postscreen_access_list = permit_mynetworks, inline:{198.51.100.1=permit, 198.51.100.2=reject, {198.51.100.3 = reject, permit}, 198.51.100.4=permit_mynetworks, 198.51.100.5=dunno},\n" +
	" cidr:@DIR@/screen.cidr, regexp:@DIR@/screen.regexp, inline:{198.51.100.77=permit}"

var screenFiles = map[string]string{
	"screen.cidr":   "!198.51.0.0/16 REJECT\n198.51.100.6 Permit\n198.51.100.5 reject\n198.51.100.64/26 dunno\n",
	"screen.regexp": "/\\.7$/ permit\n/\\.8$/ reject\n",
}

var screenClients = []string{
	"192.0.2.5", "203.0.113.5", "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5", "198.51.100.6",
	"198.51.100.7", "198.51.100.8", "198.51.100.9", "198.51.100.70", "198.51.100.77", "10.200.1.1", "10.0.0.66",
}

// TestPostscreenLikePostfix plays clients, patient and early ones, to a real
// postscreen, which gets their addresses by the PROXY protocol. Its DNS lists
// are compared in test/parity.
func TestPostscreenLikePostfix(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("Postfix's master needs root: run the tests as root, as .ci/run does")
	}
	for name, extra := range map[string]string{
		"enforce":       "\npostscreen_denylist_action = enforce\npostscreen_greet_action = enforce\n",
		"drop":          "\npostscreen_blacklist_action = drop\npostscreen_greet_action = drop\n",
		"mixed":         "\npostscreen_denylist_action = enforce\npostscreen_greet_action = drop\nsmtpd_delay_reject = no\n",
		"early only":    "\npostscreen_greet_action = enforce\n",
		"list only":     "\npostscreen_denylist_action = drop\npostscreen_greet_banner =\n",
		"reject to all": ", reject\npostscreen_denylist_action = enforce\nsmtpd_client_restrictions = reject\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			compareScreen(t, screenMain+extra)
		})
	}
}

func compareScreen(t *testing.T, extra string) {
	addr, src := startServices(t, strings.Replace(liveMaster, "- - smtpd\n", "- 1 postscreen\nsmtpd pass - - n - - smtpd\n", 1), extra)
	spec, _ := load(t, src)
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	type result struct{ what, live, ours string }
	results := make(chan result)
	for _, client := range screenClients {
		for _, early := range []bool{false, true} {
			go func() {
				results <- result{fmt.Sprintf("client %s, early %v", client, early), screenLive(t, addr, client, early), screenEngine(t, snap, client, early)}
			}()
		}
	}
	seen := map[string]int{}
	for range 2 * len(screenClients) {
		r := <-results
		if seen[r.live]++; r.live != r.ours {
			t.Errorf("%s: Postfix %s, we %s", r.what, r.live, r.ours)
		}
	}
	matter(t, src, extra, func(snap *policy.Snapshot) (all []string) {
		for _, client := range screenClients {
			all = append(all, fmt.Sprint(snap.Greet()), screenEngine(t, snap, client, false), screenEngine(t, snap, client, true))
		}
		return all
	})
	t.Log(seen)
	if len(seen) < 2 {
		t.Errorf("only %v: the sessions say little", seen)
	}
}

// screenLive returns the reply that ended the session before its greeting, or
// that to a recipient.
func screenLive(t *testing.T, addr, client string, early bool) string {
	c := dialLive(t, addr)
	defer c.Close()
	hello := ""
	if early {
		hello = "EHLO client.example\r\n"
	}
	fmt.Fprintf(c, "PROXY TCP4 %s 127.0.0.1 4711 25\r\n%s", client, hello)
	got := c.say("")
	switch {
	case got[0] == '5' || got == "closed":
		return got
	case !early:
		c.say("EHLO client.example")
	case strings.HasPrefix(got, "220"):
		c.say("")
	}
	if got = c.say("MAIL FROM:<alice@mailbox.example>"); got[0] != '2' {
		return got
	}
	return c.say("RCPT TO:<alice@mailbox.example>")
}

func screenEngine(t *testing.T, snap *policy.Snapshot, client string, early bool) string {
	ctx := context.Background()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr(client), Name: "unknown", ReverseName: "unknown"})
	defer s.Close()
	from, _, _ := envelope.ParseReversePath("<alice@mailbox.example>")
	to, _, _ := envelope.ParseForwardPath("<alice@mailbox.example>")
	greet := snap.Greet()
	s.Connect(ctx)
	for _, judge := range []func() policy.Verdict{
		func() policy.Verdict { return s.Screen(ctx, early && greet.Early && s.Waits()) },
		func() policy.Verdict { return s.Helo(ctx, "client.example") },
		func() policy.Verdict { return s.Mail(ctx, from, policy.MailParams{}) },
		func() policy.Verdict { return s.Rcpt(ctx, to) },
	} {
		if v := judge(); v.Action == policy.Reject || v.Action == policy.Defer {
			return fmt.Sprintf("%d %s", v.Reply.Code, v.Reply.Enhanced)
		}
	}
	return "250 2.1.5"
}

// TestPostscreenCache: who has passed a real postscreen's pregreet test is spared the wait
// by the secondary, while postscreen has the cache's file locked.
func TestPostscreenCache(t *testing.T) {
	addr, src := startServices(t, strings.Replace(liveMaster, "- - smtpd\n", "- 1 postscreen\nsmtpd pass - - n - - smtpd\n", 1),
		"postscreen_upstream_proxy_protocol = haproxy\npostscreen_cache_map = btree:$data_directory/screened\npostscreen_greet_wait = 1s\npostscreen_greet_action = enforce\n"+
			"postscreen_access_list = permit_mynetworks\npostscreen_greet_ttl = 2d\n")
	for client, early := range map[string]bool{"203.0.113.5": false, "203.0.113.6": true} {
		screenLive(t, addr, client, early)
	}
	passed := func(now time.Time) (all []string) {
		t.Helper()
		src.Now = func() time.Time { return now }
		spec, report := load(t, src)
		for _, it := range report.Items {
			if strings.Contains(it.Why, "can't be read") {
				t.Fatalf("%s: %s", it.ID(), it.Why)
			}
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, client := range []string{"203.0.113.5", "203.0.113.6", "203.0.113.7"} {
			s := snap.Session(nil, envelope.Client{Addr: netip.MustParseAddr(client)})
			if until := s.GreetPassed(); !until.IsZero() {
				all = append(all, fmt.Sprintf("%s for %v", client, until.Sub(now).Round(time.Hour)))
			}
			s.Close()
		}
		return all
	}
	if got := passed(time.Now()); !slices.Equal(got, []string{"203.0.113.5 for 48h0m0s"}) {
		t.Errorf("now: %q", got)
	}
	if got := passed(time.Now().Add(49 * time.Hour)); got != nil {
		t.Errorf("two days later: %q", got)
	}

	src.Now = nil
	cache := ""
	_, report := load(t, src)
	for _, polled := range report.Polled {
		if strings.HasPrefix(polled, "btree:") {
			cache = polled
		}
	}
	src.Commands = map[string][]string{cache: {"printf", "_LAST_CACHE_CLEANUP_COMPLETED_\\t1\\n192.0.2.1\\t99999999999;0;0;0;0\\n192.0.2.2\\t1;0;0;0;0\\nnonsense\\n2001:DB8::1\\t99999999999\\n"}}
	spec, _ := load(t, src)
	listed := []string{}
	tab := spec.Tables[cache+"#postscreen"]
	for key := range tab.Entries(0, tab.Len()) {
		listed = append(listed, string(key))
	}
	if slices.Sort(listed); !slices.Equal(listed, []string{"192.0.2.1", "2001:db8::1"}) {
		t.Errorf("by a command: %q", listed)
	}
	src.Commands[cache] = []string{"sh", "-c", "echo broken >&2; exit 1"}
	if spec, report := load(t, src); spec.Postscreen.GreetPassed != nil || !slices.ContainsFunc(report.Items, func(it fidelity.Item) bool { return strings.Contains(it.Why, cache+" can't be read") }) {
		t.Errorf("a cache that can't be listed: %v", spec.Postscreen.GreetPassed)
	}
}
