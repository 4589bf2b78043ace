package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/queue/store"
)

const (
	// fenceSQL keeps the epoch as it is until the transaction ends. If it isn't
	// the given one any more, the division fails, and with it the transaction.
	fenceSQL = `SELECT 1 / count(*) FROM (SELECT FROM understudy.spool WHERE id = $1::integer AND epoch = $2::bigint FOR SHARE) s`

	deleteSQL = `DELETE FROM understudy.kv WHERE spool = $1::integer AND key = ANY ($2::bytea[])`
	putSQL    = `INSERT INTO understudy.kv (spool, key, value) SELECT $1::integer, k, v FROM unnest($2::bytea[], $3::bytea[]) u(k, v)
		ON CONFLICT (spool, key) DO UPDATE SET value = excluded.value`
	getSQL = `SELECT value FROM understudy.kv WHERE spool = $1::integer AND key = $2::bytea`
)

// byteas appends an array of bytea, in binary form, to b.
func byteas(b []byte, list [][]byte) []byte {
	const oid = 17
	put := func(n int) { b = binary.BigEndian.AppendUint32(b, uint32(n)) }
	put(1) // dimension
	put(0) // no NULLs
	put(oid)
	put(len(list))
	put(1) // the first index
	for _, v := range list {
		put(len(v))
		b = append(b, v...)
	}
	return b
}

// folded is a batch of which each key's last change is left.
type folded struct {
	last                       map[string]int
	keys, values, gone         [][]byte
	keyArray, valueArray, dead []byte
	rows                       []byte // for COPY, instead of keyArray and valueArray
}

func (f *folded) fold(spool int32, b store.Batch) {
	if f.last == nil || max(cap(f.valueArray), cap(f.rows)) > 4*store.MaxBatch {
		*f = folded{last: map[string]int{}} // at first, and after a huge message
	}
	clear(f.last)
	f.keys, f.values, f.gone = f.keys[:0], f.values[:0], f.gone[:0]
	for i := range b {
		f.last[string(b[i].Key)] = i
	}
	for i, c := range b {
		switch {
		case f.last[string(c.Key)] != i:
		case c.Delete:
			f.gone = append(f.gone, c.Key)
		default:
			f.keys, f.values = append(f.keys, c.Key), append(f.values, c.Value)
		}
	}
	f.rows, f.keyArray, f.valueArray = f.rows[:0], f.keyArray[:0], f.valueArray[:0]
	if len(f.keys) >= copyAbove {
		f.rows = copyRows(f.rows, spool, f.keys, f.values)
		f.gone = append(f.gone, f.keys...)
	} else {
		f.keyArray, f.valueArray = byteas(f.keyArray, f.keys), byteas(f.valueArray, f.values)
	}
	f.dead = byteas(f.dead[:0], f.gone)
	clear(f.keys) // the batch stays its owner's
	clear(f.values)
	clear(f.gone)
}

// idleFor is how long the writer's connection may be quiet before it is looked
// at: a server that was replaced meanwhile costs no batch.
const idleFor = time.Second

// Apply commits a batch in one transaction, under the epoch.
func (s *Store) Apply(b store.Batch) error {
	if !s.ready.Load() || s.writer == nil {
		return store.ErrReopening
	}
	err := s.fresh()
	if err == nil {
		s.batch.fold(s.id.Load(), b)
		s.ahead.change(s.batch.last)
		err = s.apply()
		s.ahead.change(nil)
	}
	if err != nil {
		s.ready.Store(false)
	}
	return err
}

