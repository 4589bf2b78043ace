//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/resolver"
	presets "github.com/understudy-mx/understudy/internal/suite"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// containerKeys are looked up in each table, unless CONTAINER_KEYS says otherwise.
const (
	containerKeys  = 120
	containerBoxes = 420
)

// container is a suite's Postfix in namespaces and a root of its own, with what stands in
// for docker before it.
type container struct {
	*testing.T
	suite    presets.Suite
	servers  *suiteServers
	program  string // understudy
	root     string
	engine   string // directory of the stand-in
	data     *suiteData
	keys     []string
	hosts    []string                  // postfix_hosts that the test's ports need
	uses     []string                  // tables
	rcpts    []string                  // to play, beside keys
	begin    string                    // commands of its start, before Postfix's
	master   string                    // master.cf
	parallel int                       // sessions
	byRoot   bool                      // read by its root
	serve    map[string]func(net.Conn) // beside Postfix: by address, or by the path of a socket
	resolver *resolver.Resolver
	same     []string // ends of mutants that no session can tell, beside sameMutants
}

// TestContainers: every preset is played against a Postfix of its suite's layout, in a root
// and a network of its own. What its page has an operator type is typed there, and what that
// imports is compared with the Postfix there, session by session; what is listed through the
// stand-in for docker, with postmap, key by key.
func TestContainers(t *testing.T) {
	servers := &suiteServers{t: t}
	program := filepath.Join(t.TempDir(), "understudy")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/understudy").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, s := range presets.Suites {
		t.Run(s.Name, func(t *testing.T) {
			c := newContainer(t, s.Name)
			c.servers, c.program = servers, program
			switch s.Name {
			case "mailcow":
				c.same = []string{"mysql_virtual_mailbox_maps.cf emptied", "mysql_virtual_resource_maps.cf emptied"}
				mailcowContainer(c)
			case "docker-mailserver":
				c.same = []string{"without reject_invalid_helo_hostname", "without reject_unknown_recipient_domain"} // in two lists
				dmsContainer(c)
			case "mailu":
				c.same = []string{":mailbox emptied", "unix:passwd.byname emptied"}
				mailuContainer(c)
			default:
				c.machine(machines[s.Name])
			}
			c.marked()
			c.start()
			src := c.source()
			snap, report := c.typed()
			for _, id := range slices.Sorted(maps.Keys(src.Usual)) {
				if !slices.ContainsFunc(report.Items, func(it fidelity.Item) bool { return it.ID() == id }) {
					t.Errorf("the preset chooses for %q, which isn't there", id)
				}
			}
			for _, it := range report.Items {
				if it.Class == fidelity.NotReplicated && src.Usual[it.ID()] == "" && len(it.Options) > 1 {
					if it.Instead != fidelity.Ignore {
						t.Errorf("the preset leaves open: %s (%s) -> %s", it.ID(), it.Why, it.Instead)
					}
				}
				if !c.onMachine() && strings.Contains(it.Remedy, "postgrey.conf") {
					t.Errorf("%s: no right of the publisher's helps in a container: %s", it.ID(), it.Remedy)
				}
			}
			c.compareTables(src)
			sessions := c.compareVerdicts(snap)
			c.mutate(snap, sessions)
			c.below(src, sessions)
			c.gone(src)
			c.setUp()
		})
	}
}

