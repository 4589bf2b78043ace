package postgres

import (
	"context"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/queue/store"
)

//go:embed schema
var schemas embed.FS

// SchemaVersion is the last of the schema's versions.
const SchemaVersion = 2

// schemaLock is the advisory lock of who looks at the schema to change it.
const schemaLock = 0x756e64657273

// migrate brings the schema to this program's version.
func migrate(ctx context.Context, n *session) error {
	version, err := schemaVersion(ctx, n)
	if err != nil || version == SchemaVersion {
		return err
	}
	// The lock comes before the transaction: within one, the server would go on to
	// believe that there is no schema, though another process made it meanwhile.
	for _, sql := range []string{fmt.Sprintf("SELECT pg_advisory_lock(%d)", schemaLock), "BEGIN"} {
		if _, err := n.conn.Exec(ctx, sql).ReadAll(); err != nil {
			return failed("lock the schema", err)
		}
	}
	if version, err = schemaVersion(ctx, n); err != nil {
		return err // the connection is closed with the transaction
	}
	for v := version + 1; v <= SchemaVersion; v++ {
		b, err := schemas.ReadFile(fmt.Sprintf("schema/%d.sql", v))
		if err != nil {
			return err
		}
		sql := string(b) + fmt.Sprintf("; UPDATE understudy.meta SET version = %d", v)
		if v == 1 {
			sql = "CREATE SCHEMA IF NOT EXISTS understudy; " + sql
		}
		if _, err := n.conn.Exec(ctx, sql).ReadAll(); err != nil {
			return failed("make the schema", err)
		}
	}
	for _, sql := range []string{"COMMIT", fmt.Sprintf("SELECT pg_advisory_unlock(%d)", schemaLock)} {
		if _, err := n.conn.Exec(ctx, sql).ReadAll(); err != nil {
			return failed("make the schema", err)
		}
	}
	return nil
}

// schemaVersion is 0 when there is no schema. ErrNewerVersion, ErrDamaged.
func schemaVersion(ctx context.Context, n *session) (int, error) {
	r := n.conn.ExecParams(ctx, "SELECT to_regclass('understudy.meta')::text, to_regclass('understudy.kv')::text", nil, nil, nil, nil).Read()
	if r.Err != nil {
		return 0, failed("look for the schema", r.Err)
	}
	if r.Rows[0][0] == nil {
		if r.Rows[0][1] != nil {
			return 0, fmt.Errorf("%w: the table understudy.meta is missing", store.ErrDamaged)
		}
		return 0, nil
	}
	r = n.conn.ExecParams(ctx, "SELECT version::text FROM understudy.meta", nil, nil, nil, nil).Read()
	if r.Err != nil {
		return 0, failed("read the schema's version", r.Err)
	}
	if len(r.Rows) != 1 {
		return 0, fmt.Errorf("%w: the table understudy.meta has %d rows", store.ErrDamaged, len(r.Rows))
	}
	version, err := strconv.Atoi(string(r.Rows[0][0]))
	switch {
	case err != nil || version < 1:
		return 0, fmt.Errorf("%w: the schema's version is %q", store.ErrDamaged, store.Cut(string(r.Rows[0][0])))
	case version > SchemaVersion:
		return 0, fmt.Errorf("%w: schema %d, this program knows up to %d", store.ErrNewerVersion, version, SchemaVersion)
	}
	return version, nil
}

