package queue

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// memDisk is a Disk in memory that knows what a power cut would leave: octets
// count once their file was synced, directory entries once their directory
// was. That is the strict reading of POSIX; lax adds that syncing a file also
// makes its entry durable, as the usual file systems do.
type memDisk struct {
	mu    sync.Mutex // guards the rest
	root  *node
	lax   bool
	ops   int
	locks map[string]bool
	// before is called ahead of every operation that changes or syncs
	// something, with mu held. Its error fails the operation.
	before func(n int, op, name string) error
	free   uint64
}

// node is a file or a directory.
type node struct {
	data    []byte // only ever appended to
	synced  int
	entries map[string]*node // nil for a file
	durable map[string]*node
}

func newDir() *node { return &node{entries: map[string]*node{}, durable: map[string]*node{}} }

func newMemDisk() *memDisk {
	return &memDisk{root: newDir(), locks: map[string]bool{}, free: 1 << 40}
}

func (d *memDisk) step(op, name string) error {
	d.ops++
	if d.before != nil {
		return d.before(d.ops, op, name)
	}
	return nil
}

func (d *memDisk) find(name string) *node {
	n := d.root
	for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
		if part != "" {
			if n = n.entries[part]; n == nil {
				return nil
			}
		}
	}
	return n
}

func (d *memDisk) parent(name string) (*node, string) {
	return d.find(filepath.Dir(name)), filepath.Base(name)
}

func notExist(name string) error { return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist} }

func (d *memDisk) Lock(dir string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[dir] {
		return nil, ErrLocked
	}
	d.locks[dir] = true
	return closerFunc(func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.locks, dir)
		return nil
	}), nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

func (d *memDisk) Mkdir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.find(dir) != nil {
		return nil
	}
	if err := d.step("mkdir", dir); err != nil {
		return err
	}
	p, name := d.parent(dir)
	if p == nil {
		return notExist(dir)
	}
	p.entries[name] = newDir()
	return nil
}

func (d *memDisk) Create(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.find(name) != nil {
		return nil, fs.ErrExist
	}
	return d.create(name)
}

func (d *memDisk) create(name string) (*memFile, error) {
	if err := d.step("create", name); err != nil {
		return nil, err
	}
	p, base := d.parent(name)
	if p == nil {
		return nil, notExist(name)
	}
	n := &node{}
	p.entries[base] = n
	return &memFile{d: d, n: n, name: name}, nil
}

func (d *memDisk) Open(name string) (io.ReadCloser, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(name)
	if n == nil {
		return nil, 0, notExist(name)
	}
	return io.NopCloser(strings.NewReader(string(n.data))), int64(len(n.data)), nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("rename", to); err != nil {
		return err
	}
	fp, fb := d.parent(from)
	tp, tb := d.parent(to)
	if fp == nil || tp == nil || fp.entries[fb] == nil {
		return notExist(from)
	}
	tp.entries[tb] = fp.entries[fb]
	delete(fp.entries, fb)
	return nil
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.find(name) == nil {
		return nil
	}
	if err := d.step("remove", name); err != nil {
		return err
	}
	p, base := d.parent(name)
	delete(p.entries, base)
	return nil
}

func (d *memDisk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(dir)
	if n == nil {
		return nil, notExist(dir)
	}
	var names []string
	for name := range n.entries {
		names = append(names, name)
	}
	return names, nil
}

func (d *memDisk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("syncdir", dir); err != nil {
		return err
	}
	return d.syncDir(dir)
}

func (d *memDisk) syncDir(dir string) error {
	n := d.find(dir)
	if n == nil {
		return notExist(dir)
	}
	n.durable = map[string]*node{}
	for name, e := range n.entries {
		n.durable[name] = e
	}
	return nil
}

func (d *memDisk) Free(string) (uint64, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free, 1 << 20, nil
}

// memFile is a file being written.
type memFile struct {
	d    *memDisk
	n    *node
	name string
}

func (f *memFile) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step("write", f.name); err != nil {
		half := len(p) / 2 // what a failing disk may do
		f.n.data = append(f.n.data, p[:half]...)
		return half, err
	}
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step("sync", f.name); err != nil {
		return err
	}
	f.n.synced = len(f.n.data)
	if f.d.lax {
		if p, base := f.d.parent(f.name); p != nil && p.entries[base] == f.n {
			p.durable[base] = f.n
		}
	}
	return nil
}

func (f *memFile) Close() error { return nil }

// left is what a power cut leaves of what was not synced.
type left int

const (
	leftNothing left = iota
	leftAll
	leftSome // each entry or not, each tail up to somewhere, perhaps torn
)

