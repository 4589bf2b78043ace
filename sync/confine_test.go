package policysync

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// TestForeignDoors: a primary in wrong hands opens doors that name no domain.
// The policy is taken, and nobody comes in by them.
func TestForeignDoors(t *testing.T) {
	for name, open := range map[string]func(s *policy.Spec){
		"pattern of domains": func(s *policy.Spec) {
			all, err := policy.NewRegexp([][2]string{{"/./x", "OK"}})
			if err != nil {
				t.Fatal(err)
			}
			s.Tables["all"] = all
			s.Addresses.VirtualMailbox.Match = []string{"table:all"}
		},
		"everybody is of its network": func(s *policy.Spec) {
			s.MyNetworks = []string{"0.0.0.0/0"}
			s.Restrictions.Recipient = []policy.Restriction{{Kind: "permit_mynetworks"}}
		},
		"everything is permitted": func(s *policy.Spec) { s.Restrictions.Recipient = []policy.Restriction{{Kind: "permit"}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPrimary(t)
			f := p.follow(t, p.join(t, "mx2"), "example.org")
			s := newSpec(t, []string{"example.org"}, "a@example.org")
			open(s)
			p.publish(t, s)
			if got := rcpt(t, snapshot(t, s), "u@victim.example"); got != 250 {
				t.Fatalf("the door isn't open: %d", got)
			}
			poll(t, f)
			if got := rcpt(t, f.Current(), "u@victim.example"); got != 450 {
				t.Errorf("a foreign domain is answered %d", got)
			}
			if got := rcpt(t, f.Current(), "a@example.org"); got != 250 {
				t.Errorf("ours is answered %d", got)
			}
		})
	}
}

// TestDomainTakenOff: a domain is taken off the list and the daemon restarted,
// while the primary still accepts mail for it. The policy stays in force for the
// others, and the alarm says what is to be done.
func TestDomainTakenOff(t *testing.T) {
	p := newPrimary(t)
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org", "example.com")
	p.publish(t, newSpec(t, []string{"example.org", "example.com"}, "a@example.org", "a@example.com"))
	poll(t, f)
	again := p.follow(t, dir, "example.org")
	if got := rcpt(t, again.Current(), "a@example.org"); got != 250 {
		t.Errorf("after the restart a is answered %d", got)
	}
	if got := rcpt(t, again.Current(), "a@example.com"); got != 450 {
		t.Errorf("the domain that was taken off is answered %d", got)
	}
	p.clock.add(longPoll)
	p.mu.Lock()
	raw := p.raw
	p.mu.Unlock()
	again.http = &fakeRemote{raw: raw}
	if err := again.poll(t.Context()); alarmOf(err, "") != AlarmDomain || !strings.Contains(err.Error(), `"example.com"`) {
		t.Errorf("a poll says %v", err)
	}
	again.http = f.http
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org"))
	poll(t, again)
	if got := rcpt(t, again.Current(), "b@example.org"); got != 250 {
		t.Errorf("after the primary followed, b is answered %d", got)
	}
}