func newContainer(t *testing.T, name string) *container {
	if os.Getuid() != 0 {
		t.Fatal("namespaces and Postfix's master need root: run the tests as root, as .ci/run does")
	}
	dir, err := os.MkdirTemp("", "uc") // of a short name, as sockets need it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := presets.Find(name).Renamed(nil)
	c := &container{T: t, suite: s, root: filepath.Join(dir, "mx"), engine: dir, parallel: 6, data: newSuiteData(1).cut(containerBoxes)}
	if len(s.Containers) > 0 {
		c.root = filepath.Join(dir, s.Containers[0].Name)
	} else { // its operator's own
		c.suite.Prefix = []string{"docker", "exec", "-i", "mx"}
	}
	c.keys = c.data.keys(int(suiteNumber(t, "CONTAINER_KEYS", containerKeys)), 1)
	stand, err := os.ReadFile("testdata/containers/docker")
	if err != nil {
		t.Fatal(err)
	}
	c.file(filepath.Join(dir, "docker"), strings.ReplaceAll(string(stand), "@CONTAINERS@", dir), 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c.put("etc/resolv.conf", "nameserver 127.0.0.1\n")
	c.put("etc/hosts", "127.0.0.1 localhost rspamd antispam dovecot front mail.d01.example\n")
	c.put("etc/aliases", "postmaster: root\nhostmaster: root\n")
	return c
}

// file writes a file that Postfix doesn't wait for: it is an hour old.
func (c *container) file(name, text string, mode os.FileMode) {
	c.Helper()
	old := time.Now().Add(-time.Hour)
	err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), mode), os.Chmod(name, mode), os.Chtimes(name, old, old))
	if err != nil {
		c.Fatal(err)
	}
}

func (c *container) put(name, text string) {
	c.Helper()
	c.file(filepath.Join(c.root, name), text, 0o644)
}

// configuration puts main.cf and master.cf where the suite has them.
func (c *container) configuration() (main map[string]string) {
	c.Helper()
	read := func(name string) string {
		b, err := os.ReadFile("testdata/containers/" + name)
		if err != nil {
			c.Fatal(err)
		}
		return string(b)
	}
	// There is no syslog, and docs/PRIMARIES.md has the secondary's sessions named by XCLIENT.
	text := read(c.suite.Name+"/main.cf") + "maillog_file = /var/log/mail.log\nsmtpd_authorized_xclient_hosts = 127.0.0.1\n" +
		"address_verify_poll_delay = 1s\naddress_verify_poll_count = 60\n" // a probe may take its time
	c.put(c.suite.Postfix+"/main.cf", text)
	c.master = read(c.suite.Name + "/master.cf")
	c.put(c.suite.Postfix+"/master.cf", c.master+read("master.cf"))
	main, err := parseCF(text)
	if err != nil {
		c.Fatal(err)
	}
	return main
}

