package postfix

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// mailScript makes the tables that PostfixAdmin and its like keep, with what
// enumerations go wrong with.
const mailScript = `
CREATE TABLE domain (domain varchar(255) PRIMARY KEY, active int);
INSERT INTO domain VALUES ('example.org', 1), ('alias.example', 1), ('old.example', 0), ('Caps.example', 1);
CREATE TABLE alias (address varchar(255), goto text, domain varchar(255), active int, prio int);
INSERT INTO alias VALUES
 ('alice@example.org', 'alice@mail.example', 'example.org', 1, 1),
 ('list@example.org', 'c@d, e@f', 'example.org', 1, 1),
 ('list@example.org', 'second@d', 'example.org', 1, 2),
 ('off@example.org', 'x@y', 'example.org', 0, 1),
 ('null@example.org', NULL, 'example.org', 1, 1),
 ('empty@example.org', '', 'example.org', 1, 1),
 ('null2@example.org', NULL, 'example.org', 1, 1), ('null2@example.org', 'then@value', 'example.org', 1, 2),
 ('Caps@Example.org', 'caps@y', 'example.org', 1, 1),
 ('o''brien@example.org', 'o''b@y', 'example.org', 1, 1),
 ('per%cent@example.org', 'p@y', 'example.org', 1, 1),
 ('a+b@example.org', 'plus@y', 'example.org', 1, 1),
 ('@catch.example', 'all@y', 'catch.example', 1, 1),
 ('two@at@example.org', 'at@y', 'example.org', 1, 1),
 ('nodomain', 'n@y', '', 1, 1),
 ('under_score@example.org', 'u@y', 'example.org', 1, 1);
CREATE TABLE alias_domain (alias_domain varchar(255), target_domain varchar(255), active int);
INSERT INTO alias_domain VALUES ('alias.example', 'example.org', 1), ('off.example', 'example.org', 0), ('Caps.example', 'example.org', 1);
CREATE TABLE mailbox (username varchar(255), local_part varchar(255), domain varchar(255), maildir varchar(255), quota int, active int);
INSERT INTO mailbox VALUES
 ('bob@example.org', 'bob', 'example.org', 'example.org/bob/', 5, 1),
 ('carol@sub.example.org', 'carol', 'sub.example.org', 'sub/carol/', 0, 1),
 ('Dora@example.org', 'Dora', 'example.org', 'dora/', 1, 1),
 ('off@example.org', 'off', 'example.org', 'off/', 1, 0);
`

// mixedScript makes a table whose column minds the case where the database
// usually doesn't, and the other way round.
func mixedScript(column string) string {
	return "CREATE TABLE mixed (address " + column + ", goto varchar(255));\n" +
		"INSERT INTO mixed VALUES ('Caps@Example.org', 'x'), ('bob@example.org', 'y'), ('alice@example.org', 'z'), ('ALICE@example.org', 'zz');\n"
}

