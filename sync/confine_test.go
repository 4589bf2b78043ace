package policysync

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// TestForeignDoors: a primary in wrong hands opens doors that name no domain.
// The policy is taken, and nobody comes in by them.
func TestForeignDoors(t *testing.T) {
	for name, open := range map[string]func(s *policy.Spec){
		"pattern of domains": func(s *policy.Spec) {
			all, err := table.NewRegexp([][2]string{{"/./x", "OK"}})
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
			p := newTestPublisher(t)
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

func setDomains(domains ...string) func(*testing.T, *policy.Spec) {
	return func(_ *testing.T, s *policy.Spec) { s.Addresses.Relay.Domains = domains }
}

// TestForeignDomain: a version with a domain that the secondary's list lacks is
// in force without it, and both sides are told, with the remedy.
func TestForeignDomain(t *testing.T) {
	for name, edit := range map[string]func(*testing.T, *policy.Spec){
		"another":                 setDomains("example.org", "victim.example"),
		"parent of ours":          setDomains("example.org", "org"),
		"child of ours":           setDomains("example.org", "sub.example.org"),
		"all below ours":          setDomains("example.org", ".example.org"),
		"one that ends like ours": setDomains("example.org", "evilexample.org"),
		"ours with NUL":           setDomains("example.org", "example.org\x00"),
		"many":                    setDomains("example.org", "a.example", "b.example", "c.example", "d.example", "e.example"),
		"in an ordered list": func(_ *testing.T, s *policy.Spec) {
			s.Addresses.Relay.Match = []string{"!example.com", "example.org", "victim.example"}
		},
		"of another class":         func(_ *testing.T, s *policy.Spec) { s.Addresses.VirtualMailbox.Domains = []string{"victim.example"} },
		"of the first version too": nil,
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestPublisher(t)
			f := p.follow(t, p.join(t, "mx2"), "example.org")
			s := newSpec(t, []string{"example.org"}, "a@example.org")
			if edit == nil {
				edit = setDomains("example.org", "victim.example")
			} else {
				p.publish(t, s)
				poll(t, f)
				s = newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org", "u@victim.example", "u@org", "u@sub.example.org", "u@evilexample.org")
			}
			edit(t, s)
			p.publish(t, s)
			err := f.poll(t.Context())
			if alarmOf(err, "") != AlarmDomain {
				t.Fatalf("a poll says %v", err)
			}
			for _, to := range []string{"u@victim.example", "u@org", "u@sub.example.org", "u@evilexample.org"} {
				if got := rcpt(t, f.Current(), to); got == 250 {
					t.Errorf("%s is accepted", to)
				}
			}
			answers{"a@example.org": 250, "c@example.org": 550}.check(t, f, "with a foreign domain")
			if f.Status().Version != p.Status().Version {
				t.Errorf("version %d is in force, %d published", f.Status().Version, p.Status().Version)
			}
			r := p.Peers()[0].Report
			if r == nil || r.Alarm != AlarmDomain || !strings.Contains(r.Health.Problem, "remove it on the primary") || !strings.Contains(r.Health.Problem, `mail for "`) {
				t.Errorf("the primary was told %+v", r)
			}
			if got := p.stats().Alarmed; got != 1 {
				t.Errorf("%d peers are alarmed", got)
			}
			p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org", "c@example.org"))
			poll(t, f)
			answers{"a@example.org": 250}.check(t, f, "afterwards")
			if r := p.Peers()[0].Report; r.Alarm != "" || r.Health.Problem != "" || p.stats().Alarmed != 0 {
				t.Errorf("afterwards the primary was told %+v", r)
			}
		})
	}
}

// TestForeignNames: the alarm names three domains, and says how many more there
// are.
func TestForeignNames(t *testing.T) {
	for n, want := range map[int]string{1: `"a"`, 3: `"a", "b", "c"`, 4: `"a", "b", "c" and 1 more`} {
		f := &Follower{cur: &version{head: new(Head), foreign: []string{"a", "b", "c", "d"}[:n]}}
		if err := f.foreign(); err == nil || !strings.Contains(err.Error(), "mail for "+want+": not in") {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// TestAlarmReport: an older publisher gets no field that it would refuse, and a
// strange alarm isn't shown.
func TestAlarmReport(t *testing.T) {
	e := newEvil(t)
	f := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	var target string
	var body []byte
	spec := newSpec(t, []string{"example.org"}, "a@example.org")
	spec.Codes.UnknownRelayRcpt = 250
	e.offer(t, e.forge(t, spec, nil), e.head(2, f.cur.head.identity), nil)
	e.respond(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/report" {
			target = r.URL.RequestURI()
			body, _ = io.ReadAll(r.Body)
		}
	})
	if err := try(t, f); alarmOf(err, "") != AlarmPolicy {
		t.Fatalf("a poll says %v", err)
	}
	if !strings.HasSuffix(target, "&alarm=policy") || strings.Contains(string(body), `"alarm"`) || !strings.Contains(string(body), "policy: ") {
		t.Errorf("reported to %s: %s", target, body)
	}
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	g := p.follow(t, p.join(t, "mx2"), "example.org")
	poll(t, g)
	if _, err := g.http.post(t.Context(), "/v1/report?alarm=strange%0a", Report{}, 1024); err != nil {
		t.Fatal(err)
	}
	if r := p.Peers()[0].Report; r.Alarm != "" {
		t.Errorf("the alarm shown is %q", r.Alarm)
	}
}

// TestForeignDomainCase: neither list's spelling matters.
func TestForeignDomainCase(t *testing.T) {
	for _, tt := range []struct {
		domain, allowed string
		ours            bool
	}{
		{"Example.ORG", "example.org", true},
		{"example.org", "Example.ORG", true},
		{"Sub.Example.org", ".example.ORG", true},
		{"sub.example.org", ".Example.org", true},
		{"example.org", ".example.org", false},
		{"example.com", "example.org", false},
	} {
		if got := foreignDomains(newSpec(t, []string{tt.domain}), []string{tt.allowed}); (len(got) == 0) != tt.ours {
			t.Errorf("%s where %s is allowed: foreign %q", tt.domain, tt.allowed, got)
		}
	}
}

// TestDomainTakenOff: a domain is taken off the list and the daemon restarted,
// while the primary still accepts mail for it. The policy stays in force for the
// others, and the alarm says what is to be done.
func TestDomainTakenOff(t *testing.T) {
	p := newTestPublisher(t)
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
