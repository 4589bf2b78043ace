package leveldb

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
	"testing"

	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/table"
)

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