// cut is the disk after a power cut now. The caller holds mu, or is alone.
func (d *memDisk) cut(l left, rnd *rand.Rand) *memDisk {
	c := newMemDisk()
	c.lax = d.lax
	c.root = cutNode(d.root, l, rnd)
	return c
}

func cutNode(n *node, l left, rnd *rand.Rand) *node {
	if n.entries == nil {
		data := n.data
		switch l {
		case leftNothing:
			data = data[:n.synced]
		case leftSome:
			keep := n.synced + rnd.IntN(len(data)-n.synced+1)
			data = data[:keep:keep]
			if keep > n.synced && rnd.IntN(2) == 0 { // the last octets are junk
				torn := append([]byte(nil), data...)
				for i := n.synced + rnd.IntN(keep-n.synced); i < keep; i++ {
					torn[i] = 0
				}
				data = torn
			}
		}
		return &node{data: data[:len(data):len(data)], synced: len(data)}
	}
	names := map[string]*node{}
	for name, e := range n.durable {
		names[name] = e
	}
	for name, e := range n.entries {
		if l == leftAll || l == leftSome && rnd.IntN(2) == 0 {
			names[name] = e
		}
	}
	for name := range n.durable {
		if n.entries[name] == nil && (l == leftAll || l == leftSome && rnd.IntN(2) == 0) {
			delete(names, name)
		}
	}
	c := newDir()
	for name, e := range names {
		kept := cutNode(e, l, rnd)
		c.entries[name], c.durable[name] = kept, kept
	}
	return c
}

// memStore is LevelDB's directory on a memDisk.
type memStore struct {
	d   *memDisk
	dir string
}

func (d *memDisk) Store(dir string) (storage.Storage, error) {
	return &memStore{d: d, dir: dir}, nil
}

func (s *memStore) path(fd storage.FileDesc) string { return filepath.Join(s.dir, fd.String()) }

type unlocker struct{}

func (unlocker) Unlock() {}

func (s *memStore) Lock() (storage.Locker, error) { return unlocker{}, nil }
func (s *memStore) Log(string)                    {}
func (s *memStore) Close() error                  { return nil }

// SetMeta and GetMeta keep the last CURRENT as CURRENT.bak, like goleveldb's
// own storage: it removes a manifest when SetMeta fails, even if it failed
// behind the rename.
func (s *memStore) SetMeta(fd storage.FileDesc) error {
	current := filepath.Join(s.dir, "CURRENT")
	s.d.mu.Lock()
	old := s.d.find(current)
	s.d.mu.Unlock()
	if old != nil {
		if err := s.writeSynced(current+".bak", old.data); err != nil {
			return err
		}
	}
	if err := s.writeSynced(current+".tmp", fmt.Appendf(nil, "%d %d", fd.Type, fd.Num)); err != nil {
		return err
	}
	if err := s.d.Rename(current+".tmp", current); err != nil {
		return err
	}
	return s.d.SyncDir(s.dir)
}

func (s *memStore) writeSynced(name string, data []byte) error {
	s.d.mu.Lock()
	f, err := s.d.create(name)
	s.d.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func (s *memStore) GetMeta() (fd storage.FileDesc, err error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, name := range []string{"CURRENT", "CURRENT.bak"} {
		n := s.d.find(filepath.Join(s.dir, name))
		if n == nil {
			continue
		}
		if _, err := fmt.Sscanf(string(n.data), "%d %d", &fd.Type, &fd.Num); err == nil && s.d.find(s.path(fd)) != nil {
			return fd, nil
		}
	}
	return storage.FileDesc{}, fs.ErrNotExist
}

func (s *memStore) List(ft storage.FileType) (fds []storage.FileDesc, err error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	dir := s.d.find(s.dir)
	if dir == nil {
		return nil, notExist(s.dir)
	}
	for name := range dir.entries {
		var fd storage.FileDesc
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
			continue
		}
		if err == nil && fd.Type&ft != 0 {
			fds = append(fds, fd)
		}
	}
	return fds, err
}

type memReader struct{ *strings.Reader }

func (memReader) Close() error { return nil }

func (s *memStore) Open(fd storage.FileDesc) (storage.Reader, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	n := s.d.find(s.path(fd))
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return memReader{strings.NewReader(string(n.data))}, nil
}

func (s *memStore) Create(fd storage.FileDesc) (storage.Writer, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	f, err := s.d.create(s.path(fd))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s *memStore) Remove(fd storage.FileDesc) error { return s.d.Remove(s.path(fd)) }

func (s *memStore) Rename(oldfd, newfd storage.FileDesc) error {
	return s.d.Rename(s.path(oldfd), s.path(newfd))
}

var errDisk = errors.New("input/output error")
