//go:build !race

// Most of the time here is a database's, and the race detector makes that of SQLite ten times as
// long.

package postfix

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// suiteKeys are looked up in each table, unless SUITE_KEYS says otherwise.
const suiteKeys = 3000

// TestSuites loads the schemas of mail suites, lists every table that their
// main.cf looks at and compares what we have with what Postfix finds, key by
// key. SUITE_KEYS sets how many keys, SEED which. What may differ stands in
// the suite's file want, or in the one of all suites.
func TestSuites(t *testing.T) {
	names, err := filepath.Glob("testdata/suites/*/main.cf")
	if err != nil || len(names) < 13 {
		t.Fatalf("only %d suites: %v", len(names), err)
	}
	servers := &suiteServers{t: t}
	rows := suiteRows(t)
	for _, name := range names {
		dir := filepath.Dir(name)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			s := newSuite(t, dir, servers)
			s.run()
			row := s.row() + fmt.Sprintf(" %d | %d | %d | %d |\n", len(s.keys), s.counts.keys, s.counts.explained, s.counts.differ)
			if os.Getenv("UPDATE") != "" {
				rows[s.name] = row
				doc := suiteDoc
				for _, name := range slices.Sorted(maps.Keys(rows)) {
					doc += rows[name]
				}
				if err := os.WriteFile(suiteDocFile, []byte(doc), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !strings.HasPrefix(rows[s.name], s.row()) {
				t.Errorf("%s lacks %q, run 'make suites UPDATE=1'", suiteDocFile, s.row())
			}
			t.Log(row)
		})
	}
}

// suiteRows are those of the document, by suite.
func suiteRows(t *testing.T) map[string]string {
	t.Helper()
	doc, err := os.ReadFile(suiteDocFile)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	_, table, _ := strings.Cut(string(doc), "| --- |")
	for line := range strings.Lines(table) {
		if f := strings.Split(line, " | "); len(f) == 9 {
			rows[strings.TrimPrefix(f[0], "| ")] = line
		}
	}
	return rows
}

const (
	suiteDocFile = "../../docs/SUITES.md"
	suiteDoc     = `# Mail suites

The schemas and queries of mail suites, taken from their public sources and filled with data of our own (2,200 mailboxes, 700
aliases, 60 domains), on real database servers. The importer lists each table that the suite's main.cf uses. Random keys (existing
names, near misses, other case, extensions, domains alone, odd characters) are looked up by ` + "`postmap -q`" + ` and in the listing: both
must have the key or lack it, with the same value where it counts. ` + "`make suites`" + ` runs this. policy/postfix/testdata/suites has the
suites, each with its sources, and with a file ` + "`want`" + ` that names permitted differences and their reasons.

*Exact* listings hold every key that the query answers. Listings *by candidates* hold those that it answered of everything in its
tables that looks like a key; a missing key isn't denied there. *Not compared* are tables that can't be listed, or that would take
minutes. The hostile suites hold queries of operators who do everything in one query. *Keys* are the random ones that each table was
asked for, besides those that it lists; ` + "`SUITE_KEYS=50000 UPDATE=1 go test -run 'TestSuites$/^NAME$' ./policy/postfix`" + ` sets a suite's row anew.
*Explained* look-ups are those of the file ` + "`want`" + `: nearly all are keys of which we say that we don't know, where Postfix does.

With 50,000 keys virtualmin, mail-in-a-box, postfixadmin, ispmail, modoboa and iredmail-mysql were played before (2026-11-29), too: no
difference in 33 tables. The by-hand suites played 3,261,771 look-ups in 65 tables: 14 keys with a space before the "@", which
MariaDB finds without it, were denied, and are unknown now.

| suite | database | exact | by candidates | not compared | keys | look-ups | explained | differences |
| --- | --- | --: | --: | --: | --: | --: | --: | --: |
`
)

