//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
	presets "github.com/understudy-mx/understudy/internal/suite"
	"github.com/understudy-mx/understudy/policy"
)

// machine is a suite that is installed on a machine. Here the machine is a container of its
// operator's.
type machine struct {
	tables string // directory below testdata/suites
	engine string // of its database
	hosts  string // the database, as its installer has it
	look   string // directory of the tables' files
	root   bool   // read by its root; otherwise by the stand-in for docker
	both   bool   // read by its root afterwards, too
	serve  map[string]func(net.Conn)
	files  map[string]string // what else is there
	more   func(*container)
	probes bool     // it verifies recipients; a session waits for that
	same   []string // ends of mutants that no session can tell: another table has the keys, or the value is ignored
}

const (
	postgreyDebian = "--inet=10023"
	postgreyBox    = "--inet=127.0.0.1:10023 --delay=180 --dbdir=/home/user-data/mail/postgrey/db"
	opendkimBox    = "Syslog yes\nCanonicalization relaxed/simple\nMinimumKeyBits 1024\nExternalIgnoreList refile:/etc/opendkim/TrustedHosts\nInternalHosts refile:/etc/opendkim/TrustedHosts\n" +
		"KeyTable refile:/etc/opendkim/KeyTable\nSigningTable refile:/etc/opendkim/SigningTable\nSocket inet:8891@127.0.0.1\nRequireSafeKeys false\nAlwaysAddARHeader true\n"
)

