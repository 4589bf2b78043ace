package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// ErrBody says that a message's body is not what was accepted.
var ErrBody = errors.New("damaged body")

// CheckBody looks whether a body outside of the keys is there and whole in
// length; its content is verified whenever it is read.
func CheckBody(s Store, r *Record) error {
	f, err := openWhole(s, r)
	if err == nil {
		f.Close()
	}
	return err
}

func openWhole(s Store, r *Record) (io.ReadCloser, error) {
	f, size, err := s.Open(r.Env.ID)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: file is missing", ErrBody)
	}
	if err != nil {
		return nil, fmt.Errorf("open body: %w", err)
	}
	if size != r.Size {
		f.Close()
		return nil, fmt.Errorf("%w: %d octets of %d", ErrBody, size, r.Size)
	}
	return f, nil
}

// OpenBody reads a message's body from its start. One among the keys is verified
// before the first octet is read; another one while it is read, and the last
// Read then fails with ErrBody instead of io.EOF.
func OpenBody(s Store, r *Record) (io.ReadCloser, error) {
	if !r.Inline {
		f, err := openWhole(s, r)
		if err != nil {
			return nil, err
		}
		return &bodyReader{f: f, rec: r, sum: sha256.New()}, nil
	}
	b, err := s.Get(SeqKey(SpaceBody, r.Seq))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: missing", ErrBody)
	case errors.Is(err, ErrDamaged):
		return nil, fmt.Errorf("%w: %w", ErrBody, err)
	case err != nil:
		return nil, fmt.Errorf("read body: %w", err)
	case int64(len(b)) != r.Size || sha256.Sum256(b) != r.Sum:
		return nil, fmt.Errorf("%w: checksum", ErrBody)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

type bodyReader struct {
	f    io.ReadCloser
	rec  *Record
	sum  hash.Hash
	size int64
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.f.Read(p)
	b.sum.Write(p[:n])
	b.size += int64(n)
	if err == io.EOF && (b.size != b.rec.Size || [32]byte(b.sum.Sum(nil)) != b.rec.Sum) {
		err = fmt.Errorf("%w: checksum of the file", ErrBody)
	}
	return n, err
}

func (b *bodyReader) Close() error { return b.f.Close() }

// ReadWhole reads a message's body to its end.
func ReadWhole(s Store, r *Record) error {
	f, err := OpenBody(s, r)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}
