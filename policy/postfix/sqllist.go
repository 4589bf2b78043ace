package postfix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/policy/postfix/sqlast"
)

// queryPatience bounds one query of a listing, at the database.
const queryPatience = 60 * time.Second

// listing is one SQL table being listed.
type listing struct {
	db       *Database
	session  Session
	template template
	quote    func(string) string
	table    *Table
	ask      *keySet        // keys to be asked for
	holes    *keySet        // keys that "@domain" may not stand for
	until    time.Time      // no key is asked for after it
	counts   map[string]int // values of a key, where expansion_limit bounds them
	before   *remembered
	stamps   map[string]string // of the tables that the query names, nil: it isn't remembered

	// Arms of a UNION that can be asked by themselves, and which arm's key it is
	// alone: a look-up of a UNION costs several times that of its arms.
	arms []string
	arm  map[string]int

	rowsBehind map[string]map[uint64][]string
	hints      []string
}

// listSQL lists a table in the best of the ways there are: by a query that
// lists all answers; by asking about every key that its conditions let it
// answer to; or by asking about candidates. What was listed is then checked.
func (d *Database) listSQL(ctx context.Context, l Lister, hints []string) (*Table, error) {
	now, err := d.stampsNow(ctx, l)
	if err != nil {
		return nil, err
	}
	if t := d.memo.of(d.Table).same(d, now); t != nil {
		return t, nil
	}
	t := &Table{Type: d.Type, Kind: Indexed, Entries: map[string]string{}}
	if d.Type == "mysql" || d.latin() {
		t.Unsure = "é" // collations may find "andre" by it; the other may be in a Latin-1 database
	}
	err = l.Session(ctx, d, func(s Session) error {
		li := &listing{db: d, session: s, table: t, ask: newKeySet(), holes: newKeySet(), counts: map[string]int{}, hints: hints, before: d.memo.of(d.Table), stamps: now}
		var err error
		if li.template, err = newTemplate(d.query(), d.resultFormat()); err != nil {
			return err
		}
		if li.quote, err = s.Quoting(); err != nil {
			return err
		}
		s.Patience(queryPatience)
		if err := li.list(); err != nil {
			return err
		}
		li.arms = nil // the check is of the whole query
		li.until = time.Now().Add(checkPatience)
		if err := checkListing(li, t, d.Unlisted); err != nil || now == nil {
			return err
		}
		d.memo.keep(d.Table, li.remember())
		return nil
	})
	return t, err
}

// stampsNow asks for the last changes of the tables that the query names, in a
// transaction of its own: what is listed after it is no older. nil means that
// there is nothing to remember.
func (d *Database) stampsNow(ctx context.Context, l Lister) (now map[string]string, err error) {
	if d.memo == nil || !d.statement.steady() {
		return nil, nil
	}
	err = l.Session(ctx, d, func(s Session) error {
		names := d.statement.tables()
		if now, err = stamps(d, s, names); err != nil {
			return err
		}
		for _, t := range names {
			now[t] += ""
		}
		return nil
	})
	return now, err
}

func (li *listing) remember() *remembered {
	r := &remembered{db: li.db, stamps: li.stamps, table: li.table, rows: li.rowsBehind, full: time.Now()}
	if len(li.ask.all) > 0 {
		r.asked = li.ask.all
	}
	if li.before != nil && li.table.How.Asked < li.table.How.Put {
		r.full = li.before.full
	}
	return r
}

// tables are those that the query names.
func (s *statement) tables() (names []string) {
	if s == nil {
		return nil
	}
	s.query.Tables(func(f *sqlast.From) {
		if !slices.Contains(names, f.Table) {
			names = append(names, f.Table)
		}
	})
	return names
}

func (li *listing) list() error {
	if len(li.db.Queries) > 0 {
		switch err := li.rewritten(); {
		case err == nil:
			li.table.How = Listing{Exact: true}
			return li.askAll(0)
		case !errors.Is(err, errNoText):
			return err
		}
	}
	wide, err := li.bounded()
	if err == nil {
		li.table.How = Listing{Exact: true}
		return li.askAll(wide)
	}
	li.arms, li.table.Unless = nil, "" // what it found out is of no use
	return li.candidates(err)
}

