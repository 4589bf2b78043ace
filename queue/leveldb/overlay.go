package leveldb

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// overlay lets LevelDB write to memory, over a storage that stays as it is. A
// store that is only looked at is opened on one: goleveldb's own read-only mode
// fails when there are two journals (recoverJournalRO, "EOF"), as there are
// when the daemon was killed under load.
// To be removed when that is mended: TestViewOfTwoJournals tells.
type overlay struct {
	base, mem storage.Storage
	alarm     func(kind, line string)

	mu   sync.Mutex // guards gone
	gone map[storage.FileDesc]bool
}

func newOverlay(base storage.Storage, alarm func(kind, line string)) *overlay {
	return &overlay{base: base, mem: storage.NewMemStorage(), alarm: alarm, gone: map[storage.FileDesc]bool{}}
}

// lookOnly keeps LevelDB from merging tables, which would end in memory.
func lookOnly(o opt.Options) opt.Options {
	const never = 1 << 30
	o.CompactionL0Trigger, o.WriteL0SlowdownTrigger, o.WriteL0PauseTrigger = never, never, never
	o.CompactionTotalSize, o.CompactionTotalSizeMultiplier = 1<<50, 1
	return o
}

func (s *overlay) Lock() (storage.Locker, error) { return s.mem.Lock() }
func (s *overlay) Log(line string)               { sound(s.alarm, line) }
func (s *overlay) Close() error                  { return s.base.Close() }

func (s *overlay) SetMeta(fd storage.FileDesc) error { return s.mem.SetMeta(fd) }
func (s *overlay) GetMeta() (storage.FileDesc, error) {
	if fd, err := s.mem.GetMeta(); err == nil {
		return fd, nil
	}
	return manifestOf(s.base)
}

func (s *overlay) List(ft storage.FileType) ([]storage.FileDesc, error) {
	below, err := s.base.List(ft)
	if err != nil {
		return nil, err
	}
	above, err := s.mem.List(ft)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[storage.FileDesc]bool{}
	for _, fd := range append(below, above...) {
		all[fd] = true
	}
	for fd := range s.gone {
		delete(all, fd)
	}
	return slices.Collect(maps.Keys(all)), nil
}

func (s *overlay) isGone(fd storage.FileDesc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone[fd]
}

func (s *overlay) Open(fd storage.FileDesc) (storage.Reader, error) {
	if s.isGone(fd) {
		return nil, os.ErrNotExist
	}
	if r, err := s.mem.Open(fd); err == nil {
		return r, nil
	}
	return s.base.Open(fd)
}

func (s *overlay) Create(fd storage.FileDesc) (storage.Writer, error) {
	s.mu.Lock()
	delete(s.gone, fd)
	s.mu.Unlock()
	return s.mem.Create(fd)
}

func (s *overlay) Remove(fd storage.FileDesc) error {
	s.mu.Lock()
	s.gone[fd] = true
	s.mu.Unlock()
	if err := s.mem.Remove(fd); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Rename is for LevelDB's own repairs, which are not made on an overlay.
func (s *overlay) Rename(_, _ storage.FileDesc) error { return os.ErrPermission }
