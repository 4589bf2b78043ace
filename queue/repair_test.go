package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/table"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// kept is a store with a past, and what is in it: tables at several levels,
// messages that have left, held ones, body files.
func kept(t *testing.T) (disk *testmx.Disk, want map[string]string, held string) {
	disk = newMemDisk()
	o := options(disk)
	o.writeBuffer = 8 << 10
	want = map[string]string{}
	for life := range 3 {
		q := mustOpen(t, o)
		var ids []string
		for i := range 30 {
			size := 900 + i
			if i == 7 {
				size = maxInline + 1000
			}
			body := bodyOf(size, 100*life+i)
			id := mustAccept(t, q, body, "a@example.com")
			want[id] = body
			ids = append(ids, id)
		}
		for _, id := range ids[:10] {
			if err := q.Remove(id); err != nil {
				t.Fatal(err)
			}
			delete(want, id)
		}
		held = ids[20]
		if err := q.Hold(held); err != nil {
			t.Fatal(err)
		}
		if life == 1 {
			q.compactDrained()
		}
		mustClose(t, q)
		o.Metrics = nil
	}
	return disk, want, held
}

// flipped is a copy of the disk with one bit of a file changed.
func flipped(disk *testmx.Disk, name string, bit int) *testmx.Disk {
	c := disk.Clone()
	data := c.Bytes(name)
	data[bit/8] ^= 1 << (bit % 8)
	c.SetBytes(name, data)
	return c
}

