package postfix

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The oracle is the real Postfix: postmap -q answers for every key what its
// daemons would get, and our listing must say the same.

// openTable writes a .cf file and lists the table that it describes.
func openTable(t *testing.T, typ, cf string) (*Database, *Table) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table.cf")
	if err := os.WriteFile(path, []byte(cf), 0o600); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour) // Postfix waits for a file that has just changed
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
	db := &Database{Type: typ, Table: typ + ":" + path}
	var err error
	if db.Settings, err = parseCF(cf); err != nil {
		t.Fatal(err)
	}
	if err := db.analyse(); err != nil {
		t.Fatalf("can't be enumerated: %v", err)
	}
	table, err := db.list(t.Context(), Databases{})
	if err != nil {
		t.Fatal(err)
	}
	return db, table
}

// compareLive asks the real Postfix for liveKeys and their near misses, and our
// listing.
func compareLive(t *testing.T, typ, cf string) *Table {
	t.Helper()
	db, table := openTable(t, typ, cf)
	if table.How.Exact && table.How.Wrong != "" {
		t.Errorf("the check found: %s", table.How.Wrong)
	}
	keys := liveKeys
	if typ != "ldap" {
		keys = fuzzKeys(table, liveKeys)
	}
	if found := compareKeys(t, db.Table, table, keys); found == 0 {
		t.Error("Postfix finds none of the keys: the table says little")
	}
	return table
}

// compareKeys compares what Postfix and a listing say about keys, and returns
// how many Postfix finds.
func compareKeys(t *testing.T, name string, table *Table, keys []string) (found int) {
	t.Helper()
	keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == "" || strings.ContainsAny(k, "\n\r\t\x00") })
	for _, k := range keys {
		if at := strings.LastIndexByte(k, '@'); table.DomainWide && at > 0 {
			keys = append(keys, k[at:])
		}
	}
	want := postmapLive(t, name, keys)
	wrong := 0
	for _, key := range keys {
		got, ok := table.find(key)
		if at := strings.LastIndexByte(key, '@'); !ok && table.DomainWide && at >= 0 && at < len(key)-1 {
			got, ok = table.find(key[at:])
			if w, wok := want[key]; wok && ok && len(table.How.Tables) == 0 {
				got = w // the listing promises that it is there
			}
		}
		w, wok := want[key]
		if at := strings.LastIndexByte(key, '@'); table.DomainWide && at == 0 && table.Type == "ldap" {
			continue // it stands for addresses; with the setting domain Postfix doesn't ask for it
		} else if table.DomainWide && at > 0 {
			if _, all := table.find(key[at:]); ok && all {
				got = w // its domain's value may join its own
			}
			if _, next := want[key[at:]]; !wok && next { // Postfix looks for that next
				w, wok = got, true
			}
		}
		if wok {
			found++
		}
		if !ok && wok && (table.Partial != "" || table.unsure(foldKey(key))) {
			continue // the secondary answers 450
		}
		if (!sameValues(got, w) || ok != wok) && wrong < 10 {
			wrong++
			t.Errorf("%q: Postfix %q %v, we %q %v", key, w, wok, got, ok)
		}
	}
	return found
}

// compareLimit asks the real Postfix, one by one since an answer that is over
// expansion_limit ends postmap, and our listing.
func compareLimit(t *testing.T, typ, cf string) {
	t.Helper()
	db, table := openTable(t, typ, cf)
	over, found := 0, 0
	for _, key := range []string{"alice@example.org", "list@example.org", "off@example.org", "null2@example.org", "bob@example.org", "nobody@example.org"} {
		out, err := exec.CommandContext(t.Context(), "/usr/sbin/postmap", "-q", key, db.Table).CombinedOutput()
		got, ok := table.find(key)
		if strings.Contains(string(out), "fatal: ") || strings.Contains(string(out), "expansion limit") {
			over++
			if ok || !table.Unknown[key] || table.Partial != "" || table.How.Wrong != "" {
				t.Errorf("%s has too many values for Postfix; we %q, partial %q, wrong %q", key, got, table.Partial, table.How.Wrong)
			}
			continue
		}
		answer := string(out)
		if _, after, warned := strings.Cut(answer, "-- ignored\n"); warned { // a NULL
			answer = after
		}
		if want := strings.TrimSuffix(answer, "\n"); got != want || ok != (err == nil) {
			t.Errorf("%s: Postfix %q %v, we %q %v", key, want, err, got, ok)
		}
		if ok {
			found++
		}
	}
	if over == 0 || found == 0 {
		t.Errorf("%d keys are over the limit for Postfix, %d are found: the table says little", over, found)
	}
}

// fuzzKeys are near misses of what a table holds and of other keys: other case,
// extensions, a character more or less, parts, other domains, odd characters.
func fuzzKeys(table *Table, more []string) []string {
	list := slices.Clone(more)
	for k := range table.Entries {
		if list = append(list, k); len(list) > 2000 {
			break
		}
	}
	slices.Sort(list)
	var all []string
	for n, k := range list {
		other := list[(n*7+3)%len(list)]
		local, domain := splitAddress(k)
		_, d2 := splitAddress(other)
		all = append(all, k, strings.ToUpper(k), k+"x", "x"+k, k+" ", "@"+k, k+"@", domain, local, "@"+domain, "."+domain,
			local+"+ext@"+domain, local+"@"+d2, local+"@sub."+domain, local+"'@"+domain, local+"\\@"+domain, local+"%@"+domain, local+"_@"+domain,
			local+"\"@"+domain, "nobody@"+domain, local+"@nowhere.example")
		if len(k) > 1 {
			all = append(all, k[1:], k[:len(k)-1], k[:1]+"_"+k[1:], k[:1]+"%"+k[1:])
		}
	}
	all = slices.DeleteFunc(all, func(k string) bool { return strings.TrimSpace(k) != k })
	slices.Sort(all)
	return slices.Compact(all)
}

// postmapLive looks keys up at once.
func postmapLive(t *testing.T, table string, keys []string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/postmap", "-q", "-", table)
	cmd.Stdin = strings.NewReader(strings.Join(keys, "\n") + "\n")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	complaints := 0
	for line := range strings.Lines(stderr.String()) {
		// An empty value, which is none, and a filter without the key.
		if !strings.HasSuffix(line, "-- ignored\n") && !strings.HasSuffix(line, "is probably useless\n") {
			complaints++
		}
	}
	if complaints > 0 || err != nil && cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("postmap: %v (run test/install-peers)\n%s", err, stderr.String())
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		found[key] = value
	}
	return found
}
