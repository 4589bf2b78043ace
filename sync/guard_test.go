package policysync

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
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

// restart opens what f has on its disk.
func (e *evil) restart(t *testing.T, f *Follower) *Follower {
	t.Helper()
	o := f.o
	o.Metrics = newMetrics()
	again, err := OpenFollower(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.http.close(); again.Close() })
	return again
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

// TestComeAndGone: who was listed while a deletion was pending, and is no more,
// is in neither version that is compared.
func TestComeAndGone(t *testing.T) {
	e := newEvil(t)
	org := []string{"example.org"}
	many := names(10, "example.org")
	f := e.follower(t, newSpec(t, org, many...))
	e.step(t, f, 2, newSpec(t, append(org, "example.com"), append(many[:4:4], "new@example.org", "a@example.com")...))
	answers{"new@example.org": 250, "a@example.com": 250, many[9]: 450, "nobody@example.org": 550, "b@example.com": 550}.check(t, f, "come")
	e.step(t, f, 3, newSpec(t, org, many[:3]...)) // one more of the old is nothing new
	gone := answers{"new@example.org": 450, "a@example.com": 450, many[0]: 250, many[3]: 450, many[9]: 450}
	gone.check(t, f, "gone")
	f = e.restart(t, f)
	gone.check(t, f, "after a restart")
	e.step(t, f, 4, newSpec(t, org, many[:2]...))
	gone.check(t, f, "with one more version")
	if err := f.Reject(4); err != nil {
		t.Fatal(err)
	}
	if err := f.Approve(4); err != nil {
		t.Fatal(err)
	}
	decided := answers{"new@example.org": 550, "a@example.com": 554, many[0]: 250, many[9]: 550}
	decided.check(t, f, "approved")
	f = e.restart(t, f)
	decided.check(t, f, "approved, after a restart")
	// What is compared with afterwards is known by name again.
	e.step(t, f, 5, newSpec(t, org, many[:1]...))
	answers{many[1]: 450, "nobody@example.org": 550}.check(t, f, "the next deletion")
	e.step(t, f, 6, newSpec(t, org))
	answers{many[0]: 450, "nobody@example.org": 550}.check(t, f, "more of it")
}

// TestTakenBackForMore: a version that takes a staged deletion back is compared
// with the version that it replaces, too.
func TestTakenBackForMore(t *testing.T) {
	e := newEvil(t)
	org := []string{"example.org"}
	many, others := names(10, "example.org"), names(20, "x.example.org")
	for i := range others {
		others[i] = strings.Replace(others[i], "@x.", "x@", 1)
	}
	f := e.follower(t, newSpec(t, org, many...))
	e.step(t, f, 2, newSpec(t, org, append(many[:3:3], others...)...))
	e.step(t, f, 3, newSpec(t, org, many...))
	want := answers{others[0]: 450, many[9]: 250, "nobody@example.org": 550}
	want.check(t, f, "taken back")
	f = e.restart(t, f)
	want.check(t, f, "after a restart")
	if p := f.Pending(); p == nil || p.Since != 2 || p.Recipients != 20 {
		t.Errorf("pending %+v", p)
	}
}

