package queue

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// cpuTime is what this process has computed for.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMillion queues UNDERSTUDY_QUEUED messages of 4 KiB on the file system and
// shows each tenth's rate, and what memory and start-up cost then: with the tables in the page cache,
// and from the disk. It is for the operator of a benchmark.
func TestMillion(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("UNDERSTUDY_QUEUED"))
	if n == 0 {
		t.Skip("UNDERSTUDY_QUEUED is not set")
	}
	o := inDir(options(nil), t.TempDir()+"/q")
	q := mustOpen(t, o)
	runtime.GC()
	t.Logf("idle: %d MiB", rss())
	for tenth := range 10 {
		start, cpu := time.Now(), cpuTime(t)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range n / 200 {
					mustAccept(t, q, bodyOf(4096, 1), "a@example.com")
				}
			})
		}
		wg.Wait()
		took, n := time.Since(start), n/200*20
		t.Logf("tenth %d: %.0f a second, %.0f µs of CPU a message, %d MiB", tenth+1, float64(n)/took.Seconds(),
			float64((cpuTime(t)-cpu).Microseconds())/float64(n), rss())
	}
	runtime.GC()
	t.Logf("queued %d: %d MiB", q.Stats().Messages, rss())
	var start time.Time
	mustClose(t, q)
	for _, how := range []string{"warm", "cold"} {
		if how == "cold" {
			forget(t, o.Store.String()+"/store")
		}
		start = time.Now()
		o.Metrics = nil
		q = mustOpen(t, o)
		t.Logf("open, %s: %v, %d MiB", how, time.Since(start), rss())
		mustClose(t, q)
	}
}

// forget has the page cache drop a directory's files.
func forget(t *testing.T, dir string) {
	names, err := filepath.Glob(dir + "/*")
	if err != nil || len(names) == 0 {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(f.Fd())
		if err := errors.Join(unix.Fsync(fd), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
