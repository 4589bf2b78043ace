package exim

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/policy"
)

const directoryConfig = `acl_smtp_rcpt = check_rcpt
smtp_enforce_sync = false
ldap_default_servers = @LDAP@
domainlist theirs = ldap;user="cn=reader,dc=example,dc=org" pass=@PASS@ ldap:///ou=people,dc=example,dc=org?uid?sub?(&(objectClass=inetOrgPerson)(mail=info@$domain))
begin acl
check_rcpt:
  deny message = one <${lookup ldap{user="cn=reader,dc=example,dc=org" pass=@PASS@ ldap:///ou=people,dc=example,dc=org?uid?sub?(&(objectClass=inetOrgPerson)(!(sn=none))(|(mail=${quote_ldap:$local_part@$domain})(mailAlias=${quote_ldap:$local_part@$domain})))}{$value}{none}}> \
        several <${lookup ldapm {user="cn=reader,dc=example,dc=org" pass=@PASS@ ldap:///ou=people,dc=example,dc=org?mail,mailAlias,cn?sub?(sn=${quote_ldap:$local_part})}{$value}{none}}> \
        name <${lookup ldapdn{user="cn=reader,dc=example,dc=org" pass=@PASS@ ldap://@LDAP@/dc=example,dc=org?cn?sub?(uid=${quote_ldap:$local_part})}{$value}{none}}>
       local_parts = !postmaster
  accept
`

// TestDirectory: look-ups in a real OpenLDAP say the same to a real Exim and to us.
func TestDirectory(t *testing.T) {
	var ldif strings.Builder
	ldif.WriteString("dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\nou: people\n\n")
	for _, p := range []struct{ uid, cn, sn string }{{"alice", "A, B", "smith"}, {"bob", `B "q" \ x`, "smith"}, {"carol", "C", "none"}, {"d(e)", "D*", "jones"}} {
		fmt.Fprintf(&ldif, "dn: uid=%[1]s,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nobjectClass: mailBox\nuid: %[1]s\ncn: %[2]s\nsn: %[3]s\nmail: %[1]s@Example.org\nmailAlias: a-%[1]s@example.org\nmailAlias: b-%[1]s@example.org\n\n", p.uid, p.cn, p.sn)
	}
	dir := listertest.OpenLDAP(t, ldif.String(), 1000)
	conf := strings.NewReplacer("@LDAP@", "127.0.0.1::"+strconv.Itoa(dir.Port), "@PASS@", strings.ReplaceAll(strconv.Quote(listertest.Password), `\`, `\\`)).Replace(directoryConfig)
	conf = strings.Replace(conf, "ldap://127.0.0.1::", "ldap://127.0.0.1:", 1)
	spec, report, file, err := importText(t, conf)
	if err != nil {
		t.Fatal(err)
	}
	if lacking := report.Lacking(); len(lacking) != 1 || !strings.Contains(lacking[0], "domainlist theirs") {
		t.Errorf("not replicated: %q; want the list whose query asks for more than a domain", lacking)
	}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(snap.Encode())+fmt.Sprint(report), "s3cret") {
		t.Error("the directory's password is in the policy or the report")
	}
	rcpts := []string{"alice", "ALICE", "a-alice", "b-bob", "bob", "carol", "a-carol", "smith", "jones", "none", "nobody", "*", "a*", "d(e)", "postmaster"}
	var in bytes.Buffer
	in.WriteString("HELO h.example\r\nMAIL FROM:<a@b.example>\r\n")
	for _, r := range rcpts {
		fmt.Fprintf(&in, "RCPT TO:<%s@example.org>\r\n", quoted(r))
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(file), "exim"), "-C", file, "-bh", "192.0.2.1")
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("exim -bh: %v\n%.2000s", err, out)
	}
	want := replies(string(out))
	if len(want) < 3+len(rcpts) {
		t.Fatalf("%d replies: %q", len(want), want)
	}
	se := snap.Session(nil, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	defer se.Close()
	se.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "b.example"}}, policy.MailParams{})
	found := 0
	for n, r := range rcpts {
		got := "250"
		if v := se.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: r, Domain: "example.org"}}); v.Action != policy.Permit {
			got = judged(strconv.Itoa(v.Reply.Code), v.Reply.Text)
		}
		if r == "smith" { // two entries, in any order
			got, want[3+n] = inOrder(got), inOrder(want[3+n])
		}
		if got != want[3+n] {
			t.Errorf("%s: we %q, Exim %q", r, got, want[3+n])
		}
		if strings.Contains(got, "<") && !strings.Contains(got, "one<none>several<none>name<none>") {
			found++
		}
	}
	if found < 8 {
		t.Errorf("only %d were found", found)
	}
}

func quoted(local string) string {
	if strings.ContainsAny(local, "()") {
		return `"` + local + `"`
	}
	return local
}

func inOrder(s string) string {
	s, rest, _ := strings.Cut(s, ">name")
	parts := strings.Split(s, "cn=")
	slices.Sort(parts[1:])
	return strings.Join(parts, "cn=") + rest
}

// TestListingFilter: a filter is listed only if each attribute that it compares with the key is a key of
// every entry that the listing finds.
func TestListingFilter(t *testing.T) {
	for filter, want := range map[string]string{
		"mail=K":                               "(mail=*)",
		"(|(mail=K)(alias=K))":                 "(|(mail=*)(alias=*))",
		"(&(active=1)(|(mail=K)(alias=K)))":    "(&(active=1)(|(mail=*)(alias=*)))",
		"(|(&(active=1)(mail=K)))":             "(|(&(active=1)(mail=*)))",
		"(|(mail=K)(&(active=1)(alias=K)))":    "",
		"(|(mail=K)(|(&(active=1)(alias=K))))": "",
		"(|(mail=K)(active=1))":                "",
		"(!(mail=K))":                          "",
		"(&(mail=K)(alias=K))":                 "",
		"(mail=smtp:K)":                        "",
		"(mail=K":                              "",
	} {
		if got, _, err := listingFilter(strings.ReplaceAll(filter, "K", "\x000\x00")); got != want || (err == nil) != (want != "") {
			t.Errorf("%s is listed by %q (%v), want %q", filter, got, err, want)
		}
	}
}