// TestTakenBackLimits: what a version that takes a deletion back may itself remove.
func TestTakenBackLimits(t *testing.T) {
	many, org := names(10, "example.org"), []string{"example.org"}
	for _, tt := range []struct {
		name    string
		domains []string
		more    []string
		staged  bool
	}{
		{"half as many as it has", org, []string{"a@example.org", "b@example.org", "c@example.org", "d@example.org", "e@example.org"}, true},
		{"fewer", org, []string{"a@example.org", "b@example.org", "c@example.org", "d@example.org"}, false},
		{"a domain", append(org, "example.com"), []string{"a@example.com"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEvil(t)
			f := e.follower(t, newSpec(t, org, many...))
			e.step(t, f, 2, newSpec(t, tt.domains, append(many[:3:3], tt.more...)...))
			if f.Pending() == nil {
				t.Fatal("nothing is staged")
			}
			e.step(t, f, 3, newSpec(t, org, many...))
			if staged := f.Pending() != nil; staged != tt.staged {
				t.Errorf("staged %v", staged)
			}
		})
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
		t.Fatalf("the 100th and 101st within a week: pending %+v", p)
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
	e.clock.add(window + time.Hour)
	less(90)
	if f.Pending() != nil {
		t.Error("a week later the old deletions count still")
	}
	e.clock.add(-window - time.Hour)
}

func TestDeletionLimits(t *testing.T) {
	org, com := names(20000, "example.org"), names(50, "example.com")
	both := []string{"example.com", "example.org"}
	local := func(users ...string) *policy.Spec {
		s := newSpec(t, nil)
		s.Addresses.Local = policy.AddressClass{Domains: both, Recipients: []string{"users"}}
		s.Tables["users"], _ = table.NewSet(users)
		return s
	}
	bare := make([]string, 300)
	for i := range bare {
		bare[i], _, _ = strings.Cut(org[i], "@")
	}
	renamed := newSpec(t, both, org...)
	renamed.Addresses.Relay.Recipients = []string{"lmdb"}
	renamed.Tables = map[string]*table.Table{"lmdb": renamed.Tables["recipients"]}
	catchAll := newSpec(t, both, "@example.org")
	open := newSpec(t, both)
	open.Addresses.Relay.Recipients = nil
	twoTables := func(mailboxes, aliases []string) *policy.Spec {
		s := newSpec(t, both, mailboxes...)
		s.Tables["aliases"], _ = table.NewSet(slices.Clone(aliases))
		s.Addresses.VirtualAlias = []string{"aliases"}
		return s
	}
	classes := func(mailbox, relay string) *policy.Spec {
		s := newSpec(t, []string{"example.com"})
		s.Tables["a"], _ = table.NewSet(slices.Clone(org[:100]))
		s.Tables["b"], _ = table.NewSet(slices.Clone(com))
		s.Tables["c"], _ = table.NewSet([]string{"x@example.com"})
		s.Addresses.Relay.Recipients = []string{relay}
		s.Addresses.VirtualMailbox = policy.AddressClass{Domains: []string{"example.org"}, Recipients: []string{mailbox}}
		return s
	}
	swapped := classes("a", "b")
	swapped.Addresses.Relay, swapped.Addresses.VirtualMailbox = swapped.Addresses.VirtualMailbox, swapped.Addresses.Relay
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
		{"a small domain's recipients", newSpec(t, both, append(com[:5:5], org...)...), newSpec(t, both, org...), true, 1},
		{"half of a small domain's", newSpec(t, both, append(com[:4:4], org...)...), newSpec(t, both, append(com[2:4:4], org...)...), true, 0},
		{"fewer than half of it", newSpec(t, both, append(com[:5:5], org...)...), newSpec(t, both, append(com[2:5:5], org...)...), false, 0},
		{"one of one", newSpec(t, both, com[:1]...), newSpec(t, both), true, 1},
		{"one of two", newSpec(t, both, com[:2]...), newSpec(t, both, com[:1]...), true, 0},
		{"one of three", newSpec(t, both, com[:3]...), newSpec(t, both, com[:2]...), false, 0},
		{"all of a hundred replaced", newSpec(t, both, org[:100]...), newSpec(t, both, org[100:200]...), true, 1},
		{"half of a table", twoTables(org[:100], org[100:104]), twoTables(org[:100], org[102:104]), true, 0},
		{"an entry of a table", twoTables(org[:100], org[100:104]), twoTables(org[:100], org[101:104]), false, 0},
		{"from a table to another", twoTables(org[:100], org[100:104]), twoTables(org[:104], nil), false, 0},
		{"tables of two classes swapped", classes("a", "b"), classes("b", "a"), true, 2},
		{"a table that lists recipients no more", classes("a", "b"), classes("a", "c"), true, 1},
		{"classes swapped with their tables", classes("a", "b"), swapped, false, 0},
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
			d := deleted(&old, &now, nil)
			if d.mass(nil) != tt.mass || len(d.domains) != tt.domains {
				t.Errorf("mass %v, domains %q, %d of %d recipients", d.mass(nil), d.domains, d.recipients, d.of)
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
		s.Tables["users"], _ = table.NewSet([]string{"alice", "bob"})
		s.Addresses.RecipientDelimiter = "+"
		edit(s)
		return s
	}
	none := func(s *policy.Spec) { s.Tables["recipients"], _ = table.NewSet(nil) }
	for _, tt := range []struct {
		name     string
		old, now func(s *policy.Spec)
		want     answers
	}{
		{"address", func(*policy.Spec) {}, none,
			answers{"user0000001@example.org": 450, "user0000001+x@example.org": 450, "alice@example.com": 250, "nobody@example.org": 550}},
		{"local user", func(*policy.Spec) {}, func(s *policy.Spec) { none(s); s.Tables["users"], _ = table.NewSet([]string{"bob"}) },
			answers{"alice@example.com": 450, "alice+x@example.com": 450, "bob@example.com": 250, "carol@example.com": 550}},
		{"catch-all", func(s *policy.Spec) { s.Tables["recipients"], _ = table.NewSet([]string{"@example.org"}) },
			func(s *policy.Spec) { s.Addresses.Local.Domains = nil; none(s) },
			answers{"anybody@example.org": 450, "alice@example.com": 450, "alice@example.net": 554}},
		{"domain above another", func(s *policy.Spec) {
			s.Addresses.Relay.Domains = []string{"example.org", "sub.example.org", "a.sub.example.org"}
		},
			func(s *policy.Spec) {
				s.Addresses.Relay.Domains = []string{"sub.example.org"}
				s.Tables["recipients"], _ = table.NewSet([]string{"u@sub.example.org"})
			},
			answers{"user0000001@example.org": 450, "u@sub.example.org": 250, "x@a.sub.example.org": 450, "u@b.example.org": 450}},
		{"domain", func(*policy.Spec) {}, func(s *policy.Spec) { s.Addresses.Relay.Domains = nil },
			answers{"user0000001@example.org": 450, "nobody@example.org": 450, "x@sub.example.net": 554, "alice@example.com": 250}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := e.follower(t, nil)
			f.o.Domains = append(f.o.Domains, ".example.org")
			e.step(t, f, 1, spec(tt.old))
			e.step(t, f, 2, spec(tt.now))
			if f.Status().Staged != StagedPending {
				t.Fatal("nothing is staged")
			}
			tt.want.check(t, f, "pending")
		})
	}
}

