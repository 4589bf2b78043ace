package leveldb

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/storage"
	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/queue/store"
)

// Disk is everything that the queue asks of a file system. It is one
// interface, and larger than most here, so that a test can stand in for the
// whole disk: fail any operation, or cut the power after it.
type Disk interface {
	// Lock takes the directory for this process, or fails with store.ErrLocked.
	Lock(dir string) (io.Closer, error)
	// Store is LevelDB's directory. readOnly changes nothing in it.
	Store(dir string, readOnly bool) (storage.Storage, error)
	// Mkdir makes a directory that only we may enter. It may exist.
	Mkdir(dir string) error
	// Create makes a file that did not exist.
	Create(name string) (File, error)
	// Open reads a file and tells its size.
	Open(name string) (io.ReadCloser, int64, error)
	// Rename replaces no file but one of the same name.
	Rename(from, to string) error
	// Link gives a file another name.
	Link(from, to string) error
	// Remove removes a file or a tree; that it is missing is no error.
	Remove(name string) error
	// List names a directory's entries. fs.ErrNotExist when there is none.
	List(dir string) ([]string, error)
	// SyncDir makes the directory's entries durable.
	SyncDir(dir string) error
	// Free is the space and the number of inodes left to us.
	Free(dir string) (bytes, inodes uint64, err error)
}

// File is a file being written. It is LevelDB's word for one, so that a
// stand-in for the disk needs nothing of this package.
type File = storage.Writer

// osDisk is the real one.
type osDisk struct{}

func (osDisk) Lock(dir string) (io.Closer, error) { return store.LockDir(dir) }

func (osDisk) Store(dir string, readOnly bool) (storage.Storage, error) {
	return storage.OpenFile(dir, readOnly)
}

func (osDisk) Mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

func (osDisk) Create(name string) (File, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (osDisk) Open(name string) (io.ReadCloser, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }
func (osDisk) Link(from, to string) error   { return os.Link(from, to) }
func (osDisk) Remove(name string) error     { return os.RemoveAll(name) }

func (osDisk) List(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (osDisk) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (osDisk) Free(dir string) (bytes, inodes uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	inodes = s.Ffree
	if s.Files == 0 {
		inodes = 1<<64 - 1 // btrfs and others have no fixed number
	}
	return s.Bavail * uint64(s.Bsize), inodes, nil
}

// syncedStorage makes goleveldb keep D2: a journal is synced when it is
// closed (else a rotation loses writes that a later sync should cover,
// google/leveldb#193), a new file's directory entry is made durable, and what
// goleveldb only logs when it drops data raises an alarm.
// To be removed when goleveldb does these itself: TestJournalSyncedOnClose,
// TestDirectorySynced and TestDroppedJournalRaisesAlarm tell.
type syncedStorage struct {
	storage.Storage
	dir    string
	disk   Disk
	alarm  func(kind, line string)
	stride *stride
}

func (s *syncedStorage) Create(fd storage.FileDesc) (storage.Writer, error) {
	w, err := s.Storage.Create(fd)
	if err != nil {
		return nil, err
	}
	if err := s.disk.SyncDir(s.dir); err != nil {
		w.Close()
		return nil, fmt.Errorf("sync directory: %w", err)
	}
	switch fd.Type {
	case storage.TypeJournal:
		return syncedJournal{w, s.stride}, nil
	case storage.TypeTable:
		return newStridingTable(w, s.stride), nil
	}
	return w, nil
}

// Remove never fails for a table. goleveldb's merge goes on using a table that it
// could not remove (tableCompactionBuilder.cleanup), and on a disk that has become
// read-only this ends the process. The next opening removes the table.
// To be removed when goleveldb does otherwise: TestReadOnlyWhileMerging tells.
func (s *syncedStorage) Remove(fd storage.FileDesc) error {
	err := s.Storage.Remove(fd)
	if err != nil && fd.Type == storage.TypeTable {
		s.Storage.Log(fmt.Sprintf("table@remove @%d %q", fd.Num, err))
		return nil
	}
	return err
}

func (s *syncedStorage) GetMeta() (storage.FileDesc, error) { return manifestOf(s.Storage) }

// manifestOf returns the manifest in force: the one that CURRENT names, or else the newest.
// When SetMeta fails after it has replaced CURRENT, goleveldb removes the new
// manifest. The next try makes CURRENT.bak a copy of that CURRENT, and if it
// fails as well, neither names a manifest that exists: the store would never
// open again. The manifest in force is still there, since it is only removed
// once another one has taken its place.
func manifestOf(stor storage.Storage) (storage.FileDesc, error) {
	fd, err := stor.GetMeta()
	var corrupted *storage.ErrCorrupted
	if !errors.As(err, &corrupted) && !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	all, lerr := stor.List(storage.TypeManifest)
	if lerr != nil {
		return fd, lerr
	}
	if len(all) == 0 {
		return fd, err // as it is: goleveldb makes a new store of an empty directory
	}
	return slices.MaxFunc(all, func(a, b storage.FileDesc) int { return cmp.Compare(a.Num, b.Num) }), nil
}

// alarms are what goleveldb's log says when it gives up data.
var alarms = []struct{ text, kind string }{
	{"@drop", "drop"}, {"(skipped)", "skipped"}, {"corrupt", "corrupt"},
}

func (s *syncedStorage) Log(line string) {
	s.Storage.Log(line)
	sound(s.alarm, line)
}

func sound(alarm func(kind, line string), line string) {
	for _, a := range alarms {
		if strings.Contains(line, a.text) {
			alarm(a.kind, line)
			return
		}
	}
}

type syncedJournal struct {
	storage.Writer
	stride *stride
}

func (j syncedJournal) Write(b []byte) (int, error) {
	j.stride.journaled(len(b))
	return j.Writer.Write(b)
}

func (j syncedJournal) Close() error {
	err := j.Sync()
	if cerr := j.Writer.Close(); err == nil {
		err = cerr
	}
	return err
}