// machines are the layouts; testdata/containers has their main.cf and master.cf.
var machines = map[string]machine{
	"iredmail": {
		more:   func(c *container) { c.begin += "postalias hash:/etc/postfix/aliases;" },
		same:   []string{"virtual_mailbox_maps.cf emptied", "without reject_unlisted_sender"}, // smtpd_reject_unlisted_sender
		tables: "iredmail-mysql", engine: "mysql", hosts: "127.0.0.1:3306", look: "etc/postfix/mysql",
		serve: map[string]func(net.Conn){"127.0.0.1:7777": passing, "127.0.0.1:12340": passing},
		files: map[string]string{
			"etc/iredmail-release": "1.8.1 MARIADB edition.\n", "etc/postfix/aliases": "nobody: root\nvmail: root\nroot: postmaster@d01.example\n",
			"etc/postfix/header_checks": "", "etc/postfix/body_checks.pcre": "", "etc/postfix/sender_access.pcre": "", "etc/postfix/postscreen_dnsbl_reply": "",
			"etc/postfix/postscreen_access.cidr": "# local clients\n127.0.0.0/8 permit\n",
			"etc/postfix/command_filter.pcre":    "/^(RCPT\\s+TO:\\s*<)'([^[:space:]]+)'(>.*)/   $1$2$3\n",
			"etc/postfix/helo_access.pcre": "/^(localhost)$/ REJECT not yours (${1})\n/^(localhost\\.localdomain)$/ REJECT not yours (${1})\n" +
				"/(\\.zj\\.cn)$/ REJECT known (${1})\n/(\\badsl\\b)/ REJECT dynamic (${1})\n/^\\[(\\d{1,3}\\.\\d{1,3}\\.\\d{1,3}\\.\\d{1,3})\\]$/ OK\n/\\.outbound-(email|mail)\\.example\\.net$/ OK\n" +
				"/(\\d{1,3}[\\.-]\\d{1,3}[\\.-]\\d{1,3}[\\.-]\\d{1,3})/ REJECT dynamic (${1})\n/(static-pool-[\\d\\.-]*\\.flagman\\.example)$/ REJECT dynamic (${1})\n/^ylmf-pc/ REJECT ACCESS DENIED\n",
		},
	},
	"modoboa": {
		same:   []string{"sql-relay-recipient-verification.cf", "sql-relay-recipient-verification.cf emptied", "sql-sender-login-map.cf emptied", "without reject_non_fqdn_recipient"},
		tables: "modoboa", engine: "pgsql", hosts: "127.0.0.1", look: "etc/postfix", root: true, probes: true,
		serve: map[string]func(net.Conn){"127.0.0.1:9999": passing, "/var/spool/postfix/private/dovecot-lmtp": lmtp},
		files: map[string]string{"srv/modoboa/instance/manage.py": ""},
	},
	"mail-in-a-box": {
		same:   []string{"virtual-mailbox-maps.cf emptied"},
		tables: "mail-in-a-box", engine: "sqlite", look: "etc/postfix", root: true,
		serve: map[string]func(net.Conn){"127.0.0.1:12340": passing},
		files: map[string]string{
			"etc/mailinabox.conf": "STORAGE_USER=user-data\nSTORAGE_ROOT=/home/user-data\nPRIMARY_HOSTNAME=mail.d01.example\n",
			"etc/opendkim.conf":   opendkimBox, "etc/opendkim/TrustedHosts": "127.0.0.1\n", "etc/opendkim/KeyTable": "", "etc/opendkim/SigningTable": "",
			"etc/opendmarc.conf":   "Syslog true\nSocket inet:8893@[127.0.0.1]\nFailureReports false\nSPFIgnoreResults true\nSPFSelfValidate true\nFailureReportsOnNone false\n",
			"etc/default/postgrey": "POSTGREY_OPTS=\"" + postgreyBox + "\"\n",
		},
		more: func(c *container) { c.postgrey(postgreyBox, "/home/user-data/mail/postgrey/db") },
	},
	"ispconfig": {
		same: []string{
			"client without reject_rbl_client zen.spamhaus.org", "mysql-verify_recipients.cf", "mysql-verify_recipients.cf emptied", // see blocked; probes
			"tag_as_originating.re", "tag_as_originating.re emptied", "tag_as_foreign.re", "tag_as_foreign.re emptied", // FILTER
			"mailman/data/aliases emptied", "mysql-virtual_email2email.cf emptied", "mysql-virtual_mailboxes.cf emptied",
			"mysql-virtual_forwardings.cf#except emptied", "without reject_non_fqdn_recipient", "mysql-virtual_relayrecipientmaps.cf emptied",
		},
		tables: "ispconfig", engine: "mysql", hosts: "127.0.0.1", look: "etc/postfix", root: true, probes: true,
		serve: map[string]func(net.Conn){"/var/spool/postfix/private/quota-status": passing, "/var/spool/postfix/private/dovecot-lmtp": lmtp},
		files: map[string]string{
			"usr-local/ispconfig/server/lib/config.inc.php": "<?php\n", "etc/default/postgrey": "POSTGREY_OPTS=\"" + postgreyDebian + "\"\n",
			"etc/postfix/helo_access": "# before permit_sasl\n#/^mail\\.d01\\.example$/  REJECT\n", "etc/postfix/blacklist_helo": "#/.*\\.adsl$/ REJECT no such top level domain\n",
			"etc/postfix/tag_as_originating.re": "/^/ FILTER lmtp:[127.0.0.1]:10026\n", "etc/postfix/tag_as_foreign.re": "/^/ FILTER lmtp:[127.0.0.1]:10024\n",
			"etc/postfix/header_checks": "", "etc/postfix/mime_header_checks": "", "etc/postfix/nested_header_checks": "", "etc/postfix/body_checks": "",
			"var/lib/mailman/data/aliases": "", "var/lib/mailman/data/virtual-mailman": "", "var/lib/mailman/data/transport-mailman": "",
		},
		more: func(c *container) {
			c.begin += "postalias hash:/var/lib/mailman/data/aliases; postmap hash:/var/lib/mailman/data/virtual-mailman hash:/var/lib/mailman/data/transport-mailman;"
			c.postgrey(postgreyDebian, "/var/lib/postgrey")
		},
	},
	"postfixadmin": {
		same:   []string{"mysql_virtual_mailbox_maps.cf emptied", "mysql_virtual_alias_domain_mailbox_maps.cf emptied"},
		tables: "postfixadmin", engine: "mysql", hosts: "localhost", look: "etc/postfix/sql",
		files: map[string]string{"srv/postfixadmin/config.local.php": "<?php\n"},
		more:  func(c *container) { c.socket() },
	},
	"virtualmin": {
		both:   true,
		tables: "virtualmin", engine: "hash", look: "etc/postfix",
		files: map[string]string{
			"etc/webmin/virtual-server/config": "mail_system=0\n", "etc/postfix/bcc": "", "etc/postfix/dependent": "",
			"etc/opendkim.conf": "Syslog yes\nMode sv\nSocket inet:8891@127.0.0.1\nOversignHeaders From\n",
		},
		more: func(c *container) {
			passwd, err := os.ReadFile("/etc/passwd")
			if err != nil {
				c.Fatal(err)
			}
			for n := range 20 {
				passwd = fmt.Appendf(passwd, "u%d:x:%d:100::/home/d01/homes/u%d:/bin/false\n", n, 20000+n, n)
			}
			c.put("etc/passwd", string(passwd))
			c.begin += "postmap hash:/etc/postfix/virtual hash:/etc/postfix/bcc hash:/etc/postfix/dependent;"
			c.rcpts = append(c.rcpts, "u3@mail.d01.example", "U4+x@mail.d01.example", "u999@mail.d01.example", "root@localhost")
		},
	},
	"froxlor": {
		tables: "froxlor", engine: "mysql", hosts: "127.0.0.1", look: "etc/postfix",
		files: map[string]string{"var/www/html/froxlor/lib/userdata.inc.php": "<?php\n"},
	},
	"ispmail": {
		same:   []string{"mysql-email2email.cf emptied", "mysql-virtual-mailbox-maps.cf emptied"},
		both:   true,
		tables: "ispmail", engine: "mysql", hosts: "127.0.0.1", look: "etc/postfix",
		serve: map[string]func(net.Conn){"/var/spool/postfix/private/quota-status": passing},
	},
}

