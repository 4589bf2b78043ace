package parity

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/exim"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/parity"
)

const eximProfiles = "../../policy/exim/testdata/profiles"

// TestEximProfiles plays the same sessions to a real Exim and to our server with the
// policy that was imported from it. EXIM_SESSIONS sets how many each profile gets.
func TestEximProfiles(t *testing.T) {
	dirs, err := os.ReadDir(eximProfiles)
	if err != nil || len(dirs) < 6 {
		t.Fatalf("only %d profiles: %v", len(dirs), err)
	}
	for _, d := range dirs {
		t.Run(d.Name(), func(t *testing.T) { eximProfile(t, d.Name()) })
	}
}

func eximProfile(t *testing.T, name string) {
	d := startEximWorld(t)
	x := installExim(t, name, d.Addr())
	spec, report := importExim(t, x)
	addr := testmx.FreeAddr()
	startExim(t, x, addr)
	m := eximMaterial(t, d, spec)
	primary := dialer(addr)
	if name == "dnslists" {
		primary = asIf(x)
	}
	local, stop := serve(t, spec, d.Addr(), true)
	defer stop()
	var mu sync.Mutex // guards what follows
	var trace []played
	whys := map[string]int{}
	began := time.Now()
	seed := uint64(number(t, "SEED", 1))
	res, err := parity.Run(t.Context(), parity.Options{
		Primary: primary, Local: local, Material: m, Parallel: 24, Sessions: number(t, "EXIM_SESSIONS", 200), Seed: seed, Even: evenExim,
		Observe: func(n int, _ parity.Session, d *parity.Difference, primary parity.Transcript) bool {
			mu.Lock()
			defer mu.Unlock()
			if d == nil {
				trace = append(trace, played{n, primary})
				return false
			}
			why, ok := explainedExim(d)
			if ok {
				whys[why]++
			}
			return ok
		},
	})
	var b strings.Builder
	res.Print(&b)
	t.Logf("%d items, not replicated: %q\nread otherwise: %v\n%sin %.0f s", len(report.Items), report.Lacking(), whys, &b, time.Since(began).Seconds())
	if err != nil {
		t.Fatal(err)
	}
	if res.Differences > 0 {
		for _, d := range res.Distinct {
			if c := d.Session.Commands; len(c) > 0 && c[len(c)-1].Message != "" {
				t.Logf("message: %.1000q", c[len(c)-1].Message)
			}
		}
		t.Errorf("%d differences", res.Differences)
	}
	eximMutants(t, spec, d.Addr(), m, seed, trace)
}

// eximMutants changes some rules of the policy, one at a time: the sessions notice. They
// are compared with the policy itself, which Exim has just confirmed.
func eximMutants(t *testing.T, spec *policy.Spec, nameserver string, m *parity.Material, seed uint64, trace []played) {
	t.Helper()
	all := slices.DeleteFunc(mutants(t, spec), func(m mutant) bool {
		return !strings.HasPrefix(m.what, "acl.lists.") || strings.Contains(m.what, ".where ") || strings.HasSuffix(m.what, "kind:message]") || strings.HasSuffix(m.what, "kind:log_message]")
	})
	const sample = 10
	step := max(1, len(all)/number(t, "EXIM_MUTANTS", sample))
	local, stop := serve(t, spec, nameserver, true)
	defer stop()
	seen, valid := 0, 0
	var missed []string
	for i := 0; i < len(all); i += step {
		snap, err := policy.Decode("mutant", bytes.NewReader(all[i].spec), nil)
		if err != nil { // a list that others need
			continue
		}
		valid++
		changed, end := serve(t, snap.Spec(), nameserver, true)
		found := false
		for _, p := range trace {
			s := m.Nth(seed, p.n)
			want, err := local.Play(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := parity.Check(t.Context(), changed, s, want); err != nil || d != nil {
				found = true
				break
			}
		}
		end()
		if found {
			seen++
		} else {
			missed = append(missed, all[i].what)
		}
	}
	t.Logf("mutants of lists: %d of %d tried, %d seen; not %q", valid, len(all), seen, missed)
	if seen == 0 { // so few sessions don't reach most statements of a long list
		t.Errorf("of %d mutants none is seen", valid)
	}
}

// asIf plays sessions to "exim -bh ADDRESS", which knows the client before the settings
// are asked that a daemon asks before the PROXY protocol's header.
func asIf(x *testmx.Exim) parity.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		ours, its := net.Pipe()
		cmd := exec.CommandContext(ctx, x.Program, "-C", x.Config+".run", "-bh", parity.ClientOf(ctx).Addr.String())
		cmd.Stdin, cmd.Stdout = its, its
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		go func() {
			_ = cmd.Wait() // the session tells
			its.Close()
		}()
		return &headless{Conn: ours}, nil
	}
}

