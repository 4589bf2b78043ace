package policysync

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
)

// fileSystem is all that this package does to disks. Tests replace it by one that
// dies at any of these calls.
type fileSystem interface {
	MkdirAll(dir string) error
	WriteFile(name string, b []byte) error // creates, writes, syncs, closes; 0600
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	ReadFile(name string, limit int) ([]byte, error)
	ReadDir(dir string) ([]string, error)
}

// osFS is the real one.
type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return writeSynced(f, b)
}

// writeSynced writes a file to its end and closes it. It MUST be synced before
// it may get its name.
func writeSynced(f interface {
	io.WriteCloser
	Sync() error
}, b []byte) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) ReadFile(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%s is longer than %d octets", name, limit)
	}
	return b, err
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// makeDir makes a directory of ours, and its name durable: keys and pairings
// in it are of no use if it is gone after a power cut.
func makeDir(f fileSystem, dir string) error {
	if err := f.MkdirAll(dir); err != nil {
		return err
	}
	return f.SyncDir(path.Dir(dir))
}

// tempPrefix starts the names of files that are useless after a crash.
const tempPrefix = "tmp-"

// placeFile writes a file whole: it MUST NOT appear under its name before its
// content is synced. The name itself is durable after SyncDir.
func placeFile(f fileSystem, name string, b []byte) error {
	dir, base := path.Split(name)
	temp := dir + tempPrefix + base
	if err := f.WriteFile(temp, b); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := f.Rename(temp, name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// replaceFile is placeFile with the name durable too.
func replaceFile(f fileSystem, name string, b []byte) error {
	if err := placeFile(f, name, b); err != nil {
		return err
	}
	if err := f.SyncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
