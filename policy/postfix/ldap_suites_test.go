//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// ldapMail is what an LDAP suite's directory holds: addresses, by what becomes
// of their number when it is divided.
type ldapMail struct {
	domains   []string
	addresses []string // of users, in order
}

func newLDAPMail() *ldapMail {
	m := &ldapMail{}
	for n := range 50 {
		m.domains = append(m.domains, fmt.Sprintf([]string{"d%02d.example", "sub.d%02d.example", "Caps%02d.Example"}[n%3], n))
	}
	odd := []string{"o'brien", "per%cent", "two  spaces", "Caps", "back\\slash", "star*", "paren(s)", "quo\"te", "com,ma", "#hash", "plus+ext", "eq=ual", "semi;colon", "a/b", "x"}
	for n := range 2200 {
		local := fmt.Sprintf("user%d", n)
		if n%10 == 3 {
			local = odd[n/10%len(odd)] + strconv.Itoa(n)
		}
		m.addresses = append(m.addresses, local+"@"+m.domains[n%len(m.domains)])
	}
	return m
}

// keys are those that exist, near misses, and some that no suite knows.
func (m *ldapMail) keys(count int, seed uint64) []string {
	r := rand.New(rand.NewPCG(seed, 0))
	some := slices.Concat(m.domains, []string{"nobody@nowhere.example", "postmaster", "alias0@d00.example", "shadow6@d06.example", "group0@d00.example", "all@Caps02.Example"})
	for len(some) < count {
		n := r.IntN(len(m.addresses))
		a := m.addresses[n]
		_, domain := splitAddress(a)
		some = append(some, a, fmt.Sprintf("alias%d@%s", n, domain), fmt.Sprintf("shadow%d@%s", n, domain), fmt.Sprintf("group%d@%s", n%40, m.domains[n%40]),
			strings.Replace(a, domain, "alias."+domain, 1), "@"+domain, fmt.Sprintf("ext%d@far.example", n%50), domain)
	}
	keys := slices.Compact(slices.Sorted(slices.Values(some[:count/2])))
	near := fuzzKeys(&Table{}, some[:count/12])
	r.Shuffle(len(near), func(i, j int) { near[i], near[j] = near[j], near[i] })
	return append(keys, near[:min(len(near), count-len(keys))]...)
}

func when[T any](condition bool, then, otherwise T) T {
	if condition {
		return then
	}
	return otherwise
}

// iRedMail's directory: domains, below each its users, lists and aliases.
func (m *ldapMail) iRedMail() string {
	l := &ldif{}
	const base = "o=domains,dc=example,dc=org"
	l.entry("o", "domains", "dc=example,dc=org", "objectClass", "organization")
	for n, d := range m.domains {
		l.entry("domainName", d, base, "objectClass", "mailDomain", "enabledService", "mail", "enabledService", when(n%4 < 2, "domainalias", "recipientbcc"),
			"accountStatus", when(n%9 == 8, "disabled", "active"), "domainBackupMX", when(n%7 == 6, "yes", ""), "domainAliasName", "alias."+d,
			"mtaTransport", when(n%3 == 0, "dovecot", ""), "domainRecipientBccAddress", when(n%5 == 0, "bcc@"+d, ""))
		above := "domainName=" + ldap.EscapeDN(d) + "," + base
		for _, ou := range []string{"Users", "Groups", "Aliases", "Externals"} {
			l.entry("ou", ou, above, "objectClass", "organizationalUnit")
		}
		status := when(n%9 == 8, "disabled", "")
		group := fmt.Sprintf("group%d@%s", n, d)
		l.entry("mail", group, "ou=Groups,"+above, "objectClass", "mailList", "accountStatus", "active", "domainStatus", status, "enabledService", "mail",
			"enabledService", "deliver", "enabledService", when(n%2 == 0, "mlmmj", ""), "shadowAddress", "list."+group, "mtaTransport", when(n%2 == 0, "mlmmj:x", ""),
			"memberOfGroup", when(n%3 == 0, "all@"+d, ""), "shadowAddress", when(n%6 == 0, "all@"+d, ""))
		l.entry("mail", fmt.Sprintf("alias%d@%s", n, d), "ou=Aliases,"+above, "objectClass", "mailAlias", "accountStatus", when(n%5 == 4, "disabled", "active"),
			"domainStatus", status, "enabledService", "mail", "enabledService", "deliver", "mailForwardingAddress", "x@y.example", "mailForwardingAddress", group,
			"memberOfGroup", when(n%2 == 0, group, ""))
		l.entry("mail", fmt.Sprintf("ext%d@far.example", n), "ou=Externals,"+above, "objectClass", "mailExternalUser", "accountStatus", "active", "enabledService", "mail",
			"enabledService", "deliver", "memberOfGroup", group)
		if n%4 == 0 { // its catch-all
			l.entry("mail", "@"+d, "ou=Users,"+above, "objectClass", "inetOrgPerson", "objectClass", "mailUser", "sn", "x", "cn", "x", "uid", "catchall",
				"accountStatus", "active", "mailForwardingAddress", "all@"+d)
		}
	}
	for n, a := range m.addresses {
		_, d := splitAddress(a)
		dn := "ou=Users,domainName=" + ldap.EscapeDN(d) + "," + base
		l.entry("mail", a, dn, "objectClass", "inetOrgPerson", "objectClass", "mailUser", "uid", "u"+strconv.Itoa(n), "sn", "x", "cn", "x",
			"accountStatus", when(n%8 == 7, "disabled", "active"), "domainStatus", when(n%50%9 == 8, "disabled", ""), "enabledService", "mail",
			"enabledService", when(n%11 != 10, "deliver", ""), "enabledService", when(n%3 == 0, "forward", "recipientbcc"), "enabledService", when(n%2 == 0, "smtp", ""),
			"homeDirectory", when(n%13 != 12, fmt.Sprintf("/var/vmail/%d", n), ""), "shadowAddress", when(n%2 == 0, fmt.Sprintf("shadow%d@%s", n, d), ""),
			"shadowAddress", when(n%6 == 0, strings.Replace(a, d, "alias."+d, 1), ""), "mailForwardingAddress", when(n%4 < 2, fmt.Sprintf("fwd%d@y.example", n), ""),
			"memberOfGroup", when(n%3 == 0, fmt.Sprintf("group%d@%s", n%40, m.domains[n%40]), ""), "userRecipientBccAddress", when(n%7 == 0, "bcc@"+d, ""),
			"mtaTransport", when(n%17 == 0, "lmtp:x", ""))
	}
	return l.String()
}

