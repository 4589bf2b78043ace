package queue

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/syndtr/goleveldb/leveldb"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
)

// errBody says that a message's body is not what was accepted.
var errBody = errors.New("damaged body")

// checkBodyFile looks whether the file is there and whole in length; its
// content is verified whenever it is read.
func (q *Queue) checkBodyFile(r *record) error {
	f, size, err := q.disk.Open(q.bodyFile(r.env.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: file is missing", errBody)
	}
	if err != nil {
		return fmt.Errorf("open body: %w", err)
	}
	f.Close()
	if size != r.size {
		return fmt.Errorf("%w: %d octets of %d", errBody, size, r.size)
	}
	return nil
}

// openBody reads a body from its start. A body in the store is verified before
// the first octet is read; one in a file while it is read, and the last Read
// then fails with errBody instead of io.EOF.
func (q *Queue) openBody(r *record) (io.ReadCloser, error) {
	if r.inline {
		b, err := q.store.get(seqKey(spaceBody, r.seq))
		if errors.Is(err, leveldb.ErrNotFound) {
			return nil, fmt.Errorf("%w: missing", errBody)
		}
		if lerrors.IsCorrupted(err) {
			return nil, fmt.Errorf("%w: %w", errBody, err)
		}
		if err != nil {
			return nil, fmt.Errorf("read body: %w", err)
		}
		if int64(len(b)) != r.size || sha256.Sum256(b) != r.sum {
			return nil, fmt.Errorf("%w: checksum", errBody)
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	if err := q.checkBodyFile(r); err != nil {
		return nil, err
	}
	f, _, err := q.disk.Open(q.bodyFile(r.env.ID))
	if err != nil {
		return nil, fmt.Errorf("open body: %w", err)
	}
	return &bodyReader{f: f, rec: r, sum: sha256.New()}, nil
}

type bodyReader struct {
	f    io.ReadCloser
	rec  *record
	sum  hash.Hash
	size int64
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.f.Read(p)
	b.sum.Write(p[:n])
	b.size += int64(n)
	if err == io.EOF && (b.size != b.rec.size || [32]byte(b.sum.Sum(nil)) != b.rec.sum) {
		err = fmt.Errorf("%w: checksum of the file", errBody)
	}
	return n, err
}

func (b *bodyReader) Close() error { return b.f.Close() }
