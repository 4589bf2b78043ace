package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
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
