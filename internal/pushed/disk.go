package pushed

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// disk is all that this package does to disks. Tests replace it by one that dies at
// any of these calls.
type disk interface {
	MkdirAll(dir string) error
	Create(dir string) (file, error) // temporary, 0600
	Open(name string) (io.ReadCloser, error)
	ReadFile(name string) ([]byte, error)
	Rename(from, to string) error
	Link(from, to string) error // in place of what is there
	Remove(name string) error   // no error where there is nothing
	Exists(name string) (bool, error)
	SyncDir(dir string) error
	RemoveTemps(dir string) error
}

// file is a temporary file that is being written.
type file interface {
	io.Writer
	io.WriterAt
	io.Closer
	Sync() error
	Name() string
}

const tempPrefix = ".tmp-"

type osDisk struct{}

func (osDisk) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osDisk) Create(dir string) (file, error) { return os.CreateTemp(dir, tempPrefix) }

func (osDisk) Open(name string) (io.ReadCloser, error) { return os.Open(name) }

func (osDisk) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (d osDisk) Link(from, to string) error {
	return errors.Join(d.Remove(to), os.Link(from, to))
}

func (osDisk) Remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (osDisk) Exists(name string) (bool, error) {
	_, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (osDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (d osDisk) RemoveTemps(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	for _, n := range names {
		err = errors.Join(err, d.Remove(n))
	}
	return err
}

// place writes a small file whole: it MUST NOT appear under its name before its
// content is synced.
func (l *list) place(ending string, b []byte) error {
	d := l.store.o.disk
	f, err := d.Create(l.store.o.Dir)
	if err != nil {
		return err
	}
	defer d.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.Rename(f.Name(), l.path(ending))
	}
	if err == nil {
		err = d.SyncDir(l.store.o.Dir)
	}
	return err
}
