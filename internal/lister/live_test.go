package lister_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// sqlScript makes the same table for every SQL database. The values are what
// their text form can go wrong with.
const sqlScript = `CREATE TABLE alias (address varchar(255) PRIMARY KEY, goto varchar(255), active int, n int);
INSERT INTO alias VALUES ('alice@example.org', 'a', 1, 7), ('bob@example.org', NULL, 1, 8), ('o''brien@example.org', 'ü', 1, 9),
 ('gone@example.org', 'g', 0, 10), ('', 'nobody', 1, 11);`

const aliasQuery = "SELECT address, goto FROM alias WHERE active = 1"

var aliases = map[string]string{"alice@example.org": "a", "bob@example.org": "", "o'brien@example.org": "ü"}

func list(t *testing.T, s *lister.Source) (map[string]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := map[string]string{}
	err := s.List(ctx, func(key, value string) error {
		got[key] = value
		return nil
	})
	return got, err
}

// source makes one with settings that are changed a pair at a time.
func source(typ string, base map[string]string, change ...string) *lister.Source {
	s := &lister.Source{Type: typ, Name: "the " + typ + " source", Settings: maps.Clone(base), Query: aliasQuery}
	for i := 0; i+1 < len(change); i += 2 {
		switch change[i] {
		case "query":
			s.Query = change[i+1]
		case "query_filter":
			s.Search.Filter = change[i+1]
		case "search_base":
			s.Search.Base = change[i+1]
		case "max_rows":
			s.Limits.Rows = len(change[i+1])
		case "max_bytes":
			s.Limits.Bytes = int64(len(change[i+1]))
		case "timeout":
			s.Limits.Time, _ = time.ParseDuration(change[i+1])
		default:
			s.Settings[change[i]] = change[i+1]
		}
	}
	return s
}

type good struct {
	name   string
	change []string
}

type bad struct {
	name    string
	change  []string
	setting string
	is      error
}

