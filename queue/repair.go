package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// ErrWhole means that there is nothing to repair.
var ErrWhole = errors.New("queue store can be read in full")

// Repaired is what Repair did.
type Repaired struct {
	Aside       string   `json:"aside"` // the store as it was found, to be kept
	Messages    int      `json:"messages"`
	Quarantined int      `json:"quarantined"`
	Notes       []string `json:"notes"` // at most maxProblems
	More        int      `json:"more"`  // notes beyond
}

// Repair makes a store anew from the tables and journals of one that is
// damaged, while no daemon has it, and audits it. The damaged one is kept
// aside as it was. What can't be read is lost to the queue; a message of which
// only a part is left is quarantined. LevelDB forgets in which order its files
// replaced each other, so mail that has left may be back and be relayed once
// more: that is why no start does this by itself.
//
// A crash leaves the damaged store in place, or the repaired one.
// ErrLocked, ErrWhole, ErrNewerVersion, fs.ErrNotExist.
func Repair(o Options) (Repaired, error) {
	if err := o.setDefaults(); err != nil {
		return Repaired{}, err
	}
	r := &repair{q: &Queue{o: o, disk: o.Disk, log: o.Log, m: o.Metrics}}
	if err := r.run(); err != nil {
		return r.done.Repaired, fmt.Errorf("repair queue %s: %w", o.Dir, err)
	}
	q, err := Open(o)
	if err != nil {
		return r.done.Repaired, fmt.Errorf("open repaired %w", err)
	}
	s := q.Status()
	r.done.Messages, r.done.Quarantined = s.Messages, s.Quarantined
	return r.done.Repaired, q.Close()
}

// notes are a Repaired in the making.
type notes struct{ Repaired }

func (n *notes) add(format string, args ...any) {
	if len(n.Notes) >= maxProblems {
		n.More++
		return
	}
	n.Notes = append(n.Notes, cut(fmt.Sprintf(format, args...)))
}

// repair is one under way.
type repair struct {
	q     *Queue
	done  notes
	batch leveldb.Batch
	next  uint64 // above all numbers found
}

