package queue

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestBitFlip flips bits all over every file of a store, one at a time, and
// opens it: whatever is lost by it is noticed, and nothing wrong is shown.
func TestBitFlip(t *testing.T) {
	disk := newMemDisk()
	o := options(disk)
	o.writeBuffer = 16 << 10
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
