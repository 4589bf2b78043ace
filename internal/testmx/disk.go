package testmx

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// Disk is a file system in memory that knows what a power cut would leave of
// it: octets count once their file was synced, directory entries once their
// directory was. That is the strict reading of POSIX; Journaling adds that
// syncing a file makes its entry durable as well, as ext4, XFS and btrfs do.
//
// It has every method of queue.Disk. Set the exported fields before use.
// Copies (Cut) share what neither changes, so that one costs little.
type Disk struct {
	Journaling bool
	Locked     error // what Lock fails with when the directory is taken

	mu    sync.Mutex // guards the rest
	watch func(Op)
	fault func(Op) error
	root  *inode
	n     int
	locks map[string]bool
	free  Space
}

// Op is an operation on a Disk.
type Op struct {
	N    int // counts up from 1, without reads
	Kind string
	Name string
}

// The kinds of operation. Those from OpOpen on change nothing.
const (
	OpMkdir, OpCreate, OpWrite, OpSync = "mkdir", "create", "write", "sync"
	OpRename, OpRemove, OpSyncDir      = "rename", "remove", "syncdir"
	OpLink                             = "link"
	OpOpen, OpRead, OpList, OpFree     = "open", "read", "list", "statfs"
)

// Space is what a Disk says is free.
type Space struct{ Bytes, Inodes uint64 }

// inode is a file or a directory. One that is shared by several disks is
// frozen: whoever changes a frozen directory copies it first. A file is shared
// only once it can't change any more.
type inode struct {
	frozen bool

	data   []byte // of a file: only ever appended to
	synced int    // octets of data that are durable
	closed bool

	entries map[string]*inode // of a directory, nil for a file
	durable map[string]*inode // nil when entries are
}

func newInodeDir() *inode { return &inode{entries: map[string]*inode{}} }

// NewDisk returns an empty one.
func NewDisk() *Disk {
	return &Disk{Locked: fs.ErrExist, root: newInodeDir(), locks: map[string]bool{}, free: Space{1 << 40, 1 << 20}}
}

// Watch has fn called ahead of every operation that changes or syncs
// something, while the disk stands still: fn may call Cut and nothing else.
func (d *Disk) Watch(fn func(Op)) {
	d.mu.Lock()
	d.watch = fn
	d.mu.Unlock()
}

// Fault has fn called ahead of every operation, reads too, while the disk runs
// on: fn may wait. Its error fails the operation; a write that fails has
// written half.
func (d *Disk) Fault(fn func(Op) error) {
	d.mu.Lock()
	d.fault = fn
	d.mu.Unlock()
}

// begin is called ahead of an operation, without mu.
func (d *Disk) begin(kind, name string, changes bool) error {
	d.mu.Lock()
	op := Op{N: d.n, Kind: kind, Name: name}
	if changes {
		d.n++
		op.N = d.n
		if d.watch != nil {
			d.watch(op)
		}
	}
	fault := d.fault
	d.mu.Unlock()
	if fault != nil {
		return fault(op)
	}
	return nil
}

// SetFree sets what Free tells.
func (d *Disk) SetFree(s Space) {
	d.mu.Lock()
	d.free = s
	d.mu.Unlock()
}

func parts(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

func (d *Disk) find(name string) *inode {
	n := d.root
	for _, part := range parts(name) {
		if n = n.entries[part]; n == nil {
			return nil
		}
	}
	return n
}

// own returns the directory, nil when there is none, with all above it ready
// to be changed.
func (d *Disk) own(dir string) *inode {
	thaw := func(n *inode) *inode {
		if n.frozen {
			n = &inode{entries: maps.Clone(n.entries), durable: maps.Clone(n.durable)}
		}
		return n
	}
	d.root = thaw(d.root)
	n := d.root
	for _, part := range parts(dir) {
		child := n.entries[part]
		if child == nil || child.entries == nil {
			return nil
		}
		if owned := thaw(child); owned != child {
			n.entries[part] = owned
			for name, e := range n.durable {
				if e == child {
					n.durable[name] = owned // the same directory, under its durable name
				}
			}
			child = owned
		}
		n = child
	}
	return n
}

// change is own for a change of the entries: it keeps what is durable.
func (d *Disk) change(dir string) *inode {
	n := d.own(dir)
	if n != nil && n.durable == nil {
		n.durable = maps.Clone(n.entries)
	}
	return n
}

func notExist(name string) error { return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist} }

type closer func()

func (c closer) Close() error { c(); return nil }

// Lock takes the directory. A power cut ends it.
func (d *Disk) Lock(dir string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[dir] {
		return nil, d.Locked
	}
	d.locks[dir] = true
	return closer(func() {
		d.mu.Lock()
		delete(d.locks, dir)
		d.mu.Unlock()
	}), nil
}

