package postfix

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// mailLDIF has what enumerations go wrong with.
const mailLDIF = `dn: ou=mail,dc=example,dc=org
objectClass: organizationalUnit
ou: mail

dn: uid=alice,ou=mail,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: mailBox
uid: alice
cn: alice@example.org
sn: active
mail: alice@example.org
mail: Second@Example.ORG
mailAlias: a1@example.org
mailAlias: catch.example
title: alice@mail.example
title: backup@mail.example
street: extra@mail.example

dn: uid=bob,ou=mail,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: mailBox
uid: bob
cn: bob@example.org
sn: off
mail: bob@example.org
mail: list@example.org
title: bob@mail.example

dn: uid=carol,ou=mail,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: mailBox
uid: carol
cn: carol@sub.example.org
sn: active
mail: list@example.org
mail: @catch.example
mail: o'brien@example.org
mailAlias: bob@example.org
title: CAROL@mail.example

dn: uid=dora,ou=mail,dc=example,dc=org
objectClass: inetOrgPerson
uid: dora
cn: dora@example.org
sn: active
mail: dora(x)*@example.org

dn: ou=deep,ou=mail,dc=example,dc=org
objectClass: organizationalUnit
ou: deep

dn: uid=erin,ou=deep,ou=mail,dc=example,dc=org
objectClass: inetOrgPerson
uid: erin
cn: erin@example.org
sn: active
mail: nobody@example.org
title: erin@mail.example
`

var liveSearches = []struct{ name, cf string }{
	{"mail", "query_filter = (mail=%s)\nresult_attribute = title"},
	{"several values", "query_filter = (&(objectClass=inetOrgPerson)(mail=%s))\nresult_attribute = title, street"},
	{"either attribute", "query_filter = (|(mail=%s)(mailAlias=%s))\nresult_attribute = uid"},
	{"and a state", "query_filter = (&(|(mail=%s)(mailAlias=%s))(sn=active)(!(uid=erin)))\nresult_attribute = mail"},
	{"both attributes", "query_filter = (&(cn=%s)(mail=%s))\nresult_attribute = uid"},
	{"the key itself", "query_filter = (mail=%s)\nresult_attribute = mail"},
	{"parts of the key", "query_filter = (mail=%u@%d)\nresult_attribute = title"},
	{"local-part of listed domains", "domain = example.org\nquery_filter = (uid=%u)\nresult_attribute = title"},
	{"listed domains", "domain = catch.example, sub.example.org\nquery_filter = (cn=%s)\nresult_attribute = title"},
	{"no result", "query_filter = (mail=%s)\nresult_attribute = street"},
	{"one level", "scope = one\nquery_filter = (mail=%s)\nresult_attribute = uid"},
	{"result_format", "query_filter = (mail=%s)\nresult_attribute = title\nresult_format = <%u> for %S"},
	{"without parentheses", "query_filter = mail=%s\nresult_attribute = uid"},
	{"escaped", "query_filter = (&(mail=%s)(cn=dora\\40example.org))\nresult_attribute = uid"},
	{"arms with conditions", "query_filter = (|(mail=%s)(&(sn=active)(mailAlias=%s)))\nresult_attribute = uid"},
	{"arms of two classes", "query_filter = (|(&(objectClass=mailBox)(mail=%s))(&(sn=off)(title=%s))(&(ou=deep)(cn=%s)))\nresult_attribute = uid"},
	{"not the key", "query_filter = (&(mail=%s)(!(mailAlias=%s)))\nresult_attribute = uid"},
	{"catch-alls", "query_filter = (|(mail=%s)(mail=@%d))\nresult_attribute = uid"},
	{"domains of addresses", "query_filter = (|(mail=*@%s)(mailAlias=*@%s))\nresult_attribute = mail"},
	{"key in the base", "domain = sub.example.org, example.org\nsearch_base = uid=%u,ou=mail,dc=%2,dc=%1\nscope = base\nquery_filter = (|(cn=%s)(sn=off)(!(cn=%s)))\nresult_attribute = uid"},
	{"domain in the base", "search_base = ou=mail,dc=%2,dc=%1\nscope = one\nquery_filter = (|(mail=%s)(title=%s))\nresult_attribute = uid"},
	{"supertype", "query_filter = (name=%s)\nresult_attribute = uid"},
	{"other name", "query_filter = (rfc822Mailbox=%s)\nresult_attribute = uid"},
	{"no such attribute", "query_filter = (|(mail=%s)(nosuch=%s))\nresult_attribute = uid"},
	{"an arm that finds nobody", "query_filter = (|(mail=%s)(&(sn=none)(uid=alice)))\nresult_attribute = uid"},
	{"StartTLS", "start_tls = yes\nquery_filter = (mail=%s)\nresult_attribute = uid"},
}

func TestLiveLDAP(t *testing.T) {
	dir := listertest.OpenLDAP(t, mailLDIF, 1000)
	connection := fmt.Sprintf("server_host = ldap://%s\nversion = 3\nbind_dn = cn=reader,dc=example,dc=org\nbind_pw = %s\n", dir.Address(), listertest.Password)
	for _, s := range liveSearches {
		t.Run(s.name, func(t *testing.T) {
			base := "search_base = ou=mail,dc=example,dc=org\n"
			if strings.Contains(s.cf, "search_base") {
				base = ""
			}
			compareLive(t, "ldap", connection+base+s.cf+"\n")
		})
	}
}

// TestLiveImport imports a configuration whose tables are databases.
func TestLiveImport(t *testing.T) {
	dir := listertest.OpenLDAP(t, mailLDIF, 1000)
	conf := t.TempDir()
	files := map[string]string{
		"main.cf": `compatibility_level = 3.6
myhostname = mx.example.net
virtual_mailbox_domains = example.org
virtual_mailbox_maps = proxy:ldap:` + conf + `/ldap.cf
virtual_alias_maps = ldap:inmain
inmain_server_host = ` + dir.Address() + `
inmain_version = 3
inmain_bind_dn = cn=reader,dc=example,dc=org
inmain_bind_pw = ` + listertest.Password + `
inmain_search_base = dc=example,dc=org
inmain_query_filter = (mailAlias=%s)
inmain_result_attribute = mail
`,
		"master.cf": "smtp inet n - n - - smtpd\n",
		"ldap.cf": "server_host = " + dir.Address() + "\nversion = 3\nbind_dn = cn=reader,dc=example,dc=org\nbind_pw = " + listertest.Password +
			"\nsearch_base = dc=example,dc=org\nquery_filter = (mail=%s)\nresult_attribute = uid\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spec, report, err := Import(context.Background(), Source{ConfigDir: conf, Lister: Databases{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ldap:" + conf + "/ldap.cf", "ldap:inmain"} {
		if spec.Tables[name] == nil {
			t.Errorf("%s isn't in the Spec", name)
		}
	}
	for _, it := range report.Items {
		if strings.Contains(it.Element, "ldap:") && it.Class != fidelity.Exact {
			t.Errorf("%s: %s is %s: %s", it.Parameter, it.Element, it.Class, it.Why)
		}
	}
	dir.Stop()
	_, _, err = Import(context.Background(), Source{ConfigDir: conf, Lister: Databases{}})
	for _, want := range []string{"virtual_mailbox_maps", "/ldap.cf", "server_host", "start the server", "virtual_alias_maps"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a directory that is down: %v; want %q", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), listertest.Password) {
		t.Error("the error tells the password")
	}
}
