//go:build !race

// Like TestFaults, without the race detector: see faults_test.go.

package queue

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// stall is what stands for a long delay: many times what any operation takes.
const stall = 400 * time.Millisecond

// TestSlowDisk has the Nth operation take its time, one at a time and with all
// behind it for a while. It runs in real time: goleveldb holds locks over many
// operations, and a bubble's clock stands still while a goroutine waits for a
// lock. What was begun ends once the disk goes on, nothing is refused for good,
// mail is accepted again at once, and a power cut then loses nothing.
func TestSlowDisk(t *testing.T) {
	total := slowLife(t, 0, false)
	rnd := rand.New(rand.NewPCG(7, 7))
	const runs = 40
	var lives sync.WaitGroup
	for k := range runs {
		n := 1 + k*total/runs + rnd.IntN(max(1, total/runs))
		lives.Go(func() { slowLife(t, n, k%2 == 1) })
		if k%8 == 7 {
			lives.Wait()
		}
	}
	lives.Wait()
	t.Logf("%d of %d operations", runs, total)
}

// slowLife lives with operation n delayed, or all from n on until stall has
// passed. It returns the number of operations.
func slowLife(t *testing.T, n int, all bool) int {
	var at atomic.Int64
	var once sync.Once
	var until time.Time
	disk := newMemDisk()
	disk.Fault(func(testmx.Op) error {
		switch k := int(at.Add(1)); {
		case k == n && !all:
			time.Sleep(stall) // it is what the test is about, and no wait for anything
		case k >= n && n > 0 && all:
			once.Do(func() { until = time.Now().Add(stall) })
			time.Sleep(time.Until(until))
		}
		return nil
	})
	l := &life{t: t, disk: disk, b: newBook(), rnd: rand.New(rand.NewPCG(1, 1))}
	l.q = mustOpen(t, l.options())
	var senders sync.WaitGroup
	for w := range 4 {
		senders.Go(func() {
			for k := range 6 {
				size := 500 + 400*w
				if k == 3 && w == 0 {
					size = maxInline + 1000
				}
				began := time.Now()
				_, err := l.b.accept(l.q, bodyOf(size, 10*w+k), "a@example.com")
				if took := time.Since(began); err != nil || took > stall+backWithin {
					t.Errorf("operation %d: accepting took %v, %v", n, took, err)
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	drained := make(chan struct{})
	go func() { defer close(drained); l.q.Run(ctx) }()
	senders.Wait()
	l.b.change(l.any(), isGone, l.q.Remove)
	cancel()
	<-drained
	began := time.Now()
	if _, err := l.b.accept(l.q, "after", "a@defer.example"); err != nil || time.Since(began) > stall+backWithin {
		t.Errorf("operation %d: afterwards accepting took %v, %v", n, time.Since(began), err)
	}
	if err := l.b.settle(l.q); err != nil {
		t.Errorf("operation %d: %v", n, err)
	}
	disk.Fault(nil)
	var image *testmx.Disk
	disk.Watch(func(testmx.Op) {
		if image == nil {
			image = disk.Cut(testmx.LeftNothing, nil)
		}
	})
	if err := l.q.Healthy(); err != nil {
		t.Errorf("operation %d: %v", n, err)
	}
	disk.Watch(nil)
	if err := l.q.Close(); err != nil {
		t.Errorf("operation %d: %v", n, err)
	}
	if err := verdict("slow", image, l.b.now(), false); err != nil {
		t.Errorf("operation %d: %v", n, err)
	}
	return int(at.Load())
}
