package greylist

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

var postgrey = &policy.Greylist{Delay: 300, MaxAge: 35 * 86400, RetryWindow: 2 * 86400, AutoClients: 5}

// clocked is a store and its clock.
type clocked struct {
	*Store
	now time.Time
	m   *metrics.Metrics
	o   Options
}

func open(t *testing.T, o Options) *clocked {
	t.Helper()
	c := &clocked{now: time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC), m: metrics.New(prometheus.NewRegistry()), o: o}
	c.o.Now, c.o.Log, c.o.Metrics = func() time.Time { return c.now }, slog.New(slog.DiscardHandler), c.m
	if c.o.Dir == "" {
		c.o.Dir = filepath.Join(t.TempDir(), "greylist")
	}
	c.Store = Open(c.o)
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *clocked) try(client, triplet string) int64 { return c.Store.Try(attempt(client, triplet)) }

func attempt(client, triplet string) *policy.GreyTry {
	return &policy.GreyTry{Service: "postgrey-1", Rules: postgrey, Client: client, Triplet: triplet, Arrived: func(int64) bool { return false }}
}

// TestRestart: what was seen before a restart counts after it, for every service
// by itself.
func TestRestart(t *testing.T) {
	c := open(t, Options{})
	if wait := c.try("192.0.2.1", "a"); wait != 300 {
		t.Fatalf("first attempt waits %d s", wait)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if wait := c.try("192.0.2.1", "a"); wait != 300 {
		t.Errorf("a closed store lets in: %d s", wait)
	}
	again := open(t, c.o)
	again.now = c.now.Add(200 * time.Second)
	if wait := again.try("192.0.2.1", "a"); wait != 100 {
		t.Errorf("after 200 s and a restart the wait is %d s", wait)
	}
	other := attempt("192.0.2.1", "a")
	other.Service = "postgrey-2"
	if wait := again.Try(other); wait != 300 {
		t.Errorf("another service knows the triplet: %d s", wait)
	}
	again.now = c.now.Add(301 * time.Second)
	if wait := again.try("192.0.2.1", "a"); wait > 0 {
		t.Errorf("after the delay the wait is %d s", wait)
	}
}

// TestLearned: who passed on the primary, and whom it let in in a live
// session, is let in here.
func TestLearned(t *testing.T) {
	c := open(t, Options{})
	known := attempt("192.0.2.1", "known")
	known.Arrived = func(now int64) bool { return now < c.now.Add(time.Hour).Unix() }
	if wait := c.Try(known); wait > 0 {
		t.Errorf("known to the primary: %d s", wait)
	}
	known.Arrived = func(int64) bool { return false }
	if wait := c.Try(known); wait > 0 {
		t.Errorf("known to the primary once: %d s", wait)
	}
	live := attempt("192.0.2.2", "live")
	if wait := c.Try(live); wait != 300 {
		t.Errorf("not known: %d s", wait)
	}
	c.Passed(live)
	if wait := c.Try(live); wait > 0 {
		t.Errorf("the primary let it in: %d s", wait)
	}
	client := attempt("192.0.2.3", "new")
	client.Known = &policy.GreyClient{Count: 5, Last: c.now.Unix() - 34*86400}
	if wait := c.Try(client); wait > 0 {
		t.Errorf("a client that the primary knows: %d s", wait)
	}
	client.Client, client.Known = "192.0.2.4", &policy.GreyClient{Count: 5, Last: c.now.Unix() - 36*86400}
	if wait := c.Try(client); wait != 300 {
		t.Errorf("a client that it knew too long ago: %d s", wait)
	}
	client.Client, client.Triplet, client.Known = "192.0.2.5", "sixth", &policy.GreyClient{Count: 4, Last: c.now.Unix() - 3600}
	c.Passed(client) // the fifth
	client.Triplet, client.Known = "seventh", nil
	if wait := c.Try(client); wait > 0 {
		t.Errorf("the primary counted four, and one passed here: %d s", wait)
	}
	for result, n := range map[string]float64{"known": 1, "passed": 2, "deferred": 2, "client": 2, "learned": 2} {
		if got := testutil.ToFloat64(c.m.Greylisted.WithLabelValues(result)); got != n {
			t.Errorf("%s: %v, want %v", result, got, n)
		}
	}
}

// TestWalk lists what is remembered.
func TestWalk(t *testing.T) {
	c := open(t, Options{})
	c.try("192.0.2.1", "a")
	c.now = c.now.Add(301 * time.Second)
	c.try("192.0.2.1", "a")
	c.try("192.0.2.2", "b")
	at := func(s int) time.Time { return time.Date(2026, 11, 2, 12, 0, s, 0, time.UTC) }
	want := []Entry{
		{Service: "postgrey-1", Kind: Client, Key: "192.0.2.1", Count: 1, Last: at(301), Passed: true},
		{Service: "postgrey-1", Kind: Triplet, Key: "a", First: at(0), Last: at(301), Passed: true},
		{Service: "postgrey-1", Kind: Triplet, Key: "b", First: at(301), Last: at(301)},
	}
	var got []Entry
	if err := c.Walk(func(e Entry) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	stop := fmt.Errorf("enough")
	if err := c.Walk(func(Entry) error { return stop }); err != stop {
		t.Errorf("Walk went on: %v", err)
	}
}

// TestCrowd: a crowd that never comes again stays within the bounds of entries,
// octets and memory, and who has passed stays known. CROWD sets how many come.
func TestCrowd(t *testing.T) {
	crowd := 60_000
	if s := os.Getenv("CROWD"); s != "" {
		var err error
		if crowd, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []Options{{MaxEntries: crowd / 4}, {MaxOctets: int64(crowd) * 20}} {
		c := open(t, o)
		const good = 100
		for i := range good {
			c.try("192.0.2.1", fmt.Sprint("good", i))
		}
		c.now = c.now.Add(301 * time.Second)
		for i := range good {
			if wait := c.try("192.0.2.1", fmt.Sprint("good", i)); wait > 0 {
				t.Fatalf("good %d waits %d s", i, wait)
			}
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range crowd {
			c.now = c.now.Add(time.Millisecond)
			if wait := c.try(fmt.Sprint("10.0.", i%256, ".1"), fmt.Sprintf("10.0.%d.0/a%d@x.example/user@here.test", i%256, i)); wait != 300 {
				t.Fatalf("number %d of the crowd waits %d s", i, wait)
			}
			if c.entries > c.o0().MaxEntries || c.octets > c.o0().MaxOctets {
				t.Fatalf("after %d: %d entries, %d octets", i, c.entries, c.octets)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
			t.Errorf("it holds %d MiB more", grown>>20)
		}
		entries, octets := c.entries, c.octets
		if err := c.count(); err != nil || entries != c.entries || octets != c.octets {
			t.Errorf("counted %d entries and %d octets, there are %d and %d: %v", entries, octets, c.entries, c.octets, err)
		}
		if c.entries < c.o0().MaxEntries/2 && c.octets < c.o0().MaxOctets/2 {
			t.Errorf("only %d entries, %d octets are left", c.entries, c.octets)
		}
		for i := range good {
			if wait := c.try("192.0.2.1", fmt.Sprint("good", i)); wait > 0 {
				t.Fatalf("good %d is forgotten", i)
			}
		}
	}
}

// o0 are the options with their defaults.
func (c *clocked) o0() Options { return c.Store.o }

// TestTidy: at night, what is too old goes.
func TestTidy(t *testing.T) {
	c := open(t, Options{})
	c.try("192.0.2.1", "passes")
	c.try("192.0.2.2", "never comes again")
	c.now = c.now.Add(301 * time.Second)
	c.try("192.0.2.1", "passes")
	for _, tt := range []struct {
		after   time.Duration
		entries int // one more for each attempt here
	}{
		{24 * time.Hour, 4},
		{62 * time.Hour, 4},                 // 2 o'clock: one never came again
		{63 * time.Hour, 5},                 // not again in the same night
		{36*24*time.Hour + 15*time.Hour, 1}, // 3 o'clock: only what comes now is left
	} {
		c.now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC).Add(tt.after)
		if c.try("192.0.2.9", fmt.Sprint("at ", tt.after)); c.entries != tt.entries {
			t.Errorf("%s: %d entries, want %d", c.now, c.entries, tt.entries)
		}
	}
	c.now = c.now.Add(3 * 24 * time.Hour)
	if c.Exempt(); c.entries != 0 {
		t.Errorf("%d entries: an attempt that is exempt is one to tidy after, too", c.entries)
	}
}

// TestDamage: a damaged store is put aside, and one that can't be written is
// replaced by memory.
func TestDamage(t *testing.T) {
	c := open(t, Options{})
	c.try("192.0.2.1", "a")
	c.Close()
	current := filepath.Join(c.o.Dir, "CURRENT")
	if err := os.WriteFile(current, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, c.o)
	if again.inside || again.entries != 0 {
		t.Errorf("in memory %v, %d entries", again.inside, again.entries)
	}
	if b, err := os.ReadFile(filepath.Join(c.o.Dir+".damaged", "CURRENT")); err != nil || string(b) != "nonsense\n" {
		t.Errorf("put aside: %q, %v", b, err)
	}
	if wait := again.try("192.0.2.1", "a"); wait != 300 {
		t.Errorf("the new store waits %d s", wait)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	within := open(t, Options{Dir: filepath.Join(file, "greylist"), MaxEntries: 1000})
	if !within.inside {
		t.Fatal("it isn't in memory")
	}
	for i := range 500 {
		within.try("192.0.2.1", fmt.Sprint(i))
	}
	if within.entries > 100 {
		t.Errorf("%d entries in memory", within.entries)
	}
	if wait := within.try("192.0.2.1", "499"); wait != 300 {
		t.Errorf("in memory: %d s", wait)
	}
}

// TestFailure: a database that fails at work is replaced, and the attempt is
// answered.
func TestFailure(t *testing.T) {
	c := open(t, Options{})
	c.try("192.0.2.1", "a")
	c.db.Close() // every operation fails from now on
	if wait := c.try("192.0.2.1", "b"); wait != 300 || !c.inside || c.entries != 1 {
		t.Errorf("wait %d s, in memory %v, %d entries", wait, c.inside, c.entries)
	}
}