// less is a list that loses its first recipients version by version.
type less struct {
	e    *evil
	f    *Follower
	list []string
	n    uint64
}

func newLess(t *testing.T, n int) *less {
	e := newEvil(t)
	l := &less{e: e, list: names(n, "example.org"), n: 1}
	l.f = e.follower(t, newSpec(t, []string{"example.org"}, l.list...))
	return l
}

// step removes and adds some, and says whether that is staged.
func (l *less) step(t *testing.T, remove int, add ...string) bool {
	t.Helper()
	l.n++
	l.list = append(slices.Clone(l.list[remove:]), add...)
	l.e.step(t, l.f, l.n, newSpec(t, []string{"example.org"}, l.list...))
	return l.f.Pending() != nil
}

func (l *less) restart(t *testing.T) {
	t.Helper()
	l.f = l.e.restart(t, l.f)
}

// TestDeletionWindow: what goes in slices is asked about when they are half of
// the list within a week, whatever happens in between.
func TestDeletionWindow(t *testing.T) {
	day := 24 * time.Hour
	for _, tt := range []struct {
		name string
		size int
		do   func(t *testing.T, l *less) // between days
		on   int                         // the slice that is staged; 0: none of six
	}{
		{"a tenth a day", 50, func(*testing.T, *less) {}, 5},
		{"with a restart", 50, func(t *testing.T, l *less) { l.restart(t) }, 5},
		{"replaced by others", 50, func(t *testing.T, l *less) {
			add := names(5, "example.org")
			for i := range add {
				add[i] = fmt.Sprintf("new%d-%s", l.n, add[i])
			}
			l.step(t, 0, add...)
		}, 5},
		{"one in a hundred a day", 10_000, func(*testing.T, *less) {}, 0},
		{"three days between", 50, func(_ *testing.T, l *less) { l.e.clock.add(2 * day) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLess(t, tt.size)
			for i := 1; i <= 6; i++ {
				staged := l.step(t, 5)
				if want := tt.on > 0 && i == tt.on; staged != want {
					t.Fatalf("slice %d: staged %v", i, staged)
				}
				if staged {
					break
				}
				l.e.clock.add(day)
				tt.do(t, l)
			}
		})
	}
}

// TestDeletionTakenBack: who comes back isn't removed, however often it happens.
func TestDeletionTakenBack(t *testing.T) {
	l := newLess(t, 50)
	first := l.list[:20]
	for range 4 {
		if l.step(t, 20) || l.step(t, 0, first...) {
			t.Fatal("who comes back counts as removed")
		}
		l.list = append(slices.Clone(first), l.list[:30]...)
	}
	if l.step(t, 20) {
		t.Error("twenty of fifty that were removed before count twice")
	}
	if !l.step(t, 5) {
		t.Error("half of the list is gone")
	}
}

