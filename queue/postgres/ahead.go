package postgres

import (
	"bytes"
	"context"
	"sync"

	"github.com/understudy-mx/understudy/queue/store"
)

// A queue that drains gets one record, and one body, after the other. Who gets
// keys in order is read ahead for, more the longer it goes on, and what was read
// ahead is kept until it is asked for, or changed.
const (
	aheadKeys   = 64        // at most, at a time
	aheadOctets = 256 << 10 // likewise
	aheadKept   = 1 << 20   // octets in all
	aheadSQL    = `SELECT key, value FROM understudy.kv WHERE spool = $1::integer AND key >= $2::bytea AND key < $3::bytea
		ORDER BY spool, key LIMIT $4::bigint`
)

// ahead is what was read ahead. This process alone changes its spool, so it knows
// what isn't true any more.
type ahead struct {
	mu     sync.Mutex // guards the rest
	values map[string][]byte
	octets int
	runs   map[byte]*run

	reading  int             // look-ups under way
	changed  map[string]bool // since the first of them began
	changing map[string]int  // keys of the batch that is being applied
	age      int             // rises when all is forgotten
}

// run is of the keys that begin with one octet.
type run struct {
	last   string
	length int // keys to read at a time
	octets int // of a value, on average
	// Keys from here on are being read; closed once they are. nil: none are.
	from    string
	arrives chan struct{}
}

// take is a value that was read ahead, nil when there is none: then so many keys
// are to be read, and kept.
func (a *ahead) take(key []byte) (value []byte, length, age int) {
	for patient := true; ; patient = false {
		value, length, age, arrives := a.takeNow(key, patient)
		if arrives == nil {
			return value, length, age
		}
		<-arrives
	}
}

// takeNow is take. With patience it waits for nothing to be read twice: several
// sessions get keys of one run, each its own.
func (a *ahead) takeNow(key []byte, patient bool) (value []byte, length, age int, arrives chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.runs[key[0]]
	if r == nil {
		if a.runs == nil {
			a.runs, a.values, a.changed = map[byte]*run{}, map[string][]byte{}, map[string]bool{}
		}
		r = &run{}
		a.runs[key[0]] = r
	}
	if value := a.values[string(key)]; value != nil {
		delete(a.values, string(key))
		a.octets -= len(value)
		r.last = string(key)
		return value, 0, 0, nil
	}
	if patient && r.arrives != nil && string(key) >= r.from {
		return nil, 0, 0, r.arrives
	}
	if string(key) > r.last && r.last != "" {
		r.length = min(2*r.length, aheadKeys, aheadOctets/(r.octets+1))
	} else {
		r.length /= 2
	}
	r.length = max(1, r.length)
	r.last = string(key)
	if r.length > 1 {
		a.reading++
		if r.arrives == nil {
			r.from, r.arrives = string(key), make(chan struct{})
		}
	}
	return nil, r.length, a.age, nil
}

// keep takes what was read from a key on, but for what has changed meanwhile.
func (a *ahead) keep(from []byte, age int, keys, values [][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.runs[from[0]]; r.arrives != nil && r.from == string(from) {
		close(r.arrives)
		r.arrives = nil
	}
	for i, key := range keys {
		if a.octets > aheadKept {
			clear(a.values)
			a.octets = 0
		}
		r := a.runs[key[0]]
		r.octets += (len(values[i]) - r.octets) / 8
		_, changing := a.changing[string(key)]
		if k := string(key); age == a.age && !changing && !a.changed[k] && a.values[k] == nil {
			a.values[k] = values[i]
			a.octets += len(values[i])
		}
	}
	if a.reading--; a.reading == 0 {
		clear(a.changed)
	}
}

// change is called before a batch is applied, with its keys, and afterwards with
// none: who reads meanwhile may see it or not.
func (a *ahead) change(keys map[string]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, set := range []map[string]int{a.changing, keys} {
		for k := range set {
			if v, kept := a.values[k]; kept {
				a.octets -= len(v)
				delete(a.values, k)
			}
			if a.reading > 0 {
				a.changed[k] = true
			}
		}
	}
	a.changing = keys
}

// forget is for when it isn't known what was changed.
func (a *ahead) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.values)
	a.octets, a.changing = 0, nil
	a.age++
}

// Get reads one key.
func (s *Store) Get(key []byte) ([]byte, error) {
	if err := s.ours(); err != nil {
		return nil, err
	}
	if len(key) == 0 {
		return nil, store.ErrNotFound
	}
	value, length, age := s.ahead.take(key)
	switch {
	case value != nil:
		return value, nil
	case length == 1:
		return s.get(key)
	}
	var keys, values [][]byte
	err := s.read(func(ctx context.Context, n *session) error {
		keys, values = nil, nil
		q := query{aheadSQL, [][]byte{int4(s.id.Load()), key, {key[0] + 1}, int8b(int64(length))}}
		return n.rows(ctx, q, func(c [][]byte) {
			keys, values = append(keys, bytes.Clone(c[0])), append(values, append([]byte{}, c[1]...))
		})
	})
	found := len(keys) > 0 && bytes.Equal(keys[0], key)
	if found {
		value = values[0]
		keys, values = keys[1:], values[1:]
	}
	s.ahead.keep(key, age, keys, values)
	switch {
	case err != nil:
		return nil, failed("read a key", err)
	case !found:
		return nil, store.ErrNotFound
	}
	return value, nil
}
