package testmx

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// diskStore is LevelDB's directory on a Disk.
type diskStore struct {
	d   *Disk
	dir string
}

// Store is a directory that LevelDB may use.
func (d *Disk) Store(dir string, _ bool) (storage.Storage, error) { return &diskStore{d, dir}, nil }

func (s *diskStore) path(fd storage.FileDesc) string { return filepath.Join(s.dir, fd.String()) }

type unlocker struct{}

func (unlocker) Unlock() {}

func (s *diskStore) Lock() (storage.Locker, error) { return unlocker{}, nil }
func (s *diskStore) Log(string)                    {}
func (s *diskStore) Close() error                  { return nil }

// SetMeta and GetMeta keep the last CURRENT as CURRENT.bak, like goleveldb's
// own storage: it removes a manifest when SetMeta fails, even if it failed
// after the rename.
func (s *diskStore) SetMeta(fd storage.FileDesc) error {
	current := filepath.Join(s.dir, "CURRENT")
	if old := s.d.Bytes(current); old != nil {
		if err := s.writeSynced(current+".bak", old); err != nil {
			return err
		}
	}
	if err := s.writeSynced(current+".tmp", []byte(fd.String()+"\n")); err != nil {
		return err
	}
	if err := s.d.Rename(current+".tmp", current); err != nil {
		return err
	}
	return s.d.SyncDir(s.dir)
}

func (s *diskStore) writeSynced(name string, data []byte) error {
	f, err := s.d.create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func (s *diskStore) GetMeta() (storage.FileDesc, error) {
	damaged := false
	for _, name := range []string{"CURRENT", "CURRENT.bak"} {
		r, err := s.d.open(filepath.Join(s.dir, name))
		if err != nil {
			if s.d.Bytes(filepath.Join(s.dir, name)) != nil {
				return storage.FileDesc{}, err
			}
			continue
		}
		b := make([]byte, 64)
		n, err := r.Read(b)
		if err != nil && r.Size() > 0 {
			return storage.FileDesc{}, err
		}
		text, whole := strings.CutSuffix(string(b[:n]), "\n")
		if fd, ok := parseFile(text); ok && whole && s.d.Bytes(s.path(fd)) != nil {
			return fd, nil
		}
		damaged = true
	}
	if damaged {
		return storage.FileDesc{}, &storage.ErrCorrupted{Err: fmt.Errorf("CURRENT names no manifest")}
	}
	return storage.FileDesc{}, fs.ErrNotExist
}

func parseFile(name string) (fd storage.FileDesc, ok bool) {
	var err error
	switch {
	case strings.HasPrefix(name, "MANIFEST-"):
		fd.Type = storage.TypeManifest
		_, err = fmt.Sscanf(name, "MANIFEST-%d", &fd.Num)
	case strings.HasSuffix(name, ".log"):
		fd.Type = storage.TypeJournal
		_, err = fmt.Sscanf(name, "%d.log", &fd.Num)
	case strings.HasSuffix(name, ".ldb"):
		fd.Type = storage.TypeTable
		_, err = fmt.Sscanf(name, "%d.ldb", &fd.Num)
	default:
		return fd, false
	}
	return fd, err == nil
}

func (s *diskStore) List(ft storage.FileType) (fds []storage.FileDesc, err error) {
	names, err := s.d.List(s.dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if fd, ok := parseFile(name); ok && fd.Type&ft != 0 {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

func (s *diskStore) Open(fd storage.FileDesc) (storage.Reader, error) {
	r, err := s.d.open(s.path(fd))
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s *diskStore) Create(fd storage.FileDesc) (storage.Writer, error) {
	f, err := s.d.create(s.path(fd))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s *diskStore) Remove(fd storage.FileDesc) error { return s.d.Remove(s.path(fd)) }

func (s *diskStore) Rename(oldfd, newfd storage.FileDesc) error {
	return s.d.Rename(s.path(oldfd), s.path(newfd))
}
