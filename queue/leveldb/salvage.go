package leveldb

import (
	"errors"

	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/table"
)

// salvage replaces each table with unreadable blocks by one that holds the rest,
// for leveldb.Recover, whose own rebuilding orders keys without their versions
// and fails on a table that has a key twice, as all of ours do.
// To be removed when TestRepairTables passes without.
func (r *Rebuild) salvage(stor storage.Storage) error {
	fds, err := stor.List(storage.TypeTable)
	if err != nil {
		return err
	}
	for _, fd := range fds {
		bad, err := salvageTable(stor, fd)
		if err != nil {
			return err
		}
		if bad > 0 {
			r.note("%d parts of table %s can't be read", bad, fd)
		}
	}
	return nil
}

// salvageTable counts the parts that can't be read. A table of which nothing
// can be is left to leveldb.Recover, which leaves it out.
func salvageTable(stor storage.Storage, fd storage.FileDesc) (bad int, err error) {
	var rerr error
	err = withTable(stor, fd, func(t *table.Reader) {
		good := 0
		good, bad, _ = eachKey(t, func(_, _ []byte) error { return nil })
		if bad > 0 && good > 0 {
			rerr = rewrite(stor, fd, t)
		}
	})
	return bad, errors.Join(err, rerr)
}

func rewrite(stor storage.Storage, fd storage.FileDesc, t *table.Reader) error {
	tmp := storage.FileDesc{Type: storage.TypeTemp, Num: fd.Num}
	w, err := stor.Create(tmp)
	if err != nil {
		return err
	}
	tw := table.NewWriter(w, &opt.Options{Comparer: newestFirst{}, Compression: opt.NoCompression}, nil, 0)
	_, _, err = eachKey(t, tw.Append)
	if err := errors.Join(err, tw.Close(), w.Sync(), w.Close()); err != nil {
		return err
	}
	return stor.Rename(tmp, fd)
}

// eachKey calls fn for every key that can be read.
func eachKey(t *table.Reader, fn func(key, value []byte) error) (good, bad int, err error) {
	it := t.NewIterator(nil, nil)
	defer it.Release()
	if s, ok := it.(iterator.ErrorCallbackSetter); ok {
		s.SetErrorCallback(func(error) { bad++ })
	}
	for it.Next() {
		if len(it.Key()) < 8 {
			bad++
			continue
		}
		good++
		if err := fn(it.Key(), it.Value()); err != nil {
			return good, bad, err
		}
	}
	if it.Error() != nil {
		bad++
	}
	return good, bad, nil
}
