package leveldb

import (
	"fmt"
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestReclaimNothing: while nothing has left, Reclaim merges no tables, although each
// of level 0 spans the range. What has left it does merge.
func TestReclaimNothing(t *testing.T) {
	d := Dir{Path: "/q", Disk: newMemDisk(), WriteBuffer: 8 << 10}
	opened, err := d.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := opened.(*Store)
	const n = 200
	apply := func(seq uint64, delete bool) {
		t.Helper()
		var b store.Batch
		for _, space := range []byte{store.SpaceBody, store.SpaceID, store.SpaceRecord} {
			if key := store.SeqKey(space, seq); delete {
				b.Delete(key)
			} else {
				b.Put(key, make([]byte, 400))
			}
		}
		if err := s.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	tables := func() (n int) {
		t.Helper()
		text, err := s.db.GetProperty("leveldb.num-files-at-level0")
		if err == nil {
			_, err = fmt.Sscan(text, &n)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	reclaim := func(before uint64) {
		t.Helper()
		if err := s.Reclaim(
			store.Range{Start: []byte{store.SpaceBody}, Limit: store.SeqKey(store.SpaceBody, before)},
			store.Range{Start: []byte{store.SpaceRecord}, Limit: store.SeqKey(store.SpaceRecord, before)}); err != nil {
			t.Fatal(err)
		}
	}
	for seq := range uint64(n) {
		apply(seq, false)
	}
	if err := s.Reopen(); err != nil { // all is in tables
		t.Fatal(err)
	}
	before := tables()
	if reclaim(0); before < 10 || tables() < before {
		t.Errorf("%d tables at level 0, then %d", before, tables())
	}
	for seq := range uint64(n) {
		apply(seq, true)
	}
	if reclaim(n); tables() > 0 {
		t.Errorf("%d tables at level 0 once all has left", tables())
	}
}
