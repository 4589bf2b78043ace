package offline

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/store"
)

// kept is a store with a past, and what is in it: tables at several levels,
// messages that have left, held ones, body files.
func kept(t *testing.T) (disk *testmx.Disk, want map[string]string, held string) {
	disk = newMemDisk()
	want = map[string]string{}
	for life := range 3 {
		q := mustOpen(t, small(disk))
		var ids []string
		for i := range 30 {
			size := 900 + i
			if i == 17 {
				size = large + 1000
			}
			body := bodyOf(size, 100*life+i)
			id := mustAccept(t, q, body)
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
		mustClose(t, q)
		if life == 1 {
			meddle(t, small(disk), func(s store.Store, _ *store.Batch) {
				if err := s.Reclaim(store.Range{}); err != nil {
					t.Fatal(err)
				}
			})
		}
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
			q, err := openDir(dirOn(c))
			switch {
			case err == nil:
				opened++
			case errors.Is(err, queue.ErrDamaged):
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
			if r := verify(t, mustView(t, dirOn(c))); len(r.Problems) > 0 {
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
func mustRepair(t *testing.T, what string, disk *testmx.Disk, damagedFile string) *queue.Queue {
	t.Helper()
	before := disk.Bytes(damagedFile)
	done, err := Repair(dirOn(disk), routeByDomain, func() {})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if len(done.Notes) == 0 {
		t.Errorf("%s: nothing was said", what)
	}
	if aside := filepath.Join(done.Aside, filepath.Base(damagedFile)); !bytes.Equal(disk.Bytes(aside), before) {
		t.Errorf("%s: %s is not what it was", what, aside)
	}
	return mustOpen(t, dirOn(disk))
}

// whole counts the messages, all of which must be what they were.
func whole(t *testing.T, what string, q *queue.Queue, want map[string]string) (n int) {
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
			done, err := Repair(dirOn(c), routeByDomain, func() {})
			if errors.Is(err, leveldb.ErrWhole) {
				continue // of no consequence, as in a filter
			}
			refused++
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			q := mustOpen(t, dirOn(c))
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
				if !seen[id] && len(want[id]) > large && len(c.Files("/q/body/aside")) == 0 && q.Quarantined() == 0 {
					t.Errorf("%s: nothing is left of %s", what, id)
				}
			}
			id := mustAccept(t, q, "new")
			if got, err := readBody(q, id); err != nil || got != "new" {
				t.Errorf("%s: a new message is %q, %v", what, got, err)
			}
			if n := q.Quarantined() - done.Quarantined; n != 0 {
				t.Errorf("%s: the second start quarantined %d", what, n)
			}
			mustClose(t, q)
			meddle(t, small(c), func(s store.Store, _ *store.Batch) { // what can be read can be merged
				if err := s.Reclaim(store.Range{}); err != nil || s.Damaged() {
					t.Errorf("%s: merging: %v", what, err)
				}
			})
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
		if _, err := Repair(dirOn(c), routeByDomain, func() {}); err != nil {
			t.Fatal(err)
		}
		c.Watch(nil)
		for n, cut := range cuts {
			what := fmt.Sprintf("cut %d, strict %v", n, strict)
			q, err := openDir(dirOn(cut))
			if errors.Is(err, queue.ErrDamaged) {
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
	stray := "/q/body/z/" + strings.Repeat("z", store.IDLen)
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
		done, err := Repair(dirOn(c), routeByDomain, func() {})
		more = at >= n
		c.Fault(nil)
		what := fmt.Sprintf("operation %d", n)
		if err == nil && c.Bytes(filepath.Join(done.Aside, filepath.Base(manifest))) == nil {
			t.Errorf("%s: it repaired, and the damaged store isn't in %q", what, done.Aside)
		}
		if err != nil {
			failed++
			done, err := Repair(dirOn(c), routeByDomain, func() {})
			if err != nil && !errors.Is(err, leveldb.ErrWhole) {
				t.Fatalf("%s: the next repair: %v", what, err)
			}
			if err == nil && c.Bytes(filepath.Join(done.Aside, filepath.Base(manifest))) == nil {
				t.Errorf("%s: the damaged store isn't in %q", what, done.Aside)
			}
		}
		q := mustOpen(t, dirOn(c))
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

// spoilManifest damages the list of tables, and returns its name.
func spoilManifest(disk *testmx.Disk) string {
	for _, name := range disk.Files("/q/store") {
		if strings.HasPrefix(filepath.Base(name), "MANIFEST") {
			disk.SetBytes(name, []byte("nonsense"))
			return name
		}
	}
	panic("a store without a manifest")
}

// TestRepairDamagedRecord: a record that can't be read keeps nothing from being
// repaired, and is put aside at the next start.
func TestRepairDamagedRecord(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "good")
	mustAccept(t, q, "bad")
	mustClose(t, q)
	damageRecord(t, dirOn(disk), 2)
	q = mustRepair(t, "MANIFEST", disk, spoilManifest(disk))
	if n := len(walk(t, q)); n != 1 || q.Quarantined() != 1 {
		t.Errorf("%d messages, %d put aside", n, q.Quarantined())
	}
	mustClose(t, q)
}

// TestRepairTellsCounts: what a repair makes up is told, and nothing is counted
// that isn't there.
func TestRepairTellsCounts(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "body")
	mustAccept(t, q, "its record is lost, its body and its ID are there")
	mustClose(t, q)
	meddle(t, dirOn(disk), func(s store.Store, b *store.Batch) {
		b.Delete(store.SeqKey(store.SpaceRecord, 2))
		said, err := store.LoadTotals(s)
		if err != nil {
			t.Fatal(err)
		}
		said.Quarantined = 5
		b.Put([]byte{store.SpaceTotals}, said.Encode())
		b.Delete([]byte{store.SpaceFormat})
	})
	spoilManifest(disk)
	read := 0
	done, err := Repair(dirOn(disk), routeByDomain, func() { read++ })
	notes := strings.Join(done.Notes, "\n")
	if err != nil || done.Messages != 1 || done.Quarantined != 1 || read != 1 ||
		!strings.Contains(notes, fmt.Sprintf("format's version is lost; it was taken to be %d", store.FormatVersion)) || strings.Count(notes, "number 2: the record is lost") != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if r := verify(t, mustView(t, dirOn(disk))); len(r.Problems) > 0 {
		t.Errorf("%q", r.Problems)
	}
}

// TestRepairNewer: a store of a newer version is left as it is, even if it is
// damaged.
func TestRepairNewer(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, dirOn(disk))
	mustAccept(t, q, "body")
	mustClose(t, q)
	meddle(t, dirOn(disk), func(_ store.Store, b *store.Batch) {
		b.Put([]byte{store.SpaceFormat}, store.FormatValue(store.FormatVersion+1))
	})
	for range 2 { // the first must let go of it
		if _, err := OpenView(dirOn(disk), routeByDomain); !errors.Is(err, queue.ErrNewerVersion) {
			t.Errorf("a view: %v", err)
		}
	}
	manifest := spoilManifest(disk)
	for range 2 {
		if _, err := Repair(dirOn(disk), routeByDomain, func() {}); !errors.Is(err, queue.ErrNewerVersion) {
			t.Errorf("Repair: %v", err)
		}
		if got := string(disk.Bytes(manifest)); got != "nonsense" {
			t.Errorf("the manifest is %q", got)
		}
	}
}

// TestRepairRefuses: what is whole, in use, newer or not there.
func TestRepairRefuses(t *testing.T) {
	disk := newMemDisk()
	dir := dirOn(disk)
	if _, err := Repair(dir, routeByDomain, func() {}); err == nil {
		t.Error("nothing was repaired")
	}
	q := mustOpen(t, dir)
	mustAccept(t, q, "body")
	if _, err := Repair(dir, routeByDomain, func() {}); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	mustClose(t, q)
	before := disk.Files("/q")
	if _, err := Repair(dir, routeByDomain, func() {}); !errors.Is(err, leveldb.ErrWhole) {
		t.Errorf("whole: %v", err)
	}
	if after := disk.Files("/q"); len(after) != len(before) {
		t.Errorf("files %q became %q", before, after)
	}
}
