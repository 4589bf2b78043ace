package policysync

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
)

// step publishes spec as version n and lets f see it.
func (e *evil) step(t *testing.T, f *Follower, n uint64, spec *policy.Spec) {
	t.Helper()
	prev := hash{}
	if f.cur != nil {
		prev = f.cur.head.identity
	}
	e.offer(t, e.forge(t, spec, nil), e.head(n, prev), nil)
	poll(t, f)
}

type answers map[string]int

func (a answers) check(t *testing.T, f *Follower, when string) {
	t.Helper()
	got := answers{}
	for to := range a {
		got[to] = rcpt(t, f.Current(), to)
	}
	if diff := cmp.Diff(a, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestMassDeletion(t *testing.T) {
	e := newEvil(t)
	many := names(1000, "example.org")
	f := e.follower(t, newSpec(t, []string{"example.org"}, many...))
	few := append(slices.Clone(many[:800]), "new@example.org")
	e.step(t, f, 2, newSpec(t, []string{"example.org"}, few...))
	answers{many[0]: 250, many[900]: 450, "new@example.org": 250, "nobody@example.org": 550}.check(t, f, "pending")
	want := &Pending{Version: 2, Since: 1, State: StagedPending, Recipients: 200, Of: 1000, Some: many[800:]}
	if diff := cmp.Diff(want, f.Pending()); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
	if f.Status().Staged != StagedPending || f.stats().Withdrawn != 200 {
		t.Errorf("status %+v", f.Status())
	}
	// More of the same, with an addition: still compared with version 1.
	e.step(t, f, 3, newSpec(t, []string{"example.org"}, append(few[50:], "newer@example.org")...))
	answers{many[0]: 450, many[900]: 450, "newer@example.org": 250}.check(t, f, "more of it")
	if err := f.Approve(2); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("approving what is no longer pending: %v", err)
	}
	if err := f.Reject(3); err != nil {
		t.Fatal(err)
	}
	answers{many[0]: 250, many[900]: 250, "newer@example.org": 450}.check(t, f, "rejected")
	if err := f.Approve(3); err != nil {
		t.Fatal(err)
	}
	answers{many[0]: 550, many[900]: 550, "newer@example.org": 250}.check(t, f, "approved")
	if f.Pending() != nil || f.Approve(3) == nil || f.Reject(3) == nil {
		t.Error("something is still pending")
	}
	// A deletion that the primary takes back.
	e.step(t, f, 4, newSpec(t, []string{"example.org"}, "a@example.org"))
	e.step(t, f, 5, newSpec(t, []string{"example.org"}, many...))
	answers{many[0]: 250, "nobody@example.org": 550}.check(t, f, "taken back")
	if f.Pending() != nil {
		t.Error("what was taken back is pending")
	}
}

// TestDeletionInSlices takes a list away a little at a time.
func TestDeletionInSlices(t *testing.T) {
	e := newEvil(t)
	many := names(1000, "example.org")
	f := e.follower(t, newSpec(t, []string{"example.org"}, many...))
	n := uint64(1)
	less := func(by int) {
		n++
		many = many[by:]
		e.step(t, f, n, newSpec(t, []string{"example.org"}, many...))
	}
	for range 3 {
		less(33)
	}
	if f.Pending() != nil {
		t.Fatal("99 are no mass deletion")
	}
	gone := many[0]
	less(2)
	if p := f.Pending(); p == nil || p.Recipients != 2 {
		t.Fatalf("the 100th and 101st within an hour: pending %+v", p)
	}
	o := f.o
	o.Metrics = newMetrics()
	again, err := OpenFollower(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	answers{gone: 450, many[0]: 250, "user0000000@example.org": 550}.check(t, again, "after a restart")
	if err := f.Approve(n); err != nil {
		t.Fatal(err)
	}
	less(90)
	e.clock.add(61 * time.Minute)
	less(90)
	if f.Pending() != nil {
		t.Error("an hour later the old deletions count still")
	}
	e.clock.add(-61 * time.Minute)
}

func TestDeletionLimits(t *testing.T) {
	org, com := names(20000, "example.org"), names(50, "example.com")
	both := []string{"example.com", "example.org"}
	local := func(users ...string) *policy.Spec {
		s := newSpec(t, nil)
		s.Addresses.Local = policy.AddressClass{Domains: both, Recipients: []string{"users"}}
		s.Tables["users"], _ = policy.NewSet(users)
		return s
	}
	bare := make([]string, 300)
	for i := range bare {
		bare[i], _, _ = strings.Cut(org[i], "@")
	}
	renamed := newSpec(t, both, org...)
	renamed.Addresses.Relay.Recipients = []string{"lmdb"}
	renamed.Tables = map[string]*policy.Table{"lmdb": renamed.Tables["recipients"]}
	catchAll := newSpec(t, both, "@example.org")
	open := newSpec(t, both)
	open.Addresses.Relay.Recipients = nil
	for _, tt := range []struct {
		name     string
		old, now *policy.Spec
		mass     bool
		domains  int
	}{
		{"nothing", newSpec(t, both, org...), newSpec(t, both, org...), false, 0},
		{"one in a hundred", newSpec(t, both, org...), newSpec(t, both, org[200:]...), false, 0},
		{"one more", newSpec(t, both, org...), newSpec(t, both, org[201:]...), true, 0},
		{"a hundred of few", newSpec(t, both, org[:500]...), newSpec(t, both, org[100:500]...), false, 0},
		{"a hundred and one of few", newSpec(t, both, org[:500]...), newSpec(t, both, org[101:500]...), true, 0},
		{"a domain", newSpec(t, both, append(com, org...)...), newSpec(t, both[1:], org...), true, 1},
		{"a domain's recipients", newSpec(t, both, append(com, org...)...), newSpec(t, both, org...), true, 1},
		{"a small domain's recipients", newSpec(t, both, append(com[:5:5], org...)...), newSpec(t, both, org...), false, 0},
		{"a domain without recipients", newSpec(t, both, org...), newSpec(t, both[1:], org...), true, 1},
		{"table renamed", newSpec(t, both, org...), renamed, false, 0},
		{"a catch-all instead", newSpec(t, both, org...), catchAll, false, 0},
		{"everybody instead", newSpec(t, both, org...), open, false, 0},
		{"all local users", local(bare[:50]...), local(), true, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, now := content{spec: tt.old}, content{spec: tt.now}
			old.count(nil)
			now.count(nil)
			d := deleted(&old, &now)
			if d.mass(0) != tt.mass || len(d.domains) != tt.domains {
				t.Errorf("mass %v, domains %q, %d of %d recipients", d.mass(0), d.domains, d.recipients, d.of)
			}
		})
	}
}

// TestWithdrawn looks at each way in which a recipient can be listed.
func TestWithdrawn(t *testing.T) {
	e := newEvil(t)
	spec := func(edit func(s *policy.Spec)) *policy.Spec {
		s := newSpec(t, []string{"example.org"}, names(200, "example.org")...)
		s.Addresses.Local = policy.AddressClass{Domains: []string{"example.com"}, Recipients: []string{"users"}}
		s.Tables["users"], _ = policy.NewSet([]string{"alice", "bob"})
		s.Addresses.RecipientDelimiter = "+"
		edit(s)
		return s
	}
	none := func(s *policy.Spec) { s.Tables["recipients"], _ = policy.NewSet(nil) }
	for _, tt := range []struct {
		name     string
		old, now func(s *policy.Spec)
		want     answers
	}{
		{"address", func(*policy.Spec) {}, none,
			answers{"user0000001@example.org": 450, "user0000001+x@example.org": 450, "alice@example.com": 250, "nobody@example.org": 550}},
		{"local user", func(*policy.Spec) {}, func(s *policy.Spec) { none(s); s.Tables["users"], _ = policy.NewSet([]string{"bob"}) },
			answers{"alice@example.com": 450, "alice+x@example.com": 450, "bob@example.com": 250, "carol@example.com": 550}},
		{"catch-all", func(s *policy.Spec) { s.Tables["recipients"], _ = policy.NewSet([]string{"@example.org"}) },
			func(s *policy.Spec) { s.Addresses.Local.Domains = nil; none(s) },
			answers{"anybody@example.org": 450, "alice@example.com": 450, "alice@example.net": 554}},
		{"domain", func(*policy.Spec) {}, func(s *policy.Spec) { s.Addresses.Relay.Domains = nil },
			answers{"user0000001@example.org": 450, "nobody@example.org": 450, "x@sub.example.net": 554, "alice@example.com": 250}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := e.follower(t, spec(tt.old))
			e.step(t, f, 2, spec(tt.now))
			if f.Status().Staged != StagedPending {
				t.Fatal("nothing is staged")
			}
			tt.want.check(t, f, "pending")
		})
	}
}

