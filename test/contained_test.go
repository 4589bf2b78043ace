package test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// suiteFiles are of policy/postfix, which plays each suite's tables and verdicts; here the same layouts
// are set up by the whole program.
const suiteFiles = "../policy/postfix/testdata/"

// contained is a Postfix in a root of its own, which what stands in for docker enters.
type contained struct {
	name, ps string            // of the container, and as docker ps shows it: image and service
	conf     string            // directory of main.cf
	files    map[string]string // below the root
	set      string            // settings that the machine needs, none of which the suite has: of what is set twice postlogd would tell itself without end
	begin    string            // commands before Postfix's start
}

// contain starts a container on the machine and returns its root.
func (m *machine) contain(c contained) (root string) {
	m.t.Helper()
	root = filepath.Join(m.dir, c.name)
	files := map[string]string{
		m.dir + "/bin/docker":     strings.ReplaceAll(readFile(m.t, suiteFiles+"containers/docker"), "@CONTAINERS@", m.dir),
		m.dir + "/start":          readFile(m.t, suiteFiles+"containers/start"),
		m.dir + "/ps":             c.name + "\t" + c.ps + "\n",
		root + "/etc/aliases":     "",
		root + "/etc/hosts":       "127.0.0.1 localhost\n203.0.113.1 mx1.example.org\n",
		root + "/etc/resolv.conf": "nameserver 127.0.0.1\n",
	}
	for name, text := range c.files {
		files[root+name] = text
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			m.t.Fatal(err)
		}
		write(m.t, name, text)
	}
	postfix := "docker exec -i " + c.name + " postfix -c " + c.conf
	m.sh("chmod 755 ../bin/docker; groupadd -f docker\nsetsid unshare --mount --uts --ipc --pid --fork --kill-child sh ../start " + root +
		" mail '" + c.begin + "postconf -c " + c.conf + " -e maillog_file=/var/log/mail.log inet_protocols=ipv4 myhostname=mx1.example.org smtpd_milters= non_smtpd_milters= " + c.set +
		"; postalias -c " + c.conf + " hash:/etc/aliases; install -d -o nobody /var/mail; postfix -c " + c.conf + " start' > ../said 2>&1 < /dev/null &\n" +
		"for _ in {1..600}; do " + postfix + " status && exit; sleep 0.1; done; cat ../said; exit 1")
	m.t.Cleanup(func() { _, _ = m.try(postfix + " stop; kill -9 $(cat " + root + "/pid)") })
	return root
}

// dockerMailserver starts one of another name than by default, and returns its root.
func dockerMailserver(t *testing.T, m *machine) string {
	t.Helper()
	return m.contain(contained{
		name: "mail", ps: "ghcr.io/docker-mailserver/docker-mailserver:latest\tmailserver", conf: "/etc/postfix",
		files: map[string]string{
			"/etc/postfix/main.cf":                 readFile(t, suiteFiles+"containers/docker-mailserver/main.cf"),
			"/etc/postfix/master.cf":               services(t, "docker-mailserver") + "virtual unix - n n - - virtual\n",
			"/etc/postfix/vhost":                   "example.org\n",
			"/etc/postfix/vmailbox":                "alice@example.org alice/\n",
			"/etc/postfix/virtual":                 "",
			"/etc/postfix/maps/header_checks.pcre": "/^X-Reject-Me:/ REJECT no such header\n",
		},
		set: "virtual_transport=virtual virtual_mailbox_base=/var/mail virtual_uid_maps=static:65534 virtual_gid_maps=static:65534",
	})
}

// services is a suite's master.cf. Its submission would be in the way of others'.
func services(t *testing.T, suite string) string {
	t.Helper()
	return strings.Replace(readFile(t, suiteFiles+"containers/"+suite+"/master.cf")+readFile(t, suiteFiles+"containers/master.cf"), "submission", "127.0.0.1:587", 1)
}

