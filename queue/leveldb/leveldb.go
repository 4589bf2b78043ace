package leveldb

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/understudy-mx/understudy/queue/store"
)

var levelOptions = opt.Options{
	// Three write buffers and the cache are what LevelDB may hold in memory.
	WriteBuffer:            4 << 20,
	BlockCacheCapacity:     4 << 20,
	CompactionTableSize:    4 << 20,
	OpenFilesCacheCapacity: 300,
	// The pool keeps a buffer of CompactionTableSize for each table written, and
	// seldom finds one again: 180 MiB while a long queue is merged.
	DisableBufferPool:      true,
	DisableSeeksCompaction: true,
	// A table of each write buffer stays as it is until there are 64: an octet
	// of a backlog below 256 MiB is written twice, to the journal and to one
	// table, not three times, and most have left before the 64th.
	CompactionL0Trigger:    64,
	WriteL0SlowdownTrigger: 160,
	WriteL0PauseTrigger:    240,
	// A batch above WriteBuffer would be a transaction, and OpenTransaction
	// keeps the write lock for ever when it fails: Close would hang. TestFaults
	// tells when goleveldb is better.
	DisableLargeBatchTransaction: true,
	Compression:                  opt.NoCompression, // bodies don't compress
	Filter:                       filter.NewBloomFilter(10),
}

// unmerged is o without merges of tables. LevelDB stops writing for good once a
// merge meets a damaged block; without merges the rest of the store can be
// relayed, and more mail be accepted.
func unmerged(o opt.Options) opt.Options {
	const never = 1 << 40
	o.CompactionL0Trigger, o.WriteL0SlowdownTrigger, o.WriteL0PauseTrigger = never, never, never
	o.CompactionTotalSize = never
	return o
}

var synced = &opt.WriteOptions{Sync: true}

// Store is a queue's directory, open. Readers come and go, one writer writes, and
// after a failed write LevelDB is closed and opened again: goleveldb would lose
// the next acknowledged batch.
type Store struct {
	path string // the queue's directory
	dir  string // LevelDB's, below
	disk Disk
	lock io.Closer
	warn func(kind, line string)

	readOnly    bool // nothing on the disk changes
	writeBuffer int  // LevelDB's, in tests; 0 is levelOptions'

	batch  *leveldb.Batch // the writer's, used again and again
	broken error          // what the last write failed with

	// damaged says that a merge has met a damaged block: none is tried again
	// before the next start.
	damaged atomic.Bool

	// mu is held for reading while db is read, and for writing only to
	// replace db. No write or sync happens under it.
	mu   sync.RWMutex
	db   *leveldb.DB // nil while the store can't be opened
	stor storage.Storage
}

func (s *Store) open() error {
	return s.openWith(func(stor storage.Storage, o *opt.Options) (*leveldb.DB, error) {
		if !s.readOnly {
			if err := checkManifest(stor, *o); err != nil {
				return nil, err
			}
		}
		return leveldb.Open(stor, o)
	})
}

func (s *Store) options() opt.Options {
	o := levelOptions
	if s.writeBuffer > 0 {
		o.WriteBuffer, o.CompactionTableSize = s.writeBuffer, 4*s.writeBuffer
	}
	if s.damaged.Load() {
		o = unmerged(o)
	}
	if s.readOnly {
		return lookOnly(o)
	}
	return o
}

func (s *Store) openWith(open func(storage.Storage, *opt.Options) (*leveldb.DB, error)) error {
	stor, err := s.disk.Store(s.dir, s.readOnly)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	stride := newStride()
	var wrapped storage.Storage = &syncedStorage{Storage: stor, dir: s.dir, disk: s.disk, alarm: s.warn, stride: stride}
	if s.readOnly {
		wrapped = newOverlay(stor, s.warn)
	}
	o := s.options()
	db, err := open(wrapped, &o)
	if err != nil {
		stor.Close()
		return fmt.Errorf("open store: %w", err)
	}
	stride.on.Store(true) // not while the journal is read
	s.mu.Lock()
	s.db, s.stor = db, stor
	s.mu.Unlock()
	return nil
}

// closeDB waits for the readers and closes LevelDB.
func (s *Store) closeDB() error {
	s.mu.Lock()
	db, stor := s.db, s.stor
	s.db, s.stor = nil, nil
	s.mu.Unlock()
	if db == nil {
		return nil
	}
	err := db.Close()
	if cerr := stor.Close(); err == nil {
		err = cerr
	}
	return err
}

// Get reads one key.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return nil, store.ErrReopening
	}
	b, err := s.db.Get(key, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, store.ErrNotFound
	}
	return b, damaged(err)
}

// Page reads keys in order. The iterator is short-lived: an open one pins files.
func (s *Store) Page(r store.Range, fn func(key, value []byte) bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return store.ErrReopening
	}
	it := s.db.NewIterator(&util.Range{Start: r.Start, Limit: r.Limit}, nil)
	defer it.Release()
	for it.Next() {
		if !fn(it.Key(), it.Value()) {
			break
		}
	}
	return damaged(it.Error())
}

// current returns LevelDB, without a lock, for operations that may take long.
func (s *Store) current() (*leveldb.DB, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return nil, store.ErrReopening
	}
	return s.db, nil
}

// Apply writes a batch to the journal and syncs it (D1).
func (s *Store) Apply(b store.Batch) error {
	db, err := s.current()
	if err != nil {
		return err
	}
	if s.batch == nil || cap(s.batch.Dump()) > 4*store.MaxBatch {
		s.batch = new(leveldb.Batch) // at first, and after a huge message
	}
	s.batch.Reset()
	for _, c := range b {
		if c.Delete {
			s.batch.Delete(c.Key)
		} else {
			s.batch.Put(c.Key, c.Value)
		}
	}
	s.broken = damaged(db.Write(s.batch, synced))
	return s.broken
}

// Reopen closes LevelDB, whether or not that succeeds, and opens it. After a write
// has met damage nothing is merged.
func (s *Store) Reopen() error {
	_ = s.closeDB()
	if errors.Is(s.broken, store.ErrDamaged) {
		s.damaged.Store(true)
	}
	return s.open()
}

// Damaged says that nothing is merged before the next start.
func (s *Store) Damaged() bool { return s.damaged.Load() }

// Reclaim merges tables, unless the store is damaged, or what they have in ranges is
// less than two tables: each of level 0 spans every space, so all of them are merged
// with level 1, and again for as long as mail brings more. Close ends it.
func (s *Store) Reclaim(ranges ...store.Range) error {
	if s.damaged.Load() {
		return nil
	}
	db, err := s.current()
	if err != nil {
		return err
	}
	all := make([]util.Range, len(ranges))
	whole := false
	for i, r := range ranges {
		all[i] = util.Range{Start: r.Start, Limit: r.Limit}
		whole = whole || r.Limit == nil
	}
	sizes, err := db.SizeOf(all)
	if o := s.options(); err == nil && !whole && sizes.Sum() < 2*int64(o.CompactionTableSize) {
		return nil
	}
	for i := 0; i < len(all) && err == nil; i++ {
		err = db.CompactRange(all[i])
	}
	if errors.Is(err, leveldb.ErrClosed) {
		return store.ErrReopening
	}
	return damaged(err)
}