// start starts the container, and Postfix in it.
func (c *container) start() {
	t := c.T
	// What stands beside Postfix is there first: for a minute it doesn't ask again who wasn't.
	run := "until [ -e /ready ]; do sleep 0.05; done; " + c.begin + "postalias -c " + c.suite.Postfix + " hash:/etc/aliases; postfix -c " + c.suite.Postfix + " start >/run/said 2>&1"
	script, err := filepath.Abs("testdata/containers/start")
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	d, err := testmx.StartDaemon("", &said, "unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", script, c.root, "mail", run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the container said: %s", &said)
		}
	})
	c.until("the container starts", func() bool {
		select {
		case <-d.Ended:
			t.Fatalf("the container has ended: %s", &said)
		default:
		}
		_, err := os.Stat(filepath.Join(c.root, "pid"))
		return err == nil
	})
	c.inside(func() error {
		dns, err := demo.StartDNSAt("127.0.0.1:53", c.records()...)
		if err == nil {
			t.Cleanup(dns.Close)
		}
		return err
	})
	dns, err := demo.StartDNS(c.records()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	c.resolver = resolver.New(resolver.Options{Servers: []string{dns.Addr()}, Timeout: 30 * time.Second})
	for address, serve := range c.serve {
		c.inside(func() error { return c.listen(address, serve) })
	}
	for _, port := range []string{"8891", "8893", "9900", "11332"} {
		c.inside(func() error {
			m := &testmx.Milter{Name: port, Version: 6}
			err := m.Start("127.0.0.1:" + port)
			if err == nil {
				t.Cleanup(m.Close)
			}
			return err
		})
	}
	c.put("ready", "")
	c.until("Postfix listens", func() bool {
		conn, err := c.dial()
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// until waits for what another process does.
func (c *container) until(what string, done func() bool) {
	c.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			c.Errorf("%s: not within two minutes\n%s", what, c.log())
			return
		}
	}
}

var warnings = regexp.MustCompile(`.*(warning|fatal|error): .*`)

func (c *container) maillog() string { return filepath.Join(c.root, "var/log/mail.log") }

// log is the end of what Postfix said, or what it warned of first.
func (c *container) log() string {
	said, _ := os.ReadFile(filepath.Join(c.root, "run/said"))
	log, _ := os.ReadFile(c.maillog())
	if lines := warnings.FindAllString(string(log), 20); len(lines) > 0 {
		log = []byte(strings.Join(lines, "\n"))
	}
	return string(said) + string(log[max(0, len(log)-4000):])
}

// inside runs do in the container's network.
func (c *container) inside(do func() error) {
	c.Helper()
	if err := c.within(do); err != nil {
		c.Fatal(err)
	}
}

func (c *container) within(do func() error) error {
	pid, err := os.ReadFile(filepath.Join(c.root, "pid"))
	if err != nil {
		return err
	}
	there, err := os.Open("/proc/" + strings.TrimSpace(string(pid)) + "/ns/net")
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net") // /proc/self is the first thread, which may be there just now
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer here.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = do()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // and the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

func (c *container) dial() (conn net.Conn, err error) {
	err = c.within(func() error {
		conn, err = net.DialTimeout("tcp4", "127.0.0.1:25", 5*time.Second)
		return err
	})
	return conn, err
}

// source is what `understudy policy import postfix --suite` makes of the preset.
func (c *container) source() Source {
	hosts := host.ParseServers(c.suite.Hosts)
	maps.Copy(hosts, host.ParseServers(c.hosts))
	there := &host.Host{Prefix: c.suite.Prefix, Servers: hosts}
	if c.byRoot {
		there = c.rootHost()
	}
	src := Source{Host: there, ConfigDir: c.suite.Postfix, Lister: Databases{}, Usual: fidelity.ParseChoices(c.suite.Choose)}
	src.Commands, src.Queries = ParseLists(c.suite.List)
	return src
}

// compareTables looks keys up by postmap in the container and in the listing.
func (c *container) compareTables(src Source) {
	i := &importer{ctx: c.Context(), src: &src, files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}, set: settings{}}
	for _, name := range c.uses {
		table, reason := i.table("virtual_alias_maps", name)
		if table == nil {
			c.Errorf("%s: %v %v", name, reason, i.errs)
			continue
		}
		want := map[string]bool{}
		cmd := exec.CommandContext(c.Context(), "docker", append(slices.Clone(c.suite.Prefix[1:]), "postmap", "-c", c.suite.Postfix, "-q", "-", name)...)
		keys := slices.Clone(c.keys)
		for _, k := range c.keys {
			if local, domain := splitAddress(k); local != "" && domain != "" {
				keys = append(keys, "@"+strings.ToLower(domain))
			}
		}
		cmd.Stdin = strings.NewReader(strings.Join(keys, "\n") + "\n")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil && stderr.Len() > 0 {
			c.Errorf("postmap %s: %v: %s", name, err, &stderr)
		}
		for line := range strings.Lines(string(out)) {
			key, _, _ := strings.Cut(line, "\t")
			want[key] = true
		}
		differ := 0
		for _, key := range c.keys {
			_, got := table.find(key)
			if table.Parts { // its server looks for the parts itself
				local, domain := splitAddress(key)
				if local == "" || domain == "" {
					continue
				}
				plain, _, _ := strings.Cut(local, "+")
				_, less := table.find(plain + "@" + domain)
				_, all := table.find("@" + domain)
				got = got || less || all
			}
			if got && !want[key] && want[next(table, key)] {
				continue // Postfix finds it by its next look-up, of "@domain"
			}
			unlisted := !got && want[key] && unlistedRule(table, key) != "absent"
			if got != want[key] && !unlisted {
				if differ++; differ <= 5 {
					c.Errorf("%s: %q: Postfix %v, we %v", name, key, want[key], got)
				}
			}
		}
		c.Logf("%s: %d keys, %d found, %d listed", name, len(c.keys), len(want), len(table.Entries))
	}
}

// gone: without the container nothing is imported, and nothing is taken for absent.
func (c *container) gone(src Source) {
	if c.byRoot {
		return
	}
	if err := os.Rename(filepath.Join(c.root, "pid"), filepath.Join(c.root, "pid.old")); err != nil {
		c.Fatal(err)
	}
	src.Learned, src.Ask = &Learned{}, []string{"a@d01.example"}
	_, _, err := Import(c.Context(), src)
	if err == nil || !strings.Contains(err.Error(), "No such container: "+filepath.Base(c.root)) {
		c.Errorf("without the container: %v", err)
	}
	if err := os.Rename(filepath.Join(c.root, "pid.old"), filepath.Join(c.root, "pid")); err != nil {
		c.Fatal(err)
	}
}

func mailcowContainer(c *container) {
	main := c.configuration()
	servers := c.servers
	read := func(name string) string {
		b, err := os.ReadFile("testdata/suites/mailcow/" + name)
		if err != nil {
			c.Fatal(err)
		}
		return string(b)
	}
	lines, _ := servers.connection(c.T, "mysql", "mailcow", c.data.script("mysql", read("schema.sql"), read("fill.sql")), c.root)
	lines = strings.Replace(lines, "unix:"+servers.mysql.Socket, "unix:/var/run/mysqld/mysqld.sock", 1)
	c.socket()
	cfs, _ := filepath.Glob("testdata/suites/mailcow/mysql_*.cf")
	for _, cf := range cfs {
		c.put("opt/postfix/conf/sql/"+filepath.Base(cf), strings.Replace(read(filepath.Base(cf)), "@CONNECTION@\n", lines, 1))
	}
	for name, text := range map[string]string{
		"custom_postscreen_whitelist.cidr": "# yours\n", "postscreen_access.cidr": "2a00:1450:4000::/36\tpermit\n",
		"custom_transport.pcre": "", "local_transport": "/watchdog@localhost$/   watchdog_discard:\n/localhost$/  local:\n",
	} {
		c.put("opt/postfix/conf/"+name, text)
	}
	c.file(filepath.Join(c.root, "opt/whitelist_forwardinghosts.sh"), "#!/bin/sh\nwhile read -r q; do echo '500 dunno'; done\n", 0o755)
	c.hosts = []string{"unix:/var/run/mysqld/mysqld.sock=" + servers.mysql.Address()}
	for _, parameter := range []string{"virtual_alias_maps", "virtual_mailbox_domains", "virtual_mailbox_maps", "relay_domains", "relay_recipient_maps"} {
		for _, w := range words(main[parameter]) {
			c.uses = append(c.uses, strings.TrimPrefix(w, "proxy:"))
		}
	}
}

func dmsContainer(c *container) {
	c.configuration()
	var boxes, aliases, domains strings.Builder
	seen := map[string]bool{}
	for n, a := range c.data.boxes {
		if n%7 > 0 || strings.ContainsAny(a.local, " \"\\,;:<>()@") || a.String() != strings.ToLower(a.String()) {
			continue
		}
		fmt.Fprintf(&boxes, "%s %s/%s/\n", a, a.domain, a.local)
		seen[a.domain] = true
	}
	for n, a := range c.data.aliases {
		if n%5 == 0 && !strings.ContainsAny(a.local, " \"\\,;:<>()@") {
			fmt.Fprintf(&aliases, "%s somebody@d01.example\n", a)
			seen[a.domain] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(seen)) {
		fmt.Fprintln(&domains, strings.ToLower(d))
	}
	c.put("etc/postfix/vhost", domains.String())
	c.put("etc/postfix/vmailbox", "# WARNING: this file is auto-generated.\n"+boxes.String())
	c.put("etc/postfix/virtual", aliases.String())
	c.put("etc/postfix/maps/header_checks.pcre", "/^X-Reject-Me:/ REJECT no such header\n")
	c.put("etc/opendkim.conf", "Syslog yes\nCanonicalization relaxed/simple\nExternalIgnoreList refile:/etc/opendkim/TrustedHosts\nInternalHosts refile:/etc/opendkim/TrustedHosts\nKeyTable /etc/opendkim/KeyTable\nSigningTable refile:/etc/opendkim/SigningTable\nMode sv\nSocket inet:8891@localhost\nRemoveOldSignatures Yes\n")
	for _, name := range []string{"TrustedHosts", "KeyTable", "SigningTable"} {
		c.put("etc/opendkim/"+name, "")
	}
	c.put("etc/opendmarc.conf", "UserID opendmarc:opendmarc\nSocket inet:8893@localhost\nRejectFailures true\nIgnoreHosts /etc/opendmarc/ignore.hosts\nAuthservID mail\nTrustedAuthservIDs mail\nIgnoreAuthenticatedClients true\n")
	c.put("etc/opendmarc/ignore.hosts", "localhost\n")
	c.uses = []string{"texthash:/etc/postfix/vmailbox", "texthash:/etc/postfix/virtual"}
}

func mailuContainer(c *container) {
	c.configuration()
	c.put("etc/postfix/transport.map", "")
	c.begin = "postmap lmdb:/etc/postfix/transport.map;"
	m := newMailu(c.data)
	export, err := json.Marshal(m)
	if err != nil {
		c.Fatal(err)
	}
	// The administration is another container; here it shares all but its name.
	admin := filepath.Join(c.engine, c.suite.Containers[1].Name)
	if err := os.Symlink(c.root, admin); err != nil {
		c.Fatal(err)
	}
	c.put("root/config.json", string(export))
	flask := "#!/bin/sh\n[ \"$*\" = 'mailu config-export --full --json domain user alias relay' ] || { echo \"unknown: $*\" >&2; exit 2; }\ncat /root/config.json\n"
	c.file(filepath.Join(c.root, "bin-local/flask"), flask, 0o755)
	if err := os.MkdirAll(filepath.Join(c.root, "tmp"), 0o777); err != nil {
		c.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(c.root, "tmp/podop.socket"))
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { ln.Close() })
	if err := os.Chmod(filepath.Join(c.root, "tmp/podop.socket"), 0o777); err != nil {
		c.Fatal(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go m.serve(conn)
		}
	}()
	for _, table := range []string{"domain", "mailbox", "alias", "transport"} {
		c.uses = append(c.uses, "socketmap:unix:/tmp/podop.socket:"+table)
	}
	c.rcpts = []string{m.User[0].Email, strings.Replace(m.User[1].Email, "@", "+tag@", 1), "no.such.user@d01.example", "no.such.user@d03.example", "x@relay51.example", "x@relay.gone.example"}
}

// mailuData is what `flask mailu config-export` prints, as far as it counts.
type mailuData struct {
	Domain []mailuDomain `json:"domain"`
	User   []mailuUser   `json:"user"`
	Alias  []mailuAlias  `json:"alias"`
	Relay  []mailuRelay  `json:"relay"`
}

type mailuDomain struct {
	Name         string   `json:"name"`
	Alternatives []string `json:"alternatives,omitempty"`
}

type mailuUser struct {
	Email              string   `json:"email"`
	Enabled            bool     `json:"enabled"`
	ForwardEnabled     bool     `json:"forward_enabled"`
	ForwardKeep        bool     `json:"forward_keep"`
	ForwardDestination []string `json:"forward_destination,omitempty"`
}

type mailuAlias struct {
	Email       string `json:"email"`
	Destination string `json:"destination"`
	Wildcard    bool   `json:"wildcard"`
	Disabled    bool   `json:"disabled"`
	Owner       string `json:"owner_email,omitempty"`
}

type mailuRelay struct {
	Name string `json:"name"`
	SMTP string `json:"smtp"`
}

func newMailu(d *suiteData) *mailuData {
	m := &mailuData{Relay: []mailuRelay{{"relay51.example", "smtp.far.example"}, {"relay52.example", "[192.0.2.1]:26"}}}
	for n, dom := range d.domains[:39] {
		md := mailuDomain{Name: strings.ToLower(dom.name)}
		if n%4 == 0 {
			md.Alternatives = []string{fmt.Sprintf("alternative%d.example", n)}
		}
		m.Domain = append(m.Domain, md)
	}
	plain := func(a genAddress) bool {
		return a.local != "" && !strings.ContainsAny(a.local, " \"\\,;:<>()@%") && isASCII(a.local) && !strings.Contains(a.domain, "_") // which Mailu refuses
	}
	for n, a := range d.boxes {
		if plain(a) && n%3 == 0 {
			m.User = append(m.User, mailuUser{Email: strings.ToLower(a.String()), Enabled: n%2 == 0, ForwardEnabled: n%5 == 0, ForwardDestination: []string{"x@far.example"}})
		}
	}
	for n, a := range d.aliases {
		if plain(a) && n%2 == 0 {
			m.Alias = append(m.Alias, mailuAlias{Email: strings.ToLower(a.String()), Destination: "a@d01.example,b@far.example", Disabled: n%8 == 0})
		}
	}
	m.Alias = append(m.Alias, mailuAlias{Email: "%@d04.example", Destination: "all@d01.example", Wildcard: true},
		mailuAlias{Email: "owned@d02.example", Destination: "x@d01.example", Owner: m.User[1].Email})
	return m
}

func isASCII(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0 }

// serve answers socketmap requests as podop and the views behind it do.
func (m *mailuData) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		size, err := r.ReadString(':')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(size, ":"))
		if err != nil || n > 100_000 {
			return
		}
		b := make([]byte, n+1)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		table, key, _ := strings.Cut(string(b[:n]), " ")
		answer := "NOTFOUND "
		if value, ok := m.look(table, key); ok {
			answer = "OK " + value
		}
		fmt.Fprintf(conn, "%d:%s,", len(answer), answer)
	}
}