// TestRemovalsClock: what was removed in the hours of a clock that went wrong
// lasts for a window from the present, and no longer.
func TestRemovalsClock(t *testing.T) {
	now := time.Now()
	r := &removals{hours: []removedHour{newRemovedHour(now.Add(50 * 365 * 24 * time.Hour))}}
	r = r.since(now)
	if r == nil || r.since(now.Add(window)) == nil {
		t.Error("an hour of the future is forgotten")
	}
	if r.since(now.Add(window+time.Hour)) != nil {
		t.Error("it lasts for longer than a window")
	}
}

// TestRemovalsHashed: what was removed while recipients were plain counts when
// they are hashed, and no address stays on the disk.
func TestRemovalsHashed(t *testing.T) {
	p := newTestPublisher(t)
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org")
	many := names(100, "example.org")
	step := func(list []string) {
		t.Helper()
		p.publish(t, newSpec(t, []string{"example.org"}, list...))
		poll(t, f)
	}
	step(many)
	step(many[20:])
	p.hash(true)
	step(many[20:])
	if got := readable(t, f, "user0"); len(got) > 0 {
		t.Errorf("%q can be read on the follower's disk", got)
	}
	r, err := f.store.loadRemovals(f.pair.Secrets)
	if err != nil || r == nil || r.secret == nil || len(r.hours) != 1 || len(r.hours[0].keys) != 20 {
		t.Errorf("on the disk: %+v, %v", r, err)
	}
	f = p.follow(t, dir, "example.org")
	step(append(slices.Clone(many[40:]), many[:10]...))
	if f.Pending() != nil {
		t.Errorf("30 of 100 are staged: %+v", f.Pending())
	}
	step(many[40:])
	if f.Pending() != nil {
		t.Errorf("40 of 100 are staged: %+v", f.Pending())
	}
	f = p.follow(t, dir, "example.org")
	step(many[50:])
	if p := f.Pending(); p == nil || p.Recipients != 10 {
		t.Errorf("half of them, and pending is %+v", p)
	}
}

// TestDeletionApproved: the operator's decision begins a new window.
func TestDeletionApproved(t *testing.T) {
	l := newLess(t, 100)
	l.step(t, 40)
	if !l.step(t, 10) {
		t.Fatal("half of the list is gone")
	}
	l.e.clock.add(window + 2*time.Hour) // while it waits, nothing is forgotten
	if l.restart(t); l.f.Pending() == nil {
		t.Fatal("a restart decided")
	}
	l.e.clock.add(-window - 2*time.Hour)
	if err := l.f.Approve(l.n); err != nil {
		t.Fatal(err)
	}
	l.restart(t)
	if l.step(t, 24) {
		t.Error("24 of 50 after an approval are staged")
	}
	if !l.step(t, 1) {
		t.Error("25 of 50 are not")
	}
}

