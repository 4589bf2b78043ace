package lister

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// pgsql opens a transaction of PostgreSQL. Answers travel as text, so that a
// boolean is the "t" that Postfix sees.
func (s *Source) pgsql(ctx context.Context, m *meter, use func(*Session) error) error {
	hosts, configs, err := s.pgsqlHosts()
	if err != nil {
		return err
	}
	var conn *pgconn.PgConn
	err = s.eachHost(ctx, "hosts", hosts, func(ctx context.Context, h endpoint) (err error) {
		c := configs[h]
		c.DialFunc, c.ConnectTimeout = m.dial, connectTimeout
		if !m.host.Local() { // whose names aren't ours
			c.LookupFunc = func(_ context.Context, name string) ([]string, error) { return []string{name}, nil }
		}
		c.MaxProtocolMessageBodyLen = int(min(m.limits.Bytes, 1<<30))
		conn, err = pgconn.ConnectConfig(ctx, c)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	if _, err = conn.Exec(ctx, "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").ReadAll(); err == nil {
		err = use(&Session{source: s, ctx: ctx, meter: m, database: pgsqlSession{s, conn}})
	}
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg):
		setting, remedy := pgsqlFailure(pg.Code)
		return s.fail(setting, remedy, err)
	case err != nil && conn.IsClosed():
		return s.fail("hosts", "see the server's log", err)
	}
	return err
}

// pgsqlSession is a transaction of PostgreSQL. What fails in it goes back to a
// savepoint.
type pgsqlSession struct {
	s    *Source
	conn *pgconn.PgConn
}

func (q pgsqlSession) rows(ctx context.Context, query string, row func([]string) error) error {
	return q.guarded(ctx, func() error {
		return q.s.pgsqlRows(q.conn.ExecParams(ctx, query, nil, nil, nil, nil), row)
	})
}

// guarded runs something that may fail without the transaction's end.
func (q pgsqlSession) guarded(ctx context.Context, f func() error) error {
	if _, err := q.conn.Exec(ctx, "SAVEPOINT u").ReadAll(); err != nil {
		return err
	}
	err := f()
	if _, back := q.conn.Exec(ctx, "ROLLBACK TO u").ReadAll(); back != nil && err == nil {
		return back
	}
	return err
}

func (q pgsqlSession) columns(ctx context.Context, query string) (all []Column, err error) {
	var types []uint32
	err = q.guarded(ctx, func() error {
		r := q.conn.ExecParams(ctx, query, nil, nil, nil, nil)
		for _, f := range r.FieldDescriptions() {
			all = append(all, Column{Name: f.Name})
			types = append(types, f.DataTypeOID)
		}
		_, err := r.Close()
		return err
	})
	for n, oid := range types {
		const char, name, text, unknown, bpchar, varchar = 18, 19, 25, 705, 1042, 1043
		switch oid {
		case char, name, text, unknown, bpchar, varchar:
			all[n].Text = true
		default:
			if oid < 16384 { // of the system
				continue
			}
			err = errors.Join(err, q.rows(ctx, fmt.Sprintf("SELECT typname FROM pg_catalog.pg_type WHERE oid = %d", oid), func(c []string) error {
				all[n].Text = c[0] == "citext"
				return nil
			}))
		}
	}
	return all, err
}

func (q pgsqlSession) quoting(context.Context) (func(string) string, error) {
	if q.conn.ParameterStatus("standard_conforming_strings") == "off" {
		return doubled("'", `\`), nil
	}
	return doubled("'"), nil
}

func (q pgsqlSession) patience(ctx context.Context, d time.Duration) {
	q.conn.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", d.Milliseconds())).ReadAll()
}

func (q pgsqlSession) many(ctx context.Context, queries []string, answer func(n int, rows [][]string) error) (done int, err error) {
	return done, q.guarded(ctx, func() error {
		r := q.conn.Exec(ctx, strings.Join(queries, "; "))
		for err == nil && r.NextResult() {
			var all [][]string
			result := r.ResultReader()
			for result.NextRow() {
				var row []string
				for _, v := range result.Values() {
					row = append(row, string(v))
				}
				all = append(all, row)
			}
			if _, err = result.Close(); err == nil && done == len(queries) {
				err = errors.New("more answers than questions")
			}
			if err == nil {
				err = answer(done, all)
				done++
			}
		}
		return errors.Join(err, r.Close())
	})
}

func (s *Source) pgsqlRows(r *pgconn.ResultReader, row func([]string) error) error {
	columns := make([]string, len(r.FieldDescriptions()))
	var err error
	for err == nil && r.NextRow() {
		for i, v := range r.Values() {
			columns[i] = string(v)
		}
		err = row(columns)
	}
	_, closed := r.Close()
	switch {
	case err == nil && closed == nil && len(r.FieldDescriptions()) == 0:
		return s.fail("query", fixQuery, errors.New("isn't a SELECT"))
	case err == nil:
		return closed
	}
	return err
}

// pgsqlHosts reads hosts as pgsql_table(5) does: a URI, or [unix:]/directory,
// or [inet:]host[:port].
func (s *Source) pgsqlHosts() (hosts []endpoint, configs map[endpoint]*pgconn.Config, err error) {
	configs = map[endpoint]*pgconn.Config{}
	list := words(s.set("hosts", "localhost"))
	for n, w := range list {
		e := endpoint{network: "tcp", address: w, spelt: w}
		text := w
		if strings.HasPrefix(w, "postgresql://") || strings.HasPrefix(w, "postgres://") {
			e.spelt = fmt.Sprintf("URI %d", n+1) // may hold the password
			// The path of a socket is percent-encoded, or in a parameter.
			if strings.Contains(strings.ToLower(w), "://%2f") || strings.Contains(w, ":///") {
				e.network = "unix"
			}
		} else {
			name := strings.TrimPrefix(strings.TrimPrefix(w, "unix:"), "inet:")
			text, e.network, err = s.pgsqlWords(name)
			if err != nil {
				return nil, nil, s.fail("hosts", "write inet:host:port or unix:/directory", fmt.Errorf("%s: %w", w, err))
			}
		}
		c, err := pgconn.ParseConfig(text)
		if err != nil {
			// The error may quote what it was given.
			return nil, nil, s.fail("hosts", "write them as pgsql_table(5) says", fmt.Errorf("host %d can't be read", n+1))
		}
		hosts, configs[e] = append(hosts, e), c
	}
	return hosts, configs, nil
}

// pgsqlWords writes the settings as libpq's keywords and values.
func (s *Source) pgsqlWords(host string) (text, network string, err error) {
	network, port := "unix", "5432"
	if !strings.HasPrefix(host, "/") {
		network = "tcp"
		hostport, err := splitPort(host, port)
		if err != nil {
			return "", "", err
		}
		i := strings.LastIndexByte(hostport, ':')
		host, port = strings.Trim(hostport[:i], "[]"), hostport[i+1:]
	}
	quote := func(name, value string) {
		if value != "" {
			text += name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "' "
		}
	}
	dbname := s.Settings["dbname"]
	if strings.Contains(dbname, "=") {
		text, dbname = dbname+" ", "" // libpq takes it for such a list
	}
	quote("host", host)
	quote("port", port)
	quote("user", s.Settings["user"])
	quote("password", s.Settings["password"])
	quote("dbname", dbname)
	return text, network, nil
}
