package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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
