package postfix

import (
	"context"
	"errors"
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

// Entries runs a search, page by page.
func (d Databases) Entries(ctx context.Context, db *Database, s *Search, entry func(attributes map[string][]string) error) error {
	search := lister.Search{Base: s.Base, Scope: s.Scope, Filter: s.Filter, Attributes: s.Attributes}
	if db.Type != "ldap" {
		return fmt.Errorf("table %s: type %s has no searches", db.Table, db.Type)
	}
	return d.source(db).Entries(ctx, search, entry)
}

func (d Databases) source(db *Database) *lister.Source {
	return &lister.Source{Type: db.Type, Name: db.Table, Settings: db.Settings, Limits: d.Limits}
}

// ListTable lists one table, spelt as in main.cf ("proxy:mysql:/etc/postfix/x.cf",
// "hash:/etc/aliases"), as Import would: a source of recipients that an
// operator names. Settings of a table that main.cf describes come from
// src.ConfigDir. A table that can't be listed, or lists no keys (cidr, regexp),
// is an error.
func ListTable(ctx context.Context, src Source, table string) (map[string]string, error) {
	conf, err := readConfig(ctx, &src)
	if err != nil {
		return nil, err
	}
	i := &importer{ctx: ctx, src: &src, conf: conf, set: conf.smtpd, files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}}
	name, reason := tableName(table)
	if reason != nil {
		return nil, fmt.Errorf("table %s: %w", table, reason)
	}
	t, reason := i.table("table", name)
	switch {
	case t == nil && reason == nil:
		return nil, errors.Join(i.errs...)
	case reason != nil:
		return nil, fmt.Errorf("table %s: %w", table, reason)
	case t.Kind != Indexed:
		return nil, fmt.Errorf("table %s: %s tables list no keys", table, t.Type)
	case t.DomainWide:
		return nil, fmt.Errorf("table %s: its query takes any address of a domain; list the domains instead", table)
	}
	return t.Entries, nil
}
