package lister

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// mysql opens a transaction of MySQL or MariaDB.
func (s *Source) mysql(ctx context.Context, m *meter, use func(*Session) error) error {
	options, err := s.mysqlOptions(ctx)
	if err != nil {
		return err
	}
	var hosts []endpoint
	for _, w := range words(s.set("hosts", cmp.Or(options["host"], "localhost"))) {
		e, err := s.mysqlHost(ctx, w, options)
		if err != nil {
			return s.fail("hosts", "write inet:host:port or unix:/socket", fmt.Errorf("%s: %w", w, err))
		}
		hosts = append(hosts, e)
	}
	var db *sql.DB
	var tx *sql.Tx
	err = s.eachHost(ctx, "hosts", hosts, func(short context.Context, h endpoint) error {
		c, err := s.mysqlConfig(ctx, h, options, m)
		if err != nil {
			return err
		}
		connector, err := mysql.NewConnector(c)
		if err != nil {
			return err
		}
		db = sql.OpenDB(connector)
		if err = db.PingContext(short); err == nil {
			tx, err = db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		}
		if err != nil {
			db.Close()
		}
		return err
	})
	if err != nil {
		return err
	}
	defer db.Close()
	defer tx.Rollback()
	return s.mysqlError(use(&Session{source: s, ctx: ctx, meter: m, database: mysqlSession{s, tx}}))
}

func (s *Source) mysqlError(err error) error {
	var my *mysql.MySQLError
	switch {
	case errors.As(err, &my):
		setting, remedy := mysqlFailure(my.Number)
		return s.fail(setting, remedy, err)
	case errors.Is(err, mysql.ErrInvalidConn):
		return s.fail("hosts", "see the server's log", err)
	}
	return err
}

// mysqlSession is a transaction of MySQL. Questions go over several at a time.
type mysqlSession struct {
	s  *Source
	tx *sql.Tx
}

func (q mysqlSession) rows(ctx context.Context, query string, row func([]string) error) error {
	return q.s.sqlRows(ctx, q.tx, query, row)
}

func (q mysqlSession) columns(ctx context.Context, query string) ([]Column, error) {
	return sqlColumns(ctx, q.tx, query, func(typ string) bool {
		return strings.Contains(typ, "CHAR") || strings.Contains(typ, "TEXT") || strings.Contains(typ, "BINARY") || strings.Contains(typ, "BLOB") || typ == "ENUM" || typ == "SET"
	}, func(typ string) bool { return strings.Contains(typ, "BINARY") || strings.Contains(typ, "BLOB") })
}