// errNoText is that of a column that isn't compared as a text is.
var errNoText = errors.New("holds no text")

// rewritten runs the queries that list everything.
func (li *listing) rewritten() error {
	d := li.db
	queries := slices.Clone(d.Queries)
	for i := range queries {
		q := &queries[i]
		columns, err := li.session.Columns(strings.TrimSuffix(q.SQL, q.order) + " LIMIT 0")
		if err != nil {
			return err
		}
		q.octets = nil
		for n, c := range columns[max(0, len(columns)-q.keyColumns):] {
			if !c.Text {
				return fmt.Errorf("%s %w", q.columns[n], errNoText)
			}
			q.octets = append(q.octets, c.Octets)
		}
	}
	for _, q := range queries {
		if d.Type == "mysql" && slices.ContainsFunc(q.equations, equation.pads) && !strings.Contains(li.table.Unsure, " ") {
			li.table.Unsure += " "
		}
		li.table.DomainWide = li.table.DomainWide || q.domainWide
		if err := li.rows(&q); err != nil {
			return err
		}
	}
	return nil
}

// rows puts what a listing query finds into the table. Rows that the database
// may find by other keys, too, are left to be asked about.
func (li *listing) rows(q *Query) error {
	d, found := li.db, map[string]int{}
	return li.session.Rows(q.reachable(d.Type), func(columns []string) error {
		for _, c := range columns[len(columns)-q.keyColumns:] {
			if !ascii(c) || strings.TrimSpace(c) != c {
				return li.unusual(q, columns)
			}
		}
		for _, key := range q.key(columns, d.Type == "mysql") {
			if key != foldKey(key) {
				continue // Postfix looks for no such
			}
			if found[key]++; q.limit > 0 && found[key] > q.limit {
				continue
			}
			values := columns[:len(columns)-q.keyColumns]
			if d.Type == "sqlite" {
				values = values[:1] // dict_sqlite(3) looks at no other
			}
			if err := d.put(li.table, key, values); err != nil {
				return err
			}
			// Whose look-up may fail is asked for.
			fails := d.latin() && slices.ContainsFunc(values, func(v string) bool { return !ascii(v) })
			if limit := d.expansionLimit(); limit > 0 {
				li.counts[key] += len(values)
				fails = fails || li.counts[key] > limit
			}
			if fails {
				if err := li.ask.add(key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// unusual leaves a row with accents, or with spaces around, to the database:
// only it knows what such equal.
func (li *listing) unusual(q *Query, columns []string) error {
	trimmed := make([]string, len(columns))
	for n, c := range columns {
		trimmed[n] = strings.ToLower(strings.TrimSpace(c))
	}
	for _, key := range q.key(trimmed, true) {
		for _, k := range keyVariants(key) {
			if err := li.ask.add(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// bounded collects every key that the query's conditions let it answer to. wide
// says that "@domain" stands for all of a domain.
func (li *listing) bounded() (wide byte, err error) {
	st := li.db.statement
	if st == nil {
		return 0, li.db.unparsed
	}
	b := &bounder{text: st.text, dialect: st.dialect, columns: li.columns}
	found, of := ways{}, []int{} // the arm that each way is of
	for n, arm := range li.split() {
		w := b.query(arm, nil, result)
		if !solvable(w) {
			return 0, cmp.Or(b.err, errUnbounded)
		}
		for range w {
			of = append(of, n)
		}
		found = append(found, w...)
	}
	rows := &rowsOf{session: li.session, have: map[*rowSource][][]string{}, index: map[*rowSource]map[int]map[string][]int{}}
	for n, way := range found {
		switch way.kind() {
		case 'd':
			if b.lossy && (li.template.user || li.template.whole) {
				return 0, errors.New("its conditions on the local-part aren't understood")
			}
			if strings.Contains(way.except(), unread) {
				return 0, errors.New("it has too many conditions")
			}
			if wide != 0 && way.except() != li.table.Unless {
				return 0, errors.New("its conditions on the local-part differ")
			}
			wide = 'd'
			li.table.Unless = way.except()
		case 'u':
			if len(li.db.domains()) == 0 {
				return 0, errors.New("only the local-part is asked for")
			}
		}
		own := newKeySet()
		s := &solver{rows: rows, keys: own, domains: li.db.domains()}
		if err := s.solve(way); err != nil {
			li.ask = newKeySet()
			return 0, err
		}
		if err := li.merge(own, of[n]); err != nil {
			return 0, err
		}
	}
	if wide != 0 {
		for _, way := range b.holes {
			s := &solver{rows: rows, keys: li.holes, domains: li.db.domains()}
			if err := s.solve(way); err != nil {
				li.ask, li.holes = newKeySet(), newKeySet()
				return 0, err
			}
		}
	}
	li.doubtful(b, wide)
	return wide, nil
}

// doubtful notes which characters make a key one that only the database knows.
func (li *listing) doubtful(b *bounder, wide byte) {
	t := li.table
	if b.wild || wide != 0 {
		li.arms = nil // another arm may answer, too
	}
	t.Strips = b.strips
	t.Unsure += b.strips
	if wide != 0 {
		t.Unless += b.strips
		if b.wildHoles {
			t.Unless += `%_\`
		}
	}
	if t.Unless != "" {
		t.Unless += t.Unsure // of letters beyond ASCII only the database knows what they equal
	}
	if b.wild || b.wildHoles {
		t.Unsure += `%_\`
	}
	if b.spaces {
		t.Unsure += " "
	}
}

func (li *listing) columns(from string) (names []string, err error) {
	columns, err := li.session.Columns("SELECT * FROM " + from + " LIMIT 0")
	for _, c := range columns {
		names = append(names, c.Name)
	}
	return names, err
}

// look puts keys to the table's query, as Postfix does.
func (li *listing) look(keys []string, found func(key, value string), failed func(key string, err error)) error {
	var asked, queries, several []string
	chunk := 20 // so many at a time that it takes a second or so
	flush := func() error {
		began := time.Now()
		defer func() { chunk = nextChunk(chunk, time.Since(began)) }()
		err := li.session.Ask(queries, func(n int, rows [][]string, err error) error {
			value, ok := "", false
			if _, alone := li.alone(asked[n]); alone && (len(rows) > 1 || err != nil) {
				several = append(several, asked[n]) // what UNION makes of them
				return nil
			}
			if err == nil {
				value, ok, err = li.db.answer(asked[n], rows)
			}
			switch {
			case err != nil:
				failed(asked[n], err)
			case ok:
				found(asked[n], value)
			}
			return nil
		})
		asked, queries = asked[:0], queries[:0]
		return err
	}
	text := strings.TrimRight(li.db.query(), "; \t\r\n")
	for _, k := range keys {
		if !li.db.asks(k) {
			continue
		}
		if !li.until.IsZero() && len(queries) == 0 && time.Now().After(li.until) {
			failed(k, errLate)
			continue
		}
		text := text
		if arm, alone := li.alone(k); alone {
			text = arm
		}
		if q, ok := li.template.expandKey(text, k, li.quote); ok {
			asked, queries = append(asked, k), append(queries, q)
		}
		if len(queries) >= chunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil || len(several) == 0 {
		return err
	}
	li.arms = nil
	return li.look(several, found, failed)
}

// nextChunk is how many keys to ask for at a time, when so many took so long.
func nextChunk(chunk int, took time.Duration) int {
	switch {
	case took < time.Second/2:
		return min(10_000, 4*chunk)
	case took > 2*time.Second:
		return max(20, chunk/4)
	}
	return chunk
}

func (li *listing) takes(key string) bool {
	_, _, _, ok := li.template.parts(key)
	return ok && li.db.asks(key)
}
