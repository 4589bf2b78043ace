package offline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestAdd: a thousand problems are listed, the rest is counted.
func TestAdd(t *testing.T) {
	var r Report
	for i := range maxProblems + 3 {
		r.add("problem %d", i)
	}
	if len(r.Problems) != maxProblems || r.More != 3 || r.Problems[maxProblems-1] != fmt.Sprint("problem ", maxProblems-1) {
		t.Errorf("%d listed, %d more", len(r.Problems), r.More)
	}
}

// TestVerifyMissing: a message that is in nobody's line is told, and so is one
// that its ID doesn't lead to.
func TestVerifyMissing(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	first, second := mustAccept(t, q, "one"), mustAccept(t, q, "two")
	mustClose(t, q)
	meddle(t, dirOn(disk), func(_ store.Store, b *store.Batch) {
		b.Delete(store.LineKey("mx.example.com", 1))
		b.Put(store.IDKey(first), binary.BigEndian.AppendUint64(nil, 2))
		b.Delete(store.IDKey(second))
	})
	got := strings.Join(verify(t, mustView(t, dirOn(disk))).Problems, "\n")
	for _, want := range []string{"lines: 0 entries too many, 1 missing", first + ": not found by its ID", second + ": not found by its ID"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

// TestRepairIDs: messages are found by their IDs again, with their bodies' files,
// and what is left of one whose record is lost is put aside.
func TestRepairIDs(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	var ids []string
	for i := range 5 {
		ids = append(ids, mustAccept(t, q, bodyOf(large, i)))
	}
	mustClose(t, q)
	meddle(t, dirOn(disk), func(_ store.Store, b *store.Batch) {
		b.Delete(store.IDKey(ids[0]))
		b.Put(store.IDKey(ids[1]), binary.BigEndian.AppendUint64(nil, 1))
		b.Put(store.IDKey(ids[2]), []byte("short"))
		b.Put(store.IDKey(strings.Repeat("z", store.IDLen)), []byte("short too"))
		b.Delete(store.SeqKey(store.SpaceRecord, 4)) // its ID and its body's file are left
		b.Delete(store.SeqKey(store.SpaceRecord, 5)) // its body's file alone is left
		b.Delete(store.IDKey(ids[4]))
	})
	spoilManifest(disk)
	done, err := Repair(dirOn(disk), routeByDomain, func() {})
	if notes := strings.Join(done.Notes, "\n"); err != nil || done.Messages != 3 || done.Quarantined != 1 || strings.Count(notes, "the record is lost") != 1 || !strings.Contains(notes, "number 4: ") ||
		!strings.Contains(notes, "nothing else is left is now /q/body/aside/"+ids[4]) {
		t.Errorf("%+v, %v", done, err)
	}
	q = mustOpen(t, dirOn(disk))
	defer mustClose(t, q)
	for i, id := range ids[:3] {
		if body, err := readBody(q, id); err != nil || body != bodyOf(large, i) {
			t.Errorf("message %d: %d octets, %v", i+1, len(body), err)
		}
	}
	if id := mustAccept(t, q, "new"); id == "" {
		t.Error("no ID")
	}
	if n := len(walk(t, q)); n != 4 {
		t.Errorf("%d messages", n)
	}
}

// unreadable is a store of which some keys can't be read.
type unreadable struct {
	store.Store
	space byte
}

func (u unreadable) Get(key []byte) ([]byte, error) {
	if key[0] == u.space {
		return nil, syscall.EIO
	}
	return u.Store.Get(key)
}

func (u unreadable) Page(r store.Range, fn func(key, value []byte) bool) error {
	if bytes.HasPrefix(r.Start, []byte{u.space}) {
		return syscall.EIO
	}
	return u.Store.Page(r, fn)
}

// TestUnreadable: a part that can't be read is never taken for an empty one, neither
// by a repair nor by what looks.
func TestUnreadable(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "body")
	lost := mustAccept(t, q, "its record is lost")
	mustClose(t, q)
	meddle(t, dirOn(disk), func(_ store.Store, b *store.Batch) {
		b.Delete(store.SeqKey(store.SpaceRecord, 2))
		b.Put(store.IDKey(lost), binary.BigEndian.AppendUint64(nil, 2))
	})
	s, err := dirOn(disk).Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		what  string
		space byte
		step  func(*repair) error
	}{
		{"format", store.SpaceFormat, (*repair).format},
		{"records", store.SpaceRecord, (*repair).records},
		{"records", store.SpaceID, (*repair).records},
		{"orphans", store.SpaceBody, (*repair).orphans},
		{"orphans", store.SpaceID, (*repair).orphans},
		{"orphans", store.SpaceRecord, (*repair).orphans},
		{"orphans", store.SpaceQuarantine, (*repair).orphans},
		{"counts", store.SpaceTotals, (*repair).counts},
		{"counts", store.SpaceQuarantine, (*repair).counts},
	} {
		r := &repair{read: func() {}, store: unreadable{s, c.space}, done: &Repaired{}}
		if err := c.step(r); !errors.Is(err, syscall.EIO) {
			t.Errorf("repair, %s without %q: %v", c.what, c.space, err)
		}
	}
	for _, c := range []struct {
		what  string
		space byte
		step  func(*checker) error
	}{
		{"records", store.SpaceRecord, (*checker).records},
		{"ids", store.SpaceID, (*checker).ids},
		{"ids", store.SpaceRecord, (*checker).ids},
		{"ids", store.SpaceQuarantine, (*checker).ids},
		{"bodies", store.SpaceBody, (*checker).bodies},
		{"bodies", store.SpaceRecord, (*checker).bodies},
		{"lines", store.SpaceLine, (*checker).lines},
		{"lines", store.SpaceDeferred, (*checker).lines},
		{"counts", store.SpaceTotals, (*checker).counts},
	} {
		v := &checker{View: &View{store: unreadable{s, c.space}, route: routeByDomain}, ctx: t.Context(), index: map[string]bool{}}
		if err := c.step(v); !errors.Is(err, syscall.EIO) {
			t.Errorf("verify, %s without %q: %v", c.what, c.space, err)
		}
		if len(v.Problems) > 0 {
			t.Errorf("verify, %s without %q found %q", c.what, c.space, v.Problems)
		}
	}
}

