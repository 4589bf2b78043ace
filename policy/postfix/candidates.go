package postfix

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Where nothing tells which keys a table answers to, it is asked about
// candidates: what looks like a part of a key in the data that it is made of.
// And whatever way a table was listed in, samples are put to it again, and
// random keys that it shouldn't have.

// Session puts queries to a database, in one read-only transaction.
type Session interface {
	Rows(query string, row func(columns []string) error) error
	Columns(query string) ([]Column, error)
	Ask(queries []string, answer func(n int, rows [][]string, err error) error) error
	Quoting() (func(string) string, error)
	Patience(d time.Duration)
}

// asker puts keys to a table as Postfix does.
type asker interface {
	// look calls found for each key that the table has, with what Postfix
	// gets for it, and failed for each whose look-up fails.
	look(keys []string, found func(key, value string), failed func(key string, err error)) error
	// takes says that Postfix asks for a key at all.
	takes(key string) bool
}

// candidates are parts of keys from the data behind a table.
type candidates struct {
	texts   *keySet // whole values
	locals  *keySet
	domains *keySet
}

func newCandidates() *candidates {
	return &candidates{newKeySet(), newKeySet(), newKeySet()}
}

// add takes what looks like a part of a key from a value: the value, and the
// words of a list.
func (c *candidates) add(value string) error {
	if len(value) > 16<<10 {
		return nil
	}
	if at := strings.LastIndexByte(value, '@'); at > 0 && isDomain(value[at+1:]) && len(value) <= 254 {
		for _, k := range keyVariants(value) { // whatever its local-part holds
			if err := c.texts.add(k); err != nil {
				return err
			}
		}
	}
	parts := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t\r\n,;|<>{}[]\"'=:", r) })
	for _, v := range append([]string{value}, parts...) {
		for _, k := range keyVariants(v) {
			if err := c.one(k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *candidates) one(v string) error {
	if strings.ContainsAny(v, " \t/\\(){}") || len(v) > 254 {
		return nil
	}
	err := c.texts.add(v)
	if at := strings.LastIndexByte(v, '@'); at >= 0 {
		return errors.Join(err, c.texts.add(v[at+1:]), c.domains.add(v[at+1:]), c.locals.add(v[:at]))
	}
	if d := strings.TrimPrefix(v, "."); isDomain(d) {
		err = errors.Join(err, c.domains.add(d))
	}
	return errors.Join(err, c.locals.add(v))
}

// isDomain says that a text looks like a domain: labels with a dot in between,
// not all of digits.
func isDomain(s string) bool {
	if !strings.Contains(s, ".") || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.Trim(last, "0123456789") != ""
}

// maxCrossed bounds local-parts times domains.
const maxCrossed = 300_000

// keys are all that the parts make. left says what was left out.
func (c *candidates) keys(t template, takes func(string) bool) (keys []string, left string) {
	all := newKeySet()
	add := func(key string) {
		if takes(key) {
			all.add(key)
		}
	}
	for k := range c.texts.all {
		add(k)
	}
	for d := range c.domains.all {
		add("@" + d)
		add("." + d)
	}
	if t.user || t.domain {
		n := len(c.locals.all) * len(c.domains.all)
		if n > maxCrossed {
			left = fmt.Sprintf("%d local-parts at %d domains that no value joins", len(c.locals.all), len(c.domains.all))
			return slices.Sorted(maps.Keys(all.all)), left
		}
		for l := range c.locals.all {
			for d := range c.domains.all {
				add(l + "@" + d)
			}
		}
	}
	return slices.Sorted(maps.Keys(all.all)), left
}

// probe is a key that no table has by purpose.
func probe(r *rand.Rand) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 17)
	for n := range b {
		b[n] = letters[r.IntN(len(letters))]
	}
	return "u" + string(b)
}

// maxSample bounds how many keys of a kind a check puts to a table.
const maxSample = 200

// checkPatience is how long samples are put to a table: a look-up that no index
// serves takes its time.
const checkPatience = 3 * time.Second

// errLate is of a key that isn't asked for any more: the check takes too long.
var errLate = errors.New("the check takes too long")

// check puts samples to a table: what was listed must be there with its value,
// and random keys must not, nor near misses. It returns what is wrong, "" when
// the listing held.
func check(a asker, t *Table, domains []string, seed uint64) (wrong string, put int, err error) {
	r := rand.New(rand.NewPCG(seed, 0))
	listed := sample(r, slices.Sorted(maps.Keys(t.Entries)))
	domains = sample(r, domains)
	asked := map[string]bool{} // whether it should be there
	miss := func(key string) {
		if _, there := t.find(key); !there && a.takes(key) && !t.coversDomain(key) && !t.unsure(key) {
			asked[key] = false
		}
	}
	for _, d := range domains {
		miss(probe(r) + "@" + d)
		miss(probe(r) + "." + d)
	}
	for range 20 {
		d := probe(r) + ".example"
		miss(probe(r))
		miss(d)
		miss("@" + d)
		miss(probe(r) + "@" + d)
	}
	for _, k := range listed {
		miss("x" + k)
		if at := strings.LastIndexByte(k, '@'); at > 0 {
			miss(k[:at] + "1" + k[at:])
			miss(k[:at] + "@" + probe(r) + ".example")
		}
		if a.takes(k) {
			asked[k] = true
		}
	}
	keys := slices.Sorted(maps.Keys(asked))
	got := map[string]string{}
	failed := map[string]bool{}
	r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	err = a.look(keys, func(key, value string) { got[key] = value }, func(key string, err error) {
		switch {
		case errors.Is(err, errLate):
			delete(asked, key)
		case asked[key] && wrong == "":
			wrong = fmt.Sprintf("the look-up of %q fails: %v", key, err)
			fallthrough
		default:
			failed[key] = true
		}
	})
	keys = slices.Sorted(maps.Keys(asked))
	for _, k := range keys {
		switch value, there := got[k]; {
		case there && !asked[k] && wrong == "":
			wrong = fmt.Sprintf("it has %q, which isn't listed: a catch-all, or a hole in the listing", k)
		case !there && asked[k] && !failed[k]:
			return fmt.Sprintf("it doesn't have %q, which is listed", k), len(keys), err
		case there && asked[k] && value != t.Entries[k] && !sameValues(value, t.Entries[k]):
			return fmt.Sprintf("its answer for %q isn't the one listed", k), len(keys), err
		}
	}
	return wrong, len(keys), err
}

