package lister

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"modernc.org/sqlite"
)

// sqlite opens a transaction of a database file, for reading only. A database
// that is being written is waited for.
func (s *Source) sqlite(ctx context.Context, m *meter, use func(*Session) error) error {
	path := s.Settings["dbpath"]
	if !strings.HasPrefix(path, "/") {
		return s.fail("dbpath", "name the database with its whole path", fmt.Errorf("%q isn't one", path))
	}
	path, err := s.Host.Path(path)
	if err != nil {
		return s.fail("dbpath", "list it by a command: postfix_list", err)
	}
	if _, err := os.Stat(path); err != nil {
		return s.fail("dbpath", "name a database that is there and readable", err)
	}
	name := (&url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro&_busy_timeout=10000&_query_only=1"}).String()
	connector, err := sqlite.NewConnector(name)
	if err != nil {
		return s.fail("dbpath", "name a database that is there and readable", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return s.fail("dbpath", "name an SQLite database that isn't locked", err)
	}
	defer tx.Rollback()
	err = use(&Session{source: s, ctx: ctx, meter: m, database: sqliteSession{s, tx, m}})
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		const notADatabase, corrupt, cantOpen, busy, ioErr = 26, 11, 14, 5, 10
		switch lite.Code() & 0xff {
		case notADatabase, corrupt, cantOpen, busy, ioErr:
			return s.fail("dbpath", "name an SQLite database that is whole, readable and not locked", err)
		}
		return s.fail("query", "correct the query", err)
	}
	return err
}

// sqliteSession is a transaction of SQLite.
type sqliteSession struct {
	s  *Source
	tx *sql.Tx
	m  *meter
}

func (q sqliteSession) rows(ctx context.Context, query string, row func([]string) error) error {
	return q.s.sqlRows(ctx, q.tx, query, func(columns []string) error {
		for _, c := range columns {
			if err := q.m.take(len(c)); err != nil {
				return err
			}
		}
		return row(columns)
	})
}

// columns goes by the affinity that a column's declaration gives it. What has
// none is compared as it is.
func (q sqliteSession) columns(ctx context.Context, query string) ([]Column, error) {
	return sqlColumns(ctx, q.tx, query, func(typ string) bool {
		return typ == "" || strings.Contains(typ, "CHAR") || strings.Contains(typ, "TEXT") || strings.Contains(typ, "CLOB") || strings.Contains(typ, "BLOB")
	}, func(string) bool { return false })
}

func (q sqliteSession) quoting(context.Context) (func(string) string, error) {
	return doubled("'"), nil
}

func (q sqliteSession) patience(context.Context, time.Duration) {}

func (q sqliteSession) many(ctx context.Context, queries []string, answer func(n int, rows [][]string) error) (int, error) {
	for n, query := range queries {
		var all [][]string
		err := q.rows(ctx, query, func(c []string) error {
			all = append(all, slices.Clone(c))
			return nil
		})
		if err == nil {
			err = answer(n, all)
		}
		if err != nil {
			return n, err
		}
	}
	return len(queries), nil
}
