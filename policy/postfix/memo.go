package postfix

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// Memo is what imports remember of databases' tables, so that the next one asks the
// databases only what has changed. It belongs to one configuration; the zero
// value is empty.
type Memo struct {
	mu     sync.Mutex // guards what follows
	tables map[string]*remembered
	seed   maphash.Seed // of the rows' digests

	greylists map[string]*greyKnown // by the directory of a postgrey's database
}

func (m *Memo) digests() maphash.Seed {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seed == (maphash.Seed{}) {
		m.seed = maphash.MakeSeed()
	}
	return m.seed
}

// remembered is a table as it was listed.
type remembered struct {
	db     *Database
	stamps map[string]string // of the tables that the query reads, or of bases in a directory: "" when the database can't tell
	table  *Table
	asked  map[string]bool                // the keys that were asked for, nil: none
	full   time.Time                      // when all of them were
	rows   map[string]map[uint64][]string // of those tables: what each row equates with the key, by its digest
	behind map[lister.UUID][]asked        // of a directory: what each entry may answer to, nil: any key may be concerned
}

// maxRemembered bounds the rows whose texts are kept for one table.
const maxRemembered = 300_000

func (m *Memo) of(name string) *remembered {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tables[name]
}

func (m *Memo) keep(name string, r *remembered) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tables == nil {
		m.tables = map[string]*remembered{}
	}
	m.tables[name] = r
}

// only forgets the tables that aren't named.
func (m *Memo) only(names map[string]bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.tables, func(name string, _ *remembered) bool { return !names[name] })
}

// Changed asks the databases, each once, whether anything has changed in what
// was listed from them. It knows of what they can tell cheaply; other changes
// are found when everything is listed again.
func (m *Memo) Changed(ctx context.Context, l Lister) bool {
	m.mu.Lock()
	tables := slices.Collect(maps.Values(m.tables))
	m.mu.Unlock()
	groups := map[string][]*remembered{}
	for _, r := range tables {
		groups[r.db.place()] = append(groups[r.db.place()], r)
	}
	for _, group := range groups {
		want := map[string]string{}
		for _, r := range group {
			maps.Copy(want, r.stamps)
		}
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(want)), func(t string) bool { return want[t] == "" })
		if len(names) == 0 {
			continue
		}
		now, err := glance(ctx, l, group[0].db, names)
		if err != nil {
			continue
		}
		for _, t := range names {
			if now[t] != want[t] || strings.HasPrefix(want[t], fresh) {
				return true
			}
		}
	}
	return false
}

// glance asks a database for its stamps in a session of their own.
func glance(ctx context.Context, l Lister, d *Database, names []string) (now map[string]string, err error) {
	if d.Type == "ldap" {
		err = l.Directory(ctx, d, func(dir Directory) error {
			now = map[string]string{}
			for _, base := range names {
				if now[base], err = dir.State(base); err != nil {
					return err
				}
			}
			return nil
		})
		return now, err
	}
	err = l.Session(ctx, d, func(s Session) error {
		s.Patience(5 * time.Second)
		now, err = stamps(d, s, names)
		return err
	})
	return now, err
}

// place is where a table's database is, and who asks it.
func (d *Database) place() string {
	s := []string{d.Type}
	for _, n := range []string{"hosts", "user", "password", "dbname", "dbpath", "option_file", "option_group", "server_host", "server_port", "bind", "bind_dn", "bind_pw"} {
		s = append(s, d.Settings[n])
	}
	return strings.Join(s, "\x00")
}

