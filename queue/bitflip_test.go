package queue

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestBitFlip flips bits all over every file of a store, one at a time, and
// opens it: whatever is lost by it is noticed, and nothing wrong is shown.
func TestBitFlip(t *testing.T) {
	disk := newMemDisk()
	o := buffered(options(disk), 16<<10)
	q := mustOpen(t, o)
	want := map[string]string{}
	for i := range 60 {
		size := 1000
		if i%20 == 0 {
			size = maxInline + 5000
		}
		body := bodyOf(size, i)
		want[mustAccept(t, q, body, "a@example.com")] = body
	}
	mustClose(t, q)
	lost := map[string][]int{} // by kind of file: messages lost by each flip
	for _, name := range disk.Files("/q") {
		data := disk.Bytes(name)
		step := max(1, len(data)*8/60)
		for bit := 0; bit < len(data)*8; bit += step {
			c := disk.Clone()
			data[bit/8] ^= 1 << (bit % 8)
			c.SetBytes(name, data)
			data[bit/8] ^= 1 << (bit % 8)
			o := options(c)
			q, err := Open(o)
			if err != nil {
				lost[filepath.Ext(name)] = append(lost[filepath.Ext(name)], -1)
				if bit < 3*step {
					t.Logf("%s bit %d: Open: %v", name, bit, err)
				}
				continue
			}
			here, n := map[string]bool{}, 0
			for _, i := range walk(t, q) {
				here[i.ID] = true
				if body, err := readBody(q, i.ID); err == nil && body != want[i.ID] {
					t.Errorf("%s bit %d: message %s changed", name, bit, i.ID)
				} else if err != nil {
					n++
				}
			}
			noticed := testutil.ToFloat64(o.Metrics.Quarantined)
			for _, kind := range []string{"drop", "skipped", "corrupt", "missing"} {
				noticed += testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues(kind))
			}
			gone := len(want) - len(here)
			if gone > 0 && noticed == 0 {
				t.Errorf("%s bit %d: %d messages lost, and nobody noticed", name, bit, gone)
			}
			lost[filepath.Ext(name)] = append(lost[filepath.Ext(name)], gone+n)
			q.Close()
		}
	}
	for kind, n := range lost {
		t.Log(kind, fmt.Sprint(n))
	}
}

// TestDamagedBacklog: LevelDB stops writing for good when it has to merge a
// table with a damaged block. The queue goes on without merging: mail comes and
// goes.
func TestDamagedBacklog(t *testing.T) {
	disk := newMemDisk()
	o := buffered(options(disk), 8<<10)
	q := mustOpen(t, o)
	var ids []string
	for i := range 330 {
		ids = append(ids, mustAccept(t, q, bodyOf(1000, i), "a@example.com"))
	}
	mustClose(t, q)
	files := disk.Files("/q/store")
	table := files[slices.IndexFunc(files, func(name string) bool { return filepath.Ext(name) == ".ldb" })]
	data := disk.Bytes(table)
	data[9000/8] ^= 1 // in the first block, of bodies
	disk.SetBytes(table, data)

	o = buffered(options(disk), 8<<10)
	q = mustOpen(t, o)
	put := map[string]string{}
	refused := 0
	for i := 0; len(put) < 300; i++ {
		body := bodyOf(1000, 1000+i)
		switch id, err := accept(q, body, "a@example.com"); {
		case err == nil:
			put[id] = body
		case refused > 100:
			t.Fatalf("after %d messages: %v", len(put), err)
		default:
			refused++
			time.Sleep(20 * time.Millisecond)
		}
	}
	if refused == 0 || !q.Status().Damaged {
		t.Errorf("%d refused, %+v: no merge met the damage: more tables are needed", refused, q.Status())
	}
	for _, id := range ids {
		if err := q.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
	q.compactDrained()
	n := 0
	for _, i := range walk(t, q) {
		if body, err := readBody(q, i.ID); err != nil || body != put[i.ID] {
			t.Errorf("message %s: %d octets, %v", i.ID, len(body), err)
		}
		n++
	}
	if n != len(put) {
		t.Errorf("%d messages of %d", n, len(put))
	}
	mustClose(t, q)
}
