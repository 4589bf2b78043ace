package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/understudy-mx/understudy/metrics"
)

// formatVersion is the layout that this code writes and reads. A higher one
// on disk is refused, a lower one is converted at Open (there is none yet).
const formatVersion = 1

// maxBatch bounds the octets of one synced batch, but for a single larger
// message.
const maxBatch = 1 << 20

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

// unmerged is o with tables that are never merged. LevelDB gives up writing for
// good once it meets a damaged block in a merge; what else is in the store can
// be relayed, and more be accepted, without.
func unmerged(o opt.Options) opt.Options {
	const never = 1 << 40
	o.CompactionL0Trigger, o.WriteL0SlowdownTrigger, o.WriteL0PauseTrigger = never, never, never
	o.CompactionTotalSize = never
	return o
}

var synced = &opt.WriteOptions{Sync: true}

// store is the LevelDB of a queue: readers come and go, one writer writes,
// and after a failed write it is closed and opened again.
type store struct {
	dir  string
	disk Disk
	m    *metrics.Metrics
	warn func(kind, line string)

	readOnly    bool // nothing on the disk changes
	writeBuffer int  // LevelDB's, in tests; 0 is levelOptions'

	// damaged says that a merge has met a damaged block: none is tried again
	// before the next start.
	damaged atomic.Bool

	// mu is held for reading while db is read, and for writing only to
	// replace db. No write or sync happens under it.
	mu   sync.RWMutex
	db   *leveldb.DB // nil while the store can't be opened
	stor storage.Storage
}

// openStore opens DIR/store, creating it beside its place first (D4): a power
// cut during LevelDB's first open leaves one that can't be opened.
func openStore(s *store) error {
	if _, err := resume(s.disk, s.dir); err != nil {
		return err
	}
	if _, err := s.disk.List(s.dir); errors.Is(err, fs.ErrNotExist) {
		if err := s.create(filepath.Dir(s.dir)); err != nil {
			return fmt.Errorf("create store: %w", err)
		}
	} else if err != nil {
		return err
	}
	if err := s.open(s.dir); err != nil {
		return err
	}
	return s.checkFormat()
}

func (s *store) create(parent string) error {
	tmp := s.dir + ".new"
	if err := s.disk.Remove(tmp); err != nil {
		return err
	}
	if err := s.disk.Mkdir(tmp); err != nil {
		return err
	}
	if err := s.open(tmp); err != nil {
		return err
	}
	b := new(leveldb.Batch)
	b.Put([]byte{spaceFormat}, binary.AppendUvarint(nil, formatVersion))
	b.Put([]byte{spaceTotals}, (&totals{next: 1}).encode())
	err := s.db.Write(b, synced)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := s.disk.SyncDir(tmp); err != nil {
		return err
	}
	if err := s.disk.Rename(tmp, s.dir); err != nil {
		return err
	}
	return s.disk.SyncDir(parent)
}

func (s *store) open(dir string) error {
	return s.openWith(dir, func(stor storage.Storage, o *opt.Options) (*leveldb.DB, error) {
		if !s.readOnly {
			if err := checkManifest(stor, *o); err != nil {
				return nil, err
			}
		}
		return leveldb.Open(stor, o)
	})
}

