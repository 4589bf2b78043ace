// Package leveldb keeps a queue in a directory: keys in LevelDB, large bodies in
// files.
//
//	DIR/LOCK                   held while the store is open
//	DIR/store/                 LevelDB
//	DIR/store.damaged-TIME/    one that Rebuild replaced
//	DIR/body/x/ID              bodies; x is the ID's last character
//	DIR/body/aside/            those of which Rebuild found nothing else
//
// LevelDB appends each batch to a journal and keeps what is in it in memory, too;
// a full one becomes a table of sorted keys, and tables are merged now and then.
// MANIFEST lists the tables that count. A power cut may tear the end of journal
// and MANIFEST, and LevelDB leaves out what it can't read there. Where that, or
// anything else that it does, would cost mail that was acknowledged, this package
// does otherwise: see syncedStorage, checkManifest, unmerged and salvage.
package leveldb

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/understudy-mx/understudy/queue/store"
)

// Dir names a queue's directory. It is made, mode 0700, when missing.
type Dir struct {
	Path string
	// Disk stands in for the file system, in tests. nil is the real one.
	Disk Disk
	// WriteBuffer is LevelDB's, in octets, in tests.
	WriteBuffer int
}

func (d Dir) String() string { return d.Path }

func (d Dir) disk() Disk {
	if d.Disk == nil {
		return osDisk{}
	}
	return d.Disk
}

// at is LevelDB in the subdirectory name.
func (d Dir) at(name string, alarm func(kind, line string)) *Store {
	return &Store{path: filepath.Clean(d.Path), dir: filepath.Join(d.Path, name), disk: d.disk(), warn: alarm, writeBuffer: d.WriteBuffer}
}

// Open opens the store, and makes what isn't there.
func (d Dir) Open(alarm func(kind, line string)) (store.Store, error) {
	s := d.at("store", alarm)
	if err := s.disk.Mkdir(s.path); err != nil {
		return nil, err
	}
	// The directory may be new; the one above may not be ours to open.
	if err := s.disk.SyncDir(filepath.Dir(s.path)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return s.locked(func() error {
		if err := s.makeBodyDirs(); err != nil {
			return err
		}
		if _, err := resume(s.disk, s.dir); err != nil {
			return err
		}
		if _, err := s.disk.List(s.dir); errors.Is(err, fs.ErrNotExist) {
			if err := s.create(); err != nil {
				return fmt.Errorf("create store: %w", err)
			}
		} else if err != nil {
			return err
		}
		return s.openChecked()
	})
}

// OpenReadOnly opens a store that is there and changes nothing but LOCK, which
// keeps a daemon out meanwhile. Of the store's methods only those that read may
// be called. fs.ErrNotExist.
func (d Dir) OpenReadOnly(alarm func(kind, line string)) (store.Store, error) {
	s := d.at("store", alarm)
	s.readOnly = true
	names, err := s.disk.List(s.path)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, "store") && slices.Contains(names, "store"+repairedSuffix) {
		s.dir += repairedSuffix // a crash kept a repair from the last step
	} else if _, err := s.disk.List(s.dir); err != nil {
		return nil, err // it would be an empty one to LevelDB
	}
	return s.locked(s.openChecked)
}

// locked runs open with the directory locked, and lets go of it when that fails.
func (s *Store) locked(open func() error) (store.Store, error) {
	lock, err := s.disk.Lock(s.path)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := open(); err != nil {
		s.Close()
		return nil, damaged(err)
	}
	return s, nil
}

func (s *Store) openChecked() error {
	if err := s.open(); err != nil {
		return err
	}
	return store.CheckFormat(s)
}

// create makes LevelDB's directory beside its place first (D4): a power cut
// during LevelDB's first open leaves one that can't be opened.
func (s *Store) create() error {
	place, tmp := s.dir, s.dir+".new"
	if err := s.disk.Remove(tmp); err != nil {
		return err
	}
	if err := s.disk.Mkdir(tmp); err != nil {
		return err
	}
	s.dir = tmp
	defer func() { s.dir = place }()
	if err := s.open(); err != nil {
		return err
	}
	err := s.Apply(store.Created())
	if err = errors.Join(err, s.closeDB()); err != nil {
		return err
	}
	if err := s.disk.SyncDir(tmp); err != nil {
		return err
	}
	if err := s.disk.Rename(tmp, place); err != nil {
		return err
	}
	return s.disk.SyncDir(s.path)
}

// Close waits for the readers, closes the store and lets go of the directory.
func (s *Store) Close() error {
	err := s.closeDB()
	if s.lock != nil {
		if lerr := s.lock.Close(); err == nil {
			err = lerr
		}
		s.lock = nil
	}
	return err
}
