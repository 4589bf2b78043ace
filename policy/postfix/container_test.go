package postfix

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/host"
	presets "github.com/understudy-mx/understudy/internal/suite"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// containerKeys are looked up in each table, unless CONTAINER_KEYS says otherwise.
const containerKeys = 250

// container is a suite's Postfix in namespaces and a root of its own, with what stands in
// for docker before it.
type container struct {
	*testing.T
	suite  presets.Suite
	root   string
	engine string // directory of the stand-in
	data   *suiteData
	keys   []string
	hosts  []string // postfix_hosts that the test's ports need
	uses   []string // tables
	rcpts  []string // to play, beside keys
}

// TestContainers: presets of suites that run in containers. What is imported through the
// stand-in for docker is compared with postmap there, key by key, and what it decides with
// the Postfix there.
func TestContainers(t *testing.T) {
	for name, prepare := range map[string]func(*container){
		"mailcow": mailcowContainer, "docker-mailserver": dmsContainer, "mailu": mailuContainer,
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, name)
			prepare(c)
			c.start()
			src := c.source()
			spec, report, err := Import(t.Context(), src)
			if err != nil {
				t.Fatalf("%v\n%s", err, c.log())
			}
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
			}
			c.compareTables(src)
			snap, err := policy.Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			c.compareVerdicts(snap)
			c.gone(src)
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
	c := &container{T: t, suite: s, root: filepath.Join(dir, s.Containers[0].Name), engine: dir, data: newSuiteData(1)}
	c.keys = c.data.keys(int(suiteNumber(t, "CONTAINER_KEYS", containerKeys)), 1)
	stand, err := os.ReadFile("testdata/containers/docker")
	if err != nil {
		t.Fatal(err)
	}
	c.file(filepath.Join(dir, "docker"), strings.ReplaceAll(string(stand), "@CONTAINERS@", dir), 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c.put("etc/resolv.conf", "nameserver 127.0.0.1\n")
	c.put("etc/hosts", "127.0.0.1 localhost rspamd antispam dovecot front mail.d01.example\n")
	c.put("etc/aliases", "postmaster: root\n")
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
	text := read(c.suite.Name+"/main.cf") + "maillog_file = /var/log/mail.log\n" // there is no syslog
	c.put(c.suite.Postfix+"/main.cf", text)
	c.put(c.suite.Postfix+"/master.cf", read(c.suite.Name+"/master.cf")+read("master.cf"))
	main, err := parseCF(text)
	if err != nil {
		c.Fatal(err)
	}
	return main
}

// start starts the container, and Postfix in it.
func (c *container) start() {
	t := c.T
	run := "postalias -c " + c.suite.Postfix + " hash:/etc/aliases; [ ! -e /etc/postfix/transport.map ] || postmap lmdb:/etc/postfix/transport.map; postfix -c " + c.suite.Postfix + " start >/run/said 2>&1"
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
		dns, err := demo.StartDNSAt("127.0.0.1:53", ". 60 IN NS ns.example.", "sender.test. 60 IN MX 10 mx.sender.test.", "mx.sender.test. 60 IN A 192.0.2.1")
		if err == nil {
			t.Cleanup(dns.Close)
		}
		return err
	})
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
	for deadline := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			c.Fatalf("%s: not within a minute\n%s", what, c.log())
		}
	}
}

func (c *container) log() string {
	said, _ := os.ReadFile(filepath.Join(c.root, "run/said"))
	log, _ := os.ReadFile(filepath.Join(c.root, "var/log/mail.log"))
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
	src := Source{Host: &host.Host{Prefix: c.suite.Prefix, Servers: hosts}, ConfigDir: c.suite.Postfix, Lister: Databases{}, Usual: fidelity.ParseChoices(c.suite.Choose)}
	src.Commands, src.Queries = ParseLists(c.suite.List)
	return src
}

