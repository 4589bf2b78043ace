package queue

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestPaceSlows: answers that take much longer than they did halve the window,
// constant ones do not, however slow.
func TestPaceSlows(t *testing.T) {
	for _, tt := range []struct {
		name string
		took func(i int) time.Duration
		slow bool
	}{
		{"quick", func(int) time.Duration { return time.Millisecond }, false},
		{"slow all the time", func(int) time.Duration { return 20 * time.Second }, false},
		{"one pause", func(i int) time.Duration {
			if i == 50 {
				return time.Second
			}
			return time.Millisecond
		}, false},
		{"a little slower", func(i int) time.Duration { return time.Duration(100+i) * time.Millisecond }, false},
		{"much slower", func(i int) time.Duration { return time.Duration(10+20*i) * time.Millisecond }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p pace
			p.reset()
			slow := false
			for i := range 200 {
				slow = p.took(tt.took(i)) || slow
			}
			if slow != tt.slow {
				t.Errorf("slow: %v, want %v", slow, tt.slow)
			}
		})
	}
}

// TestPaceForgets: a next hop that is slow for good isn't so for ever. What it took
// in an idle hour is forgotten.
func TestPaceForgets(t *testing.T) {
	var p pace
	p.reset()
	p.took(time.Millisecond)
	const steady = 600 * time.Millisecond
	slow := 0
	for range 3000 {
		if p.took(steady) {
			slow++
		}
	}
	if slow == 0 {
		t.Error("600 times as slow, and never noticed")
	}
	for range 200 {
		if p.took(steady) {
			t.Fatalf("after 3000 messages at the same speed it is still slow; least %v", p.least)
		}
	}
}

