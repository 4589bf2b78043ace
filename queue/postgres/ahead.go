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
	end     string // the last key that was read, "" when nothing came after it
	kept    int    // of its values, at most
}

// span is keys to be read ahead.
type span struct {
	from   []byte
	length int
	age    int
}

// take is a value that was read ahead, nil when there is none: then its span is to be
// read, and kept. With a value there may be one as well: what comes next, in good time.
func (a *ahead) take(key []byte) (value []byte, next span) {
	for patient := true; ; patient = false {
		value, next, arrives := a.takeNow(key, patient)
		if arrives == nil {
			return value, next
		}
		<-arrives
	}
}

// takeNow is take. With patience it waits for nothing to be read twice: several
// sessions get keys of one run, each its own.
func (a *ahead) takeNow(key []byte, patient bool) (value []byte, next span, arrives chan struct{}) {
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
		if r.kept--; r.kept < r.length/2 && r.end != "" && r.arrives == nil {
			r.longer()
			next = a.read(r, append([]byte(r.end), 0))
		}
		return value, next, nil
	}
	if patient && r.arrives != nil && string(key) >= r.from {
		return nil, span{}, r.arrives
	}
	if string(key) > r.last && r.last != "" {
		r.longer()
	} else {
		r.length = max(1, r.length/2)
	}
	r.last = string(key)
	if r.length == 1 {
		return nil, span{key, 1, a.age}, nil
	}
	return nil, a.read(r, key), nil
}

func (r *run) longer() { r.length = max(1, min(2*r.length, aheadKeys, aheadOctets/(r.octets+1))) }

// read begins to read ahead. The caller holds mu.
func (a *ahead) read(r *run, from []byte) span {
	a.reading++
	if r.arrives == nil {
		r.from, r.arrives = string(from), make(chan struct{})
	}
	return span{from, r.length, a.age}
}

// keep takes what was read of a span, but for what has changed meanwhile, and for the first
// key if that is wanted at once.
func (a *ahead) keep(of span, wanted bool, keys, values [][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.runs[of.from[0]]
	if r.arrives != nil && r.from == string(of.from) {
		close(r.arrives)
		r.arrives = nil
	}
	if r.end = ""; len(keys) == of.length {
		r.end = string(keys[len(keys)-1])
	}
	for i, key := range keys {
		if a.octets > aheadKept {
			a.drop()
		}
		r.octets += (len(values[i]) - r.octets) / 8
		_, changing := a.changing[string(key)]
		if k := string(key); of.age == a.age && !changing && !a.changed[k] && a.values[k] == nil && (!wanted || k != string(of.from)) {
			a.values[k] = values[i]
			a.octets += len(values[i])
			r.kept++
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
	a.drop()
	a.changing = nil
	a.age++
}

// drop gives up what is kept. The caller holds mu.
func (a *ahead) drop() {
	clear(a.values)
	a.octets = 0
	for _, r := range a.runs {
		r.kept = 0
	}
}

// Get reads one key.
func (s *Store) Get(key []byte) ([]byte, error) {
	if err := s.ours(); err != nil {
		return nil, err
	}
	if len(key) == 0 {
		return nil, store.ErrNotFound
	}
	value, next := s.ahead.take(key)
	switch {
	case value != nil:
		if next.from != nil {
			s.reads.Go(func() { s.readAhead(next, false) }) // who misses a key of it meets the error
		}
		return value, nil
	case next.length == 1:
		return s.get(key)
	}
	value, err := s.readAhead(next, true)
	switch {
	case err != nil:
		return nil, failed("read a key", err)
	case value == nil:
		return nil, store.ErrNotFound
	}
	return value, nil
}

// readAhead reads a span, and returns the value of its first key if that is wanted, nil when
// there is none.
func (s *Store) readAhead(of span, wanted bool) (value []byte, err error) {
	var keys, values [][]byte
	err = s.read(func(ctx context.Context, n *session) error {
		keys, values = nil, nil
		q := query{aheadSQL, [][]byte{int4(s.id.Load()), of.from, {of.from[0] + 1}, int8b(int64(of.length))}}
		return n.rows(ctx, q, func(c [][]byte) {
			keys, values = append(keys, bytes.Clone(c[0])), append(values, append([]byte{}, c[1]...))
		})
	})
	if err != nil {
		keys, values = nil, nil
	}
	s.ahead.keep(of, wanted, keys, values)
	if wanted && len(keys) > 0 && bytes.Equal(keys[0], of.from) {
		value = values[0]
	}
	return value, err
}
