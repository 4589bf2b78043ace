package test

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// policyService answers Postfix's policy delegation protocol
// (SMTPD_POLICY_README): a client, sender and recipient that it hasn't seen are
// greylisted, the client 192.0.2.66 is refused.
type policyService struct {
	addr string
	mu   sync.Mutex
	seen map[string]bool
	last map[string]string // the last request
	n    int               // requests
	odd  bool              // greylist nobody, refuse what is odd
}

func newPolicyService(t *testing.T) *policyService {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &policyService{addr: l.Addr().String(), seen: map[string]bool{}}
	var wg sync.WaitGroup
	var conns sync.Map
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, nil)
			wg.Go(func() { p.serve(c) })
		}
	})
	return p
}

func (p *policyService) serve(c net.Conn) {
	defer c.Close()
	request := map[string]string{}
	for in := bufio.NewScanner(c); in.Scan(); {
		if key, value, ok := strings.Cut(in.Text(), "="); ok {
			request[key] = value
			continue
		}
		fmt.Fprintf(c, "action=%s\n\n", p.decide(request))
		request = map[string]string{}
	}
}

func (p *policyService) decide(request map[string]string) (action string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = request
	p.n++
	key := request["client_address"] + " " + request["sender"] + " " + request["recipient"]
	switch {
	case p.odd && len(key)%2 == 1:
		return "reject how odd"
	case p.odd:
	case request["client_address"] == "192.0.2.66":
		return "reject listed by the service, see https://service.example/192.0.2.66"
	case !p.seen[key]:
		p.seen[key] = true
		return "defer_if_permit Greylisted, come back in a while"
	}
	return "dunno"
}

// request returns one attribute of the last request, and how many there were.
func (p *policyService) request(name string) (string, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[name], p.n
}