// liveQueries are of documented set-ups, or go wrong in a way of their own.
// CAT(a, b, c) stands for the database's way to join strings.
var liveQueries = []struct {
	name string
	cf   string
}{
	{"alias", "query = SELECT goto FROM alias WHERE address='%s' AND active = 1"},
	{"alias in order", "query = SELECT goto FROM alias WHERE address='%s' AND active = 1 ORDER BY prio"},
	{"the last alone", "query = SELECT goto FROM alias WHERE address='%s' AND active = 1 ORDER BY prio DESC LIMIT 1"},
	{"the first alone, may be null", "query = SELECT goto FROM alias WHERE address='%s' ORDER BY prio LIMIT 1"},
	{"alias domain", "query = SELECT goto FROM alias,alias_domain WHERE alias_domain.alias_domain = '%d' and alias.address = CAT('%u', '@', alias_domain.target_domain) AND alias.active = 1 AND alias_domain.active = 1"},
	{"mailbox", "query = SELECT maildir FROM mailbox WHERE username='%s' AND active = 1"},
	{"parts", "query = SELECT 1 FROM mailbox WHERE local_part='%u' AND domain='%d' AND active = 1"},
	{"joined", "query = SELECT maildir FROM mailbox WHERE CAT(local_part, '@', domain) = '%s'"},
	{"template", "query = SELECT maildir FROM mailbox WHERE username = '%u@%d'"},
	{"domain", "query = SELECT domain FROM domain WHERE domain='%s' AND active = 1"},
	{"whole domain", "query = SELECT domain FROM domain WHERE domain='%d' AND active = 1"},
	{"union", "query = SELECT goto FROM alias WHERE address='%s' AND active = 1 UNION SELECT username FROM mailbox WHERE username = '%s'"},
	{"union all", "query = SELECT goto FROM alias WHERE address='%s' UNION ALL SELECT goto FROM alias WHERE address = '%s' AND active = 1"},
	{"lower", "query = SELECT goto FROM alias WHERE lower(address)=lower('%s') AND active = 1"},
	{"lower column", "query = SELECT goto FROM alias WHERE LOWER(address)='%s' AND active = 1"},
	{"two columns", "query = SELECT maildir, quota FROM mailbox WHERE username='%s'"},
	{"or that stays", "query = SELECT goto FROM alias WHERE address='%s' AND (active = 1 OR prio = 1)"},
	{"sub-select", "query = SELECT goto FROM alias WHERE address='%s' AND domain IN (SELECT domain FROM domain WHERE active = 1)"},
	{"join", "query = SELECT a.goto FROM alias a JOIN domain d ON a.domain = d.domain WHERE a.address='%s' AND d.active = 1"},
	{"left join", "query = SELECT d.domain FROM alias a LEFT JOIN domain d ON a.domain = d.domain WHERE a.address='%s'"},
	{"local-part of listed domains", "domain = example.org\nquery = SELECT maildir FROM mailbox WHERE local_part='%u' AND active = 1"},
	{"listed domains", "domain = example.org, catch.example\nquery = SELECT goto FROM alias WHERE address='%s'"},
	{"excluded domain", "domain = !example.org, .org, example.org, sub.example.org\nquery = SELECT maildir FROM mailbox WHERE username='%s'"},
	{"result_format", "result_format = smtp:[%s]\nquery = SELECT maildir FROM mailbox WHERE username='%s'"},
	{"result_format of parts", "result_format = %u at %d for %U/%D\nquery = SELECT goto FROM alias WHERE address='%s'"},
	{"constant", "query = SELECT 'OK' FROM mailbox WHERE username='%s'"},
	{"case", "query = SELECT CASE WHEN active = 1 THEN 'OK' ELSE 'REJECT' END FROM mailbox WHERE username='%s'"},
	{"distinct", "query = SELECT DISTINCT domain FROM alias WHERE address='%s'"},
	{"prefixed", "query = SELECT goto FROM alias WHERE CAT('x-', address) = 'x-%s'"},
	{"other collation", "query = SELECT goto FROM mixed WHERE address='%s' ORDER BY goto"},
	{"other collation, concatenated", "query = SELECT goto FROM mixed WHERE address='%u@%d' ORDER BY goto"},
	{"other collation, lower", "query = SELECT goto FROM mixed WHERE LOWER(address)='%s' ORDER BY goto"},
	{"old form", "table = alias\nselect_field = goto\nwhere_field = address\nadditional_conditions = AND active = 1"},
}

