//go:build !race

// A compaction that fails makes goleveldb close a channel on which it sends
// elsewhere, on purpose and recovered (compTriggerWait and cAuto.ack in its
// db_compaction.go); the race detector can't know. So these tests run without
// it, until goleveldb does otherwise.

package queue

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
)

// faults are what a disk may do to one operation, or to all for a while. For
// one that only takes its time see TestSlowDisk.
var faults = []struct {
	name  string
	err   error
	kinds string
	lasts time.Duration // 0: one operation
}{
	{name: "EIO once", err: syscall.EIO},
	{name: "EIO for a while", err: syscall.EIO, lasts: 20 * time.Second},
	{name: "ENOSPC for a while", err: syscall.ENOSPC, lasts: 20 * time.Second, kinds: "mkdir create write sync rename syncdir"},
	{name: "short write", err: io.ErrShortWrite, kinds: "write"},
}

// TestFaults lets the Nth operation on the disk fail, for every N, reads too;
// goes on; sees that mail is accepted again soon after the fault has gone,
// without a restart; cuts the power, and looks for all that was promised.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := 1
			for more := true; more && !t.Failed(); n++ {
				synctest.Test(t, func(t *testing.T) {
					defer leaveBubble()
					var at, until atomic.Int64 // until: Unix ns
					disk := newMemDisk()
					disk.Fault(func(op testmx.Op) error {
						if f.kinds != "" && !containsWord(f.kinds, op.Kind) {
							return nil
						}
						switch k := at.Add(1); {
						case k < int64(n), f.lasts == 0 && k > int64(n), f.lasts > 0 && k > int64(n) && time.Now().UnixNano() > until.Load():
							return nil
						case k == int64(n):
							until.Store(time.Now().Add(f.lasts).UnixNano())
						}
						return &fs.PathError{Op: op.Kind, Path: op.Name, Err: f.err}
					})
					surviveFault(t, disk, &until)
					more = at.Load() >= int64(n)
				})
				if t.Failed() {
					t.Logf("the fault was at operation %d", n)
				}
			}
			t.Logf("%d operations", n)
		})
	}
}

func containsWord(words, word string) bool {
	for w := range strings.FieldsSeq(words) {
		if w == word {
			return true
		}
	}
	return false
}

// surviveFault lives a short life under a fault. What fails to open is opened
// again, as a service manager does.
func surviveFault(t *testing.T, disk *testmx.Disk, until *atomic.Int64) {
	l := &life{t: t, disk: disk, b: newBook(), rnd: rand.New(rand.NewPCG(1, 1))}
	open := func() {
		for try := 0; ; try++ {
			var err error
			if l.q, err = Open(l.options()); err == nil {
				return
			}
			if try > 30 {
				t.Fatalf("Open does not recover: %v", err)
			}
			time.Sleep(time.Second)
		}
	}
	open()
	defer func() {
		disk.Fault(nil)
		l.q.Close()
	}()
	play := func() {
		for k := range 4 {
			l.accept()
			if k == 1 {
				l.b.change(l.any(), isHeld, l.q.Hold)
			}
		}
		l.b.accept(l.q, bodyOf(maxInline+1000, 1), "a@defer.example")
		l.b.acceptEnv(l.q, l.body(""), returnable("a@refuse.example"))
		l.run(50*time.Millisecond, l.accept)
		l.b.change(l.any(), isGone, l.q.Remove)
	}
	play()
	l.q.Close()
	open()
	play()
	back(t, until, func() error {
		_, err := l.b.accept(l.q, "after", "a@defer.example")
		return err
	})
	play()
	back(t, until, func() error { return l.b.settle(l.q) })
	disk.Fault(nil)
	var image *testmx.Disk
	disk.Watch(func(testmx.Op) {
		if image == nil {
			image = disk.Cut(testmx.LeftNothing, nil)
		}
	})
	if err := l.q.Healthy(); err != nil || image == nil {
		t.Fatal("nothing was written:", err)
	}
	disk.Watch(nil)
	if err := verdict("after the fault", image, l.b.now(), true); err != nil {
		t.Error(err)
	}
}

// back wants do to succeed soon after the fault has gone, if it ever came.
func back(t *testing.T, until *atomic.Int64, do func() error) {
	t.Helper()
	began := time.Now()
	for err := do(); err != nil; err = do() {
		var r *envelope.ReplyError
		if errors.As(err, &r) && r.Reply.Code/100 != 4 {
			t.Errorf("refused with %v", err)
		}
		gone := time.Unix(0, max(until.Load(), began.UnixNano()))
		if time.Since(gone) > backWithin {
			t.Fatalf("%v after the fault: %v", backWithin, err)
		}
		time.Sleep(100 * time.Millisecond) // of the bubble's time
	}
}

// TestReadOnlyWhileMerging has the file system go read-only at each operation of
// a merge in turn, as it does after an error of the disk: what LevelDB began can
// neither be written on nor removed. It must not end the process, and mail is
// accepted again when the disk is well.
func TestReadOnlyWhileMerging(t *testing.T) {
	for n, more := 1, true; more && !t.Failed(); n++ {
		synctest.Test(t, func(t *testing.T) {
			defer leaveBubble()
			disk := newMemDisk()
			q := mustOpen(t, options(disk))
			defer q.Close()
			var gone []string
			for i := range 60 {
				id := mustAccept(t, q, bodyOf(4000, i), "a@example.com")
				if i%2 == 0 {
					gone = append(gone, id)
				}
			}
			for _, id := range gone {
				if err := q.Remove(id); err != nil {
					t.Fatal(err)
				}
			}
			var at atomic.Int64
			var until atomic.Int64
			disk.Fault(func(op testmx.Op) error {
				switch k := at.Add(1); {
				case k < int64(n):
					return nil
				case k == int64(n):
					until.Store(time.Now().Add(20 * time.Second).UnixNano())
				case time.Now().UnixNano() > until.Load():
					return nil
				}
				return &fs.PathError{Op: op.Kind, Path: op.Name, Err: syscall.EROFS}
			})
			merged := make(chan struct{})
			go func() {
				defer close(merged)
				for _, space := range []byte{store.SpaceBody, store.SpaceRecord} {
					_ = q.store.Reclaim(store.Range{Start: []byte{space}, Limit: []byte{space + 1}})
				}
			}()
			time.Sleep(time.Minute)
			more = at.Load() >= int64(n)
			disk.Fault(nil)
			back(t, &until, func() error {
				_, err := accept(q, "after", "a@example.com")
				return err
			})
			<-merged
			if left := len(walk(t, q)); left != 31 {
				t.Errorf("%d messages, want 31", left)
			}
			if t.Failed() {
				t.Logf("read-only from operation %d on", n)
			}
		})
	}
}