// mailcow starts one as its compose file names it. Its database is reached by a socket in the container,
// and at the port that the compose file publishes.
func mailcow(t *testing.T, m *machine) string {
	t.Helper()
	db := listertest.MariaDB(t, readFile(t, suiteFiles+"suites/mailcow/schema.sql")+`
INSERT INTO domain (domain) VALUES ('example.org');
INSERT INTO mailbox (username, password, local_part, domain, attributes) VALUES ('alice@example.org', 'x', 'alice', 'example.org', '{"mailbox_format": "maildir:", "tls_enforce_in": "0"}');
INSERT INTO alias (address, goto, domain) VALUES ('alice@example.org', 'alice@example.org', 'example.org');`)
	if err := os.Symlink(filepath.Base(db.Socket), filepath.Join(db.Dir, "mysqld.sock")); err != nil {
		t.Fatal(err)
	}
	m.inside(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:13306")
		if err == nil {
			forward(t, l, "unix", db.Socket)
		}
		return err
	})
	files := map[string]string{
		"/mysqld/where": db.Dir, "/opt/postfix/conf/main.cf": readFile(t, suiteFiles+"containers/mailcow/main.cf") + "# Overrides\n",
		"/opt/postfix/conf/master.cf":                        services(t, "mailcow") + "discard unix - - n - - discard\n",
		"/opt/postfix/conf/custom_postscreen_whitelist.cidr": "# yours\n", "/opt/postfix/conf/postscreen_access.cidr": "", "/opt/postfix/conf/custom_transport.pcre": "",
		"/opt/postfix/conf/local_transport": "/watchdog@localhost$/   watchdog_discard:\n/localhost$/  local:\n",
		"/opt/whitelist_forwardinghosts.sh": "#!/bin/sh\nwhile read -r q; do echo '500 dunno'; done\n",
	}
	tables, err := filepath.Glob(suiteFiles + "suites/mailcow/*.cf")
	if err != nil || len(tables) < 10 {
		t.Fatal(err, tables)
	}
	for _, f := range tables {
		files["/opt/postfix/conf/sql/"+filepath.Base(f)] = strings.Replace(readFile(t, f), "@CONNECTION@", "hosts = unix:/var/run/mysqld/mysqld.sock\nuser = reader\npassword = "+listertest.Password+"\ndbname = mail", 1)
	}
	return m.contain(contained{
		name: "mailcowdockerized-postfix-mailcow-1", ps: "ghcr.io/mailcow/postfix:3.10.12-1\tpostfix-mailcow", conf: "/opt/postfix/conf",
		files: files, set: "virtual_transport=discard", begin: "chmod 755 /opt/*.sh; ",
	})
}

// mailu starts one as its compose file names it: Postfix, its socket of tables and, in the same root, the
// administration, which prints its configuration.
func mailu(t *testing.T, m *machine) string {
	t.Helper()
	root := filepath.Join(m.dir, "mailu-smtp-1")
	if err := os.Symlink(root, filepath.Join(m.dir, "mailu-admin-1")); err != nil {
		t.Fatal(err)
	}
	return m.contain(contained{
		name: "mailu-smtp-1", ps: "ghcr.io/mailu/postfix:2024.06\tsmtp\nmailu-admin-1\tghcr.io/mailu/admin:2024.06\tadmin", conf: "/etc/postfix",
		files: map[string]string{
			"/etc/postfix/main.cf":       readFile(t, suiteFiles+"containers/mailu/main.cf"),
			"/etc/postfix/master.cf":     services(t, "mailu") + "discard unix - - n - - discard\n",
			"/etc/postfix/transport.map": "",
			"/root/config.json":          `{"domain": [{"name": "example.org"}], "user": [{"email": "alice@example.org", "enabled": true}], "alias": [], "relay": []}`,
			"/bin-local/flask":           "#!/bin/sh\n[ \"$*\" = 'mailu config-export --full --json domain user alias relay' ] || exit 2\ncat /root/config.json\n",
			"/podop": `import os, socketserver
known = {"domain example.org": "example.org", "mailbox alice@example.org": "alice@example.org", "alias alice@example.org": "alice@example.org"}
class Client(socketserver.StreamRequestHandler):
    def handle(self):
        while size := b"".join(iter(lambda: self.rfile.read(1).strip(b":"), b"")):
            key = self.rfile.read(int(size) + 1)[:-1].decode()
            answer = "OK " + known[key] if key in known else "NOTFOUND "
            self.wfile.write(b"%d:%s," % (len(answer), answer.encode()))
os.umask(0)
socketserver.ThreadingUnixStreamServer("/tmp/podop.socket", Client).serve_forever()
`,
		},
		set: "virtual_transport=discard", begin: "chmod 755 /bin-local/flask; python3 /podop & until [ -S /tmp/podop.socket ]; do sleep 0.1; done; postmap lmdb:/etc/postfix/transport.map; ",
	})
}

// suitePage imports on the machine as the suite's part of docs/primaries/suites.md says, and returns the
// blocks of code at the page's top: two commands, with the secondary's between them, and the configuration.
func suitePage(t *testing.T, m *machine, suite string) []string {
	t.Helper()
	head, parts, _ := strings.Cut(readFile(t, "../docs/primaries/suites.md"), "<!--")
	_, part, _ := strings.Cut(parts, "\n### "+suite+"\n")
	blocks, lines := blocksOf(head), blocksOf(part)
	if len(blocks) != 4 || len(lines) == 0 {
		t.Fatalf("the page has %d blocks of code and for %s %d, this test knows 4:\n%q", len(blocks), suite, len(lines), blocks)
	}
	if suite == "docker-mailserver" { // which has another name here
		return blocks
	}
	if out := m.sh(lines[0] + "grep -c alice@example.org policy.json"); !strings.Contains(out, "domain") {
		t.Errorf("the import says\n%s", out)
	}
	return blocks
}

