package postfix

import (
	"context"
	"fmt"

	"github.com/understudy-mx/understudy/internal/lister"
)

// Databases is the Lister of real databases: it connects as a table's own
// settings say, for each listing anew.
type Databases struct {
	Limits lister.Limits // of one query or search
}

// Rows runs a query in a read-only transaction.
func (d Databases) Rows(ctx context.Context, db *Database, query string, row func(columns []string) error) error {
	return d.source(db).Rows(ctx, query, row)
}

// Session connects once for many queries.
func (d Databases) Session(ctx context.Context, db *Database, use func(Session) error) error {
	return d.source(db).Session(ctx, func(s *lister.Session) error { return use(s) })
}

// Directory connects to an LDAP server.
func (d Databases) Directory(ctx context.Context, db *Database, use func(Directory) error) error {
	if db.Type != "ldap" {
		return fmt.Errorf("table %s: type %s has no searches", db.Table, db.Type)
	}
	return d.source(db).Directory(ctx, func(dir *lister.Directory) error { return use(dir) })
}

func (d Databases) source(db *Database) *lister.Source {
	return &lister.Source{Type: db.Type, Name: db.Table, Settings: db.Settings, Host: db.Host, Options: db.options, Limits: d.Limits}
}

// Column is one of a query's answer.
type Column = lister.Column
