package postfix_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

func kinds(rs []policy.Restriction) []string {
	var all []string
	for _, r := range rs {
		b, _ := r.MarshalText()
		all = append(all, string(b))
	}
	return all
}

// TestRefused feeds configurations that Postfix refuses, or that can't be read
// whole: the import fails and names what is wrong.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"no main.cf value", map[string]string{"main.cf": base + "this is nothing\n"}, []string{"missing '='"}},
		{"macro loop", map[string]string{"main.cf": base + "a = $b\nb = $a\nmydestination = $a\n"}, []string{"macro"}},
		{"host name that Postfix refuses", map[string]string{"main.cf": base + "myhostname = -bad-\n"}, []string{"main.cf is refused by Postfix", "myhostname", "-bad-"}},
		{"number that no check reads", map[string]string{"main.cf": base + "hash_queue_depth = many\n"}, []string{"hash_queue_depth"}},
		{"missing map", map[string]string{"main.cf": base + "smtpd_sender_restrictions = check_sender_access hash:@DIR@/none\n"}, []string{"smtpd_sender_restrictions", "hash:", "No such file"}},
		{"missing cidr", map[string]string{"main.cf": base + "smtpd_client_restrictions = check_client_access cidr:@DIR@/none\n"}, []string{"smtpd_client_restrictions", "cidr:", "no such file"}},
		{"missing recipients", map[string]string{"main.cf": base + "virtual_alias_maps = texthash:@DIR@/none\n"}, []string{"virtual_alias_maps", "texthash:"}},
		{"missing header checks", map[string]string{"main.cf": base + "header_checks = pcre:@DIR@/none\n"}, []string{"header_checks"}},
		{"missing domain file", map[string]string{"main.cf": base + "relay_domains = @DIR@/none\n"}, []string{"relay_domains", "no such file"}},
		{"missing .cf", map[string]string{"main.cf": base + "virtual_mailbox_domains = x\nvirtual_mailbox_maps = mysql:@DIR@/none.cf\n"}, []string{"virtual_mailbox_maps", "mysql:"}},
		{"unknown map type", map[string]string{"main.cf": base + "virtual_alias_maps = sdbm:@DIR@/x\n"}, []string{"virtual_alias_maps", "unsupported dictionary type"}},
		{"unknown restriction", map[string]string{"main.cf": base + "smtpd_helo_restrictions = reject_bad_helo\n"}, []string{"smtpd_helo_restrictions", "reject_bad_helo"}},
		{"in a class", map[string]string{"main.cf": base + "smtpd_restriction_classes = c\nc = reject_bad_helo\nsmtpd_helo_restrictions = c\n"}, []string{"c:", "reject_bad_helo"}},
		{"class without definition", map[string]string{"main.cf": base + "smtpd_restriction_classes = c\n"}, []string{"smtpd_restriction_classes", "c isn't defined"}},
		{"number", map[string]string{"main.cf": base + "message_size_limit = 10M\n"}, []string{"message_size_limit", "10M"}},
		{"code", map[string]string{"main.cf": base + "reject_code = 250\n"}, []string{"reject_code", "250"}},
		{"limit below what Postfix takes", map[string]string{"main.cf": base + "smtpd_soft_error_limit = 0\n"}, []string{"smtpd_soft_error_limit", `"0"`, "from 1"}},
		{"no time", map[string]string{"main.cf": base + "smtpd_error_sleep_time = soon\n"}, []string{"smtpd_error_sleep_time"}},
		{"network with host bits", map[string]string{"main.cf": base + "mynetworks = 127.0.0.0/8, 192.168.1.1/24\n"}, []string{`mynetworks: "192.168.1.1/24" has bits beyond its mask`, "451"}},
		{"switch", map[string]string{"main.cf": base + "smtpd_helo_required = maybe\n"}, []string{"smtpd_helo_required"}},
		{"action", map[string]string{"main.cf": base + "unknown_address_tempfail_action = drop\n"}, []string{"unknown_address_tempfail_action"}},
		{"open relay", map[string]string{"main.cf": base + "smtpd_relay_restrictions = permit_mynetworks\n"}, []string{"smtpd_relay_restrictions", "reject_unauth_destination"}},
		{"no service", map[string]string{"main.cf": base, "master.cf": "smtp unix - - - - - smtp\n"}, []string{"port 25"}},
		{"another program", map[string]string{"main.cf": base, "master.cf": "smtp inet n - - - - qmqpd\n"}, []string{"qmqpd"}},
		{"postscreen alone", map[string]string{"main.cf": base, "master.cf": "smtp inet n - - - - postscreen\n"}, []string{"smtpd/pass"}},
		{"all at once", map[string]string{"main.cf": base + "reject_code = 1\ndefer_code = 2\n"}, []string{"reject_code", "defer_code"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, _, err := postfix.Import(context.Background(), install(t, tt.files))
			if err == nil || spec != nil {
				t.Fatalf("imported %v, error %v", spec != nil, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

// TestService finds the service that counts and what it overrides.
func TestService(t *testing.T) {
	const main = base + "header_checks = static:IGNORE\nmy_helo = permit_mynetworks, reject_invalid_helo_hostname\nsmtpd_helo_restrictions = permit\n"
	for _, tt := range []struct {
		name, master, service string
		helo                  []string
		limit                 int
		others                string // parameter=element of the item about another service, with its class
	}{
		{"plain", "smtp inet n - - - - smtpd\n", "", []string{"permit"}, 20, ""},
		{"by number", "25 inet n - - - - smtpd\n -o smtpd_hard_error_limit=3\n", "", []string{"permit"}, 3, ""},
		{"macro", "smtp inet n - - - - smtpd\n  -o smtpd_helo_restrictions=$my_helo\n", "", []string{"permit_mynetworks", "reject_invalid_helo_hostname"}, 20, ""},
		{"braces", "smtp inet n - - - - smtpd\n  -o { smtpd_helo_restrictions = $my_helo, permit }\n", "", []string{"permit_mynetworks", "reject_invalid_helo_hostname", "permit"}, 20, ""},
		{"macro overridden", "smtp inet n - - - - smtpd\n  -o smtpd_helo_restrictions=$my_helo\n  -o my_helo=permit\n", "", []string{"permit"}, 20, ""},
		{"postscreen", "smtp inet n - - - 1 postscreen\n -o smtpd_hard_error_limit=9\nsmtpd pass - - - - - smtpd\n -o smtpd_hard_error_limit=4\n", "", []string{"permit"}, 4, ""},
		{"loopback last", "127.0.0.1:25 inet n - - - - smtpd\n -o smtpd_hard_error_limit=9\n192.0.2.1:smtp inet n - - - - smtpd\n[2001:db8::1]:25 inet n - - - - smtpd\n", "", []string{"permit"}, 20, "exact [2001:db8::1]:25/inet decides as 192.0.2.1:smtp/inet"},
		{"two unlike", "192.0.2.1:25 inet n - - - - smtpd\n192.0.2.2:25 inet n - - - - smtpd\n -o smtpd_hard_error_limit=9 -o smtpd_client_restrictions=reject\n", "", []string{"permit"}, 20,
			"not-replicated 192.0.2.2:25/inet otherwise: smtpd_client_restrictions, smtpd_hard_error_limit"},
		{"two commands", "[2001:db8::1]:25 inet n - - - - smtpd\n192.0.2.2:25 inet n - - - 1 postscreen\nsmtpd pass - - - - - smtpd\n -o smtpd_hard_error_limit=9\n", "", []string{"permit"}, 20,
			"not-replicated 192.0.2.2:25/inet it runs postscreen"},
		{"another port", "127.0.0.1:10026 inet n - - - - smtpd\nsubmission inet n - - - - smtpd\n10025 inet n - - - - smtpd\n -o smtpd_hard_error_limit=7\n", "", []string{"permit"}, 7,
			"approximated 10025/inet no service listens on port 25"},
		{"submission only", "127.0.0.1:10026 inet n - - - - smtpd\n[::1]:587 inet n - - - - smtpd\n192.0.2.1:587 inet n - - - - smtpd\n -o smtpd_hard_error_limit=6\n", "", []string{"permit"}, 6,
			"approximated 192.0.2.1:587/inet no service listens on port 25"},
		{"a line twice", "smtp inet n - - - - smtpd\n -o smtpd_hard_error_limit=9\nsmtp inet n - - - - smtpd\n -o {smtpd_helo_restrictions = permit_mynetworks}\n", "", []string{"permit_mynetworks"}, 20, ""},
		{"a proxy beside", "192.0.2.1:25 inet n - - - - spawn user=x argv=/bin/y\n192.0.2.2:25 inet n - - - - smtpd\n", "", []string{"permit"}, 20, "not-replicated 192.0.2.1:25/inet it runs spawn"},
		{"two postscreens", "192.0.2.1:25 inet n - - - 1 postscreen\n192.0.2.2:25 inet n - - - 1 postscreen\n -o smtpd_service_name=other\n" +
			"smtpd pass - - - - - smtpd\nother pass - - - - - smtpd\n -o smtpd_hard_error_limit=9\n", "", []string{"permit"}, 20, "not-replicated 192.0.2.2:25/inet otherwise: smtpd_hard_error_limit"},
		{"two like postscreens", "192.0.2.1:25 inet n - - - 1 postscreen\n192.0.2.2:25 inet n - - - 1 postscreen\nsmtpd pass - - - - - smtpd\n", "", []string{"permit"}, 20,
			"exact 192.0.2.2:25/inet decides as 192.0.2.1:25/inet"},
		{"unlike in postscreen", "192.0.2.1:25 inet n - - - 1 postscreen\n192.0.2.2:25 inet n - - - 1 postscreen\n -o postscreen_greet_action=drop\nsmtpd pass - - - - - smtpd\n", "", []string{"permit"}, 20,
			"not-replicated 192.0.2.2:25/inet otherwise: postscreen_greet_action"},
		{"unlike in cleanup", "192.0.2.1:25 inet n - - - - smtpd\n192.0.2.2:25 inet n - - - - smtpd\n -o cleanup_service_name=other\n" +
			"other unix n - - - 0 cleanup\n -o header_checks=\n", "", []string{"permit"}, 20, "not-replicated 192.0.2.2:25/inet otherwise: header_checks"},
		{"unlike in what doesn't decide", "192.0.2.1:25 inet n - - - - smtpd\n192.0.2.2:25 inet n - - - - smtpd\n -o smtpd_banner=hi -o syslog_name=x\n", "", []string{"permit"}, 20,
			"exact 192.0.2.2:25/inet decides as 192.0.2.1:25/inet"},
		{"named", "smtp inet n - - - - smtpd\n10025 inet n - - - - smtpd\n -o smtpd_hard_error_limit=7\n", "10025/inet", []string{"permit"}, 7, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := install(t, map[string]string{"main.cf": main, "master.cf": tt.master})
			src.Service = tt.service
			spec, report := load(t, src)
			if diff := cmp.Diff(tt.helo, kinds(spec.Restrictions.Helo)); diff != "" {
				t.Error(diff)
			}
			if spec.Limits.HardErrors != tt.limit {
				t.Errorf("hard error limit %d, want %d", spec.Limits.HardErrors, tt.limit)
			}
			got := ""
			for _, it := range report.Items {
				if it.Parameter == "master.cf" {
					got += fmt.Sprintln(it.Class, it.Element, it.Why)
				}
			}
			service, why, _ := strings.Cut(tt.others, "inet ")
			if !strings.HasPrefix(got, service) || !strings.Contains(got, why) || (got == "") != (tt.others == "") || strings.Count(got, "\n") > 1 {
				t.Errorf("the report says %q, want %q", got, tt.others)
			}
		})
	}
}

// TestServicesByMain finds the service where main.cf says which ones there are.
func TestServicesByMain(t *testing.T) {
	const off = "master_service_disable keeps Postfix from starting it"
	for _, tt := range []struct {
		name, main, master, service, why string
	}{
		{"one is off", "master_service_disable = smtp/inet", "smtp inet n - - - - smtpd\n192.0.2.1:25 inet n - - - - smtpd\n", "192.0.2.1:25/inet", ""},
		{"all are off", "master_service_disable = inet", "submission inet n - - - - smtpd\nsmtp inet n - - - - smtpd\n", "submission/inet", off},
		{"all but one", "master_service_disable = !smtp.inet, inet", "192.0.2.1:25 inet n - - - - smtpd\nsmtp inet n - - - - smtpd\n", "smtp/inet", ""},
		{"another type", "master_service_disable = unix", "smtp inet n - - - - smtpd\n", "smtp/inet", ""},
		{"port 25 is off", "master_service_disable = smtp/inet", "smtp inet n - - - - smtpd\n2525 inet n - - - - smtpd\n", "2525/inet", "no service listens on port 25"},
		{"behind postscreen", "master_service_disable = pass", "smtp inet n - - - 1 postscreen\nsmtpd pass - - - - - smtpd\n", "smtp/inet", off},
		{"on loopback", "inet_interfaces = loopback-only", "smtp inet n - - - - smtpd\n192.0.2.1:25 inet n - - - - smtpd\n", "192.0.2.1:25/inet", ""},
		{"on loopback alone", "inet_interfaces = 127.0.0.1, [::1], localhost", "smtp inet n - - - - smtpd\n587 inet n - - - - smtpd\n", "smtp/inet", ""},
		{"on all", "inet_interfaces = all", "smtp inet n - - - - smtpd\n192.0.2.1:25 inet n - - - - smtpd\n", "smtp/inet", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, report := load(t, install(t, map[string]string{"main.cf": base + tt.main + "\n", "master.cf": tt.master}))
			if report.Service != tt.service {
				t.Errorf("%s was taken", report.Service)
			}
			why := ""
			for _, it := range report.Items {
				if it.Parameter == "master.cf" && it.Class != fidelity.Exact {
					why += it.Why
				}
			}
			if (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
				t.Errorf("the report says %q", why)
			}
		})
	}
}

func hasItem(r fidelity.Report, parameter, element string, c fidelity.Class) bool {
	return slices.ContainsFunc(r.Items, func(it fidelity.Item) bool {
		return it.Parameter == parameter && strings.Contains(it.Element, element) && it.Class == c
	})
}

// TestChoices takes the operator's word on what isn't replicated.
func TestChoices(t *testing.T) {
	const main = base + "smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:10023, check_recipient_access tcp:127.0.0.1:1, permit\n" +
		"smtpd_client_restrictions = check_policy_service { unix:private/spf, timeout=10s }\n" +
		"smtpd_data_restrictions = check_policy_service unix:private/data\n"
	const spf = "smtpd_client_restrictions: check_policy_service { unix:private/spf, timeout=10s }"
	const data = "smtpd_data_restrictions: check_policy_service unix:private/data"
	const grey = "smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:10023"
	const tcp = "smtpd_recipient_restrictions: check_recipient_access tcp:127.0.0.1:1"
	for _, tt := range []struct {
		name    string
		choices map[string]string
		want    []string
	}{
		{"defaults", nil, []string{"defer_if_reject", "permit"}},
		{"defer", map[string]string{grey: "defer", tcp: "ignore"}, []string{"defer_if_permit", "permit"}},
		{"ignore", map[string]string{grey: "ignore", tcp: "ignore"}, []string{"permit"}},
		{"ask", map[string]string{grey: "ask", tcp: "ask"}, []string{
			"ask_primary check_policy_service:inet:127.0.0.1:10023", "ask_primary check_recipient_access:tcp:127.0.0.1:1", "defer_if_reject", "permit"}},
		{"ask by an argument in braces", map[string]string{spf: "ask", tcp: "ignore"}, []string{"ask_primary check_policy_service:unix:private/spf", "permit"}},
		{"ask while it is there", map[string]string{grey: "ask-else-ignore", tcp: "ask-else-soften"},
			[]string{"ask_primary_else_ignore check_policy_service:inet:127.0.0.1:10023",
				"ask_primary_else_ignore check_recipient_access:tcp:127.0.0.1:1", "defer_if_reject", "permit"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := install(t, map[string]string{"main.cf": main})
			src.Choices = tt.choices
			spec, _ := load(t, src)
			if diff := cmp.Diff(tt.want, kinds(slices.Concat(spec.Restrictions.Client, spec.Restrictions.Recipient))); diff != "" {
				t.Error(diff)
			}
		})
	}
	for id, option := range map[string]string{grey: "accept", data: "ask", "smtpd_nothing: x": "ignore", "smtpd_helo_required: no": "ignore"} {
		src := install(t, map[string]string{"main.cf": main})
		src.Choices = map[string]string{id: option}
		if _, _, err := postfix.Import(context.Background(), src); err == nil || !strings.Contains(err.Error(), id) {
			t.Errorf("choice %q of %q: %v", option, id, err)
		}
	}
}

// TestOlderNames reads obsolete restrictions as what took their place.
func TestOlderNames(t *testing.T) {
	src := install(t, map[string]string{"main.cf": base + "maps_rbl_domains = a.example, b.example\n" +
		"smtpd_client_restrictions = reject_maps_rbl, reject_rbl c.example=127.0.0.2, reject_unknown_client, check_etrn_access inline:{x=OK}\n" +
		"smtpd_helo_restrictions = reject_unknown_hostname\nsmtpd_sender_restrictions = reject_unknown_address\n" +
		"smtpd_recipient_restrictions = check_relay_domains\n"})
	spec, _ := load(t, src)
	r := spec.Restrictions
	want := [][]string{
		{"reject_rbl_client a.example", "reject_rbl_client b.example", "reject_rbl_client c.example=127.0.0.2", "reject_unknown_client_hostname"},
		{"reject_unknown_helo_hostname"}, {"reject_unknown_sender_domain"}, {"permit_auth_destination", "reject_unauth_destination"},
	}
	if diff := cmp.Diff(want, [][]string{kinds(r.Client), kinds(r.Helo), kinds(r.Sender), kinds(r.Recipient)}); diff != "" {
		t.Error(diff)
	}
}

// TestOwnNames reads what Postfix calls itself.
func TestOwnNames(t *testing.T) {
	for _, tt := range []struct{ main, bare, bounce, verify string }{
		{main: ""},
		{main: "double_bounce_sender = Lost\n", bounce: "Lost"},
		{main: "address_verify_sender = postmaster\n", verify: "postmaster@example.org"},
		{main: "address_verify_sender = probe@x.example\n", verify: "probe@x.example"},
		{main: "address_verify_sender =\n", verify: "<>"},
		{main: "address_verify_sender = <>\n", verify: "<>"},
		{main: "address_verify_sender_ttl = 10s\n", verify: "<>"},
		{main: "address_verify_sender_ttl = 0\n"},
		{main: "append_at_myorigin = no\n", bare: "mx.example.org", verify: "double-bounce"},
	} {
		src := install(t, map[string]string{"main.cf": base + "myorigin = example.org\nmyhostname = mx.example.org\n" + tt.main})
		spec, _ := load(t, src)
		a := &spec.Addresses
		if a.BareDomain != tt.bare || a.DoubleBounce != tt.bounce || a.VerifySender != tt.verify {
			t.Errorf("%q: unqualified at %q, bounces from %q, probes from %q", tt.main, a.BareDomain, a.DoubleBounce, a.VerifySender)
		}
	}
}

// TestOwnLiterals reads at which address literals mail is local.
func TestOwnLiterals(t *testing.T) {
	for main, want := range map[string]string{
		"":                        "[127.0.0.1] [192.0.2.1] [ipv6:::1]",
		"inet_protocols = ipv4\n": "[127.0.0.1] [192.0.2.1]",
		"inet_protocols = ipv6\n": "[ipv6:::1]",
		"inet_protocols = ipv6, ipv4\nproxy_interfaces =\n": "[127.0.0.1] [ipv6:::1]",
	} {
		src := install(t, map[string]string{"main.cf": testmx.Override(base, "inet_interfaces = loopback-only\nproxy_interfaces = 192.0.2.1\n"+main)})
		spec, _ := load(t, src)
		domains := slices.DeleteFunc(slices.Clone(spec.Addresses.Local.Domains), func(d string) bool { return d[0] != '[' })
		if got := strings.Join(domains, " "); got != want {
			t.Errorf("%q: %s, want %s", main, got, want)
		}
	}
}

// TestExtensions reads which extensions are not offered, and reports the others.
func TestExtensions(t *testing.T) {
	src := install(t, map[string]string{"main.cf": base + "smtpd_discard_ehlo_keywords = dsn, SmtpUtf8 ehlo_mask_smtputf8 starttls, silent-discard, size, foo\n"})
	spec, report := load(t, src)
	if diff := cmp.Diff([]string{"DSN", "SMTPUTF8"}, spec.Protocol.Discard); diff != "" {
		t.Error(diff)
	}
	const parameter = "smtpd_discard_ehlo_keywords"
	if !hasItem(report, parameter, "starttls", fidelity.NotReplicated) || !hasItem(report, parameter, "size", fidelity.Approximated) {
		t.Errorf("the report lacks what isn't replicated: %v", report.Items)
	}
}

// TestAccessValues translates lists of restrictions inside of access tables.
func TestAccessValues(t *testing.T) {
	src := install(t, map[string]string{
		"main.cf": base + "smtpd_restriction_classes = c\nc = hash:@DIR@/a.map, reject\nsmtpd_sender_restrictions = check_sender_access hash:@DIR@/a.map\n",
		"a.map":   "a@b reject_unverified_sender, c\nc@d check_policy_service inet:1:2\ne@f 123\ng@h REJECT x\ni@j no_such_class\nk@l reject_unverified_sender\n",
	})
	spec, report := load(t, src)
	b, err := json.Marshal(spec.Tables["hash:"+src.ConfigDir+"/a.map"])
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Entries map[string]string }
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a@b": "c/check_sender_access", "c@d": "check_policy_service inet:1:2", "e@f": "123", "g@h": "REJECT x", "i@j": "no_such_class", "k@l": "DUNNO"}
	if diff := cmp.Diff(want, got.Entries); diff != "" {
		t.Error(diff)
	}
	if !hasItem(report, "hash:"+src.ConfigDir+"/a.map", "reject_unverified_sender", fidelity.NotReplicated) {
		t.Error("the report doesn't know what the table's value holds")
	}
}

// TestClassNames gives classes the names of restrictions that the engine has and Postfix doesn't.
func TestClassNames(t *testing.T) {
	src := install(t, map[string]string{"main.cf": base + "smtpd_restriction_classes = check_greylist, check_spf\ncheck_greylist = reject_unauth_pipelining, sleep 0\n" +
		"check_spf = check_greylist, static:DUNNO\nsmtpd_sender_restrictions = check_spf, check_sender_access inline:{{x@y = check_greylist, check_spf}}\n"})
	spec, _ := load(t, src)
	want := map[string][]string{
		"check_greylist/class":          {"reject_unauth_pipelining"},
		"check_spf/check_sender_access": {"check_greylist/class", "check_sender_access static:DUNNO"},
	}
	got := map[string][]string{}
	for name, list := range spec.Classes {
		got[name] = kinds(list)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestContentTables reports tables of header_checks and body_checks that hold
// whole lines, once one of the tables refuses: the first that matches decides.
func TestContentTables(t *testing.T) {
	files := map[string]string{
		"no.map": "x-a:b REJECT\n", "no": "x-a:b REJECT\n", "warn": "x-a:b WARN\n", "tab": "x-a:b\tREJECT\tso\n",
		"nets": "192.0.2.0/24 REJECT\n", "fine": "192.0.2.0/24 DUNNO\n", "pcre": "/^Subject: x/ REJECT\n",
	}
	const whole = "tables of type TYPE hold whole headers and lines only; use regexp or pcre"
	for _, tt := range []struct {
		parameter, value, element string
		class                     fidelity.Class
		why                       string
	}{
		{"header_checks", "hash:@DIR@/no.map", "hash:@DIR@/no.map", fidelity.NotReplicated, whole},
		{"header_checks", "texthash:@DIR@/no", "texthash:@DIR@/no", fidelity.NotReplicated, whole},
		{"body_checks", "inline:{x=REJECT}", "inline:{x=REJECT}", fidelity.NotReplicated, whole},
		{"body_checks", "texthash:@DIR@/tab", "texthash:@DIR@/tab", fidelity.NotReplicated, whole},
		{"body_checks", "cidr:@DIR@/nets", "cidr:@DIR@/nets", fidelity.NotReplicated, whole},
		{"header_checks", "texthash:@DIR@/warn", "texthash:@DIR@/warn", fidelity.Exact, "nothing in it refuses"},
		{"header_checks", "texthash:@DIR@/warn, pcre:@DIR@/pcre", "texthash:@DIR@/warn", fidelity.NotReplicated, whole},
		{"body_checks", "cidr:@DIR@/fine, pcre:@DIR@/pcre", "cidr:@DIR@/fine", fidelity.NotReplicated, whole},
		{"body_checks", "cidr:@DIR@/fine, pcre:@DIR@/pcre", "pcre:@DIR@/pcre", fidelity.Exact, ""},
		{"body_checks", "static:{REJECT all}", "static:{REJECT all}", fidelity.Exact, ""},
		{"header_checks", "static:REJECT", "static:REJECT", fidelity.Approximated, "a rule may match the Received field that the primary adds; its ID, date and TLS remarks aren't imitated"},
		{"header_checks", "tcp:127.0.0.1:1", "tcp:127.0.0.1:1", fidelity.NotReplicated, "a tcp server answers live"},
	} {
		files["main.cf"] = base + tt.parameter + " = " + tt.value + "\n"
		src := install(t, files)
		spec, report := load(t, src)
		typ, _, _ := strings.Cut(tt.element, ":")
		element, why := strings.ReplaceAll(tt.element, "@DIR@", src.ConfigDir), strings.ReplaceAll(tt.why, "TYPE", typ)
		if !slices.ContainsFunc(report.Items, func(it fidelity.Item) bool {
			return it.Parameter == tt.parameter && it.Element == element && it.Class == tt.class && it.Why == why
		}) {
			t.Errorf("%s = %s: no item says that %s is %s: %q; there are %+v", tt.parameter, tt.value, element, tt.class, why, report.Items)
		}
		kept := slices.Contains(slices.Concat(spec.Content.Header, spec.Content.Body), element)
		if want := tt.class != fidelity.NotReplicated && tt.why != "nothing in it refuses"; kept != want && !strings.Contains(element, "{") {
			t.Errorf("%s = %s: %s is in the policy: %v, want %v", tt.parameter, tt.value, element, kept, want)
		}
	}
}

// TestDatabases reads a table by way of a Lister, of a command, and not at all.
func TestDatabases(t *testing.T) {
	files := map[string]string{
		"main.cf":   base + "virtual_mailbox_domains = example.org\nvirtual_mailbox_maps = proxy:sqlite:@DIR@/m.cf\nvirtual_alias_domains =\n",
		"m.cf":      "password = secret-word\ndbpath = @DIR@/m.db\nquery = SELECT goto FROM alias WHERE address='%s'\n",
		"list.text": "Bob@example.org\nc@example.org\tx\n",
	}
	keys := func(spec *policy.Spec, src postfix.Source) string {
		b, _ := json.Marshal(spec.Tables["sqlite:"+src.ConfigDir+"/m.cf"])
		return string(b)
	}
	src := install(t, files)
	spec, report := load(t, src)
	if !spec.Addresses.VirtualMailbox.Incomplete || len(spec.Addresses.VirtualMailbox.Recipients) != 1 {
		t.Errorf("a table that isn't enumerated: incomplete %v, tables %v", spec.Addresses.VirtualMailbox.Incomplete, spec.Addresses.VirtualMailbox.Recipients)
	}
	all, err := json.Marshal(struct {
		S *policy.Spec
		R fidelity.Report
	}{spec, report})
	if err != nil || bytes.Contains(all, []byte("secret-word")) {
		t.Errorf("the password is in what the import returns (%v)", err)
	}

	cmd := exec.Command("sqlite3", filepath.Join(src.ConfigDir, "m.db"))
	cmd.Stdin = strings.NewReader("CREATE TABLE alias (address text, goto text); INSERT INTO alias VALUES ('Alice@example.org', 'x'), ('alice@example.org', 'y');")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
	}
	src.Lister = postfix.Databases{}
	spec, _ = load(t, src)
	if got, want := keys(spec, src), `{"type":"set","keys":["alice@example.org"]}`; got != want || spec.Addresses.VirtualMailbox.Incomplete {
		t.Errorf("by Lister: %s, incomplete %v", got, spec.Addresses.VirtualMailbox.Incomplete)
	}

	src.Lister = nil
	src.Commands = map[string][]string{"sqlite:" + src.ConfigDir + "/m.cf": {"cat", filepath.Join(src.ConfigDir, "list.text")}}
	spec, _ = load(t, src)
	if got, want := keys(spec, src), `{"type":"set","keys":["bob@example.org","c@example.org"]}`; got != want {
		t.Errorf("by command: %s", got)
	}
	src.Commands["sqlite:"+src.ConfigDir+"/m.cf"] = []string{"false"}
	if _, _, err := postfix.Import(context.Background(), src); err == nil || !strings.Contains(err.Error(), "virtual_mailbox_maps") {
		t.Errorf("a command that fails: %v", err)
	}
}

// TestQueriedTable refuses an operator's query for what has none.
func TestQueriedTable(t *testing.T) {
	for _, table := range []string{"ldap:@DIR@/l.cf", "tcp:127.0.0.1:1", "texthash:@DIR@/l.cf"} {
		src := install(t, map[string]string{"main.cf": base + "virtual_alias_maps = " + table + "\n", "l.cf": "query_filter = (mail=%s)\n"})
		src.Queries = map[string]string{strings.ReplaceAll(table, "@DIR@", src.ConfigDir): "SELECT 1"}
		if _, _, err := postfix.Import(context.Background(), src); err == nil || !strings.Contains(err.Error(), "a query lists tables of mysql, pgsql and sqlite") {
			t.Errorf("%s: %v", table, err)
		}
	}
}

// TestFiles names what a change of calls for a new import.
func TestFiles(t *testing.T) {
	src := install(t, map[string]string{
		"main.cf": base + "virtual_alias_maps = hash:@DIR@/a.map, texthash:@DIR@/b\nrelay_domains = @DIR@/c\n" +
			"header_checks = pcre:@DIR@/d\nlocal_recipient_maps = unix:passwd.byname\n",
		"a.map": "a@b c\n", "b": "d@e f\n", "c": "x.example\n", "d": "/x/ REJECT\n",
	})
	_, report := load(t, src)
	var got []string
	for _, f := range report.Files {
		got = append(got, strings.TrimPrefix(f, src.ConfigDir+"/"))
	}
	if diff := cmp.Diff([]string{"a.map.db", "b", "c", "d", "main.cf", "master.cf"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"unix:passwd.byname"}, report.Polled); diff != "" {
		t.Error(diff)
	}
}

// TestCanceled stops an import.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := postfix.Import(ctx, install(t, map[string]string{"main.cf": base})); err == nil {
		t.Error("an import without time succeeds")
	}
}

