package greylist

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/understudy-mx/understudy/policy"
)

// each walks through all entries. The error is the
// database's.
func (s *Store) each(fn func(key []byte, r record)) error {
	it := s.db.NewIterator(&util.Range{}, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	for it.Next() {
		r, ok := parseRecord(it.Value())
		if !ok {
			r = record{} // nobody else's: the oldest of all
		}
		fn(it.Key(), r)
	}
	return it.Error()
}

// client is what is known of a client here and on the primary. isNew says that
// nothing is known here.
func (s *Store) client(t *policy.GreyTry, key []byte, now int64) (r record, known, isNew bool) {
	r, known = s.get(key)
	isNew = !known
	if t.Known != nil && now-t.Known.Last <= int64(t.Rules.MaxAge) {
		r.first, r.last, known = max(r.first, t.Known.Count), max(r.last, t.Known.Last), true
	}
	return r, known, isNew
}

// Entry is what is remembered of a client, or of a client, sender and recipient.
type Entry struct {
	Service string    `json:"service"`
	Kind    string    `json:"kind"` // "client" or "triplet"
	Key     string    `json:"key"`
	Count   int64     `json:"count,omitempty"` // of a client
	First   time.Time `json:"first,omitzero"`  // of a triplet
	Last    time.Time `json:"last"`
	Passed  bool      `json:"passed"`
}

// Kinds of an Entry.
const (
	Client  = "client"
	Triplet = "triplet"
)

func (s *Store) entry(kind byte, service, key string, r record) Entry {
	e := Entry{Service: service, Kind: Client, Key: key, Last: time.Unix(r.last, 0).UTC(), Passed: true}
	if kind == kindClient {
		e.Count = r.first
		return e
	}
	e.Kind, e.First = Triplet, time.Unix(r.first, 0).UTC()
	e.Passed = s.passed(service, r)
	return e
}

// passed says that a triplet has come again after its service's delay.
func (s *Store) passed(service string, r record) bool {
	rule, known := s.rules[service]
	if !known {
		rule = usual
	}
	return r.last-r.first >= rule.delay
}

// usual are postgrey's own, for services that nobody has asked since the start.
var usual = rules{300, 35 * 86400, 2 * 86400}

func splitKey(key []byte) (kind byte, service, rest string, ok bool) {
	if len(key) == 0 {
		return 0, "", "", false
	}
	name, after, ok := bytes.Cut(key[1:], []byte{0})
	return key[0], string(name), string(after), ok && (key[0] == kindClient || key[0] == kindTriplet)
}

// Walk calls fn for each entry, in the order of the keys, as they were when it
// began.
func (s *Store) Walk(fn func(Entry) error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return leveldb.ErrClosed
	}
	snap, err := s.db.GetSnapshot()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer snap.Release()
	it := snap.NewIterator(&util.Range{}, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	for it.Next() {
		kind, service, key, ok := splitKey(it.Key())
		r, good := parseRecord(it.Value())
		if !ok || !good {
			continue
		}
		s.mu.Lock()
		e := s.entry(kind, service, key, r)
		s.mu.Unlock()
		if err := fn(e); err != nil {
			return err
		}
	}
	return it.Error()
}

// tidy removes what is too old when postgrey would: after an attempt, between
// two and seven at night, 23 hours or more after the last time.
func (s *Store) tidy(now int64) {
	const hour = 3600
	if now-s.tidied < hour {
		return
	}
	s.tidied = now
	if h := s.o.Now().Hour(); h <= 1 || h >= 7 || now-s.tidiedKeys < 23*hour {
		return
	}
	s.tidiedKeys = now
	s.remove(func(key []byte, r record) bool {
		kind, service, _, ok := splitKey(key)
		rule, known := s.rules[service]
		if !known {
			rule = usual
		}
		age := now - r.last
		return !ok || age > rule.maxAge || kind == kindTriplet && r.last-r.first < rule.delay && age > rule.retryWindow
	})
}

// remove deletes entries.
func (s *Store) remove(old func(key []byte, r record) bool) {
	const most = 1000
	var batch leveldb.Batch
	octets := int64(0)
	flush := func() {
		if err := s.db.Write(&batch, nil); err != nil {
			s.failed(err)
			return
		}
		s.entries -= batch.Len()
		s.octets -= octets
		octets = 0
		batch.Reset()
	}
	db := s.db
	err := s.each(func(key []byte, r record) {
		if s.db == db && old(key, r) {
			batch.Delete(key)
			octets += int64(len(key)) + overhead
			if batch.Len() >= most {
				flush()
			}
		}
	})
	switch {
	case s.db != db: // it was replaced meanwhile
	case err != nil:
		s.failed(err)
	default:
		flush()
	}
}

// bound makes room when a bound is reached, a tenth at a time: attempts that
// haven't passed leave first, and the oldest first.
func (s *Store) bound() {
	entries, octets := s.o.MaxEntries, s.o.MaxOctets
	if s.inside {
		entries, octets = max(entries/10, 1), octets/10
	}
	if s.entries <= entries && s.octets <= octets {
		return
	}
	overEntries, overOctets := s.entries-entries*9/10, s.octets-octets*9/10
	type candidate struct{ rank, size int64 }
	var all []candidate
	rank := func(key []byte, r record) int64 {
		kind, service, _, _ := splitKey(key)
		if kind == kindTriplet && !s.passed(service, r) {
			return r.last
		}
		return r.last + 1<<40
	}
	_ = s.each(func(key []byte, r record) { all = append(all, candidate{rank(key, r), int64(len(key)) + overhead}) })
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	last := int64(0)
	for _, c := range all {
		if overEntries <= 0 && overOctets <= 0 {
			break
		}
		last = c.rank
		overEntries--
		overOctets -= c.size
	}
	n, room := s.entries-entries*9/10, s.octets-octets*9/10
	s.remove(func(key []byte, r record) bool {
		at := rank(key, r)
		if at > last || at == last && n <= 0 && room <= 0 {
			return false
		}
		n--
		room -= int64(len(key)) + overhead
		return true
	})
}
