package queue

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// rss is this process's resident memory, in MiB.
func rss() int {
	b, _ := os.ReadFile("/proc/self/statm")
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(f[1])
	return pages * os.Getpagesize() >> 20
}

// TestMillion queues UNDERSTUDY_QUEUED messages on the file system and shows
// what memory and start-up cost then. It is for the operator of a benchmark.
func TestMillion(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("UNDERSTUDY_QUEUED"))
	if n == 0 {
		t.Skip("UNDERSTUDY_QUEUED is not set")
	}
	o := options(nil)
	o.writeBuffer = 0
	o.Dir = t.TempDir() + "/q"
	q := mustOpen(t, o)
	runtime.GC()
	t.Logf("idle: %d MiB", rss())
	start := time.Now()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range n / 100 {
				mustAccept(t, q, bodyOf(512, 1), "a@example.com")
			}
		})
	}
	wg.Wait()
	runtime.GC()
	t.Logf("queued %d in %v: %d MiB", q.Stats().Messages, time.Since(start), rss())
	mustClose(t, q)
	start = time.Now()
	o.Metrics = nil
	q = mustOpen(t, o)
	t.Logf("open: %v, %d MiB", time.Since(start), rss())
	mustClose(t, q)
}