func (m *mailuData) look(table, key string) (string, bool) {
	switch table {
	case "domain":
		return m.domain(key)
	case "mailbox":
		return key, slices.ContainsFunc(m.User, func(u mailuUser) bool { return u.Email == strings.ToLower(key) })
	case "transport":
		_, domain := m.resolve(key)
		for _, r := range m.Relay {
			if r.Name == domain {
				return "smtp:" + r.SMTP, true
			}
		}
	case "alias":
		if strings.Count(key, "@") > 1 || strings.HasPrefix(key, `"`) {
			return "", false
		}
		local, domain := m.resolve(key)
		if !strings.Contains(key, "@") {
			return domain, true
		}
		return m.destination(local, domain)
	}
	return "", false
}

func (m *mailuData) domain(name string) (string, bool) {
	for _, d := range m.Domain {
		if strings.EqualFold(d.Name, name) || slices.Contains(d.Alternatives, strings.ToLower(name)) {
			return d.Name, true
		}
	}
	return "", false
}

// resolve is Email.resolve_domain.
func (m *mailuData) resolve(key string) (local, domain string) {
	local, domain = "", key
	if at := strings.LastIndexByte(key, '@'); at >= 0 {
		local, domain = key[:at], key[at+1:]
	}
	for _, d := range m.Domain {
		if slices.Contains(d.Alternatives, domain) {
			domain = d.Name
		}
	}
	return local, domain
}

// destination is Email.resolve_destination.
func (m *mailuData) destination(local, domain string) (string, bool) {
	stripped, _, _ := strings.Cut(local, "+")
	for _, l := range []string{local, stripped} {
		for _, u := range m.User {
			if u.Email == strings.ToLower(l+"@"+domain) {
				if u.ForwardEnabled && !u.ForwardKeep {
					return strings.Join(u.ForwardDestination, ","), true
				}
				return local + "@" + domain, true
			}
		}
	}
	for _, wild := range []bool{false, true} {
		for _, l := range []string{local, stripped} {
			for _, a := range m.Alias {
				if a.Disabled || a.Wildcard != wild || a.Owner != "" && !slices.ContainsFunc(m.User, func(u mailuUser) bool { return u.Email == a.Owner && u.Enabled }) {
					continue
				}
				if wild && a.Email == "%@"+domain || a.Email == strings.ToLower(l+"@"+domain) {
					return a.Destination, true
				}
			}
		}
	}
	return "", false
}
