package exim

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

//go:generate env UPDATE=1 go test -run ^TestParityDoc$ .

// row is one of the document's: an element of the configuration.
type row struct {
	name  string
	class fidelity.Class
	why   string
	test  string // a profile with it, or a test
}

// elements are those of lists and routers.
var elements = []row{
	{"accept, deny, defer, drop, require, discard, warn", fidelity.Exact, "", "hosting, virtual, dnslists"},
	{"endpass", fidelity.Exact, "", "hosting"},
	{"acl", fidelity.Exact, "a list's constant name, $acl_arg1 and on", "debian-monolithic, TestEximRandom"},
	{"domains, sender_domains", fidelity.Exact, "literals, wildcards, patterns, files, named lists, lsearch, dsearch, partial-, SQL", "virtual, sql, dnslists"},
	{"local_parts", fidelity.Exact, "", "debian-split, virtual"},
	{"senders, recipients", fidelity.Exact, "", "hosting, dnslists"},
	{"hosts", fidelity.GivenDNS, "addresses, networks, names (of /etc/hosts first), net-iplsearch, +ignore_unknown and its like; an address has one name, the first that the DNS gives", "hosting, debian-monolithic, dnslists"},
	{"authenticated", fidelity.Exact, "nobody authenticates to a secondary", "debian-split"},
	{"encrypted", fidelity.Approximated, "the cipher's name is the secondary's", ""},
	{"condition", fidelity.Exact, "the variables, operators, items and conditions of policy/expansion", "hosting, sql"},
	{"dnslists", fidelity.GivenDNS, "=, !=, ==, &, keys, a domain for the text, up to 100 names in all, +defer_unknown and its like", "dnslists, hosting"},
	{"verify = helo", fidelity.GivenDNS, "", "dnslists"},
	{"verify = reverse_host_lookup", fidelity.GivenDNS, "", "debian-monolithic, dnslists"},
	{"verify = sender", fidelity.GivenDNS, "", "debian-monolithic, dnslists, hosting"},
	{"verify = recipient", fidelity.Exact, "", "all profiles but dnslists"},
	{"verify = header_syntax, header_names_ascii", fidelity.Exact, "unqualified addresses that a host may send aren't qualified in $h_…", "TestHeaders, debian-monolithic, virtual"},
	{"verify = recipient/callout", fidelity.NotReplicated, "of recipients that the primary relays to another server; the others are decided as there", "TestCallout"},
	{"verify = sender/callout", fidelity.NotReplicated, "callouts ask other servers", "TestUnknown"},
	{"verify = not_blind", fidelity.NotReplicated, "it is about the whole message", "TestUnknown"},
	{"set acl_m…, acl_c…", fidelity.Exact, "", "hosting, sql"},
	{"message", fidelity.Exact, "with a reply's code of the same class", "virtual, dnslists"},
	{"delay, log_message, logwrite, add_header, remove_header, queue", fidelity.NoDecision, "", "debian-split"},
	{"control", fidelity.NoDecision, "those that decide nothing before delivery; others are not-replicated", "debian-split"},
	{"ratelimit, seen", fidelity.NotReplicated, "the primary counts what comes to it", "TestUnknown"},
	{"spam, malware, decode, mime_regex, regex, spf, dkim_status, dmarc_status", fidelity.NotReplicated, whyPrimary, "TestUnknown"},
	{"${run}, ${readsocket}, ${dlfunc}", fidelity.NotReplicated, "never executed, named with file and line", "TestUnknown"},
	{"${perl{FUNCTION}}", fidelity.NotReplicated, "never executed; choose `yes` or `no` in its place. For the functions that DirectAdmin's and cPanel's lists call, the default is what they answer about a client that doesn't authenticate", "TestUnknown, TestPerl, directadmin, cpanel"},
	{"${readfile{FILE}}", fidelity.Exact, "where the file's name is constant: its contents are in the policy", "hestia"},
	{"${lookup dnsdb{…}}", fidelity.GivenDNS, "a, aaaa, a+, mx, mxh, ns, ptr and txt of up to 100 names; of a TXT record all strings count", "hestia"},
	{"${lookup passwd{NAME}}, ${stat:FILE}", fidelity.Exact, "login names without passwords; of a file with a constant name its mode, size and mtime", "TestAccounts, cpanel"},
	{"inbound_srs", fidelity.Approximated, "the secret stays on the primary: who comes to SRS0=… is deferred", "hestia, TestSRS"},
	{"files whose names are looked up: ${lookup{$domain}dsearch{/etc/virtual}}, $home", fidelity.Exact, "", "hestia, cpanel"},
	{"files whose names clients have a part in: lsearch{/etc/virtual/$domain}", fidelity.Exact, "Exim 4.94 and later opens none of these: the look-up fails", "TestTainted"},
	{"unseen", fidelity.Exact, "", "hestia"},
	{"router: accept, redirect", fidelity.Exact, "data by lsearch, dsearch, SQL or constants; :fail:, :defer:, :blackhole:, :unknown:, :include:; check_local_user, affixes, condition, senders, require_files", "virtual, sql, hosting"},
	{"router: redirect with file", fidelity.NotReplicated, "unless it has no_verify", ""},
	{"router: dnslookup", fidelity.GivenDNS, "", "dnslists, debian-split"},
	{"router: manualroute, ipliteral", fidelity.Exact, "that a route is there is enough: one to a host that nobody finds makes its addresses wait there", "virtual"},
	{"router: queryprogram, iplookup", fidelity.NotReplicated, "they ask another program", ""},
	{"lsearch, dsearch, iplsearch, cdb, sqlite, mysql, pgsql, passwd (check_local_user)", fidelity.Exact, "any SELECT that compares columns with keys for equality: several columns, count(), joins, LIMIT; of several rows without ORDER BY the order is the database's", "virtual, sql, hosting, cpanel, TestQueries, TestEximRandom"},
	{"OR, IN and UNION in a query", fidelity.Approximated, "what both sides find may come in another order", "TestQueries"},
	{"queries that write: INSERT, UPDATE", fidelity.NotReplicated, "they count what comes to the primary, as greylisting does", "TestWrites"},
	{"wildlsearch, nwildlsearch, @@ look-ups, ret=key", fidelity.Exact, "keys are matched in the file's order", "directadmin, TestEximRandom"},
	{"ldap, ldapm, ldapdn", fidelity.Exact, "a filter that compares one key with attributes, for equality", "TestDirectory"},
	{"dbm, dbmnz", fidelity.Exact, "files of Berkeley DB's, as Debian's Exim has them, by db_dump of the package db-util", "TestDBM"},
	{"dbmjz, nis, redis, json and other look-ups", fidelity.NotReplicated, "not listed; use cdb or lsearch where that may be", "TestUnknown"},
	{"rewrite", fidelity.Approximated, "addresses of the envelope aren't rewritten before they are verified", ""},
	{"addresses in unusual forms", fidelity.Approximated, "the secondary's door takes them as with Postfix (PARITY-ADDRESSES.md): source routes, comments, missing brackets, quoting", ""},
	{"DATA after a discarded recipient, RSET and no MAIL", fidelity.Approximated, "the secondary answers 503; Exim 4.96 answers 354, and its process dies", ""},
}

