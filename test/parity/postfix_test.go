package parity

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// twin is a profile twice: its configuration as the importer reads it, and
// a real Postfix that runs a copy of it. The copy differs by testOnly, and by
// what the import's report says that the secondary can't do: there it does
// what the report says the secondary does instead. So every difference that is
// left is one that the report kept silent about.
type twin struct {
	t       *testing.T
	dir     string
	addr    string
	spec    *policy.Spec
	src     postfix.Source
	report  fidelity.Report
	settled []string // items of the report that were evened out
}

// testOnly is what the test changes: where Postfix keeps its things, who may
// use XCLIENT, no waits, no counting over sessions, no delivery.
const testOnly = `
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/mail.log
maillog_file_prefixes = /
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
smtpd_client_recipient_rate_limit = 0
max_use = 5000
in_flow_delay = 0
local_transport = discard:
virtual_transport = discard:
relay_transport = discard:
default_transport = discard:
`

// newPrimary imports a profile and starts a Postfix that has the DNS server at
// nameserver for its only one.
func newPrimary(t *testing.T, profile, nameserver string) *twin {
	t.Helper()
	p := newTwin(t, profile)
	p.start(nameserver)
	return p
}

// newTwin imports a profile, and configures the Postfix that is to have it.
func newTwin(t *testing.T, profile string) *twin {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a real Postfix is the primary here, with a DNS of its own; both need root: run the tests as root, as .ci/run does")
	}
	p := &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	for _, d := range []string{"conf", "run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf, run := filepath.Join(p.dir, "conf"), filepath.Join(p.dir, "run")
	src := postfix.Source{ConfigDir: conf, Commands: map[string][]string{}, Lister: postfix.Databases{}}
	p.install(profile, conf, &src)
	p.install(profile, run, nil)
	var err error
	if p.spec, p.report, err = postfix.Import(context.Background(), src); err != nil {
		t.Fatal(err)
	}
	p.src = src
	p.configure(src, run)
	return p
}

// install copies a profile, @DIR@ being where it ends up. The databases that a
// profile asks are played by lists in testdata: the importer gets them as the
// operator's own listing, Postfix as texthash.
func (p *twin) install(profile, dir string, src *postfix.Source) {
	t := p.t
	t.Helper()
	files := map[string]string{}
	for _, d := range []string{filepath.Join(profiles(), profile), filepath.Join("testdata", profile)} {
		names, _ := filepath.Glob(filepath.Join(d, "*"))
		for _, name := range names {
			files[filepath.Base(name)] = readFile(t, name)
		}
	}
	if len(files["main.cf"]) == 0 {
		t.Fatalf("there is no profile %s", profile)
	}
	if files["master.cf"] == "" {
		files["master.cf"] = "smtp inet n - n - - smtpd\n"
	}
	delete(files, "want.txt")
	delete(files, "same.txt")
	for name, text := range files {
		if db, ok := strings.CutSuffix(name, ".list"); ok && src != nil {
			for _, typ := range []string{"mysql", "pgsql", "sqlite", "ldap"} {
				src.Commands[typ+":"+dir+"/"+db] = []string{"cat", filepath.Join(dir, name)}
			}
		}
		text = strings.ReplaceAll(text, "@DIR@", dir)
		if src == nil {
			for _, typ := range []string{"mysql", "pgsql", "sqlite", "ldap"} {
				text = replaceTable(text, typ+":"+dir+"/", "texthash:"+dir+"/", ".list")
			}
		}
		writeOld(t, filepath.Join(dir, name), text)
	}
	if src != nil && screened.MatchString(files["master.cf"]) {
		src.Service = "smtpd" // XCLIENT can't speak to postscreen
	}
	index(t, dir)
}

// replaceTable turns from+name into to+name+suffix.
func replaceTable(text, from, to, suffix string) string {
	for {
		before, rest, found := strings.Cut(text, from)
		if !found {
			return text
		}
		end := strings.IndexAny(rest, " ,\t\r\n")
		if end < 0 {
			end = len(rest)
		}
		text = before + to + rest[:end] + suffix + rest[end:]
	}
}

