package offline

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/store"
)

func mustView(t *testing.T, dir leveldb.Dir) *View {
	t.Helper()
	v, err := OpenView(dir, routeByDomain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func verify(t *testing.T, v *View) Report {
	t.Helper()
	r, err := v.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestVerifyChangesNothing reads a queue that a crash left, on a real disk.
func TestVerifyChangesNothing(t *testing.T) {
	dir := leveldb.Dir{Path: filepath.Join(t.TempDir(), "q")}
	if _, err := OpenView(dir, routeByDomain); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no queue: %v", err)
	}
	q := mustOpen(t, dir)
	small := mustAccept(t, q, "small")
	mustAccept(t, q, bodyOf(200_000, 1))
	if _, err := OpenView(dir, routeByDomain); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("while it runs: %v", err)
	}
	copied := filepath.Join(t.TempDir(), "copy") // as a crash leaves it
	if err := os.CopyFS(copied, os.DirFS(dir.Path)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	dir.Path = copied
	before := contents(t, copied)
	v := mustView(t, dir)
	if r := verify(t, v); r.Messages != 2 || r.Bytes != 200_005 || len(r.Problems) != 0 || v.Count() != 2 {
		t.Errorf("%+v of %d messages", r, v.Count())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := v.Verify(ctx); !errors.Is(err, context.Canceled) || r.Messages > 0 {
		t.Errorf("interrupted: %+v, %v", r, err)
	}
	if f, err := v.Body(small); err != nil {
		t.Error(err)
	} else if b, _ := io.ReadAll(f); string(b) != "small" {
		t.Errorf("%q", b)
	}
	v.Close()
	if after := contents(t, copied); after != before {
		t.Errorf("changed:\n%s\nwas:\n%s", after, before)
	}
}

func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			data, rerr := os.ReadFile(name)
			b.WriteString(name + " " + string(data) + "\n")
			err = rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestQuarantineExport puts three messages aside and gets what is left of each.
func TestQuarantineExport(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "inline")
	mustAccept(t, q, bodyOf(100_000, 1))
	gone := mustAccept(t, q, bodyOf(100_000, 2))
	mustClose(t, q)
	for _, seq := range []uint64{1, 2} { // records that can't be read
		damageRecord(t, dirOn(disk), seq)
	}
	disk.Remove(bodyFile(gone))
	v := mustView(t, dirOn(disk))
	if r := verify(t, v); len(r.Problems) < 3 || !strings.Contains(strings.Join(r.Problems, "\n"), "message number 1: ") {
		t.Errorf("%+v", r)
	}
	v.Close()
	q = mustOpen(t, dirOn(disk))
	var all []queue.Quarantine
	q.WalkQuarantine(t.Context(), func(i queue.Quarantine) error { all = append(all, i); return nil })
	if len(all) != 3 || all[2].ID != gone || all[2].Message == nil || all[0].Cause == "" {
		t.Fatalf("%+v", all)
	}
	for seq, want := range map[uint64]string{1: "inline", 2: bodyOf(100_000, 1)} {
		f, err := q.QuarantineBody(seq)
		if err != nil {
			t.Errorf("body of %d: %v", seq, err)
			continue
		}
		if b, err := io.ReadAll(f); err != nil || string(b) != want {
			t.Errorf("body of %d: %d octets, %v", seq, len(b), err)
		}
		f.Close()
	}
	if _, err := q.QuarantineBody(3); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("body of 3: %v", err)
	}
	if raw, err := q.QuarantineRecord(3); err != nil || len(raw) == 0 {
		t.Errorf("record: %v", err)
	}
	mustClose(t, q)
	v = mustView(t, dirOn(disk))
	if raw, err := v.QuarantineRecord(3); err != nil || len(raw) == 0 {
		t.Errorf("record, without a daemon: %v", err)
	}
	v.Close()
	if r := verify(t, mustView(t, dirOn(disk))); r.Quarantined != 3 || len(r.Problems) != 0 {
		t.Errorf("after they were put aside: %+v", r)
	}
}

// TestVerifyNoticesBitFlips flips bits all over the files; verify misses none
// that costs a message.
func TestVerifyNoticesBitFlips(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	n := 30
	for i := range n {
		mustAccept(t, q, bodyOf(500+i%10*8000, i))
	}
	mustClose(t, q)
	for _, name := range disk.Files("/q") {
		data := disk.Bytes(name)
		for bit := 0; bit < len(data)*8; bit += max(1, len(data)*8/40) {
			c := disk.Clone()
			data[bit/8] ^= 1 << (bit % 8)
			c.SetBytes(name, data)
			data[bit/8] ^= 1 << (bit % 8)
			noticesFlip(t, c, name, bit, n)
		}
	}
}

func noticesFlip(t *testing.T, c *testmx.Disk, name string, bit, n int) {
	t.Helper()
	v, err := OpenView(dirOn(c), routeByDomain)
	if err != nil {
		return // noticed
	}
	defer v.Close()
	r := verify(t, v)
	whole := 0
	v.Walk(t.Context(), func(i queue.Info) error {
		if _, err := readBody(v, i.ID); err == nil {
			whole++
		}
		return nil
	})
	if whole < n && len(r.Problems) == 0 {
		t.Errorf("%s bit %d: %d messages of %d left, and nothing noticed", name, bit, whole, n)
	}
}

// TestVerifyCounts: what Verify says of lines and counts that are not the messages'.
func TestVerifyCounts(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "body")
	mustClose(t, q)
	meddle(t, dirOn(disk), func(s store.Store, b *store.Batch) {
		b.Put(store.LineKey("mx.example.com", 99), nil)
		b.Put(store.LineKey("mx.example.com", 98), nil)
		b.Delete(store.LineKey("mx.example.com", 1))
		b.Put(store.SeqKey(store.SpaceBody, 97), nil)
		b.Put(store.IDKey("zzzzzzzzzzzzzzzz"), []byte{0, 0, 0, 0, 0, 0, 0, 96})
		b.Put(store.IDKey("short"), nil)
		b.Put(store.IDKey("no ID of ours"), []byte{0, 0, 0, 0, 0, 0, 0, 1})
		b.Put([]byte{store.SpaceTotals}, (&store.Totals{Next: 2, Messages: 2, Quarantined: 3}).Encode())
	})
	got := strings.Join(verify(t, mustView(t, dirOn(disk))).Problems, "\n")
	for _, want := range []string{"2 entries too many, 1 missing", "body of number 97", "ID zzzzzzzzzzzzzzzz: there is no such message",
		`ID "short": damaged entry`, `ID "no ID of ours": damaged entry`, "1 messages of 4 octets, 0 held, 0 deferred, 0 quarantined are here; the last batch says 2 of 0, 0, 0, 3"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

// TestViewOfTwoJournals looks at stores as a crash under load leaves them: a
// full journal whose table is not written yet, and the next one.
func TestViewOfTwoJournals(t *testing.T) {
	disk := newMemDisk()
	var images []*testmx.Disk
	disk.Watch(func(testmx.Op) {
		image := disk.Cut(testmx.LeftAll, nil)
		journals := 0
		for _, name := range image.Files("/q/store") {
			if filepath.Ext(name) == ".log" {
				journals++
			}
		}
		if journals > 1 {
			images = append(images, image)
		}
	})
	q := mustOpen(t, small(disk))
	for i := range 60 {
		mustAccept(t, q, bodyOf(1000, i))
	}
	disk.Watch(nil)
	mustClose(t, q)
	if len(images) == 0 {
		t.Fatal("there never were two journals")
	}
	for _, image := range images {
		v := mustView(t, dirOn(image))
		if r := verify(t, v); len(r.Problems) > 0 {
			t.Fatalf("%q", r.Problems)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
