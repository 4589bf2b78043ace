// Package storetest is for tests: a store in memory, and what every store of a
// queue is tested for.
package storetest

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/understudy-mx/understudy/queue/store"
)

// Memory is a store in memory. What was durable outlives its Close.
type Memory struct {
	mu     sync.Mutex // guards the rest
	fault  func(store.Batch) (applied bool, err error)
	open   bool
	broken bool
	fenced int64 // times that another holder was quicker
	lost   error // why another may have it
	keys   map[string][]byte
	bodies map[string][]byte
}

// New returns an empty one.
func New() *Memory { return &Memory{bodies: map[string][]byte{}} }

// Fault asks f about each batch from now on: its error fails Apply, which has
// applied the batch nevertheless if it says so. A nil f ends that.
func (m *Memory) Fault(f func(store.Batch) (applied bool, err error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// FaultOnce fails the next batch, and no later one.
func (m *Memory) FaultOnce(applied bool, err error) {
	m.Fault(func(store.Batch) (bool, error) {
		m.fault = nil // Apply holds the lock
		return applied, err
	})
}

// Fence applies b in place of the next batch, which fails: another holder of the
// store was quicker.
func (m *Memory) Fence(b store.Batch, err error) {
	m.Fault(func(store.Batch) (bool, error) {
		m.fault = nil // Apply holds the lock
		m.fenced++
		m.apply(b)
		return false, err
	})
}

// Lose has another holder be possible from now on, nil none.
func (m *Memory) Lose(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = err
}

// Clone is another store of the same content, as a power cut leaves it.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{keys: maps.Clone(m.keys), bodies: maps.Clone(m.bodies)}
}

func (m *Memory) String() string { return "in memory" }

// Open makes m a store of which there is one at a time.
func (m *Memory) Open(func(kind, detail string)) (store.Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open {
		return nil, store.ErrLocked
	}
	m.open, m.broken = true, false
	if m.keys == nil {
		m.keys = map[string][]byte{}
		m.apply(store.Created())
	}
	s := &opened{m}
	m.mu.Unlock()
	err := store.CheckFormat(s)
	m.mu.Lock()
	if err != nil {
		m.open = false
		return nil, err
	}
	return s, nil
}

func (m *Memory) apply(b store.Batch) {
	for _, c := range b {
		if c.Delete {
			delete(m.keys, string(c.Key))
		} else {
			m.keys[string(c.Key)] = append([]byte{}, c.Value...)
		}
	}
}

// opened keeps the methods of a store from who has only an Opener.
type opened struct{ m *Memory }

func (o *opened) Apply(b store.Batch) error {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return store.ErrReopening
	}
	if m.fault != nil {
		applied, err := m.fault(b)
		if m.broken = err != nil; m.broken {
			if applied {
				m.apply(b)
			}
			return err
		}
	}
	m.apply(b)
	return nil
}

func (o *opened) Get(key []byte) ([]byte, error) {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	b, ok := o.m.keys[string(key)]
	if !ok {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(b), nil
}

func (o *opened) Page(r store.Range, fn func(key, value []byte) bool) error {
	o.m.mu.Lock()
	keys := maps.Clone(o.m.keys)
	o.m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if k < string(r.Start) || r.Limit != nil && k >= string(r.Limit) {
			continue
		}
		if !fn([]byte(k), keys[k]) {
			break
		}
	}
	return nil
}

func (o *opened) Create(id string) (store.Body, error) { return &memoryBody{m: o.m, id: id}, nil }

type memoryBody struct {
	bytes.Buffer
	m  *Memory
	id string
}

func (b *memoryBody) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.Bytes())), nil
}

func (b *memoryBody) Commit() error {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.bodies[b.id] = bytes.Clone(b.Bytes())
	return nil
}

func (b *memoryBody) Close() error { return nil }

func (o *opened) Open(id string) (io.ReadCloser, int64, error) {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	b, ok := o.m.bodies[id]
	if !ok {
		return nil, 0, store.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

func (o *opened) Remove(id string) error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	delete(o.m.bodies, id)
	return nil
}

func (o *opened) Bodies(fn func(id string) error) error {
	o.m.mu.Lock()
	ids := slices.Sorted(maps.Keys(o.m.bodies))
	o.m.mu.Unlock()
	for _, id := range ids {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}

// Handovers counts what Fence did.
func (o *opened) Handovers() int64 {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	return o.m.fenced
}

// Held is what Lose was told.
func (o *opened) Held() error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	return o.m.lost
}

func (o *opened) Free() (octets, files uint64, err error) { return 1 << 40, 1 << 20, nil }
func (o *opened) Reclaim(...store.Range) error            { return nil }
func (o *opened) Damaged() bool                           { return false }

func (o *opened) Reopen() error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.m.broken = false
	return nil
}

func (o *opened) Close() error {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.m.open = false
	return nil
}