// headless drops the PROXY protocol's header.
type headless struct {
	net.Conn
	begun bool
}

func (c *headless) Write(b []byte) (int, error) {
	if !c.begun {
		c.begun = true
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func dialer(addr string) parity.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// evenExim compares the class of a reply, and of a refusal by the policy its code and
// its text, too: it has no enhanced code but in the operator's own words.
func evenExim(primary, local *parity.Reply) {
	ours := local.Code >= 400 && !strings.HasPrefix(local.Text, "Syntax:") && (local.Enhanced == "" || local.Enhanced == primary.Enhanced)
	for _, r := range []*parity.Reply{primary, local} {
		if ours {
			if r.Enhanced != "" {
				r.Text = strings.ReplaceAll(r.Text, r.Enhanced+" ", "") // of each line
			}
			r.Enhanced += " " + strings.Join(strings.Fields(r.Text), " ")
		} else if r.Code > 0 && r.Code != 354 {
			r.Code, r.Enhanced = r.Code/100*100, ""
		}
	}
}

// explainedExim says what the secondary's door takes otherwise than Exim's.
func explainedExim(d *parity.Difference) (string, bool) {
	line, primary, local := d.Where()
	if strings.HasPrefix(line, "MAIL") && strings.Contains(line, "SIZE=") && primary.Code == 500 && local.Code == 200 {
		return "parameters after HELO", true
	}
	return "", false
}

// installExim puts a profile into a directory of its own, with an Exim.
func installExim(t *testing.T, name, nameserver string) *testmx.Exim {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a real Exim is the primary here, with an /etc of its own; it needs root: run the tests as root, as .ci/run does")
	}
	x, err := testmx.NewExim(tempDir(t), nameserver)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(eximProfiles, name)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		to := filepath.Join(x.Dir, rel)
		if err != nil || e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		return os.WriteFile(to, []byte(strings.ReplaceAll(readFile(t, path), "@DIR@", x.Dir)), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(x.Dir, "update-exim4.conf.conf")); err == nil {
		debianExim(t, x)
	}
	if sql := filepath.Join(x.Dir, "mail.sql"); isThere(sql) {
		cmd := exec.Command("sqlite3", filepath.Join(x.Dir, "mail.db"))
		cmd.Stdin = strings.NewReader(readFile(t, sql))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v\n%s", err, out)
		}
	}
	head := fmt.Sprintf("spool_directory = %[1]s/spool\nlog_file_path = %[1]s/log/%%slog\nkeep_environment =\n", x.Dir)
	text := strings.ReplaceAll(readFile(t, x.Config), "\nspool_directory =", "\n#")
	text = strings.ReplaceAll(text, "\nkeep_environment =", "\n#")
	writeOld(t, x.Config, head+text)
	return x
}

func isThere(path string) bool { _, err := os.Stat(path); return err == nil }

// debianExim has Debian's own program make the configuration of Debian's own files;
// its /etc is in the test's directory.
func debianExim(t *testing.T, x *testmx.Exim) {
	t.Helper()
	etc := filepath.Join(x.Dir, "debian")
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	run("cp", "-a", filepath.Join(testmx.EximRoot, "etc"), etc)
	conf := filepath.Join(etc, "exim4")
	for _, f := range []string{"update-exim4.conf.conf", "exim4.conf.localmacros", "local_host_blacklist", "local_host_whitelist", "local_sender_blacklist", "local_sender_whitelist"} {
		if isThere(filepath.Join(x.Dir, f)) {
			run("cp", filepath.Join(x.Dir, f), conf)
		}
	}
	if isThere(filepath.Join(conf, "exim4.conf.localmacros")) {
		run("mkdir", "-p", filepath.Join(conf, "conf.d/main"))
		run("cp", filepath.Join(conf, "exim4.conf.localmacros"), filepath.Join(conf, "conf.d/main/000_localmacros"))
	}
	run("cp", filepath.Join(x.Dir, "aliases"), etc)
	writeOld(t, filepath.Join(etc, "mailname"), "mx.example.org\n")
	writeOld(t, filepath.Join(etc, "email-addresses"), "")
	script := readFile(t, filepath.Join(testmx.EximRoot, "usr/sbin/update-exim4.conf"))
	script = strings.NewReplacer("/usr/sbin/exim4", x.Program, "root:Debian-exim", "root", "/etc/", etc+"/").Replace(script)
	update := filepath.Join(x.Dir, "update")
	writeOld(t, update, script)
	run("sh", update, "-d", conf, "-o", x.Config+".debian")
	text := strings.ReplaceAll(readFile(t, x.Config+".debian"), "/etc/", etc+"/")
	text = "primary_hostname = mx.example.org\n" + text
	writeOld(t, x.Config, text)
}