// stamps are what databases tell about the last change of tables.
func stamps(d *Database, s Session, tables []string) (map[string]string, error) {
	all := map[string]string{}
	for _, t := range tables {
		var query string
		plain := strings.ToLower(strings.Trim(t, "`\"[]"))
		switch d.Type {
		case "sqlite":
			all[t] = d.fileStamp()
			continue
		case "mysql":
			// UPDATE_TIME is in whole seconds, and NULL until the first
			// change after the server's start.
			query = "SELECT IF(UPDATE_TIME IS NULL, '" + counted + "', CONCAT(IF(UPDATE_TIME < NOW() - INTERVAL 1 SECOND, '', '" + fresh + "'), UPDATE_TIME, ' ', ENGINE))" +
				" FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA = DATABASE() AND LOWER(TABLE_NAME) = '" + escapeName(plain) + "'"
		case "pgsql":
			query = "SELECT n_tup_ins::text || ' ' || n_tup_upd || ' ' || n_tup_del || ' ' || pg_relation_filenode(relid)" +
				" FROM pg_stat_user_tables WHERE relid = to_regclass('" + escapeName(t) + "') AND current_setting('track_counts') = 'on'"
		}
		if err := s.Rows(query, func(c []string) error {
			all[t] = c[0]
			return nil
		}); err != nil {
			return nil, err
		}
		if all[t] == counted {
			if err := s.Rows("CHECKSUM TABLE "+t, func(c []string) error {
				all[t] = counted + c[len(c)-1]
				return nil
			}); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// How stamps begin that aren't plain.
const (
	fresh   = "~" // of a change that another may follow without a new stamp
	counted = "=" // a checksum
)

func escapeName(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, `\`, ``), "'", "''")
}

// fileStamp is that of an SQLite database and its log. A file that has just
// changed may change again without a new time.
func (d *Database) fileStamp() (stamp string) {
	path, err := d.Host.Path(d.Settings["dbpath"])
	if err != nil {
		return ""
	}
	for _, name := range []string{path, path + "-wal"} {
		st, err := os.Stat(name)
		switch {
		case err != nil:
			stamp += " -"
		case time.Since(st.ModTime()) < time.Second:
			return fresh
		default:
			stamp += fmt.Sprintf(" %d %d", st.ModTime().UnixNano(), st.Size())
		}
	}
	return stamp
}

// steady says that the same rows give the same answers: the query has no clock,
// no dice, and no function that may look elsewhere.
func (s *statement) steady() bool {
	if s == nil {
		return false
	}
	ok, named := true, false
	s.query.Tables(func(*sqlast.From) { named = true })
	s.query.Walk(func(e *sqlast.Expr) {
		switch {
		case e.Op == sqlast.OpCall:
			ok = ok && (sqlast.Scalar(e.Name) || slices.Contains([]string{"max", "min", "count", "sum", "avg", "group_concat", "string_agg"}, e.Name)) && !unsteady[e.Name]
		case e.Op == sqlast.OpNumber && strings.HasPrefix(e.Name, "current_"), e.Op == sqlast.OpColumn && strings.HasPrefix(e.Name, "@"), e.Op == sqlast.OpColumn && unsteady[e.Name]:
			ok = false
		}
	})
	return ok && named
}

var unsteady = map[string]bool{
	"now": true, "rand": true, "random": true, "uuid": true, "sysdate": true, "curdate": true, "curtime": true, "utc_timestamp": true, "unix_timestamp": true,
	"current_date": true, "current_timestamp": true, "current_time": true, "localtimestamp": true, "datetime": true, "date": true, "time": true, "julianday": true, "strftime": true,
	"timestamp": true, "current_user": true, "user": true, "localtime": true,
}

// unchanged says that a table that the query reads is as it was.
func (r *remembered) unchanged(table, stamp string) bool {
	return stamp != "" && stamp == r.stamps[table] && !strings.HasPrefix(stamp, fresh)
}

// fits says that a table was listed with the settings that it has.
func (r *remembered) fits(d *Database) bool {
	return r != nil && maps.Equal(r.db.Settings, d.Settings) && r.db.Unlisted == d.Unlisted && r.db.utf8 == d.utf8
}

// same returns the table as it was listed, when nothing has changed since.
func (r *remembered) same(d *Database, now map[string]string) *Table {
	if !r.fits(d) || len(now) == 0 || len(now) != len(r.stamps) {
		return nil
	}
	for t, stamp := range now {
		if !r.unchanged(t, stamp) {
			return nil
		}
	}
	return r.table
}

// readRows reads the rows of such a table, for what changes.
func (li *listing) readRows(table string, tied []string, known map[uint64][]string) (map[uint64][]string, error) {
	columns, err := li.session.Columns("SELECT * FROM " + table + " LIMIT 0")
	if err != nil {
		return nil, err
	}
	for _, name := range tied {
		if !slices.ContainsFunc(columns, func(c Column) bool { return c.Text && strings.EqualFold(c.Name, name) }) {
			return nil, errNoText // another query's column, or none that compares as a text
		}
	}
	all := make(map[uint64][]string, len(known))
	seed := li.db.memo.digests()
	return all, li.session.Rows("SELECT * FROM "+table, func(values []string) error {
		var h maphash.Hash
		h.SetSeed(seed)
		for _, v := range values {
			h.WriteString(v)
			h.WriteByte(0)
		}
		sum := h.Sum64()
		if texts, old := known[sum]; old {
			all[sum] = texts
			return nil
		}
		if len(all) >= maxRemembered {
			return errTooMany
		}
		var texts []string
		for n, v := range values {
			if slices.Contains(tied, strings.ToLower(columns[n].Name)) && v != "" && len(v) <= maxKey && !slices.Contains(texts, v) {
				texts = append(texts, strings.ToLower(v))
			}
		}
		all[sum] = texts
		return nil
	})
}

// askAgain is how often all keys are asked for although nothing has changed
// that would matter to them.
const askAgain = 10 * time.Minute

// changes reads the rows of the tables that the query ties to the key,
// and says what came or went since. nil means that any key may be concerned.
func (li *listing) changes() (*touched, error) {
	tied := li.db.statement.tied()
	old, t := li.before, newTouched()
	if !old.fits(li.db) || old.asked == nil || time.Since(old.full) > askAgain {
		t = nil
	}
	li.rowsBehind = map[string]map[uint64][]string{}
	const most = 5000
	for table, stamp := range li.stamps {
		columns := tied[table]
		if len(columns) == 0 {
			if t != nil && !old.unchanged(table, stamp) {
				t = nil
			}
			continue
		}
		var known map[uint64][]string
		if old != nil {
			known = old.rows[table]
		}
		if known != nil && old.unchanged(table, stamp) {
			li.rowsBehind[table] = known
			continue
		}
		now, err := li.readRows(table, columns, known)
		if errors.Is(err, errTooMany) || errors.Is(err, errNoText) {
			t = nil
			continue
		}
		if err != nil {
			return nil, err
		}
		li.rowsBehind[table] = now
		if known == nil {
			t = nil
		}
		for _, pair := range [][2]map[uint64][]string{{known, now}, {now, known}} {
			for sum, texts := range pair[0] {
				if _, both := pair[1][sum]; !both && t != nil {
					if t.row(texts); len(t.whole) > most {
						t = nil
					}
				}
			}
		}
	}
	return t, nil
}

// touched says which keys rows that came or went may have changed the answers
// for. ok is false when that can be any.
type touched struct{ whole, local, domain map[string]bool }

func newTouched() *touched {
	return &touched{map[string]bool{}, map[string]bool{}, map[string]bool{}}
}

// row notes what a row's texts can be of a key.
func (t *touched) row(texts []string) {
	for _, text := range texts {
		for _, v := range keyVariants(text) {
			t.whole[v] = true
			at := strings.LastIndexByte(v, '@')
			if at < 0 {
				t.local[v], t.domain[v] = true, true
				continue
			}
			for i := range len(v) {
				if v[i] == '@' && i > 0 {
					t.local[v[:i]] = true
				}
			}
			// For "@domain", and for the domains of addresses.
			t.whole[v[at+1:]], t.whole[v[at:]] = true, true
			if at == 0 {
				t.domain[v[1:]] = true
			}
		}
	}
}

func (t *touched) key(k string) bool {
	local, domain := splitAddress(k)
	return t.whole[k] || local != "" && t.local[local] || domain != "" && t.domain[domain]
}

// tied are the tables whose rows reach the query only when one of the columns
// named equals a part of the key.
func (s *statement) tied() map[string][]string {
	all, loose := map[string][]string{}, map[string]bool{}
	var visit func(q *sqlast.Query)
	look := func(sel *sqlast.Select) {
		for _, f := range sel.From {
			if f.Table != "" && len(sel.From) == 1 && sel.Where != nil {
				if column := s.tie(sel.Where.Conjuncts()); column != "" {
					all[f.Table] = append(all[f.Table], column)
					continue
				}
			}
			s.names(f, loose)
		}
	}
	visit = func(q *sqlast.Query) {
		for _, t := range q.Terms {
			if t.Query != nil {
				visit(t.Query)
				continue
			}
			look(t.Select)
			for _, f := range t.Select.From {
				if f.Sub != nil {
					visit(f.Sub)
				}
			}
		}
	}
	visit(s.query)
	s.query.Walk(func(e *sqlast.Expr) {
		if e.Sub != nil {
			visit(e.Sub)
		}
	})
	for t := range loose {
		delete(all, t)
	}
	return all
}

// tie finds the column of the equation that tells most of the key.
func (s *statement) tie(conditions []*sqlast.Expr) (column string) {
	for _, c := range conditions {
		if name := s.ties(c); name != "" && (column == "" || strings.ContainsRune(s.spell(c.Span), sqlast.Hole('s'))) {
			column = name
		}
	}
	return column
}

// names notes the tables of a part of FROM.
func (s *statement) names(f *sqlast.From, into map[string]bool) {
	switch {
	case f == nil:
	case f.Table != "":
		into[f.Table] = true
	default:
		s.names(f.Left, into)
		s.names(f.Right, into)
	}
}

// ties returns the column that a condition equates with the key, its local-part,
// its domain, or these joined by "@".
func (s *statement) ties(c *sqlast.Expr) (column string) {
	if c.Op != sqlast.OpCompare || c.Name != "=" {
		return ""
	}
	l, r := c.Args[0], c.Args[1]
	if s.keyed(l.Span) {
		l, r = r, l
	}
	for r.Op == sqlast.OpCall && r.Name == "lower" && len(r.Args) == 1 {
		r = r.Args[0]
	}
	for l.Op == sqlast.OpCall && l.Name == "lower" && len(l.Args) == 1 {
		l = l.Args[0]
	}
	if l.Op != sqlast.OpColumn {
		return ""
	}
	parts := []*sqlast.Expr{r}
	if r.Op == sqlast.OpConcat || r.Op == sqlast.OpCall && r.Name == "concat" {
		parts = r.Args
	}
	for n, p := range parts {
		plain := p.Op == sqlast.OpString
		if plain {
			for _, t := range pieces(p.Text) {
				plain = plain && (t.hole == 's' || t.hole == 'u' || t.hole == 'd' || t.hole == 0 && (t.text == "@" || t.text == ""))
			}
		}
		// What follows "@" may be computed.
		if !plain && (n == 0 || n < len(parts)-1) {
			return ""
		}
	}
	return l.Name[strings.LastIndexByte(l.Name, '.')+1:]
}
