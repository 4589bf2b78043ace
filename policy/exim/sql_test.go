package exim

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

const queriesData = `CREATE TABLE domains (domain_id INTEGER, domain VARCHAR(60), enabled INTEGER);
INSERT INTO domains VALUES (1, 'example.org', 1), (2, 'example.net', 1), (3, 'off.example', 0);
CREATE TABLE users (domain_id INTEGER, localpart VARCHAR(60), smtp VARCHAR(60), uid INTEGER, forward VARCHAR(60));
INSERT INTO users VALUES (1, 'alice', '/home/al ice', 5, NULL), (1, 'bob', '', 6, 'alice@example.org'), (2, 'alice', 'a"b', 7, NULL), (2, '*', '/all', 8, NULL),
 (1, 'twice', 'one', 9, 'x'), (1, 'twice', 'two', 10, NULL), (1, 'o''brien', '/o', 11, 'y'), (1, 'Capital', '/c', 12, 'z');
CREATE TABLE aliasdomains (alias VARCHAR(60), domain_id INTEGER);
INSERT INTO aliasdomains VALUES ('alias.example', 1);
CREATE TABLE alias (address VARCHAR(60), goto VARCHAR(60));
INSERT INTO alias VALUES ('info@example.org', 'alice@example.org'), ('@example.net', 'bob@example.org');
`

// queryTexts are shapes of published configurations; @ is the type of the database.
var queryTexts = []string{
	"${lookup @{select count(*) from users,domains where localpart = '${quote_@:$local_part}' and domain = '${quote_@:$domain}' and users.domain_id=domains.domain_id}}",
	"${lookup @{select smtp, uid*10 AS tag, forward as f, users.uid from users,domains where localpart = '${quote_@:$local_part}' and domain = '${quote_@:$domain}' and enabled = 1 and users.domain_id = domains.domain_id}{$value}{none}}",
	"${extract{tag}{${lookup @{select smtp, uid*10 AS tag from users where localpart = '${quote_@:$local_part}' and domain_id = 1}{$value}{none}}}{$value}{no tag}}",
	"${lookup @{select forward from users where localpart='${quote_@:$local_part}'}{yes <$value>}{no}}",
	"${lookup @{select smtp from users where localpart='${quote_@:$local_part}' order by uid desc limit 1}{$value}{no}}",
	"${lookup @{select users.smtp from users inner join domains on users.domain_id = domains.domain_id where users.localpart='$local_part' and domains.domain='$domain' and users.uid <> 10}{$value}{no}}",
	"${lookup @{SELECT goto FROM alias WHERE address='${quote_@:$local_part@$domain}' OR address='${quote_@:@$domain}'}{$value}{no}}",
	"${lookup @{SELECT goto FROM alias WHERE address IN ('${quote_@:$local_part}@${quote_@:$domain}','@${quote_@:$domain}')}{$value}{no}}",
	"${lookup @{SELECT goto FROM alias WHERE address=lower('${quote_@:$local_part}@${quote_@:$domain}') UNION SELECT smtp FROM users WHERE localpart = '${quote_@:$local_part}'}{$value}{no}}",
	"${lookup @{SELECT domain FROM domains WHERE enabled = 1 ORDER BY domain}{${sg{$value}{\\n}{:}}}{no}}",
	"${lookup @{SELECT goto FROM alias WHERE '${quote_@:$local_part}@${quote_@:$domain}' = address LIMIT 1;}{$value}{no}}",
	"${lookup @{SELECT DISTINCT domain FROM domains WHERE domain = '${quote_@:${lc:$domain}}' AND enabled = '1'}{$value}{no}}",
	"${lookup @{SELECT smtp FROM users WHERE (localpart='${quote_@:$local_part}' AND domain_id=3) OR (localpart='*' AND domain_id=2)}{$value}{no}}",
	"${lookup @{SELECT count(uid) FROM users WHERE localpart='${quote_@:$local_part}' AND forward IS NOT NULL}{$value}{no}}",
	"${lookup @{SELECT domain_id, localpart FROM users WHERE localpart='${quote_@:$local_part}' AND domain_id IN (SELECT domain_id FROM domains WHERE enabled=1)}{$value}{no}}",
}