// TestWakeIn: a drain looks again when the max rate lets the next message go, or
// when something becomes due; never at once.
func TestWakeIn(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		name            string
		free, due, wait time.Duration // from now on; 0 is none, but for free
		want            time.Duration
	}{
		{"nothing", -time.Second, 0, 0, time.Minute},
		{"the rate", time.Second, 0, 0, time.Second},
		{"the rate, before what is due", 2 * time.Second, time.Second, 0, 2 * time.Second},
		{"the rate, at most", time.Hour, 0, 0, time.Minute},
		{"the rate, almost now", time.Nanosecond, 0, 0, minWait},
		{"the rate, now", 0, 0, 0, time.Minute},
		{"due", -time.Second, 3 * time.Second, 0, 3 * time.Second},
		{"due at once", -time.Second, -time.Second, 0, minWait},
		{"again", -time.Second, 3 * time.Second, 2 * time.Second, 2 * time.Second},
	} {
		d := &dest{pace: pace{free: now.Add(tt.free)}}
		if tt.due != 0 {
			d.due = now.Add(tt.due)
		}
		if tt.wait != 0 {
			d.again = []entry{{wait: now.Add(tt.wait)}}
		}
		if got := d.wakeIn(now, time.Minute); got != tt.want {
			t.Errorf("%s: in %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestPaceAfter: what a message's answers do to the window.
func TestPaceAfter(t *testing.T) {
	h := newFakeHop()
	q := mustOpen(t, drainOptions(h))
	defer mustClose(t, q)
	for _, tt := range []struct {
		name   string
		tally  tally
		took   time.Duration
		inline bool
		less   bool // half the window
		more   bool
	}{
		{name: "relayed", tally: tally{relayed: 1}, more: true},
		{name: "held", tally: tally{held: 1}, more: true},
		{name: "deferred", tally: tally{deferred: 1}, less: true},
		{name: "one of two deferred", tally: tally{relayed: 1, deferred: 1}, less: true},
		{name: "deferred for too long", tally: tally{expired: 1}, less: true},
		{name: "untried", tally: tally{untried: 1}},
		{name: "slow", tally: tally{relayed: 1}, took: time.Hour, inline: true, less: true},
		{name: "slow and large", tally: tally{relayed: 1}, took: time.Hour, more: true},
	} {
		d := &dest{q: q, name: "mx"}
		d.pace.window, d.pace.least, d.pace.usual = 4, time.Millisecond, time.Millisecond
		c := &claim{q: q, d: d, rec: &store.Record{Inline: tt.inline}, to: []int{0}, taken: q.now().Add(-tt.took)}
		c.adjust(tt.tally)
		switch got := d.pace.window; {
		case tt.less && got != 2, tt.more && (got <= 4 || got > 5), !tt.less && !tt.more && got != 4:
			t.Errorf("%s: a window of 4 became %v", tt.name, got)
		}
	}
}

// TestMaxRate: no more messages a second than allowed, however quick the next
// hop, and not many fewer.
func TestMaxRate(t *testing.T) {
	for _, rate := range []int{1, 20, 500} {
		bubble(t, fmt.Sprint(rate), func(t *testing.T) {
			h := newFakeHop()
			o := drainOptions(h)
			o.MaxRate = func(string) int { return rate }
			q := mustOpen(t, o)
			n := 12 * rate
			for i := range n {
				mustAccept(t, q, bodyOf(100, i), "a@example.com")
			}
			stop := run(t, q)
			time.Sleep(10 * time.Second)
			if got, most := len(h.taken()), 10*rate+rate/10+1; got > most || got < 9*rate {
				t.Errorf("%d messages in 10 s at %d a second", got, rate)
			}
			time.Sleep(10 * time.Second)
			if got := len(h.taken()); got != n {
				t.Errorf("%d messages in 20 s, want all %d", got, n)
			}
			stop()
		})
	}
}

// TestSpaceReturns: what was drained leaves the disk when it is compacted, and
// accepting goes on meanwhile.
func TestSpaceReturns(t *testing.T) {
	h := newFakeHop()
	h.took = 0
	o := inDir(options(nil), filepath.Join(t.TempDir(), "q"))
	o.Relayer = h
	q := mustOpen(t, o)
	const n, size = 1200, 40 << 10
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range n / 8 {
				mustAccept(t, q, bodyOf(size, i), "a@example.com")
			}
		})
	}
	wg.Wait()
	full := diskUsage(t, o.Store.String())
	if full < n*size {
		t.Fatalf("%d octets on disk hold %d messages of %d", full, n, size)
	}
	stop := run(t, q)
	for len(h.taken()) < n || q.Stats().Messages > 0 {
		time.Sleep(10 * time.Millisecond) // the real disk: no bubble
	}
	compacted := make(chan struct{})
	go func() {
		defer close(compacted)
		q.compactDrained()
	}()
	for running := true; running; {
		start := time.Now()
		mustAccept(t, q, "while it compacts", "a@example.com")
		if wait := time.Since(start); wait > 20*time.Second {
			t.Errorf("accepting took %v", wait)
		}
		select {
		case <-compacted:
			running = false
		default:
		}
	}
	stop()
	left := diskUsage(t, o.Store.String())
	for began := time.Now(); left > full/4 && time.Since(began) < 10*time.Second; left = diskUsage(t, o.Store.String()) {
		time.Sleep(10 * time.Millisecond) // LevelDB removes old files behind a compaction's back
	}
	if left > full/4 {
		t.Errorf("%d of %d octets still on disk", left, full)
	}
}

// TestReclaim: space returns within a minute of a drain, also of one that took
// less time than lies between two looks, or left in an earlier life.
func TestReclaim(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		disk := newMemDisk()
		usage := func() (sum int) {
			for _, name := range disk.Files("/q/store") {
				sum += len(disk.Bytes(name))
			}
			return sum
		}
		h := newFakeHop()
		h.took = 0
		const n, size = 900, 40 << 10
		for life := range 2 {
			o := buffered(options(disk), 0)
			o.Relayer = h
			q := mustOpen(t, o)
			stop := run(t, q)
			if life == 1 {
				time.Sleep(reclaimEvery + time.Second)
				if left := usage(); left > n*size/4 {
					t.Errorf("%d octets on disk of an earlier life", left)
				}
			}
			for i := range n {
				mustAccept(t, q, bodyOf(size, i), "a@example.com")
			}
			full := usage()
			if full < n*size/2 {
				t.Fatalf("life %d: %d octets on disk", life, full)
			}
			for q.Stats().Messages > 0 {
				time.Sleep(100 * time.Millisecond)
			}
			if life == 1 {
				time.Sleep(reclaimEvery)
			}
			stop()
			if left := usage(); life == 1 && left > full/4 {
				t.Errorf("%d of %d octets still on disk", left, full)
			}
		}
	})
}

func diskUsage(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			fi, ierr := e.Info()
			if ierr == nil {
				sum += fi.Size()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
