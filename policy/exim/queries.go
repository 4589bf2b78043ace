package exim

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
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
		in, key, tables, err := i.query(s[m[2]:m[3]], group(s, m, 2), s[m[1]:end])
		if err != nil {
			return "", err
		}
		s = s[:m[0]] + "${lookup{" + key + "}" + in + "{" + tables + "}" + s[end+1:]
	}
}

// fileOf is the file that a query of SQLite begins with.
func fileOf(typ, query string) (file, rest string, ok bool) {
	query = strings.TrimLeft(query, cSpace)
	end := strings.IndexAny(query, cSpace)
	if typ != "sqlite" || !strings.HasPrefix(query, "/") || end < 0 {
		return "", "", false
	}
	return query[:end], query[end:], true
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
		in, key, tables, err := i.query(typ, "", strings.TrimSpace(strings.ReplaceAll(query[:end], "::", ":")))
		if err != nil {
			return "", err
		}
		key, own := strings.CutSuffix(key, "\n"+constantKey)
		if !own && !slices.Contains(directories, typ) || !slices.Contains(subject, key) {
			return "", fmt.Errorf("a query of a %s asks for %q", kind, key)
		}
		s = s[:at] + in + ";" + strings.ReplaceAll(tables, ":", "::") + query[end:]
	}
	return s, nil
}

// query lists a query's answers. It returns the look-up in a table that has them: its
// type, its key and the tables.
func (i *importer) query(typ, options, text string) (in, key, tables string, err error) {
	if servers, rest, ok := strings.Cut(text, ";"); ok && strings.HasPrefix(strings.TrimSpace(servers), "servers=") {
		return "", "", "", fmt.Errorf("a %s query names its servers itself: %.40q", typ, rest)
	}
	p, err := expansion.Parse(text)
	if err != nil {
		return "", "", "", err
	}
	if slices.Contains(directories, typ) {
		return i.search(typ, text, p)
	}
	if file, rest, ok := fileOf(typ, text); ok {
		if i.ofClients(p) {
			return "", "", "", fmt.Errorf("a file that is named in a query with a client's words isn't opened by Exim 4.94 and later: use sqlite_dbfile or ${lookup sqlite,file=%s {…}}", file)
		}
		return i.query(typ, ",file="+file, rest)
	}
	q, err := newSQLQuery(typ, p)
	if err != nil {
		return "", "", "", fmt.Errorf("a %s query can't be listed: %w", typ, err)
	}
	arms, union, err := q.arms()
	if _, scans := err.(scanner); err != nil && !scans && len(q.exprs) == 0 { // the same answer to everybody
		arms, err = []sqlArm{{sql: q.text, names: []string{""}}}, nil
	}
	if err != nil {
		if scans, is := err.(scanner); is {
			return "", "", "", scans
		}
		return "", "", "", fmt.Errorf("a %s query can't be listed: %w", typ, err)
	}
	l := policy.TableLookup{Exact: typ != "mysql", Plain: q.plain && typ != "sqlite", Missed: q.plain && typ == "sqlite", Distinct: union}
	var keys, names []string
	filled := false
	for _, a := range arms {
		name, err := i.answers(typ, options, &a)
		if err != nil {
			return "", "", "", fmt.Errorf("a %s query can't be listed: %w", typ, err)
		}
		if a.count {
			l.Default = "0"
		}
		filled = filled || strings.Contains(a.sql, policy.FillMark(0)[:1])
		names = append(names, name)
		keys = append(keys, strings.Join(append(a.keys, constantKey), "\n"))
	}
	if filled {
		l.Fill = len(q.exprs)
		keys = append(keys, q.exprs...)
	}
	if len(arms) > 1 {
		i.item(typ, text, fidelity.Approximated, i.here+": what both sides of its OR or UNION find may come in another order", "")
	} else {
		i.item(typ, text, fidelity.Exact, "", "")
	}
	return l.String(), strings.Join(keys, policy.KeySeparator), strings.Join(names, " "), nil
}

// constantKey ends each key: a table has no empty one, and a query without a key has one
// answer.
const constantKey = "."

// search lists what a directory answers.
func (i *importer) search(typ, text string, p *expansion.String) (in, key, tables string, err error) {
	var query strings.Builder
	var keys []string
	for _, part := range p.Parts() {
		if part.Expr == nil {
			query.WriteString(part.Text)
			continue
		}
		if part.Quoted != "ldap" && !slices.Contains(harmless, part.Expr.Source()) {
			return "", "", "", fmt.Errorf("a %s query has an expression outside of ${quote_ldap:…}", typ)
		}
		keys = append(keys, part.Expr.Source())
		fmt.Fprintf(&query, "\x00%d\x00", len(keys)-1)
	}
	if len(keys) == 0 {
		return "", "", "", fmt.Errorf("a %s query asks for nothing", typ)
	}
	filter, keys := wholeKeys(query.String(), keys)
	if name := i.queries[typ+text]; name != "" {
		return "table", keys[0], name, nil
	}
	entries, err := i.directory(typ, filter, keys)
	if err != nil {
		return "", "", "", fmt.Errorf("a %s query can't be listed: %w", typ, err)
	}
	name, err := i.keep(typ, typ+text, entries)
	if err != nil {
		return "", "", "", err
	}
	i.item(typ, text, fidelity.Exact, "", "")
	return "table", keys[0], name, nil
}

