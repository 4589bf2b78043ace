package policysync

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// newSpec is a policy that relays for domains and lists rcpts.
func newSpec(t testing.TB, domains []string, rcpts ...string) *policy.Spec {
	t.Helper()
	s := policy.NewSpec()
	s.Restrictions.Recipient = []policy.Restriction{{Kind: "reject_unauth_destination"}}
	s.Addresses.Relay = policy.AddressClass{Domains: domains, Recipients: []string{"recipients"}}
	set, err := table.NewSet(slices.Clone(rcpts))
	if err != nil {
		t.Fatal(err)
	}
	s.Tables = map[string]*table.Table{"recipients": set}
	return s
}

func snapshot(t testing.TB, s *policy.Spec) *policy.Snapshot {
	t.Helper()
	snap, err := policy.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// names makes n recipients of a domain.
func names(n int, domain string) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("user%07d@%s", i, domain)
	}
	return list
}

// clock is a clock to turn.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newMetrics() *metrics.Metrics { return metrics.New(prometheus.NewRegistry()) }

// testPublisher is one that listens on loopback.
type testPublisher struct {
	*Publisher
	addr    string
	clock   *clock
	waiting chan struct{} // one for each poll that waits
}

func newTestPublisher(t testing.TB, edit ...func(*PublisherOptions)) *testPublisher {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, waiting := newClock(), make(chan struct{}, 100)
	o := PublisherOptions{Dir: t.TempDir(), Address: l.Addr().String(), Metrics: newMetrics(), now: c.now, waiting: func() { waiting <- struct{}{} }}
	for _, e := range edit {
		e(&o)
	}
	p, err := OpenPublisher(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &testPublisher{p, l.Addr().String(), c, waiting}
}

// publish offers a policy.
func (p *testPublisher) publish(t testing.TB, s *policy.Spec) {
	t.Helper()
	if err := p.Publish(snapshot(t, s)); err != nil {
		t.Fatal(err)
	}
}

// join pairs a directory with the primary.
func (p *testPublisher) join(t testing.TB, name string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	token, err := p.Invite(name)
	if err != nil {
		t.Fatal(err)
	}
	j, err := Join(t.Context(), dir, token)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Peers()[0].Fingerprint; len(p.Peers()) == 1 && got != j.Fingerprint {
		t.Fatalf("the primary prints fingerprint %s, the follower %s", got, j.Fingerprint)
	}
	return dir
}

// follow opens a follower that polls when the test asks it to.
func (p *testPublisher) follow(t testing.TB, dir string, domains ...string) *Follower {
	t.Helper()
	f, err := OpenFollower(FollowerOptions{Dir: dir, Domains: domains, Metrics: newMetrics(), now: p.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.http.close(); f.Close() })
	return f
}

// poll fetches what the primary has; the follower's version must be another,
// or the poll would wait for the next signature.
func poll(t testing.TB, f *Follower) {
	t.Helper()
	if err := f.poll(t.Context()); err != nil {
		t.Fatalf("poll: %v", err)
	}
}
