package test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// readReport has Python's email read a DSN, and prints its type and the status of
// each recipient.
const readReport = `
import sys, email, email.policy
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
def look(part):
    assert not part.defects, (part.get_content_type(), part.defects)
    for p in part.get_payload() if part.is_multipart() else []: look(p)
look(m)
assert m["Auto-Submitted"] == "auto-replied"
text, status, returned = m.get_payload()
print(m.get_content_type(), m.get_param("report-type"), returned.get_content_type())
for r in status.get_payload()[1:]: print(r["Action"], r["Status"], r["Final-Recipient"], "|", r["Diagnostic-Code"])
print(returned.get_payload() if isinstance(returned.get_payload(), str) else returned.get_payload()[0].as_string())
`

// TestReturned: a real Postfix refuses mail for its content after the outage. The
// sender for whom SPF vouched gets one report, and nobody else does.
func TestReturned(t *testing.T) {
	for _, through := range []string{"primary", "smarthost"} {
		t.Run(through, func(t *testing.T) { testReturned(t, through) })
	}
}

func testReturned(t *testing.T, through string) {
	dns, err := demo.StartDNS(`sender.example. 60 TXT "v=spf1 ip4:192.0.2.7 -all"`, `anyone.example. 60 TXT "v=spf1 +all"`)
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	checks := filepath.Join(tempDir(t), "header_checks")
	write(t, checks, "/^Subject: spam/ REJECT not wanted here\n")
	primary := newPostfix(t, "header_checks = regexp:"+checks, "virtual_mailbox_domains = example.org, sender.example, anyone.example")
	smarthost := new(demo.Primary)
	if err := smarthost.Start(); err != nil {
		t.Fatal(err)
	}
	defer smarthost.Stop()
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), fmt.Sprintf("while_up = \"accept\"\n[dns]\nservers = [%q]\n[queue]\nreturn = \"vouched\"\nreturn_through = %q\n[[route]]\nname = \"smarthost\"\n%saddress = %q\n",
		dns.Addr(), through, map[string]string{"primary": "domains = [\"unused.example\"]\n"}[through], smarthost.Addr()))
	secondary.start()
	book := func() (o outage.Outage) {
		var all []outage.Outage
		if err := json.Unmarshal([]byte(secondary.cli("outage", "list", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if o.Route == "primary" {
				return o
			}
		}
		return o
	}
	eventually(t, 20*time.Second, "the outage is noticed", func() bool { return book().ID > 0 })
	accepted := 0
	send := func(client, from, subject string) {
		t.Helper()
		o := testmx.Send(t, secondary.addr, demo.Mail{XClient: "ADDR=" + client + " NAME=mail.sender.example", From: from, To: []string{"alice@example.org"},
			Content: []byte("From: <x@sender.example>\r\nSubject: " + subject + "\r\nX-Number: " + fmt.Sprint(accepted) + "\r\n\r\nthe body\r\n")})
		if !o.Final.Positive() {
			t.Fatalf("%s from %s: %v", from, client, o.Last())
		}
		accepted++
	}
	send("192.0.2.7", "bob@sender.example", "spam")      // vouched for
	send("198.51.100.9", "bob@sender.example", "spam")   // forged
	send("192.0.2.7", "bob@anyone.example", "spam")      // anybody may be
	send("192.0.2.7", "", "spam")                        // a report of somebody else's
	send("192.0.2.7", "carol@sender.example", "letter")  // relayed
	send("198.51.100.9", "eve@sender.example", "letter") // relayed: it is no verdict
	eventually(t, 20*time.Second, "the book has what was sent", func() bool { return book().Accepted == uint64(accepted) })
	primary.start()
	eventually(t, 60*time.Second, "the outage is over", func() bool { return !book().Drained.IsZero() && book().Returned == 1 })
	if o := book(); o.Accepted != uint64(accepted) || o.Relayed != 2 || o.Held != 3 || o.Accepted != o.Relayed+o.Held+o.Returned {
		t.Errorf("the book doesn't close: %+v", o)
	}
	if n := secondary.metric(`understudy_reports_total{result="relayed"}`); n != 1 {
		t.Errorf("%v reports relayed", n)
	}
	if n := secondary.metric(`understudy_queue_returned_recipients_total{by="queue"}`); n != 1 {
		t.Errorf("%v recipients returned", n)
	}
	held := secondary.queue()
	if len(held) != 3 {
		t.Fatalf("%+v", held)
	}
	for i, want := range []string{"neither SPF (fail) nor DKIM", "neither SPF (pass) nor DKIM", "takes no reports"} {
		out, err := exec.Command(secondary.binary, "queue", "return", held[i].ID, "-c", secondary.path("understudy.toml")).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("queue return of %d: %v %s", i, err, out)
		}
	}
	if out := secondary.cli("queue", "show", held[0].ID); !strings.Contains(out, "no (SPF fail)") {
		t.Error(out)
	}
	secondary.stop()
	reports := reportsIn(t, primary, smarthost)
	if len(reports[through]) != 1 || len(reports) != 1 {
		t.Fatalf("%q", reports)
	}
	report := reports[through][0]
	for _, want := range []string{"To: <bob@sender.example>", "From: Mail Delivery System <MAILER-DAEMON@" + hostname + ">"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}
	cmd := exec.Command("python3", "-c", readReport)
	cmd.Stdin = strings.NewReader(report)
	out, err := cmd.CombinedOutput()
	if want := "multipart/report delivery-status text/rfc822-headers\nfailed 5.7.1 rfc822; alice@example.org | smtp; 550 5.7.1 not wanted here\n"; err != nil || !strings.HasPrefix(string(out), want) ||
		!strings.Contains(string(out), "X-Number: 0\n") || strings.Contains(string(out), "the body") {
		t.Errorf("%v\n%s\nof\n%s", err, out, report)
	}
}