// screened is a master.cf with postscreen at a port.
var screened = regexp.MustCompile(`(?m)^[^#\s]\S*\s+inet\s.*\spostscreen\b`)

// indexed are the tables that postmap makes.
var indexed = regexp.MustCompile(`\b(hash|btree|lmdb|cdb):([^\s,{}]+)`)

// index makes the indexed tables that a configuration names.
func index(t *testing.T, dir string) {
	t.Helper()
	text := readFile(t, filepath.Join(dir, "main.cf")) + readFile(t, filepath.Join(dir, "master.cf"))
	for _, m := range indexed.FindAllStringSubmatch(text, -1) {
		name := strings.NewReplacer("$config_directory", dir, "${config_directory}", dir).Replace(m[2])
		if _, err := os.Stat(name); err != nil || filepath.Dir(name) != dir {
			continue
		}
		if out, err := exec.Command("/usr/sbin/postmap", "-c", dir, m[1]+":"+name).CombinedOutput(); err != nil {
			t.Fatalf("postmap %s: %v\n%s", name, err, out)
		}
	}
}

// configure makes the copy run: the service's overrides move to main.cf, then
// come the items of the report and testOnly.
func (p *twin) configure(src postfix.Source, run string) {
	t := p.t
	t.Helper()
	service := "smtp/inet/"
	if src.Service != "" {
		service = src.Service + "/pass/"
	}
	for line := range strings.Lines(p.postconf(run, "-P")) {
		if rest, ok := strings.CutPrefix(line, service); ok {
			p.postconf(run, "-e", strings.TrimSpace(rest))
		}
	}
	writeOld(t, filepath.Join(run, "master.cf"), fmt.Sprintf(testmx.MasterCF, p.addr))
	for _, it := range p.report.Items {
		if it.Class == fidelity.NotReplicated {
			it.Parameter = strings.ReplaceAll(it.Parameter, filepath.Join(p.dir, "conf"), run)
			it.Element = strings.ReplaceAll(it.Element, filepath.Join(p.dir, "conf"), run)
			p.even(run, it)
		}
	}
	own := slices.DeleteFunc(strings.Split(strings.TrimSpace(fmt.Sprintf(testOnly, p.dir)), "\n"), func(line string) bool {
		name, _, _ := strings.Cut(line, " = ")
		transport, _, _ := strings.Cut(strings.TrimSpace(p.postconf(run, "-xh", name)), ":")
		return strings.HasSuffix(line, "discard:") && (transport == "error" || transport == "retry") // they refuse recipients
	})
	p.postconf(run, append([]string{"-e"}, own...)...)
	main := filepath.Join(run, "main.cf")
	writeOld(t, main, strings.ReplaceAll(readFile(t, main), "sleep 1", "sleep 0"))
	index(t, run)
}

// even makes the copy do what the secondary does instead of an item.
func (p *twin) even(run string, it fidelity.Item) {
	p.t.Helper()
	set := func(value string) {
		// Not appended: a line that overrides another is a warning, and a
		// Postfix with many of those at its start hangs in its own log.
		p.postconf(run, "-e", it.Parameter+" = "+value)
		p.settled = append(p.settled, it.ID()+" → "+it.Instead)
	}
	instead := map[string]string{"ignore": "", "soften": "defer_if_reject", "defer": "defer_if_permit"}[it.Instead]
	at := slices.IndexFunc(postfix.Parameters, func(q postfix.Parameter) bool { return q.Name == it.Parameter })
	switch {
	case strings.HasPrefix(it.Parameter, "postscreen_") || strings.HasPrefix(it.Parameter, "smtpd_client_connection_") || strings.HasSuffix(it.Parameter, "_transport"):
		// Nothing that testOnly doesn't do.
	case strings.Contains(it.Parameter, ":"): // inside of a table
		_, file, _ := strings.Cut(it.Parameter, ":")
		if _, err := os.Stat(file + ".list"); err == nil { // a database's
			file += ".list"
		}
		text := readFile(p.t, file)
		if instead == "" {
			instead = "sleep 0"
		}
		if !strings.Contains(text, it.Element) {
			p.t.Fatalf("%s: %q isn't in it as the report spells it", file, it.Element)
		}
		writeOld(p.t, file, strings.ReplaceAll(text, it.Element, instead))
		p.settled = append(p.settled, it.ID()+" → "+it.Instead)
	case at < 0 || strings.HasSuffix(it.Parameter, "_restrictions"):
		list := strings.Join(strings.Fields(strings.ReplaceAll(p.postconf(run, "-xh", it.Parameter), ",", " ")), " ")
		element := strings.Join(strings.Fields(strings.ReplaceAll(it.Element, ",", " ")), " ")
		if !strings.Contains(" "+list+" ", " "+element+" ") {
			if name := strings.ReplaceAll(element, ":"+run, ":proxy"); name == element {
				p.t.Fatalf("%s = %s: %q isn't in it as the report spells it", it.Parameter, list, element)
			}
		}
		if at < 0 && instead == "" {
			instead = "sleep 0" // a class must not be empty
		}
		set(strings.ReplaceAll(" "+list+" ", " "+element+" ", " "+instead+" "))
	case postfix.Parameters[at].Elements:
		set("")
	case postfix.Parameters[at].Off == "": // a detail of another
	default:
		off, _, _ := strings.Cut(postfix.Parameters[at].Off, "|")
		set(strings.TrimPrefix(off, "-"))
	}
}

