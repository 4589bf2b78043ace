package postfix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Lister enumerates databases: it opens what a Database describes and returns
// everything that a query or a search finds.
type Lister interface {
	// Rows runs a query. A NULL column is "".
	Rows(ctx context.Context, db *Database, query string, row func(columns []string) error) error
	// Session runs use with a connection of its own.
	Session(ctx context.Context, db *Database, use func(Session) error) error
	// Directory connects to an LDAP server until use returns.
	Directory(ctx context.Context, db *Database, use func(Directory) error) error
}

// Directory answers searches, as lister.Directory has it.
type Directory interface {
	Search(s lister.Search, entry func(lister.Entry) error) error
	Ask(s lister.Search, limit int) ([]lister.Entry, error)
	Schema() (schema lister.Schema, contexts []string, err error)
	State(base string) (string, error)
	Changes(s lister.Search, state string, changed func(lister.UUID, lister.Entry) error) (gone func(lister.UUID) bool, err error)
}

// Database is a table that a database answers for.
type Database struct {
	Type     string            // mysql, pgsql, sqlite or ldap
	Table    string            // as in main.cf
	Settings map[string]string // of its .cf file, as in mysql_table(5) and its like; hold the password
	Host     *host.Host        // whose addresses and files these are; nil is this machine

	// How to list what the table answers to.
	Queries []Query // arms of a UNION; nil: they have to be asked about
	Search  *Search

	// Unlisted takes keys that no candidate was for absent, once a listing by
	// candidates has held its check.
	Unlisted bool

	utf8      bool // of Postfix 3.8 or later, see latin
	memo      *Memo
	options   *lister.OptionFiles
	statement *statement // the query, nil: it isn't understood
	unparsed  error      // then: why
}

// String doesn't tell the password.
func (d *Database) String() string { return d.Table }

// legacy queries of Postfix before 2.2.
func (d *Database) query() string {
	s := d.Settings
	if s["query"] != "" || s["select_field"] == "" {
		return s["query"]
	}
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s = '%%s' %s", s["select_field"], s["table"], s["where_field"], s["additional_conditions"])
}

// parseCF reads a .cf file.
func parseCF(text string) (map[string]string, error) {
	set := map[string]string{}
	var err error
	logicalLines(text, func(n int, line string) {
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); (!ok || name == "") && err == nil {
			err = fmt.Errorf("line %d: want name = value", n)
		}
		set[name] = strings.TrimSpace(value)
	})
	return set, err
}

// settingNames are those of tables that main.cf itself describes.
var settingNames = []string{
	"hosts", "user", "password", "dbname", "query", "domain", "result_format", "expansion_limit", "select_field", "table",
	"where_field", "additional_conditions", "dbpath", "option_file", "option_group", "charset", "encoding", "server_host",
	"server_port", "search_base", "query_filter", "result_attribute", "special_result_attribute", "leaf_result_attribute",
	"terminal_result_attribute", "scope", "bind", "bind_dn", "bind_pw", "start_tls", "version", "tls_ca_cert_file", "tls_ca_cert_dir",
	"tls_cert", "tls_key", "tls_require_cert", "tls_CAfile", "tls_CApath", "tls_verify_cert", "size_limit", "timeout", "recursion_limit",
}

// database reads a table's connection and, with a Lister, its entries.
func (i *importer) database(parameter, typ, name, arg string) (*Table, error) {
	fail := func(err error) (*Table, error) {
		i.errorf("%s: table %s: %w", parameter, name, err)
		return nil, nil
	}
	db := &Database{Host: i.src.Host, Type: typ, Table: name, Unlisted: i.src.RejectUnlisted, memo: i.src.Memo, options: &i.options, utf8: since(i.report.MailVersion, 3, 8)}
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		text, err := i.readFile(arg)
		if err != nil {
			return fail(err)
		}
		if db.Settings, err = parseCF(text); err != nil {
			return fail(fmt.Errorf("%s: %w", arg, err))
		}
	} else {
		db.Settings = map[string]string{}
		for _, s := range settingNames {
			if v, ok := i.set[arg+"_"+s]; ok {
				db.Settings[s] = v
			}
		}
		if len(db.Settings) == 0 {
			return fail(fmt.Errorf("main.cf has no settings that begin with %s_", arg))
		}
	}
	if query, queried := i.src.Queries[name]; queried {
		t, err := i.queried(db, query)
		if err != nil {
			return fail(err)
		}
		return t, nil
	}
	if err := db.analyse(); err != nil {
		return nil, fmt.Errorf("%w: %w", errDatabase, err)
	}
	if i.src.Lister == nil {
		return nil, errDatabase
	}
	i.polled[name] = true
	t, err := db.list(i.ctx, i.src.Lister, i.hints(db)...)
	if err != nil {
		return fail(err)
	}
	if t.How.Wrong != "" {
		i.report.Contradicted = append(i.report.Contradicted, fidelity.Contradiction{Table: name, What: t.How.Wrong})
	}
	return t, nil
}

// since says that a version of Postfix is one, or a later one.
func since(version string, major, minor int) bool {
	var a, b int
	n, _ := fmt.Sscanf(version, "%d.%d", &a, &b)
	return n == 2 && (a > major || a == major && b >= minor)
}

