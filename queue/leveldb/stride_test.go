package leveldb

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

type memoryTable struct {
	bytes.Buffer
	writes, synced int // synced: octets
}

func (m *memoryTable) Write(b []byte) (int, error) { m.writes++; return m.Buffer.Write(b) }
func (m *memoryTable) Sync() error                 { m.synced = m.Len(); return nil }
func (m *memoryTable) Close() error                { return nil }

// TestStride writes tables of four steps, block by block: in step with the
// journal when there is something to accept, and on their own when not.
func TestStride(t *testing.T) {
	block := bytes.Repeat([]byte("block of a table"), 256)
	write := func(s *stride, journaled int) (m *memoryTable, took time.Duration) {
		m = new(memoryTable)
		table, start := newStridingTable(m, s), time.Now()
		for n := 0; n < 4*tableStep; n += len(block) {
			s.journaled(journaled)
			if _, err := table.Write(block); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Sync(); err != nil {
			t.Fatal(err)
		}
		if m.synced != 4*tableStep || !bytes.Equal(m.Bytes(), bytes.Repeat(block, 4*tableStep/len(block))) || m.writes != 4 {
			t.Errorf("%d octets in %d writes, %d synced", m.Len(), m.writes, m.synced)
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		return m, time.Since(start)
	}
	synctest.Test(t, func(t *testing.T) {
		s := newStride()
		if _, took := write(s, 0); took != 0 {
			t.Errorf("before it is on, a table waits %v", took)
		}
		s.on.Store(true)
		if _, took := write(s, 0); took != 4*strideWait {
			t.Errorf("with nothing to accept it waits %v", took)
		}
		if _, took := write(s, len(block)/4); took != 0 {
			t.Errorf("in step with the journal it waits %v", took)
		}
		if _, took := write(s, len(block)/8); took != 2*strideWait {
			t.Errorf("twice as fast as the journal it waits %v", took)
		}
	})
}