// TestRemovalsOnDisk: what is remembered survives a restart as it is, within
// bounds, and what is damaged is forgotten aloud.
func TestRemovalsOnDisk(t *testing.T) {
	l := newLess(t, 50)
	l.step(t, 5)
	name := l.f.store.path(removalsFile)
	if l.restart(t); len(l.f.removals.hours) != 1 || len(l.f.removals.hours[0].keys) != 5 {
		t.Fatalf("remembered: %+v", l.f.removals)
	}
	d := &deletion{recipients: maxRemovedKeys + 10, lists: map[string]loss{}, listing: newListing(l.f.cur.content, l.f.cur.content.spec)}
	for i := range maxRemovedKeys + 10 {
		d.keys = append(d.keys, lostKey{"recipients", fmt.Sprintf("x%d@example.org", i)})
	}
	for _, list := range d.keys[0].lists(d.listing) {
		d.lists[list] = loss{d.recipients, 1 << 40}
	}
	r := l.f.removals.with(d, l.e.clock.now())
	if n := len(r.hours[0].keys); n != maxRemovedKeys {
		t.Errorf("%d keys are remembered", n)
	}
	if err := l.f.store.saveRemovals(r); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as noted, and as read back
		for _, list := range d.keys[0].lists(d.listing) {
			if got := r.lost(&deletion{listing: d.listing})[list]; got.n != maxRemovedKeys+15 || got.of != 1<<40 {
				t.Errorf("%s: %+v", list, got)
			}
		}
		var err error
		if r, err = l.f.store.loadRemovals(nil); err != nil {
			t.Fatal(err)
		}
	}
	later := r.with(&deletion{recipients: 1, lists: map[string]loss{allLists: {1, 9}, tableList("recipients"): {1, 9}, domainList("example.org"): {1, 9}},
		keys: []lostKey{{"recipients", "y@example.org"}}, listing: d.listing}, l.e.clock.now().Add(2*time.Hour))
	if c := later.hours[1].count; len(c) != 2 || c[allLists] != 1 || c[tableList("recipients")] != 1 {
		t.Errorf("beyond the bound: %v", c)
	}
	for _, damaged := range []string{"", "{", `{"secret":"AAAA","hours":[]}`, `{"hours":[{"at":"x"}]}`} {
		write(t, name, []byte(damaged))
		l.restart(t)
		if l.f.removals != nil || rcpt(t, l.f.Current(), l.list[0]) != 250 {
			t.Errorf("%q: %+v", damaged, l.f.removals)
		}
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
	senders, err := table.NewBuilder("hash", nil)
	for _, entry := range [][2]string{{"partner.example", "OK"}, {"spam.example", "REJECT"}} {
		if err == nil {
			err = senders.Add([]byte(entry[0]), []byte(entry[1]))
		}
	}
	if err == nil {
		s.Tables["access"], err = senders.Table()
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
			Tables: []string{"access", "recipients"}, Entries: []string{"+ access: partner.example OK"}, Settings: []string{`- "helo_required": false`, `+ "helo_required": true`}}
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

// TestForeignDeletion: what goes in a domain that was never accepted here is no
// deletion.
func TestForeignDeletion(t *testing.T) {
	both, org, com := []string{"example.com", "example.org"}, names(100, "example.org"), names(50, "example.com")
	old := content{spec: newSpec(t, both, append(com, org...)...)}
	old.count(nil)
	for name, now := range map[string]content{
		"with its domain": {spec: newSpec(t, both[1:], org...)},
		"its recipients":  {spec: newSpec(t, both, org...)},
	} {
		now.count(nil)
		if d := deleted(&old, &now, []string{"example.com"}); d.mass(nil) || d.recipients != 0 || len(d.domains)+len(d.dropped) != 0 {
			t.Errorf("%s: %d recipients, domains %q", name, d.recipients, d.domains)
		}
		if d := deleted(&old, &now, nil); !d.mass(nil) || d.recipients != 50 || len(d.domains) != 1 {
			t.Errorf("%s, were it ours: %d recipients, domains %q", name, d.recipients, d.domains)
		}
	}
}

// TestMilder: whatever the class of an unknown recipient's domain, the answer is a
// temporary one, and the policy itself stays as it is.
func TestMilder(t *testing.T) {
	s := policy.NewSpec()
	before := s.Codes
	c := milder(s).Codes
	for i, code := range []int{c.UnknownLocalRcpt, c.UnknownRelayRcpt, c.UnknownVirtualAlias, c.UnknownVirtualMailbox} {
		if code != 450 {
			t.Errorf("class %d: %d", i, code)
		}
	}
	if s.Codes != before {
		t.Errorf("changed to %+v", s.Codes)
	}
}

// TestBackByCatchAll: who was removed and is accepted again, if by a catch-all,
// counts no more.
func TestBackByCatchAll(t *testing.T) {
	org := names(100, "example.org")
	of := func(rcpts ...string) *content {
		c := &content{spec: newSpec(t, []string{"example.org"}, rcpts...)}
		c.count(nil)
		return c
	}
	now := time.Unix(1_700_000_000, 0)
	r := (*removals)(nil).with(deleted(of(org...), of(org[10:]...), nil), now)
	if n := r.lost(deleted(of(org[10:]...), of(org[11:]...), nil))[allLists].n; n != 10 {
		t.Errorf("%d are missing still, want 10", n)
	}
	if n := r.lost(deleted(of(org[10:]...), of("@example.org"), nil))[allLists].n; n != 0 {
		t.Errorf("%d count beside a catch-all", n)
	}
}

// The hundredth counts of all recipients together: a domain, or a table, may lose
// less than half without a question.
func TestMassOfOneList(t *testing.T) {
	for _, tt := range []struct {
		domain loss
		want   bool
	}{{loss{n: 150, of: 5000}, false}, {loss{n: 150, of: 301}, false}, {loss{n: 150, of: 300}, true}} {
		d := &deletion{of: 100_000, lists: map[string]loss{allLists: {n: 150, of: 100_000}, domainList("a.example"): tt.domain}}
		if got := d.mass(nil); got != tt.want {
			t.Errorf("150 of 100,000, %d of %d in a domain: asked %v", tt.domain.n, tt.domain.of, got)
		}
	}
}