// computedQueries hold the key where nothing but the query itself tells what it
// answers. CAT stands for the way to join strings, as in liveQueries.
var computedQueries = []struct {
	name  string
	only  string // database types, "" for all
	exact bool
	cf    string
}{
	{"key in the select list", "", true, "query = SELECT CAT('%d', '/', '%u', '/') FROM mailbox WHERE username='%s' AND active = 1"},
	{"if exists", "mysql", true, "query = SELECT IF(EXISTS(SELECT 1 FROM mailbox WHERE username='%s' AND active = 1), 'yes', NULL)"},
	{"case in", "", true, "query = SELECT CASE WHEN '%d' IN (SELECT domain FROM domain WHERE active = 1) THEN 'yes' END"},
	{"case when exists", "", true, "query = SELECT CASE WHEN EXISTS (SELECT 1 FROM alias WHERE address = '%s') THEN 'a' WHEN EXISTS (SELECT 1 FROM mailbox WHERE username = '%s') THEN 'm' ELSE '' END"},
	{"limited union", "mysql pgsql", true, "query = (SELECT goto FROM alias WHERE address='%s' ORDER BY prio LIMIT 1) UNION (SELECT username FROM mailbox WHERE username='%s')"},
	{"union all of three", "", true, "query = SELECT goto FROM alias WHERE address='%s' UNION ALL SELECT maildir FROM mailbox WHERE username='%s' UNION ALL SELECT domain FROM domain WHERE domain='%s' AND active=1"},
	{"priorities", "", true, "query = SELECT goto FROM (SELECT goto, 0 AS p FROM alias WHERE address='%s' AND goto <> '' UNION ALL SELECT username AS goto, 1 AS p FROM mailbox WHERE username='%s' UNION ALL SELECT goto, 2 AS p FROM alias WHERE address='@%d') AS x ORDER BY p LIMIT 1"},
	{"join on", "", true, "query = SELECT m.maildir FROM mailbox m JOIN domain d ON d.domain = m.domain AND d.domain = '%d' WHERE m.local_part = '%u'"},
	{"left join on", "", true, "query = SELECT COALESCE(d.domain, 'none') FROM mailbox m LEFT JOIN domain d ON d.domain = '%d' WHERE m.username = '%s'"},
	{"like suffix", "", true, "query = SELECT DISTINCT domain FROM mailbox WHERE username LIKE '%%@%s' AND domain <> ''"},
	{"like concat", "", true, "query = SELECT DISTINCT domain FROM mailbox WHERE username LIKE CAT('%%@', '%d') AND domain <> ''"},
	{"alias domain by coalesce", "", true, "query = SELECT goto FROM alias WHERE address = CAT('%u', '@', COALESCE((SELECT target_domain FROM alias_domain WHERE alias_domain = '%d' AND active = 1), '%d')) AND active = 1"},
	{"no plus", "", true, "query = SELECT goto FROM alias WHERE address = '%s' AND '%u' NOT LIKE '%%+%%'"},
	{"parts not null", "", true, "query = SELECT goto FROM alias WHERE address = '%s' AND '%u' IS NOT NULL AND '%d' <> ''"},
	{"or of two columns", "", true, "query = SELECT maildir FROM mailbox WHERE username = '%s' OR (local_part = '%u' AND domain = '%d')"},
	{"and before or", "", false, "query = SELECT maildir FROM mailbox WHERE username = '%s' AND active = 1 OR quota = 5"},
	{"catch-all beside", "", true, "query = SELECT goto FROM alias WHERE address = '%s' OR address = '@%d'"},
	{"labels", "", false, "query = SELECT 'yes' FROM domain WHERE domain = '%2.%1' AND active = 1"},
	{"capitals", "", true, "query = SELECT goto FROM alias WHERE address = '%S' OR address = '%U@%D'"},
	{"domain and result_format", "", true, "domain = example.org, !sub.example.org\nresult_format = <%s> %u of %D\nquery = SELECT CAT('%u', '@', '%d') FROM mailbox WHERE username = '%s'"},
	{"several hosts", "mysql", true, "@HOSTS@query = SELECT goto FROM alias WHERE address='%s'"},
	{"stored function", "pgsql", false, "query = SELECT mail_for('%s')"},
	{"stored function in mysql", "mysql", false, "query = SELECT mail_for('%s')"},
	{"group by", "", true, "query = SELECT COUNT(*) FROM alias WHERE address = '%s' GROUP BY address"},
	{"maximum", "", true, "query = SELECT MAX(goto) FROM alias WHERE address = '%s'"},
	{"key among equals", "", true, "query = SELECT goto FROM alias WHERE '%s' IN (address, CAT('x-', address))"},
	{"in a list of keys", "", true, "query = SELECT goto FROM alias WHERE address IN ('%s', '@%d')"},
	{"derived", "", true, "query = SELECT x.goto FROM (SELECT goto, address, active FROM alias WHERE prio = 1) AS x JOIN (SELECT domain FROM domain WHERE domain = '%d') AS y ON y.domain = 'example.org' WHERE x.address = '%s'"},
	{"substring", "mysql", true, "query = SELECT domain FROM domain WHERE domain = SUBSTRING_INDEX('%s', '@', -1) AND active = 1"},
	{"nested parentheses", "mysql pgsql", true, "query = ((SELECT goto FROM alias WHERE address='%s') UNION ALL (SELECT username FROM mailbox WHERE username='%s')) LIMIT 1"},
	{"a number", "mysql sqlite", false, "query = SELECT maildir FROM mailbox WHERE quota = '%u' AND domain = '%d'"},
}

// liveKeys are looked up in each table.
var liveKeys = []string{
	"alice@example.org", "ALICE@Example.ORG", "list@example.org", "off@example.org", "null@example.org", "null2@example.org", "empty@example.org",
	"caps@example.org", "Caps@Example.org", "o'brien@example.org", "per%cent@example.org", "a+b@example.org", "a@example.org",
	"@catch.example", "x@catch.example", "catch.example", "two@at@example.org", "nodomain", "under_score@example.org", "underxscore@example.org",
	"example.org", "old.example", "Caps.example", "caps.example", "alias.example", "@example.org", "@alias.example",
	"alice@alias.example", "list@alias.example", "off@alias.example", "caps@alias.example", "bob@alias.example", "alice@off.example", "alice@caps.example",
	"bob@example.org", "Bob@example.org", "bob@sub.example.org", "carol@sub.example.org", "carol@example.org", "dora@example.org", "Dora@Example.org",
	"bob", "alice", "bob@", "dora(x)*@example.org", "second@example.org", "a1@example.org", "erin@example.org", "nobody@example.org", "nobody@nowhere.example", "%s", "%", "*", "'", "a\\b@example.org",
}

