package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/understudy-mx/understudy/queue/store"
)

// pieceSize is how large the pieces of a body are, but for the last.
const pieceSize = 128 << 10

const (
	// laxSQL has a piece's commit wait for nobody: the last one's wait is for all
	// before it.
	laxSQL = `SELECT set_config('synchronous_commit', 'off', true)`
	// oursSQL is the fence without a lock: a piece too many is swept by who holds the
	// spool.
	oursSQL  = `SELECT 1 / count(*) FROM understudy.spool WHERE id = $1::integer AND epoch = $2::bigint`
	pieceSQL = `INSERT INTO understudy.body (spool, id, piece, data) VALUES ($1::integer, $2::text, $3::integer, $4::bytea)`
	sizeSQL  = `SELECT count(*), coalesce(sum(octet_length(data)), 0)::bigint FROM understudy.body WHERE spool = $1::integer AND id = $2::text`
	// wholeSQL fails unless so many pieces with so many octets are there: some may
	// have been lost with a server that was replaced meanwhile.
	wholeSQL = `SELECT 1 / count(*) FROM (SELECT count(*) AS n, coalesce(sum(octet_length(data)), 0) AS size FROM understudy.body
		WHERE spool = $1::integer AND id = $2::text) s WHERE n = $3::bigint AND size = $4::bigint`
	readSQL   = `SELECT data FROM understudy.body WHERE spool = $1::integer AND id = $2::text AND piece = $3::integer`
	removeSQL = `DELETE FROM understudy.body WHERE spool = $1::integer AND id = $2::text`
	bodiesSQL = `SELECT DISTINCT id FROM understudy.body WHERE spool = $1::integer AND id > $2::text ORDER BY id LIMIT 1000`
)

// body is one being written.
type body struct {
	s      *Store
	id     string
	buf    []byte
	pieces int32
	size   int64 // of the pieces
	err    error
}

// Create begins a body. Nothing is stored of a short one before Commit.
func (s *Store) Create(id string) (store.Body, error) {
	if err := s.ours(); err != nil {
		return nil, err
	}
	return &body{s: s, id: id, buf: []byte{}}, nil // NULL is no piece
}

func (b *body) Write(p []byte) (n int, err error) {
	for len(p) > 0 && b.err == nil {
		if len(b.buf) == pieceSize {
			b.err = b.flush(false)
			continue
		}
		take := min(len(p), pieceSize-len(b.buf))
		b.buf = append(b.buf, p[:take]...)
		p, n = p[take:], n+take
	}
	return n, b.err
}

// flush stores a piece.
func (b *body) flush(last bool) error {
	spool, id := int4(b.s.id.Load()), []byte(b.id)
	queries := []query{{oursSQL, [][]byte{spool, int8b(b.s.epoch.Load())}}}
	if !last {
		queries = append(queries, query{laxSQL, nil})
	}
	queries = append(queries, query{pieceSQL, [][]byte{spool, id, int4(b.pieces), b.buf}})
	if b.pieces++; last {
		queries = append(queries, query{wholeSQL, [][]byte{spool, id, int8b(int64(b.pieces)), int8b(b.size + int64(len(b.buf)))}})
	}
	b.size += int64(len(b.buf))
	b.buf = b.buf[:0]
	// Not twice: the first may have been done, and a piece is there once.
	return b.s.change("store a body", false, queries...)
}

// change commits queries over a pooled connection. twice says that they may be
// done twice.
func (s *Store) change(doing string, twice bool, queries ...query) error {
	called := false
	err := s.read(func(ctx context.Context, n *session) error {
		if called && !twice {
			return errors.New("connection lost")
		}
		called = true
		_, err := n.commit(ctx, queries...)
		return err
	})
	if err != nil {
		return failed(doing, err)
	}
	return nil
}

func (b *body) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(&pieces{s: b.s, id: b.id, left: b.size}, bytes.NewReader(b.buf))), nil
}

func (b *body) Commit() error {
	if b.err == nil {
		b.err = b.flush(true)
	}
	return b.err
}

func (b *body) Close() error {
	b.buf = nil
	return nil
}

// pieces reads a body.
type pieces struct {
	s    *Store
	id   string
	next int32
	rest []byte
	left int64 // octets not yet fetched
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.left <= 0 {
			return 0, io.EOF
		}
		if err := p.fetch(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pieces) fetch() error {
	found := false
	err := p.s.read(func(ctx context.Context, n *session) error {
		return n.rows(ctx, query{readSQL, [][]byte{int4(p.s.id.Load()), []byte(p.id), int4(p.next)}}, func(c [][]byte) {
			p.rest, found = append(p.rest[:0], c[0]...), true
		})
	})
	switch {
	case err != nil:
		return failed("read a body", err)
	case !found || len(p.rest) == 0:
		return fmt.Errorf("%w: piece %d of %s is missing", store.ErrBody, p.next, p.id)
	}
	p.left -= int64(len(p.rest))
	p.next++
	return nil
}

func (p *pieces) Close() error { return nil }

// Open reads a body.
func (s *Store) Open(id string) (io.ReadCloser, int64, error) {
	var count, size int64
	err := s.read(func(ctx context.Context, n *session) error {
		return n.rows(ctx, query{sizeSQL, [][]byte{int4(s.id.Load()), []byte(id)}}, func(c [][]byte) {
			count, size = int64(binary.BigEndian.Uint64(c[0])), int64(binary.BigEndian.Uint64(c[1]))
		})
	})
	switch {
	case err != nil:
		return nil, 0, failed("look for a body", err)
	case count == 0:
		return nil, 0, store.ErrNotFound
	}
	return &pieces{s: s, id: id, left: size}, size, nil
}

// Remove deletes a body's pieces.
func (s *Store) Remove(id string) error {
	spool := int4(s.id.Load())
	return s.change("remove a body", true, query{oursSQL, [][]byte{spool, int8b(s.epoch.Load())}}, query{laxSQL, nil},
		query{removeSQL, [][]byte{spool, []byte(id)}})
}

// Bodies names them, in order.
func (s *Store) Bodies(fn func(id string) error) error {
	for last, more := "", true; more; {
		var ids []string
		err := s.read(func(ctx context.Context, n *session) error {
			ids = ids[:0]
			return n.rows(ctx, query{bodiesSQL, [][]byte{int4(s.id.Load()), []byte(last)}}, func(c [][]byte) { ids = append(ids, string(c[0])) })
		})
		if err != nil {
			return failed("list bodies", err)
		}
		for _, id := range ids {
			if err := fn(id); err != nil {
				return err
			}
		}
		if more = len(ids) > 0; more {
			last = ids[len(ids)-1]
		}
	}
	return nil
}
