package leveldb

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
)

var errDisk = errors.New("input/output error")

func newMemDisk() *testmx.Disk {
	d := testmx.NewDisk()
	d.Locked = store.ErrLocked
	return d
}

// steps opens DIR/store on a disk that writes down what is done to it.
func steps(t *testing.T) (s *syncedStorage, log *[]string) {
	disk := newMemDisk()
	disk.Mkdir("/q")
	stor, err := disk.Store("/q", false)
	if err != nil {
		t.Fatal(err)
	}
	log = new([]string)
	disk.Watch(func(op testmx.Op) { *log = append(*log, op.Kind+" "+op.Name) })
	alarm := func(kind, line string) { *log = append(*log, fmt.Sprintf("alarm %s", kind)) }
	return &syncedStorage{Storage: stor, dir: "/q", disk: disk, alarm: alarm, stride: newStride()}, log
}

func TestJournalSyncedOnClose(t *testing.T) {
	s, log := steps(t)
	w, err := s.Create(storage.FileDesc{Type: storage.TypeJournal, Num: 1})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("x"))
	w.Close()
	if want := []string{"create /q/000001.log", "syncdir /q", "write /q/000001.log", "sync /q/000001.log"}; !slices.Equal(*log, want) {
		t.Errorf("got %q, want %q", *log, want)
	}
}

func TestDirectorySynced(t *testing.T) {
	s, _ := steps(t)
	s.disk.(*testmx.Disk).Fault(func(op testmx.Op) error {
		if op.Kind == testmx.OpSyncDir {
			return errDisk
		}
		return nil
	})
	for _, ft := range []storage.FileType{storage.TypeJournal, storage.TypeTable, storage.TypeManifest} {
		if _, err := s.Create(storage.FileDesc{Type: ft, Num: 1}); err == nil {
			t.Errorf("%v: a file whose directory entry is not durable", ft)
		}
	}
}

func TestDroppedJournalRaisesAlarm(t *testing.T) {
	s, log := steps(t)
	for _, line := range []string{
		"db@open opening",
		`journal@drop journal-3 S·32KiB "checksum mismatch"`,
		"journal error: leveldb: batch corrupted: invalid sequence number (skipped)",
		"mem@flush exiting (corruption detected)",
	} {
		s.Log(line)
	}
	if want := []string{"alarm drop", "alarm skipped", "alarm corrupt"}; !slices.Equal(*log, want) {
		t.Errorf("got %q, want %q", *log, want)
	}
}

// TestTwoFaults: a store that could not be reopened twice, whatever of it
// failed, is opened by the third try and has what was committed. The manifest
// is written in the second half of the operations.
func TestTwoFaults(t *testing.T) {
	ops := 0
	for first := 0; first <= ops; first = max(first+1, ops/2) {
		for second := ops / 2; second <= ops; second++ {
			disk := newMemDisk()
			s, err := Dir{Path: "/q", Disk: disk}.Open(func(_, _ string) {})
			if err != nil {
				t.Fatal(err)
			}
			var b store.Batch
			b.Put([]byte("k"), []byte("v"))
			if err := s.Apply(b); err != nil {
				t.Fatal(err)
			}
			for _, fail := range []int{first, second} {
				n := 0
				disk.Fault(func(testmx.Op) error {
					if n++; n == fail {
						return errDisk
					}
					return nil
				})
				_ = s.Reopen() // one that did not fail is as good
				ops = max(ops, n)
			}
			disk.Fault(nil)
			if err := s.Reopen(); err != nil {
				t.Fatalf("operations %d and then %d failed, and then nothing: %v", first, second, err)
			}
			if v, err := s.Get([]byte("k")); err != nil || string(v) != "v" {
				t.Fatalf("operations %d and then %d failed: %q, %v", first, second, v, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if ops < 20 {
		t.Errorf("a reopening took %d operations", ops)
	}
}
