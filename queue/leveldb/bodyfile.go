package leveldb

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/queue/store"
)

// bodyFile is where a large body lies: one directory for each last character
// of the ID, so that directory syncs of different messages don't queue.
func (s *Store) bodyFile(id string) string { return filepath.Join(s.bodyDir(id[len(id)-1:]), id) }

func (s *Store) bodyDir(shard string) string { return filepath.Join(s.path, "body", shard) }

func shards() []string { return strings.Split(store.IDAlphabet, "") }

// makeBodyDirs makes them all, durably. It syncs even when all are there: an
// earlier start may have failed between making and syncing them.
func (s *Store) makeBodyDirs() error {
	body := filepath.Join(s.path, "body")
	if err := s.disk.Mkdir(body); err != nil {
		return err
	}
	for _, c := range shards() {
		if err := s.disk.Mkdir(s.bodyDir(c)); err != nil {
			return err
		}
	}
	if err := s.disk.SyncDir(body); err != nil {
		return err
	}
	return s.disk.SyncDir(s.path)
}

// bodyWriter is a body being written. It has its final name from the start: a file
// is nothing until a record names it, and what none names is removed at start-up.
type bodyWriter struct {
	file File // nil once closed
	disk Disk
	name string
}

// Create makes a body's file.
func (s *Store) Create(id string) (store.Body, error) {
	name := s.bodyFile(id)
	f, err := s.disk.Create(name)
	if err != nil {
		return nil, err
	}
	return &bodyWriter{file: f, disk: s.disk, name: name}, nil
}

func (b *bodyWriter) Write(p []byte) (int, error) { return b.file.Write(p) }

func (b *bodyWriter) Open() (io.ReadCloser, error) {
	f, _, err := b.disk.Open(b.name)
	return f, err
}

// Commit syncs the file, and then its directory.
func (b *bodyWriter) Commit() error {
	if err := b.file.Sync(); err != nil {
		return err
	}
	if err := b.Close(); err != nil {
		return err
	}
	return b.disk.SyncDir(filepath.Dir(b.name))
}

func (b *bodyWriter) Close() error {
	f := b.file
	b.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// Open reads a body's file.
func (s *Store) Open(id string) (io.ReadCloser, int64, error) {
	f, size, err := s.disk.Open(s.bodyFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = store.ErrNotFound
	}
	return f, size, err
}

// Remove unlinks a body's file.
func (s *Store) Remove(id string) error { return s.disk.Remove(s.bodyFile(id)) }

// Bodies names the files.
func (s *Store) Bodies(fn func(id string) error) error {
	for _, c := range shards() {
		names, err := s.disk.List(s.bodyDir(c))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range names {
			if !store.ValidID(name) || name[len(name)-1:] != c {
				continue // not ours
			}
			if err := fn(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Free is what the directory's file system has left.
func (s *Store) Free() (octets, files uint64, err error) { return s.disk.Free(s.path) }