// TestParityDoc keeps docs/PARITY-EXIM.md equal to the tables; with UPDATE=1 it writes
// the file.
func TestParityDoc(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Parity with Exim

Generated from ` + "`policy/exim`" + ` by ` + "`make generate`" + `. What an import makes of each element of lists and routers, and of each main option
that takes part in decisions. The classes are those of [PARITY.md](PARITY.md); why it is built so: [decisions/0016](decisions/0016-exim.md).

The tests: names are profiles of policy/exim/testdata/profiles, which TestEximProfiles in test/parity plays to a real Exim 4.96 and
to a secondary, or Go tests of policy/exim. Where no test is named, the class says no more than what is done.

What isn't understood gets ` + "`defer`" + ` (451), ` + "`ask`" + ` (the live primary, at RCPT) or ` + "`ignore`" + `, as you choose: ` + "`exim_choose`" + `, or
` + "`--choose`" + ` of ` + "`understudy policy import exim`" + `. By default what isn't known defers; what counts, scans or calls other servers is ignored, since the
primary decides when the message is relayed to it.

## Lists and routers

| element | class | note | test |
| --- | --- | --- | --- |
`)
	for _, r := range elements {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.name, r.class, r.why, r.test)
	}
	b.WriteString("\n## Main options\n\n| option | class | note | test |\n| --- | --- | --- | --- |\n")
	opts := slices.Clone(Options)
	slices.SortFunc(opts, func(a, b Option) int { return strings.Compare(a.Name, b.Name) })
	for _, o := range opts {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", o.Name, o.Class, o.Why, o.Test)
	}
	const path = "../../docs/PARITY-EXIM.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("docs/PARITY-EXIM.md is stale, run 'make generate' (-code +file):\n%s", diff)
	}
}

// TestRowsAreTested: a row that promises the primary's decision names a profile that is
// there and has the element in it.
func TestRowsAreTested(t *testing.T) {
	for _, r := range elements {
		if (r.class == fidelity.Exact || r.class == fidelity.GivenDNS) && r.test == "" {
			t.Errorf("%s is called %s, and no test depends on it", r.name, r.class)
		}
		for name := range strings.SplitSeq(r.test, ", ") {
			if name == "" || strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "all ") {
				continue
			}
			if _, err := os.Stat("testdata/profiles/" + name); err != nil {
				t.Errorf("%s: %v", r.name, err)
			}
		}
	}
}
