package queue

import (
	"context"
	"flag"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
)

var crashStates = flag.Int("crash", 3000, "how many power cuts TestPowerCut looks at; see `make crash`")

// life is a queue being used: everything that it can be asked to do, in an
// order that the seed says.
type life struct {
	t    *testing.T
	disk *testmx.Disk
	b    *book
	rnd  *rand.Rand
	q    *Queue
	n    int
}

func (l *life) options() Options {
	o := options(l.disk)
	o.Relayer = hop{l.b}
	o.MaxAge = 3 * time.Hour
	o.Return = true
	o = buffered(o, 8<<10) // so that journals rotate and tables are merged
	return o
}

// body is of any size, and seldom above maxInline.
func (l *life) body(what string) string {
	l.n++
	size := l.rnd.IntN(3000)
	if l.rnd.IntN(10) == 0 {
		size = maxInline + 1 + l.rnd.IntN(10_000)
	}
	return bodyOf(size, l.n) + what
}

func (l *life) accept() {
	domains := []string{"a@defer.example", "a@refuse.example", "a@later.example", "a@example.com"}
	if l.rnd.IntN(6) == 0 {
		l.b.accept(l.q, l.body("for two"), domains[l.rnd.IntN(2)], domains[3])
		return
	}
	to := domains[l.rnd.IntN(len(domains))]
	if to == "a@refuse.example" && l.rnd.IntN(3) > 0 {
		l.b.acceptEnv(l.q, l.body(""), returnable(to))
		return
	}
	l.b.accept(l.q, l.body(""), to)
}

// any picks a message in the queue.
func (l *life) any() string {
	var ids []string
	l.q.Walk(context.Background(), func(i Info) error {
		if !i.Report {
			ids = append(ids, i.ID)
		}
		return nil
	})
	if len(ids) == 0 {
		return "none"
	}
	return ids[l.rnd.IntN(len(ids))]
}

// run drains for d of the bubble's time.
func (l *life) run(d time.Duration, meanwhile func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.q.Run(ctx) }()
	meanwhile()
	time.Sleep(d)
	cancel()
	<-done
}

func (l *life) step() {
	switch l.rnd.IntN(14) {
	case 0, 1, 2, 3:
		l.accept()
	case 4: // together
		bodies := []string{l.body(""), l.body(""), l.body("")}
		var wg sync.WaitGroup
		for _, body := range bodies {
			wg.Go(func() { l.b.accept(l.q, body, "a@example.com") })
		}
		wg.Wait()
	case 5, 6:
		l.run(time.Duration(l.rnd.IntN(200))*time.Millisecond, func() {})
	case 7: // so long that the deferred are tried again, and the oldest are held
		l.run(time.Duration(l.rnd.IntN(4))*time.Hour, l.accept)
	case 8:
		l.b.change(l.any(), isHeld, l.q.Hold)
	case 9:
		id := l.any() // held or not
		l.b.begin(id, isQueued)
		l.q.Release(id)
	case 10:
		l.b.change(l.any(), isGone, l.q.Remove)
	case 11:
		l.q.Flush()
		l.run(time.Millisecond, func() {})
	case 12:
		l.q.store.Reclaim(store.Range{})
	case 13:
		l.reopen()
	}
}

func (l *life) reopen() {
	if l.q != nil {
		mustClose(l.t, l.q)
	}
	l.q = mustOpen(l.t, l.options())
}

// image is a disk after a power cut, and what was promised by then.
type image struct {
	what  string
	disk  *testmx.Disk
	mails map[string]promise
	again int  // cut the power once more, so many operations into the recovery
	drain bool // relay what is there
}

// live plays one life and cuts the power ahead of each of its operations, in
// each of three ways.
func live(t *testing.T, seed uint64) (images []image) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	disk, b := newMemDisk(), newBook()
	disk.Journaling = seed%2 == 1
	cuts := rand.New(rand.NewPCG(seed, 2))
	disk.Watch(func(op testmx.Op) {
		mails := b.now()
		for _, left := range []testmx.Left{testmx.LeftNothing, testmx.LeftAll, testmx.LeftSome, testmx.LeftSome} {
			i := image{disk: disk.Cut(left, cuts), mails: mails,
				what: fmt.Sprintf("seed %d, cut before %d (%s %s), unsynced: %d", seed, op.N, op.Kind, op.Name, left)}
			if cuts.IntN(8) == 0 {
				i.again = 1 + cuts.IntN(30)
			}
			i.drain = cuts.IntN(16) == 0
			images = append(images, i)
		}
	})
	l := &life{t: t, disk: disk, b: b, rnd: rnd}
	l.reopen()
	for range 40 {
		l.step()
		if err := b.settle(l.q); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l.q)
	disk.Watch(nil)
	return images
}

// look opens the image, perhaps after a second cut during the recovery.
func (i image) look() error {
	if i.again > 0 {
		rnd := rand.New(rand.NewPCG(uint64(i.again), 3))
		var second *testmx.Disk
		i.disk.Watch(func(op testmx.Op) {
			if op.N == i.again {
				second = i.disk.Cut(testmx.Left(i.again%3), rnd)
			}
		})
		if err := verdict(i.what, i.disk, i.mails, false); err != nil || second == nil {
			return err
		}
		i.what += fmt.Sprintf(", and again before %d of the recovery", i.again)
		i.disk = second
	}
	return verdict(i.what, i.disk, i.mails, i.drain)
}

// TestPowerCut cuts the power ahead of every single operation on the disk of
// one life after another, under both models of what a directory entry needs,
// and looks at what is left. States that were seen before count once.
func TestPowerCut(t *testing.T) {
	seed := maphash.MakeSeed()
	seen := map[uint64]bool{}
	var lives, cuts, looked int
	for s := uint64(0); looked < *crashStates && !t.Failed(); s++ {
		var images []image
		synctest.Test(t, func(t *testing.T) { images = live(t, s); leaveBubble() })
		cuts += len(images)
		images = slices.DeleteFunc(images, func(i image) bool {
			key := i.disk.Sum(seed) ^ sumOf(seed, i.mails)
			if dup := seen[key] && i.again == 0; dup {
				return true
			}
			seen[key] = true
			return false
		})
		if len(images) > *crashStates-looked {
			images = images[:*crashStates-looked]
		}
		lives, looked = lives+1, looked+len(images)
		lookAt(t, images)
	}
	t.Logf("%d lives, %d power cuts, %d different states looked at", lives, cuts, looked)
}

// sumOf tells promises apart.
func sumOf(seed maphash.Seed, mails map[string]promise) (sum uint64) {
	for id, p := range mails {
		sum ^= maphash.Comparable(seed, struct {
			id  string
			may fate
		}{id, p.may})
	}
	return sum
}

// lookAt looks at the images on all processors.
func lookAt(t *testing.T, images []image) {
	var at atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := at.Add(1); int(n) <= len(images) && !t.Failed(); n = at.Add(1) {
				if err := images[n-1].look(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