const (
	makeSQL = `INSERT INTO understudy.spool (name) VALUES ($1::text) ON CONFLICT DO NOTHING`
	fillSQL = `INSERT INTO understudy.kv (spool, key, value)
		SELECT s.id, u.k, u.v FROM understudy.spool s, unnest($2::bytea[], $3::bytea[]) u(k, v) WHERE s.name = $1::text AND s.epoch = 0
		ON CONFLICT DO NOTHING`
	// capSQL ends in time what the clock of another server wrote, which was in charge before and is
	// ahead of this one: no lease is longer than that from now.
	capSQL = `UPDATE understudy.spool SET lease_until = clock_timestamp() + $1::bigint * interval '1 millisecond'
		WHERE id IN (SELECT id FROM understudy.spool WHERE lease_until > clock_timestamp() + $1::bigint * interval '1 millisecond' FOR UPDATE SKIP LOCKED)`
	// takeSQL waits for a transaction of the last holder that is under way.
	takeSQL = `UPDATE understudy.spool SET epoch = epoch + 1, holder = $2::text, token = $3::text,
			lease_until = clock_timestamp() + $4::bigint * interval '1 millisecond'
		WHERE name = $1::text AND (token = $3::text OR lease_until < clock_timestamp())`
	spoolSQL = `SELECT id, epoch, holder, token, (extract(epoch FROM lease_until - clock_timestamp()) * 1000)::bigint
		FROM understudy.spool WHERE name = $1::text AND lease_until > '-infinity'
		UNION ALL SELECT id, epoch, holder, token, -1 FROM understudy.spool WHERE name = $1::text AND lease_until = '-infinity'`
	renewSQL = `UPDATE understudy.spool SET lease_until = clock_timestamp() + $3::bigint * interval '1 millisecond'
		WHERE id = $1::integer AND epoch = $2::bigint`
	letGoSQL = `UPDATE understudy.spool SET lease_until = '-infinity', token = '' WHERE id = $1::integer AND epoch = $2::bigint`
)

// spool is a row of understudy.spool.
type spool struct {
	id            int32
	epoch         int64
	holder, token string
	left          time.Duration // of the lease
}

func readSpool(ctx context.Context, n *session, name string) (s spool, err error) {
	found := false
	err = n.rows(ctx, query{spoolSQL, [][]byte{[]byte(name)}}, func(c [][]byte) {
		found = true
		s = spool{int32(binary.BigEndian.Uint32(c[0])), int64(binary.BigEndian.Uint64(c[1])), string(c[2]), string(c[3]),
			time.Duration(int64(binary.BigEndian.Uint64(c[4]))) * time.Millisecond}
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	return s, err
}

// now is a clock in nanoseconds that goes on while the machine is suspended, as a lease does.
// Go's own stands still then.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux has it
	}
	return t.Nano()
}

// take connects and takes the spool: what an earlier connection has under way is
// done, or will be refused. schema looks at the schema first. ErrLocked.
func (s *Store) take(schema func(context.Context, *session) error) error {
	if s.writer != nil {
		s.writer.close()
		s.writer = nil
	}
	s.pool.renew() // its connections may lead to a server that isn't in charge any more
	ctx, cancel := context.WithTimeout(context.Background(), 2*commitTimeout)
	defer cancel()
	n, err := s.connect(ctx)
	if err != nil {
		return err
	}
	if err = schema(ctx, n); err == nil {
		err = s.takeWith(ctx, n)
	}
	if err != nil {
		n.close()
		return err
	}
	s.writer = n
	s.ahead.forget()
	s.lost.Store(false)
	s.ready.Store(true)
	return nil
}

func (s *Store) takeWith(ctx context.Context, n *session) error {
	name, before := []byte(s.o.Spool), now()
	var keys, values [][]byte
	for _, c := range store.Created() {
		keys, values = append(keys, c.Key), append(values, c.Value)
	}
	var was spool
	if again := s.epoch.Load() > 0; again {
		var err error
		if was, err = readSpool(ctx, n, s.o.Spool); err != nil {
			return failed("read the spool's row", err)
		}
		if was.token != s.token { // at once: if this attempt fails, the next may find our own
			s.handovers.Add(1)
		}
	}
	changed, err := n.commit(ctx,
		query{makeSQL, [][]byte{name}},
		query{fillSQL, [][]byte{name, byteas(nil, keys), byteas(nil, values)}},
		query{capSQL, [][]byte{int8b(s.o.Lease.Milliseconds())}},
		query{takeSQL, [][]byte{name, []byte(s.o.Member), []byte(s.token), int8b(s.o.Lease.Milliseconds())}})
	if err != nil {
		return failed("take the spool", err)
	}
	row, err := readSpool(ctx, n, s.o.Spool)
	if err != nil {
		return failed("read the spool's row", err)
	}
	if changed != 1 || row.token != s.token {
		return fmt.Errorf("%w: %q holds the spool for another %v", store.ErrLocked, store.Cut(row.holder), row.left.Round(time.Millisecond))
	}
	if was.epoch > 0 && row.epoch != was.epoch+1 {
		s.handovers.Add(1)
	}
	s.id.Store(row.id)
	s.epoch.Store(row.epoch)
	s.until.Store(before + int64(s.o.Lease))
	return nil
}

