package leveldb

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// TestConform holds a directory to what every store is held to, on a disk that
// loses what was not synced when the power is cut.
func TestConform(t *testing.T) {
	onDisk := func(d *testmx.Disk) Dir { return Dir{Path: "/q", Disk: d, WriteBuffer: 8 << 10} }
	disk := func(o store.Opener) *testmx.Disk { return o.(Dir).Disk.(*testmx.Disk) }
	storetest.Conform(t, storetest.Subject{
		New: func(*testing.T) store.Opener { return onDisk(newMemDisk()) },
		Crash: func(t *testing.T, o store.Opener) store.Opener {
			var left *testmx.Disk
			disk(o).Watch(func(testmx.Op) {
				if left == nil {
					left = disk(o).Cut(testmx.LeftNothing, nil)
				}
			})
			if err := errors.Join(disk(o).Mkdir("/a change"), disk(o).Remove("/a change")); err != nil {
				t.Fatal(err)
			}
			disk(o).Watch(nil)
			left.Locked = store.ErrLocked
			return onDisk(left)
		},
		Fail: func(o store.Opener, fails bool) {
			disk(o).Fault(func(op testmx.Op) error {
				if fails && op.Kind == testmx.OpSync {
					return syscall.EIO
				}
				return nil
			})
		},
	})
}

// TestFileSystem: the directory is ours alone, and a second one who opens it is
// refused by the kernel's lock.
func TestFileSystem(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "q")}
	s, err := d.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := d.Open(nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := d.OpenReadOnly(nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("opened for reading: %v", err)
	}
}
