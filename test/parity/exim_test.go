package parity

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/exim"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/parity"
)

// eximProfiles is where the profiles are. EXIM_PROFILES names a directory of others,
// such as real machines'.
func eximProfiles() string {
	return cmp.Or(os.Getenv("EXIM_PROFILES"), "../../policy/exim/testdata/profiles")
}

// TestEximProfiles plays the same sessions to a real Exim and to our server with the
// policy that was imported from it. EXIM_SESSIONS sets how many each profile gets.
//
// A profile is a directory with an exim.conf. @DIR@ in its files is the directory that
// it is played in; where it has a mail.mysql, that is what a MariaDB at @PORT@ holds; where it has an etc of its own, /etc/ in its configuration files is that, and postmap makes its *.cdb of the texts of these names. The lines
// of its file "choices" are the operator's, as after --choose.
func TestEximProfiles(t *testing.T) {
	dirs, err := os.ReadDir(eximProfiles())
	if err != nil || len(dirs) < 6 && os.Getenv("EXIM_PROFILES") == "" {
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
	spec.ACL.Interfaces = []string{"127.0.0.1"} // where the daemon is
	addr := testmx.FreeAddr()
	startExim(t, x, addr)
	m := eximMaterial(t, d, spec)
	primary := dialer(addr)
	if name == "dnslists" {
		primary = asIf(x)
	}
	local, stop := serve(t, spec, d.Addr(), true)
	defer stop()
	began := time.Now()
	seed := uint64(number(t, "SEED", 1))
	res, err := parity.Run(t.Context(), parity.Options{
		Primary: primary, Local: local, Material: m, Parallel: 24, Sessions: number(t, "EXIM_SESSIONS", 200), Seed: seed, Even: evenExim,
		Observe: func(_ int, _ parity.Session, d *parity.Difference, _ parity.Transcript) bool {
			return d != nil && diedExim(d)
		},
	})
	var b strings.Builder
	res.Print(&b)
	t.Logf("%d items, not replicated: %q\n%sin %.0f s", len(report.Items), report.Lacking(), &b, time.Since(began).Seconds())
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
	eximMutants(t, name, spec, d.Addr(), m, seed, min(number(t, "EXIM_SESSIONS", 200), 200))
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

// diedExim says that Exim's process died: DATA without MAIL after a recipient that it
// discarded and RSET.
func diedExim(d *parity.Difference) bool {
	line, primary, local := d.Where()
	return line == "DATA" && primary.Code == 354 && local.Code == 500 && len(d.Primary) > 0 && d.Primary[len(d.Primary)-1].Code == 0
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
	dir := filepath.Join(eximProfiles(), name)
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
	if sql := filepath.Join(x.Dir, "mail.mysql"); isThere(sql) {
		db := listertest.MariaDB(t, readFile(t, sql))
		writeOld(t, x.Config, strings.ReplaceAll(readFile(t, x.Config), "@PORT@", strconv.Itoa(db.Port)))
	}
	head := fmt.Sprintf("spool_directory = %[1]s/spool\nlog_file_path = %[1]s/log/%%slog\nkeep_environment =\n", x.Dir)
	text := strings.ReplaceAll(readFile(t, x.Config), "\nspool_directory =", "\n#")
	text = strings.ReplaceAll(text, "\nkeep_environment =", "\n#")
	if isThere(filepath.Join(dir, "etc")) {
		text = ownEtc(text, x.Dir)
		parts, err := filepath.Glob(filepath.Join(x.Dir, "etc/exim*.conf"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			writeOld(t, p, ownEtc(readFile(t, p), x.Dir))
		}
		makeCDBs(t, x)
	}
	writeOld(t, x.Config, head+text)
	return x
}

// etcPath is /etc/ where no other directory stands before it.
var etcPath = regexp.MustCompile(`(^|[^\w}])/etc/`)

func ownEtc(text, dir string) string { return etcPath.ReplaceAllString(text, "${1}"+dir+"/etc/") }

// makeCDBs makes the cdb files of a profile's etc, which has their entries as text.
func makeCDBs(t *testing.T, x *testmx.Exim) {
	t.Helper()
	texts, err := filepath.Glob(filepath.Join(x.Dir, "etc/*.cdb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range texts {
		plain := strings.TrimSuffix(file, ".cdb")
		writeOld(t, plain, readFile(t, file))
		if out, err := exec.Command("postmap", "cdb:"+plain).CombinedOutput(); err != nil {
			t.Fatalf("postmap cdb:%s: %v\n%s", plain, err, out)
		}
	}
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
	for _, f := range []string{"update-exim4.conf.conf", "exim4.conf.localmacros", "local_host_blacklist", "local_host_whitelist", "local_sender_blacklist", "local_sender_whitelist", "host_local_deny_exceptions", "sender_local_deny_exceptions"} {
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
	var choices []string
	if file := filepath.Join(x.Dir, "choices"); isThere(file) {
		choices = strings.FieldsFunc(readFile(t, file), func(r rune) bool { return r == '\n' })
	}
	spec, report, err := exim.Import(t.Context(), exim.Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Etc: filepath.Join(x.Dir, "etc"), Rows: exim.Databases, Directory: exim.Directories, Choices: fidelity.ParseChoices(choices)})
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
