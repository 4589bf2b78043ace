package exim

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// databases are the look-ups by query that can be listed.
var databases = []string{"sqlite", "mysql", "pgsql", "ldap", "ldapm", "ldapdn"}

var lookupWord = regexp.MustCompile(`\$\{lookup\s+(sqlite|mysql|pgsql|ldap|ldapm|ldapdn)(,[^\s{]*)?\s*\{`)

// rewriteQueries puts a look-up in a table in place of each query: its answers to every
// key are listed.
//
//	${lookup sqlite{SELECT goto FROM alias WHERE address='${quote_sqlite:$local_part@$domain}'}}
//	${lookup{$local_part@$domain}table{sqlite;1}}
func (i *importer) rewriteQueries(s string) (string, error) {
	for {
		m := lookupWord.FindStringSubmatchIndex(s)
		if m == nil {
			return s, nil
		}
		end := closing(s, m[1])
		if end < 0 {
			return s, nil // Parse says so
		}
		name, key, err := i.query(s[m[2]:m[3]], group(s, m, 2), s[m[1]:end])
		if err != nil {
			return "", err
		}
		s = s[:m[0]] + "${lookup{" + key + "}table{" + name + "}" + s[end+1:]
	}
}

func group(s string, m []int, n int) string {
	if m[2*n] < 0 {
		return ""
	}
	return s[m[2*n]:m[2*n+1]]
}

// closing is the index of the brace that ends the argument that begins at from.
func closing(s string, from int) int {
	depth := 0
	for i := from; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}

// rewriteItems does the same for an element of a list whose query asks for the very
// thing that is looked for.
func (i *importer) rewriteItems(s, kind string) (string, error) {
	subject := map[string][]string{
		"domainlist": {"$domain", "${domain}", "$sender_address_domain"}, "localpartlist": {"$local_part", "${local_part}"},
	}[kind]
	for _, typ := range databases {
		at := strings.Index(s, typ+";")
		if at < 0 || at > 0 && strings.IndexByte(" :;!", s[at-1]) < 0 {
			continue
		}
		query := s[at+len(typ)+1:]
		end := len(query)
		for n := 0; n+1 < len(query); n++ {
			if query[n] == ' ' && query[n+1] == ':' && (n+2 == len(query) || query[n+2] == ' ') {
				end = n
				break
			}
		}
		name, key, err := i.query(typ, "", strings.TrimSpace(strings.ReplaceAll(query[:end], "::", ":")))
		if err != nil {
			return "", err
		}
		if !slices.Contains(subject, key) {
			return "", fmt.Errorf("a query of a %s asks for %q", kind, key)
		}
		s = s[:at] + "table;" + strings.ReplaceAll(name, ":", "::") + query[end:]
	}
	return s, nil
}

// harmless are expressions that need no quoting: domains have the form of such.
var harmless = []string{"$domain", "$domain_data", "$sender_address_domain"}

var (
	equality  = regexp.MustCompile(`(?i)([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*'\x00(\d+)\x00'`)
	forbidden = regexp.MustCompile(`(?i)\b(or|union|group|having|not|limit\s+\d+\s*,|offset)\b`)
	selects   = regexp.MustCompile(`(?is)^\s*select\s+(distinct\s+)?(.+?)\s+from\s+(.+)$`)
	limitOne  = regexp.MustCompile(`(?i)\s+limit\s+1\s*;?\s*$`)
)