// fillTexts have the key in what is selected, which databases spell differently.
var fillTexts = map[string]string{
	"mysql":  "${lookup mysql{select concat('${quote_mysql:$local_part}@', domain) from domains,aliasdomains where aliasdomains.alias = '${quote_mysql:$domain}' and aliasdomains.domain_id = domains.domain_id}{$value}{no}}",
	"pgsql":  "${lookup pgsql{select '${quote_pgsql:$local_part}' || '@' || domain AS a, domain from domains,aliasdomains where aliasdomains.alias = '${quote_pgsql:$domain}' and aliasdomains.domain_id = domains.domain_id}{$value}{no}}",
	"sqlite": "${lookup sqlite{select '${quote_sqlite:$local_part}@' || domain from domains,aliasdomains where aliasdomains.alias = '${quote_sqlite:$domain}' and aliasdomains.domain_id = domains.domain_id}{$value}{no}}",
}

var queryRecipients = []string{
	"alice@example.org", "bob@example.org", "alice@example.net", "nobody@example.net", "twice@example.org", "o'brien@example.org", "info@example.net", "info@alias.example",
	"info@off.example", "Capital@example.org",
}

// TestQueries: what a query answers is listed, and the same as Exim gets, from each of
// the databases. Each query stands in the text of a refusal.
func TestQueries(t *testing.T) {
	servers := map[string]string{}
	for typ, start := range map[string]func(testing.TB, string) *listertest.Server{"mysql": listertest.MariaDB, "pgsql": listertest.PostgreSQL} {
		s := start(t, queriesData+"CREATE USER exim"+map[string]string{"mysql": "@'%' IDENTIFIED BY 'exim'; GRANT SELECT ON mail.* TO exim@'%'", "pgsql": " PASSWORD 'exim'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO exim"}[typ]+";")
		servers[typ] = fmt.Sprintf("hide %s_servers = 127.0.0.1::%d/mail/exim/exim\n", typ, s.Port)
	}
	servers["sqlite"] = "sqlite_dbfile = @DIR@/mail.db\n"
	for typ, text := range fillTexts {
		t.Run(typ, func(t *testing.T) { queries(t, typ, servers[typ], append([]string{text}, queryTexts...)) })
	}
}

func queries(t *testing.T, typ, server string, texts []string) {
	config := "domainlist local_domains = example.org\n" + server + "acl_smtp_rcpt = rcpt\nbegin acl\nrcpt:\n"
	for n, q := range texts {
		texts[n] = strings.NewReplacer("lookup @{", "lookup "+typ+"{", "quote_@", "quote_"+typ).Replace(q)
		config += fmt.Sprintf("  deny local_parts = ^q%d-\n       message = <%s>\n", n, strings.ReplaceAll(texts[n], "$local_part", `${sg{$local_part}{^q\[0-9\]+-}{}}`))
	}
	x := newExim(t, config+"  accept\n"+smallRouters)
	if out, err := exec.Command("sqlite3", filepath.Join(x.Dir, "mail.db"), queriesData).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Rows: Databases, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range report.Items {
		if it.Class == fidelity.NotReplicated {
			t.Errorf("%s: %s", it.ID(), it.Why)
		}
	}
	var to []string
	for n := range texts {
		for _, address := range queryRecipients {
			to = append(to, fmt.Sprintf("q%d-%s", n, address))
		}
	}
	sameAsExim(t, x, spec, to)
}

// sameAsExim plays recipients of one message to a real Exim and to a policy.
func sameAsExim(t *testing.T, x *testmx.Exim, spec *policy.Spec, to []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), x.Program, "-C", x.Config, "-bh", "192.0.2.1")
	cmd.Stdin = strings.NewReader("HELO mail.example.com\r\nMAIL FROM:<>\r\nRCPT TO:<" + strings.Join(to, ">\r\nRCPT TO:<") + ">\r\nQUIT\r\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := replies(string(out))
	if len(theirs) != 3+len(to)+1 {
		t.Fatalf("%d replies to %d recipients: %q", len(theirs), len(to), out)
	}
	s := begun(t, spec)
	for n, a := range to {
		v := rcpt(t, s, a)
		got := "250"
		if v.Action != policy.Permit {
			got = judged(strconv.Itoa(v.Reply.Code), v.Reply.Text)
		}
		if got != theirs[3+n] {
			t.Errorf("%s: %q; Exim says %q", a, got, theirs[3+n])
		}
	}
}