// TestVerifyLostCounts: counts that are lost or damaged are told.
func TestVerifyLostCounts(t *testing.T) {
	for name, totals := range map[string][]byte{"lost": nil, "damaged": []byte("x")} {
		disk := newMemDisk()
		q := mustOpen(t, dirOn(disk))
		mustAccept(t, q, "body")
		mustClose(t, q)
		meddle(t, dirOn(disk), func(_ store.Store, b *store.Batch) {
			if b.Delete([]byte{store.SpaceTotals}); totals != nil {
				b.Put([]byte{store.SpaceTotals}, totals)
			}
		})
		if got := verify(t, mustView(t, dirOn(disk))).Problems; len(got) != 1 || !strings.HasPrefix(got[0], "counts: ") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestRepairNext: after a repair no number is given twice, though the totals are lost:
// not one whose body alone is left, either.
func TestRepairNext(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	for range 3 {
		mustAccept(t, q, "body")
	}
	mustClose(t, q)
	s, err := dirOn(disk).Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var b store.Batch
	b.Delete([]byte{store.SpaceTotals})
	b.Put(store.SeqKey(store.SpaceQuarantine, 7), nil)
	b.Put(store.SeqKey(store.SpaceBody, 9), []byte("body"))
	if err := s.Apply(b); err != nil {
		t.Fatal(err)
	}
	r := &repair{read: func() {}, store: s, done: new(Repaired)}
	for _, step := range []func() error{r.records, r.orphans, r.counts} {
		if err := errors.Join(step(), r.flush(0)); err != nil {
			t.Fatal(err)
		}
	}
	if totals, err := store.LoadTotals(s); err != nil || totals.Next != 10 || totals.Quarantined != 2 {
		t.Errorf("%+v, %v", totals, err)
	}
}
