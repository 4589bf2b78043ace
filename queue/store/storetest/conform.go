package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

// Subject is a kind of store, and what may happen to one.
type Subject struct {
	// New is a store that there wasn't before.
	New func(t *testing.T) store.Opener
	// Crash is what a power cut leaves of an open store.
	Crash func(t *testing.T, o store.Opener) store.Opener
	// Fail has an open store's writes fail, or no longer.
	Fail func(o store.Opener, fails bool)
}

// Conform tests a store for all that the queue relies on.
func Conform(t *testing.T, s Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"created": created, "order": order, "slices": slicesKept, "paging": paging, "scan": scan,
		"atomic": atomic, "durable": durable, "unknown result": unknownResult,
		"bodies": bodies, "bodies durable": bodiesDurable, "reclaim": reclaim,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, o store.Opener) store.Store {
	t.Helper()
	s, err := o.Open(func(kind, detail string) { t.Errorf("alarm %s: %s", kind, detail) })
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s store.Store, pairs ...string) {
	t.Helper()
	var b store.Batch
	for i := 0; i < len(pairs); i += 2 {
		b.Put([]byte(pairs[i]), []byte(pairs[i+1]))
	}
	must(t, s.Apply(b))
}

func want(t *testing.T, s store.Store, key, value string) {
	t.Helper()
	if got, err := s.Get([]byte(key)); err != nil || string(got) != value {
		t.Errorf("%q is %.40q, %v; want %.40q", key, got, err, value)
	}
}

func wantNone(t *testing.T, s store.Store, key string) {
	t.Helper()
	if got, err := s.Get([]byte(key)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%q is %.40q, %v; want none", key, got, err)
	}
}

