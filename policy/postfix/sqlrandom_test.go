//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// queryMaker writes queries at random: equations, conditions that mean
// something and ones that don't, in every place where a query can have them.
type queryMaker struct{ *rand.Rand }

func (m queryMaker) pick(list ...string) string { return list[m.IntN(len(list))] }

func (m queryMaker) condition(depth int) string {
	if depth > 0 {
		switch m.IntN(9) {
		case 0, 1:
			return m.condition(depth-1) + " AND " + m.condition(depth-1)
		case 2:
			return m.condition(depth-1) + " OR " + m.condition(depth-1)
		case 3:
			return "(" + m.condition(depth-1) + ")"
		case 4:
			return "NOT (" + m.condition(depth-1) + ")"
		case 5:
			return "EXISTS (SELECT 1 FROM mailbox WHERE " + m.condition(0) + ")"
		}
	}
	return m.pick(
		"address = '%s'", "'%s' = address", "address = '%u@%d'", "address = '%u' || '@' || '%d'", "lower(address) = lower('%s')",
		"address = '@%d'", "address IN ('%s', '@%d')", "'%s' IN (address, 'list@example.org')", "address IN (SELECT address FROM alias WHERE domain = '%d')",
		"domain = '%d'", "'%d' IN (SELECT domain FROM domain WHERE active = 1)", "address LIKE '%%@%d'", "address LIKE '%s'",
		"address = '%u' || '@' || coalesce((SELECT target_domain FROM alias_domain WHERE alias_domain = '%d' AND active = 1), '%d')",
		"address = '%u@' || domain AND domain = '%d'", "goto = '%s'", "address = (SELECT username FROM mailbox WHERE local_part = '%u')",
		"'%s' = CASE WHEN active = 1 THEN address ELSE 'off@example.org' END", "address = CASE WHEN '%d' = 'alias.example' THEN '%u@example.org' ELSE '%s' END",
		"active = 1", "active = 1 OR prio = 2", "prio = 1", "goto IS NOT NULL", "goto <> ''", "1 = 1", "domain IN (SELECT domain FROM domain)",
		"'%u' NOT LIKE '%%+%%'", "'%u' NOT LIKE '%%+%%' AND domain = '%d'", "NOT '%u' LIKE '%%.%%'", "domain = '%d' AND instr('%u', '+') = 0", "'%d' <> ''", "'%u' <> 'alice'", "'%s' LIKE '%%.org'", "address <> '%s'", "'%d' = 'example.org'", "NOT address = '%s'",
		"'%s' IS NOT NULL", "length('%u') > 4", "nullif('%u', 'bob') IS NOT NULL", "address = substr('%s', 1)", "address || '' = '%s'", "address = 'x%s'")
}

func (m queryMaker) selects(depth int) string {
	item := m.pick("goto", "goto", "address", "'%d/%u'", "coalesce(goto, '%s')", "max(goto)", "count(*)", "CASE WHEN "+m.condition(0)+" THEN 'yes' END",
		"(SELECT maildir FROM mailbox WHERE username = '%s')", "nullif('%u', 'bob')", "iif(goto = '', NULL, goto)")
	from := m.pick("alias", "alias", "alias", "alias AS a", "(SELECT * FROM alias WHERE prio = 1) AS x", "(SELECT * FROM alias WHERE address = '%s') AS x",
		"alias JOIN alias_domain ON alias_domain.alias_domain = '%d'", "alias LEFT JOIN alias_domain ON alias_domain.alias_domain = '%d'",
		"alias LEFT JOIN (SELECT username FROM mailbox WHERE local_part = '%u') AS m ON m.username = alias.address")
	q := "SELECT " + item + " FROM " + from
	if strings.Contains(from, "alias_domain") {
		q = strings.ReplaceAll(q, "active", "alias.active")
		return q + " WHERE " + strings.NewReplacer("active", "alias.active").Replace(m.pick("alias.address = '%u@' || alias_domain.target_domain", "alias.address = '%s'", "alias_domain.target_domain IS NULL AND alias.address = '%s'", "alias_domain.target_domain = alias.domain"))
	}
	if m.IntN(8) > 0 {
		q += " WHERE " + m.condition(depth)
	}
	return q + m.pick("", "", "", " GROUP BY domain", " GROUP BY domain HAVING count(*) > 1", " ORDER BY prio LIMIT 1")
}

