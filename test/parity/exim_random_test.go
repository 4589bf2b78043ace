package parity

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/parity"
)

// TestEximRandom makes configurations of an Exim at random and plays 50 sessions to
// each, as TestEximProfiles does. EXIM_RANDOM sets how many, SEED where they begin.
func TestEximRandom(t *testing.T) {
	d := startEximWorld(t)
	first := number(t, "SEED", 1)
	for n := range number(t, "EXIM_RANDOM", 4) {
		t.Run(fmt.Sprint(first+n), func(t *testing.T) { randomProfile(t, d, uint64(first+n)) })
	}
}

func randomProfile(t *testing.T, d *demo.DNS, seed uint64) {
	if os.Getuid() != 0 {
		t.Fatal("a real Exim is the primary here, with an /etc of its own; it needs root: run the tests as root, as .ci/run does")
	}
	x, err := testmx.NewExim(tempDir(t), d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	g := &randomACL{Rand: rand.New(rand.NewPCG(4, seed)), dir: x.Dir}
	g.files(t)
	text := g.config()
	head := fmt.Sprintf("spool_directory = %[1]s/spool\nlog_file_path = %[1]s/log/%%slog\nkeep_environment =\n", x.Dir)
	writeOld(t, x.Config, head+text)
	spec, report := importExim(t, x)
	addr := testmx.FreeAddr()
	startExim(t, x, addr)
	local, stop := serve(t, spec, d.Addr(), true)
	defer stop()
	res, err := parity.Run(t.Context(), parity.Options{
		Primary: dialer(addr), Local: local, Material: eximMaterial(t, d, spec), Parallel: 12, Sessions: number(t, "EXIM_SESSIONS", 50), Seed: seed, Even: evenExim,
		Observe: func(_ int, _ parity.Session, d *parity.Difference, _ parity.Transcript) bool {
			return d != nil && diedExim(d)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range report.Items {
		if it.Class == fidelity.NotReplicated {
			t.Errorf("not replicated: %s: %s", it.ID(), it.Why)
		}
	}
	if res.Differences > 0 {
		var b strings.Builder
		res.Print(&b)
		t.Errorf("%d differences\n%s%s%s", res.Differences, &b, text, walked(t, x, res.Distinct[0].Session))
	}
}

// walked is what "exim -bh" says of a session, step by step.
func walked(t *testing.T, x *testmx.Exim, s parity.Session) string {
	var in strings.Builder
	for _, c := range s.Commands {
		in.WriteString(c.Line + "\r\n")
		if c.Message != "" {
			in.WriteString(c.Message + "\r\n.\r\n")
		}
	}
	cmd := exec.CommandContext(t.Context(), x.Program, "-C", x.Config+".run", "-bh", s.Client.Addr.String())
	cmd.Stdin = strings.NewReader(in.String() + "QUIT\r\n")
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("exim -bh: %v\n%s", err, out)
}

// randomACL makes a configuration.
type randomACL struct {
	*rand.Rand
	dir   string
	stage string
	lists int
}

func (g *randomACL) pick(s ...string) string { return s[g.IntN(len(s))] }

func (g *randomACL) oneIn(n int) bool { return g.IntN(n) == 0 }

// randomFiles are what the lists look things up in.
var randomFiles = map[string]string{
	"domains": "# domains\nexample.org: org\n*.wild.example: wild\none.example\n\"two.example\": quoted \\\n  more\nfar.example : far\n\n  and more\n# in between\n  lost\n" +
		"*: rest\nexample.org: second\n.dotted.example: dot\n\"t\\x61b.example\": x\n",
	"wild":    "^[a-z]+[.]example: letters\n*.example.net: net\nexample.com: com\n\"^a b\": x\n",
	"ips":     "198.18.0.0/30: good\n198.18.6.2: two\n\"2001:db8:2::/64\": six\n*: star\n",
	"nets":    "198.18.6.0/24: net\n198.18.0.1: one\n2001.db8.2.0.0.0.0.1: six\n198.18.0.2/32: x\n",
	"senders": "# senders\nbob@good.example\n!news@good.example # not this one\n*@a.good.example\n^b.*@six\nbob#x@good.example\n",
	"listed":  "# list\n*.example.com\n!two.example\nexample.org # this\n^far\nlsearch;@DIR@/domains\n",
	"hosts":   "198.18.7.0/25\n!198.18.0.2\nmail.good.example\n*.bad.example\n",
	"locals":  "alice: a\nbob: b\n*@one.example: all\nalice@example.org: here\n*: default\n",
	"split":   "good.example: bob : news : !alice : ^b\none.example: alice : *x : > more\nmore: full\nsix.example: !bob : *\n",
	"tab":     "example.org org\n*.example.net net\nalice a\nalice@one.example w\nmail.good.example m\n",
	"aliases": "alice: bob@one.example\nbob: :fail: no bob $local_part\ncarol.x: :defer: later\nroot: alice\nfull: :blackhole:\nnews: alice@example.org, bob@far.example\ninfo: |/bin/x\n",
}

func (g *randomACL) files(t *testing.T) {
	t.Helper()
	for name, text := range randomFiles {
		writeOld(t, filepath.Join(g.dir, name), strings.ReplaceAll(text, "@DIR@", g.dir))
	}
	if out, err := exec.Command("postmap", "cdb:"+g.file("tab")).CombinedOutput(); err != nil {
		t.Fatalf("postmap: %v: %s", err, out)
	}
	for _, f := range []string{"example.org", "one.example", "alice"} {
		if err := os.MkdirAll(filepath.Join(g.dir, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeOld(t, filepath.Join(g.dir, "dir", f), "")
	}
}

func (g *randomACL) file(name string) string { return g.dir + "/" + name }

// list makes a list of some items.
func (g *randomACL) list(item func() string) string {
	sep, out := " : ", ""
	if g.oneIn(4) {
		sep, out = " ; ", "<; "
	}
	for n := 1 + g.IntN(3); n > 0; n-- {
		it := item()
		if sep == " : " && !strings.Contains(it, "${") {
			it = strings.ReplaceAll(it, ":", "::")
		} else if !strings.Contains(it, "${") && !g.oneIn(10) {
			it = strings.ReplaceAll(it, ";", ";;")
		}
		if g.oneIn(5) && !strings.HasPrefix(it, "+i") && !strings.HasPrefix(it, "+c") {
			it = g.pick("!", "! ") + it
		}
		if out += it; n > 1 {
			out += sep
		}
	}
	return out
}

func (g *randomACL) domainItem() string {
	f := g.file("domains")
	return g.pick("example.org", "one.example", "two.example", "*.example.net", "*.example", "*le.com", "^[a-z]+[.]example\\$", "^(?i)EXAMPLE", "+local_domains", "+relay_domains",
		"+named_domains", "@", "@[]", "lsearch;"+f, "partial-lsearch;"+f, "partial1-lsearch;"+f, "partial0(.)lsearch;"+f, "lsearch*;"+f, "lsearch,ret=key;"+f, "dsearch;"+g.file("dir"), "partial-cdb;"+g.file("tab.cdb"), "cdb;"+g.file("tab.cdb"),
		"nwildlsearch;"+g.file("wild"), "wildlsearch;"+g.file("wild"), g.file("listed"), "good.example", "sub.example.net", "a.wild.example", "EXAMPLE.com",
		"${if eq{$sender_host_address}{198.18.0.1}{one.example}{two.example}}", "${lookup{$domain}lsearch{"+f+"}{$domain}{x.example}}", "${lc:EXAMPLE.ORG}", "*")
}

func (g *randomACL) localItem() string {
	return g.pick("alice", "bob", "^a", "^.*x\\$", "*ob", "+role", "lsearch;"+g.file("locals"), "lsearch*;"+g.file("locals"), "+caseful", "Bob", "postmaster", "${length_3:alice}",
		"dsearch;"+g.file("dir"), "nwildlsearch;"+g.file("wild"), "news", "^.*[@%!/|]", "^[.]")
}

func (g *randomACL) addressItem() string {
	l := g.file("locals")
	return g.pick("bob@good.example", "*@good.example", "good.example", "*.good.example", "*ob@*", "^[^@]+@six[.]", "+caseful", "Bob.Smith@good.example", "+named_senders", "*@+local_domains", "cdb;"+g.file("tab.cdb"),
		"lsearch;"+l, "lsearch*@;"+l, "@@lsearch;"+g.file("split"), "*@lsearch;"+g.file("domains"), "alice@partial-lsearch;"+g.file("domains"), g.file("senders"), "alice@one.example",
		"bob@@", "*@@[]", "nwildlsearch;"+g.file("wild"), "")
}

func (g *randomACL) hostItem() string {
	return g.pick("198.18.0.1", "198.18.0.0/30", "198.18.6.0/24", "2001:db8:2::/64", "2001:db8:2::1", "*.good.example", "mail.good.example", "missing.example", "*.bad.example", "^mail[.]",
		"+named_hosts", "+ignore_unknown", "+include_unknown", "+ignore_defer", "+include_defer", "net-iplsearch;"+g.file("ips"), "net24-lsearch;"+g.file("nets"), "net-lsearch;"+g.file("nets"),
		g.file("hosts"), "@", "@[]", "*", "fails.example", "198.18.0.4", "198.18.0.3", "198.18.0.2", "lsearch;"+g.file("domains"), "partial-lsearch;"+g.file("domains"), "198.18.7.0/25", "198.18.8.1")
}

// text makes a string from what a stage knows.
func (g *randomACL) text() string {
	all := []string{"$sender_host_address", "$sender_helo_name", "${lc:$sender_helo_name}", "$primary_hostname", "$acl_c_one", "$acl_m_two", "$sender_host_name", "${length_5:$sender_helo_name}",
		"${extract{1}{.}{$sender_host_address}}", "${mask:$sender_host_address/24}", "${reverse_ip:$sender_host_address}", "${strlen:$sender_helo_name}", "${uc:a$acl_c_one}",
		"${sg{$sender_helo_name}{[.]}{-}}", "${tr{$sender_helo_name}{abc}{xyz}}", "${substr_2_3:$sender_helo_name}", "${if def:sender_helo_name{y}{n}}", "${listextract{2}{a:b:c}}",
		"${extract{size}{size=3 name=x}{$value}{none}}", "${lookup{$sender_helo_name}lsearch{" + g.file("domains") + "}{$value}{none}}", "${eval:3*4-1}", "plain"}
	if g.stage != "connect" { // a PROXY header comes too late for it
		all = append(all, "$sender_fullhost")
	}
	if g.lists == 0 { // of a list that others call
		all = append(all, "$acl_arg1", "$acl_arg2", "$acl_narg")
	}
	switch g.stage {
	case "mail", "rcpt", "predata", "data":
		all = append(all, "$sender_address", "$sender_address_domain", "$sender_address_local_part", "${domain:$sender_address}", "${lc:${local_part:$sender_address}}",
			"${lookup{$sender_address}lsearch*@{"+g.file("locals")+"}{$value}{none}}", "${quote:$sender_address}", "${rxquote:$sender_address_domain}", "${md5:$sender_address}")
	}
	switch g.stage {
	case "rcpt":
		all = append(all, "$local_part", "$domain", "$local_part@$domain", "$domain_data", "$local_part_data", "$rcpt_count", "${lookup{$local_part}lsearch{"+g.file("locals")+"}{$value}{none}}",
			"${if match_domain{$domain}{+local_domains}{in}{out}}", "$recipients_count")
	case "predata":
		all = append(all, "$recipients_count", "$rcpt_fail_count", "$rcpt_count", "$rcpt_defer_count")
	case "data":
		all = append(all, "$h_subject:", "$h_from:", "${address:$h_from:}", "${lc:$h_subject:}", "$acl_verify_message", "${domain:$h_from:}")
	}
	return all[g.IntN(len(all))]
}

func (g *randomACL) test() string {
	a := g.text()
	switch g.IntN(14) {
	case 0:
		return "and {{" + g.test() + "}{" + g.test() + "}}"
	case 1:
		return "or {{" + g.test() + "}{" + g.test() + "}}"
	case 2:
		return "!" + g.test()
	case 3:
		return g.pick("eq", "eqi", "lt", "gei") + "{" + a + "}{" + g.pick("bob", "good.example", "mail.good.example", "org", g.text()) + "}"
	case 4, 5:
		return "match{" + a + "}{" + g.pick("o", "^[a-m]", "\\N\\.example$\\N", "bob|alice", "(?i)GOOD", "^\\\\d") + "}"
	case 6:
		return g.pick(">", "<", "==", ">=") + "{${strlen:" + a + "}}{" + g.pick("3", "10", "12") + "}"
	case 7:
		return g.pick("match_domain", "match_address") + "{" + g.pick("bob@", "") + g.pick("$sender_helo_name", "one.example") + "}{" + g.list(g.domainItem) + "}"
	case 8:
		return "match_ip{$sender_host_address}{" + g.pick("198.18.0.0/24", "<; 198.18.6.2 ; 2001:db8:2::/64", "198.18.0.1 : 198.18.0.2", "!198.18.0.4", "iplsearch;"+g.file("ips")) + "}"
	case 9:
		return g.pick("inlist", "inlisti") + "{" + a + "}{" + g.pick("bob:alice", "good.example:Org:3", "<; x;y", "none : in") + "}"
	case 10:
		return g.pick("isip", "isip4", "isip6") + "{" + g.pick("$sender_helo_name", "$sender_host_address", a) + "}"
	case 11:
		return "def:" + g.pick("sender_helo_name", "acl_c_one", "acl_m_two", "sender_host_name")
	case 12:
		return "exists{" + g.file("dir/") + g.pick("$sender_helo_name", "alice", "none") + "}"
	}
	return "bool{" + g.pick("true", "no", "1", "0", "${if eq{"+a+"}{bob}{yes}{no}}") + "}"
}

func (g *randomACL) condition() string {
	at := map[string]int{"connect": 0, "helo": 1, "mail": 2, "rcpt": 3, "predata": 4, "data": 5}[g.stage]
	for {
		not := g.pick("", "", "", "!")
		switch g.IntN(16) {
		case 0, 1:
			return not + "hosts = " + g.list(g.hostItem)
		case 2, 3, 4:
			return not + "condition = ${if " + g.test() + g.pick("}", "{yes}{no}}", "{1}}", "{true}{false}}")
		case 5:
			if g.oneIn(3) {
				return not + "condition = " + g.text()
			}
		case 6:
			return not + "dnslists = " + g.pick("bl.example", "bl.example=127.0.0.2", "bl.example!=127.0.0.2,127.0.0.3", "dyn.example : bl.example", "mask.example&0.0.0.2", "text.example,bl.example", "key.example/$sender_helo_name", "+defer_unknown : bl.example")
		case 7:
			return not + g.pick("verify = helo", "verify = reverse_host_lookup", "verify = reverse_host_lookup/defer_ok", "encrypted = *", "authenticated = *")
		case 8:
			if g.lists > 0 {
				return not + "acl = " + g.pick("sub0", "sub1", "sub0 $sender_helo_name", "sub1 ${lc:$sender_helo_name} two")
			}
		case 9, 10:
			if at >= 2 {
				return not + "senders = " + g.list(g.addressItem)
			}
		case 11:
			if at >= 2 {
				return not + g.pick("sender_domains = "+g.list(g.domainItem), "verify = sender", "verify = sender/no_details", "verify = sender/defer_ok")
			}
		case 12:
			if at == 3 {
				return not + "local_parts = " + g.list(g.localItem)
			}
		case 13:
			if at == 3 {
				return not + "domains = " + g.list(g.domainItem)
			}
		case 14:
			if at == 3 {
				return not + g.pick("verify = recipient", "recipients = "+g.list(g.addressItem))
			}
		case 15:
			if at == 5 {
				return not + g.pick("verify = header_syntax", "verify = header_names_ascii")
			}
		}
	}
}

func (g *randomACL) message() string {
	return "message = " + g.pick("", "550 5.7.1 ", "451 4.7.1 ", "521 ", "\"quoted\\n", "") + g.pick("no: ", "Go away, ", "see $acl_m_two: ", "dns $dnslist_domain $dnslist_text $dnslist_value: ", "") + g.text()
}

func (g *randomACL) statement() string {
	verb := g.pick("deny", "deny", "deny", "accept", "accept", "warn", "warn", "require", "defer", "drop", "discard")
	if verb == "discard" && g.stage != "mail" && g.stage != "rcpt" {
		verb = "deny"
	}
	if verb == "accept" && (g.stage == "connect" || g.oneIn(2)) {
		verb = "deny"
	}
	var items []string
	n := 1 + g.IntN(3)
	if verb == "require" {
		n = 1
	}
	for range n {
		items = append(items, g.condition())
	}
	switch {
	case verb == "warn":
		items = append(items, "set "+g.pick("acl_c_one", "acl_m_two")+" = "+g.text())
	case verb == "accept" && g.oneIn(3):
		items = append(items[:1:1], append([]string{"endpass"}, items[1:]...)...)
	}
	if g.oneIn(2) && verb != "warn" {
		at := g.IntN(len(items) + 1)
		items = append(items[:at:at], append([]string{g.message()}, items[at:]...)...)
	}
	return "  " + verb + " " + strings.Join(items, "\n       ") + "\n"
}

func (g *randomACL) acl(name, stage string, most int) string {
	g.stage = stage
	var b strings.Builder
	fmt.Fprintf(&b, "%s:\n", name)
	for range 1 + g.IntN(most) {
		b.WriteString(g.statement())
	}
	if stage != "rcpt" || g.oneIn(2) {
		b.WriteString("  accept\n")
	}
	return b.String()
}

func (g *randomACL) routers() string {
	var b strings.Builder
	for n := range 2 + g.IntN(3) {
		fmt.Fprintf(&b, "r%d:\n", n)
		switch g.IntN(5) {
		case 0:
			fmt.Fprintf(&b, "  driver = accept\n  local_parts = %s\n  transport = t\n", g.list(g.localItem))
		case 1:
			fmt.Fprintf(&b, "  driver = redirect\n  data = ${lookup{$local_part}lsearch{%s}}\n  allow_fail\n  allow_defer\n  pipe_transport = t\n", g.file("aliases"))
		case 2:
			b.WriteString("  driver = dnslookup\n  transport = t\n  ignore_target_hosts = 127.0.0.0/8\n")
		case 3:
			b.WriteString("  driver = accept\n  check_local_user\n  transport = t\n  local_part_suffix = +*\n  local_part_suffix_optional\n")
		case 4:
			fmt.Fprintf(&b, "  driver = redirect\n  data = :fail: not $local_part\n  allow_fail\n  local_parts = %s\n", g.list(g.localItem))
		}
		if g.oneIn(2) {
			fmt.Fprintf(&b, "  domains = %s\n", g.list(g.domainItem))
		}
		if g.oneIn(5) {
			fmt.Fprintf(&b, "  senders = %s\n", g.list(g.addressItem))
		}
		if g.oneIn(6) {
			b.WriteString("  no_more\n")
		}
	}
	return b.String()
}

func (g *randomACL) config() string {
	var b strings.Builder
	named := func(kind, name, value string) { fmt.Fprintf(&b, "%s %s = %s\n", kind, name, value) }
	named("domainlist", "relay_domains", "*.example.net : far.example : partial-lsearch;"+g.file("domains"))
	named("domainlist", "local_domains", "one.example : example.org : +relay_domains : mx.example.org")
	item := func(f func() string, not string) func() string {
		return func() string {
			for {
				if s := f(); s != not && !strings.Contains(s, "$domain") && !strings.Contains(s, "$sender") {
					return s
				}
			}
		}
	}
	named("domainlist", "named_domains", g.list(item(g.domainItem, "+named_domains")))
	named("hostlist", "named_hosts", g.list(item(g.hostItem, "+named_hosts")))
	named("addresslist", "named_senders", g.list(item(g.addressItem, "+named_senders")))
	named("localpartlist", "role", "postmaster : abuse : ^full")
	fmt.Fprintf(&b, "primary_hostname = mx.example.org\nhost_lookup = %s\nsmtp_return_error_details = %t\n", g.pick("*", "", "198.18.0.0/24"), g.oneIn(2))
	b.WriteString("helo_allow_chars = _\n")
	var lists strings.Builder
	for n := range 2 {
		lists.WriteString(g.acl(fmt.Sprint("sub", n), "helo", 2))
	}
	g.lists = 2
	for _, stage := range []string{"connect", "helo", "mail", "rcpt", "predata", "data"} {
		most := map[string]int{"connect": 1, "helo": 2, "mail": 3, "rcpt": 9, "predata": 2, "data": 4}[stage]
		if stage != "rcpt" && g.oneIn(3) {
			continue
		}
		fmt.Fprintf(&b, "acl_smtp_%s = check_%s\n", stage, stage)
		lists.WriteString(g.acl("check_"+stage, stage, most))
	}
	return b.String() + "begin acl\n" + lists.String() + "begin routers\n" + g.routers() + "begin transports\nt:\n  driver = appendfile\n  file = /dev/null\n  user = mail\n"
}
