// Package lister lists what a source of recipients holds: SQL databases (by a
// query), LDAP directories (by a search), the output of a command, text files,
// and Postfix's indexed maps. Redis, which is no such source, lists the strings of a Redis.
//
// Connections are described by Postfix's own settings, with the meanings of
// pgsql_table(5), mysql_table(5), sqlite_table(5) and ldap_table(5), so that
// Postfix's files can be used as they are. Queries and searches come from the
// caller.
//
// Invariants: a listing is complete or an error, so a caller MUST drop the rows
// that came before an error. Nothing is written: databases see a read-only
// transaction. Rows, octets and time are bounded; octets on the wire, before a
// driver reads them. Errors name the source, the setting to look at and the remedy,
// and never contain a password.
//
// It keeps no connection, watches nothing and remembers nothing.
//
// RFC 4511 (LDAP), RFC 2696 (paged results).
package lister

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
)

// Limits bound one listing. A zero field stands for its default.
type Limits struct {
	Rows  int           // default 20 million
	Bytes int64         // of all that the source says, default 4 GiB
	Time  time.Duration // default 10 minutes
}

func (l Limits) defaults() Limits {
	return Limits{cmp.Or(l.Rows, 20_000_000), cmp.Or(l.Bytes, 4<<30), cmp.Or(l.Time, 10*time.Minute)}
}

// Source is a place that entries are listed from. Type says which of the
// other fields count.
type Source struct {
	Type string // mysql, pgsql, sqlite, ldap, command, file or map
	Name string // in errors, as the operator calls it

	Settings map[string]string // mysql, pgsql, sqlite, ldap: the connection, with Postfix's names
	Query    string            // mysql, pgsql, sqlite: a SELECT of a key and, if a second column is there, a value
	Search   Search            // ldap
	Command  []string          // command: the program's path and its arguments
	Shell    bool              // command: Command[0] is a script for sh, the rest its arguments
	Path     string            // file: its path; map: its name for Postfix, such as "hash:/etc/postfix/virtual"
	Postmap  string            // map: the postmap command, "" for the one on the path or in /usr/sbin

	// Host is where programs would know the addresses and files of Settings; nil is
	// this machine.
	Host *host.Host

	// Options are what tables read before found in option files of MySQL's; nil reads them anew.
	Options *OptionFiles

	Limits Limits

	multi bool // mysql: several statements at a time
}

// Search is an LDAP search. Each value of each attribute is a key; of
// Active Directory's proxyAddresses only those of SMTP count.
type Search struct {
	Base       string
	Scope      string // "sub" (also ""), "one" or "base"
	Filter     string // RFC 4515
	Attributes []string
}

// Sentinels within an Error.
var (
	ErrRows  = errors.New("too many rows")
	ErrBytes = errors.New("too much data")
	ErrTime  = errors.New("takes too long")
)

// Error says what couldn't be listed, and why.
type Error struct {
	Source  string // Source.Name
	Setting string // the setting to look at first, with Postfix's or the Source's name
	Remedy  string
	text    string // of err, without passwords
	err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("list %s: %s: %s; %s", e.Source, e.Setting, e.text, e.Remedy)
}

// Is lets errors.Is find the sentinels and the context's errors. There is no
// Unwrap: a driver's error may contain the password.
func (e *Error) Is(target error) bool { return errors.Is(e.err, target) }

// fail makes an Error. A driver's text is cut, and its secrets are removed.
func (s *Source) fail(setting, remedy string, err error) error {
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	const maxText = 512
	text := err.Error()
	for _, name := range []string{"password", "bind_pw"} {
		if secret := s.Settings[name]; len(secret) > 3 { // a shorter one would only be shown by its gaps
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	lines := strings.FieldsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	text = strings.TrimRight(strings.Join(slices.Compact(lines), " "), ": ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return &Error{s.Name, setting, remedy, text, err}
}

// List calls row for each entry. Surrounding space is no part of a key; rows
// without a key are left out; a source without values yields "".
func (s *Source) List(ctx context.Context, row func(key, value string) error) error {
	switch s.Type {
	case "mysql", "pgsql", "sqlite":
		return s.listSQL(ctx, row)
	case "ldap":
		return s.listLDAP(ctx, row)
	case "command":
		return s.listCommand(ctx, row)
	case "file":
		return s.listFile(ctx, row)
	case "map":
		return s.listMap(ctx, row)
	}
	return s.fail("type", "use mysql, pgsql, sqlite, ldap, command, file or map", fmt.Errorf("%q is unknown", s.Type))
}

func (s *Source) listSQL(ctx context.Context, row func(key, value string) error) error {
	return s.Rows(ctx, s.Query, func(columns []string) error {
		if len(columns) > 2 {
			return s.fail("query", "select the address, and a value beside it if there is one", fmt.Errorf("%d columns", len(columns)))
		}
		return one(row, columns[0], strings.Join(columns[1:], ""))
	})
}

func one(row func(key, value string) error, key, value string) error {
	if key = strings.TrimSpace(key); key == "" {
		return nil
	}
	return row(key, strings.TrimSpace(value))
}

// Rows runs a query and calls row for each row of its answer. A NULL is "".
// The columns are valid until row returns.
func (s *Source) Rows(ctx context.Context, query string, row func(columns []string) error) error {
	if strings.TrimSpace(query) == "" {
		return s.fail("query", "give a SELECT that lists the addresses", errors.New("is missing"))
	}
	return s.open(ctx, func(q *Session) error { return q.Rows(query, row) })
}

// bounded runs a listing within the Source's limits, and says which of them
// ended it.
func (s *Source) bounded(ctx context.Context, list func(context.Context, *meter) error) error {
	lim := s.Limits.defaults()
	ctx, cancel := context.WithTimeoutCause(ctx, lim.Time, ErrTime)
	defer cancel()
	m := &meter{limits: lim, host: s.Host}
	err := list(ctx, m)
	// A context that ends makes a driver fail in its own words, or stop
	// as if all had been said.
	switch cause := context.Cause(ctx); {
	case cause == ErrTime:
		return s.fail("timeout", "make the source faster or raise timeout", fmt.Errorf("%w: more than %v", ErrTime, lim.Time))
	case cause != nil:
		return fmt.Errorf("list %s: %w", s.Name, cause)
	case m.over.Load():
		return s.fail("max_bytes", "list fewer columns and rows or raise max_bytes", fmt.Errorf("%w: more than %d octets", ErrBytes, lim.Bytes))
	case errors.Is(err, ErrRows):
		return s.fail("max_rows", "list recipients only or raise max_rows", fmt.Errorf("%w: more than %d", ErrRows, lim.Rows))
	}
	var caller callerError
	switch {
	case errors.As(err, &caller):
		return caller.error
	case err != nil:
		return s.fail(s.place(), "try again, and look at the source itself", err)
	}
	return nil
}

// place is the setting that says where a source is.
func (s *Source) place() string {
	switch s.Type {
	case "mysql", "pgsql":
		return "hosts"
	case "sqlite":
		return "dbpath"
	case "ldap":
		return "server_host"
	case "command":
		return "command"
	}
	return "path"
}

// callerError is what a caller's function returned: no fault of the source.
type callerError struct{ error }

func theirs(err error) error {
	if err == nil {
		return nil
	}
	return callerError{err}
}
