package lister

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"modernc.org/sqlite"
)

// sqlite lists from a database file, which is opened for reading only. A
// database that is being written is waited for.
func (s *Source) sqlite(ctx context.Context, m *meter, query string, row func([]string) error) error {
	path := s.Settings["dbpath"]
	if !strings.HasPrefix(path, "/") {
		return s.fail("dbpath", "name the database with its whole path", fmt.Errorf("%q isn't one", path))
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
	err = s.sqlRows(ctx, tx, query, func(columns []string) error {
		for _, c := range columns {
			if err := m.take(len(c)); err != nil {
				return err
			}
		}
		return row(columns)
	})
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
