package postfix

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister"
)

func rewriteText(query, typ string, domains []string) ([]Query, error) {
	s, err := parseStatement(query, typ)
	if err != nil {
		return nil, err
	}
	return s.rewrite(domains)
}

func TestRewrite(t *testing.T) {
	for _, tt := range []struct {
		name, typ, query string
		domains          []string
		want             []string
		err              string
	}{
		{"postfixadmin aliases", "mysql", "SELECT goto FROM alias WHERE address='%s' AND active = '1'", nil,
			[]string{"SELECT goto, address FROM alias WHERE active = '1'"}, ""},
		{"only the key", "mysql", "SELECT goto FROM alias WHERE address = '%s';", nil, []string{"SELECT goto, address FROM alias"}, ""},
		{"two columns", "pgsql", "select m from t where u='%u' and d='%d' and (a or b > 1)", nil,
			[]string{"SELECT m, u, d FROM t WHERE (a or b > 1)"}, ""},
		{"address in pieces", "mysql", "SELECT 1 FROM t WHERE CONCAT(u, '@', d) = '%u@%d'", nil, []string{"SELECT 1, CONCAT(u, '@', d) FROM t"}, ""},
		{"alias domains", "mysql", "SELECT goto FROM alias,alias_domain WHERE alias_domain.alias_domain = '%d' and alias.address = CONCAT('%u', '@', alias_domain.target_domain) AND alias.active = 1", nil,
			nil, "ties tables"},
		{"pipes", "pgsql", "SELECT 1 FROM t WHERE name || '@' || dom = '%s' AND dom = '%d'", nil, []string{"SELECT 1, name || '@' || dom, dom FROM t"}, ""},
		{"union", "mysql", "SELECT a FROM x WHERE k='%s' UNION ALL SELECT b FROM y WHERE z='%s'", nil,
			[]string{"SELECT a, k FROM x", "SELECT b, z FROM y"}, ""},
		{"in parentheses", "mysql", "SELECT a FROM x WHERE (k='%s' AND (b=1)) AND x IN (1, 2)", nil, []string{"SELECT a, k FROM x WHERE (b=1) AND x IN (1, 2)"}, ""},
		{"order and limit", "mysql", "SELECT a FROM x WHERE k='%s' ORDER BY p LIMIT 1", nil, []string{"SELECT a, k FROM x ORDER BY p"}, ""},
		{"sub-select without the key", "sqlite", "SELECT a FROM x WHERE k='%s' AND d IN (SELECT d FROM y WHERE z = 1)", nil,
			[]string{"SELECT a, k FROM x WHERE d IN (SELECT d FROM y WHERE z = 1)"}, ""},
		{"local-part with domains", "mysql", "SELECT a FROM x WHERE k='%u'", []string{"example.org"}, []string{"SELECT a, k FROM x"}, ""},
		{"lower", "pgsql", "SELECT a FROM x WHERE lower(k)=lower('%s')", nil, []string{"SELECT a, lower(k) FROM x"}, ""},
		{"as it was written", "pgsql", "SELECT a FROM x\tWHERE k='%s' AND b::int=E'x' AND c<>d.e", nil, []string{"SELECT a, k FROM x WHERE b::int=E'x' AND c<>d.e"}, ""},
		{"percent", "pgsql", "SELECT a FROM x WHERE k='%s' AND a LIKE '%%x'", nil, []string{"SELECT a, k FROM x WHERE a LIKE '%x'"}, ""},
		{"local-part alone", "mysql", "SELECT a FROM x WHERE k='%u'", nil, nil, "local-part"},
		{"or", "mysql", "SELECT a FROM x WHERE k='%s' OR j='%s'", nil, nil, "equation"},
		{"and before or", "mysql", "SELECT a FROM x WHERE k='%s' AND b=1 OR vip=1", nil, nil, "equation"},
		{"or before and", "sqlite", "SELECT a FROM x WHERE vip=1 OR k='%s' AND b=1", nil, nil, "equation"},
		{"xor", "mysql", "SELECT a FROM x WHERE k='%s' AND b=1 XOR vip=1", nil, nil, "equation"},
		{"xor that stays", "mysql", "SELECT a FROM x WHERE k='%s' AND (b=1 XOR vip=1)", nil, []string{"SELECT a, k FROM x WHERE (b=1 XOR vip=1)"}, ""},
		{"bit_or", "mysql", "SELECT bit_or(a) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"total", "sqlite", "SELECT total(a) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"bool_or", "pgsql", "SELECT bool_or(a) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"any_value", "mysql", "SELECT 1 + any_value(a) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"json_object_agg", "pgsql", "SELECT json_object_agg(a, b) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"a function of one's own", "pgsql", "SELECT mine(a) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"aggregate in order", "mysql", "SELECT a FROM x WHERE k='%s' ORDER BY max(b)", nil, nil, "ORDER"},
		{"join", "pgsql", "SELECT a FROM x JOIN d ON d.n = x.d AND d.name = '%d' WHERE x.l = '%u'", nil, []string{"SELECT a, d.name, x.l FROM x, d WHERE d.n = x.d"}, ""},
		{"left join", "pgsql", "SELECT a FROM x LEFT JOIN d ON d.name = '%d' WHERE x.l = '%s'", nil, nil, "FROM"},
		{"union that looks at values", "mysql", "SELECT a FROM x WHERE k='%s' UNION SELECT b FROM y WHERE z='%s'", nil, nil, "values"},
		{"key selected", "mysql", "SELECT '%s' FROM x WHERE k='%s'", nil, nil, "selected"},
		{"count", "mysql", "SELECT COUNT(*) FROM x WHERE k='%s'", nil, nil, "many rows"},
		{"like", "mysql", "SELECT a FROM x WHERE k LIKE '%s'", nil, nil, "equation"},
		{"not", "mysql", "SELECT a FROM x WHERE NOT k='%s'", nil, nil, "equation"},
		{"not equal", "mysql", "SELECT a FROM x WHERE k!='%s'", nil, nil, "equation"},
		{"group", "mysql", "SELECT a FROM x WHERE k='%s' GROUP BY a", nil, nil, "GROUP"},
		{"nested select", "sqlite", "SELECT p FROM (SELECT p FROM a WHERE s='%s') ORDER BY p LIMIT 1", nil, nil, "the key in FROM"},
		{"digits", "mysql", "SELECT a FROM x WHERE k='%1'", nil, nil, "%1"},
		{"unquoted", "mysql", "SELECT a FROM x WHERE k=%s", nil, nil, "quotes"},
		{"function", "mysql", "SELECT a FROM x WHERE k=MD5('%s')", nil, nil, "inside"},
		{"procedure", "pgsql", "SELECT lookup('%s')", nil, nil, "selected"},
		{"distinct", "mysql", "SELECT DISTINCT a FROM x WHERE k='%s'", nil, []string{"SELECT DISTINCT a, k FROM x"}, ""},
		{"among", "mysql", "SELECT DISTINCT u FROM x WHERE e IN ((SELECT t.a FROM t WHERE t.k='%s' AND t.on=1 UNION SELECT z.b FROM t AS z WHERE '%s'=z.k)) AND p", nil,
			[]string{"SELECT DISTINCT u, among_0.asked FROM x, (SELECT t.a AS found, t.k AS asked FROM t WHERE (t.on=1) UNION SELECT z.b AS found, z.k AS asked FROM t AS z) AS among_0 WHERE e = among_0.found AND p"}, ""},
		{"among, twice the row", "mysql", "SELECT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s')", nil, nil, "equation"},
		{"among, not", "mysql", "SELECT DISTINCT u FROM x WHERE e NOT IN (SELECT t.a FROM t WHERE t.k='%s')", nil, nil, "equation"},
		{"among rows around", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s' AND t.b=x.b)", nil, nil, "around"},
		{"among rows that may be around", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT a FROM t WHERE t.k='%s')", nil, nil, "around"},
		{"among rows of a query in it", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s' AND t.b=(SELECT 1))", nil, nil, "around"},
		{"among all", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s' UNION SELECT t.a FROM t WHERE t.b=1)", nil, nil, "every key"},
		{"among but", "pgsql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s' EXCEPT SELECT t.a FROM t WHERE t.k='%s')", nil, nil, "takes away"},
		{"among keys and domains", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT t.a FROM t WHERE t.k='%s' UNION SELECT t.a FROM t WHERE t.k='@%d')", nil, nil, "several forms"},
		{"among sums", "mysql", "SELECT DISTINCT u FROM x WHERE e IN (SELECT max(t.a) FROM t WHERE t.k='%s')", nil, nil, "one table"},
		{"between", "mysql", "SELECT a FROM x WHERE k='%s' AND n BETWEEN 1 AND 2", nil, []string{"SELECT a, k FROM x WHERE n BETWEEN 1 AND 2"}, ""},
		{"mysql's or", "mysql", "SELECT a FROM x WHERE k='%s' || 1", nil, nil, "equation"},
		{"comment", "mysql", "SELECT a FROM x WHERE k='%s' -- x", nil, nil, "comment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			qs, err := rewriteText(tt.query, tt.typ, tt.domains)
			var got []string
			for _, q := range qs {
				got = append(got, q.SQL)
			}
			if tt.want == nil {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("%q, error %v, want %q", got, err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

// rows answers every query and search with the same rows.
type rows struct {
	rows [][]string
}

func (r rows) Rows(_ context.Context, _ *Database, _ string, f func([]string) error) error {
	for _, row := range r.rows {
		if err := f(row); err != nil {
			return err
		}
	}
	return nil
}

// Session has no rows for what it is asked.
func (r rows) Session(ctx context.Context, db *Database, use func(Session) error) error {
	return use(fakeSession{ctx, db, r})
}

type fakeSession struct {
	ctx context.Context
	db  *Database
	r   rows
}

func (s fakeSession) Rows(q string, f func([]string) error) error { return s.r.Rows(s.ctx, s.db, q, f) }

func (s fakeSession) Columns(string) ([]Column, error) {
	return slices.Repeat([]Column{{Text: true}}, len(s.r.rows[0])), nil
}

func (s fakeSession) Ask(queries []string, answer func(int, [][]string, error) error) error {
	for n := range queries {
		if err := answer(n, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s fakeSession) Quoting() (func(string) string, error) { return strings.ToUpper, nil }

func (s fakeSession) Patience(time.Duration) {}

func (r rows) Directory(context.Context, *Database, func(Directory) error) error {
	return errors.New("there is no directory")
}

func TestEnumerate(t *testing.T) {
	for _, tt := range []struct {
		name     string
		typ      string
		settings map[string]string
		rows     rows
		want     map[string]string
	}{
		{"keys and values", "mysql", map[string]string{"query": "SELECT goto FROM a WHERE k='%s'"},
			rows{rows: [][]string{{"x", "A@b"}, {"", "null@b"}, {"y", "a@B"}, {"z", ""}}}, map[string]string{"a@b": "x,y"}},
		{"what the database leaves is folded", "pgsql", map[string]string{"query": "SELECT goto FROM a WHERE k='%s'"},
			rows{rows: [][]string{{"x", "A@b"}, {"y", "a@b"}}}, map[string]string{"a@b": "x,y"}},
		{"domains", "mysql", map[string]string{"query": "SELECT goto FROM a WHERE k='%s'", "domain": "b, .c, d.c", "result_format": "%u at %d for %S"},
			rows{rows: [][]string{{"x@y", "a@b"}, {"x@y", "a@d.c"}, {"x@y", "a@e.c"}, {"x@y", "a@z"}, {"x@y", "@b"}, {"nodomain", "n@b"}}},
			map[string]string{"a@b": "x at y for a@b", "a@d.c": "x at y for a@d.c"}},
		{"limit", "mysql", map[string]string{"query": "SELECT g FROM a WHERE k='%s' LIMIT 1"}, rows{rows: [][]string{{"1", "a"}, {"2", "a"}}}, map[string]string{"a": "1"}},
		{"whole domain", "mysql", map[string]string{"query": "SELECT g FROM a WHERE k='%d'"}, rows{rows: [][]string{{"1", "b.example"}}}, map[string]string{"@b.example": "1"}},
		{"old form", "mysql", map[string]string{"select_field": "g", "table": "a", "where_field": "k", "additional_conditions": "AND active = 1"},
			rows{rows: [][]string{{"1", "a@b"}}}, map[string]string{"a@b": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db := &Database{Type: tt.typ, Settings: tt.settings}
			if err := db.analyse(); err != nil {
				t.Fatal(err)
			}
			tab, err := db.list(context.Background(), tt.rows)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tab.Entries); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLDAPFilter(t *testing.T) {
	for _, tt := range []struct{ filter, base, want, err string }{
		{"(&(objectClass=x)(mail=%s))", "", "(objectClass=x)(mail=*)", ""},
		{"mail=%s", "", "(mail=*)", ""},
		{"(|(mail=%s)(alias=%u@%d))", "", "(mail=*) (alias=*)", ""},
		{"(|(mail=%s)(&(on=1)(alias=%s)))", "", "(mail=*) (on=1)(alias=*)", ""},
		{"(&(on=1)(!(|(mail=%s)(off=1)))(a=%s))", "", "(on=1)(!(mail=*))(!(off=1))(a=*) (on=1)(mail=*)(!(off=1))(a=*)", ""},
		{"(!(!(mail=%s)))", "", "(mail=*)", ""},
		{"(&(uid=%u)(o=%d))", "", "(uid=*)(o=*)", ""},
		{"(mail=*@%s)", "", "(mail=*)", ""},
		{"(objectClass=x)", "uid=%u,o=%d,o=x", "(objectClass=x)", ""},
		{"(|(mail=%s)(objectClass=x))", "", "(mail=*) (objectClass=x)", ""},
		{"(|)", "", "(!(objectClass=*))", ""},
		{"(!(mail=%s))", "", "", "whatever"},
		{"(&(uid=%u)(o=x))", "", "", "whole key"},
		{"(mail=*%s)", "", "", "whole key"},
		{"(mail=%s*)", "", "", "whole key"},
		{"(mail~=%s)", "", "", "equation"},
		{"(mail;lang-en=%s)", "", "", "equation"},
		{"(%u=x)", "", "", "equation"},
		{"(mail=%x)", "", "", "placeholder"},
		{"(&(a=b)(mail=%s)", "", "", "closed"},
		{"(mail=%s)", "%s", "", "search_base"},
		{strings.Repeat("(!", 200) + "(mail=%s)" + strings.Repeat(")", 200), "", "", "want a filter"},
		{"(&" + strings.Repeat("(|(a=%s)(b=%s))", 20) + ")", "", "", "alternatives"},
	} {
		db := &Database{Type: "ldap", Settings: map[string]string{"query_filter": tt.filter, "search_base": tt.base}}
		err := db.analyse()
		var got []string
		if err == nil {
			err = db.Search.inexact
		}
		if err == nil {
			for _, a := range db.Search.arms {
				got = append(got, a.find)
			}
		}
		if strings.Join(got, " ") != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.filter, got, err, tt.want, tt.err)
		}
	}
}

func TestParseCF(t *testing.T) {
	got, err := parseCF("# secret\nhosts = a b\nquery = SELECT a\n  FROM b WHERE c='%s'\npassword=x=y\n")
	want := map[string]string{"hosts": "a b", "query": "SELECT a  FROM b WHERE c='%s'", "password": "x=y"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := parseCF("hosts\n"); err == nil {
		t.Error("a line without = passes")
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add("SELECT goto FROM alias WHERE address = CONCAT('%u', '@', d) AND x = '%d'", "(&(a=%s)(b=c))")
	f.Fuzz(func(t *testing.T, query, filter string) {
		for _, typ := range []string{"mysql", "pgsql"} {
			qs, err := rewriteText(query, typ, []string{"example.org"})
			if err != nil {
				continue
			}
			for _, q := range qs {
				cols := slices.Repeat([]string{"a@b"}, q.keyColumns+1)
				q.key(cols, true)
			}
		}
		db := &Database{Type: "ldap", Settings: map[string]string{"query_filter": filter}}
		if db.analyse() != nil || db.Search.inexact != nil {
			return
		}
		e := lister.Entry{DN: "o=x", Attributes: []lister.Attribute{{Name: "a", Values: []string{"a@b", "é  X"}}}}
		for _, a := range db.Search.arms {
			for _, it := range slices.Concat(a.must, a.not) {
				it.names, it.rule = []string{"a"}, ruleIgnoreCase
			}
			for _, key := range db.Search.keys(a, e, nil) {
				if l, ok := db.Search.admits(key); ok {
					db.Search.holds(a, l, e, nil)
				}
			}
		}
	})
}
