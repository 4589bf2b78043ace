package lister

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Session is one connection with one read-only transaction, in which all
// queries see the same data where the database can do that. The Source's limits
// hold for all of it together.
type Session struct {
	source   *Source
	ctx      context.Context
	meter    *meter
	database database
}

// database is what differs between the drivers.
type database interface {
	rows(ctx context.Context, query string, row func([]string) error) error
	columns(ctx context.Context, query string) ([]Column, error)
	// many asks several queries and returns how many of them were answered.
	many(ctx context.Context, queries []string, answer func(n int, rows [][]string) error) (int, error)
	quoting(ctx context.Context) (func(string) string, error)
	patience(ctx context.Context, d time.Duration)
}

// Column is one of a query's answer.
type Column struct {
	Name string
	Text bool // comparing it with a string compares texts

	Octets bool // octet by octet: it has no letters
}

// Session runs use within one transaction.
func (s *Source) Session(ctx context.Context, use func(*Session) error) error {
	c := *s
	c.multi = true
	return c.open(ctx, use)
}

func (s *Source) open(ctx context.Context, use func(*Session) error) error {
	return s.bounded(ctx, func(ctx context.Context, m *meter) error {
		switch s.Type {
		case "mysql":
			return s.mysql(ctx, m, use)
		case "pgsql":
			return s.pgsql(ctx, m, use)
		case "sqlite":
			return s.sqlite(ctx, m, use)
		}
		return s.fail("type", "use mysql, pgsql or sqlite", fmt.Errorf("%q has no queries", s.Type))
	})
}

// Rows runs a query, as Source.Rows does.
func (q *Session) Rows(query string, row func(columns []string) error) error {
	return q.database.rows(q.ctx, query, func(columns []string) error {
		if err := q.meter.row(); err != nil {
			return err
		}
		return theirs(row(columns))
	})
}

// Columns says what columns a query's answer has. The query should have
// "LIMIT 0".
func (q *Session) Columns(query string) ([]Column, error) { return q.database.columns(q.ctx, query) }

// Quoting returns what puts a key between a query's quotes, as Postfix does.
func (q *Session) Quoting() (func(string) string, error) { return q.database.quoting(q.ctx) }

// Patience bounds the time of each query from here on, where the database has
// such a setting.
func (q *Session) Patience(d time.Duration) { q.database.patience(q.ctx, d) }

// batch is how many questions go over at a time, and how long they may be
// together: less than any server's limit of a packet.
const (
	batch      = 500
	batchBytes = 256 << 10
)

// Ask puts many queries, in their order. answer gets the rows of each, or the
// database's error about that query alone; what it returns ends the asking.
func (q *Session) Ask(queries []string, answer func(n int, rows [][]string, err error) error) error {
	for start := 0; start < len(queries); {
		end, size := start, 0
		for end < len(queries) && end-start < batch && (end == start || size+len(queries[end]) < batchBytes) {
			size += len(queries[end])
			end++
		}
		done, err := q.database.many(q.ctx, queries[start:end], func(n int, rows [][]string) error {
			for range rows {
				if err := q.meter.row(); err != nil {
					return err
				}
			}
			return theirs(answer(start+n, rows, nil))
		})
		start += done
		var caller callerError
		switch {
		case err == nil:
			continue
		case errors.As(err, &caller), errors.Is(err, ErrRows), q.ctx.Err() != nil, q.meter.over.Load():
			return err
		}
		if err := q.alone(queries, start, answer); err != nil {
			return err
		}
		start++
	}
	return nil
}

// alone repeats by itself a query that may have failed because of others.
func (q *Session) alone(queries []string, n int, answer func(n int, rows [][]string, err error) error) error {
	answered := false
	_, err := q.database.many(q.ctx, queries[n:n+1], func(_ int, rows [][]string) error {
		answered = true
		return theirs(answer(n, rows, nil))
	})
	var caller callerError
	if err == nil && answered || errors.As(err, &caller) || q.ctx.Err() != nil {
		return err
	}
	if err == nil {
		err = errors.New("isn't a SELECT")
	}
	return theirs(answer(n, nil, err))
}

// doubled quotes by writing characters twice.
func doubled(chars ...string) func(string) string {
	var pairs []string
	for _, c := range chars {
		pairs = append(pairs, c, c+c)
	}
	return strings.NewReplacer(pairs...).Replace
}

// sqlColumns asks a driver.
func sqlColumns(ctx context.Context, tx *sql.Tx, query string, text, octets func(typ string) bool) (all []Column, err error) {
	r, err := tx.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	types, err := r.ColumnTypes()
	for _, t := range types {
		typ := strings.ToUpper(t.DatabaseTypeName())
		all = append(all, Column{t.Name(), text(typ), octets(typ)})
	}
	return all, errors.Join(err, r.Err())
}

// collect reads one answer of several.
func collect(r *sql.Rows) (all [][]string, err error) {
	names, err := r.Columns()
	if err != nil {
		return nil, err
	}
	raw := make([]sql.RawBytes, len(names))
	into := make([]any, len(names))
	for n := range raw {
		into[n] = &raw[n]
	}
	for r.Next() {
		if err := r.Scan(into...); err != nil {
			return nil, err
		}
		row := make([]string, len(names))
		for n, v := range raw {
			row[n] = string(v)
		}
		all = append(all, row)
	}
	return all, r.Err()
}
