package leveldb

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/understudy-mx/understudy/queue/store"
)

// ErrWhole means that there is nothing to repair.
var ErrWhole = errors.New("queue store can be read in full")

// repairedSuffix ends the name of a store that Swap has finished, asideInfix is
// in the name of a damaged one, before the time.
const (
	repairedSuffix = ".repaired"
	asideInfix     = ".damaged-"
)

// Rebuild is a store made anew, beside a damaged one, of what can be read of
// that. It is open, except when Replaced says that nothing is left to do.
type Rebuild struct {
	*Store
	// Replaced is where the damaged store is kept, once the new one has its place.
	Replaced string

	damaged string // LevelDB's directory
	note    func(format string, args ...any)
}

// Rebuild begins a repair. note is told what can't be read. After a crash
// between the renames of an earlier Swap it finishes that.
// ErrLocked, ErrWhole, ErrNewerVersion, fs.ErrNotExist.
func (d Dir) Rebuild(note func(format string, args ...any)) (*Rebuild, error) {
	s := d.at("store.new", func(_, line string) { note("LevelDB: %s", line) })
	r := &Rebuild{Store: s, damaged: filepath.Join(s.path, "store"), note: note}
	if _, err := s.disk.List(s.path); err != nil {
		return nil, err
	}
	var err error
	if s.lock, err = s.disk.Lock(s.path); err != nil {
		return nil, err
	}
	if err := r.begin(d); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Rebuild) begin(d Dir) error {
	resumed, err := resume(r.disk, r.damaged)
	if err != nil {
		return err
	}
	if _, err := r.disk.List(r.damaged); err != nil {
		return err
	}
	if err := r.damage(d); resumed && errors.Is(err, ErrWhole) {
		r.note("an earlier repair was cut short after its work; the store that it made is in place now")
		r.Replaced, err = lastAside(r.disk, r.damaged)
		return err
	} else if err != nil {
		return err
	}
	return r.build()
}

// damage returns ErrWhole when the store can be opened and every key read.
func (r *Rebuild) damage(d Dir) error {
	s := d.at("store", func(_, _ string) {})
	stor, err := s.disk.Store(s.dir, true)
	if err != nil {
		return err
	}
	err = checkManifest(stor, s.options())
	stor.Close()
	if err != nil {
		r.note("%v", err)
		return nil
	}
	s.readOnly = true
	if err := s.open(); err != nil {
		r.note("%v", err)
		return nil
	}
	defer s.closeDB()
	if err := store.CheckFormat(s); errors.Is(err, store.ErrNewerVersion) {
		return err
	}
	if err := store.Scan(s, nil, func(_, _ []byte) error { return nil }); err != nil {
		r.note("%v", err)
		return nil
	}
	return ErrWhole
}

// build makes the new store of links to the files of the damaged one: LevelDB
// writes to no file that it finds.
func (r *Rebuild) build() error {
	names, err := r.disk.List(r.damaged)
	if err != nil {
		return err
	}
	if err := r.disk.Remove(r.dir); err != nil {
		return err
	}
	if err := r.disk.Mkdir(r.dir); err != nil {
		return err
	}
	for _, name := range names {
		if ext := filepath.Ext(name); ext == ".ldb" || ext == ".log" {
			if err := r.disk.Link(filepath.Join(r.damaged, name), filepath.Join(r.dir, name)); err != nil {
				return err
			}
		}
	}
	if err := r.disk.SyncDir(r.dir); err != nil {
		return err
	}
	return r.openWith(func(stor storage.Storage, o *opt.Options) (*leveldb.DB, error) {
		if err := r.salvage(stor); err != nil {
			return nil, err
		}
		return leveldb.Recover(stor, o)
	})
}

// SetAside moves a body's file to where no start looks for it, and says where.
func (r *Rebuild) SetAside(id string) (name string, err error) {
	aside := filepath.Join(r.path, "body", "aside")
	if err := r.disk.Mkdir(aside); err != nil {
		return "", err
	}
	name = filepath.Join(aside, id)
	return name, r.disk.Rename(r.bodyFile(id), name)
}

// Swap closes the new store and puts it in the place of the damaged one. A crash
// between its renames leaves a store that resume finds by its name.
func (r *Rebuild) Swap(now time.Time) error {
	if err := r.closeDB(); err != nil {
		return err
	}
	if err := r.disk.SyncDir(r.dir); err != nil {
		return err
	}
	aside, repaired := r.damaged+asideInfix+now.UTC().Format("20060102T150405Z"), r.damaged+repairedSuffix
	for _, move := range [][2]string{{r.dir, repaired}, {r.damaged, aside}, {repaired, r.damaged}} {
		if err := r.disk.Rename(move[0], move[1]); err != nil {
			return err
		}
		if err := r.disk.SyncDir(r.path); err != nil {
			return err
		}
	}
	r.Replaced = aside
	return nil
}

// resume puts a repaired store in its place when a crash kept Swap from the last
// step.
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