// TestClientCerts: only a primary that asks for certificates has the secondary do so.
func TestClientCerts(t *testing.T) {
	const main = base + "relay_clientcerts = inline:{AB:CD=x}\nsmtpd_recipient_restrictions = permit_tls_clientcerts, permit_tls_all_clientcerts,\n" +
		" check_ccert_access inline:{AB:CD=OK}, reject_unauth_destination\n"
	spec, report := load(t, install(t, map[string]string{"main.cf": main + "smtpd_tls_ask_ccert = yes\n"}))
	want := []string{"permit_tls_clientcerts", "permit_tls_clientcerts", "permit_tls_clientcerts", "reject_unauth_destination"}
	if got := kinds(spec.Restrictions.Recipient); !slices.Equal(got, want) || !spec.Protocol.AskCert {
		t.Errorf("restrictions %q, asks %v", got, spec.Protocol.AskCert)
	}
	for _, name := range []string{"permit_tls_clientcerts", "permit_tls_all_clientcerts", "check_ccert_access"} {
		if !hasItem(report, "smtpd_recipient_restrictions", name, fidelity.Approximated) {
			t.Errorf("the report doesn't call %s approximated", name)
		}
	}
	spec, report = load(t, install(t, map[string]string{"main.cf": main}))
	if got := kinds(spec.Restrictions.Recipient); !slices.Equal(got, want[3:]) || spec.Protocol.AskCert {
		t.Errorf("nobody is asked, and yet: restrictions %q, asks %v", got, spec.Protocol.AskCert)
	}
	if !hasItem(report, "smtpd_recipient_restrictions", "permit_tls_clientcerts", fidelity.Exact) {
		t.Error("the report doesn't call permit_tls_clientcerts exact")
	}
}

// What comes before Postfix, here docker's command, says nothing of main.cf when it fails.
func TestImportContainerGone(t *testing.T) {
	gone := &host.Host{Prefix: []string{"sh", "-c", "echo No such container: mx >&2; exit 1"}}
	_, _, err := postfix.Import(t.Context(), postfix.Source{Host: gone})
	if err == nil || !strings.Contains(err.Error(), "No such container: mx") || strings.Contains(err.Error(), "main.cf") {
		t.Errorf("without the container: %v", err)
	}
}