// importExim imports it.
func importExim(t *testing.T, x *testmx.Exim) (*policy.Spec, fidelity.Report) {
	t.Helper()
	spec, report, err := exim.Import(t.Context(), exim.Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Rows: exim.Databases})
	if err != nil {
		t.Fatal(err)
	}
	return spec, report
}

func startExim(t *testing.T, x *testmx.Exim, addr string) {
	t.Helper()
	out, err := os.Create(filepath.Join(x.Dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := x.Start(addr, out)
	if err != nil {
		t.Fatalf("%v\n%s", err, readFile(t, out.Name()))
	}
	t.Cleanup(func() {
		if err := daemon.Kill(); err != nil {
			t.Errorf("kill Exim: %v", err)
		}
		out.Close()
		for _, log := range []string{"panic"} {
			if b, err := os.ReadFile(filepath.Join(x.Dir, "log", log+"log")); err == nil && t.Failed() {
				t.Logf("%s log: %.3000s", log, b)
			}
		}
		if t.Failed() && os.Getenv("KEEP") != "" {
			exec.Command("cp", "-a", x.Dir, os.Getenv("KEEP")).Run()
		}
	})
}

// startEximWorld is startWorld with names for the clients' addresses.
func startEximWorld(t *testing.T) *demo.DNS {
	t.Helper()
	d := startWorld(t)
	for _, r := range []string{
		"1.0.18.198.in-addr.arpa. 300 IN PTR mail.good.example.",
		"4.0.18.198.in-addr.arpa. 300 IN PTR mail.good.example.",
		"6.0.18.198.in-addr.arpa. 300 IN PTR unknown.good.example.",
		"1.5.18.198.in-addr.arpa. 300 IN PTR a.relay.example.", "a.relay.example. 300 IN A 198.18.5.1",
		"1.6.18.198.in-addr.arpa. 300 IN PTR mail.good.example.",
		"2.6.18.198.in-addr.arpa. 300 IN PTR two.bad.example.", "two.bad.example. 300 IN A 198.18.6.2",
		"3.8.18.198.in-addr.arpa. 300 IN PTR x.bad.example.", "x.bad.example. 300 IN A 198.18.8.3",
		"1.7.18.198.in-addr.arpa. 300 IN PTR seven.good.example.", "seven.good.example. 300 IN A 198.18.7.1",
		"4.8.18.198.in-addr.arpa. 300 IN PTR y.trusted.example.", "y.trusted.example. 300 IN A 198.18.8.4",
		"6.8.18.198.in-addr.arpa. 300 IN PTR z.reject.example.", "z.reject.example. 300 IN A 198.18.8.6",
		"ignored.example. 300 IN MX 10 ignored-mx.example.", "ignored-mx.example. 300 IN A 127.0.0.9", "ignored-mx.example. 300 IN A 198.18.0.66",
		"halfignored.example. 300 IN MX 10 ignored-mx.example.", "halfignored.example. 300 IN MX 20 mail.good.example.",
		"good.example. 300 IN TXT \"v=spf1 -all\"",
	} {
		if err := d.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	d.Behave("3.0.18.198.in-addr.arpa", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	return d
}

// eximLists are the DNS lists of the profiles, and what each says of its n-th client.
var eximLists = []string{"bl.example", "dyn.example", "drop.example", "mask.example", "all.example", "alln.example", "not.example", "text.example", "fails.bl.example", "def.example", "exc.example", "key.example"}

var eximCodes = [][]string{{"127.0.0.2"}, {"127.0.0.3"}, {"127.0.0.4"}, {"127.0.0.9"}, {"127.0.0.2", "127.0.0.3"}, {"127.0.0.2", "127.0.0.4"}, {"192.0.2.1"}, {"127.0.0.12"}}

// eximMaterial is what sessions are made of.
func eximMaterial(t *testing.T, d *demo.DNS, spec *policy.Spec) *parity.Material {
	t.Helper()
	m := plain
	m.Proxied, m.Sober = true, true
	m.Clients, m.Helos, m.Senders = nil, slices.Clone(plain.Helos), slices.Clone(plain.Senders)
	m.Senders = append(m.Senders, "ignored.example", "halfignored.example", "rhs1.example", "relay.example")
	m.Helos = append(m.Helos, "two.bad.example", "seven.good.example", "host.example.org", "example.org", "[198.18.7.1]", "key1.example")
	client := func(addr string) { m.Clients = append(m.Clients, parity.Client{Addr: netip.MustParseAddr(addr)}) }
	for _, a := range []string{
		"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4", "198.18.0.6", "2001:db8:2::1", "2001:db8:2::2", "198.18.5.1", "198.18.5.200", "2001:db8:5::1",
		"198.18.6.1", "198.18.6.2", "198.18.6.9", "198.18.7.1", "198.18.7.7", "198.18.7.127", "198.18.7.128", "198.18.8.1", "198.18.8.2", "198.18.8.3", "198.18.8.4",
		"198.18.8.5", "198.18.8.6", "198.18.8.9", "198.18.8.70", "198.18.9.1", "198.18.9.8", "198.18.9.9", "198.18.10.1",
	} {
		client(a)
	}
	add := func(format string, args ...any) {
		if err := d.Add(fmt.Sprintf(format, args...)); err != nil {
			t.Fatal(err)
		}
	}
	for i, zone := range eximLists {
		for j, codes := range eximCodes {
			client(fmt.Sprintf("198.19.%d.%d", i, j))
			for _, code := range codes {
				add("%d.%d.19.198.%s. 300 IN A %s", j, i, zone, code)
			}
			add("%d.%d.19.198.%s. 300 IN TXT \"listed %d\"", j, i, zone, j)
			if zone == "bl.example" {
				add("%d.%d.19.198.text.example. 300 IN A 127.0.0.2", j, i)
				add("%d.%d.19.198.text.example. 300 IN TXT \"another text\"", j, i)
			}
		}
		client(fmt.Sprintf("198.19.%d.250", i))
		d.Behave(fmt.Sprintf("250.%d.19.198.%s", i, zone), demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	add("rhs1.example.rhs.example. 300 IN A 127.0.0.2")
	add("rhs1.example. 300 IN A 198.18.0.1")
	add("key1.example.key.example. 300 IN A 127.0.0.2")
	for _, domain := range spec.Addresses.Relay.Domains {
		add("%s. 300 IN A 198.18.0.1", strings.TrimPrefix(domain, "."))
	}
	m.Domains = []string{"example.com", "far.example"}
	m.Recipients = []string{"alice@mx.example.org", "bob@mx.example.org", "carol.x@mx.example.org", "root@mx.example.org", "real-alice@mx.example.org", "list-info@mx.example.org",
		"a-owner-alice@mx.example.org", "alice@[192.0.2.25]", "x@closed.example.com", "x@open.example.com", "x@not.wild.example", "x@a.wild.example", "x@sub.example.net",
		"alice@one.example", "bob@one.example", "alice+x@one.example", "devnull@one.example", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@one.example", "full@two.example", "o'brien@example.org", "bob@two.example", "x@a.deep.example", "x@mail.example.com"}
	m.Authors = []string{"spammer@good.example", "boss@a.good.example", "x@a.good.example", "news@good.example", "a-bounces@good.example", "bounce-1@good.example", "lists@good.example",
		"x@six.example", "alice@example.org", "nobody@example.org", "alice@mx.example.org"}
	out := parity.NewMaterial(spec, m)
	for name, tab := range spec.Tables {
		if file, ok := strings.CutPrefix(name, "lsearch;"); ok || strings.HasPrefix(name, "sqlite;") || name == "passwd" {
			for i := range min(tab.Len(), 200) {
				k, _ := tab.Entry(i)
				local, domain, at := strings.Cut(strings.ReplaceAll(string(k), "\n", "@"), "@")
				if !at {
					domain = filepath.Base(file)
				}
				for _, dom := range []string{domain, "mx.example.org"} {
					if local != "" && strings.Contains(dom, ".") {
						out.Recipients = append(out.Recipients, local+"@"+dom)
					}
				}
			}
		}
	}
	slices.Sort(out.Recipients)
	out.Recipients = slices.Compact(out.Recipients)
	slices.SortFunc(out.Clients[1:], func(a, b parity.Client) int { return a.Addr.Compare(b.Addr) })
	for i := range out.Clients {
		out.Clients[i].Name, out.Clients[i].Reverse = "", ""
	}
	for _, list := range []*[]string{&out.Recipients, &out.Helos, &out.Domains, &out.Senders, &out.Authors} {
		*list = slices.DeleteFunc(*list, func(s string) bool { return strings.ContainsAny(s, "\n ") })
	}
	out.Data = "*"
	return out
}