func testLiveSQL(t *testing.T, typ, connection string, cat func(string) string) {
	t.Helper()
	for _, q := range liveQueries {
		t.Run(typ+"/"+q.name, func(t *testing.T) {
			table := compareLive(t, typ, connection+cat(q.cf)+"\n")
			if !table.How.Exact || table.Partial != "" {
				t.Errorf("listed as %+v, partial %q; want an exact listing", table.How, table.Partial)
			}
		})
	}
	for _, q := range computedQueries {
		if q.only != "" && !strings.Contains(q.only, typ) {
			continue
		}
		t.Run(typ+"/"+q.name, func(t *testing.T) {
			cf := connection + cat(q.cf) + "\n"
			if before, after, ok := strings.Cut(cf, "@HOSTS@"); ok {
				cf = strings.Replace(before, "hosts = ", "hosts = inet:127.0.0.1:1 ", 1) + after
			}
			table := compareLive(t, typ, cf)
			if exact := table.How.Exact && table.Partial == ""; exact != q.exact {
				t.Errorf("listed as %+v, partial %q; want exact %v", table.How, table.Partial, q.exact)
			}
		})
	}
	for name, query := range map[string]string{
		"rows":          "SELECT goto FROM alias WHERE address = '%s'",
		"rows, asked":   "SELECT CAT('x-', goto) FROM alias WHERE address = '%s' AND '%u' <> ''",
		"rows and arms": "SELECT goto FROM alias WHERE address = '%s' UNION ALL SELECT maildir FROM mailbox WHERE username = '%s'",
		"columns":       "SELECT goto, NULLIF(goto, 'alice@mail.example') FROM alias WHERE address = '%s'",
	} {
		t.Run(typ+"/expansion_limit, "+name, func(t *testing.T) {
			compareLimit(t, typ, connection+"expansion_limit = 1\nquery = "+cat(query)+"\n")
		})
	}
	t.Run(typ+"/the operator's query", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "table.cf")
		if err := os.WriteFile(path, []byte(connection+"query = SELECT goto FROM alias WHERE REPLACE(address, '-', '-') = REPLACE('%s', '-', '-')\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		name := typ + ":" + path
		list := func(queries map[string]string) (*Table, []error, error) {
			i := &importer{ctx: t.Context(), src: &Source{Lister: Databases{}, Queries: queries}, files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}}
			table, reason := i.table("virtual_alias_maps", name)
			return table, i.errs, reason
		}
		if table, errs, reason := list(nil); reason != nil || errs != nil || table.Partial == "" || table.Entries["alice@example.org"] == "" {
			t.Fatalf("its own query: %v, %v, %v; want what candidates tell", table, errs, reason)
		}
		table, errs, reason := list(map[string]string{name: "SELECT address, goto FROM alias WHERE prio = 1"})
		if reason != nil || errs != nil {
			t.Fatal(reason, errs)
		}
		for key, want := range map[string]string{"alice@example.org": "alice@mail.example", "caps@example.org": "caps@y", "null@example.org": "", "@catch.example": "all@y"} {
			if got, ok := table.find(key); !ok || got != want {
				t.Errorf("%s: %q %v, want %q", key, got, ok, want)
			}
		}
		if _, ok := table.find("bob@example.org"); ok || len(table.Entries) != 14 {
			t.Errorf("%d entries, want 14: %v", len(table.Entries), table.Entries)
		}
		if table, _, _ := list(map[string]string{name: "SELECT address FROM alias"}); table == nil || len(table.Entries) != 14 {
			t.Errorf("keys alone: %v", table)
		}
		for query, want := range map[string]string{
			"": "query", "SELECT address, goto, prio FROM alias": "selects 3 columns", "SELECT a FROM nowhere": "nowhere", "DELETE FROM alias": "query",
		} {
			if table, errs, reason := list(map[string]string{name: query}); table != nil || reason != nil || len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
				t.Errorf("%q: table %v, %v, %v, want an error about %q", query, table, reason, errs, want)
			}
		}
	})
}