// unsure says that a key may be there though it isn't listed.
func (t *Table) unsure(key string) bool {
	_, domain := splitAddress(key)
	return t.Unknown[key] || t.DomainWide && t.Unknown["@"+domain] || strings.ContainsAny(key, t.Unsure) || !ascii(key) && strings.Contains(t.Unsure, "é")
}

// coversDomain says that a key's whole domain is listed.
func (t *Table) coversDomain(key string) bool {
	at := strings.LastIndexByte(key, '@')
	if !t.DomainWide || at < 0 {
		return false
	}
	_, there := t.Entries[key[at:]]
	return there && !t.excepted(key[:at]) && !t.Except[key]
}

// sameValues says that two answers hold the same in any order: a query without
// ORDER BY promises none.
func sameValues(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

func sample(r *rand.Rand, list []string) []string {
	if len(list) <= maxSample {
		return list
	}
	picked := make([]string, maxSample)
	for n := range picked {
		picked[n] = list[r.IntN(len(list))]
	}
	return picked
}

// checkListing puts samples to the table. What doesn't hold makes the table one that
// isn't wholly known. rejects takes what candidates lack for absent, unless
// something is wrong.
func checkListing(a asker, t *Table, rejects bool) error {
	domains := map[string]bool{}
	for k := range t.Entries {
		if at := strings.LastIndexByte(k, '@'); at >= 0 {
			domains[k[at+1:]] = true
		} else if isDomain(k) {
			domains[k] = true
		}
	}
	wrong, put, err := check(a, t, slices.Sorted(maps.Keys(domains)), rand.Uint64())
	t.How.Checked, t.How.Wrong = put, wrong
	switch {
	case wrong != "":
		t.Partial = "checked against the database: " + wrong
	case t.How.Exact || t.Partial != "":
	case rejects && t.How.Left == "":
		t.How.Unlisted = true
	default:
		t.Partial = t.How.missed()
	}
	return err
}

// candidates asks about whatever looks like a key in the tables that the query reads.
func (li *listing) candidates(why error) error {
	c := newCandidates()
	tables, err := li.behind()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := li.values(t, c); err != nil {
			return err
		}
	}
	for _, h := range li.hints {
		if err := c.add(h); err != nil {
			return err
		}
	}
	if err := c.domainSetting(li.db.domains()); err != nil {
		return err
	}
	keys, left := c.keys(li.template, li.takes)
	for _, k := range keys {
		if err := li.ask.add(k); err != nil {
			return err
		}
	}
	wide := byte(0)
	if li.template.domain && !li.template.whole && !li.template.user && li.template.labels == 0 {
		wide = 'd'
	}
	li.table.How = Listing{Why: why.Error(), Tables: tables, Left: left}
	return li.askAll(wide)
}

func (c *candidates) domainSetting(domains []string) error {
	for _, d := range domains {
		if err := c.domains.add(d); err != nil {
			return err
		}
	}
	return nil
}

// values reads all texts of a table.
func (li *listing) values(table string, c *candidates) error {
	columns, err := li.session.Columns("SELECT * FROM " + table + " LIMIT 0")
	if err != nil {
		return err
	}
	var texts []string
	for _, col := range columns {
		if col.Text {
			texts = append(texts, li.name(col.Name))
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return li.session.Rows("SELECT "+strings.Join(texts, ", ")+" FROM "+table, func(values []string) error {
		for _, v := range values {
			if err := c.add(v); err != nil {
				return err
			}
		}
		return nil
	})
}

// name quotes a column's.
func (li *listing) name(column string) string {
	q := `"`
	if li.db.Type == "mysql" {
		q = "`"
	}
	return q + strings.ReplaceAll(column, q, q+q) + q
}

// maxTables bounds how many tables are read for a query that names none.
const maxTables = 64

// allTables lists what the table's user may read.
var allTables = map[string]string{
	"mysql":  "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME",
	"pgsql":  "SELECT quote_ident(table_schema) || '.' || quote_ident(table_name) FROM information_schema.tables WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND has_table_privilege(quote_ident(table_schema) || '.' || quote_ident(table_name), 'SELECT') ORDER BY 1",
	"sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
}

// behind are the tables that the query names, or all that there are.
func (li *listing) behind() (tables []string, err error) {
	tables = li.db.statement.tables()
	if len(tables) > 0 {
		return tables, nil
	}
	err = li.session.Rows(allTables[li.db.Type], func(c []string) error {
		if len(tables) < maxTables {
			t := c[0]
			if li.db.Type != "pgsql" {
				t = li.name(t)
			}
			tables = append(tables, t)
		}
		return nil
	})
	return tables, err
}