// reportsIn are the DSNs that have arrived, by where.
func reportsIn(t *testing.T, primary *postfix, smarthost *demo.Primary) map[string][]string {
	t.Helper()
	primary.settle()
	all := map[string][]string{}
	files, err := filepath.Glob(filepath.Join(primary.dir, "mail/all/new/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nContent-Type: multipart/report")) {
			all["primary"] = append(all["primary"], string(b))
		}
	}
	for _, m := range smarthost.Received() {
		if m.From != "" || len(m.To) != 1 {
			t.Errorf("the smarthost got %+v", m)
		}
		all["smarthost"] = append(all["smarthost"], strings.ReplaceAll(string(m.Content), "\r\n", "\n"))
	}
	return all
}

// TestForgedSenders: mail of forged senders, with every result of SPF, and with
// a stranger's signature or one that was replayed, is accepted during the outage
// and refused by the primary: nobody gets a report. FORGED=100000 is make forged.
func TestForgedSenders(t *testing.T) {
	n := 900
	if more, err := strconv.Atoi(os.Getenv("FORGED")); err == nil {
		n = more
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	record := "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	dns, err := demo.StartDNS(`fail.example. 60 TXT "v=spf1 -all"`, `soft.example. 60 TXT "v=spf1 ~all"`, `neutral.example. 60 TXT "v=spf1 ?all"`, `broken.example. 60 TXT "v=spf1 all:x"`,
		`anyone.example. 60 TXT "v=spf1 +all"`, `halves.example. 60 TXT "v=spf1 ip4:0.0.0.0/1 ip4:128.0.0.0/1 -all"`, `signed.example. 60 TXT "v=spf1 ip4:203.0.113.1 -all"`,
		fmt.Sprintf(`k._domainkey.signed.example. 60 TXT %q`, record), fmt.Sprintf(`k._domainkey.stranger.example. 60 TXT %q`, record))
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	dns.Behave("silent.example", demo.Behaviour{Rcode: 2})
	primary := new(demo.Primary)
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	defer primary.Stop()
	primary.ScriptContent("alice@example.org", envelope.NewReply(550, "5.7.1", "not wanted here"))
	addr := primary.Addr()
	primary.Stop()
	s := newSecondary(t, addr, policyFor("alice@example.org"), fmt.Sprintf("while_up = \"accept\"\n[dns]\nservers = [%q]\n[queue]\nreturn = \"vouched\"\n", dns.Addr()))
	s.start()
	signed := func(author, domain string) []byte {
		var b bytes.Buffer
		err := dkim.Sign(&b, strings.NewReader("From: <"+author+">\r\nSubject: it\r\n\r\nbody\r\n"), &dkim.SignOptions{Domain: domain, Selector: "k", Signer: key, HeaderKeys: []string{"From", "Subject"}})
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	replayed, strangers := signed("attacker@signed.example", "signed.example"), signed("victim@fail.example", "stranger.example")
	domains := []string{"fail", "soft", "neutral", "broken", "anyone", "halves", "silent", "none", "signed"}
	var senders sync.WaitGroup
	numbers := make(chan int)
	for range 8 {
		senders.Go(func() {
			for i := range numbers {
				m := demo.Mail{XClient: fmt.Sprintf("ADDR=198.51.100.%d NAME=[UNAVAILABLE]", i%250+1), To: []string{"alice@example.org"}, Content: []byte("Subject: it\r\n\r\nbody\r\n")}
				m.From = fmt.Sprintf("victim%d@%s.example", i, domains[i%len(domains)])
				switch {
				case domains[i%len(domains)] == "signed":
					m.Content = replayed
				case i%2 == 0:
					m.Content = strangers
				}
				if o, err := demo.Send(t.Context(), s.addr, m); err != nil || !o.Final.Positive() {
					t.Errorf("%s: %v %v", m.From, o.Last(), err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	senders.Wait()
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute+time.Duration(n)*10*time.Millisecond, "all of it is held", func() bool { return s.metric("understudy_queue_held_messages") == float64(n) })
	if got := s.metric("understudy_queue_messages"); got != float64(n) {
		t.Errorf("%v messages", got)
	}
	s.stop()
	if log := readFile(t, s.path("log")); strings.Contains(log, "returned to its sender") || primary.Count() != 0 {
		t.Errorf("%d reports", primary.Count())
	}
}
