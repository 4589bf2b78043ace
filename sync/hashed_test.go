package policysync

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// hash begins or ends hashing, as a restart with another configuration does.
func (p *testPublisher) hash(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.o.Hashed = yes
}

// readable says which of words are found in a follower's directory, its chunks
// unpacked.
func readable(t *testing.T, f *Follower, words ...string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(f.o.Dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if strings.Contains(name, "/chunks/") {
			if b, err = f.codec.dec.DecodeAll(b, make([]byte, 0, maxChunk)); err != nil {
				return err
			}
		}
		for _, w := range words {
			if bytes.Contains(bytes.ToLower(b), []byte(w)) {
				found = append(found, w)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// TestHashed takes a follower from plain recipients to hashed ones, through
// changes, restarts, new keys and a new pairing, and back.
func TestHashed(t *testing.T) {
	p := newTestPublisher(t)
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org", "example.com")
	many := names(2000, "example.org")
	spec := func(more ...string) *policy.Spec {
		s := newSpec(t, []string{"example.org", "example.com"}, append(slices.Clone(many), more...)...)
		s.Tables["aliases"], _ = table.NewHash(map[string]string{"alias@example.org": "secretary@example.com"})
		s.Addresses.VirtualAlias = []string{"aliases"}
		return s
	}
	step := func(s *policy.Spec) {
		t.Helper()
		p.publish(t, s)
		poll(t, f)
	}
	hidden := func(when string) {
		t.Helper()
		if got := readable(t, f, "user000", "alias@", "secretary", "anna"); len(got) > 0 {
			t.Errorf("%s: %q can be read on the follower's disk", when, got)
		}
	}
	step(spec("anna@example.org"))
	if got := readable(t, f, "user000", "secretary", "anna"); len(got) != 3 {
		t.Fatalf("plain, only %q is found: the search can't tell", got)
	}
	p.hash(true)
	step(spec("anna@example.org"))
	if f.cur.head.Version != 2 || f.Pending() != nil {
		t.Errorf("to begin hashing made version %d, pending %v", f.cur.head.Version, f.Pending())
	}
	hidden("after the first hashed version")
	answers{many[7]: 250, "ANNA@example.org": 250, "alias@example.org": 250, "hanna@example.org": 550, "any@example.com": 550}.check(t, f, "hashed")

	before := testutil.ToFloat64(f.o.Metrics.SyncBytes)
	step(spec("bert@example.org", "@example.com"))
	if n := testutil.ToFloat64(f.o.Metrics.SyncBytes) - before; n > 64<<10 {
		t.Errorf("a change of three took %.0f octets", n)
	}
	answers{"anna@example.org": 550, "bert@example.org": 250, "any@example.com": 250}.check(t, f, "changed")
	if diff := cmp.Diff(map[string]uint64{"example.org": 2002, "example.com": 1}, f.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	c, err := f.Diff(0, 0, 10)
	if want := []string{"(hashed)@example.com", "(hashed)@example.org"}; err != nil || !c.Hashed || c.Added != 2 || c.Removed != 1 ||
		!slices.Equal(slices.Sorted(slices.Values(c.AddedSome)), want) || c.RemovedSome[0] != want[1] {
		t.Errorf("diff %+v, %v", c, err)
	}

	// A restart without the primary.
	f = p.follow(t, dir, "example.org", "example.com")
	answers{many[7]: 250, "bert@example.org": 250, "anna@example.org": 550}.check(t, f, "after a restart")

	// New keys on both sides.
	if err := p.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	step(spec("carl@example.org", "@example.com"))
	if err := p.FinishRotation(true); err != nil {
		t.Fatal(err)
	}
	if err := f.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	step(spec("dora@example.org", "@example.com"))
	answers{many[7]: 250, "dora@example.org": 250, "carl@example.org": 550}.check(t, f, "after new keys")

	// Paired again: another secret, the same version, no alarm.
	old := *f.pair.Secrets[0]
	token, err := p.Invite("mx2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), dir, token); err != nil {
		t.Fatal(err)
	}
	f = p.follow(t, dir, "example.org", "example.com")
	answers{many[7]: 250, "dora@example.org": 250, "nobody@example.org": 550}.check(t, f, "paired again, nothing fetched")
	version := f.cur.head.Version
	poll(t, f)
	if *f.cur.head.secret == old || f.cur.head.Version != version || f.Pending() != nil {
		t.Errorf("version %d after %d, pending %v", f.cur.head.Version, version, f.Pending())
	}
	answers{many[7]: 250, "dora@example.org": 250, "nobody@example.org": 550}.check(t, f, "paired again")
	step(spec("emil@example.org", "@example.com"))
	hidden("at the end")
	p.hash(false)
	step(spec("fritz@example.org", "@example.com"))
	answers{many[7]: 250, "fritz@example.org": 250, "emil@example.org": 550}.check(t, f, "plain again")
}

// TestHashedMassDeletion: what is staged when recipients are plain is staged
// when they are hashed.
func TestHashedMassDeletion(t *testing.T) {
	many, few := names(1000, "example.org"), names(20, "example.com")
	spec := func(domains []string, lists ...[]string) *policy.Spec {
		return newSpec(t, domains, slices.Concat(lists...)...)
	}
	both := []string{"example.com", "example.org"}
	for _, tt := range []struct {
		name    string
		next    *policy.Spec
		want    *Pending
		answers answers
	}{
		{"a fifth", spec(both, many[:800], few), &Pending{Recipients: 200}, answers{many[900]: 450, many[0]: 250, "nobody@example.org": 550}},
		{"a hundredth", spec(both, many[:990], few), nil, answers{many[995]: 550, many[0]: 250}},
		{"a domain", spec([]string{"example.org"}, many), &Pending{Recipients: 20, Domains: []string{"example.com"}}, answers{few[0]: 450, many[0]: 250}},
		{"a domain's recipients", spec(both, many), &Pending{Recipients: 20, Domains: []string{"example.com"}}, answers{few[0]: 450, many[0]: 250, "nobody@example.com": 550}},
		{"for a catch-all", spec(both, many, []string{"@example.com"}), nil, answers{few[0]: 250, "nobody@example.com": 250, "nobody@example.org": 550}},
	} {
		for _, kind := range []string{"hashed", "to hashed", "from hashed"} {
			t.Run(tt.name+" "+kind, func(t *testing.T) {
				p := newTestPublisher(t)
				dir := p.join(t, "mx2")
				f := p.follow(t, dir, both...)
				p.hash(kind != "to hashed")
				p.publish(t, spec(both, many, few))
				poll(t, f)
				p.hash(kind != "from hashed")
				p.publish(t, tt.next)
				poll(t, f)
				got := f.Pending()
				if (got == nil) != (tt.want == nil) || got != nil && (got.Recipients != tt.want.Recipients || !slices.Equal(got.Domains, tt.want.Domains)) {
					t.Fatalf("pending %+v, want %+v", got, tt.want)
				}
				tt.answers.check(t, f, "after it")
				if got == nil {
					return
				}
				if strings.Contains(fmt.Sprint(got.Some), "user") {
					t.Errorf("an address is shown: %q", got.Some[0])
				}
				if found := readable(t, f, "user0"); kind != "from hashed" && len(found) > 0 {
					t.Errorf("%q can be read on the follower's disk", found)
				}
				f = p.follow(t, dir, both...)
				tt.answers.check(t, f, "after a restart")
				if err := f.Reject(2); err != nil {
					t.Fatal(err)
				}
				rejected := answers{}
				for to, code := range tt.answers {
					rejected[to] = map[int]int{250: 250, 450: 250, 550: 450}[code]
				}
				rejected.check(t, f, "rejected")
				f = p.follow(t, dir, both...)
				rejected.check(t, f, "rejected, after a restart")
				if err := f.Approve(2); err != nil {
					t.Fatal(err)
				}
				for to, code := range tt.answers {
					if again := rcpt(t, f.Current(), to); code != 250 && again == 250 {
						t.Errorf("approved, %s is accepted", to)
					}
				}
			})
		}
	}
}

// TestHashedNeedsPairing: who was paired before hashing existed gets nothing,
// and hears why; who doesn't hold a head's secret refuses it.
func TestHashedNeedsPairing(t *testing.T) {
	p := newTestPublisher(t)
	p.hash(true)
	dir := p.join(t, "mx2")
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, dir, "example.org")
	f.pair.Secrets = []*table.Secret{{1}}
	if err := f.poll(t.Context()); alarmOf(err, "") != AlarmSecret {
		t.Errorf("a head under another secret: %v", err)
	}
	p.peers.mu.Lock()
	p.peers.file.Peers[0].Secret = nil
	p.peers.mu.Unlock()
	if err := f.poll(t.Context()); alarmOf(err, "") != AlarmSecret || !strings.Contains(err.Error(), "pair again") {
		t.Errorf("paired without a secret: %v", err)
	}
	if f.Current() != nil {
		t.Error("a policy is in force")
	}
}

// TestHashedChain is what judge makes of heads across the change from plain to
// hashed and back.
func TestHashedChain(t *testing.T) {
	s, other := &table.Secret{1}, &table.Secret{2}
	id := func(n byte) hash { return hash{n} }
	plain := func(n byte) *Head { return &Head{Prev: id(n - 1), identity: id(n)} }
	hashed := func(s *table.Secret, n byte) *Head {
		return &Head{Prev: sourceOf(s, id(n-1)), Source: sourceOf(s, id(n)), SecretID: secretID(s), secret: s, identity: id(100 + n)}
	}
	for i, tt := range []struct {
		last, next *Head
		want       bool
	}{
		{plain(1), plain(2), true}, {plain(1), plain(3), false},
		{hashed(s, 1), hashed(s, 2), true}, {hashed(s, 1), hashed(s, 3), false},
		{plain(1), hashed(s, 2), true}, {plain(1), hashed(s, 3), false},
		{hashed(s, 1), plain(2), true}, {hashed(s, 1), plain(3), false},
		{hashed(s, 1), hashed(other, 3), true},
	} {
		if got := tt.next.follows(tt.last); got != tt.want {
			t.Errorf("row %d: %v", i, got)
		}
	}
}

// TestPresenceOnly: a table whose values matter somewhere keeps them.
func TestPresenceOnly(t *testing.T) {
	for name, edit := range map[string]func(*policy.Spec){
		"restriction": func(s *policy.Spec) {
			s.Restrictions.Client = []policy.Restriction{{Kind: "check_client_access", Arg: "map"}}
		},
		"class": func(s *policy.Spec) {
			s.Classes = map[string][]policy.Restriction{"c": {{Kind: "check_helo_access", Arg: "map"}}}
		},
		"transport": func(s *policy.Spec) { s.Addresses.TransportMaps = []string{"map"} },
		"relocated": func(s *policy.Spec) { s.Addresses.Relocated = []string{"map"} },
		"filter":    func(s *policy.Spec) { s.CommandFilter = []string{"map"} },
		"content":   func(s *policy.Spec) { s.Content.Header = []string{"map"} },
		"postscreen": func(s *policy.Spec) {
			s.Postscreen = &policy.Postscreen{Access: []string{"permit_mynetworks", "table:map"}}
		},
		"pipe": func(s *policy.Spec) { s.Tables["p"] = table.NewPipe([]string{"map"}) },
		"value": func(s *policy.Spec) {
			s.Restrictions.Client = []policy.Restriction{{Kind: "check_client_access", Arg: "access"}}
			s.Tables["access"], _ = table.NewHash(map[string]string{"x": "check_sender_access map, permit"})
		},
		"": func(*policy.Spec) {},
	} {
		s := newSpec(t, []string{"example.org"}, "a@example.org")
		s.Addresses.VirtualAlias = []string{"map"}
		s.Tables["map"], _ = table.NewHash(map[string]string{"x@example.org": "OK"})
		edit(s)
		if bare := presenceOnly(s); bare["map"] != (name == "") || !bare["recipients"] {
			t.Errorf("%s: %v", name, bare)
		}
	}
}
