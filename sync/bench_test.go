package policysync

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

func million(b *testing.B) (before, after *policy.Spec) {
	list := make([]string, 0, 1_000_001)
	for i := range 1000 {
		list = append(list, names(1000, fmt.Sprintf("d%03d.example.org", i))...)
	}
	var domains []string
	for i := range 1000 {
		domains = append(domains, fmt.Sprintf("d%03d.example.org", i))
	}
	return newSpec(b, domains, list...), newSpec(b, domains, append(list, "new@d500.example.org")...)
}

// BenchmarkPublishMillion lays 1 M recipients out: encode, cut, hash.
func BenchmarkPublishMillion(b *testing.B) {
	spec, _ := million(b)
	for b.Loop() {
		if _, err := newSource(spec, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuildMillion builds the tables from the chunks, unpacked already.
func BenchmarkBuildMillion(b *testing.B) {
	spec, _ := million(b)
	src := source1(b, spec)
	h, l := layoutOf(b, src)
	n := 0
	for b.Loop() {
		if _, err := build(h, l, nil, load(src, &n)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChangeMillion applies a change of one recipient to 1 M: build,
// compare with the version before, compile.
func BenchmarkChangeMillion(b *testing.B) {
	one, two := million(b)
	src := source1(b, one)
	h, l := layoutOf(b, src)
	n := 0
	old, err := build(h, l, nil, load(src, &n))
	if err != nil {
		b.Fatal(err)
	}
	src2 := source1(b, two)
	h2, l2 := layoutOf(b, src2)
	for b.Loop() {
		c, err := build(h2, l2, old, load(src2, &n))
		if err != nil {
			b.Fatal(err)
		}
		if d := deleted(old, c, nil); d.mass(nil) {
			b.Fatal("a deletion where nothing was deleted")
		}
		if _, err := compile(c.spec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookupMillion looks recipients up in a built policy, and reports the
// heap that a follower holds it in.
func BenchmarkLookupMillion(b *testing.B) {
	var before, after runtime.MemStats
	c, h := held1(b, &before)
	runtime.GC()
	runtime.ReadMemStats(&after)
	table := c.spec.Tables["recipients"]
	var keys [][]byte
	for i := 0; i < table.Len(); i += 997 {
		k, _ := table.Entry(i)
		keys = append(keys, k)
	}
	i := 0
	for b.Loop() {
		if table.Find(keys[i%len(keys)]) < 0 {
			b.Fatal("a recipient is missing")
		}
		i++
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "heap-MiB")
	runtime.KeepAlive(c)
	runtime.KeepAlive(h)
}

// held1 is what a follower of 1 M recipients holds.
func held1(b *testing.B, before *runtime.MemStats) (*content, *held) {
	runtime.GC()
	runtime.ReadMemStats(before)
	spec, _ := million(b)
	src := source1(b, spec)
	h, l := layoutOf(b, src)
	n := 0
	c, err := build(h, l, nil, load(src, &n))
	if err != nil {
		b.Fatal(err)
	}
	compiled, err := compile(c.spec)
	if err != nil {
		b.Fatal(err)
	}
	return c, compiled
}

// BenchmarkHashMillion is what a publisher does for each follower when
// recipients are hashed: for all of 1 M at first, then for a change of one.
func BenchmarkHashMillion(b *testing.B) {
	one, two := million(b)
	before, after, secret := source1(b, one), source1(b, two), &table.Secret{1}
	hashed, err := hashSource(before, secret, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if _, err := hashSource(before, secret, nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			if _, err := hashSource(after, secret, before, hashed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFollowMillion is a change of one recipient of 1 M from Publish to
// the verdict, over loopback and the disk.
func BenchmarkFollowMillion(b *testing.B) {
	next, _ := million(b)
	p := newTestPublisher(b)
	f := p.follow(b, p.join(b, "mx2"), next.Addresses.Relay.Domains...)
	p.publish(b, next)
	start := time.Now()
	poll(b, f)
	b.Logf("first transfer: %v", time.Since(start).Round(time.Millisecond))
	i := 0
	before := testutil.ToFloat64(f.o.Metrics.SyncBytes)
	for b.Loop() {
		b.StopTimer()
		next, i = plusOne(b, next, i), i+1
		snap := snapshot(b, next)
		b.StartTimer()
		if err := p.Publish(snap); err != nil {
			b.Fatal(err)
		}
		poll(b, f)
	}
	b.ReportMetric((testutil.ToFloat64(f.o.Metrics.SyncBytes)-before)/float64(i), "wire-octets/op")
}

// plusOne is spec with one more recipient, somewhere.
func plusOne(b *testing.B, spec *policy.Spec, i int) *policy.Spec {
	t := spec.Tables["recipients"]
	at := (i + 1) * 7919 % t.Len()
	k, _ := t.Entry(at)
	tb, err := table.NewBuilder(t.Type(), t.Secret())
	if err == nil {
		err = tb.AddRange(t, 0, at+1)
	}
	if err == nil {
		err = tb.Add(append(append([]byte(nil), k...), 'x'), nil)
	}
	if err == nil {
		err = tb.AddRange(t, at+1, t.Len())
	}
	if err != nil {
		b.Fatal(err)
	}
	next := *spec
	next.Tables = map[string]*table.Table{}
	if next.Tables["recipients"], err = tb.Table(); err != nil {
		b.Fatal(err)
	}
	return &next
}
