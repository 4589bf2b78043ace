package test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/meter"
)

// postmap writes a table of a Postfix and its index.
func (p *postfix) postmap(name string, lines ...string) {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	write(p.t, file, strings.Join(lines, "\n")+"\n")
	if out, err := exec.Command("postmap", "-c", filepath.Join(p.dir, "conf"), "hash:"+file).CombinedOutput(); err != nil {
		p.t.Fatalf("postmap: %v\n%s", err, out)
	}
}

// agreement is what `understudy parity live` shows.
func (s *secondary) agreement() (r meter.Report) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.cli("parity", "live", "--all", "--json")), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// TestMeterLive: a live session's decisions are held against the snapshot's. What a
// policy service decides is told by its name; a recipient who is new at the primary
// is late once the policy has come, and a rule that was changed stays unexplained.
func TestMeterLive(t *testing.T) {
	service := newPolicyService(t)
	primary := newPostfix(t)
	primary.postmap("users", "carol@example.org all/")
	primary.postmap("senders", "bad@sender.example REJECT not you")
	primary.writeMain(xclientHosts, "smtpd_error_sleep_time = 0", "smtpd_peername_lookup = no", "virtual_mailbox_maps = hash:"+filepath.Join(primary.dir, "users"),
		"smtpd_recipient_restrictions = check_sender_access hash:"+filepath.Join(primary.dir, "senders")+" check_policy_service inet:"+service.addr)
	s := newSecondary(t, primary.addr, "", "")
	write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "policy.toml", "policy.json", 1))
	s.importFrom(primary, service, "ignore")
	primary.postmap("users", "carol@example.org all/", "alice@example.org all/")
	primary.start()
	s.start()
	s.isLive()
	service.decide(map[string]string{"client_address": "192.0.2.7", "sender": "bob@sender.example", "recipient": "alice@example.org"}) // no greylisting
	if got := sendAs(t, s.addr, "192.0.2.7", nil); !strings.HasPrefix(got, "250 2.1.5") {
		t.Errorf("a new recipient: %s", got)
	}
	r := s.agreement()
	if r.Same < 3 || r.Different != 1 || r.Unexplained != 1 || r.Kinds[0].Cause != "recipient_new" || r.Differences[0].Recipient != "<alice@example.org>" {
		t.Errorf("a new recipient: %+v", r)
	}
	s.importFrom(primary, service, "ignore")
	eventually(t, 20*time.Second, "the policy that agrees has come", func() bool { return s.agreement().Unexplained == 0 })
	if got := sendAs(t, s.addr, "192.0.2.8", nil); !strings.HasPrefix(got, "450 4.7.1") {
		t.Errorf("greylisted: %s", got)
	}
	service.decide(map[string]string{"client_address": "192.0.2.9", "sender": "bob@sender.example", "recipient": "alice@example.org"})
	primary.postmap("senders", "bob@sender.example REJECT nor you")
	if got := sendAs(t, s.addr, "192.0.2.9", nil); !strings.HasPrefix(got, "554 5.7.1 <bob@sender.example>: Sender address rejected: nor you") {
		t.Errorf("a changed rule: %s", got)
	}
	r = s.agreement()
	got := map[string]meter.Kind{}
	for _, k := range r.Kinds {
		got[k.Class+" "+k.Cause] = k
	}
	if k := got["exact recipient_new"]; k.Late != 1 || k.Last.SettledAfter == nil || k.Last.Class != meter.Late {
		t.Errorf("the new recipient: %+v", k)
	}
	if k := got["not_replicated greylisting"]; k.Count != 1 || k.Last.Item != "smtpd_recipient_restrictions: check_policy_service inet:"+service.addr || k.Last.Ours != "permit" {
		t.Errorf("greylisting: %+v", k)
	}
	changed := 0
	for class, k := range got {
		if strings.Contains(k.Last.Primary, "nor you") {
			changed++
			if k.Rule != "listed_recipient" || k.Advice == "" {
				t.Errorf("the changed rule: %s %+v", class, k)
			}
		}
	}
	if changed != 1 || r.Different != 3 {
		t.Errorf("%+v", r)
	}
	s.stop()
	s.start()
	if again := s.agreement(); again.Different != 3 || len(again.Differences) != 3 {
		t.Errorf("after a restart: %+v", again)
	}
	s.stop()
}