// Mkdir makes a directory; it may exist.
func (d *Disk) Mkdir(dir string) error {
	d.mu.Lock()
	there := d.find(dir) != nil
	d.mu.Unlock()
	if there {
		return nil
	}
	if err := d.begin(OpMkdir, dir, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.change(filepath.Dir(dir))
	if p == nil {
		return notExist(dir)
	}
	p.entries[filepath.Base(dir)] = newInodeDir()
	return nil
}

// Create makes a file that did not exist.
func (d *Disk) Create(name string) (storage.Writer, error) {
	d.mu.Lock()
	there := d.find(name) != nil
	d.mu.Unlock()
	if there {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	return d.create(name)
}

// create replaces what has the name.
func (d *Disk) create(name string) (*diskFile, error) {
	if err := d.begin(OpCreate, name, true); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.change(filepath.Dir(name))
	if p == nil {
		return nil, notExist(name)
	}
	n := &inode{}
	p.entries[filepath.Base(name)] = n
	return &diskFile{d, n, name}, nil
}

// Open reads a file.
func (d *Disk) Open(name string) (io.ReadCloser, int64, error) {
	r, err := d.open(name)
	if err != nil {
		return nil, 0, err
	}
	return r, r.Size(), nil
}

func (d *Disk) open(name string) (*diskReader, error) {
	if err := d.begin(OpOpen, name, false); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(name)
	if n == nil {
		return nil, notExist(name)
	}
	return &diskReader{Reader: bytes.NewReader(n.data), d: d, name: name}, nil
}

// Rename moves a file or directory, over a file if need be.
func (d *Disk) Rename(from, to string) error {
	if err := d.begin(OpRename, to, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(from)
	fp, tp := d.change(filepath.Dir(from)), d.change(filepath.Dir(to))
	if n == nil || fp == nil || tp == nil {
		return notExist(from)
	}
	delete(fp.entries, filepath.Base(from))
	tp.entries[filepath.Base(to)] = n
	return nil
}

// Link gives a file another name.
func (d *Disk) Link(from, to string) error {
	if err := d.begin(OpLink, to, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n, p := d.find(from), d.change(filepath.Dir(to))
	if n == nil || p == nil {
		return notExist(from)
	}
	p.entries[filepath.Base(to)] = n
	return nil
}

// Remove removes a file or a tree.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	there := d.find(name) != nil
	d.mu.Unlock()
	if !there {
		return nil
	}
	if err := d.begin(OpRemove, name, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.change(filepath.Dir(name)); p != nil {
		delete(p.entries, filepath.Base(name))
	}
	return nil
}

// List names a directory's entries.
func (d *Disk) List(dir string) ([]string, error) {
	if err := d.begin(OpList, dir, false); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(dir)
	if n == nil {
		return nil, notExist(dir)
	}
	names := make([]string, 0, len(n.entries))
	for name := range n.entries {
		names = append(names, name)
	}
	return names, nil
}

// SyncDir makes a directory's entries durable.
func (d *Disk) SyncDir(dir string) error {
	if err := d.begin(OpSyncDir, dir, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.own(dir)
	if n == nil {
		return notExist(dir)
	}
	n.durable = nil
	return nil
}

// Free tells the space left.
func (d *Disk) Free(dir string) (uint64, uint64, error) {
	if err := d.begin(OpFree, dir, false); err != nil {
		return 0, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free.Bytes, d.free.Inodes, nil
}

// diskFile is a file being written.
type diskFile struct {
	d    *Disk
	n    *inode
	name string
}

func (f *diskFile) Write(p []byte) (int, error) {
	err := f.d.begin(OpWrite, f.name, true)
	if err != nil {
		p = p[:len(p)/2]
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.data = append(f.n.data, p...)
	return len(p), err
}

func (f *diskFile) Sync() error {
	if err := f.d.begin(OpSync, f.name, true); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.synced = len(f.n.data)
	if !f.d.Journaling {
		return nil
	}
	base := filepath.Base(f.name)
	if p := f.d.own(filepath.Dir(f.name)); p != nil && p.durable != nil && p.entries[base] == f.n {
		p.durable[base] = f.n
	}
	return nil
}

func (f *diskFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.closed = true
	return nil
}

// diskReader reads what the file held when it was opened.
type diskReader struct {
	*bytes.Reader
	d    *Disk
	name string
}

func (r *diskReader) Read(p []byte) (int, error) {
	if err := r.d.begin(OpRead, r.name, false); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func (r *diskReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.d.begin(OpRead, r.name, false); err != nil {
		return 0, err
	}
	return r.Reader.ReadAt(p, off)
}

func (r *diskReader) Close() error { return nil }

// Bytes returns a file's content, nil when there is none.
func (d *Disk) Bytes(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.find(name); n != nil {
		return bytes.Clone(n.data)
	}
	return nil
}

// SetBytes replaces a file's content, durably.
func (d *Disk) SetBytes(name string, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := &inode{data: bytes.Clone(data), synced: len(data), closed: true}
	p := d.own(filepath.Dir(name))
	p.entries[filepath.Base(name)] = n
	if p.durable != nil {
		p.durable[filepath.Base(name)] = n
	}
}

// Files names all files below dir.
func (d *Disk) Files(dir string) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var walk func(name string, n *inode)
	walk = func(name string, n *inode) {
		for base, e := range n.entries {
			if e.entries != nil {
				walk(name+"/"+base, e)
			} else {
				names = append(names, name+"/"+base)
			}
		}
	}
	if n := d.find(dir); n != nil {
		walk(strings.TrimSuffix(dir, "/"), n)
	}
	return names
}

// Clone is a disk of the same content.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Cut(LeftAll, nil)
}