// row is the suite's in the document, as far as it doesn't depend on the keys.
func (s *suite) row() string {
	typ, _, _ := strings.Cut(s.use[0].name, ":")
	name := map[string]string{"mysql": "MariaDB", "pgsql": "PostgreSQL", "sqlite": "SQLite", "hash": "a hash file", "socketmap": "none to be seen"}[typ]
	return fmt.Sprintf("| %s | %s | %d | %d | %d |", s.name, name, s.counts.exact, s.counts.candidates, s.counts.left)
}

// suiteServers starts one of a kind when it is first asked for.
type suiteServers struct {
	t            *testing.T
	mysql, pgsql *listertest.Server
}

// connection is what a .cf file begins with.
func (s *suiteServers) connection(t *testing.T, typ, db, script, dir string) (lines, host string) {
	user := fmt.Sprintf("user = reader\npassword = %s\ndbname = %s\n", listertest.Password, db)
	switch typ {
	case "mysql":
		if s.mysql == nil {
			s.mysql = listertest.MariaDB(s.t, "")
		}
		s.mysql.Database(t, db, script)
		host = "unix:" + s.mysql.Socket
	case "pgsql":
		if s.pgsql == nil {
			s.pgsql = listertest.PostgreSQL(s.t, "")
		}
		s.pgsql.Database(t, db, script)
		host = s.pgsql.Address()
	case "hash":
		cmd := exec.CommandContext(t.Context(), "sqlite3", "-bail", ":memory:")
		cmd.Stdin = strings.NewReader(script)
		out, err := cmd.Output()
		virtual := filepath.Join(dir, "virtual")
		if err == nil {
			err = os.WriteFile(virtual, out, 0o600)
		}
		if err == nil {
			err = exec.CommandContext(t.Context(), "/usr/sbin/postmap", "hash:"+virtual).Run()
		}
		if err != nil {
			t.Fatalf("sqlite3, postmap: %v (run test/install-peers)", err)
		}
	case "sqlite":
		path := filepath.Join(dir, "mail.db")
		cmd := exec.CommandContext(t.Context(), "sqlite3", "-bail", path)
		cmd.Stdin = strings.NewReader("BEGIN;\n" + script + "COMMIT;\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
		}
		return "dbpath = " + path + "\n", ""
	}
	return "hosts = " + host + "\n" + user, host
}

// suite is one on its server.
type suite struct {
	*testing.T
	name string
	dir  string
	main map[string]string // its main.cf
	data *suiteData
	want []wanted
	keys []string
	use  []suiteTable

	counts struct{ exact, candidates, left, keys, explained, differ int }
}

// suiteTable is a table that main.cf looks at.
type suiteTable struct {
	name   string
	values bool // they count
}

// wanted is a line of a file want: a table, how it may differ, for which keys,
// and why. The rules: "unlisted", it can't be listed; "left", it isn't looked
// at; "few", a thirtieth of the keys is; "unsure" and "partial", a key that isn't listed isn't denied either;
// "differs", anything. Lines of the shared file needn't be used: their keys are rare.
type wanted struct {
	table, rule string
	keys        *regexp.Regexp
	used        bool
}

var suiteTableName = regexp.MustCompile(`\b(mysql|pgsql|sqlite|hash|socketmap):[^\s,]+`)

