package test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestOutageBook: what the book says of an outage is what was sent in it, also
// when the secondary is killed amid.
func TestOutageBook(t *testing.T) {
	primary := newPostfix(t)
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	secondary.start()
	send := func(to string) {
		testmx.Send(t, secondary.addr, demo.Mail{From: "bob@sender.example", To: []string{to}, Content: []byte("Subject: x\r\n\r\nx\r\n")})
	}
	last := func() (o outage.Outage) {
		var all []outage.Outage
		if err := json.Unmarshal([]byte(secondary.cli("outage", "list", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		if len(all) > 0 {
			o = all[len(all)-1]
		}
		return o
	}
	eventually(t, 20*time.Second, "the outage is noticed", func() bool { return last().ID == 1 })
	for range 3 {
		send("alice@example.org")
		send("nobody@example.org")
	}
	eventually(t, 20*time.Second, "the book has what was sent", func() bool { o := last(); return o.Accepted == 3 && o.Refused["unlisted_recipient"] == 3 })
	secondary.stop()
	secondary.start()
	send("alice@example.org")
	eventually(t, 20*time.Second, "the book goes on", func() bool { return last().Accepted == 4 })
	primary.start()
	eventually(t, 60*time.Second, "the outage is over", func() bool { return !last().Drained.IsZero() })
	if o := last(); o.ID != 1 || o.Relayed != 4 || o.Held != 0 || o.Ended.After(o.Drained) || o.Saved != 0 || !strings.Contains(o.Noticed, "refused") {
		t.Errorf("%+v", o)
	}
	report := secondary.cli("outage", "report", "1")
	if !slices.ContainsFunc(strings.Split(report, "\n"), func(l string) bool { return strings.Contains(l, "Accepted") && strings.Contains(l, "4 messages") }) {
		t.Error(report)
	}
}