func (s *Store) fresh() error {
	if time.Since(s.writer.used) < idleFor {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if s.writer.conn.Ping(ctx) == nil {
		return nil
	}
	return s.Reopen()
}

func (s *Store) apply() error {
	id := int4(s.id.Load())
	if len(s.batch.rows) > 0 {
		fence := strings.NewReplacer("$1", fmt.Sprint(s.id.Load()), "$2", fmt.Sprint(s.epoch.Load())).Replace(fenceSQL)
		if err := s.writer.commitCopy(fence, query{deleteSQL, [][]byte{id, s.batch.dead}}, s.batch.rows); err != nil {
			return failed("commit a batch", err)
		}
		return nil
	}
	queries := []query{{fenceSQL, [][]byte{id, int8b(s.epoch.Load())}}}
	if len(s.batch.gone) > 0 {
		queries = append(queries, query{deleteSQL, [][]byte{id, s.batch.dead}})
	}
	if len(s.batch.keys) > 0 {
		queries = append(queries, query{putSQL, [][]byte{id, s.batch.keyArray, s.batch.valueArray}})
	}
	if _, err := s.writer.commit(context.Background(), queries...); err != nil {
		return failed("commit a batch", err)
	}
	return nil
}

// read lends a connection to who reads.
func (s *Store) read(use func(context.Context, *session) error) error {
	if err := s.ours(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	return s.pool.with(ctx, func(n *session) error { return use(ctx, n) })
}

func (s *Store) get(key []byte) (value []byte, err error) {
	found := false
	err = s.read(func(ctx context.Context, n *session) error {
		return n.rows(ctx, query{getSQL, [][]byte{int4(s.id.Load()), key}}, func(c [][]byte) {
			value, found = append([]byte{}, c[0]...), true
		})
	})
	switch {
	case err != nil:
		return nil, failed("read a key", err)
	case !found:
		return nil, store.ErrNotFound
	}
	return value, nil
}

const (
	pageSQL = `DECLARE page NO SCROLL CURSOR FOR SELECT key, value FROM understudy.kv
		WHERE spool = $1::integer AND key >= $2::bytea AND ($3::bytea IS NULL OR key < $3::bytea) ORDER BY spool, key`
	pageFirst, pageMore, pageMost = 8, 8, 1024
)

// page fetches rows for fn while more is true.
func (n *session) page(ctx context.Context, params [][]byte, fn func([][]byte), more *bool) error {
	if err := n.prepare(ctx, pageSQL); err != nil {
		return err
	}
	p := n.conn.StartPipeline(ctx)
	p.SendQueryParams("BEGIN READ ONLY", nil, nil, nil, nil)
	p.SendQueryPrepared(pageSQL, params, binaryForm, nil)
	ask := pageFirst
	err := n.fetch(p, 2, ask, fn)
	for got := int64(0); err == nil; {
		if got = n.fetched; !*more || got < int64(ask) {
			break
		}
		ask = min(ask*pageMore, pageMost)
		err = n.fetch(p, 0, ask, fn)
	}
	if err == nil {
		p.SendQueryParams("COMMIT", nil, nil, nil, nil)
		p.SendPipelineSync()
		err = p.Flush()
	}
	err = errors.Join(err, p.Close())
	if err != nil && !n.conn.IsClosed() {
		n.close() // with its transaction
	}
	return err
}

// fetch asks for so many rows, after so many statements without any.
func (n *session) fetch(p *pgconn.Pipeline, before, ask int, fn func([][]byte)) error {
	p.SendQueryParams(fmt.Sprintf("FETCH %d FROM page", ask), nil, nil, nil, binaryForm)
	if err := p.Sync(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		got, err := p.GetResults()
		if err != nil {
			return err
		}
		r, ok := got.(*pgconn.ResultReader)
		if !ok {
			return nil // the end of what was asked for
		}
		for r.NextRow() {
			fn(r.Values())
		}
		tag, err := r.Close()
		if err != nil {
			return err
		}
		if i == before {
			n.fetched = tag.RowsAffected()
		}
	}
}

// Page reads keys in order, in one transaction, as many at a time as it seems
// worth.
func (s *Store) Page(r store.Range, fn func(key, value []byte) bool) error {
	start := r.Start
	if start == nil {
		start = []byte{}
	}
	called, more := false, true
	err := s.read(func(ctx context.Context, n *session) error {
		if called {
			return errors.New("connection lost on a page") // fn would see keys twice
		}
		return n.page(ctx, [][]byte{int4(s.id.Load()), start, r.Limit}, func(c [][]byte) {
			called = true
			more = more && fn(c[0], c[1])
		}, &more)
	})
	if err != nil {
		return failed("read keys", err)
	}
	return nil
}

// Free is what understudy.free_octets() says, if the database has such a function.
// A server on this machine is looked at; of any other, nothing is known before it
// is full.
func (s *Store) Free() (octets, files uint64, err error) {
	if !s.asksFree.Load() {
		return s.freeHere()
	}
	err = s.read(func(ctx context.Context, n *session) error {
		ctx, cancel := context.WithTimeout(ctx, lockTimeout)
		defer cancel()
		return n.rows(ctx, query{"SELECT understudy.free_octets()::bigint", nil}, func(c [][]byte) {
			if len(c[0]) == 8 {
				octets = uint64(max(0, int64(binary.BigEndian.Uint64(c[0]))))
			}
		})
	})
	if errors.Is(err, store.ErrReopening) {
		return math.MaxInt64, math.MaxInt64, nil // who writes is told why that fails
	}
	return octets, math.MaxInt64, err
}

// freeHere looks at the disk of a server whose Unix socket we use.
func (s *Store) freeHere() (octets, files uint64, err error) {
	dir := s.dataDir.Load()
	var f unix.Statfs_t
	if dir == nil || unix.Statfs(*dir, &f) != nil {
		return math.MaxInt64, math.MaxInt64, nil
	}
	files = f.Ffree
	if f.Files == 0 {
		files = math.MaxInt64 // a file system that doesn't count them
	}
	return f.Bavail * uint64(f.Bsize), files, nil
}
