package postfix

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// exactSchema has an attribute that minds the case and can't be compared in
// part, and one that can't be compared at all.
const exactSchema = `
attributetype ( 1.3.6.1.4.1.1466.344.21 NAME 'mailGroup' EQUALITY caseExactIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.1466.344.22 NAME 'mailNote' SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
objectclass ( 1.3.6.1.4.1.1466.344.29 NAME 'mailMore' SUP top AUXILIARY MAY ( mailGroup $ mailNote ) )
`

// randomDirectory has what filters tell apart: case, space, what is quoted,
// entries that lack an attribute, options, and names of domains.
type randomDirectory struct {
	*rand.Rand
	domains, values []string
}

func newRandomDirectory(seed uint64) *randomDirectory {
	r := &randomDirectory{Rand: rand.New(rand.NewPCG(seed, 344)), domains: []string{"example.org", "sub.example.org", "b.example"}}
	for _, d := range r.domains {
		for _, u := range []string{"alice", "bob", "o'brien", "a+b", "x(y)*", `b\s`, "two  spaces", "é", "p%c", "a#,=;<>"} {
			r.values = append(r.values, u+"@"+d)
		}
		r.values = append(r.values, "@"+d, d)
	}
	r.values = append(r.values, "alice", "bob", "two@at@example.org")
	return r
}

func (r *randomDirectory) one(list ...string) string { return list[r.IntN(len(list))] }

func (r *randomDirectory) value(ascii bool) string {
	for {
		v := r.one(r.values...)
		if ascii && strings.Contains(v, "é") {
			continue
		}
		switch r.IntN(6) {
		case 0:
			v = strings.ToUpper(v)
		case 1:
			v = "smtp:" + v
		case 2:
			v = strings.Replace(v, "@", " @", 1)
		}
		return v
	}
}

func (r *randomDirectory) ldif(entries int) string {
	var b strings.Builder
	b.WriteString("dn: ou=mail,dc=example,dc=org\nobjectClass: organizationalUnit\nou: mail\n\n")
	for _, d := range r.domains {
		fmt.Fprintf(&b, "dn: ou=%s,ou=mail,dc=example,dc=org\nobjectClass: organizationalUnit\nou: %[1]s\n\n", d)
	}
	for n := range entries {
		above := ""
		if d := r.IntN(len(r.domains) + 1); d < len(r.domains) {
			above = "ou=" + r.domains[d] + ","
		}
		names := map[string]int{"cn": 1, "mail": r.IntN(3), "title": r.IntN(2), "cn;lang-en": r.IntN(2)}
		classes := ""
		if r.IntN(2) == 0 {
			classes += "objectClass: mailBox\n"
			names["mailAlias"] = r.IntN(3)
		}
		if r.IntN(2) == 0 {
			classes += "objectClass: mailMore\n"
			names["mailGroup"], names["mailNote"] = r.IntN(3), 1
		}
		fmt.Fprintf(&b, "dn: uid=u%d,%sou=mail,dc=example,dc=org\nobjectClass: inetOrgPerson\n%suid: u%[1]d\nsn: %[4]s\n", n, above, classes, r.one("on", "off", "ON"))
		for _, name := range sortedKeys(names) {
			seen := map[string]bool{}
			for range names[name] {
				v := r.value(name != "cn" && name != "title")
				if same := strings.ToLower(squeeze(v)); !seen[same] {
					seen[same] = true
					fmt.Fprintf(&b, "%s: %s\n", name, v)
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (r *randomDirectory) filter(depth int) string {
	if depth > 0 && r.IntN(4) > 0 {
		op := r.one("&", "&", "|", "|", "!")
		s := "(" + op
		n := 1
		if op != "!" {
			n += 1 + r.IntN(2)
		}
		for range n {
			s += r.filter(depth - 1)
		}
		return s + ")"
	}
	if r.IntN(3) == 0 {
		return r.one("(sn=on)", "(sn=off)", "(title=*)", "(objectClass=mailBox)", "(objectClass=inetOrgPerson)", "(cn=*a*)", "(!(mail=*))", "(nosuch=x)", "(uid=u1)")
	}
	attr := r.one("mail", "mail", "mailAlias", "cn", "name", "title", "mailGroup", "mailGroup", "nosuch", "mailNote", "rfc822Mailbox")
	return "(" + attr + "=" + r.one("%s", "%s", "%s", "%S", "%u@%d", "%U@%d", "%u", "%d", "smtp:%s", `\73mtp:%s`, "@%d", "*@%s", "*@%d", "x%s*") + ")"
}

func (r *randomDirectory) table() string {
	s := "search_base = " + r.one("ou=mail,dc=example,dc=org", "ou=mail,dc=example,dc=org", "ou=%d,ou=mail,dc=example,dc=org", "ou=%d,ou=mail,dc=example,dc=%1")
	s += "\nscope = " + r.one("sub", "sub", "one", "base")
	s += "\nquery_filter = " + r.filter(3)
	s += "\nresult_attribute = " + r.one("uid", "uid", "mail", "uid, cn", "mailAlias, uid", "cn;lang-en", "title")
	if r.IntN(3) == 0 {
		s += "\nresult_format = " + r.one("%s", "<%u>", "%d", "%u at %D", "%s for %S", "%%%2-%1")
	}
	if r.IntN(4) == 0 {
		s += "\ndomain = " + r.one("example.org", "b.example, example.org", "!b.example, b.example, example.org")
	}
	return s + "\n"
}

// TestLDAPProperty compares random tables, listed, with what Postfix finds.
// UNDERSTUDY_LDAP_TABLES is their number.
func TestLDAPProperty(t *testing.T) {
	tables, err := strconv.Atoi(os.Getenv("UNDERSTUDY_LDAP_TABLES"))
	if err != nil {
		tables = 60
	}
	seed := uint64(1)
	if tables > 60 {
		seed = rand.Uint64()
	}
	r := newRandomDirectory(seed)
	dir := listertest.OpenLDAP(t, r.ldif(40), 1000, listertest.MailSchema, exactSchema)
	connection := fmt.Sprintf("server_host = ldap://%s\nversion = 3\nbind_dn = cn=reader,dc=example,dc=org\nbind_pw = %s\n", dir.Address(), listertest.Password)
	var keys []string
	for _, v := range r.values {
		keys = append(keys, v, "smtp:"+v, strings.ToUpper(v), squeeze(v), strings.Replace(v, "@", " @", 1), "x"+v)
	}
	keys = append(keys, "alice@", "nobody@nowhere.example", "é", "É@example.org", "*", "nobody@b.example")
	keys = slices.Compact(slices.Sorted(slices.Values(keys)))
	exact, found := 0, 0
	for range tables {
		cf := r.table()
		db, table := openTable(t, "ldap", connection+cf)
		found += compareKeys(t, db.Table, table, keys)
		if table.How.Exact {
			exact++
			if table.How.Wrong != "" {
				t.Errorf("the check found: %s", table.How.Wrong)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, cf)
		}
	}
	t.Logf("%d of %d tables listed exactly, %d keys found", exact, tables, found)
	if exact*5 < tables || found < tables {
		t.Errorf("seed %d: %d of %d tables listed exactly, %d keys found: that says little", seed, exact, tables, found)
	}
}
