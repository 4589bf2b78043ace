package postfix

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// people are entries with an address each.
func people(n int) string {
	var b strings.Builder
	b.WriteString("dn: ou=mail,dc=example,dc=org\nobjectClass: organizationalUnit\nou: mail\n\n")
	for i := range n {
		fmt.Fprintf(&b, "dn: uid=u%[1]d,ou=mail,dc=example,dc=org\nobjectClass: inetOrgPerson\nobjectClass: mailBox\nuid: u%[1]d\ncn: U %[1]d\nsn: U\nmail: u%[1]d@d%[2]d.example\nmailAlias: a%[1]d@d%[2]d.example\n\n", i, i%500)
	}
	return b.String()
}

// admin is a connection that may change everything.
func admin(t testing.TB, dir *listertest.Server) *ldap.Conn {
	t.Helper()
	conn, err := ldap.DialURL("ldap://" + dir.Address())
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		err = conn.Bind("cn=admin,dc=example,dc=org", listertest.Password)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func mailCF(dir *listertest.Server) string {
	return fmt.Sprintf("server_host = ldap://%s\nversion = 3\nbind_dn = cn=reader,dc=example,dc=org\nbind_pw = %s\nsearch_base = ou=mail,dc=example,dc=org\n"+
		"query_filter = (|(mail=%%s)(mailAlias=%%s))\nresult_attribute = uid\n", dir.Address(), listertest.Password)
}

func listLDAP(t testing.TB, cf string, memo *Memo) *Table {
	t.Helper()
	db := &Database{Type: "ldap", Table: "ldap:x", memo: memo}
	var err error
	if db.Settings, err = parseCF(cf); err == nil {
		err = db.analyse()
	}
	if err != nil {
		t.Fatal(err)
	}
	table, err := db.list(t.Context(), Databases{})
	if err != nil || !table.How.Exact {
		t.Fatalf("%v, %+v", err, table)
	}
	return table
}

// TestMemoLDAP lists again while nothing has changed, and after changes: a
// directory that can tell is left alone in between, and none keeps a change
// from being listed.
func TestMemoLDAP(t *testing.T) {
	for name, s := range map[string]struct {
		start func(testing.TB, string, int) *listertest.Server
		tells bool // that nothing has changed
	}{
		"provider":      {listertest.Provider, true},
		"log":           {listertest.LoggingProvider, true},
		"numbered once": {listertest.NumberedOnce, false},
		"no numbers":    {unnumbered, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := s.start(t, people(20), 1000)
			cf, memo, conn := mailCF(dir), &Memo{}, admin(t, dir)
			first := listLDAP(t, cf, memo)
			if again := listLDAP(t, cf, memo); (again == first) != s.tells || len(first.Entries) != 40 {
				t.Errorf("%d entries; listed once: %v", len(first.Entries), again == first)
			}
			if memo.Changed(t.Context(), Databases{}) {
				t.Error("a change is seen where there was none")
			}
			if formatted := listLDAP(t, cf+"result_format = <%s>\n", memo); formatted.Entries["u7@d7.example"] != "<u7>" {
				t.Errorf("with other settings: %q", formatted.Entries["u7@d7.example"])
			}
			listLDAP(t, cf, memo)
			const person = "uid=u7,ou=mail,dc=example,dc=org"
			more := ldap.NewModifyRequest(person, nil)
			more.Add("mailAlias", []string{"new@d1.example"})
			for _, step := range []struct {
				what, key, want string
				do              func() error
			}{
				{"modify", "new@d1.example", "u7", func() error { return conn.Modify(more) }},
				{"rename", "u7@d7.example", "other", func() error { return conn.ModifyDN(ldap.NewModifyDNRequest(person, "uid=other", true, "")) }},
				{"delete", "u7@d7.example", "", func() error {
					return conn.Del(ldap.NewDelRequest("uid=other,ou=mail,dc=example,dc=org", nil))
				}},
			} {
				if err := step.do(); err != nil {
					t.Fatal(step.what, err)
				}
				if seen := memo.Changed(t.Context(), Databases{}); seen != s.tells {
					t.Errorf("%s: seen at a glance: %v", step.what, seen)
				}
				table := listLDAP(t, cf, memo)
				if got := table.Entries[step.key]; got != step.want || s.tells != (table.How.Asked > 0) {
					t.Errorf("%s: %q, want %q; %d keys asked for", step.what, got, step.want, table.How.Asked)
				}
				if again := listLDAP(t, cf, memo); (again == table) != s.tells {
					t.Errorf("%s: listed once: %v", step.what, again == table)
				}
			}
			memo.of("ldap:x").full = time.Now().Add(-askAgain)
			old := memo.of("ldap:x").table
			if listLDAP(t, cf, memo) == old {
				t.Error("it is never listed again")
			}
		})
	}
}

