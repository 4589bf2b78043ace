package policysync

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/understudy-mx/understudy/policy"
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
		if _, err := newSource(spec); err != nil {
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
		if d := deleted(old, c); d.mass(0) {
			b.Fatal("a deletion where nothing was deleted")
		}
		if _, err := compile(c.spec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookupMillion looks recipients up in the built table, and reports
// the heap that the follower's content takes.
func BenchmarkLookupMillion(b *testing.B) {
	spec, _ := million(b)
	src := source1(b, spec)
	h, l := layoutOf(b, src)
	n := 0
	c, err := build(h, l, nil, load(src, &n))
	if err != nil {
		b.Fatal(err)
	}
	table := c.spec.Tables["recipients"]
	var keys [][]byte
	for i := 0; i < table.Len(); i += 997 {
		k, _ := table.Entry(i)
		keys = append(keys, append([]byte(nil), k...))
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	i := 0
	for b.Loop() {
		if table.Find(keys[i%len(keys)]) < 0 {
			b.Fatal("a recipient is missing")
		}
		i++
	}
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
	runtime.KeepAlive(c)
}