// machine puts a suite's files into the root.
func (c *container) machine(m machine) {
	main := c.configuration()
	c.serve = withService(m.serve, "/var/spool/postfix/private/"+map[bool]string{true: "dovecot-auth", false: "auth"}[c.suite.Name == "iredmail"], dovecotAuth)
	for name, text := range m.files {
		c.put(name, text)
	}
	c.put("etc/mailname", "mail.d01.example\n")
	for _, name := range []string{"nsswitch.conf", "services"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			c.Fatal(err)
		}
		c.put("var/spool/postfix/etc/"+name, string(b))
	}
	c.put("var/spool/postfix/etc/hosts", "127.0.0.1 localhost\n")
	c.put("var/spool/postfix/etc/resolv.conf", "nameserver 127.0.0.1\n") // for services with a root of their own
	dir := filepath.Join("testdata/suites", m.tables)
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			c.Fatal(err)
		}
		return string(b)
	}
	if err := os.MkdirAll(filepath.Join(c.root, m.look), 0o755); err != nil {
		c.Fatal(err)
	}
	lines, at := c.servers.connection(c.T, m.engine, strings.ReplaceAll(c.suite.Name, "-", "_")+"_box", c.data.script(m.engine, read(dir+"/schema.sql"), read(dir+"/fill.sql")), filepath.Join(c.root, m.look))
	switch m.engine {
	case "mysql", "pgsql":
		lines = strings.Replace(lines, "hosts = "+at, "hosts = "+m.hosts, 1)
		port := map[string]string{"mysql": "3306", "pgsql": "5432"}[m.engine]
		server := c.servers.pgsql
		if m.engine == "mysql" {
			server = c.servers.mysql
		}
		if m.hosts == "localhost" {
			c.hosts = append(c.hosts, "unix:/run/mysqld/mysqld.sock="+server.Address())
		} else {
			c.hosts = append(c.hosts, "127.0.0.1:"+port+"="+server.Address())
			c.serve = withService(c.serve, "127.0.0.1:"+port, forward(server.Address()))
		}
	case "sqlite":
		const there = "home/user-data/mail/users.sqlite"
		err := errors.Join(os.MkdirAll(filepath.Join(c.root, filepath.Dir(there)), 0o755), os.Rename(filepath.Join(c.root, m.look, "mail.db"), filepath.Join(c.root, there)))
		if err != nil {
			c.Fatal(err)
		}
		lines = "dbpath=/" + there + "\n"
	}
	for _, from := range []string{dir, "testdata/containers/" + c.suite.Name} {
		cfs, _ := filepath.Glob(from + "/*.cf")
		for _, cf := range cfs {
			if name := filepath.Base(cf); name != "main.cf" && name != "master.cf" {
				c.put(filepath.Join(m.look, name), strings.Replace(read(cf), "@CONNECTION@\n", lines, 1))
			}
		}
	}
	c.file(filepath.Join(c.root, "bin-local/systemctl"), systemctl, 0o755)
	if m.more != nil {
		m.more(c)
	}
	c.byRoot, c.same = m.root, m.same
	if m.probes {
		c.parallel = 24 // which wait
	}
	for _, parameter := range []string{"virtual_alias_maps", "virtual_alias_domains", "virtual_mailbox_domains", "virtual_mailbox_maps", "relay_domains", "relay_recipient_maps", "transport_maps"} {
		for _, w := range words(main[parameter]) {
			if name := strings.TrimPrefix(w, "proxy:"); strings.Contains(name, ":") && !slices.Contains(c.uses, name) {
				c.uses = append(c.uses, name)
			}
		}
	}
}