func TestAges(t *testing.T) {
	e := newEvil(t)
	f := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	answers{"a@example.org": 250, "b@example.org": 550, "b@example.net": 554}.check(t, f, "fresh")
	e.clock.add(25 * time.Hour)
	answers{"a@example.org": 250, "b@example.org": 450, "b@example.net": 554}.check(t, f, "stale")
	if s := f.Status(); s.State != StateStale {
		t.Errorf("state %q", s.State)
	}
	e.clock.add(365 * 24 * time.Hour)
	o := f.o
	o.Metrics = newMetrics()
	again, err := OpenFollower(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	answers{"a@example.org": 250, "b@example.org": 450}.check(t, again, "a year later, after a restart")
	e.clock.add(-366 * 24 * time.Hour)
}

func TestDiff(t *testing.T) {
	e := newEvil(t)
	f := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org"))
	if _, err := f.Diff(0, 0, 10); err == nil {
		t.Error("a difference to nothing")
	}
	s := newSpec(t, []string{"example.org"}, "b@example.org", "c@example.org", "d@example.org")
	s.HeloRequired = true
	senders, err := policy.NewTableBuilder("hash", nil)
	for _, entry := range [][2]string{{"partner.example", "OK"}, {"spam.example", "REJECT"}} {
		if err == nil {
			err = senders.Add([]byte(entry[0]), []byte(entry[1]))
		}
	}
	if err == nil {
		s.Tables["senders"], err = senders.Table()
	}
	if err != nil {
		t.Fatal(err)
	}
	e.step(t, f, 2, s)
	for _, v := range [][2]uint64{{0, 0}, {1, 2}} {
		got, err := f.Diff(v[0], v[1], 1)
		if err != nil {
			t.Fatal(err)
		}
		want := &Change{From: 1, To: 2, Added: 2, Removed: 1, AddedSome: []string{"c@example.org"}, RemovedSome: []string{"a@example.org"},
			Tables: []string{"recipients", "senders"}, Entries: []string{"+ senders: partner.example OK"}, Settings: []string{`- "helo_required": false`, `+ "helo_required": true`}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if _, err := f.Diff(1, 9, 1); err == nil {
		t.Error("a version that isn't held")
	}
	if got := f.Counts(); got["example.org"] != 3 {
		t.Errorf("counts %v", got)
	}
}