func testSource(t *testing.T, typ string, base map[string]string, prepare func(*lister.Source), want map[string]string, goods []good, bads []bad) {
	t.Helper()
	for _, tt := range goods {
		t.Run(tt.name, func(t *testing.T) {
			s := source(typ, base, tt.change...)
			prepare(s)
			for i := 0; i+1 < len(tt.change); i += 2 {
				if strings.HasPrefix(tt.change[i], "query_f") || tt.change[i] == "search_base" {
					s = source(typ, base, tt.change...)
				}
			}
			got, err := list(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, tt := range bads {
		t.Run(tt.name, func(t *testing.T) {
			s := source(typ, base)
			prepare(s)
			changed := source(typ, base, tt.change...)
			s.Settings, s.Limits, s.Query = changed.Settings, changed.Limits, changed.Query
			if changed.Search.Filter != "" {
				s.Search.Filter = changed.Search.Filter
			}
			if changed.Search.Base != "" {
				s.Search.Base = changed.Search.Base
			}
			_, err := list(t, s)
			checkError(t, err, s.Name, tt.setting, tt.is)
		})
	}
}

// checkError wants an error that names source, setting and remedy, and no
// password.
func checkError(t *testing.T, err error, source, setting string, is error) {
	t.Helper()
	var e *lister.Error
	if !errors.As(err, &e) {
		t.Fatalf("want a lister.Error, got %v", err)
	}
	t.Log(err)
	if e.Source != source || e.Setting != setting || e.Remedy == "" {
		t.Errorf("source %q, setting %q, remedy %q; want %q, %q", e.Source, e.Setting, e.Remedy, source, setting)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("isn't %v", is)
	}
	for _, secret := range []string{listertest.Password, "wr0ng"} {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
			t.Error("tells the password")
		}
	}
}

func none(*lister.Source) {}

func TestPostgreSQL(t *testing.T) {
	db := listertest.PostgreSQL(t, sqlScript)
	base := map[string]string{"hosts": db.Address(), "user": "reader", "password": listertest.Password, "dbname": "mail"}
	secret := strings.NewReplacer("%", "%25", "'", "%27", " ", "%20", `\`, "%5C", `"`, "%22", "=", "%3D").Replace(listertest.Password)
	socket := strings.ReplaceAll(db.Dir, "/", "%2F")
	testSource(t, "pgsql", base, none, aliases, []good{
		{"host and port", nil},
		{"inet", []string{"hosts", "inet:" + db.Address()}},
		{"socket", []string{"hosts", "unix:" + db.Dir}},
		{"socket without a prefix", []string{"hosts", db.Dir}},
		{"URI", []string{"hosts", fmt.Sprintf("postgresql://reader:%s@127.0.0.1:%d/mail", secret, db.Port)}},
		{"URI with TLS", []string{"hosts", fmt.Sprintf("postgresql://reader:%s@127.0.0.1:%d/mail?sslmode=verify-full&sslrootcert=%s", secret, db.Port, db.CA)}},
		{"URI of a socket", []string{"hosts", fmt.Sprintf("postgresql://reader:%s@%s:%d/mail", secret, socket, db.Port)}},
		{"the second of two hosts", []string{"hosts", "unix:/nonexistent, inet:127.0.0.1:1 " + db.Address()}},
		{"dbname with parameters", []string{"dbname", "dbname=mail sslmode=require"}},
		{"boolean as Postfix sees it", []string{"query", "SELECT address, goto FROM alias WHERE (active = 1)::text = 'true'"}},
		{"union", []string{"query", aliasQuery + " UNION SELECT address, goto FROM alias WHERE n < 8"}},
	}, []bad{
		{"nobody listens", []string{"hosts", "127.0.0.1:1"}, "hosts", nil},
		{"no socket", []string{"hosts", "unix:/nonexistent"}, "hosts", nil},
		{"no port", []string{"hosts", "localhost:none-such"}, "hosts", nil},
		{"broken URI", []string{"hosts", "postgresql://reader:wr0ng@[::1/mail"}, "hosts", nil},
		{"wrong password", []string{"password", "wr0ng"}, "user and password", nil},
		{"wrong password in a URI", []string{"hosts", "postgresql://reader:wr0ng@" + db.Address() + "/mail"}, "user and password", nil},
		{"wrong database", []string{"dbname", "wrong"}, "dbname", nil},
		{"wrong authority", []string{"hosts", fmt.Sprintf("postgresql://reader@localhost:%d/mail?sslmode=verify-full&sslrootcert=system", db.Port)}, "the settings tls_*", nil},
		{"no query", []string{"query", ""}, "query", nil},
		{"wrong query", []string{"query", "SELECT adress FROM alias"}, "query", nil},
		{"three columns", []string{"query", "SELECT address, goto, n FROM alias"}, "query", nil},
		{"no SELECT", []string{"query", "SET search_path = x"}, "query", nil},
		{"two statements", []string{"query", "SELECT 1; SELECT 2"}, "query", nil},
		{"a write", []string{"query", "SELECT address FROM alias FOR UPDATE"}, "query", nil},
		{"no right to read", []string{"query", "SELECT rolpassword FROM pg_authid"}, "query", nil},
		{"too many rows", []string{"max_rows", "12"}, "max_rows", lister.ErrRows},
		{"too many octets", []string{"max_bytes", strings.Repeat("x", 4000), "query", "SELECT repeat('x', 10000)"}, "max_bytes", lister.ErrBytes},
		{"too slow", []string{"timeout", "300ms", "query", "SELECT pg_sleep(60)"}, "timeout", lister.ErrTime},
	})
	rows(t, source("pgsql", base), "SELECT true, 1.50::numeric, NULL::int, '{a,b}'::text[]", "t", "1.50", "", "{a,b}")
	canceled(t, source("pgsql", base, "query", "SELECT pg_sleep(60)"))
}

func TestMariaDB(t *testing.T) {
	db := listertest.MariaDB(t, sqlScript+"GRANT INSERT ON mail.* TO reader@'%';")
	base := map[string]string{"hosts": db.Address(), "user": "reader", "password": listertest.Password, "dbname": "mail"}
	quoted := strings.NewReplacer("#", `\#`).Replace(listertest.Password)
	cnf := filepath.Join(t.TempDir(), "my.cnf")
	text := fmt.Sprintf("[client]\nsocket = /nonexistent\n[mail]\nsocket=%s\nuser=reader\npassword=%s\n[other]\nsocket=/nonexistent\n", db.Socket, quoted)
	if err := os.WriteFile(cnf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	testSource(t, "mysql", base, none, aliases, []good{
		{"host and port", nil},
		{"inet", []string{"hosts", "inet:" + db.Address()}},
		{"socket", []string{"hosts", "unix:" + db.Socket}},
		{"the second of two hosts", []string{"hosts", "127.0.0.1:1 unix:/nonexistent," + db.Address()}},
		{"option file", []string{"hosts", "localhost", "option_file", cnf, "option_group", "mail", "user", "", "password", ""}},
		{"TLS", []string{"tls_CAfile", db.CA, "tls_verify_cert", "yes"}},
		{"TLS with any name", []string{"tls_CAfile", db.CA, "hosts", fmt.Sprintf("localhost.localdomain:%d 127.0.0.1:%d", db.Port, db.Port)}},
		{"TLS with any certificate", []string{"tls_verify_cert", "no"}},
		{"charset", []string{"charset", "utf8"}},
		{"union", []string{"query", aliasQuery + " UNION SELECT address, goto FROM alias WHERE n < 8"}},
	}, []bad{
		{"nobody listens", []string{"hosts", "127.0.0.1:1"}, "hosts", nil},
		{"no socket", []string{"hosts", "unix:/nonexistent"}, "hosts", nil},
		{"no port", []string{"hosts", "127.0.0.1:none-such"}, "hosts", nil},
		{"no option file", []string{"option_file", "/nonexistent"}, "option_file", nil},
		{"wrong password", []string{"password", "wr0ng"}, "user and password", nil},
		{"wrong database", []string{"dbname", "wrong"}, "dbname", nil},
		{"wrong authority", []string{"tls_verify_cert", "yes"}, "the settings tls_*", nil},
		{"no authority", []string{"tls_CAfile", "/nonexistent"}, "tls_CAfile", nil},
		{"neither yes nor no", []string{"tls_verify_cert", "maybe"}, "tls_verify_cert", nil},
		{"no query", []string{"query", " "}, "query", nil},
		{"wrong query", []string{"query", "SELECT adress FROM alias"}, "query", nil},
		{"three columns", []string{"query", "SELECT address, goto, n FROM alias"}, "query", nil},
		{"no SELECT", []string{"query", "SET @x = 1"}, "query", nil},
		{"two statements", []string{"query", "SELECT 1; SELECT 2"}, "query", nil},
		{"a write", []string{"query", "INSERT INTO alias VALUES ('x', 'x', 1, 1)"}, "query", nil},
		{"no right to read", []string{"query", "SELECT user FROM mysql.user"}, "query", nil},
		{"too many rows", []string{"max_rows", "12"}, "max_rows", lister.ErrRows},
		{"too many octets", []string{"max_bytes", strings.Repeat("x", 4000), "query", "SELECT repeat('x', 10000)"}, "max_bytes", lister.ErrBytes},
		{"too slow", []string{"timeout", "300ms", "query", "SELECT sleep(60)"}, "timeout", lister.ErrTime},
	})
	rows(t, source("mysql", base), "SELECT true, CAST(1.50 AS DECIMAL(5,2)), NULL, 'ü'", "1", "1.50", "", "ü")
	canceled(t, source("mysql", base, "query", "SELECT sleep(60)"))
}

// rows compares the columns of a query's one row.
func rows(t *testing.T, s *lister.Source, query string, want ...string) {
	t.Helper()
	var got []string
	err := s.Rows(t.Context(), query, func(columns []string) error {
		got = slices.Clone(columns)
		return nil
	})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%s: %v\n%s", query, err, diff)
	}
	mine := errors.New("mine")
	if err := s.Rows(t.Context(), query, func([]string) error { return mine }); err != mine {
		t.Errorf("the caller's error came back as %v", err)
	}
}

// canceled wants a listing to end with its context.
func canceled(t *testing.T, s *lister.Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(100*time.Millisecond, cancel)
	defer timer.Stop()
	start := time.Now()
	err := s.List(ctx, func(_, _ string) error { return nil })
	if !errors.Is(err, context.Canceled) || time.Since(start) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}
