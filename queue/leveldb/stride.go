package leveldb

import (
	"bufio"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// LevelDB merges its newest tables, some 256 MiB, all at once; meanwhile
// accepting was half as fast. So tables are written in step with the journal:
// tableStep octets for each journalStep of it, or every strideWait, which is
// quick enough when little is accepted. In the long run two and a half octets
// go to tables for each of the journal: one for the write buffer's, the rest
// for merging it.
const (
	journalStep = 32 << 10
	tableStep   = 4 * journalStep
	strideWait  = 4 * time.Millisecond
)

// stride keeps the writers of journal and tables in step, once it is on.
type stride struct {
	on      atomic.Bool
	journal atomic.Int64  // octets since the last step
	step    chan struct{} // holds one
}

func newStride() *stride { return &stride{step: make(chan struct{}, 1)} }

// journaled counts octets of the journal.
func (s *stride) journaled(n int) {
	if s.journal.Add(int64(n)) < journalStep {
		return
	}
	s.journal.Store(0)
	select {
	case s.step <- struct{}{}:
	default: // no table is being written
	}
}

// wait is before each step of a table.
func (s *stride) wait() {
	if !s.on.Load() {
		return
	}
	timer := time.NewTimer(strideWait)
	defer timer.Stop()
	select {
	case <-s.step:
	case <-timer.C:
	}
}

// stridingTable gathers a table's blocks, each of which LevelDB writes by
// itself, to one write for each step.
type stridingTable struct {
	*bufio.Writer
	file storage.Writer
}

func newStridingTable(file storage.Writer, s *stride) stridingTable {
	return stridingTable{bufio.NewWriterSize(stepWriter{file, s}, tableStep), file}
}

type stepWriter struct {
	file   storage.Writer
	stride *stride
}

func (w stepWriter) Write(b []byte) (int, error) {
	w.stride.wait()
	return w.file.Write(b)
}

// Sync makes what was written durable (D2): goleveldb syncs a table before it
// names it in the manifest.
func (t stridingTable) Sync() error {
	if err := t.Flush(); err != nil {
		return err
	}
	return t.file.Sync()
}

// Close doesn't fail, as syncedStorage.Remove doesn't: a table that counts was synced
// before.
func (t stridingTable) Close() error {
	_ = t.Flush()
	_ = t.file.Close()
	return nil
}