func withService(all map[string]func(net.Conn), address string, serve func(net.Conn)) map[string]func(net.Conn) {
	more := map[string]func(net.Conn){address: serve}
	for a, s := range all {
		more[a] = s
	}
	return more
}

// socket puts the database's Unix socket where Debian has it.
func (c *container) socket() {
	dir, name := filepath.Split(c.servers.mysql.Socket)
	if err := os.Symlink(name, dir+"mysqld.sock"); err != nil && !errors.Is(err, os.ErrExist) {
		c.Fatal(err)
	}
	c.put("mysqld/where", filepath.Clean(dir))
}

// postgrey has the real one started.
func (c *container) postgrey(options, db string) {
	if err := os.MkdirAll(filepath.Join(c.root, db), 0o755); err != nil {
		c.Fatal(err)
	}
	c.begin += "chown postgrey " + db + "; postgrey " + options + " -d --pidfile=/run/postgrey.pid;"
}

// listen serves what stands beside Postfix.
func (c *container) listen(address string, serve func(net.Conn)) error {
	network, where := "tcp", address
	if strings.HasPrefix(address, "/") {
		network, where = "unix", filepath.Join(c.root, address)
		if err := os.MkdirAll(filepath.Dir(where), 0o755); err != nil {
			return err
		}
	}
	ln, err := net.Listen(network, where)
	if err != nil {
		return err
	}
	c.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	if network == "unix" {
		return os.Chmod(where, 0o666)
	}
	return nil
}

// passing is a policy service that has no opinion.
func passing(conn net.Conn) {
	for in := bufio.NewScanner(conn); in.Scan(); {
		if in.Text() == "" {
			io.WriteString(conn, "action=DUNNO\n\n")
		}
	}
}

// dovecotAuth offers a mechanism, without which no smtpd with SASL starts.
func dovecotAuth(conn net.Conn) {
	io.WriteString(conn, "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE\n")
	io.Copy(io.Discard, conn)
}

// lmtp takes every recipient.
func lmtp(conn net.Conn) {
	io.WriteString(conn, "220 dovecot\r\n")
	for in := bufio.NewScanner(conn); in.Scan(); {
		io.WriteString(conn, "250 2.1.5 OK\r\n")
	}
}

// forward connects to another address, of this network.
func forward(to string) func(net.Conn) {
	return func(conn net.Conn) {
		there, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer there.Close()
		go func() {
			io.Copy(there, conn)
			there.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(conn, there)
	}
}

// marked: of all suites' marks only this one's own are in its root.
func (c *container) marked() {
	for _, s := range presets.Suites {
		for _, mark := range s.Marks {
			_, err := os.Stat(filepath.Join(c.root, mark))
			if strings.HasPrefix(mark, "/usr/local/") && err != nil { // /usr is this machine's
				_, err = os.Stat(filepath.Join(c.root, "usr-local", strings.TrimPrefix(mark, "/usr/local/")))
			}
			if err == nil && s.Name != c.suite.Name {
				c.Errorf("%s is a mark of %s", mark, s.Name)
			}
		}
	}
	if len(c.suite.Containers) == 0 && !slices.ContainsFunc(c.suite.Marks, func(mark string) bool {
		_, err := os.Stat(filepath.Join(c.root, strings.Replace(mark, "/usr/local/", "/usr-local/", 1)))
		return err == nil
	}) {
		c.Errorf("none of %q is there", c.suite.Marks)
	}
}

// below: what the root itself gives, for instance mounted by podman, decides alike.
func (c *container) below(src Source, sessions []tried) {
	if !machines[c.suite.Name].both {
		return
	}
	src.Host = c.rootHost()
	spec, _, err := Import(c.Context(), src)
	if err != nil {
		c.Fatal(err)
	}
	other, err := policy.Compile(spec)
	if err != nil {
		c.Fatal(err)
	}
	for _, s := range sessions {
		if got := c.judge(other, s); !s.same(got) {
			c.Fatalf("read by its root: %s: Postfix %s, we %s", s, s.reply, got)
		}
	}
}

// rootHost reaches the container by its root, its sockets by the host's network.
func (c *container) rootHost() *host.Host {
	pid, err := os.ReadFile(filepath.Join(c.root, "pid"))
	if err != nil {
		c.Fatal(err)
	}
	return &host.Host{Root: "/proc/" + strings.TrimSpace(string(pid)) + "/root", Servers: host.ParseServers(c.hosts)}
}
