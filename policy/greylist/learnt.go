package greylist

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// maxFresh bounds what waits to be told to the primary. More than that an outage
// leaves for WriteDump.
const maxFresh = 10_000

// freshen notes that an entry has passed here and the primary may not know.
func (s *Store) freshen(key []byte, r record) {
	if _, there := s.fresh[string(key)]; !there && len(s.fresh) >= maxFresh {
		return
	}
	if s.fresh == nil {
		s.fresh = map[string]record{}
	}
	s.fresh[string(key)] = r
}

// Learnt returns entries that have passed here since the start and that Told hasn't
// had, at most so many.
func (s *Store) Learnt(most int) (all []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, r := range s.fresh {
		if len(all) == most {
			break
		}
		if kind, service, rest, ok := splitKey([]byte(key)); ok {
			all = append(all, s.entry(kind, service, rest, r))
		}
	}
	return all
}

// Told forgets that entries are to be told, but for those that have changed.
func (s *Store) Told(all []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range all {
		kind := byte(kindTriplet)
		if e.Kind == Client {
			kind = kindClient
		}
		key := string(keyOf(kind, e.Service, e.Key))
		if r, there := s.fresh[key]; there && r.last == e.Last.Unix() {
			delete(s.fresh, key)
		}
	}
}

// maxLearned bounds what a primary keeps of what its secondaries have told.
const maxLearned = 50_000

// Learned is what a primary's secondaries have let in, in a file. Its methods may be
// called at once.
type Learned struct {
	file string

	mu  sync.Mutex // guards all below
	all map[learnedKey]Entry
}

type learnedKey struct{ service, kind, key string }

// OpenLearned reads the file, which may be missing. A file that can't be read is an
// error, and the rest begins empty.
func OpenLearned(file string) (*Learned, error) {
	l := &Learned{file: file, all: map[learnedKey]Entry{}}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	defer f.Close()
	in := json.NewDecoder(bufio.NewReader(f))
	for in.More() && len(l.all) < maxLearned {
		var e Entry
		if err := in.Decode(&e); err != nil {
			return l, fmt.Errorf("%s: %w", file, err)
		}
		l.all[learnedKey{e.Service, e.Kind, e.Key}] = e
	}
	return l, nil
}

// Add takes entries, and writes the file. Those seen longest ago leave where there
// are too many.
func (l *Learned) Add(list []Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range list {
		k := learnedKey{e.Service, e.Kind, e.Key}
		if old, there := l.all[k]; there && old.Last.After(e.Last) {
			continue
		}
		l.all[k] = e
	}
	if over := len(l.all) - maxLearned; over > 0 {
		for _, e := range l.sorted()[:over] {
			delete(l.all, learnedKey{e.Service, e.Kind, e.Key})
		}
	}
	return l.write()
}

// sorted are the entries, the one seen longest ago first.
func (l *Learned) sorted() []Entry {
	return slices.SortedFunc(maps.Values(l.all), func(a, b Entry) int {
		return cmp.Or(a.Last.Compare(b.Last), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Service, b.Service))
	})
}

func (l *Learned) write() error {
	f, err := os.CreateTemp(filepath.Dir(l.file), filepath.Base(l.file)+".*")
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	out := json.NewEncoder(w)
	for _, e := range l.all {
		if err == nil {
			err = out.Encode(e)
		}
	}
	err = errors.Join(err, w.Flush(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), l.file)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// Walk calls fn for each entry, the one seen longest ago first.
func (l *Learned) Walk(fn func(Entry) error) error {
	l.mu.Lock()
	all := l.sorted()
	l.mu.Unlock()
	for _, e := range all {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}