// created: a new store is one of this format, and nobody else's while it is open.
func created(t *testing.T, sub Subject) {
	o := sub.New(t)
	s := open(t, o)
	must(t, store.CheckFormat(s))
	if totals, err := store.LoadTotals(s); err != nil || totals != (store.Totals{Next: 1}) {
		t.Errorf("totals %+v, %v", totals, err)
	}
	if octets, files, err := s.Free(); err != nil || octets == 0 || files == 0 {
		t.Errorf("%d octets and %d files free, %v", octets, files, err)
	}
	if s.Damaged() {
		t.Error("damaged")
	}
	if _, err := o.Open(nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	put(t, s, "k", "v")
	must(t, s.Close())
	s = open(t, o)
	want(t, s, "k", "v")
	put(t, s, "f", string(store.FormatValue(store.FormatVersion+1)))
	must(t, s.Close())
	for range 2 { // the first lets go of it
		if _, err := o.Open(nil); !errors.Is(err, store.ErrNewerVersion) {
			t.Errorf("of a later version: %v", err)
		}
	}
}

// order: of the changes of a key the last one counts, in a batch and of several.
func order(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	var b store.Batch
	b.Put([]byte("a"), []byte("1"))
	b.Delete([]byte("a"))
	b.Put([]byte("b"), []byte("1"))
	b.Put([]byte("b"), nil)
	b.Delete([]byte("c"))
	b.Put([]byte("c"), bytes.Repeat([]byte{0, 0xff}, 1<<20))
	b.Delete([]byte("never there"))
	must(t, s.Apply(b))
	wantNone(t, s, "a")
	want(t, s, "b", "")
	want(t, s, "c", strings.Repeat("\x00\xff", 1<<20))
	put(t, s, "a", "2", "c", "2")
	want(t, s, "a", "2")
	want(t, s, "c", "2")
	must(t, s.Apply(nil))
}

// slicesKept: a batch is its owner's again after Apply, and so is what Get returned.
func slicesKept(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	key, value := []byte("key"), []byte("value")
	var b store.Batch
	b.Put(key, value)
	must(t, s.Apply(b))
	key[0], value[0] = 'X', 'X'
	want(t, s, "key", "value")
	wantNone(t, s, "Xey")
	got, err := s.Get([]byte("key"))
	must(t, err)
	got[0] = 'X'
	want(t, s, "key", "value")
}

// paging reads random keys in pages, from both ends of a space's neighbours.
func paging(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	rnd := rand.New(rand.NewPCG(1, 1))
	model := map[string]string{}
	for range 40 {
		var b store.Batch
		for range 50 {
			key := make([]byte, 1+rnd.IntN(4))
			for i := range key {
				key[i] = []byte{'a', 'b', 0, 0xff}[rnd.IntN(4)]
			}
			key = append([]byte{'x'}, key...)
			if rnd.IntN(3) == 0 {
				b.Delete(key)
				delete(model, string(key))
			} else {
				value := fmt.Sprint(rnd.Uint64())
				b.Put(key, []byte(value))
				model[string(key)] = value
			}
		}
		must(t, s.Apply(b))
	}
	put(t, s, "w\xff", "before", "y", "after")
	for _, prefix := range []string{"x", "xa", "x\xff", "x\xff\xff", "xbb"} {
		var expect, got []string
		for _, k := range slices.Sorted(maps.Keys(model)) {
			if strings.HasPrefix(k, prefix) {
				expect = append(expect, k+"="+model[k])
			}
		}
		var last []byte
		for more := true; more; {
			n := 0
			must(t, s.Page(store.From([]byte(prefix), last), func(key, value []byte) bool {
				got = append(got, string(key)+"="+string(value))
				last = bytes.Clone(key)
				n++
				return n < 7
			}))
			more = n == 7
		}
		if !slices.Equal(got, expect) {
			t.Errorf("%q: %q, want %q", prefix, got, expect)
		}
	}
	all := 0
	must(t, s.Page(store.Range{}, func(_, _ []byte) bool { all++; return true }))
	if all != len(model)+4 { // and the two that it was created with
		t.Errorf("%d keys, want %d", all, len(model)+4)
	}
}

// scan: who scans may change the store meanwhile.
func scan(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	const n = 10_000 // some pages
	var b store.Batch
	for i := range uint64(n) {
		b.Put(store.SeqKey('z', i), bytes.Repeat([]byte{byte(i)}, 50))
	}
	must(t, s.Apply(b))
	seen := uint64(0)
	must(t, store.Scan(s, []byte{'z'}, func(key, value []byte) error {
		if store.KeySeq(key) != seen || len(value) != 50 || value[0] != byte(seen) {
			return fmt.Errorf("key %x with %.3x after %d", key, value, seen)
		}
		seen++
		if seen%1000 == 1 {
			var b store.Batch
			b.Delete(key)
			return s.Apply(b)
		}
		return nil
	}))
	if seen != n {
		t.Errorf("%d of %d seen", seen, n)
	}
	full := errors.New("full")
	if err := store.Scan(s, []byte{'z'}, func(_, _ []byte) error { return full }); err != full {
		t.Errorf("a failure ended it with %v", err)
	}
}

// atomic: nobody sees half of a batch.
func atomic(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	put(t, s, "z1", "0", "z2", "0")
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				var got []string
				err := s.Page(store.From([]byte("z"), nil), func(_, value []byte) bool {
					got = append(got, string(value))
					return true
				})
				if err != nil || len(got) != 2 || got[0] != got[1] {
					t.Errorf("half a batch: %q, %v", got, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 200 {
		put(t, s, "z1", fmt.Sprint(i), "z2", fmt.Sprint(i))
	}
	close(stop)
	readers.Wait()
}

// durable: each batch is there after a power cut right after it.
func durable(t *testing.T, sub Subject) {
	o := sub.New(t)
	for i := range 5 {
		s := open(t, o)
		for k := range i {
			want(t, s, fmt.Sprintf("z%d", k), strings.Repeat("v", 1000*k))
		}
		put(t, s, fmt.Sprintf("z%d", i), strings.Repeat("v", 1000*i))
		o = sub.Crash(t, o)
	}
}

// unknownResult: a batch that failed is there or not, but not in part, and what
// was durable stays.
func unknownResult(t *testing.T, sub Subject) {
	o := sub.New(t)
	s := open(t, o)
	put(t, s, "z", "before")
	sub.Fail(o, true)
	var b store.Batch
	b.Put([]byte("z1"), []byte("new"))
	b.Put([]byte("z2"), []byte("new"))
	if err := s.Apply(b); err == nil {
		t.Fatal("a failed write was none")
	}
	sub.Fail(o, false)
	must(t, s.Reopen())
	want(t, s, "z", "before")
	one, err1 := store.Has(s, []byte("z1"))
	two, err2 := store.Has(s, []byte("z2"))
	if one != two || err1 != nil || err2 != nil {
		t.Errorf("half of a failed batch: %v %v, %v %v", one, two, err1, err2)
	}
	put(t, s, "z3", "after")
	s = open(t, sub.Crash(t, o))
	want(t, s, "z", "before")
	want(t, s, "z3", "after")
	if again, err := store.Has(s, []byte("z1")); again != one || err != nil {
		t.Errorf("what had failed was there: %v, and after a power cut: %v, %v", one, again, err)
	}
}

const bodyID = "0123456789abcdef"

func write(t *testing.T, s store.Store, id string, pieces int) string {
	t.Helper()
	w, err := s.Create(id)
	must(t, err)
	var all strings.Builder
	for i := range pieces {
		piece := strings.Repeat(fmt.Sprintf("piece %d\r\n", i), 1+1000*i)
		_, err := io.WriteString(io.MultiWriter(w, &all), piece)
		must(t, err)
	}
	r, err := w.Open()
	must(t, err)
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != all.String() {
		t.Errorf("of %d octets %d can be read before the commit: %v", all.Len(), len(b), err)
	}
	must(t, w.Commit())
	return all.String()
}

func read(t *testing.T, s store.Store, id string) string {
	t.Helper()
	r, size, err := s.Open(id)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	if size != int64(len(b)) {
		t.Errorf("%d octets, it said %d", len(b), size)
	}
	return string(b)
}

func listed(t *testing.T, s store.Store) (ids []string) {
	t.Helper()
	must(t, s.Bodies(func(id string) error { ids = append(ids, id); return nil }))
	slices.Sort(ids)
	return ids
}

// bodies are written in pieces, read from the start, and removed.
func bodies(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	other := "zyxwv" + bodyID[5:]
	if _, _, err := s.Open(bodyID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	must(t, s.Remove(bodyID))
	for _, pieces := range []int{0, 1, 40} {
		text, otherText := write(t, s, bodyID, pieces), write(t, s, other, 2)
		if read(t, s, bodyID) != text || read(t, s, other) != otherText {
			t.Errorf("%d pieces: not what was written", pieces)
		}
		if ids := listed(t, s); !slices.Equal(ids, []string{bodyID, other}) {
			t.Errorf("bodies %q", ids)
		}
		must(t, s.Remove(other))
		if read(t, s, bodyID) != text {
			t.Error("gone with another")
		}
		must(t, s.Remove(bodyID))
		if _, _, err := s.Open(bodyID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removed: %v", err)
		}
	}
	w, err := s.Create(bodyID)
	must(t, err)
	_, err = w.Write([]byte("not to be"))
	must(t, errors.Join(err, w.Close(), s.Remove(bodyID)))
	if ids := listed(t, s); len(ids) != 0 {
		t.Errorf("bodies %q, want none", ids)
	}
	stop := errors.New("stop")
	write(t, s, bodyID, 1)
	if err := s.Bodies(func(string) error { return stop }); err != stop {
		t.Errorf("a failure ended it with %v", err)
	}
}

// bodiesDurable: a body is there, whole, after a power cut right after Commit.
func bodiesDurable(t *testing.T, sub Subject) {
	o := sub.New(t)
	text := write(t, open(t, o), bodyID, 40)
	s := open(t, sub.Crash(t, o))
	if read(t, s, bodyID) != text {
		t.Error("not what was written")
	}
}

// reclaim takes nothing away that wasn't deleted.
func reclaim(t *testing.T, sub Subject) {
	s := open(t, sub.New(t))
	var b, gone store.Batch
	for i := range uint64(500) {
		b.Put(store.SeqKey('z', i), bytes.Repeat([]byte{byte(i)}, 1000))
		if i < 400 {
			gone.Delete(store.SeqKey('z', i))
		}
	}
	must(t, errors.Join(s.Apply(b), s.Apply(gone)))
	must(t, s.Reclaim(store.Range{Start: []byte{'z'}, Limit: store.SeqKey('z', 450)}))
	n := uint64(0)
	must(t, s.Page(store.From([]byte{'z'}, nil), func(key, value []byte) bool {
		if store.KeySeq(key) != 400+n || len(value) != 1000 {
			t.Errorf("key %x of %d octets", key, len(value))
		}
		n++
		return true
	}))
	if n != 100 {
		t.Errorf("%d left of 100", n)
	}
}