// importFrom makes the secondary's policy of a Postfix's configuration, with a
// choice for its policy service.
func (s *secondary) importFrom(p *postfix, service *policyService, choice string) {
	s.t.Helper()
	out, err := exec.Command(s.binary, "policy", "import", "postfix", "--config-dir", filepath.Join(p.dir, "conf"), "--service", p.addr,
		"-o", s.path("policy.json"), "--choose", "smtpd_recipient_restrictions: check_policy_service inet:"+service.addr+"="+choice).CombinedOutput()
	if err != nil {
		s.t.Fatalf("import: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "here: "+choice+"\n") {
		s.t.Errorf("the report doesn't say what is chosen:\n%s", out)
	}
}

// sendAs plays a whole message by a client and returns the reply to RCPT.
func sendAs(t *testing.T, addr, client string, books *testmx.Ledger) string {
	t.Helper()
	content := message("by "+client, 100)
	o := testmx.Send(t, addr, demo.Mail{XClient: "ADDR=" + client + " NAME=mail.sender.example REVERSE_NAME=mail.sender.example",
		Helo: "helo.sender.example", From: "bob@sender.example", To: []string{"alice@example.org"}, Content: []byte(content)})
	if len(o.Rcpt) != 1 {
		t.Fatalf("no reply to RCPT: %+v", o)
	}
	if o.Final.Positive() && books != nil {
		books.Accepted("", "alice@example.org", sum(content))
	}
	return o.Rcpt[0].String()
}

// TestAskParity: asking misses no refusal of the policy service's, ignoring
// does.
func TestAskParity(t *testing.T) {
	service := newPolicyService(t)
	service.odd = true
	primary := newPostfix(t, "smtpd_recipient_restrictions = check_policy_service inet:"+service.addr, "smtpd_authorized_xclient_hosts = 127.0.0.0/8",
		"smtpd_peername_lookup = no", "smtpd_error_sleep_time = 0", "virtual_mailbox_maps = inline:{alice@example.org=all/, bob@example.org=all/}", "local_recipient_maps = inline:{root=x}")
	primary.start()
	s := newSecondary(t, primary.addr, "", "")
	missed := regexp.MustCompile(`how odd\n +local: +250`)
	for choice, want := range map[string]bool{"ask": false, "ignore": true} {
		s.importFrom(primary, service, choice)
		out, _ := exec.Command(s.binary, "parity", s.path("policy.json"), "--primary", primary.addr, "--sessions", "30", "--dns", "127.0.0.1:1").CombinedOutput()
		if !strings.Contains(string(out), "sessions 30, ") || missed.Match(out) != want {
			t.Errorf("%s: a refusal missed: %t, want %t\n%s", choice, !want, want, tail(out, 3000))
		}
	}
}

// TestAskPrimary has what only the live primary can decide decided there: a
// greylist and a list of clients, behind a policy service of a real Postfix.
func TestAskPrimary(t *testing.T) {
	service := newPolicyService(t)
	restrictions := "smtpd_recipient_restrictions = check_policy_service inet:" + service.addr
	const xclient = "smtpd_authorized_xclient_hosts = 127.0.0.0/8"
	primary := newPostfix(t, restrictions, xclient)
	primary.start()
	s := newSecondary(t, primary.addr, "", "while_up = \"accept\"\n")
	write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "policy.toml", "policy.json", 1))
	s.importFrom(primary, service, "ask")
	s.start()
	var books testmx.Ledger
	counted := func(result string, want float64) {
		t.Helper()
		if n := s.metric(`understudy_asked_recipients_total{result="` + result + `"}`); n != want {
			t.Errorf("%v recipients counted as %s, want %v", n, result, want)
		}
	}
	same := func(got, want, start string) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" || !strings.HasPrefix(want, start) {
			t.Errorf("want the primary's own reply, %s… (-primary +secondary):\n%s", start, diff)
		}
	}

	// The primary greylists by the real client; the second try gets through,
	// also when the message is relayed.
	own := sendAs(t, primary.addr, "192.0.2.8", nil)
	same(sendAs(t, s.addr, "192.0.2.7", &books), own, "450 4.7.1 <alice@example.org>: Recipient address rejected: Greylisted, come back")
	for name, want := range map[string]string{"client_address": "192.0.2.7", "client_name": "mail.sender.example", "helo_name": "helo.sender.example",
		"sender": "bob@sender.example", "recipient": "alice@example.org", "protocol_state": "RCPT"} {
		if got, _ := service.request(name); got != want {
			t.Errorf("the policy service saw %s=%s, want %s", name, got, want)
		}
	}
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "250 2.1.5") {
		t.Errorf("the second try: %s", got)
	}
	eventually(t, 20*time.Second, "the message is relayed", func() bool { return len(s.queue()) == 0 })
	counted("deferred", 1)
	counted("accepted", 1)

	// A client that the service alone refuses.
	same(sendAs(t, s.addr, "192.0.2.66", &books), sendAs(t, primary.addr, "192.0.2.66", nil), "554 5.7.1 <alice@example.org>: Recipient address rejected: listed by the service")
	counted("refused", 1)
	if v := s.explain(t, "192.0.2.7", "helo.sender.example", "bob@sender.example", "alice@example.org"); v.Rule != "rcpt ask_primary check_policy_service:inet:"+service.addr {
		t.Errorf("explain says %+v", v)
	}
	// What is refused here is never asked about.
	_, before := service.request("")
	if o := testmx.Send(t, s.addr, demo.Mail{XClient: "ADDR=192.0.2.7", From: "bob@sender.example", To: []string{"alice@elsewhere.example"}, Content: []byte("\r\n")}); o.Rcpt[0].Positive() {
		t.Errorf("relaying: %v", o.Rcpt)
	}
	if _, after := service.request(""); after != before {
		t.Error("the primary was asked about a recipient that is refused")
	}

	// The primary is gone.
	primary.kill()
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "450 4.7.0 <alice@example.org>: Recipient address rejected: can't be checked now") {
		t.Errorf("without the primary: %s", got)
	}
	counted("unasked", 1)
	s.stop()
	s.importFrom(primary, service, "ask-else-ignore")
	s.start()
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "250 2.1.5") {
		t.Errorf("ask-else-ignore without the primary: %s", got)
	}
	counted("unasked", 1)
	primary.start()
	eventually(t, 20*time.Second, "the message is relayed", func() bool { return len(s.queue()) == 0 })
	if got := sendAs(t, s.addr, "192.0.2.9", &books); !strings.HasPrefix(got, "450 4.7.1") {
		t.Errorf("ask-else-ignore with the primary: %s", got)
	}
	s.stop()

	// A primary that lets us in, but only as ourselves.
	const remedy = "smtpd_authorized_xclient_hosts"
	if log := readFile(t, s.path("log")); strings.Contains(log, remedy) {
		t.Error("the log names the remedy before anything is wrong")
	}
	primary.reconfigure(restrictions)
	s.importFrom(primary, service, "ask")
	s.start()
	eventually(t, 20*time.Second, "the log names the remedy", func() bool { return strings.Contains(readFile(t, s.path("log")), remedy) })
	_, before = service.request("")
	for range 2 {
		if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "450 4.7.0") {
			t.Errorf("without XCLIENT: %s", got)
		}
	}
	if _, after := service.request(""); after != before {
		t.Error("the primary was asked about ourselves")
	}
	if n := strings.Count(readFile(t, s.path("log")), `"next hop can't be asked about recipients"`); n != 1 {
		t.Errorf("the log says %d times that the primary can't be asked, want once", n)
	}
	counted("unasked", 2)
	s.stop()
	closeBooks(t, &books, primary, 0)
}