// begun is a session that has come to its recipients.
func begun(t *testing.T, spec *policy.Spec) *policy.Session {
	t.Helper()
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	t.Cleanup(s.Close)
	s.Connect(t.Context())
	s.Helo(t.Context(), "mail.example.com")
	s.Mail(t.Context(), envelope.ReversePath{}, policy.MailParams{})
	return s
}

func rcpt(t *testing.T, s *policy.Session, to string) policy.Verdict {
	local, domain, _ := strings.Cut(to, "@")
	return s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: domain}})
}

// TestWrites: a query that changes a database isn't asked, and what depends on it is
// left to the primary.
func TestWrites(t *testing.T) {
	_, report, file, err := importText(t, `sqlite_dbfile = @DIR@/none.db
domainlist local_domains = example.org
acl_smtp_rcpt = rcpt
acl_smtp_data = data
begin acl
rcpt:
  warn  set acl_m_known = ${lookup sqlite{INSERT INTO grey VALUES ('$sender_host_address')}}
  defer condition = ${if eq{$acl_m_known}{1}}
  accept domains = +local_domains
data:
  deny condition = ${if >{$spam_score_int}{120}}
  deny !verify = header_sender
  accept
`+smallRouters)
	if err != nil {
		t.Fatal(err)
	}
	for part, line := range map[string]string{"INSERT": "11:", "$acl_m_known": "12:", "spam_score_int": "15:", "header_sender": "16:"} {
		it := itemOf(t, &report, part)
		if it.Class != fidelity.NotReplicated || it.Instead != fidelity.Ignore || !strings.HasPrefix(it.Why, file+":"+line) {
			t.Errorf("%s: %s, %q, %q", part, it.Class, it.Instead, it.Why)
		}
	}
}

// TestUnknownQueries: what isn't followed is named with the query's piece.
func TestUnknownQueries(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT a FROM t WHERE b LIKE '${quote_sqlite:$local_part}'":                                              "\"b LIKE '$local_part'\" doesn't compare a column with a key",
		"SELECT a FROM t WHERE b > '${quote_sqlite:$local_part}'":                                                 "doesn't compare",
		"SELECT * FROM t WHERE b = '${quote_sqlite:$local_part}'":                                                 "it selects every column",
		"SELECT a, b || 'x' FROM t WHERE b = '${quote_sqlite:$local_part}'":                                       "one of them has no name",
		"SELECT max(a) FROM t WHERE b = '${quote_sqlite:$local_part}'":                                            "looks at several rows",
		"SELECT length('${quote_sqlite:$local_part}') FROM t":                                                     "calculates with a key",
		"SELECT a FROM (SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}') x":                               "it has a key in FROM",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' LIMIT 1 OFFSET 1":                                "it has WITH, OFFSET",
		"SELECT a FROM t WHERE b = $local_part":                                                                   "isn't understood",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' LIMIT 1+1":                                       "its LIMIT isn't a number",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' LIMIT 0":                                         "its LIMIT isn't a number",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' EXCEPT SELECT a FROM u":                          "otherwise than by one UNION",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' UNION SELECT a FROM u UNION ALL SELECT a FROM v": "otherwise than by one UNION",
		"SELECT a FROM t WHERE b = '${quote_sqlite:$local_part}' OR c = '${quote_sqlite:$local_part}' LIMIT 1":    "LIMIT or count() over an OR",
		"SELEC a FROM t WHERE b = '${quote_sqlite:$local_part}'":                                                  "isn't understood",
	} {
		_, report, file, err := importText(t, `sqlite_dbfile = @DIR@/none.db
domainlist local_domains = example.org
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny condition = ${lookup sqlite{`+query+`}{yes}{no}}
  accept domains = +local_domains
`+smallRouters)
		if err != nil {
			t.Fatal(err)
		}
		it := itemOf(t, &report, "rcpt: deny condition")
		if it.Class != fidelity.NotReplicated || len(it.Options) < 3 || !strings.HasPrefix(it.Why, file+":10: ") || !strings.Contains(it.Why, want) {
			t.Errorf("%s: %s %q %q", query, it.Class, it.Options, it.Why)
		}
	}
}

