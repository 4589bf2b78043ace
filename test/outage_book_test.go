package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	var told notices
	hook := httptest.NewServer(&told)
	t.Cleanup(hook.Close)
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), fmt.Sprintf("[notify]\nafter = \"0s\"\nmail = [\"alice@example.org\"]\nwebhook = %q\n", hook.URL))
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
	eventually(t, 20*time.Second, "the webhook knows of it", func() bool { return strings.Join(told.list(), " ") == "outage_began outage_ended" })
	eventually(t, 20*time.Second, "the operator has two mails", func() bool {
		n := 0
		files, err := filepath.Glob(filepath.Join(primary.dir, "mail/all/new/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.Contains(readFile(t, name), "\nAuto-Submitted: auto-generated\n") {
				n++
			}
		}
		return n == 2
	})
	if o := last(); o.Relayed != 4 || o.Accepted != 4 {
		t.Errorf("mail to the operator is in the books: %+v", o)
	}
	for _, format := range []string{"html", "text", "json"} {
		report := secondary.cli("outage", "report", "1", "--format", format)
		if !strings.Contains(report, "4 messages") && format != "json" {
			t.Error(report)
		}
		file := secondary.path("report." + format)
		write(t, file, report)
		if out := secondary.cli("outage", "verify", file); !strings.Contains(out, "since this machine signed it") {
			t.Error(out)
		}
		write(t, file, strings.NewReplacer("4 messages", "5 messages", `"accepted": 4`, `"accepted": 5`).Replace(report))
		if out, err := exec.Command(secondary.binary, "outage", "verify", file, "-c", secondary.path("understudy.toml")).CombinedOutput(); err == nil || !strings.Contains(string(out), "isn't what was signed") {
			t.Errorf("%s: a figure was changed, and verify says %v\n%s", format, err, out)
		}
	}
}

// notices is a webhook.
type notices struct {
	mu  sync.Mutex
	all []string
}

func (n *notices) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	var e struct{ Event string }
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		e.Event = err.Error()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, e.Event)
}

func (n *notices) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.all)
}