func (m queryMaker) query() string {
	switch m.IntN(8) {
	case 0:
		a, b := m.selects(1), m.selects(1)
		return strings.ReplaceAll(a, " ORDER BY prio LIMIT 1", "") + m.pick(" UNION ", " UNION ALL ", " EXCEPT ", " INTERSECT ") + strings.ReplaceAll(b, " ORDER BY prio LIMIT 1", "")
	case 1:
		return "SELECT goto FROM (" + m.selects(1) + ") AS outermost"
	case 2:
		return "SELECT " + m.pick("iif", "coalesce") + "((" + m.selects(1) + "), " + m.pick("NULL, NULL)", "'x', '')", "NULL, goto) FROM alias WHERE address = '%s'")
	}
	return m.selects(2)
}

// TestRandomQueries lists tables of queries that nobody thought of. What the
// real Postfix finds and the listing doesn't have must be in doubt, and what
// the listing has Postfix must find.
func TestRandomQueries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.db")
	cmd := exec.Command("sqlite3", path)
	cmd.Stdin = strings.NewReader(mailScript)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
	}
	const queries = 250
	exact, listed := 0, 0
	for seed := range uint64(queries) {
		m := queryMaker{rand.New(rand.NewPCG(seed, 7))}
		query := m.query()
		db := &Database{Type: "sqlite", Table: "sqlite:x", Settings: map[string]string{"dbpath": path, "query": query}}
		if err := db.analyse(); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		table, err := db.list(t.Context(), Databases{})
		if err != nil {
			continue // SQLite refuses it
		}
		listed++
		if table.How.Exact && table.Partial == "" {
			exact++
		}
		for _, wrong := range contradictions(t, db, table) {
			t.Errorf("seed %d: %s\n%s (exact %v, put %d)", seed, query, wrong, table.How.Exact, table.How.Put)
		}
	}
	t.Logf("%d queries, %d listed, %d exactly", queries, listed, exact)
	if listed < queries/2 || exact < queries/4 {
		t.Errorf("of %d queries only %d were listed, %d exactly", queries, listed, exact)
	}
}

// contradictions puts keys to the query itself, which postmap does as well but
// slower.
func contradictions(t *testing.T, db *Database, table *Table) (wrong []string) {
	t.Helper()
	keys := fuzzKeys(table, liveKeys[:40])
	got := map[string]string{}
	err := Databases{}.Session(t.Context(), db, func(s Session) error {
		li := &listing{db: db, session: s, table: table}
		var err error
		if li.quote, err = s.Quoting(); err != nil {
			return err
		}
		if li.template, err = newTemplate(db.query(), db.resultFormat()); err != nil {
			return err
		}
		lower := map[string]bool{}
		for _, k := range keys {
			lower[strings.ToLower(k)] = true
		}
		return li.look(sortedKeys(lower), func(k, v string) { got[k] = v }, func(string, error) {})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k = strings.ToLower(k); k == "" {
			continue
		}
		want, there := got[k]
		v, ok := table.find(k)
		if table.DomainWide && !table.Stands && k[0] == '@' {
			continue // it stands for all addresses of the domain
		}
		if ok == there && (!ok || sameValues(v, want) || table.DomainWide) || !ok && (table.Partial != "" || table.unsure(foldKey(k))) {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%q: Postfix %q %v, we %q %v", k, want, there, v, ok))
	}
	return wrong[:min(len(wrong), 3)]
}

// TestLocalPartElsewhere: where only the domain is tied to a column, the
// local-part may decide in other places than WHERE.
func TestLocalPartElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.db")
	cmd := exec.Command("sqlite3", path)
	cmd.Stdin = strings.NewReader(mailScript)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
	}
	for _, query := range []string{
		"SELECT m.maildir FROM domain d LEFT JOIN mailbox m ON m.username='%s' WHERE d.domain='%d'",
		"SELECT m.maildir FROM domain d LEFT JOIN (SELECT * FROM mailbox WHERE username='%s') m ON 1=1 WHERE d.domain='%d'",
		"SELECT d.domain FROM domain d LEFT JOIN mailbox m ON m.username='%s' WHERE d.domain='%d' AND m.maildir IS NULL",
		"SELECT d.domain FROM domain d WHERE d.domain='%d' GROUP BY d.domain HAVING '%u' LIKE 'bob%%'",
		"SELECT d.domain FROM domain d WHERE d.domain='%d' LIMIT length('%u')-4",
		"SELECT d.domain FROM domain d WHERE '%d' IN (d.domain, 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i') AND '%u' IN ('bob', 'alice', 'c', 'd', 'e', 'f', 'g', 'h', 'i')",
	} {
		db, table := openTable(t, "sqlite", "dbpath = "+path+"\nquery = "+query+"\n")
		if table.How.Exact {
			t.Errorf("%s: taken for exact", query)
		}
		for _, wrong := range contradictions(t, db, table) {
			if table.Partial == "" {
				t.Errorf("%s: %s", query, wrong)
			}
		}
	}
}