// comparedWith is what a filter compares an attribute with, where that holds a key.
var comparedWith = regexp.MustCompile(`=((?:[A-Za-z0-9@._+:$-]|\x00\d+\x00)*\x00(?:[A-Za-z0-9@._+:$-]|\x00\d+\x00)*)(\)|$)`)

// wholeKeys joins what stands beside a key in a filter to it.
//
//	(mail=KEY0@KEY1)
func wholeKeys(filter string, parts []string) (string, []string) {
	var keys []string
	filter = comparedWith.ReplaceAllStringFunc(filter, func(s string) string {
		end := strings.TrimPrefix(s[len(s)-1:], "\x00")
		if end != ")" {
			end = ""
		}
		key := ""
		for n, piece := range strings.Split(strings.TrimSuffix(s[1:], end), "\x00") {
			if at, err := strconv.Atoi(piece); n%2 == 1 && err == nil && at < len(parts) {
				key += parts[at]
			} else {
				key += expansion.Quote(piece)
			}
		}
		keys = append(keys, key)
		return fmt.Sprintf("=\x00%d\x00%s", len(keys)-1, end)
	})
	if len(keys) == 0 || strings.Count(filter, "\x00") != 2*len(keys) {
		return filter, parts
	}
	return filter, keys
}

// keep makes a table of what was listed.
func (i *importer) keep(typ, asked string, entries map[string]string) (name string, err error) {
	t, err := i.hash(entries)
	if err != nil {
		return "", err
	}
	name = fmt.Sprintf("%s;%d", typ, len(i.queries)+1)
	i.queries[asked], i.spec.Tables[name] = name, t
	return name, nil
}

// answers lists what a query says to each key. A key of several rows has them in lines.
func (i *importer) answers(typ, options string, a *sqlArm) (name string, err error) {
	asked := typ + options + "\x00" + a.sql + "\x00" + strconv.Itoa(a.limit)
	if name := i.queries[asked]; name != "" {
		return name, nil
	}
	if err := i.failed[asked]; err != nil {
		return "", err
	}
	entries, err := i.rows(typ, options, a)
	if err != nil {
		i.failed[asked] = err
		return "", err
	}
	i.polled[typ] = true
	return i.keep(typ, asked, entries)
}

func (i *importer) rows(typ, options string, a *sqlArm) (map[string]string, error) {
	if i.src.Rows == nil {
		return nil, errors.New("databases aren't listed here")
	}
	db := &lister.Source{Type: typ, Name: typ}
	var err error
	if db.Settings, err = i.connection(typ, options); err != nil {
		return nil, err
	}
	entries, rows := map[string]string{}, map[string]int{}
	err = i.src.Rows(i.ctx, db, a.sql, func(columns []string) error {
		key := strings.Join(append(slices.Clone(columns[:len(a.keys)]), constantKey), "\n")
		if typ == "mysql" {
			key = strings.ToLower(key)
		} else {
			key = policy.ExactKey(key)
		}
		if rows[key]++; a.limit > 0 && rows[key] > a.limit {
			return nil
		}
		if !a.nulls && len(columns) != len(a.keys)+1 {
			return errors.New("it answers with several columns")
		}
		value, null := a.row(typ, columns[len(a.keys):])
		before, again := entries[key]
		switch {
		case again && null:
			entries[key] = before + "\n"
		case again:
			entries[key] = before + "\n" + value
		case !null:
			entries[key] = value
		}
		return nil
	})
	return entries, err
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
	if _, given, ok := strings.Cut(options, "servers="); ok {
		own := expansion.List(given)
		at := slices.IndexFunc(servers, func(s string) bool { return len(own) > 0 && strings.HasPrefix(s, own[0]+"/") })
		if servers = own; at >= 0 { // named by its host alone
			servers = expansion.List(m[typ+"_servers"])[at:]
		}
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s_servers is missing", typ)
	}
	f := strings.SplitN(servers[0], "/", 4)
	if host, path, ok := strings.Cut(servers[0], "("); ok && !strings.Contains(host, "/") { // host(socket)/…
		path, rest, closed := strings.Cut(path, ")/")
		if !closed {
			return nil, fmt.Errorf("%s_servers isn't host(socket)/database/user/password", typ)
		}
		if typ == "pgsql" { // the socket's own name is of its port
			path = path[:max(0, strings.LastIndexByte(path, '/'))]
		}
		f = append([]string{"unix:" + path}, strings.SplitN(rest, "/", 3)...)
	}
	if len(f) != 4 {
		return nil, fmt.Errorf("%s_servers isn't host/database/user/password", typ)
	}
	if typ == "mysql" {
		f[3], _, _ = strings.Cut(f[3], "[") // a group of an option file
	}
	return map[string]string{"hosts": f[0], "dbname": f[1], "user": f[2], "password": f[3]}, nil
}