func newSuite(t *testing.T, dir string, servers *suiteServers) *suite {
	s := &suite{T: t, name: filepath.Base(dir), dir: t.TempDir(), data: newSuiteData(suiteNumber(t, "SEED", 1))}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	few := uint64(suiteKeys)
	if strings.HasPrefix(s.name, "hostile-") { // whose look-ups are slow
		few /= 3
	}
	s.keys = s.data.keys(int(suiteNumber(t, "SUITE_KEYS", few)), suiteNumber(t, "SEED", 1))
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	var err error
	if s.main, err = parseCF(strings.ReplaceAll(read("main.cf"), "@DIR@", s.dir)); err != nil {
		t.Fatal(err)
	}
	s.tables()
	typ, _, _ := strings.Cut(s.use[0].name, ":")
	db := strings.ReplaceAll(filepath.Base(dir), "-", "_")
	lines, host := servers.connection(t, typ, db, s.data.script(typ, read("schema.sql"), read("fill.sql")), s.dir)
	cfs, _ := filepath.Glob(filepath.Join(dir, "*.cf"))
	past := time.Now().Add(-time.Hour) // Postfix waits for a file that has just changed
	for _, cf := range cfs {
		text := strings.NewReplacer("@CONNECTION@\n", lines, "@HOST@", host).Replace(read(filepath.Base(cf)))
		path := filepath.Join(s.dir, filepath.Base(cf))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	s.wants(read("want"), read("../want"))
	return s
}

// wants reads what may differ: "table rule [keys] # reason".
func (s *suite) wants(own, shared string) {
	for line := range strings.Lines(own + shared) {
		what, _, ok := strings.Cut(line, " # ")
		f := strings.Fields(what)
		if !ok || len(f) < 2 || len(f) > 3 {
			s.Fatalf("want: %q isn't \"table rule # reason\"", line)
		}
		w := wanted{table: f[0], rule: f[1], used: len(s.want) >= strings.Count(own, "\n")}
		if len(f) > 2 {
			w.keys = regexp.MustCompile(f[2])
		}
		s.want = append(s.want, w)
	}
}

// tables finds the tables of main.cf. Whether a key is there is all that
// lists of domains and recipients say.
func (s *suite) tables() {
	at := map[string]int{}
	for parameter, value := range s.main {
		for name, v := range s.main {
			value = strings.ReplaceAll(value, "${"+name+"}", v)
		}
		values := strings.HasSuffix(parameter, "_restrictions") || parameter == "virtual_alias_maps" || parameter == "transport_maps" ||
			strings.HasSuffix(parameter, "canonical_maps") || strings.HasSuffix(parameter, "login_maps")
		for _, name := range suiteTableName.FindAllString(value, -1) {
			if parameter == "podop" {
				continue
			}
			if n, again := at[name]; again {
				s.use[n].values = s.use[n].values || values
				continue
			}
			at[name] = len(s.use)
			s.use = append(s.use, suiteTable{name, values})
		}
	}
	slices.SortFunc(s.use, func(a, b suiteTable) int { return strings.Compare(a.name, b.name) })
	if len(s.use) == 0 {
		s.Fatal("main.cf looks at no table")
	}
}

// rule finds what is wanted of a table, of one key if that isn't "".
func (s *suite) rule(table, rule, key string) *wanted {
	for n := range s.want {
		w := &s.want[n]
		matches, _ := filepath.Match(w.table, filepath.Base(table))
		if (matches || w.table == table || w.table == "all") && w.rule == rule && (w.keys == nil || w.keys.MatchString(key)) {
			w.used = true
			return w
		}
	}
	return nil
}

func (s *suite) run() {
	for _, use := range s.use {
		typ, arg, _ := strings.Cut(use.name, ":")
		s.T.Run(typ+":"+filepath.Base(arg), func(t *testing.T) { s.compare(t, use) })
	}
	for _, w := range s.want {
		if !w.used && len(s.keys) >= suiteKeys/3 {
			s.Errorf("want: nothing differs by %s %s %v", w.table, w.rule, w.keys)
		}
	}
}

func (s *suite) compare(t *testing.T, use suiteTable) {
	if s.rule(use.name, "left", "") != nil {
		s.counts.left++
		return
	}
	i := &importer{ctx: t.Context(), src: &Source{Lister: Databases{}}, files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}}
	began := time.Now()
	table, reason := i.table("virtual_alias_maps", use.name)
	took := time.Since(began)
	if table == nil {
		if s.rule(use.name, "unlisted", "") == nil {
			t.Errorf("can't be listed: %v %v", reason, i.errs)
		}
		s.counts.left++
		return
	}
	keys := slices.Clone(s.keys)
	if s.rule(use.name, "few", "") != nil {
		keys = keys[:len(keys)/30]
	}
	random := len(keys)
	for _, k := range slices.Sorted(maps.Keys(table.Entries)) {
		if len(keys) < 2*random {
			keys = append(keys, k)
		}
	}
	want := map[string]string{}
	failed := map[string]bool{}
	// One key that fails ends a batch: those that are known to fail go alone.
	var batch, odd []string
	for _, k := range keys {
		switch {
		case table.Unknown[foldKey(k)]:
			postmapBatch(t, use.name, []string{k}, want, failed)
		case strings.ContainsAny(k, `\[*`): // LIKE and patterns may fail for it
			odd = append(odd, k)
		default:
			batch = append(batch, k)
		}
	}
	postmapBatch(t, use.name, odd, want, failed)
	postmapBatch(t, use.name, batch, want, failed)
	differ, deferred := 0, 0
	for _, key := range keys {
		w, wok := want[key]
		got, ok := table.find(key)
		local, _ := splitAddress(strings.ToLower(key))
		switch {
		case ok == wok && (!use.values || sameValues(got, w) || table.DomainWide && got == strings.Replace(w, local, "", 1)) && !failed[key]:
			continue
		case (wok || failed[key]) && !ok && s.rule(use.name, unlistedRule(table, key), key) != nil,
			!wok && ok && want[next(table, key)] != "", // Postfix finds it by its next look-up, of "@domain"
			failed[key] && table.Unknown[foldKey(key)], s.rule(use.name, "differs", key) != nil:
			deferred++
			continue
		}
		if differ++; differ <= 8 {
			t.Errorf("%q: Postfix %q %v (fails: %v), we %q %v (%s)", key, w, wok, failed[key], got, ok, unlistedRule(table, key))
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d keys differ", differ, len(keys))
	}
	if len(want) == 0 {
		t.Error("Postfix finds none of the keys: the table says little")
	}
	how := "by candidates"
	if s.counts.candidates++; table.How.Exact || !isSQL(table.Type) {
		how = "exact"
		s.counts.exact, s.counts.candidates = s.counts.exact+1, s.counts.candidates-1
	}
	s.counts.keys, s.counts.explained, s.counts.differ = s.counts.keys+len(keys), s.counts.explained+deferred, s.counts.differ+differ
	t.Logf("%s, %d keys, %d found, %d listed in %v, %d differ, %d explained; partial %q, unsure %q", how,
		len(keys), len(want), len(table.Entries), took.Round(time.Millisecond), differ, deferred, table.Partial, table.Unsure)
}

// next is the "@domain" that a key was found by in a table that answers to whole
// domains, "" for one that is listed itself.
func next(table *Table, key string) string {
	key = foldKey(key)
	at := strings.LastIndexByte(key, '@')
	if _, there := table.Entries[key]; there || at < 0 || table.Stands {
		return ""
	}
	return key[at:]
}

// unlistedRule says what we say of a key that isn't listed: that it is
// unknown, as it holds a character that makes it "unsure" or as any may be
// there, or that it isn't there.
func unlistedRule(table *Table, key string) string {
	switch {
	case table.unsure(foldKey(key)):
		return "unsure"
	case table.Partial != "":
		return "partial"
	}
	return "absent"
}

// postmapBatch looks keys up in any table, as many at once as go before one of them fails.
func postmapBatch(t *testing.T, table string, keys []string, found map[string]string, failed map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/postmap", "-q", "-", table)
	cmd.Stdin = strings.NewReader(strings.Join(keys, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	fails := strings.Contains(stderr.String(), ": query error") || strings.Contains(stderr.String(), ": lookup problem")
	switch {
	case fails && len(keys) == 1:
		failed[keys[0]] = true
		return
	case fails:
		postmapBatch(t, table, keys[:len(keys)/2], found, failed)
		postmapBatch(t, table, keys[len(keys)/2:], found, failed)
		return
	case err != nil && (cmd.ProcessState.ExitCode() != 1 || strings.Contains(stderr.String(), "fatal:")):
		t.Fatalf("postmap -q - %s: %v (run test/install-peers)\n%s", table, err, &stderr)
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		found[key] = value
	}
}

func suiteNumber(t *testing.T, name string, def uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return n
}