// hints are names and addresses that main.cf and the tables read so far hold,
// for a query that names no table.
func (i *importer) hints(db *Database) (all []string) {
	if !isSQL(db.Type) || len(db.statement.tables()) > 0 {
		return nil
	}
	for _, parameter := range []string{"mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains"} {
		all = append(all, words(i.set[parameter])...)
	}
	const most = 200_000
	for _, name := range slices.Sorted(maps.Keys(i.read)) {
		if t := i.read[name].table; t != nil && len(all)+len(t.Entries) < most {
			all = slices.AppendSeq(all, maps.Keys(t.Entries))
		}
	}
	return all
}

func isSQL(typ string) bool { return typ == "mysql" || typ == "pgsql" || typ == "sqlite" }

// queried lists a table by the operator's query. What it selects are the
// table's answers: the settings domain and result_format don't change them.
func (i *importer) queried(db *Database, query string) (*Table, error) {
	if i.src.Lister == nil {
		return nil, errDatabase
	}
	i.polled[db.Table] = true
	t := &Table{Type: db.Type, Kind: Indexed, Entries: map[string]string{}}
	return t, i.src.Lister.Rows(i.ctx, db, query, func(columns []string) error {
		if len(columns) < 1 || len(columns) > 2 {
			return fmt.Errorf("its query selects %d columns; select a key and, where it counts, a value", len(columns))
		}
		return t.add(strings.ToLower(strings.TrimSpace(columns[0])), strings.Join(columns[1:], ""))
	})
}

// analyse finds out how to list everything that the table answers to.
func (d *Database) analyse() (err error) {
	if strings.Contains(d.Settings["domain"], ":") || strings.Contains(d.Settings["domain"], "/") {
		return errors.New("its domain setting names a table")
	}
	if d.Type == "ldap" {
		d.Search, err = d.search()
		return err
	}
	if d.query() == "" {
		return errors.New("it has no query")
	}
	if _, err = newTemplate(d.query(), d.resultFormat()); err != nil {
		return err
	}
	if d.statement, d.unparsed = parseStatement(d.query(), d.Type); d.unparsed != nil {
		d.unparsed = fmt.Errorf("its query isn't understood: %w", d.unparsed)
		d.statement = nil
		return nil
	}
	d.Queries, _ = d.statement.rewrite(d.domains())
	return nil
}

func (d *Database) resultFormat() string {
	return cmp.Or(d.Settings["result_format"], cmp.Or(d.Settings["result_filter"], "%s"))
}

func (d *Database) domains() []string {
	list := words(strings.ToLower(d.Settings["domain"]))
	return slices.DeleteFunc(slices.Clone(list), func(name string) bool { return name[0] == '!' || !inDomains(list, name) })
}

// list enumerates the table. hints may be parts of its keys.
func (d *Database) list(ctx context.Context, l Lister, hints ...string) (*Table, error) {
	if d.Type == "ldap" {
		return d.listLDAP(ctx, l, hints)
	}
	return d.listSQL(ctx, l, hints)
}

// put adds what a row yields for a key, as db_common of Postfix does: values
// that are empty are none, several are joined by commas.
func (d *Database) put(t *Table, key string, values []string) error {
	local, domain := splitAddress(key)
	if list := words(strings.ToLower(d.Settings["domain"])); len(list) > 0 {
		if local == "" || domain == "" || !inDomains(list, domain) {
			return nil
		}
	}
	for _, v := range values {
		text, ok := expand(d.resultFormat(), key, v)
		if !ok {
			continue
		}
		if old, dup := t.Entries[key]; dup {
			t.Entries[key] = old + "," + text
		} else if err := t.add(key, text); err != nil {
			return err
		}
	}
	return nil
}

// inDomains is Postfix's string_list: names match as they are, "!" excludes.
func inDomains(list []string, domain string) bool {
	for _, p := range list {
		if name := strings.TrimLeft(p, "!"); name == domain {
			return (len(p)-len(name))%2 == 0
		}
	}
	return false
}

// splitAddress cuts at the last "@". A key without one is all local-part.
func splitAddress(s string) (local, domain string) {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// expand puts a value into result_format.
func expand(format, key, value string) (string, bool) {
	if value == "" {
		return "", false
	}
	var b strings.Builder
	for n := 0; n < len(format); n++ {
		if format[n] != '%' || n+1 == len(format) {
			b.WriteByte(format[n])
			continue
		}
		n++
		of := value
		if format[n] >= 'A' && format[n] <= 'Z' {
			of = key
		}
		local, domain := splitAddress(of)
		switch format[n] | 0x20 {
		case 's':
			b.WriteString(of)
		case 'u':
			if local == "" {
				return "", false
			}
			b.WriteString(local)
		case 'd':
			if domain == "" {
				return "", false
			}
			b.WriteString(domain)
		default:
			if c := format[n]; c >= '1' && c <= '9' {
				_, domain := splitAddress(key)
				labels := strings.FieldsFunc(domain, func(r rune) bool { return r == '.' })
				b.WriteString(labels[len(labels)-int(c-'0')]) // template.parts has seen to it
			} else {
				b.WriteByte(c)
			}
		}
	}
	return b.String(), true
}

// placeholders are the letters and digits after the "%" in a template.
func placeholders(s string) []string {
	var list []string
	for n := 0; n+1 < len(s); n++ {
		if s[n] == '%' {
			n++
			if s[n] != '%' {
				list = append(list, s[n:n+1])
			}
		}
	}
	return list
}