// compareTables looks keys up by postmap in the container and in the listing.
func (c *container) compareTables(src Source) {
	for _, name := range c.uses {
		i := &importer{ctx: c.Context(), src: &src, files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}, set: settings{}}
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

// compareVerdicts plays sessions of one recipient each.
func (c *container) compareVerdicts(snap *policy.Snapshot) {
	rcpts := append([]string{"postmaster@d01.example", "nobody-there@d02.example", "x@elsewhere.example", "postmaster"}, c.rcpts...)
	for _, k := range c.keys[:60] {
		if local, domain := splitAddress(k); local != "" && domain != "" && !strings.ContainsAny(k, " \"<>\\()[],;:@'%") || strings.Count(k, "@") == 1 && !strings.ContainsAny(k, " \"<>\\()[],;:'%") {
			rcpts = append(rcpts, k)
		}
	}
	refused := 0
	for n, rcpt := range rcpts {
		sender := []string{"", "a@sender.test", "a@nowhere.test"}[n%3]
		helo := []string{"mail.sender.test", "bad_/name"}[n%7/6]
		want, got := c.live(helo, sender, rcpt), judge(c.T, snap, helo, sender, rcpt)
		if want[0] != '2' {
			refused++
		}
		if want[:3] != got[:3] {
			c.Errorf("helo %s, <%s> to <%s>: Postfix %s, we %s", helo, sender, rcpt, want, got)
		}
	}
	c.Logf("%d sessions, %d refused", len(rcpts), refused)
	if refused == 0 || refused == len(rcpts) {
		c.Errorf("%d of %d refused: the sessions say little", refused, len(rcpts))
	}
}

const containerClient = "192.0.2.77"

// live is what Postfix says to a recipient.
func (c *container) live(helo, sender, rcpt string) string {
	conn, err := c.dial()
	if err != nil {
		c.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(conn)
	reply := func(line string) string {
		if line != "" {
			fmt.Fprintf(conn, "%s\r\n", line)
		}
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				c.Fatalf("after %q: %v\n%s", line, err, c.log())
			}
			if len(l) > 3 && l[3] == ' ' {
				return strings.TrimSpace(l)
			}
		}
	}
	got := reply("")
	for _, line := range []string{"EHLO mail.sender.test", "XCLIENT ADDR=" + containerClient + " NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]", "EHLO " + helo, "MAIL FROM:<" + sender + ">", "RCPT TO:<" + rcpt + ">"} {
		if got[0] != '2' {
			return got
		}
		got = reply(line)
	}
	return got
}

func judge(t *testing.T, snap *policy.Snapshot, helo, sender, rcpt string) string {
	t.Helper()
	ctx := context.Background()
	s := snap.Session(&testmx.MapResolver{
		MX: map[string][]net.MX{"sender.test": {{Host: "mx.sender.test", Pref: 10}}},
		IP: map[string][]string{"mx.sender.test": {"192.0.2.1"}},
	}, envelope.Client{Addr: netip.MustParseAddr(containerClient), Name: "unknown", ReverseName: "unknown"})
	defer s.Close()
	from, _, err := envelope.ParseReversePath("<" + sender + ">")
	if err != nil {
		t.Fatal(err)
	}
	to, _, err := envelope.ParseForwardPath("<" + rcpt + ">")
	if err != nil {
		t.Fatalf("%s: %v", rcpt, err)
	}
	v := s.Connect(ctx)
	for _, next := range []func() policy.Verdict{
		func() policy.Verdict { return s.Helo(ctx, helo) },
		func() policy.Verdict { return s.Mail(ctx, from, policy.MailParams{}) },
		func() policy.Verdict { return s.Rcpt(ctx, to) },
	} {
		if v.Action == policy.Permit {
			v = next()
		}
	}
	if v.Action == policy.Permit {
		return "250"
	}
	return fmt.Sprintf("%d %s %s", v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
}

// gone: without the container nothing is imported, and nothing is taken for absent.
func (c *container) gone(src Source) {
	if err := os.Rename(filepath.Join(c.root, "pid"), filepath.Join(c.root, "pid.old")); err != nil {
		c.Fatal(err)
	}
	src.Learned, src.Ask = &Learned{}, []string{"a@d01.example"}
	_, _, err := Import(c.Context(), src)
	if err == nil || !strings.Contains(err.Error(), "No such container: "+c.suite.Containers[0].Name) {
		c.Errorf("without the container: %v", err)
	}
	if err := os.Rename(filepath.Join(c.root, "pid.old"), filepath.Join(c.root, "pid")); err != nil {
		c.Fatal(err)
	}
}

func mailcowContainer(c *container) {
	main := c.configuration()
	servers := &suiteServers{t: c.T}
	read := func(name string) string {
		b, err := os.ReadFile("testdata/suites/mailcow/" + name)
		if err != nil {
			c.Fatal(err)
		}
		return string(b)
	}
	lines, _ := servers.connection(c.T, "mysql", "mailcow", c.data.script("mysql", read("schema.sql"), read("fill.sql")), c.root)
	lines = strings.Replace(lines, "unix:"+servers.mysql.Socket, "unix:/var/run/mysqld/mysqld.sock", 1)
	c.put("mysqld/where", filepath.Dir(servers.mysql.Socket))
	if name := filepath.Base(servers.mysql.Socket); name != "mysqld.sock" {
		if err := os.Symlink(name, filepath.Join(filepath.Dir(servers.mysql.Socket), "mysqld.sock")); err != nil {
			c.Fatal(err)
		}
	}
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
