package exim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// itemOf is the report's item whose ID has a part in it.
func itemOf(t *testing.T, r *fidelity.Report, part string) fidelity.Item {
	t.Helper()
	for _, it := range r.Items {
		if strings.Contains(it.ID(), part) {
			return it
		}
	}
	t.Fatalf("nothing in the report is about %s: %v", part, r.Items)
	return fidelity.Item{}
}

const smallRouters = `
begin routers
local:
  driver = accept
  domains = +local_domains
  transport = t
begin transports
t:
  driver = appendfile
  file = /dev/null
  user = mail
`

// TestOrigin: places are those of the files that a line comes from: included ones,
// continued lines, lines with macros, and what .ifdef leaves out isn't counted wrongly.
func TestOrigin(t *testing.T) {
	part := filepath.Join(readableDir(t), "part.conf")
	if err := os.WriteFile(part, []byte("# a comment\n\n  deny message = from the part\n       condition = ${run{/bin/false}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, report, file, err := importText(t, `WORD = example.org
domainlist local_domains = WORD : \
  # in between
  example.net
acl_smtp_rcpt = rcpt
begin acl
rcpt:
.ifdef NEVER
  deny condition = ${run{/bin/WORD}}
.endif
  deny condition = \
         ${run{/bin/true}}
.include `+part+`
  deny condition = ${run{/bin/WORD}}
  accept
`+smallRouters)
	if err != nil {
		t.Fatal(err)
	}
	for part, want := range map[string]string{
		"run{/bin/true}": file + ":15:", "run{/bin/false}": part + ":4:", "run{/bin/example.org}": file + ":18:",
	} {
		if it := itemOf(t, &report, part); !strings.HasPrefix(it.Why, want) {
			t.Errorf("%s: %q; want %s", part, it.Why, want)
		}
	}
}

// TestPerl: Perl is never run; what stands for it is the operator's choice, and for the
// functions of control panels what these answer.
func TestPerl(t *testing.T) {
	text := `perl_startup = die
domainlist local_domains = example.org
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  drop condition = ${perl{auth_hit_limit_acl}}
  deny condition = ${perl{ours}{$sender_address}}
  accept
begin routers
local:
  driver = accept
  domains = lsearch;@DIR@/etc/services
  condition = "${perl{save_virtual_user}}"
  transport = t
begin transports
t:
  driver = appendfile
  file = /dev/null
  user = mail
`
	_, report, file, err := importText(t, text)
	if err != nil {
		t.Fatal(err)
	}
	for part, want := range map[string]string{"perl: auth_hit_limit_acl": perlPanel, "perl: ours": fidelity.Defer, "perl: save_virtual_user": perlPanel} {
		if it := itemOf(t, &report, part); it.Instead != want || !strings.Contains(it.Why, file+":") {
			t.Errorf("%s: instead %q, %q; want %q with its place", part, it.Instead, it.Why, want)
		}
	}
	spec, _, _, err := importText(t, text, "perl: ours=no", "perl: save_virtual_user=yes")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range spec.ACL.Lists["rcpt"] {
		for _, it := range s.Items {
			got = append(got, it.Arg)
		}
	}
	got = append(got, spec.ACL.Routers[0].Options["condition"])
	if want := "no no yes"; strings.Join(got, " ") != want {
		t.Errorf("conditions %q, want %q", got, want)
	}
}

// TestSRS: the secret isn't in the policy.
func TestSRS(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "srs.conf")
	if err := os.WriteFile(secret, []byte("topsecret"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `domainlist local_domains = example.org
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept condition = ${if inbound_srs {$local_part} {${readfile{` + secret + `}}}}
  deny   condition = ${if inbound_srs {$local_part} {} {yes}{no}}
  accept
` + smallRouters
	for _, choices := range [][]string{nil, {"inbound_srs: $local_part=ignore"}} {
		spec, report, _, err := importText(t, text, choices...)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(snap.Encode()), "topsecret") {
			t.Error("the secret is in the policy")
		}
		if it := itemOf(t, &report, "inbound_srs: "); it.Class != fidelity.Approximated {
			t.Errorf("%+v", it)
		}
	}
}

// TestStages: a stage's list may depend on the port, and be a verb by itself.
func TestStages(t *testing.T) {
	spec, report, _, err := importText(t, `domainlist local_domains = example.org
acl_smtp_mail = ${if ={$interface_port}{587} {accept} {${if ={$interface_port}{10025} {deny}{mail}}}}
acl_smtp_rcpt = ${if eq{$sender_helo_name}{x}{nobody's}{mail}}
begin acl
mail:
  accept
`+smallRouters)
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "acl_smtp_mail"); it.Class != fidelity.Exact {
		t.Errorf("%+v", it)
	}
	for _, name := range []string{"accept", "deny", "mail"} {
		if len(spec.ACL.Lists[name]) != 1 {
			t.Errorf("list %s: %v", name, spec.ACL.Lists[name])
		}
	}
	if it := itemOf(t, &report, "acl_smtp_rcpt"); it.Class != fidelity.NotReplicated || it.Instead != fidelity.Defer {
		t.Errorf("%+v", it)
	}
	if _, err := policy.Compile(spec); err != nil {
		t.Error(err)
	}
}

// TestCallout: a callout decides only about recipients that the primary relays on.
func TestCallout(t *testing.T) {
	text := `domainlist local_domains = example.org
domainlist relay_domains = example.net
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny message = nobody
       !verify = recipient/callout=30s,defer_ok,use_sender
  accept
begin routers
onward:
  driver = manualroute
  domains = +relay_domains
  route_list = * 192.0.2.9
  transport = smtp
local:
  driver = accept
  domains = +local_domains
  local_parts = alice
  transport = t
begin transports
smtp:
  driver = smtp
t:
  driver = appendfile
  file = /dev/null
  user = mail
`
	for _, c := range []struct{ choice, to, want string }{
		{"", "alice@example.org", "permit"}, {"", "bob@example.org", "reject"}, {"", "x@example.net", "permit"},
		{"defer", "alice@example.org", "permit"}, {"defer", "bob@example.org", "reject"}, {"defer", "x@example.net", "defer"},
	} {
		var choices []string
		if c.choice != "" {
			choices = []string{"rcpt: !verify = recipient/callout=30s,defer_ok,use_sender=" + c.choice}
		}
		spec, _, _, err := importText(t, text, choices...)
		if err != nil {
			t.Fatal(err)
		}
		if got := decided(t, spec, c.to); got != c.want {
			t.Errorf("choice %q, %s: %s, want %s", c.choice, c.to, got, c.want)
		}
	}
}

// decided is what a policy decides about a recipient.
func decided(t *testing.T, spec *policy.Spec, to string) string {
	t.Helper()
	return rcpt(t, begun(t, spec), to).Action.String()
}

// TestAccounts: ${lookup passwd} has the login names without their passwords, and
// ${stat} what is known of a file.
func TestAccounts(t *testing.T) {
	spec, report, _, err := importText(t, `domainlist local_domains = example.org
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept condition = ${if eq{${extract{5}{:}{${lookup passwd{$local_part}}}{$value}}}{/home/bob}}
         condition = ${extract{size}{${stat:@DIR@/etc/services}}}
  deny   condition = ${if exists{${extract{5}{:}{${lookup passwd{$local_part}}}{$value}}/etc/none}}
`+smallRouters)
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "passwd"); it.Class != fidelity.Exact {
		t.Errorf("%+v", it)
	}
	for to, want := range map[string]string{"bob@example.org": "permit", "alice@example.org": "reject", "nobody@example.org": "reject"} {
		if got := decided(t, spec, to); got != want {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
}

// TestTainted: files whose names clients have a part in aren't opened, as in Exim, which
// refuses for now.
func TestTainted(t *testing.T) {
	x := newExim(t, `domainlist local_domains = one.example
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny local_parts = q1
       message = <${lookup{$local_part}lsearch{@DIR@/d/$domain}{$value}{no}}>
  deny local_parts = q2
       condition = ${lookup{$local_part}lsearch{@DIR@/d/$domain}{yes}{no}}
  deny domains = one.example
       local_parts = q3
       message = <${lookup{q1}lsearch{@DIR@/d/${lookup{$domain}dsearch{@DIR@/d}}}{$value}{no}}>
  deny local_parts = q4
       message = <${if exists{@DIR@/d/$domain}{there}{no}}>
  deny local_parts = q5
       message = <${lookup{$domain}dsearch{@DIR@/$local_part}{$value}{none}}>
  deny local_parts = q6
       set acl_m_x = ${lc:$domain}
       message = <${lookup{q1}lsearch{@DIR@/d/$acl_m_x}{$value}{no}}>
  deny local_parts = q7
       message = <${lookup{q1}lsearch{@DIR@/d/${sg{$domain}{x}{x}}}{$value}{no}}>
  deny local_parts = q8
       message = <${lookup{q1}lsearch{@DIR@/d/${if eq{$domain}{one.example}{one.example}{no}}}{$value}{no}}>
  require verify = recipient
begin routers
r1:
  driver = redirect
  local_parts = r1
  data = ${lookup{$local_part}lsearch{@DIR@/d/$domain}}
r2:
  driver = accept
  local_parts = r2
  condition = ${lookup{$local_part}lsearch{@DIR@/d/$domain}{yes}{no}}
  transport = t
r3:
  driver = accept
  local_parts = r3
  require_files = @DIR@/d/$domain
  transport = t
begin transports
t:
  driver = appendfile
  file = /dev/null
  user = mail
`)
	if err := os.Mkdir(filepath.Join(x.Dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(x.Dir, "d/one.example"), []byte("q1: v\nq2: v\nr1: r3@one.example\nr2: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "lsearch: "); !strings.Contains(it.Why, "use $domain_data") || !strings.HasPrefix(it.Why, x.Config+":") {
		t.Errorf("%+v", it)
	}
	var to []string
	for _, local := range []string{"q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "r1", "r2", "r3"} {
		to = append(to, local+"@one.example")
	}
	sameAsExim(t, x, spec, to)
}

// TestNoSuchList: a list that isn't there defers whoever is looked for in it, and nobody
// who is found before, as in Exim.
func TestNoSuchList(t *testing.T) {
	x := newExim(t, `domainlist local_domains = one.example
hostlist ours = 198.51.100.1
hostlist more = !198.51.100.2 : +ours : 198.51.100.3
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  require domains = +local_domains : +relay_domains
  deny    local_parts = q1
          hosts = +nobody
  deny    local_parts = q2
          hosts = +ours : 192.0.2.1 : +nobody
  deny    local_parts = q3
          condition = ${if match_domain{$domain}{+local_domains : +nobody}}
  deny    local_parts = q4
          condition = ${if match_domain{x.example}{+local_domains : +nobody}}
  deny    local_parts = q5
          condition = ${if match_ip{$sender_host_address}{+ours : +nobody}}
  deny    local_parts = q6
          condition = ${if match_ip{$sender_host_address}{192.0.2.0/24 : +nobody}}
  deny    local_parts = q9
          condition = ${if match_ip{198.51.100.1}{+ours}}
  deny    local_parts = q10
          condition = ${if match_ip{$sender_host_address}{+ours}}
  deny    local_parts = q7
          senders = : *@+nobody
  deny    local_parts = q8
          !local_parts = +nobody
  deny    local_parts = r1
          condition = ${if match_ip{$sender_host_address}{!+ours}}
  deny    local_parts = r2
          condition = ${if !match_ip{198.51.100.1}{+ours : 192.0.2.1}}
  deny    local_parts = r3
          condition = ${if match_ip{198.51.100.1}{+ignore_unknown : +ours}}
  deny    local_parts = r4
          condition = ${if match_ip{198.51.100.2}{+include_unknown : +more}}
  deny    local_parts = r5
          condition = ${if match_ip{198.51.100.3}{+more : 198.51.100.4}}
  deny    local_parts = r7
          message = <${if match_ip{::ffff:192.0.2.1}{192.0.2.1}{yes}{no}}> <${if first_delivery{yes}{no}}>
  deny    local_parts = r6
          condition = ${if match_ip{198.51.100.4}{+more : 198.51.100.4}}
  accept
`+smallRouters)
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	for part, line := range map[string]string{"+relay_domains": ":11: ", "hostlist: +nobody": ":13: "} {
		if it := itemOf(t, &report, part); !strings.HasPrefix(it.Why, x.Config+line) || !strings.Contains(it.Why, "no ") {
			t.Errorf("%+v; want its place, %s", it, line)
		}
	}
	sameAsExim(t, x, spec, []string{"alice@one.example", "q1@one.example", "alice@two.example",
		"q2@one.example", "q3@one.example", "q4@one.example", "q5@one.example", "q6@one.example", "q7@one.example", "q8@one.example", "q9@one.example", "q10@one.example",
		"r1@one.example", "r2@one.example", "r3@one.example", "r4@one.example", "r5@one.example", "r6@one.example", "r7@one.example"})
}

// TestFileInQuery: a query of SQLite may begin with its file. With a key, Exim 4.94 and
// later won't open that.
func TestFileInQuery(t *testing.T) {
	x := newExim(t, `domainlist local_domains = one.example
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny local_parts = q1
       message = <${lookup sqlite{@DIR@/k.db SELECT v FROM k WHERE k='a'}{$value}{none}}>
  deny local_parts = q2
       message = <${lookup sqlite{@DIR@/k.db SELECT v FROM k WHERE k='${quote_sqlite:$domain}'}{$value}{none}}>
  accept
`+smallRouters)
	cmd := exec.CommandContext(t.Context(), "sqlite3", filepath.Join(x.Dir, "k.db"), "CREATE TABLE k (k TEXT, v TEXT); INSERT INTO k VALUES ('a', 'constant')")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v\n%s", err, out)
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Rows: Databases, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if it := itemOf(t, &report, "quote_sqlite"); !strings.HasPrefix(it.Why, x.Config+":12: ") || !strings.Contains(it.Why, "sqlite_dbfile") {
		t.Errorf("%+v; want the remedy", it)
	}
	sameAsExim(t, x, spec, []string{"q1@one.example", "q2@one.example", "q3@one.example"})
}

// TestDirectorySearch: what a directory search returns, and which entries it sees.
func TestDirectorySearch(t *testing.T) {
	x := newExim(t, `domainlist local_domains = one.example
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny local_parts = dsearch,filter=dir;@DIR@/d
       message = dir <$local_part_data>
  deny local_parts = dsearch,filter=file;@DIR@/d
       message = file <${lookup{$local_part}dsearch,ret=full{@DIR@/d}}> \
          <${lookup{$local_part}dsearch,filter=subdir{@DIR@/d}{$value}{no}}>
  deny local_parts = !dsearch,filter=dir;@DIR@/d
       message = <${lookup{key}lsearch{${lookup{aliases}dsearch,ret=full,filter=file{@DIR@/d}}}}>
`+smallRouters)
	if err := os.MkdirAll(filepath.Join(x.Dir, "d/list"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(x.Dir, "d/aliases"), []byte("key: value\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec, _, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	sameAsExim(t, x, spec, []string{"list@one.example", "aliases@one.example", "nobody@one.example"})
}