func (p *twin) postconf(dir string, args ...string) string {
	p.t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("/usr/sbin/postconf", append([]string{"-c", dir}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("postconf %q: %v\n%s", args, err, &stderr)
	}
	return string(out)
}

// start runs Postfix in a mount namespace of its own, in which the test's DNS
// is the system's and /etc/hosts is empty.
func (p *twin) start(nameserver string) {
	t := p.t
	t.Helper()
	run := filepath.Join(p.dir, "run")
	host, _, _ := net.SplitHostPort(nameserver)
	writeOld(t, filepath.Join(p.dir, "resolv.conf"), "nameserver "+host+"\noptions timeout:30 attempts:2\n")
	writeOld(t, filepath.Join(p.dir, "nsswitch.conf"), "passwd: files\ngroup: files\nhosts: dns\n")
	writeOld(t, filepath.Join(p.dir, "hosts"), "")
	if err := testmx.CheckPostfix(p.dir, run); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	daemon, err := testmx.StartDaemon(p.addr, &out, append([]string{"unshare", "--mount", "sh", "-ec", `
		for f in resolv.conf nsswitch.conf hosts; do mount --bind "$0/$f" "/etc/$f"; done
		exec "$@"`, p.dir}, testmx.PostfixCommand(run)...)...)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, &out, p.complaints())
	}
	t.Cleanup(func() {
		if err := daemon.Kill(); err != nil {
			t.Errorf("kill Postfix: %v", err)
		}
		if t.Failed() {
			t.Logf("Postfix said: %s\nits warnings:\n%s", &out, p.complaints())
			if os.Getenv("KEEP") != "" {
				exec.Command("cp", "-a", p.dir, os.Getenv("KEEP")).Run()
			}
		}
	})
}

// complaints are the warnings in Postfix's log, each kind once.
func (p *twin) complaints() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "mail.log"))
	seen := map[string]bool{}
	var out []string
	for line := range strings.Lines(string(b)) {
		_, what, ok := strings.Cut(line, ": ")
		if ok && len(out) < 40 && (strings.Contains(what, "warning: ") || strings.Contains(what, "fatal: ") || strings.Contains(what, "panic: ")) && !seen[what[:min(60, len(what))]] {
			seen[what[:min(60, len(what))]] = true
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// tempDir is like t.TempDir, but other users may pass through it: Postfix's
// daemons drop root. It is in memory where that is possible: a primary that
// waits for the disk at every start and message tests nothing more.
func tempDir(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if st, err := os.Stat(parent); err != nil || !st.IsDir() {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "understudy-parity")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// writeOld writes a file and dates it back: Postfix waits for what was changed
// just now to settle.
func writeOld(t *testing.T, name, content string) {
	t.Helper()
	hourAgo := time.Now().Add(-time.Hour)
	err := os.WriteFile(name, []byte(content), 0o644)
	if err == nil {
		err = os.Chtimes(name, hourAgo, hourAgo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
