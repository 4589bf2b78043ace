// Package greylist remembers whom greylisting put off, and who has come again.
//
// Greylisting (RFC 6647) tells an unknown client "later" and lets it in when it
// tries again after some minutes, which a mail server does and much malware
// doesn't. What counts as the same attempt is the policy's to say; it gives two
// keys, one for the client and one for the client, sender and recipient together
// (a triplet):
//
//	203.0.113.9
//	203.0.113.0/list-#@example.net/user@example.org
//
// For a triplet the store has the times of the first attempt and of the last. It
// has passed when they are as far apart as the delay. For a client it has how
// often one of its triplets passed for the first time, at most once an hour; with
// enough of them it is let in whatever it sends. These are the rules of postgrey
// 1.37, and so is the time of tidying: at night, between two and seven.
//
// Promises: the store stays within its bounds of entries and octets, whatever
// comes; attempts that haven't passed leave first, the oldest before the others. It
// is no archive: a power cut forgets the last seconds. A store that is damaged is
// put aside and a new one begun; where the disk fails, memory takes its place, a
// smaller one. An attempt is always answered.
package greylist

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// Bounds of a store. One in memory has a tenth of them.
const (
	maxEntries = 500_000
	maxOctets  = 128 << 20
	overhead   = 32 // octets of an entry besides its key
)

// Options of a store.
type Options struct {
	Dir     string
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger
	Metrics *metrics.Metrics

	MaxEntries int   // 0: maxEntries
	MaxOctets  int64 // 0: maxOctets
}

// Store is what Open returns. Its methods may be called at once.
type Store struct {
	o  Options
	mu sync.Mutex // guards all below

	db      *leveldb.DB
	inside  bool // db is in memory
	closed  bool
	entries int
	octets  int64
	rules   map[string]rules  // of services, as they were asked last
	fresh   map[string]record // what Learnt returns, by key

	tidied, tidiedKeys int64 // when: postgrey's last_maint and last_maint_keys
}

// rules are what tidying goes by.
type rules struct{ delay, maxAge, retryWindow int64 }

var levelOptions = opt.Options{
	WriteBuffer: 1 << 20, BlockCacheCapacity: 2 << 20, CompactionTableSize: 2 << 20, OpenFilesCacheCapacity: 100,
	DisableBufferPool: true, DisableSeeksCompaction: true, DisableLargeBatchTransaction: true, Filter: filter.NewBloomFilter(10),
}

// Open opens the store of a directory, or makes one.
func Open(o Options) *Store {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = maxEntries
	}
	if o.MaxOctets == 0 {
		o.MaxOctets = maxOctets
	}
	s := &Store{o: o, rules: map[string]rules{}, tidied: o.Now().Unix()}
	s.open()
	s.o.Metrics.Greylist(func() (entries int, octets int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.entries, s.octets
	})
	return s
}

// open opens the directory, puts a damaged one aside, or takes to memory.
func (s *Store) open() {
	err := os.MkdirAll(s.o.Dir, 0o700)
	for attempt := 0; err == nil && attempt < 2; attempt++ {
		options := levelOptions
		s.db, err = leveldb.OpenFile(s.o.Dir, &options)
		if err == nil {
			if err = s.count(); err == nil {
				return
			}
			s.db.Close()
		}
		if lerrors.IsCorrupted(err) {
			err = s.putAside(err)
		}
	}
	s.intoMemory(err)
}

func (s *Store) putAside(why error) error {
	aside := s.o.Dir + ".damaged"
	err := os.RemoveAll(aside) // of one before
	if err == nil {
		err = os.Rename(s.o.Dir, aside)
	}
	if err == nil {
		s.o.Log.Error("the greylist's store is damaged and put aside; a new one begins", "kept", aside, "err", why)
	}
	return err
}

func (s *Store) intoMemory(why error) {
	s.o.Log.Error("the greylist is kept in memory until the next start", "err", why)
	s.inside, s.entries, s.octets = true, 0, 0
	options := levelOptions
	s.db, _ = leveldb.Open(storage.NewMemStorage(), &options) // memory doesn't fail
}

// count counts what is there.
func (s *Store) count() error {
	s.entries, s.octets = 0, 0
	return s.each(func(key []byte, _ record) {
		s.entries++
		s.octets += int64(len(key)) + overhead
	})
}

// Close ends the store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.db.Close()
}