// query lists a query's answers, and returns the table that has them and the string that
// makes its key.
func (i *importer) query(typ, options, text string) (name, key string, err error) {
	p, err := expansion.Parse(text)
	if err != nil {
		return "", "", err
	}
	var sql strings.Builder
	var keys []string
	for _, part := range p.Parts() {
		if part.Expr == nil {
			sql.WriteString(part.Text)
			continue
		}
		quoting := typ
		if slices.Contains(directories, typ) {
			quoting = "ldap"
		}
		if part.Quoted != quoting && !slices.Contains(harmless, part.Expr.Source()) {
			return "", "", fmt.Errorf("a %s query has an expression outside of ${quote_%s:…}", typ, quoting)
		}
		keys = append(keys, part.Expr.Source())
		fmt.Fprintf(&sql, "\x00%d\x00", len(keys)-1)
	}
	key, asked := strings.Join(keys, "\n"), typ+options+text
	if slices.Contains(directories, typ) && len(keys) > 0 {
		key = keys[0]
	}
	if name = i.queries[asked]; name != "" {
		return name, key, nil
	}
	name = fmt.Sprintf("%s;%d", typ, len(i.queries)+1)
	var entries map[string]string
	if slices.Contains(directories, typ) {
		if len(keys) == 0 {
			return "", "", fmt.Errorf("a %s query asks for nothing", typ)
		}
		entries, err = i.directory(typ, sql.String(), keys)
	} else {
		var query string
		if query, err = listing(sql.String(), len(keys)); err == nil {
			entries, err = i.answers(typ, options, name, query, len(keys))
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("a %s query can't be listed: %w", typ, err)
	}
	t, err := table.NewHash(entries)
	if err != nil {
		return "", "", err
	}
	i.queries[asked] = name
	i.spec.Tables[name] = t
	i.item(typ, text, fidelity.Exact, "", "")
	return name, key, nil
}

// listing makes a query for all keys out of one for a key.
func listing(sql string, keys int) (query string, err error) {
	sql = limitOne.ReplaceAllString(sql, "")
	m := selects.FindStringSubmatch(sql)
	if m == nil {
		return "", fmt.Errorf("it isn't a plain SELECT")
	}
	columns, rest := m[2], m[3]
	if forbidden.MatchString(rest) {
		return "", fmt.Errorf("its condition isn't a row of equalities")
	}
	found := equality.FindAllStringSubmatch(rest, -1)
	if len(found) != keys || keys == 0 || strings.Count(rest, "\x00") != 2*keys || strings.Contains(columns, "\x00") {
		return "", fmt.Errorf("its keys aren't each compared with a column")
	}
	var names []string
	for _, f := range found {
		names = append(names, f[1])
	}
	rest = equality.ReplaceAllString(rest, "1=1")
	if strings.ContainsAny(columns, "*") && !strings.Contains(columns, "(") || splitColumns(columns) != 1 {
		return "", fmt.Errorf("it selects more than one column")
	}
	return "SELECT " + strings.Join(names, ", ") + ", " + columns + " FROM " + rest, nil
}

func splitColumns(s string) int {
	n, depth := 1, 0
	for _, c := range s {
		switch {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			n++
		}
	}
	return n
}

// answers lists what a query says to each key. A key of several rows has them in lines.
func (i *importer) answers(typ, options, name, query string, keys int) (map[string]string, error) {
	db := &lister.Source{Type: typ, Name: name}
	var err error
	if db.Settings, err = i.connection(typ, options); err != nil {
		return nil, err
	}
	if i.src.Rows == nil {
		return nil, fmt.Errorf("databases aren't listed here")
	}
	entries := map[string]string{}
	err = i.src.Rows(i.ctx, db, query, func(columns []string) error {
		if len(columns) != keys+1 {
			return fmt.Errorf("a row has %d columns", len(columns))
		}
		key := strings.Join(columns[:keys], "\n")
		if typ != "mysql" && key != strings.ToLower(key) {
			return nil // nobody asks for it: local-parts and domains come in small letters
		}
		key = strings.ToLower(key)
		if before, again := entries[key]; again {
			entries[key] = before + "\n" + columns[keys]
		} else {
			entries[key] = columns[keys]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	i.polled[typ] = true
	return entries, nil
}

// connection describes the database in the lister's words.
func (i *importer) connection(typ, options string) (map[string]string, error) {
	m := i.conf.main
	if typ == "sqlite" {
		path := m["sqlite_dbfile"]
		if _, file, ok := strings.Cut(options, "file="); ok {
			path = file
		}
		if path == "" {
			return nil, fmt.Errorf("sqlite_dbfile is missing")
		}
		i.files[path] = true
		return map[string]string{"dbpath": path}, nil
	}
	servers := expansion.List(m[typ+"_servers"])
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s_servers is missing", typ)
	}
	f := strings.SplitN(servers[0], "/", 4)
	if strings.HasPrefix(servers[0], "(") { // a socket
		return nil, fmt.Errorf("%s_servers names a socket, which isn't followed", typ)
	}
	if len(f) != 4 {
		return nil, fmt.Errorf("%s_servers isn't host/database/user/password", typ)
	}
	if f[0] == "localhost" && typ == "mysql" {
		f[0] = "127.0.0.1"
	}
	return map[string]string{"hosts": f[0], "dbname": f[1], "user": f[2], "password": f[3]}, nil
}
