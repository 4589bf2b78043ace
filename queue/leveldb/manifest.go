package leveldb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/journal"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/table"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/understudy-mx/understudy/queue/store"
)

// damaged makes what LevelDB calls corruption store.ErrDamaged.
func damaged(err error) error {
	var file *storage.ErrCorrupted
	var data *lerrors.ErrCorrupted
	if err == nil || errors.Is(err, store.ErrDamaged) {
		return err
	}
	// A record of the manifest that ends early is a plain EOF.
	if errors.As(err, &file) || errors.As(err, &data) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", store.ErrDamaged, err)
	}
	return err
}

// checkManifest refuses a store whose manifest, the list of tables, can't be read
// in part, if the rest lacks a table that is needed: LevelDB would open the store
// without that table, and remove it. A power cut may tear the end of a manifest
// as well, but then nothing is missing: the table's content is still in the
// journal, or in the tables that it was merged from.
// To be removed when goleveldb refuses such a store itself and opens the torn
// one: TestRepair and TestPowerCut tell.
func checkManifest(stor storage.Storage, o opt.Options) error {
	if whole, err := manifestWhole(stor); whole || err != nil {
		return err
	}
	o = lookOnly(o)
	db, err := leveldb.Open(newOverlay(stor, func(_, _ string) {}), &o)
	if err != nil {
		return err
	}
	whole, err := nothingMissing(db, stor)
	if err = errors.Join(err, db.Close()); err == nil && !whole {
		err = fmt.Errorf("%w: tables are missing in its list of them (MANIFEST)", store.ErrDamaged)
	}
	return err
}

// nothingMissing compares what is there with the counts of the last batch, and
// with all tables: none may know of a later batch, or of a message that has
// left and is back. Numbers are never given twice.
func nothingMissing(db *leveldb.DB, stor storage.Storage) (bool, error) {
	b, err := db.Get([]byte{store.SpaceTotals}, nil)
	if err != nil {
		return false, ignoreNotFound(err)
	}
	said, err := store.DecodeTotals(b)
	if err != nil {
		return false, nil
	}
	var found store.Totals
	it := db.NewIterator(util.BytesPrefix([]byte{store.SpaceRecord}), nil)
	defer it.Release()
	for it.Next() {
		r, err := store.DecodeRecord(it.Value())
		if err != nil {
			found.Messages++
			continue
		}
		found.Add(r, 1)
	}
	if found.Messages != said.Messages || found.Held != said.Held || found.Deferred != said.Deferred {
		return false, it.Error()
	}
	fds, err := stor.List(storage.TypeTable)
	if err = errors.Join(err, it.Error()); err != nil {
		return false, err
	}
	for _, fd := range fds {
		if older, err := tableIsOlder(db, said, stor, fd); err != nil || !older {
			return false, err
		}
	}
	return true, nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil
	}
	return err
}

// tableIsOlder says that a table holds nothing that the store lacks. One that
// can't be read was never finished, or else its reader will report it.
func tableIsOlder(db *leveldb.DB, said store.Totals, stor storage.Storage, fd storage.FileDesc) (older bool, err error) {
	older = true
	terr := withTable(stor, fd, func(t *table.Reader) {
		first := func(space byte) []byte { return append([]byte{space}, bytes.Repeat([]byte{0xff}, 8)...) }
		if key, value, ferr := t.Find(first(store.SpaceTotals), false, nil); ferr == nil && len(key) == 9 && key[0] == store.SpaceTotals {
			is, derr := store.DecodeTotals(value)
			older = derr == nil && is.Next <= said.Next && is.Alive <= said.Alive
		}
		it := t.NewIterator(&util.Range{Start: first(store.SpaceRecord), Limit: first(store.SpaceRecord + 1)}, nil)
		defer it.Release()
		for older && err == nil && it.Next() {
			if key := it.Key(); isTombstone(key) {
				var back bool
				back, err = db.Has(key[:len(key)-8], nil)
				older = !back
			}
		}
	})
	return older, errors.Join(err, terr)
}

// withTable reads a table by itself, with all versions of its keys, as far as
// it can be read.
func withTable(stor storage.Storage, fd storage.FileDesc, fn func(*table.Reader)) error {
	f, err := stor.Open(fd)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	t, err := table.NewReader(f, size, fd, nil, nil,
		&opt.Options{Comparer: newestFirst{}, Strict: opt.StrictBlockChecksum})
	if err != nil {
		return err
	}
	defer t.Release()
	fn(t)
	return nil
}

// dropped counts what a journal.Reader leaves out.
type dropped int

func (d *dropped) Drop(error) { *d++ }

// manifestWhole says that LevelDB will read all of its manifest, or nothing.
func manifestWhole(stor storage.Storage) (bool, error) {
	fd, err := stor.GetMeta()
	if err != nil {
		return true, nil // leveldb.Open knows what to do about it
	}
	f, err := stor.Open(fd)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var n dropped
	for r := journal.NewReader(f, &n, false, true); ; {
		record, err := r.Next()
		if err == io.EOF {
			return n == 0, nil
		}
		if err != nil {
			return false, err
		}
		if _, err := io.Copy(io.Discard, record); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
	}
}

// isTombstone says that a key in a table says that it was deleted.
func isTombstone(key []byte) bool { return len(key) > 8 && key[len(key)-8] == 0 }

// newestFirst is the order of keys in LevelDB's tables: a key's eight last
// octets are its version, newest first.
type newestFirst struct{ comparer.BasicComparer }

func (newestFirst) Name() string                    { return "" }
func (newestFirst) Separator(_, _, _ []byte) []byte { return nil }
func (newestFirst) Successor(_, _ []byte) []byte    { return nil }
func (newestFirst) Compare(a, b []byte) int {
	if len(a) < 8 || len(b) < 8 { // damaged
		return bytes.Compare(a, b)
	}
	if c := bytes.Compare(a[:len(a)-8], b[:len(b)-8]); c != 0 {
		return c
	}
	version := func(k []byte) uint64 { return binary.LittleEndian.Uint64(k[len(k)-8:]) }
	switch va, vb := version(a), version(b); {
	case va > vb:
		return -1
	case va < vb:
		return 1
	}
	return 0
}