// Kinds of entries, the first octet of their keys. The service's name, a zero octet and
// the key in the policy's terms follow.
const (
	kindClient  = 'c'
	kindTriplet = 't'
)

func keyOf(kind byte, service, key string) []byte {
	return append(append(append([]byte{kind}, service...), 0), key...)
}

// record is an entry's value: of a triplet the times of its first and last
// attempt, of a client its count and the time of the last one that counted.
type record struct{ first, last int64 }

func (r record) bytes() []byte {
	return binary.AppendVarint(binary.AppendVarint(nil, r.first), r.last)
}

func parseRecord(b []byte) (r record, ok bool) {
	var n int
	if r.first, n = binary.Varint(b); n > 0 {
		b = b[n:]
		r.last, n = binary.Varint(b)
	}
	return r, n > 0 && n == len(b)
}

func (s *Store) get(key []byte) (r record, ok bool) {
	b, err := s.db.Get(key, nil)
	if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
		s.failed(err)
		return record{}, false
	}
	return parseRecord(b)
}

func (s *Store) put(key []byte, r record, isNew bool) {
	if err := s.db.Put(key, r.bytes(), nil); err != nil {
		s.failed(err)
		if s.closed || s.db.Put(key, r.bytes(), nil) != nil {
			return
		}
		isNew = true
	}
	if isNew {
		s.entries++
		s.octets += int64(len(key)) + overhead
		s.bound()
	}
}

// failed replaces a database that doesn't work any more.
func (s *Store) failed(err error) {
	if s.closed || s.inside {
		return
	}
	s.db.Close()
	if !lerrors.IsCorrupted(err) || s.putAside(err) != nil {
		s.intoMemory(err)
		return
	}
	s.open()
}

// Try is GreyMemory's.
func (s *Store) Try(t *policy.GreyTry) (wait int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // while the door closes: in doubt it is too early
		return int64(t.Rules.Delay)
	}
	now := s.o.Now().Unix()
	wait, result := s.try(t, now, false)
	s.o.Metrics.Greylisted.WithLabelValues(result).Inc()
	s.tidy(now)
	return wait
}

// Passed is GreyMemory's.
func (s *Store) Passed(t *policy.GreyTry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.try(t, s.o.Now().Unix(), true)
	s.o.Metrics.Greylisted.WithLabelValues("learned").Inc()
}

// Exempt is GreyMemory's.
func (s *Store) Exempt() {
	s.o.Metrics.Greylisted.WithLabelValues("exempt").Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.tidy(s.o.Now().Unix())
	}
}

// try is postgrey's decision. passed says that the primary has let the triplet
// pass.
func (s *Store) try(t *policy.GreyTry, now int64, passed bool) (wait int64, result string) {
	delay := int64(t.Rules.Delay)
	s.rules[t.Service] = rules{delay, int64(t.Rules.MaxAge), int64(t.Rules.RetryWindow)}
	clientKey := keyOf(kindClient, t.Service, t.Client)
	client, isClient, newClient := s.client(t, clientKey, now)
	if enough := int64(t.Rules.AutoClients); enough > 0 && isClient && client.first >= enough {
		if now >= client.last+3600 || client.last > now {
			client.first++
			client.last = now
			s.put(clientKey, client, newClient)
		}
		return 0, "client"
	}
	key := keyOf(kindTriplet, t.Service, t.Triplet)
	r, had := s.get(key)
	before, known := had && r.last-r.first >= delay, false
	switch {
	case before:
	case passed && had:
		r.first = min(r.first, now-delay)
	case passed:
		r.first = now - delay
	case t.Arrived(now):
		r.first, before, known = now-delay, true, true
	case !had, now-r.first > int64(t.Rules.RetryWindow):
		r.first = now
	}
	if r.first > now {
		r.first = now
	}
	s.put(key, record{r.first, now}, !had)
	wait = delay - (now - r.first)
	if wait > 0 {
		return wait, "deferred"
	}
	if !before && t.Rules.AutoClients > 0 && (!isClient || now >= client.last+3600) {
		client.first++
		client.last = now
		s.put(clientKey, client, newClient)
		if !passed {
			s.freshen(clientKey, client)
		}
	}
	if known {
		return wait, "known"
	}
	if !passed { // else the primary knows
		s.freshen(key, record{r.first, now})
	}
	return wait, "passed"
}
