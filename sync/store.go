package policysync

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// store keeps snapshots on the disk:
//
//	chunks/ab/abcd…         data and index chunks by name, as Zstandard frames
//	heads/<epoch>-<version> signed heads; the newest one says what is in force
//	guard.json              the staged deletion and the operator's decision, if any
//	removals.json           deletions of the last days that weren't staged
//	changes.json            what changed last
//
// A head is written, by one rename, when all that it names is durable: that is
// the commit. Files that no kept head names are removed later. What is read back
// is verified as if it came from the network.
type store struct {
	fs    fileSystem
	dir   string
	codec *codec

	mu    sync.Mutex
	have  map[hash]bool
	dirty map[string]bool // directories whose names aren't durable yet
}

func openStore(fsys fileSystem, dir string, c *codec) (*store, error) {
	s := &store{fs: fsys, dir: dir, codec: c, have: map[hash]bool{}, dirty: map[string]bool{}}
	for _, d := range []string{s.path("chunks"), s.path("heads")} {
		if err := fsys.MkdirAll(d); err != nil {
			return nil, fmt.Errorf("open policy store: %w", err)
		}
	}
	if err := errors.Join(fsys.SyncDir(s.dir), fsys.SyncDir(path.Dir(s.dir))); err != nil {
		return nil, fmt.Errorf("open policy store: %w", err)
	}
	subs, err := fsys.ReadDir(s.path("chunks"))
	if err != nil {
		return nil, fmt.Errorf("open policy store: %w", err)
	}
	for _, sub := range subs {
		s.dirty[s.path("chunks", sub)] = true // the last run may have left it unsynced
		names, err := fsys.ReadDir(s.path("chunks", sub))
		if err != nil {
			return nil, fmt.Errorf("open policy store: %w", err)
		}
		for _, n := range names {
			var h hash
			if b, err := hex.DecodeString(n); err == nil && copy(h[:], b) == len(h) && len(b) == len(h) {
				s.have[h] = true
			} else if strings.HasPrefix(n, tempPrefix) {
				_ = fsys.Remove(s.path("chunks", sub, n)) // tried again at the next start
			}
		}
	}
	return s, nil
}

func (s *store) path(elem ...string) string { return path.Join(s.dir, path.Join(elem...)) }

func (s *store) chunkPath(h hash) (dir, file string) {
	x := hex.EncodeToString(h[:])
	dir = s.path("chunks", x[:2])
	return dir, path.Join(dir, x)
}

func (s *store) has(h hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have[h]
}

