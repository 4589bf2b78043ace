package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-mx/understudy/queue/store"
)

// maxSays bounds what a member says of itself, in octets.
const maxSays = 64 << 10

// Member is one of those who share a database, or a spool whose member never came.
type Member struct {
	Name string
	Ago  time.Duration // since its last beat, by the clock of the database that is in charge now; -1 for never
	Beat int64         // another for each of its beats
	Says []byte

	Spool  bool          // it has one
	Holder string        // who has its spool, "" for nobody
	Left   time.Duration // of the holder's lease
	Totals store.Totals  // of its spool, by the last batch
}

// Members is the list of those who share a database.
type Members struct{ s *Store }

// Members connects when it is first asked. The spool of o isn't touched.
func (o Opener) Members() (*Members, error) {
	o.Dir = ""
	s, err := o.store(nil)
	return &Members{s}, err
}

// Close ends its connections.
func (m *Members) Close() { m.s.pool.close() }

const (
	// beatSQL waits for no standby: the next one comes soon.
	beatSQL = `INSERT INTO understudy.member AS m (name, seen, says) VALUES ($1::text, clock_timestamp(), $2::bytea)
		ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, says = excluded.says`
	membersSQL = `SELECT coalesce(m.name, s.name),
			CASE WHEN m.seen IS NULL THEN -1 ELSE greatest(0, (extract(epoch FROM clock_timestamp() - m.seen) * 1000)::bigint) END, coalesce(m.says, ''),
			s.id IS NOT NULL, CASE WHEN s.lease_until > clock_timestamp() THEN s.holder ELSE '' END,
			CASE WHEN s.lease_until > clock_timestamp() THEN (extract(epoch FROM s.lease_until - clock_timestamp()) * 1000)::bigint ELSE 0 END,
			coalesce((SELECT value FROM understudy.kv t WHERE t.spool = s.id AND t.key = 't'::bytea), ''), extract(epoch FROM clock_timestamp())::bigint,
			coalesce((extract(epoch FROM m.seen) * 1000000)::bigint, 0)
		FROM understudy.member m FULL JOIN understudy.spool s ON s.name = m.name`
)

// Beat says that the member of that name lives, and what it says of itself. It
// returns all members, and the time by the database's clock, which is for all of them
// the same.
func (m *Members) Beat(ctx context.Context, name string, says []byte) (all []Member, now time.Time, err error) {
	if len(says) > maxSays {
		return nil, now, fmt.Errorf("a member that says %d octets of itself", len(says))
	}
	return m.list(ctx, &query{beatSQL, [][]byte{[]byte(name), says}})
}

// List is Beat for one who is no member.
func (m *Members) List(ctx context.Context) ([]Member, error) {
	all, _, err := m.list(ctx, nil)
	return all, err
}

func (m *Members) list(ctx context.Context, first *query) (all []Member, now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err = m.s.pool.with(ctx, func(n *session) error {
		all = nil
		if first != nil {
			if _, err := n.conn.Exec(ctx, "SET synchronous_commit = local").ReadAll(); err != nil {
				return err
			}
			for _, q := range []query{*first, {capSQL, [][]byte{int8b(m.s.o.Lease.Milliseconds())}}} {
				if err := n.rows(ctx, q, func([][]byte) {}); err != nil {
					return err
				}
			}
		}
		return n.rows(ctx, query{membersSQL, nil}, func(c [][]byte) {
			number := func(i int) int64 { return int64(binary.BigEndian.Uint64(c[i])) }
			totals, _ := store.DecodeTotals(c[6]) // none: a new spool, or one that its holder complains about
			ago := time.Duration(number(1)) * time.Millisecond
			if number(1) < 0 {
				ago = -1
			}
			all = append(all, Member{Name: string(c[0]), Ago: ago, Beat: number(8), Says: append([]byte(nil), c[2]...),
				Spool: c[3][0] == 1, Holder: string(c[4]), Left: time.Duration(number(5)) * time.Millisecond, Totals: totals})
			now = time.Unix(number(7), 0)
		})
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == stateNoTable {
		err = errors.New("the database has no tables of Understudy's yet: the first secondary that starts makes them")
	}
	if err != nil {
		return nil, now, failed("list the members", err)
	}
	return all, now, nil
}

// originSQL looks for a store, and in it for a message and for a note where that went.
const originSQL = `SELECT EXISTS (SELECT FROM understudy.kv m WHERE m.spool = s.id AND m.key = $2::bytea),
		coalesce((SELECT value FROM understudy.kv o WHERE o.spool = s.id AND o.key = $3::bytea), '')
	FROM understudy.spool s WHERE (SELECT value FROM understudy.kv u WHERE u.spool = s.id AND u.key = 'u'::bytea) = $1::bytea`

// Ask looks for a message in the spool of an identity, whoever holds that, and for the
// note to which store it went from there. found is false when no spool has the identity.
func (m *Members) Ask(ctx context.Context, identity, id string) (found, there bool, movedTo string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err = m.s.pool.with(ctx, func(n *session) error {
		found, there, movedTo = false, false, ""
		return n.rows(ctx, query{originSQL, [][]byte{[]byte(identity), store.IDKey(id), store.MovedKey(id)}}, func(c [][]byte) {
			found, there, movedTo = true, c[0][0] == 1, string(c[1])
		})
	})
	if err != nil {
		return false, false, "", failed("ask a spool", err)
	}
	return found, there, movedTo, nil
}