// TestRepair flips every 29th bit of MANIFEST and CURRENT: either the store
// opens with all that is in it, or it says that it is damaged, changes
// nothing, and is whole again after a repair, which keeps it as it was.
func TestRepair(t *testing.T) {
	disk, want, held := kept(t)
	opened, repaired := 0, 0
	for _, name := range disk.Files("/q/store") {
		if base := filepath.Base(name); !strings.HasPrefix(base, "MANIFEST") && base != "CURRENT" {
			continue
		}
		for bit := 0; bit < len(disk.Bytes(name))*8; bit += 29 {
			c := flipped(disk, name, bit)
			what := fmt.Sprintf("%s bit %d", name, bit)
			q, err := Open(options(c))
			switch {
			case err == nil:
				opened++
			case errors.Is(err, ErrDamaged):
				repaired++
				q = mustRepair(t, what, c, name)
			default:
				t.Fatalf("%s: %v", what, err)
			}
			if n := whole(t, what, q, want); n != len(want) {
				t.Errorf("%s: %d messages of %d", what, n, len(want))
			}
			if i, err := q.Get(held); err != nil || i.Recipients[0].State != "held" {
				t.Errorf("%s: the held one is %+v, %v", what, i.Recipients, err)
			}
			mustClose(t, q)
			if r := verify(t, mustView(t, options(c))); len(r.Problems) > 0 {
				t.Errorf("%s: %q", what, r.Problems)
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d opened, %d repaired", opened, repaired)
	if repaired == 0 {
		t.Error("none was refused")
	}
}

// mustRepair repairs and opens.
func mustRepair(t *testing.T, what string, disk *testmx.Disk, damagedFile string) *Queue {
	t.Helper()
	before := disk.Bytes(damagedFile)
	done, err := Repair(options(disk))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if len(done.Notes) == 0 {
		t.Errorf("%s: nothing was said", what)
	}
	if aside := filepath.Join(done.Aside, filepath.Base(damagedFile)); !bytes.Equal(disk.Bytes(aside), before) {
		t.Errorf("%s: %s is not what it was", what, aside)
	}
	return mustOpen(t, options(disk))
}

// whole counts the messages, all of which must be what they were.
func whole(t *testing.T, what string, q *Queue, want map[string]string) (n int) {
	t.Helper()
	for _, i := range walk(t, q) {
		body, known := want[i.ID]
		if !known {
			t.Errorf("%s: message %s is back", what, i.ID)
		}
		if got, err := readBody(q, i.ID); err != nil || got != body {
			t.Errorf("%s: message %s: %d octets of %d, %v", what, i.ID, len(got), len(body), err)
			continue
		}
		n++
	}
	return n
}

// TestRepairTables damages the tables: a repair gives back all but what shared
// a block with the bit, says what is missing, quarantines what is left of a
// message, and gives no number twice.
func TestRepairTables(t *testing.T) {
	disk, want, _ := kept(t)
	refused := 0
	for _, name := range disk.Files("/q/store") {
		if filepath.Ext(name) != ".ldb" {
			continue
		}
		size := len(disk.Bytes(name)) * 8
		for bit := 0; bit < size; bit += max(1, size/23) {
			c := flipped(disk, name, bit)
			what := fmt.Sprintf("%s bit %d", name, bit)
			done, err := Repair(options(c))
			if errors.Is(err, ErrWhole) {
				continue // of no consequence, as in a filter
			}
			refused++
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			o := options(c)
			q := mustOpen(t, o)
			good, seen := 0, map[string]bool{}
			for _, i := range walk(t, q) {
				seen[i.ID] = true
				if body, err := readBody(q, i.ID); err == nil && body == want[i.ID] {
					good++
				} else if err == nil && want[i.ID] != "" {
					t.Errorf("%s: message %s changed", what, i.ID)
				}
			}
			// One data block holds records of so many; an index or a footer is all of the table's.
			if lost := len(want) - good; lost > 20 && strings.Contains(done.Notes[0], "data-block") {
				t.Errorf("%s: %d of %d messages lost, quarantined %d: %q", what, lost, len(want), done.Quarantined, done.Notes)
			}
			for id := range want {
				if !seen[id] && len(want[id]) > maxInline && len(c.Files("/q/body/aside")) == 0 && q.Quarantined() == 0 {
					t.Errorf("%s: nothing is left of %s", what, id)
				}
			}
			id := mustAccept(t, q, "new", "a@example.com")
			if got, err := readBody(q, id); err != nil || got != "new" {
				t.Errorf("%s: a new message is %q, %v", what, got, err)
			}
			if n := testutil.ToFloat64(o.Metrics.Quarantined); n != 0 {
				t.Errorf("%s: the second start quarantined %v", what, n)
			}
			mustClose(t, q)
		}
	}
	if refused == 0 {
		t.Error("no table was damaged")
	}
}

// TestRepairCrash cuts the power ahead of every operation of a repair: the
// next one finds the damaged store, or the daemon the repaired one.
func TestRepairCrash(t *testing.T) {
	disk, want, _ := kept(t)
	var manifest string
	for _, name := range disk.Files("/q/store") {
		if strings.Contains(name, "MANIFEST") {
			manifest = name
		}
	}
	for _, strict := range []bool{false, true} {
		c := flipped(disk, manifest, 20)
		c.Journaling = !strict
		var cuts []*testmx.Disk
		c.Watch(func(testmx.Op) { cuts = append(cuts, c.Cut(testmx.LeftNothing, nil), c.Cut(testmx.LeftAll, nil)) })
		if _, err := Repair(options(c)); err != nil {
			t.Fatal(err)
		}
		c.Watch(nil)
		for n, cut := range cuts {
			what := fmt.Sprintf("cut %d, strict %v", n, strict)
			q, err := Open(options(cut))
			if errors.Is(err, ErrDamaged) {
				q = mustRepair(t, what, cut, manifest)
			} else if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if n := whole(t, what, q, want); n != len(want) {
				t.Fatalf("%s: %d messages of %d; %q", what, n, len(want), slices.Sorted(slices.Values(cut.Files("/q"))))
			}
			mustClose(t, q)
		}
		t.Logf("%d cuts", len(cuts))
	}
}

// TestRepairFaults lets the Nth operation of a repair fail, for every N. It says
// so, or everything is there all the same; the next one, or a start, brings it
// back.
func TestRepairFaults(t *testing.T) {
	disk, want, _ := kept(t)
	stray := "/q/body/z/" + strings.Repeat("z", idLen)
	disk.Mkdir(filepath.Dir(stray))
	disk.SetBytes(stray, []byte("stray"))
	manifest := ""
	for _, name := range disk.Files("/q/store") {
		if strings.HasPrefix(filepath.Base(name), "MANIFEST") {
			manifest = name
		}
	}
	failed := 0
	for n, more := 1, true; more; n++ {
		c := flipped(disk, manifest, 20)
		at := 0
		c.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpRead || op.Kind == testmx.OpOpen {
				return nil
			}
			if at++; at == n {
				return syscall.EIO
			}
			return nil
		})
		_, err := Repair(options(c))
		more = at >= n
		c.Fault(nil)
		what := fmt.Sprintf("operation %d", n)
		if err != nil {
			failed++
			done, err := Repair(options(c))
			if err != nil && !errors.Is(err, ErrWhole) {
				t.Fatalf("%s: the next repair: %v", what, err)
			}
			if err == nil && c.Bytes(filepath.Join(done.Aside, filepath.Base(manifest))) == nil {
				t.Errorf("%s: the damaged store isn't in %q", what, done.Aside)
			}
		}
		q := mustOpen(t, options(c))
		if n := whole(t, what, q, want); n != len(want) {
			t.Fatalf("%s: %d messages of %d, the repair said %v", what, n, len(want), err)
		}
		mustClose(t, q)
		if err == nil && !slices.ContainsFunc(c.Files("/q"), func(f string) bool { return strings.HasSuffix(f, "/aside/"+filepath.Base(stray)) }) {
			t.Fatalf("%s: a stray body is not aside: %q", what, c.Files("/q"))
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
}

// TestRepairDamagedRecord: a record that can't be read keeps nothing from being
// repaired, and is put aside at the next start.
func TestRepairDamagedRecord(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	mustAccept(t, q, "good", "a@example.com")
	mustAccept(t, q, "bad", "a@example.com")
	raw, err := q.store.get(seqKey(spaceRecord, 2))
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	b := new(leveldb.Batch)
	b.Put(seqKey(spaceRecord, 2), raw)
	if err := q.store.write(b); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	disk.SetBytes("/q/store/CURRENT", []byte("nonsense"))
	q = mustRepair(t, "CURRENT", disk, "/q/store/CURRENT")
	if n := len(walk(t, q)); n != 1 || q.Quarantined() != 1 {
		t.Errorf("%d messages, %d put aside", n, q.Quarantined())
	}
	mustClose(t, q)
}

// TestEachKey: what fails for one key ends the reading of a table.
func TestEachKey(t *testing.T) {
	stor := storage.NewMemStorage()
	w, err := stor.Create(storage.FileDesc{Type: storage.TypeTable, Num: 1})
	if err != nil {
		t.Fatal(err)
	}
	tw := table.NewWriter(w, nil, nil, 0)
	for _, k := range []string{"key 1...", "key 2...", "key 3..."} {
		if err := tw.Append([]byte(k), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := stor.Open(storage.FileDesc{Type: storage.TypeTable, Num: 1})
	if err != nil {
		t.Fatal(err)
	}
	size, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := table.NewReader(r, size, storage.FileDesc{}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Release()
	full := errors.New("no space")
	if good, bad, err := eachKey(tr, func(key, _ []byte) error {
		if string(key) == "key 2..." {
			return full
		}
		return nil
	}); good != 2 || bad != 0 || err != full {
		t.Errorf("%d read, %d bad, %v", good, bad, err)
	}
}

// TestRepairNewer: a store of a newer version is left as it is, even if it is
// damaged.
func TestRepairNewer(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	mustAccept(t, q, "body", "a@example.com")
	b := new(leveldb.Batch)
	b.Put([]byte{spaceFormat}, binary.AppendUvarint(nil, formatVersion+1))
	if err := q.store.write(b); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	disk.SetBytes("/q/store/CURRENT", []byte("nonsense"))
	for range 2 {
		if _, err := Repair(options(disk)); !errors.Is(err, ErrNewerVersion) {
			t.Errorf("Repair: %v", err)
		}
		if got := string(disk.Bytes("/q/store/CURRENT")); got != "nonsense" {
			t.Errorf("CURRENT is %q", got)
		}
	}
}

// fullStorage takes no table to the end.
type fullStorage struct{ storage.Storage }

func (s fullStorage) Create(fd storage.FileDesc) (storage.Writer, error) {
	w, err := s.Storage.Create(fd)
	return fullFile{w}, err
}

type fullFile struct{ storage.Writer }

func (fullFile) Sync() error { return syscall.ENOSPC }

// TestRewriteFails: a table that couldn't be written to its end takes no one's
// place.
func TestRewriteFails(t *testing.T) {
	stor := storage.NewMemStorage()
	fd := storage.FileDesc{Type: storage.TypeTable, Num: 1}
	w, err := stor.Create(fd)
	if err != nil {
		t.Fatal(err)
	}
	tw := table.NewWriter(w, nil, nil, 0)
	if err := errors.Join(tw.Append([]byte("key 1..."), nil), tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	var rerr error
	if err := withTable(stor, fd, func(t *table.Reader) { rerr = rewrite(fullStorage{stor}, fd, t) }); err != nil {
		t.Fatal(err)
	}
	tmp, err := stor.List(storage.TypeTemp)
	if !errors.Is(rerr, syscall.ENOSPC) || err != nil || len(tmp) != 1 {
		t.Errorf("%v; %v left, %v", rerr, tmp, err)
	}
}

// TestOverlayRemoves: what a view's LevelDB has removed is gone for it.
func TestOverlayRemoves(t *testing.T) {
	base := storage.NewMemStorage()
	fd := storage.FileDesc{Type: storage.TypeTable, Num: 1}
	w, err := base.Create(fd)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s := newOverlay(base, nil)
	if r, err := s.Open(fd); err != nil {
		t.Error(err)
	} else {
		r.Close()
	}
	if err := s.Remove(fd); err != nil {
		t.Error(err)
	}
	if _, err := s.Open(fd); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file: %v", err)
	}
	if r, err := base.Open(fd); err != nil {
		t.Errorf("below: %v", err)
	} else {
		r.Close()
	}
}

// TestRepairRefuses: what is whole, in use, newer or not there.
func TestRepairRefuses(t *testing.T) {
	o := options(newMemDisk())
	if _, err := Repair(o); err == nil {
		t.Error("nothing was repaired")
	}
	q := mustOpen(t, o)
	mustAccept(t, q, "body", "a@example.com")
	if _, err := Repair(o); !errors.Is(err, o.Disk.(*testmx.Disk).Locked) {
		t.Errorf("in use: %v", err)
	}
	mustClose(t, q)
	before := o.Disk.(*testmx.Disk).Files("/q")
	if _, err := Repair(o); !errors.Is(err, ErrWhole) {
		t.Errorf("whole: %v", err)
	}
	if after := o.Disk.(*testmx.Disk).Files("/q"); len(after) != len(before) {
		t.Errorf("files %q became %q", before, after)
	}
}