// TestConnection: what mysql_servers and its like spell.
func TestConnection(t *testing.T) {
	for _, tt := range []struct{ typ, servers, options, want string }{
		{"mysql", "db.example/mail/exim/se/cret", "", "db.example mail exim se/cret"},
		{"mysql", "127.0.0.1::3307/mail/exim/x", "", "127.0.0.1:3307 mail exim x"},
		{"mysql", "localhost::(/run/mysqld/my.sock)/vexim/vexim/CHANGE", "", "unix:/run/mysqld/my.sock vexim vexim CHANGE"},
		{"mysql", "(/run/mysqld/my.sock)/vexim/vexim/CHANGE[group]", "", "unix:/run/mysqld/my.sock vexim vexim CHANGE"},
		{"pgsql", "(/run/postgresql/.s.PGSQL.5432)/vexim/v/", "", "unix:/run/postgresql vexim v "},
		{"pgsql", "a/b/c/d : e/f/g/h", ",servers=e", "e f g h"},
		{"pgsql", "a/b/c/d", ",servers=i/j/k/l", "i j k l"},
		{"mysql", "a/b", "", "mysql_servers isn't host/database/user/password"},
		{"mysql", "", "", "mysql_servers is missing"},
	} {
		i := &importer{conf: &config{main: map[string]string{tt.typ + "_servers": tt.servers}}}
		s, err := i.connection(tt.typ, tt.options)
		got := strings.Join([]string{s["hosts"], s["dbname"], s["user"], s["password"]}, " ")
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.servers, tt.options, got, tt.want)
		}
	}
	if got := short("${lookup mysql,servers=a/b/c/secret {SELECT 1}}"); strings.Contains(got, "secret") {
		t.Error(got)
	}
}

// TestDBM: files of exim_dbmbuild are listed as Exim finds their keys.
func TestDBM(t *testing.T) {
	x := newExim(t, `domainlist local_domains = dbm;@DIR@/domains.db
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny local_parts = z
       message = <${lookup{$domain}dbm{@DIR@/plain.db}{$value}{no}} ${lookup{$domain}dbmnz{@DIR@/plain.db}{$value}{no}}>
  deny message = <${lookup{$domain}dbm{@DIR@/domains.db}{$value}{no}} ${lookup{$domain}partial-dbm*{@DIR@/domains.db}{$value}{no}}>
       domains = +local_domains
  deny message = no
`+smallRouters)
	text := filepath.Join(x.Dir, "text")
	for name, nozero := range map[string]string{"domains.db": "", "plain.db": "-nozero"} {
		if err := os.WriteFile(text, []byte("one.example: first\nTwo.example: second one\n*.three.example: third\\\\n\n\"four.example\": \n*: rest\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		args := append([]string{testmx.EximRoot + "/usr/sbin/exim_dbmbuild", "-nolc"}, strings.Fields(nozero)...)
		if out, err := exec.Command(args[0], append(args[1:], text, filepath.Join(x.Dir, name))...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "dbm: "); it.Class != fidelity.Exact {
		t.Errorf("%+v", it)
	}
	var to []string
	for _, domain := range []string{"one.example", "two.example", "a.three.example", "three.example", "four.example", "five.example"} {
		to = append(to, "a@"+domain, "z@"+domain)
	}
	sameAsExim(t, x, spec, to)
	_, report, err = Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Own: []string{}, DBDump: "no-such-db_dump"})
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "domainlist local_domains"); it.Class != fidelity.NotReplicated || !strings.Contains(it.Why, "db-util") {
		t.Errorf("without db_dump: %+v", it)
	}
}
