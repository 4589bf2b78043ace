package lister_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// people are entries, more than a page of them, as an LDIF.
func people(n int) string {
	var b strings.Builder
	b.WriteString("dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\nou: people\n\n")
	for i := range n {
		fmt.Fprintf(&b, `dn: uid=u%[1]d,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: mailBox
uid: u%[1]d
cn: U %[1]d
sn: U
mail: u%[1]d@example.org
mailAlias: a%[1]d@example.org
mailAlias: b%[1]d@example.org
proxyAddresses: SMTP:p%[1]d@example.org
proxyAddresses: X400:c=us
proxyAddresses: smtp:q%[1]d@example.org

`, i)
	}
	return b.String()
}

func TestOpenLDAP(t *testing.T) {
	const entries = 1200
	dir := listertest.OpenLDAP(t, people(entries), 10*entries)
	base := map[string]string{
		"server_host": "ldap://" + dir.Address(), "version": "3",
		"bind_dn": "cn=reader,dc=example,dc=org", "bind_pw": listertest.Password,
	}
	search := func(s *lister.Source) {
		s.Search = lister.Search{Base: "ou=people,dc=example,dc=org", Filter: "(objectClass=inetOrgPerson)", Attributes: []string{"mail", "mailAlias", "proxyAddresses"}}
	}
	want := map[string]string{}
	for i := range entries {
		for _, c := range "uabpq" {
			want[fmt.Sprintf("%c%d@example.org", c, i)] = ""
		}
	}
	socket := "ldapi://" + strings.ReplaceAll(dir.Socket, "/", "%2F")
	testSource(t, "ldap", base, search, want, []good{
		{"URL", nil},
		{"host and port", []string{"server_host", "127.0.0.1", "server_port", fmt.Sprint(dir.Port)}},
		{"socket", []string{"server_host", socket}},
		{"the second of two", []string{"server_host", "ldap://127.0.0.1:1, " + dir.Address()}},
		{"StartTLS", []string{"start_tls", "yes", "tls_require_cert", "yes", "tls_ca_cert_file", dir.CA}},
		{"StartTLS with any certificate", []string{"start_tls", "yes"}},
	}, []bad{
		{"nobody listens", []string{"server_host", "ldap://127.0.0.1:1"}, "server_host", nil},
		{"no socket", []string{"server_host", "ldapi://%2Fnonexistent"}, "server_host", nil},
		{"wrong scheme", []string{"server_host", "http://127.0.0.1"}, "server_host", nil},
		{"wrong password", []string{"bind_pw", "wr0ng"}, "bind_dn and bind_pw", nil},
		{"wrong user", []string{"bind_dn", "cn=nobody,dc=example,dc=org"}, "bind_dn and bind_pw", nil},
		{"nobody's rights", []string{"bind", "no"}, "search_base", nil},
		{"SASL", []string{"bind", "sasl"}, "bind", nil},
		{"wrong base", []string{"search_base", "ou=wrong,dc=example,dc=org"}, "search_base", nil},
		{"wrong filter", []string{"query_filter", "(mail=*"}, "query_filter", nil},
		{"referrals", []string{"chase_referrals", "yes"}, "chase_referrals", nil},
		{"wrong authority", []string{"start_tls", "yes", "tls_require_cert", "yes"}, "the settings tls_*", nil},
		{"too many rows", []string{"max_rows", "12"}, "max_rows", lister.ErrRows},
		{"too many octets", []string{"max_bytes", strings.Repeat("x", 4000)}, "max_bytes", lister.ErrBytes},
	})
	t.Run("attributes", func(t *testing.T) {
		s := source("ldap", base)
		var got []lister.Entry
		dn := "uid=u7,ou=people,dc=example,dc=org"
		err := s.Directory(t.Context(), func(d *lister.Directory) error {
			return d.Search(lister.Search{Base: dn, Scope: "base", Filter: "(uid=*)", Attributes: []string{"mailAlias", "mail"}}, func(e lister.Entry) error {
				got = append(got, e)
				return nil
			})
		})
		want := []lister.Entry{{DN: dn, Attributes: []lister.Attribute{
			{Name: "mail", Values: []string{"u7@example.org"}}, {Name: "mailAlias", Values: []string{"a7@example.org", "b7@example.org"}}}}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
	t.Run("questions", func(t *testing.T) { testQuestions(t, source("ldap", base)) })
}

// testQuestions asks between the pages of a listing, and for the schema.
func testQuestions(t *testing.T, s *lister.Source) {
	err := s.Directory(t.Context(), func(d *lister.Directory) error {
		all := lister.Search{Base: "ou=people,dc=example,dc=org", Filter: "(mail=*)", Attributes: []string{"mail"}}
		n := 0
		if err := d.Search(all, func(e lister.Entry) error {
			if n++; n%100 == 0 {
				if again, err := d.Ask(lister.Search{Base: e.DN, Scope: "base", Filter: "(mail=*)"}, 1); err != nil || len(again) != 1 {
					t.Errorf("%s: %v, %v", e.DN, again, err)
				}
			}
			return nil
		}); err != nil || n != 1200 {
			t.Errorf("%d entries, %v", n, err)
		}
		for _, tt := range []struct {
			base  string
			limit int
			want  error
		}{{"ou=nowhere,dc=example,dc=org", 0, lister.ErrNoObject}, {"no name", 0, lister.ErrRefused}, {all.Base, 3, lister.ErrRefused}} {
			if _, err := d.Ask(lister.Search{Base: tt.base, Filter: "(mail=*)"}, tt.limit); err != tt.want {
				t.Errorf("%s, %d: %v", tt.base, tt.limit, err)
			}
		}
		schema, contexts, err := d.Schema()
		if diff := cmp.Diff([]string{"dc=example,dc=org"}, contexts); diff != "" || err != nil {
			t.Error(err, diff)
		}
		for name, want := range map[string]string{"mail": "caseignoreia5match", "rfc822mailbox": "caseignoreia5match", "cn": "caseignorematch",
			"mailalias": "caseignoreia5match", "homephone": "telephonenumbermatch", "uniquemember": "uniquemembermatch", "jpegphoto": ""} {
			if got := schema[name]; got == nil || got.Equality != want {
				t.Errorf("%s: %+v, want %q", name, got, want)
			}
		}
		below := map[string]bool{}
		for _, b := range schema.Below("name") {
			below[b.Names[0]] = true
		}
		if !below["cn"] || !below["sn"] || !below["name"] || below["mail"] {
			t.Errorf("below name: %v", below)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSizeLimit lists from a directory that tells this user a part only.
func TestSizeLimit(t *testing.T) {
	dir := listertest.OpenLDAP(t, people(30), 10)
	s := source("ldap", map[string]string{"server_host": dir.Address(), "bind_dn": "cn=reader,dc=example,dc=org", "bind_pw": listertest.Password})
	s.Search = lister.Search{Base: "dc=example,dc=org", Filter: "(mail=*)", Attributes: []string{"mail"}}
	_, err := list(t, s)
	checkError(t, err, s.Name, "server_host", nil)
}
