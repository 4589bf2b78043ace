package lister

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// mysql lists from MySQL or MariaDB.
func (s *Source) mysql(ctx context.Context, m *meter, query string, row func([]string) error) error {
	options, err := s.mysqlOptions()
	if err != nil {
		return err
	}
	var hosts []endpoint
	for _, w := range words(s.set("hosts", orElse(options["host"], "localhost"))) {
		e, err := mysqlHost(w, options)
		if err != nil {
			return s.fail("hosts", "write inet:host:port or unix:/socket", fmt.Errorf("%s: %w", w, err))
		}
		hosts = append(hosts, e)
	}
	var db *sql.DB
	var tx *sql.Tx
	err = s.eachHost(ctx, "hosts", hosts, func(short context.Context, h endpoint) error {
		c, err := s.mysqlConfig(h, options, m)
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
	err = s.sqlRows(ctx, tx, query, row)
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

// mysqlHost reads [unix:]path or [inet:]host[:port]. "localhost" is a socket,
// as for MySQL's own library.
func mysqlHost(w string, options map[string]string) (endpoint, error) {
	if path, ok := strings.CutPrefix(w, "unix:"); ok && !strings.EqualFold(path, "localhost") {
		return endpoint{"unix", path, w}, nil
	}
	name := strings.TrimPrefix(strings.TrimPrefix(w, "inet:"), "unix:")
	host, _, _ := strings.Cut(name, ":")
	if strings.EqualFold(host, "localhost") {
		return endpoint{"unix", mysqlSocket(options["socket"]), w}, nil
	}
	address, err := splitPort(name, orElse(options["port"], "3306"))
	return endpoint{"tcp", address, w}, err
}

// mysqlSocket is where distributions put it.
func mysqlSocket(path string) string {
	usual := []string{"/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"}
	for _, p := range usual {
		if path != "" {
			break
		}
		if _, err := os.Stat(p); err == nil {
			path = p
		}
	}
	return orElse(path, usual[0])
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

type silent struct{}

func (silent) Print(...any) {}

func (s *Source) mysqlConfig(h endpoint, options map[string]string, m *meter) (*mysql.Config, error) {
	c := mysql.NewConfig()
	c.Net, c.Addr = h.network, h.address
	c.User = s.set("user", options["user"])
	c.Passwd = s.set("password", options["password"])
	c.DBName = s.set("dbname", options["database"])
	c.Timeout = connectTimeout
	c.Logger = silent{} // the error says it again
	c.DialFunc = m.dial
	if err := c.Apply(mysql.Charset(s.set("charset", "utf8mb4"), "")); err != nil {
		return nil, err
	}
	return c, s.mysqlTLS(c, h, options)
}

// mysqlTLS demands TLS when a setting speaks of it. An authority that is named
// is checked; the server's name too with tls_verify_cert. With neither, the
// connection is encrypted to whoever answers, as mysql_table(5) has it.
func (s *Source) mysqlTLS(c *mysql.Config, h endpoint, options map[string]string) error {
	t := Source{Name: s.Name, Settings: map[string]string{}}
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
	if c.TLS, err = t.tlsConfig(tlsNames{"tls_CAfile", "tls_CApath", "tls_cert_file", "tls_key_file"}); err != nil {
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