// pipes writes CAT(a, b, c) as (a || b || c).
func pipes(cf string) string {
	before, rest, ok := strings.Cut(cf, "CAT(")
	if !ok {
		return cf
	}
	depth := 0
	var args strings.Builder
	for n := range len(rest) {
		switch c := rest[n]; {
		case c == ')' && depth == 0:
			return before + "(" + args.String() + ")" + pipes(rest[n+1:])
		case c == ',' && depth == 0:
			args.WriteString(" ||")
			continue
		case c == '(':
			depth++
		case c == ')':
			depth--
		}
		args.WriteByte(rest[n])
	}
	return cf
}

func TestLiveMySQL(t *testing.T) {
	db := listertest.MariaDB(t, mailScript+mixedScript("varchar(255) COLLATE utf8mb4_bin")+
		"SET GLOBAL log_bin_trust_function_creators = 1; CREATE FUNCTION mail_for(k varchar(255)) RETURNS text READS SQL DATA RETURN (SELECT goto FROM alias WHERE address = k LIMIT 1); GRANT EXECUTE ON mail.* TO reader@'%';")
	testLiveSQL(t, "mysql", fmt.Sprintf("hosts = unix:%s\nuser = reader\npassword = %s\ndbname = mail\n", db.Socket, listertest.Password),
		func(s string) string { return strings.ReplaceAll(s, "CAT(", "CONCAT(") })
}

// TestLiveCollation: what MySQL takes for the same, the primary does. An
// address without accents finds a row that has some, and a space at the end
// doesn't count; the other way round the secondary can only defer.
func TestLiveCollation(t *testing.T) {
	db := listertest.MariaDB(t, `CREATE TABLE u (address varchar(255), l varchar(80), d varchar(80)) COLLATE utf8mb4_general_ci;
CREATE TABLE n (address varchar(255), l varchar(80), d varchar(80)) COLLATE utf8mb4_unicode_ci;
CREATE TABLE b (address varchar(255), l varchar(80), d varchar(80)) COLLATE utf8mb4_bin;
INSERT INTO u VALUES ('andré@example.org', 'andré', 'example.org'), ('straße@example.org', 'straße', 'example.org'), ('BOB@example.org  ', 'BOB ', 'example.org'),
 ('øre@example.org', 'øre', 'example.org'), ('plain@example.org', 'plain', 'example.org'), ('łukasz@exämple.org', 'łukasz', 'exämple.org'), ('Ægir@example.org', 'Ægir', 'example.org');
INSERT INTO n SELECT * FROM u; INSERT INTO b SELECT * FROM u;`)
	cf := fmt.Sprintf("hosts = unix:%s\nuser = reader\npassword = %s\ndbname = mail\ncharset = utf8mb4\n", db.Socket, listertest.Password)
	keys := []string{
		"andre@example.org", "andré@example.org", "ANDRÉ@example.org", "straße@example.org", "strasse@example.org", "strase@example.org", "bob@example.org", "plain@example.org",
		"pläin@example.org", "bób@example.org", "ore@example.org", "øre@example.org", "lukasz@example.org", "lukasz@exämple.org", "łukasz@exämple.org", "aegir@example.org",
		"agir@example.org", "ægir@example.org", "nobody@example.org", "andr@example.org", "plain@exämple.org",
	}
	for _, table := range []string{"u", "n", "b"} {
		for _, where := range []string{"address = '%s'", "l = '%u' AND d = '%d'", "address = '%s' OR l = '%u' AND d = '%d'"} {
			t.Run(table+" "+where, func(t *testing.T) {
				d, listed := openTable(t, "mysql", cf+"query = SELECT l FROM "+table+" WHERE "+where+"\n")
				if !listed.How.Exact || listed.Partial != "" {
					t.Errorf("%+v, %s", listed.How, listed.Partial)
				}
				if found := compareKeys(t, d.Table, listed, keys); found < 2 {
					t.Errorf("Postfix finds %d", found)
				}
			})
		}
	}
}

func TestLivePostgreSQL(t *testing.T) {
	db := listertest.PostgreSQL(t, mailScript+"CREATE EXTENSION citext;"+mixedScript("citext")+
		"CREATE FUNCTION mail_for(text) RETURNS text LANGUAGE sql STABLE AS 'SELECT goto FROM alias WHERE address = $1 LIMIT 1';")
	testLiveSQL(t, "pgsql", fmt.Sprintf("hosts = %s\nuser = reader\npassword = %s\ndbname = mail\n", db.Address(), listertest.Password), pipes)
}

func TestLiveSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.db")
	cmd := exec.CommandContext(context.Background(), "sqlite3", path)
	cmd.Stdin = strings.NewReader(mailScript + mixedScript("text COLLATE NOCASE"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
	}
	testLiveSQL(t, "sqlite", "dbpath = "+path+"\n", pipes)
}
