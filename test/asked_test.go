package test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestRecipientsByAsking has a Postfix as the primary that gives no list and accepts
// no XCLIENT: who exists there is learned, from a log and by asking, and counts in an
// outage; nobody else is unknown for good.
func TestRecipientsByAsking(t *testing.T) {
	maps := "virtual_mailbox_maps = inline:{alice@example.org=all/, bob@example.org=all/, carol@example.org=all/}"
	primary := newPostfix(t, maps, "smtpd_error_sleep_time = 0")
	primary.start()
	s := newSecondary(t, primary.addr, "domains = [\"example.org\"]\nrecipients_asked = [\"example.org\"]\n", "")
	s.start()
	var books testmx.Ledger
	rcpt := func(client, to string) string {
		t.Helper()
		o := testmx.Send(t, s.addr, demo.Mail{XClient: "ADDR=" + client, Helo: "client.sender.example", From: "sender@sender.example", To: []string{to}, Content: []byte(message("to "+to, 100))})
		if o.Final.Positive() {
			books.Accepted("", to, sum(message("to "+to, 100)))
		}
		return o.Rcpt[0].String()
	}
	want := func(client, to, start string) {
		t.Helper()
		if got := rcpt(client, to); !strings.HasPrefix(got, start) {
			t.Errorf("%s: %s, want %s", to, got, start)
		}
	}
	want("192.0.2.1", "Alice@example.org", "250 ")
	want("192.0.2.1", "nobody@example.org", "550 5.1.1 ")
	want("192.0.2.1", "alice@elsewhere.example", "554 ")

	// A dictionary ends soon, for its client only.
	limited := 0
	for i := range 30 {
		if got := rcpt("198.51.100.1", fmt.Sprintf("guess%d@example.org", i)); strings.HasPrefix(got, "450 ") {
			limited++
		} else if !strings.HasPrefix(got, "550 ") {
			t.Errorf("guess %d: %s", i, got)
		}
	}
	log, _ := os.ReadFile(primary.dir + "/mail.log")
	if asked := strings.Count(string(log), "guess"); limited < 5 || limited > 10 || asked == 0 {
		t.Errorf("%d of 30 guesses were put off, want 10, or some less on a slow machine; the primary's log has %d", limited, asked)
	}
	want("192.0.2.1", "bob@example.org", "250 ")

	// A log names who isn't asked about any more.
	write(t, s.path("maillog"), "Nov 29 18:00:00 mx1 postfix/virtual[7]: 4XyZ: to=<carol@example.org>, orig_to=<sales@example.org>, relay=virtual, delay=0.1, delays=0/0/0/0, dsn=2.0.0, status=sent (delivered to maildir)\n"+
		"Nov 29 18:00:01 mx1 postfix/virtual[7]: 4XyZ: to=<dave@example.org>, relay=none, delay=1, delays=0/0/0/0, dsn=4.4.1, status=deferred (x)\n")
	if out := s.cli("policy", "learn", s.path("maillog")); !strings.Contains(out, "2 recipients in the logs, 2 of them new") {
		t.Error(out)
	}
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })

	primary.settle()
	primary.kill()
	eventually(t, 20*time.Second, "the outage is noticed", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 0 })
	for to, start := range map[string]string{"alice@example.org": "250 ", "bob@example.org": "250 ", "carol@example.org": "250 ", "nobody@example.org": "550 ", "dave@example.org": "450 4.7.0"} {
		want("192.0.2.1", to, start)
	}
	// What was learned outlives a restart in the outage.
	s.stop()
	s.start()
	for to, start := range map[string]string{"bob@example.org": "250 ", "nobody@example.org": "550 ", "erin@example.org": "450 "} {
		want("192.0.2.1", to, start)
	}
	if out := s.cli("policy", "status"); !strings.Contains(out, "known by asking") || !strings.Contains(out, "learned, not listed") {
		t.Error(out)
	}
	primary.start()
	eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// TestDictionary tries names at a secondary that asks a Postfix, from one address and
// from 200: Postfix's log has no more questions than docs/PUSH.md says, and memory
// stays. UNDERSTUDY_GUESSES makes it longer, for a run by hand; docs/PUSH.md has what came of it.
func TestDictionary(t *testing.T) {
	guesses := 200
	if n, err := strconv.Atoi(os.Getenv("UNDERSTUDY_GUESSES")); err == nil {
		guesses = n
	}
	primary := newPostfix(t, "virtual_mailbox_maps = inline:{alice@example.org=all/}", "smtpd_error_sleep_time = 0", "smtpd_client_connection_count_limit = 0")
	primary.start()
	s := newSecondary(t, primary.addr, "domains = [\"example.org\"]\nrecipients_asked = [\"example.org\"]\n", "")
	s.start()
	questions := func() int {
		log, err := os.ReadFile(primary.dir + "/mail.log")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(log, []byte("to=<guess-")) // each is refused, and logged once
	}
	begun, asked := time.Now(), 0
	for _, c := range []struct {
		clients, burst int
		every          time.Duration
	}{{1, 20, time.Minute}, {200, 100, time.Second}} {
		start := time.Now()
		for i := 0; i < guesses; i += 10 {
			var to []string
			for n := range 10 {
				to = append(to, fmt.Sprintf("guess-%d-%d@example.org", c.clients, i+n))
			}
			client := fmt.Sprintf("ADDR=198.51.100.%d", i/10%c.clients+1)
			o := testmx.Send(t, s.addr, demo.Mail{XClient: client, Helo: "client.sender.example", From: "sender@sender.example", To: to, Content: []byte(message("x", 10))})
			for _, r := range o.Rcpt {
				if r.Positive() {
					t.Fatalf("a guess is answered %s", r)
				}
			}
		}
		most := c.burst + int(time.Since(start)/c.every) + 1
		if n := questions() - asked; n > most || n < min(guesses, c.burst)/2 {
			t.Errorf("%d guesses from %d addresses: Postfix is asked %d times, want at most %d", guesses, c.clients, n, most)
		}
		asked = questions()
	}
	if o := testmx.Send(t, s.addr, demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{"alice@example.org"}, Content: []byte(message("x", 10))}); o.Rcpt[0].Code != 250 && o.Rcpt[0].Code != 450 {
		t.Errorf("alice: %s", o.Rcpt[0])
	}
	t.Logf("%d guesses in %v: %d questions, %.0f MiB", 2*guesses, time.Since(begun), asked, s.metric("process_resident_memory_bytes")/(1<<20))
	s.stop()
}