// put stores a frame that was verified. It is durable after sync.
func (s *store) put(h hash, frame []byte) error {
	dir, file := s.chunkPath(h)
	if err := s.fs.MkdirAll(dir); err != nil {
		return fmt.Errorf("store chunk: %w", err)
	}
	if err := placeFile(s.fs, file, frame); err != nil {
		return fmt.Errorf("store chunk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have[h] = true
	s.dirty[dir] = true
	return nil
}

// keep stores the chunks of a policy. They are durable after sync.
func (s *store) keep(src *source) error {
	refs := map[hash]ref{}
	src.layout.names(refs)
	for _, r := range src.order {
		refs[r.hash] = r
	}
	g := new(errgroup.Group)
	g.SetLimit(parallel)
	for name := range refs {
		if !s.has(name) {
			g.Go(func() error { return s.put(name, s.codec.pack(src.chunk(name))) })
		}
	}
	return g.Wait()
}

// get reads a chunk back. One that the disk has damaged is forgotten, so that
// it is fetched again.
func (s *store) get(r ref) ([]byte, error) {
	_, file := s.chunkPath(r.hash)
	frame, err := s.fs.ReadFile(file, maxFrame)
	var b []byte
	if err == nil {
		if b, err = s.codec.unpack(frame, int(r.size)); err == nil {
			err = r.verify(b)
		}
	}
	if err == nil {
		return b, nil
	}
	s.forget(r.hash)
	return nil, alarm(AlarmStore, "read chunk: %w", err)
}

// frame returns the stored frame of a chunk, nil when there is none or it holds
// something else.
func (s *store) frame(h hash, chunk []byte) []byte {
	if !s.has(h) {
		return nil
	}
	_, file := s.chunkPath(h)
	frame, err := s.fs.ReadFile(file, maxFrame)
	if err == nil {
		var b []byte
		if b, err = s.codec.unpack(frame, len(chunk)); err == nil && bytes.Equal(b, chunk) {
			return frame
		}
	}
	s.forget(h) // it is stored again with the next version that has it
	return nil
}

func (s *store) forget(h hash) {
	s.mu.Lock()
	delete(s.have, h)
	s.mu.Unlock()
}

// sync makes the names of all chunks durable.
func (s *store) sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, dir := range append(slices.Sorted(maps.Keys(s.dirty)), s.path("chunks")) {
		if err := s.fs.SyncDir(dir); err != nil {
			return fmt.Errorf("sync chunks: %w", err)
		}
	}
	clear(s.dirty)
	return nil
}

// headName names a head's file so that names sort by age.
func headName(h *Head) string { return fmt.Sprintf("%020d-%020d", h.Epoch, h.Version) }

// saveHead commits a version: whoever opens the store next finds it, or
// everything as it was before.
func (s *store) saveHead(h *Head, raw []byte) error {
	if err := s.sync(); err != nil {
		return err
	}
	if err := replaceFile(s.fs, s.path("heads", headName(h)), raw); err != nil {
		return fmt.Errorf("store head: %w", err)
	}
	return nil
}

// heads lists the stored heads, the newest first.
func (s *store) heads() ([]string, error) {
	names, err := s.fs.ReadDir(s.path("heads"))
	if err != nil {
		return nil, fmt.Errorf("list heads: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, tempPrefix) })
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

func (s *store) head(name string) ([]byte, error) {
	b, err := s.fs.ReadFile(s.path("heads", name), maxHead)
	if err != nil {
		return nil, fmt.Errorf("read head: %w", err)
	}
	return b, nil
}

// layout reads a head's index chunks.
func (s *store) layout(h *Head) (layout, error) {
	var b []byte
	for _, r := range h.index {
		chunk, err := s.get(r)
		if err != nil {
			return nil, err
		}
		b = append(b, chunk...)
	}
	l, err := decodeLayout(b)
	if err != nil {
		return nil, &AlarmError{AlarmContent, err}
	}
	return l, nil
}

// collect removes every head but those kept, and every chunk that none of these
// names. Failures are retried another time.
func (s *store) collect(keep ...*version) {
	heads, chunks := map[string]bool{}, map[hash]ref{}
	for _, v := range keep {
		if v == nil {
			continue
		}
		if !v.veiled {
			heads[headName(v.head)] = true
		}
		v.content.layout.names(chunks)
		for _, r := range v.head.index {
			chunks[r.hash] = r
		}
	}
	names, _ := s.heads()
	for _, n := range names {
		if !heads[n] {
			_ = s.fs.Remove(s.path("heads", n))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.have {
		if _, ok := chunks[h]; ok {
			continue
		}
		if _, file := s.chunkPath(h); s.fs.Remove(file) == nil {
			delete(s.have, h)
		}
	}
}

// guardFile is what guard.json holds. The file exists while a deletion is
// staged.
type guardFile struct {
	Baseline string   `json:"baseline"`           // head file of the last version whose deletions were all taken
	Veiled   []byte   `json:"veiled,omitempty"`   // its head in place of that file, when it was hashed here
	Rejected string   `json:"rejected,omitempty"` // identity of the version whose deletion the operator refused
	Fleeting fleeting `json:"fleeting,omitzero"`
}

func (s *store) loadGuard() (*guardFile, error) {
	b, err := s.fs.ReadFile(s.path("guard.json"), 2*maxHead)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	g := new(guardFile)
	if err == nil {
		err = json.Unmarshal(b, g)
	}
	if err != nil {
		return nil, fmt.Errorf("read guard: %w", err)
	}
	return g, nil
}

// saveGuard stores g, or removes the file when g is nil.
func (s *store) saveGuard(g *guardFile) error {
	name := s.path("guard.json")
	if g == nil {
		if err := s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clear guard: %w", err)
		}
		if err := s.fs.SyncDir(s.dir); err != nil {
			return fmt.Errorf("clear guard: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(g)
	if err == nil {
		err = replaceFile(s.fs, name, b)
	}
	if err != nil {
		return fmt.Errorf("store guard: %w", err)
	}
	return nil
}