func (s *store) options() opt.Options {
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

func (s *store) openWith(dir string, open func(storage.Storage, *opt.Options) (*leveldb.DB, error)) error {
	stor, err := s.disk.Store(dir, s.readOnly)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	stride := newStride()
	var wrapped storage.Storage = &syncedStorage{Storage: stor, dir: dir, disk: s.disk, alarm: s.warn, stride: stride}
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

// close waits for the readers and closes the store.
func (s *store) close() error {
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

func (s *store) checkFormat() error {
	v, err := s.get([]byte{spaceFormat})
	if err != nil {
		return fmt.Errorf("read format version: %w", err)
	}
	switch version, n := binary.Uvarint(v); {
	case n <= 0:
		return fmt.Errorf("read format version: %w: %x", errRecord, v)
	case version > formatVersion:
		return fmt.Errorf("%w: format %d, this program knows up to %d", ErrNewerVersion, version, formatVersion)
	}
	return nil
}

// errClosedStore is what readers get while the store is being reopened.
var errClosedStore = errors.New("queue's store is being reopened")

// get reads one key; leveldb.ErrNotFound when it isn't there.
func (s *store) get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return nil, errClosedStore
	}
	return s.db.Get(key, nil)
}

func (s *store) has(key []byte) (bool, error) {
	_, err := s.get(key)
	if errors.Is(err, leveldb.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// page calls fn for the keys in r, in order, until fn returns false. Key and
// value are valid during the call only. The iterator is short-lived (an open
// one pins files), so fn must be quick and bounded.
func (s *store) page(r *util.Range, fn func(key, value []byte) bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return errClosedStore
	}
	it := s.db.NewIterator(r, nil)
	defer it.Release()
	for it.Next() {
		if !fn(it.Key(), it.Value()) {
			break
		}
	}
	return it.Error()
}

// A scan takes as much at a time: so many keys, or so many octets.
const (
	scanKeys   = 4096
	scanOctets = 256 << 10
)

// scan calls fn for all keys with a prefix, in order, until fn fails. It holds
// no lock meanwhile: fn may take its time, and read the store itself. Keys that
// come or go meanwhile may or may not be seen. Key and value are valid during
// the call only.
func (s *store) scan(prefix []byte, fn func(key, value []byte) error) error {
	type span struct{ key, end int }
	var last, held []byte
	var spans []span
	for more := true; more; {
		held, spans = held[:0], spans[:0]
		more = false
		err := s.page(from(prefix, last), func(key, value []byte) bool {
			held = append(append(held, key...), value...)
			spans = append(spans, span{len(held) - len(value), len(held)})
			more = len(spans) == scanKeys || len(held) >= scanOctets
			return !more
		})
		start := 0
		for _, at := range spans {
			key, value := held[start:at.key:at.key], held[at.key:at.end:at.end]
			if err := fn(key, value); err != nil {
				return err
			}
			last, start = append(last[:0], key...), at.end
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// write is for the one writer only.
func (s *store) write(b *leveldb.Batch) error {
	s.mu.RLock()
	db := s.db
	s.mu.RUnlock()
	if db == nil {
		return errClosedStore
	}
	return db.Write(b, synced)
}

// compact gives back the space of deleted keys, unless the store is damaged. It
// takes long and holds no lock: close ends it.
func (s *store) compact(r util.Range) error {
	s.mu.RLock()
	db := s.db
	s.mu.RUnlock()
	if s.damaged.Load() {
		return nil
	}
	if db == nil {
		return errClosedStore
	}
	err := db.CompactRange(r)
	if errors.Is(err, leveldb.ErrClosed) {
		err = errClosedStore
	}
	return err
}

// loadTotals reads the counts as the last durable batch left them.
func (s *store) loadTotals() (totals, error) {
	b, err := s.get([]byte{spaceTotals})
	if err != nil {
		return totals{}, fmt.Errorf("read totals: %w", err)
	}
	return decodeTotals(b)
}

// load reads a record; nil when there is none, errRecord when it is damaged.
func (s *store) load(seq uint64) (*record, error) {
	b, err := s.get(seqKey(spaceRecord, seq))
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err == nil && r.seq != seq {
		err = fmt.Errorf("%w: number %d under %d", errRecord, r.seq, seq)
	}
	return r, err
}

// seqOf finds a message by its ID.
func (s *store) seqOf(id string) (uint64, error) {
	if !validID(id) {
		return 0, ErrNotFound
	}
	b, err := s.get(idKey(id))
	if errors.Is(err, leveldb.ErrNotFound) || err == nil && len(b) != 8 {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// bodyFile is where a large body lies: one directory for each last character
// of the ID, so that directory syncs of different messages don't queue.
func (q *Queue) bodyFile(id string) string {
	return filepath.Join(q.bodyDir(id[idLen-1:]), id)
}

func (q *Queue) bodyDir(shard string) string { return filepath.Join(q.o.Dir, "body", shard) }

// makeBodyDirs makes them all, durably. It syncs even when all are there: an
// earlier start may have failed between making and syncing them.
func (q *Queue) makeBodyDirs() error {
	body := filepath.Join(q.o.Dir, "body")
	if err := q.disk.Mkdir(body); err != nil {
		return err
	}
	for _, c := range strings.Split(idAlphabet, "") {
		if err := q.disk.Mkdir(q.bodyDir(c)); err != nil {
			return err
		}
	}
	if err := q.disk.SyncDir(body); err != nil {
		return err
	}
	return q.disk.SyncDir(q.o.Dir)
}
