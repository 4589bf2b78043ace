package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// TestMemory holds the store in memory to what it stands for.
func TestMemory(t *testing.T) {
	for name, applied := range map[string]bool{"failed batches are lost": false, "failed batches are applied": true} {
		t.Run(name, func(t *testing.T) {
			storetest.Conform(t, storetest.Subject{
				New:   func(*testing.T) store.Opener { return storetest.New() },
				Crash: func(_ *testing.T, o store.Opener) store.Opener { return o.(*storetest.Memory).Clone() },
				Fail: func(o store.Opener, fails bool) {
					o.(*storetest.Memory).Fault(nil)
					if fails {
						o.(*storetest.Memory).Fault(func(store.Batch) (bool, error) { return applied, errors.New("connection lost") })
					}
				},
			})
		})
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{"09az09az09az09az": true, "09az09az09az09a": false, "09az09az09az09az0": false, "": false,
		"09az09az09az09a/": false, "09az09az09az09a:": false, "09az09az09az09a`": false, "09az09az09az09a{": false, "09AZ09az09az09az": false} {
		if got := store.ValidID(id); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}

// TestIndex: each destination has one place, in line if a recipient of its is,
// else by the first that is due; held ones have none.
func TestIndex(t *testing.T) {
	to := func(domain string, s store.State, next int64) store.Recipient {
		r := store.Recipient{State: s, Next: next, Last: next - 5}
		r.Path.Domain = domain
		return r
	}
	r := &store.Record{Seq: 7, Recipients: []store.Recipient{
		to("deferred.example", store.Deferred, 900), to("held.example", store.Held, 0), to("line.example", store.Deferred, 3),
		to("deferred.example", store.Deferred, 800), to("line.example", store.Queued, 0), to("deferred.example", store.Held, 1),
		to("deferred.example", store.Deferred, 850),
	}}
	var got []string
	for _, e := range r.Index(func(domain string) string { return "mx." + domain }) {
		dest, ok := store.KeyDest(e.Key)
		if !ok || store.KeySeq(e.Key) != 7 {
			t.Errorf("key %q", e.Key)
		}
		place := dest
		if e.Key[0] == store.SpaceDeferred {
			place = fmt.Sprintf("%s due %d, tried %d", dest, store.KeyDue(e.Key), binary.BigEndian.Uint64(e.Value))
		} else if !bytes.Equal(e.Value, store.ClientSum(&envelope.Client{})) {
			t.Errorf("client %x", e.Value)
		}
		got = append(got, place)
	}
	if want := []string{"mx.deferred.example due 800, tried 795", "mx.line.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range []string{"", "q", "q\x00\x02ab1234567", "d\x00\x02ab12345678", "q\x00\x03ab12345678"} {
		if dest, ok := store.KeyDest([]byte(bad)); ok {
			t.Errorf("%q is for %q", bad, dest)
		}
	}
}

func TestTotals(t *testing.T) {
	r := &store.Record{Size: 10, Recipients: []store.Recipient{{State: store.Held}, {State: store.Deferred}}}
	want := store.Totals{Next: 5, Messages: 3, Held: 2, Deferred: 3, Bytes: 30, Quarantined: 4, Alive: int64(time.Hour)}
	said := want
	said.Add(r, -1)
	if said != (store.Totals{Next: 5, Messages: 2, Held: 1, Deferred: 2, Bytes: 20, Quarantined: 4, Alive: int64(time.Hour)}) {
		t.Errorf("%+v", said)
	}
	said.Add(r, 1)
	said.Add(nil, 1)
	good := said.Encode()
	if got, err := store.DecodeTotals(good); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, good[:len(good)-1], append(bytes.Clone(good), 0)} {
		if got, err := store.DecodeTotals(bad); !errors.Is(err, store.ErrRecord) {
			t.Errorf("%x: %+v, %v", bad, got, err)
		}
	}
}

// watched is a store that fails to read keys, and counts its open files.
type watched struct {
	store.Store
	err  error
	open int
}

func (w *watched) Get(key []byte) ([]byte, error) {
	if w.err != nil {
		return nil, w.err
	}
	return w.Store.Get(key)
}

type watchedFile struct {
	io.ReadCloser
	w *watched
}

func (f watchedFile) Close() error {
	f.w.open--
	return f.ReadCloser.Close()
}

func (w *watched) Open(id string) (io.ReadCloser, int64, error) {
	f, n, err := w.Store.Open(id)
	if err == nil {
		w.open++
		f = watchedFile{f, w}
	}
	return f, n, err
}

// TestReadingFails: a disk that fails isn't a message that is gone, and no body
// stays open: a queue has more of them than a process may have files.
func TestReadingFails(t *testing.T) {
	s, err := storetest.New().Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const id = "0123456789abcdef"
	body, err := s.Create(id)
	if err == nil {
		_, err = body.Write([]byte("body"))
		err = errors.Join(err, body.Commit())
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Store: s}
	r := &store.Record{Size: 4, Sum: sha256.Sum256([]byte("body"))}
	r.Env.ID = id
	for size, good := range map[int64]bool{4: true, 5: false} {
		r.Size = size
		if err := store.CheckBody(w, r); (err == nil) != good || w.open != 0 {
			t.Errorf("%d octets: %v, %d files are open", size, err, w.open)
		}
		if err := store.ReadWhole(w, r); (err == nil) != good || w.open != 0 {
			t.Errorf("%d octets read: %v, %d files are open", size, err, w.open)
		}
	}
	w.err = errors.New("I/O error")
	if _, err := store.SeqOf(w, id); !errors.Is(err, w.err) {
		t.Errorf("by ID: %v", err)
	}
	if _, err := store.Load(w, 7); !errors.Is(err, w.err) {
		t.Errorf("by number: %v", err)
	}
	if _, err := store.LoadTotals(w); !errors.Is(err, w.err) {
		t.Errorf("totals: %v", err)
	}
	if _, err := store.Has(w, store.IDKey(id)); !errors.Is(err, w.err) {
		t.Errorf("there: %v", err)
	}
}

// TestTotalsReports: totals of format 1 have no reports, and none has less than
// one.
func TestTotalsReports(t *testing.T) {
	for reports, good := range map[int64]bool{-1: false, 0: true, 1: true, 1 << 40: true} {
		want := store.Totals{Next: 5, Reports: reports}
		if got, err := store.DecodeTotals(want.Encode()); (err == nil) != good || good && got != want {
			t.Errorf("%d reports: %+v, %v", reports, got, err)
		}
	}
}

// TestConvert: an older store is of this program's format from then on, a newer
// one is refused by what it is.
func TestConvert(t *testing.T) {
	full := errors.New("no room")
	newest := store.FormatValue(store.FormatVersion)
	for name, tt := range map[string]struct {
		value, after []byte
		full         bool
		want         error
		says         string
	}{
		"none":              {nil, nil, false, store.ErrNotFound, "format version"},
		"empty":             {[]byte{}, []byte{}, false, store.ErrRecord, "format version"},
		"no number":         {bytes.Repeat([]byte{0xff}, 11), bytes.Repeat([]byte{0xff}, 11), false, store.ErrRecord, "format version"},
		"older":             {store.FormatValue(1), newest, false, nil, ""},
		"older, no room":    {store.FormatValue(1), store.FormatValue(1), true, full, ""},
		"this one":          {newest, newest, false, nil, ""},
		"this one, no room": {newest, newest, true, nil, ""},
		"newer":             {store.FormatValue(store.FormatVersion + 1), store.FormatValue(store.FormatVersion + 1), false, store.ErrNewerVersion, fmt.Sprint("knows up to ", store.FormatVersion)},
	} {
		m := storetest.New()
		s, err := m.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		var b store.Batch
		if b.Delete([]byte{store.SpaceFormat}); tt.value != nil {
			b.Put([]byte{store.SpaceFormat}, tt.value)
		}
		if err := s.Apply(b); err != nil {
			t.Fatal(err)
		}
		if tt.full {
			m.Fault(func(store.Batch) (bool, error) { return false, full })
		}
		if err := store.Convert(s); !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
		if v, err := s.Get([]byte{store.SpaceFormat}); !bytes.Equal(v, tt.after) || (err != nil) != (tt.after == nil) {
			t.Errorf("%s became %x, %v", name, v, err)
		}
		s.Close()
	}
}

// TestReading: a message by its number and its ID, and what is said of one that
// isn't there or isn't whole.
func TestReading(t *testing.T) {
	s, err := storetest.New().Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	body, id := []byte("body"), "0123456789abcdef"
	r := &store.Record{Seq: 7, Size: 4, Sum: sha256.Sum256(body), Inline: true}
	r.Env.ID = id
	var b store.Batch
	b.Put(store.SeqKey(store.SpaceRecord, 7), r.Encode())
	b.Put(store.SeqKey(store.SpaceRecord, 8), r.Encode())
	b.Put(store.SeqKey(store.SpaceBody, 7), body)
	b.Put(store.IDKey(id), []byte{0, 0, 0, 0, 0, 0, 0, 7})
	b.Put(store.IDKey("0123456789abcdeg"), []byte{7})
	if err := s.Apply(b); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Load(s, 7); err != nil || got.Env.ID != id {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := store.Load(s, 8); !errors.Is(err, store.ErrRecord) {
		t.Errorf("under another number: %v", err)
	}
	if got, err := store.Load(s, 9); got != nil || err != nil {
		t.Errorf("none: %+v, %v", got, err)
	}
	if seq, err := store.SeqOf(s, id); seq != 7 || err != nil {
		t.Errorf("number %d, %v", seq, err)
	}
	for _, bad := range []string{"", "../../etc/passwd", "0123456789abcdeg", "zzzzzzzzzzzzzzzz"} {
		if seq, err := store.SeqOf(s, bad); !errors.Is(err, store.ErrNoMessage) {
			t.Errorf("%q is number %d, %v", bad, seq, err)
		}
	}
	if err := store.ReadWhole(s, r); err != nil {
		t.Error(err)
	}
	large := bytes.Repeat([]byte("body"), 25_000)
	filed := store.Record{Size: int64(len(large)), Sum: sha256.Sum256(large)}
	filed.Env.ID = "zyxwvtsrqpnmkjhg"
	w, err := s.Create(filed.Env.ID)
	if err == nil {
		_, err = w.Write(large)
		err = errors.Join(err, w.Commit(), store.ReadWhole(s, &filed), store.CheckBody(s, &filed))
	}
	if err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*store.Record){
		"length": func(r *store.Record) { r.Size = 5 }, "content": func(r *store.Record) { r.Sum[0]++ },
		"no body": func(r *store.Record) { r.Seq = 8 }, "no file": func(r *store.Record) { r.Inline = false },
		"length of a file": func(r *store.Record) { *r = filed; r.Size = 5 }, "content of a file": func(r *store.Record) { *r = filed; r.Sum[0]++ },
	} {
		bad := *r
		change(&bad)
		if err := store.ReadWhole(s, &bad); !errors.Is(err, store.ErrBody) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