func (r *repair) run() error {
	q, disk := r.q, r.q.disk
	dir := filepath.Join(q.o.Dir, "store")
	if _, err := disk.List(q.o.Dir); err != nil {
		return err
	}
	lock, err := disk.Lock(q.o.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	resumed, err := resume(disk, dir)
	if err != nil {
		return err
	}
	if _, err := disk.List(dir); err != nil {
		return err
	}
	if err := r.damage(dir); resumed && errors.Is(err, ErrWhole) {
		r.done.add("an earlier repair was cut short after its work; the store that it made is in place now")
		r.done.Aside, err = lastAside(disk, dir)
		return err
	} else if err != nil {
		return err
	}
	q.store = &store{dir: dir + ".new", disk: disk, m: q.m, writeBuffer: q.o.writeBuffer,
		warn: func(_, line string) { r.done.add("LevelDB: %s", line) }}
	if err := r.rebuild(dir); err != nil {
		q.store.close()
		return err
	}
	if err := r.strays(); err != nil {
		return err
	}
	return r.swap(dir)
}

// damage returns ErrWhole when the store can be opened and every key read.
func (r *repair) damage(dir string) error {
	s := &store{dir: dir, disk: r.q.disk, m: r.q.m, writeBuffer: r.q.o.writeBuffer, warn: func(_, _ string) {}}
	stor, err := s.disk.Store(dir, true)
	if err != nil {
		return err
	}
	err = checkManifest(stor, s.options())
	stor.Close()
	if err != nil {
		r.done.add("%v", err)
		return nil
	}
	s.readOnly = true
	if err := s.open(dir); err != nil {
		r.done.add("%v", err)
		return nil
	}
	defer s.close()
	if err := s.checkFormat(); errors.Is(err, ErrNewerVersion) {
		return err
	}
	if err := s.scan(nil, func(_, _ []byte) error { return nil }); err != nil {
		r.done.add("%v", err)
		return nil
	}
	return ErrWhole
}

// rebuild makes the new store, beside the damaged one, of links to its files:
// LevelDB writes to no file that it finds.
func (r *repair) rebuild(dir string) error {
	s, disk := r.q.store, r.q.disk
	names, err := disk.List(dir)
	if err != nil {
		return err
	}
	if err := disk.Remove(s.dir); err != nil {
		return err
	}
	if err := disk.Mkdir(s.dir); err != nil {
		return err
	}
	for _, name := range names {
		if ext := filepath.Ext(name); ext == ".ldb" || ext == ".log" {
			if err := disk.Link(filepath.Join(dir, name), filepath.Join(s.dir, name)); err != nil {
				return err
			}
		}
	}
	if err := disk.SyncDir(s.dir); err != nil {
		return err
	}
	recovered := func(stor storage.Storage, o *opt.Options) (*leveldb.DB, error) {
		if err := r.salvage(stor); err != nil {
			return nil, err
		}
		return leveldb.Recover(stor, o)
	}
	if err := s.openWith(s.dir, recovered); err != nil {
		return err
	}
	if err := s.checkFormat(); errors.Is(err, leveldb.ErrNotFound) {
		r.batch.Put([]byte{spaceFormat}, binary.AppendUvarint(nil, formatVersion))
		r.done.add("the format's version is lost; it was taken to be %d", formatVersion)
	} else if err != nil {
		return err
	}
	for _, step := range []func() error{r.records, r.orphans, r.counts} {
		if err := errors.Join(step(), r.flush(0)); err != nil {
			return err
		}
	}
	return nil
}

// flush writes the batch when it has more than so many changes.
func (r *repair) flush(above int) error {
	if r.batch.Len() <= above {
		return nil
	}
	err := r.q.store.write(&r.batch)
	r.batch.Reset()
	return err
}

// records sees to it that each message is found by its ID: its body's file
// counts as orphaned else.
func (r *repair) records() error {
	return r.q.store.scan([]byte{spaceRecord}, func(key, value []byte) error {
		seq := keySeq(key)
		r.next = max(r.next, seq+1)
		rec, err := decodeRecord(value)
		if err != nil {
			return nil // the audit's
		}
		at, err := r.q.store.seqOf(rec.env.ID)
		if err != nil && !errors.Is(err, ErrNotFound) || at == seq {
			return err
		}
		r.batch.Put(idKey(rec.env.ID), binary.BigEndian.AppendUint64(nil, seq))
		return r.flush(1000)
	})
}

// orphans quarantines each body or ID whose record is lost: what is left can be
// exported.
func (r *repair) orphans() error {
	put := map[uint64]bool{}
	orphan := func(seq uint64) error {
		r.next = max(r.next, seq+1)
		if put[seq] {
			return nil
		}
		for _, space := range []byte{spaceRecord, spaceQuarantine} {
			if ok, err := r.q.store.has(seqKey(space, seq)); ok || err != nil {
				return err
			}
		}
		put[seq] = true
		r.batch.Put(seqKey(spaceQuarantine, seq), nil)
		r.done.add("number %d: the record is lost; see queue quarantine export", seq)
		return r.flush(1000)
	}
	err := r.q.store.scan([]byte{spaceBody}, func(key, _ []byte) error { return orphan(keySeq(key)) })
	if err != nil {
		return err
	}
	return r.q.store.scan([]byte{spaceID}, func(_, value []byte) error {
		if len(value) != 8 {
			return nil
		}
		return orphan(binary.BigEndian.Uint64(value))
	})
}

// counts makes the totals such that no number is given twice.
func (r *repair) counts() error {
	t, err := r.q.store.loadTotals()
	if err != nil && !errors.Is(err, errRecord) && !errors.Is(err, leveldb.ErrNotFound) {
		return err
	}
	t.quarantined = 0
	err = r.q.store.scan([]byte{spaceQuarantine}, func(key, _ []byte) error {
		r.next = max(r.next, keySeq(key)+1)
		t.quarantined++
		return nil
	})
	t.next = max(t.next, r.next, 1)
	r.batch.Put([]byte{spaceTotals}, t.encode())
	return err
}

// strays moves body files aside that nothing names any more: the next start
// would remove them, and one may be a message's whose record and ID are lost.
func (r *repair) strays() error {
	q := r.q
	aside := filepath.Join(q.o.Dir, "body", "aside")
	for _, c := range strings.Split(idAlphabet, "") {
		names, err := q.disk.List(q.bodyDir(c))
		if err != nil {
			return err
		}
		for _, name := range names {
			if !validID(name) {
				continue
			}
			if known, err := q.store.has(idKey(name)); known || err != nil {
				if err != nil {
					return err
				}
				continue
			}
			if err := q.disk.Mkdir(aside); err != nil {
				return err
			}
			if err := q.disk.Rename(filepath.Join(q.bodyDir(c), name), filepath.Join(aside, name)); err != nil {
				return err
			}
			r.done.add("a body of which nothing else is left is now %s", filepath.Join(aside, name))
		}
	}
	return nil
}

// swap puts the new store in the place of the damaged one. Between the two
// renames the repaired one has a name that openStore knows.
func (r *repair) swap(dir string) error {
	s, disk, parent := r.q.store, r.q.disk, r.q.o.Dir
	if err := s.close(); err != nil {
		return err
	}
	if err := disk.SyncDir(s.dir); err != nil {
		return err
	}
	r.done.Aside = dir + asideInfix + r.q.now().UTC().Format("20060102T150405Z")
	for _, move := range [][2]string{{s.dir, dir + repairedSuffix}, {dir, r.done.Aside}, {dir + repairedSuffix, dir}} {
		if err := disk.Rename(move[0], move[1]); err != nil {
			return err
		}
		if err := disk.SyncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

// resume puts a repaired store in its place when a crash kept Repair from the
// last step.
func resume(disk Disk, dir string) (resumed bool, err error) {
	parent := filepath.Dir(dir)
	names, err := disk.List(parent)
	if err != nil || slices.Contains(names, filepath.Base(dir)) || !slices.Contains(names, filepath.Base(dir)+repairedSuffix) {
		return false, err
	}
	return true, errors.Join(disk.Rename(dir+repairedSuffix, dir), disk.SyncDir(parent))
}

// lastAside is the store that was put aside last.
func lastAside(disk Disk, dir string) (aside string, err error) {
	names, err := disk.List(filepath.Dir(dir))
	for _, name := range names {
		if name = filepath.Join(filepath.Dir(dir), name); strings.HasPrefix(name, dir+asideInfix) {
			aside = max(aside, name)
		}
	}
	return aside, err
}

// asideInfix is in the name of a damaged store, before the time.
const asideInfix = ".damaged-"

// repairedSuffix is behind the name of a store that Repair has finished.
const repairedSuffix = ".repaired"