// TestLDAPChanges changes a directory at random: what is brought up to date is
// the same as what is listed anew.
func TestLDAPChanges(t *testing.T) {
	for name, start := range map[string]func(testing.TB, string, int) *listertest.Server{"present": listertest.Provider, "log": listertest.LoggingProvider} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := start(t, people(len(crowd{})), 1000)
			memo, conn, rng := &Memo{}, admin(t, dir), rand.New(rand.NewPCG(10, 2))
			cf := strings.Replace(mailCF(dir), "(|(mail=%s)(mailAlias=%s))", "(|(&(mail=%s)(!(title=off)))(&(objectClass=mailBox)(mailAlias=%s)))", 1)
			listLDAP(t, cf, memo)
			crowd, asked := crowd{}, 0
			for n := range crowd {
				crowd[n] = true
			}
			for step := range 20 {
				for range 1 + rng.IntN(3) {
					if err := crowd.change(rng, conn); err != nil {
						t.Fatal(err)
					}
				}
				table, anew := listLDAP(t, cf, memo), listLDAP(t, cf, nil)
				if diff := cmp.Diff(anew.Entries, table.Entries); diff != "" {
					t.Fatalf("step %d (-anew +kept):\n%s", step, diff)
				}
				asked += table.How.Asked
			}
			if asked == 0 || asked > 20*20 {
				t.Errorf("%d keys asked for", asked)
			}
		})
	}
}

// crowd says which entries are there.
type crowd [40]bool

// change changes one entry. It doesn't fail: while a write that failed is on its
// way out, contextCSN stays behind the next one.
func (c *crowd) change(rng *rand.Rand, conn *ldap.Conn) error {
	n := rng.IntN(len(c))
	dn := fmt.Sprintf("uid=u%d,ou=mail,dc=example,dc=org", n)
	address := fmt.Sprintf("%c%d@d%d.example", "ua"[rng.IntN(2)], rng.IntN(len(c)), rng.IntN(3))
	attr := []string{"mail", "mailAlias"}[rng.IntN(2)]
	if !c[n] {
		c[n] = true
		add := ldap.NewAddRequest(dn, nil)
		for _, a := range [][2]string{{"objectClass", "mailBox"}, {"cn", "x"}, {"sn", "x"}, {attr, address}} {
			add.Attribute(a[0], []string{a[1]})
		}
		add.Attributes[0].Vals = append(add.Attributes[0].Vals, "inetOrgPerson")
		return conn.Add(add)
	}
	modify := ldap.NewModifyRequest(dn, nil)
	switch rng.IntN(6) {
	case 0:
		modify.Replace(attr, []string{address})
	case 1:
		modify.Replace(attr, []string{strings.ToUpper(address), "x" + address})
	case 2:
		modify.Replace("mailAlias", nil)
	case 3:
		modify.Replace("title", [][]string{{"off"}, {"on"}, nil}[rng.IntN(3)])
	case 4:
		c[n] = false
		return conn.Del(ldap.NewDelRequest(dn, nil))
	default:
		if to := rng.IntN(len(c)); !c[to] {
			c[n], c[to] = false, true
			return conn.ModifyDN(ldap.NewModifyDNRequest(dn, fmt.Sprintf("uid=u%d", to), true, ""))
		}
		modify.Replace("sn", []string{address})
	}
	return conn.Modify(modify)
}

func unnumbered(t testing.TB, ldif string, limit int) *listertest.Server {
	t.Helper()
	return listertest.OpenLDAP(t, ldif, limit)
}

// BenchmarkLDAP lists 100,000 mailboxes: first, after one change, and after none.
func BenchmarkLDAP(b *testing.B) {
	n := 100_000
	dir := listertest.Provider(b, people(n), 10*n)
	cf, conn := mailCF(dir), admin(b, dir)
	for i := range b.N {
		memo := &Memo{}
		timed := func(what string, do func()) {
			start, cpu := time.Now(), cpuTime(b)
			do()
			b.ReportMetric(time.Since(start).Seconds(), what+"-s")
			b.ReportMetric((cpuTime(b) - cpu).Seconds(), what+"-cpu-s")
		}
		peakMemory(b)
		idle := peakMemory(b)
		timed("first", func() { listLDAP(b, cf, memo) })
		b.ReportMetric(float64(peakMemory(b)-idle), "first-peak-MiB")
		more := ldap.NewModifyRequest("uid=u7,ou=mail,dc=example,dc=org", nil)
		more.Add("mailAlias", []string{fmt.Sprintf("new%d@d1.example", i)})
		if err := conn.Modify(more); err != nil {
			b.Fatal(err)
		}
		timed("changed", func() {
			if listLDAP(b, cf, memo).Entries[fmt.Sprintf("new%d@d1.example", i)] == "" {
				b.Error("the change isn't listed")
			}
		})
		timed("unchanged", func() { listLDAP(b, cf, memo) })
		timed("glance", func() { memo.Changed(b.Context(), Databases{}) })
	}
}