func (q mysqlSession) quoting(ctx context.Context) (func(string) string, error) {
	plain := false
	err := q.rows(ctx, "SELECT @@sql_mode", func(c []string) error {
		plain = strings.Contains(c[0], "NO_BACKSLASH_ESCAPES")
		return nil
	})
	if plain {
		return doubled("'", `"`), err
	}
	return strings.NewReplacer(`\`, `\\`, "'", `\'`, `"`, `\"`, "\x00", `\0`, "\n", `\n`, "\r", `\r`, "\x1a", `\Z`).Replace, err
}

func (q mysqlSession) patience(ctx context.Context, d time.Duration) {
	// MariaDB's name and MySQL's.
	if _, err := q.tx.ExecContext(ctx, fmt.Sprintf("SET SESSION max_statement_time = %d", int(d.Seconds()))); err != nil {
		q.tx.ExecContext(ctx, fmt.Sprintf("SET SESSION max_execution_time = %d", d.Milliseconds()))
	}
}

func (q mysqlSession) many(ctx context.Context, queries []string, answer func(n int, rows [][]string) error) (int, error) {
	rows, err := q.tx.QueryContext(ctx, strings.Join(queries, "; "))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for n := range queries {
		all, err := collect(rows)
		if err == nil {
			err = answer(n, all)
		}
		if err != nil {
			return n, err
		}
		if n < len(queries)-1 && !rows.NextResultSet() {
			if err = rows.Err(); err == nil {
				err = errors.New("fewer answers than questions")
			}
			return n + 1, err
		}
	}
	// A statement that yields more than one answer would shift the rest.
	if rows.NextResultSet() {
		return 0, errors.New("more answers than questions")
	}
	return len(queries), rows.Err()
}

// mysqlHost reads [unix:]path or [inet:]host[:port]. "localhost" is a socket,
// as for MySQL's own library.
func (s *Source) mysqlHost(ctx context.Context, w string, options map[string]string) (endpoint, error) {
	if path, ok := strings.CutPrefix(w, "unix:"); ok && !strings.EqualFold(path, "localhost") {
		return endpoint{"unix", path, w}, nil
	}
	name := strings.TrimPrefix(strings.TrimPrefix(w, "inet:"), "unix:")
	host, _, _ := strings.Cut(name, ":")
	if strings.EqualFold(host, "localhost") {
		return endpoint{"unix", s.mysqlSocket(ctx, options["socket"]), w}, nil
	}
	address, err := splitPort(name, cmp.Or(options["port"], "3306"))
	return endpoint{"tcp", address, w}, err
}

// mysqlSocket is where distributions put it.
func (s *Source) mysqlSocket(ctx context.Context, path string) string {
	if path != "" {
		return path
	}
	usual := []string{"/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"}
	there, _ := s.Host.Stamps(ctx, usual)
	for _, p := range usual {
		if there[p] != "" {
			return p
		}
	}
	return usual[0]
}

type silent struct{}

func (silent) Print(...any) {}

func (s *Source) mysqlConfig(ctx context.Context, h endpoint, options map[string]string, m *meter) (*mysql.Config, error) {
	c := mysql.NewConfig()
	c.Net, c.Addr = h.network, h.address
	c.User = s.set("user", options["user"])
	c.Passwd = s.set("password", options["password"])
	c.DBName = s.set("dbname", options["database"])
	c.Timeout = connectTimeout
	c.Logger = silent{} // the error says it again
	c.MultiStatements = s.multi
	c.DialFunc = m.dial
	if err := c.Apply(mysql.Charset(s.set("charset", "utf8mb4"), "")); err != nil {
		return nil, err
	}
	return c, s.mysqlTLS(ctx, c, h, options)
}

// mysqlTLS demands TLS when a setting speaks of it. An authority that is named
// is checked; the server's name too with tls_verify_cert. With neither, the
// connection is encrypted to whoever answers, as mysql_table(5) has it.
func (s *Source) mysqlTLS(ctx context.Context, c *mysql.Config, h endpoint, options map[string]string) error {
	t := Source{Name: s.Name, Host: s.Host, Settings: map[string]string{}}
	for name, option := range map[string]string{
		"tls_CAfile": "ssl_ca", "tls_CApath": "ssl_capath", "tls_cert_file": "ssl_cert", "tls_key_file": "ssl_key",
		"tls_verify_cert": "ssl_verify_server_cert", "tls_ciphers": "ssl_cipher",
	} {
		if v := s.set(name, options[option]); v != "" {
			t.Settings[name] = v
		}
	}
	if len(t.Settings) == 0 || h.network == "unix" {
		return nil
	}
	verify, err := t.yes("tls_verify_cert")
	if err != nil {
		return err
	}
	if c.TLS, err = t.tlsConfig(ctx, tlsNames{"tls_CAfile", "tls_CApath", "tls_cert_file", "tls_key_file"}); err != nil {
		return err
	}
	switch {
	case verify: // the driver fills in the host's name
	case c.TLS.RootCAs != nil:
		chainOnly(c.TLS)
	default:
		c.TLS.InsecureSkipVerify = true
	}
	return nil
}

// sqlRows runs a query. Values are what the database's text of them is.
func (s *Source) sqlRows(ctx context.Context, tx *sql.Tx, query string, row func([]string) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return s.fail("query", fixQuery, errors.New("isn't a SELECT"))
	}
	raw := make([]sql.RawBytes, len(names))
	into := make([]any, len(names))
	for i := range raw {
		into[i] = &raw[i]
	}
	columns := make([]string, len(names))
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, v := range raw {
			columns[i] = string(v)
		}
		if err := row(columns); err != nil {
			return err
		}
	}
	return rows.Err()
}
