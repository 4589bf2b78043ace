package test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// state returns the state of the message for a recipient, "" when it has left.
func (s *secondary) state(to string) (m queued, state string) {
	s.t.Helper()
	for _, m := range s.queue() {
		for _, r := range m.Recipients {
			if r.Address == to {
				return m, r.State
			}
		}
	}
	return queued{}, ""
}

// reconfigure replaces the lines that newPostfix got and restarts.
func (p *postfix) reconfigure(extra ...string) {
	p.t.Helper()
	p.settle()
	p.kill()
	p.writeMain(extra...)
	p.start()
}

// TestPrimaryDefers: one recipient gets 4xx and waits alone; what comes after
// it passes; when the primary takes it at last, it arrives.
func TestPrimaryDefers(t *testing.T) {
	primary := newPostfix(t, "smtpd_recipient_restrictions = check_recipient_access inline:{ {late@example.org = 450 4.2.0 not yet} }")
	primary.start()
	secondary := newSecondary(t, primary.addr, policyFor("late@example.org", "alice@example.org"), "")
	secondary.start()
	var books testmx.Ledger
	accept(t, secondary, &books, "late@example.org")
	accept(t, secondary, &books, "alice@example.org")
	eventually(t, 20*time.Second, "alice is relayed, late is deferred", func() bool {
		_, late := secondary.state("late@example.org")
		_, alice := secondary.state("alice@example.org")
		return late == "deferred" && alice == ""
	})
	m, _ := secondary.state("late@example.org")
	if reply := m.Recipients[0].Reply; !strings.Contains(reply, "450 4.2.0") || !strings.Contains(reply, "not yet") {
		t.Errorf("the queue shows the reply as %q", reply)
	}
	primary.reconfigure()
	secondary.cli("queue", "flush")
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	secondary.stop()
	closeBooks(t, &books, primary, 0)
}

// TestPrimaryRefusesLate: a 5xx after our 250 is held, counted, shown with the
// reply and the rule that let it in, and released by the operator.
func TestPrimaryRefusesLate(t *testing.T) {
	primary := newPostfix(t, "smtpd_recipient_restrictions = check_recipient_access inline:{ {gone@example.org = 550 5.1.1 gone} }")
	primary.start()
	secondary := newSecondary(t, primary.addr, policyFor("gone@example.org"), "")
	secondary.start()
	var books testmx.Ledger
	accept(t, secondary, &books, "gone@example.org")
	eventually(t, 20*time.Second, "the message is held", func() bool {
		_, state := secondary.state("gone@example.org")
		return state == "held"
	})
	if held := secondary.metric("understudy_queue_held_messages"); held != 1 {
		t.Errorf("understudy_queue_held_messages is %v, want 1", held)
	}
	if n := secondary.metric(`understudy_relay_recipients_total{result="held"}`); n != 1 {
		t.Errorf("%v recipients counted as held, want 1", n)
	}
	if n := secondary.metric(`understudy_recipients_contradicted_total{by="relay",lists="listed"}`); n != 1 {
		t.Errorf("%v recipients counted as listed and unknown to the primary, want 1", n)
	}
	m, _ := secondary.state("gone@example.org")
	if r := m.Recipients[0]; !strings.Contains(r.Reply, "550 5.1.1") || r.Rule == "" {
		t.Errorf("the queue shows reply %q and rule %q", r.Reply, r.Rule)
	}
	if out := secondary.cli("queue", "show", m.ID); !strings.Contains(out, "gone@example.org") || !strings.Contains(out, "550 5.1.1") {
		t.Errorf("queue show:\n%s", out)
	}
	primary.reconfigure()
	secondary.cli("queue", "release", m.ID)
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	secondary.stop()
	closeBooks(t, &books, primary, 0)
}

// TestPrimaryDiesInData: the primary is killed between the final dot and its
// reply, the worst moment. The message stays and is relayed again.
func TestPrimaryDiesInData(t *testing.T) {
	primary := newPostfix(t, "smtpd_end_of_data_restrictions = sleep 5")
	primary.start()
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	secondary.start()
	var books testmx.Ledger
	accept(t, secondary, &books, "alice@example.org")
	eventually(t, 20*time.Second, "the primary has the message before it", func() bool {
		files, err := filepath.Glob(filepath.Join(primary.dir, "queue/incoming/*"))
		return err == nil && len(files) > 0
	})
	primary.kill()
	eventually(t, 20*time.Second, "the message waits", func() bool {
		_, state := secondary.state("alice@example.org")
		return state == "queued"
	})
	primary.writeMain()
	primary.start()
	eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	secondary.stop()
	closeBooks(t, &books, primary, 1)
}

// TestClientIdentity: the primary that authorises XCLIENT sees the sender's
// own client, so that its logs and checks don't take us for the source.
func TestClientIdentity(t *testing.T) {
	primary := newPostfix(t, "smtpd_authorized_xclient_hosts = 127.0.0.0/8")
	primary.start()
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "xclient = true\n")
	secondary.start()
	out, code := swaks(t, secondary.addr, "--xclient-addr", "192.0.2.7", "--xclient-name", "mail.sender.example",
		"--from", "bob@sender.example", "--to", "alice@example.org")
	if code != 0 {
		t.Fatalf("swaks: exit %d\n%s", code, out)
	}
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	primary.settle()
	log := readFile(t, filepath.Join(primary.dir, "mail.log"))
	if !strings.Contains(log, "client=mail.sender.example[192.0.2.7]") {
		t.Errorf("the primary's log does not name the sender's client")
	}
	if n := len(primary.deliveries(hostname)); n != 1 {
		t.Errorf("%d messages delivered, want 1", n)
	}
	secondary.stop()
}