// look is take for who only reads.
func (s *Store) look() error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	n, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer n.close()
	version, err := schemaVersion(ctx, n)
	if err != nil {
		return err
	}
	if version == 0 {
		return fs.ErrNotExist
	}
	row, err := readSpool(ctx, n, s.o.Spool)
	if err != nil {
		return failed("read the spool's row", err)
	}
	if row.left > 0 && row.token != s.token {
		return fmt.Errorf("%w: %q holds the spool", store.ErrLocked, store.Cut(row.holder))
	}
	s.id.Store(row.id)
	s.ready.Store(true)
	return nil
}

// Reopen takes the spool again, over a new connection.
func (s *Store) Reopen() error {
	return s.take(func(ctx context.Context, n *session) error {
		version, err := schemaVersion(ctx, n)
		if err == nil && version != SchemaVersion {
			err = fmt.Errorf("%w: the schema's version is %d, and was %d", store.ErrDamaged, version, SchemaVersion)
		}
		return err
	})
}

// Handovers rises when another has had the spool since it was opened here, or has it.
func (s *Store) Handovers() int64 { return s.handovers.Load() }

// letGo ends the lease.
func (s *Store) letGo() error {
	_, err := s.writer.commit(context.Background(), query{letGoSQL, [][]byte{int4(s.id.Load()), int8b(s.epoch.Load())}})
	if err != nil {
		return failed("let go of the spool", err)
	}
	return nil
}

// keep renews the lease until ctx ends.
func (s *Store) keep(ctx context.Context) {
	tick := time.NewTicker(s.o.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.renew(ctx); err != nil && ctx.Err() == nil {
			s.often.Warn(s.o.Log, "", "the spool's lease isn't renewed", "err", err)
		}
	}
}

func (s *Store) renew(ctx context.Context) error {
	before, epoch := now(), s.epoch.Load()
	ctx, cancel := context.WithTimeout(ctx, max(s.o.Lease/3, 100*time.Millisecond))
	defer cancel()
	var changed int64
	err := s.pool.with(ctx, func(n *session) (err error) {
		changed, err = n.commit(ctx, query{renewSQL, [][]byte{int4(s.id.Load()), int8b(epoch), int8b(s.o.Lease.Milliseconds())}})
		return err
	})
	switch {
	case err != nil:
		return failed("renew the lease", err)
	case s.epoch.Load() != epoch:
		return nil // Reopen was quicker
	case changed == 0:
		s.lost.Store(true)
		return errFenced
	}
	s.until.Store(before + int64(s.o.Lease))
	return nil
}

// ours says that nobody else can have the spool: what is read is not being
// changed, or relayed, by another.
func (s *Store) ours() error {
	switch {
	case !s.ready.Load():
		return store.ErrReopening
	case s.readOnly:
		return nil
	}
	return s.Held()
}

// Held is nil while the lease lasts.
func (s *Store) Held() error {
	switch {
	case s.lost.Load():
		return fmt.Errorf("%w: %w", store.ErrReopening, errFenced)
	case now() > s.until.Load():
		return fmt.Errorf("%w: the lease is over, and wasn't renewed", store.ErrReopening)
	}
	return nil
}

var errClosed = errors.New("store is closed")