// TestMailuSetup follows docs/primaries/suites.md with a Mailu, Postfix's port past its nginx included: its line that imports,
// set-up and what it writes; then mail, with the primary up and down.
func TestMailuSetup(t *testing.T) {
	mx1, mx2 := suitePair(t)
	mailu(t, mx1)
	blocks := suitePage(t, mx1, "mailu")
	out := mx1.sh(strings.TrimSpace(blocks[0]) + " --yes")
	for _, want := range []string{"This is Mailu: docker ps shows the container mailu-smtp-1", "Put this into overrides/postfix/postfix.cf in Mailu's directory, and run docker restart mailu-smtp-1"} {
		if !strings.Contains(out, want) {
			t.Errorf("set-up doesn't say %q:\n%s", want, out)
		}
	}
	if conf, want := mx1.sh("cat /etc/understudy/publish.toml"), strings.Replace(blocks[3], "mailcow", "mailu", 1); conf != want {
		t.Errorf("set-up writes\n%s\nand the page has\n%s", conf, want)
	}
	overrides := mainLines(out)
	mx1.sh("docker exec -i mailu-smtp-1 sh -c \"cat >> /etc/postfix/main.cf; postconf -M '2525/inet=2525 inet n - n - - smtpd'; postfix reload\" <<'end'\n" + overrides + "end")
	mx2.sh(strings.Replace(secondaryLine.FindString(out), ":25 ", ":2525 ", 1) + " --yes")
	if out := mx2.sh("understudy doctor"); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
		t.Errorf("the doctor says\n%s", out)
	}
	knowsAlice(t, mx1, "up")
	mx1.sh("docker exec -i mailu-smtp-1 postfix stop")
	knowsAlice(t, mx1, "down")
}

// mainLines are the settings for main.cf that set-up shows.
func mainLines(out string) (lines string) {
	for _, l := range regexp.MustCompile(`(?m)^    ((?:mynetworks|smtpd_authorized_xclient_hosts) = .*)$`).FindAllStringSubmatch(out, -1) {
		lines += l[1] + "\n"
	}
	return lines
}

// TestMailcowSetup follows docs/primaries/suites.md with a mailcow: its line that imports, set-up and what it
// writes, which is what the page has; the lines for extra.cf, which the container's start appends to main.cf; then mail.
func TestMailcowSetup(t *testing.T) {
	mx1, mx2 := suitePair(t)
	root := mailcow(t, mx1)
	blocks := suitePage(t, mx1, "mailcow")

	out := mx1.sh(strings.TrimSpace(blocks[0]) + " --yes")
	const main = "data/conf/postfix/extra.cf in mailcow's directory, and run docker compose restart postfix-mailcow there"
	for _, want := range []string{"This is mailcow: dockerized: docker ps shows the container mailcowdockerized-postfix-mailcow-1", "Put this into " + main} {
		if !strings.Contains(out, want) {
			t.Errorf("set-up doesn't say %q:\n%s", want, out)
		}
	}
	if conf := mx1.sh("cat /etc/understudy/publish.toml"); conf != blocks[3] {
		t.Errorf("set-up writes\n%s\nand the page has\n%s", conf, blocks[3])
	}
	if out, err := mx1.try("understudy doctor --secondary 203.0.113.2"); err == nil || !strings.Contains(out, "mend: put `smtpd_authorized_xclient_hosts = 203.0.113.2` into "+main) {
		t.Errorf("before extra.cf has the secondary, doctor says\n%s", out)
	}
	write(t, root+"/opt/postfix/conf/extra.cf", mainLines(out))
	mx1.sh(`docker exec -i mailcowdockerized-postfix-mailcow-1 sh -c 'cd /opt/postfix/conf; cat extra.cf >> main.cf; postfix -c /opt/postfix/conf reload'`)
	mx2.sh(secondaryLine.FindString(out) + " --yes")
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh("understudy doctor"); strings.Contains(out, "no-client-identity") || strings.Contains(out, "primary-screens") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	knowsAlice(t, mx1, "up")
	mx1.sh("docker exec -i mailcowdockerized-postfix-mailcow-1 postfix -c /opt/postfix/conf stop")
	knowsAlice(t, mx1, "down")
	mx1.sh("docker exec -i mailcowdockerized-postfix-mailcow-1 postfix -c /opt/postfix/conf start")
	log := ""
	eventually(t, time.Minute, "alice has both messages", func() bool {
		log = readFile(t, root+"/var/log/mail.log")
		return strings.Count(log, "to=<alice@example.org>, relay=none") == 2
	})
	if strings.Count(log, "client=unknown[203.0.113.9]") != 2 {
		t.Errorf("Postfix isn't told whose mail it is:\n%s", tail([]byte(log), 3000))
	}
}