// postfixBook's users, as docker-mailserver has them.
func (m *ldapMail) postfixBook() string {
	l := &ldif{}
	l.entry("ou", "people", "dc=example,dc=org", "objectClass", "organizationalUnit")
	for n, a := range m.addresses {
		_, d := splitAddress(a)
		l.entry("uid", "u"+strconv.Itoa(n), "ou=people,dc=example,dc=org", "objectClass", "inetOrgPerson", "objectClass", "PostfixBookMailAccount", "sn", "x", "cn", "x",
			"mail", a, "mailEnabled", when(n%8 == 7, "FALSE", when(n%9 == 8, "", "TRUE")), "mailAlias", when(n%2 == 0, fmt.Sprintf("alias%d@%s", n, d), ""),
			"mailAlias", when(n%10 == 0, fmt.Sprintf("shadow%d@only%d.example", n, n), ""), "mailGroupMember", fmt.Sprintf("group%d@%s", n%40, m.domains[n%40]),
			"mailGroupMember", when(n%5 == 0, strings.ToLower("all@"+d), ""))
	}
	return l.String()
}

// groups lead to users, to each other and to themselves.
func (m *ldapMail) groups() string {
	l := &ldif{}
	const base = "ou=people,dc=example,dc=org"
	name := func(n int) string { return "cn=" + ldap.EscapeDN(fmt.Sprintf("p%d", n)) + "," + base }
	l.entry("ou", "people", "dc=example,dc=org", "objectClass", "organizationalUnit")
	for n, a := range m.addresses {
		l.entry("cn", fmt.Sprintf("p%d", n), base, "objectClass", "mailGroupOrUser", "mail", a, "memberaddr", when(n%3 == 0, fmt.Sprintf("m%d@y.example", n), ""),
			"maildrop", when(n%5 == 0, fmt.Sprintf("drop%d@y.example", n), ""), "mgrpTerminal", when(n%11 == 0, "term@y.example", ""))
	}
	for n := range 40 {
		attrs := []string{"objectClass", "mailGroupOrUser", "mail", fmt.Sprintf("group%d@%s", n, m.domains[n]), "memberaddr", when(n%4 == 0, fmt.Sprintf("alias%d@%s", n, m.domains[n]), "")}
		for k := range n % 7 {
			attrs = append(attrs, "memberdn", name((n*37+k*11)%len(m.addresses)))
		}
		attrs = append(attrs, "memberdn", when(n%5 > 1, fmt.Sprintf("cn=g%d,%s", n+1, base), ""), "memberdn", when(n == 20, "cn=g20,"+base, ""),
			"memberdn", when(n%9 == 1, "cn=nobody,"+base, ""),
			"memberURL", when(n%6 == 2, fmt.Sprintf("ldap:///%s??sub?(mail=user%d*)", base, n), ""),
			"memberURL", when(n%6 == 3, fmt.Sprintf("ldap:///%s?mail?one?(mail=%%75ser2%d@*)", base, n), ""),
			"memberURL", when(n%12 == 5, "ldap:///"+base+"?title?sub?(cn=*)", ""), "mgrpTerminal", when(n%13 == 0, "gterm@y.example", ""))
		l.entry("cn", fmt.Sprintf("g%d", n), base, attrs...)
	}
	l.entry("cn", "g40", base, "objectClass", "mailGroupOrUser", "mail", "last@d00.example")
	return l.String()
}

// TestLDAPSuites loads the schemas of mail systems that keep their addresses
// in LDAP, and compares every table of theirs with what postmap -q finds.
// SUITE_KEYS is how many keys each is asked for, SEED which.
func TestLDAPSuites(t *testing.T) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	m := newLDAPMail()
	keys := m.keys(number("SUITE_KEYS", 2000), uint64(number("SEED", 1)))
	few := keys // where groups are followed: a look-up that fails takes long
	for len(few) > 400 {
		n := 0
		few = slices.DeleteFunc(slices.Clone(few), func(string) bool { n++; return n%2 == 0 })
	}
	for name, data := range map[string]func() string{"iredmail": m.iRedMail, "docker-mailserver": m.postfixBook, "docker-mailserver-overrides": m.postfixBook, "groups": m.groups} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", "suites", "ldap", name)
			schema, err := os.ReadFile(filepath.Join(dir, "schema"))
			if err != nil {
				t.Fatal(err)
			}
			server := listertest.OpenLDAP(t, data(), 10_000, string(schema))
			connection := fmt.Sprintf("server_host = ldap://%s\nversion = 3\nbind_dn = cn=reader,dc=example,dc=org\nbind_pw = %s\n", server.Address(), listertest.Password)
			tables, _ := filepath.Glob(filepath.Join(dir, "*.cf"))
			if len(tables) < 5 {
				t.Fatalf("%d tables", len(tables))
			}
			for _, cf := range tables {
				if table := strings.TrimSuffix(filepath.Base(cf), ".cf"); table != "main" {
					t.Run(table, func(t *testing.T) { compareSuiteTable(t, cf, connection, when(name == "groups", few, keys)) })
				}
			}
		})
	}
}

// nothingThere are tables in which Postfix finds nothing, as meant.
var nothingThere = []string{"docker-mailserver-overrides/ldap-aliases.cf"}

func compareSuiteTable(t *testing.T, cf, connection string, keys []string) {
	text, err := os.ReadFile(cf)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	db, table := openTable(t, "ldap", strings.ReplaceAll(string(text), "@CONNECTION@\n", connection))
	took := time.Since(began)
	if !table.How.Exact || table.How.Wrong != "" {
		t.Errorf("isn't exact: %s %s %s", table.How.Why, table.Partial, table.How.Wrong)
	}
	want, failed := map[string]string{}, map[string]bool{}
	isGroup := func(k string) bool { return strings.HasPrefix(k, "group") }
	postmapBatch(t, db.Table, slices.DeleteFunc(slices.Clone(keys), isGroup), want, failed)
	for group := range slices.Chunk(slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return !isGroup(k) }), when(len(table.Unknown) == 0, len(keys), 1)) {
		postmapBatch(t, db.Table, group, want, failed)
	}
	differ := 0
	for _, key := range keys {
		w, there := want[key]
		got, ok := table.find(key)
		switch {
		case failed[key] && !ok && table.Unknown[foldKey(key)], !failed[key] && ok == there && sameValues(got, w):
			continue
		case there && !ok && strings.Contains(key, " "):
			continue // Unsure
		}
		if differ++; differ <= 8 {
			t.Errorf("%q: Postfix %q %v (fails: %v), we %q %v", key, w, there, failed[key], got, ok)
		}
	}
	if none := slices.Contains(nothingThere, filepath.Join(filepath.Base(filepath.Dir(cf)), filepath.Base(cf))); (len(want) == 0) != none {
		t.Errorf("Postfix finds %d of the keys", len(want))
	}
	t.Logf("%d entries in %v; of %d keys Postfix finds %d and fails for %d; %d differ; %d unknown", len(table.Entries), took.Round(time.Millisecond), len(keys), len(want), len(failed), differ, len(table.Unknown))
}

// ldif writes entries.
type ldif struct{ strings.Builder }

// entry takes a name's first part, what lies above, and attributes by turns
// with their values. Empty values are left out.
func (l *ldif) entry(attr, value, above string, attributes ...string) {
	l.line("dn", attr+"="+ldap.EscapeDN(value)+","+above)
	l.line(attr, value)
	for n := 0; n+1 < len(attributes); n += 2 {
		if attributes[n+1] != "" && !(strings.EqualFold(attributes[n], attr) && attributes[n+1] == value) {
			l.line(attributes[n], attributes[n+1])
		}
	}
	l.WriteString("\n")
}

func (l *ldif) line(name, value string) {
	fmt.Fprintf(l, "%s:: %s\n", name, base64.StdEncoding.EncodeToString([]byte(value)))
}
