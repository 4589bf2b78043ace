package test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// eximPrimary is a pair of machines, the first a Debian with an Exim 4.
func eximPrimary(t *testing.T, split bool) (mx1, mx2 *machine) {
	t.Helper()
	mx1, mx2 = newMachine(t, "mx1", testmx.EximRoot), newMachine(t, "mx2", "")
	connect(t, mx1, mx2)
	run(t, "ip", "-n", mx1.name, "addr", "add", "203.0.113.9/24", "dev", "eth0") // of a client: the primary's own mail isn't played through
	for _, m := range []*machine{mx1, mx2} {
		m.sh(codeBlocks(t, "../README.md", "Set it up beside a Postfix primary")[0])
	}
	mx1.sh(`groupadd -g 990 Debian-exim
useradd -M -u 990 -g 990 -d /var/spool/exim4 Debian-exim
useradd -M -u 64000 understudy
useradd -M -d /var/home/alice alice
mkdir -p /var/home/alice /var/spool/exim4/input /var/spool/exim4/msglog /var/spool/exim4/db /var/log/exim4 /var/lib/exim4
chown -R Debian-exim:Debian-exim /var/spool/exim4 /var/log/exim4
echo mx1.example.org > /etc/mailname
cat > /etc/exim4/update-exim4.conf.conf <<'end'
dc_eximconfig_configtype='internet'
dc_other_hostnames='example.org'
dc_local_interfaces=''
dc_use_split_config='` + map[bool]string{true: "true", false: "false"}[split] + `'
CFILEMODE='640'
dc_localdelivery='mail_spool'
end
sed -i '1i primary_hostname = mx1.example.org' /etc/exim4/exim4.conf.template /etc/exim4/conf.d/main/02_exim4-config_options
update-exim4.conf`)
	mx1.startExim()
	return mx1, mx2
}

// startExim starts the daemon as Debian's service does.
func (m *machine) startExim() {
	m.t.Helper()
	m.sh("exim4 -bd -q30m -oP /var/lib/exim4/pid")
	m.t.Cleanup(func() { _, _ = m.try("kill $(cat /var/lib/exim4/pid)") })
}

// TestEximPage follows docs/primaries/exim.md word for word: the set-up, what it writes
// and what doctor says; then mail, with the primary up and down.
func TestEximPage(t *testing.T) {
	const page = "../docs/primaries/exim.md"
	setup, files := codeBlocks(t, page, "Set-up on Debian"), codeBlocks(t, page, "What it writes")
	if len(setup) != 3 || len(files) != 4 {
		t.Fatalf("the page has %d and %d blocks of code, this test knows 3 and 4:\n%q\n%q", len(setup), len(files), setup, files)
	}
	mx1, mx2 := eximPrimary(t, true)
	out := mx1.sh(strings.TrimSpace(setup[0]) + " --yes")
	line := regexp.MustCompile(`(?m)^understudy setup secondary .*$`).FindString(out)
	if got := regexp.MustCompile(`understudy1-\S+`).ReplaceAllString(line, "understudy1-…"); strings.Replace(got, " --domain localhost --domain mx1.example.org", "", 1) != strings.TrimSpace(setup[1]) {
		t.Errorf("setup prints\n%s\nand the page has\n%s", got, setup[1])
	}
	mx2.sh(line + " --yes")
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh(setup[2]); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	for n, got := range []string{mx1.sh("cat /etc/understudy/publish.toml"), mx1.sh("cat /etc/systemd/system/understudy-publish.service.d/exim.conf"), mx1.sh("cat /etc/exim4/conf.d/main/00_understudy"), mx2.sh("cat /etc/understudy/understudy.toml")} {
		if !strings.Contains(got, files[n]) {
			t.Errorf("the page says\n%s\nand setup writes\n%s", files[n], got)
		}
	}
	if out := mx1.sh(strings.TrimSpace(setup[0]) + " --yes"); !strings.Contains(out, "mx2 is paired") || !strings.Contains(out, "expects a PROXY header from mx2.example.org already") {
		t.Errorf("a second setup says\n%s", out)
	}

	send := func(to string) string {
		out, _ := mx1.try("swaks --server 203.0.113.2 --local-interface 203.0.113.9 --helo client.example.net --from bob@example.net --to " + to)
		return out
	}
	if out := send("alice@example.org"); !strings.Contains(out, "250 OK id=") {
		log, _ := mx2.try("tail -n 5 /var/log/understudy.log")
		t.Errorf("to alice, played through to Exim:\n%s\n%s", out, log)
	}
	if out := send("nosuch@example.org"); !strings.Contains(out, "550 ") {
		t.Errorf("to nosuch:\n%s", out)
	}
	mx1.sh("kill $(cat /var/lib/exim4/pid)")
	eventually(t, 10*time.Second, "Exim is down", func() bool {
		_, err := mx1.try("swaks --server 203.0.113.1 --quit-after CONNECT")
		return err != nil
	})
	if out := send("alice@example.org"); !strings.Contains(out, " 250 2.0.0") {
		t.Errorf("to alice while the primary is down:\n%s", out)
	}
	if out := send("nosuch@example.org"); !strings.Contains(out, "550 ") {
		t.Errorf("to nosuch while the primary is down:\n%s", out)
	}
	mx1.startExim()
	eventually(t, time.Minute, "alice has both messages", func() bool {
		out, _ := mx1.try("grep -c ^From: /var/mail/alice")
		return strings.TrimSpace(out) == "2"
	})
	if log := mx1.sh("cat /var/log/exim4/mainlog"); strings.Count(log, "<= bob@example.net H=(client.example.net) [203.0.113.9]") != 2 {
		t.Errorf("Exim doesn't name the client:\n%s", log)
	}
	eximChoice(t, mx1)
}

const (
	byXClient = "smtpd_authorized_xclient_hosts=203.0.113.2 smtpd_upstream_proxy_protocol="
	byProxy   = "smtpd_upstream_proxy_protocol=haproxy smtpd_authorized_xclient_hosts="
)

// providerPages are those whose primaries can't be read, and how such a one is told of the secondary, if
// it can be.
var providerPages = []struct{ name, trust string }{
	{"microsoft365", ""}, {"google", ""}, {"mox", ""}, {"ldap", byXClient}, {"proxmox", byXClient}, {"asking", byXClient}, {"stalwart", byProxy},
}

// eximChoice has an ACL that can't be followed, and makes the page's choice.
func eximChoice(t *testing.T, m *machine) {
	t.Helper()
	choices := codeBlocks(t, "../docs/primaries/exim.md", "Choices")
	const item = "acl_check_rcpt: deny ratelimit = 10 / 1h / strict"
	m.sh(`cd /etc/exim4
echo 'CHECK_RCPT_LOCAL_ACL_FILE = /etc/exim4/rcpt' > conf.d/main/00_local
printf 'deny\n  ratelimit = 10 / 1h / strict\n' > rcpt
update-exim4.conf`)
	for _, instead := range []string{"ignore", "ask"} {
		out := m.sh("understudy publish --check")
		_, said, _ := strings.Cut(out, item+"\n")
		said, _, _ = strings.Cut(said, " or: ")
		if !strings.Contains(said, "here: "+instead+"\n") {
			t.Errorf("the statement isn't named with %q:\n%s", instead, out)
		}
		write(t, filepath.Join(m.dir, "choice"), choices[0])
		m.sh("cat ../choice >> /etc/understudy/publish.toml")
	}
}

// TestPages: each page of docs/primaries is followed by a test, and docs/PRIMARIES.md leads to it.
func TestPages(t *testing.T) {
	followed := map[string]func(*testing.T){
		"appliance": TestAppliancePage, "container": TestContainerPage, "exim": TestEximPage, "postfix": TestSetup, "suites": TestContainerSetup,
	}
	for _, p := range providerPages {
		followed[p.name] = TestProviderPages
	}
	files, err := filepath.Glob("../docs/primaries/*.md")
	if err != nil {
		t.Fatal(err)
	}
	index := readFile(t, "../docs/PRIMARIES.md")
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".md")
		if followed[name] == nil {
			t.Errorf("no test follows %s", f)
		}
		if !strings.Contains(index, "(primaries/"+name+".md") {
			t.Errorf("docs/PRIMARIES.md doesn't lead to %s", f)
		}
		delete(followed, name)
	}
	for name := range followed {
		t.Errorf("the page %s is followed, and isn't there", name)
	}
}

// TestProviderPages follows each page whose recipients are pushed or asked for word for word, but
// for list-recipients, which contrib plays. A Postfix stands in for the provider, told of the
// secondary as the page says.
func TestProviderPages(t *testing.T) {
	mx1, mx2 := readmePair(t, "gateway.example.org. 60 IN A 203.0.113.1", "smtp.google.com. 60 IN A 203.0.113.1", "example-org.mail.protection.outlook.com. 60 IN A 203.0.113.1",
		"client.example.net. 60 IN A 203.0.113.9", "9.113.0.203.in-addr.arpa. 60 IN PTR client.example.net.")
	run(t, "ip", "-n", mx1.name, "addr", "add", "203.0.113.9/24", "dev", "eth0")
	cert, key := testmx.Certificate("mx2.example.org", nil)
	write(t, filepath.Join(mx2.dir, "cert.pem"), string(cert))
	write(t, filepath.Join(mx2.dir, "key.pem"), string(key))
	mx2.sh(codeBlocks(t, "../README.md", "Set it up beside a Postfix primary")[0])
	for _, page := range providerPages {
		t.Run(page.name, func(t *testing.T) {
			mx1, mx2 := &machine{t: t, dir: mx1.dir, pid: mx1.pid, name: mx1.name}, &machine{t: t, dir: mx2.dir, pid: mx2.pid, name: mx2.name}
			if page.trust != "" {
				mx1.sh("! postfix status || postfix stop; postconf -e " + page.trust + " 'mynetworks=127.0.0.0/8 203.0.113.2'; postfix start")
			}
			followProvider(t, mx2, page.name, page.trust != "")
			knowsAlice(t, mx1, "up")
			if log := mx2.sh("cat /var/log/understudy.log"); strings.Contains(log, "contradicts") {
				t.Errorf("the secondary takes nobody's word for it that nosuch is there:\n%s", log)
			}
			if page.trust != "" {
				mx1.sh("postfix stop")
				knowsAlice(t, mx1, "down")
			}
			mx2.sh("systemctl stop understudy; cd ..; rm -rf src/list src/token src/pushed /var/lib/understudy")
		})
	}
}

// followProvider types what a provider's page says; that one tells the two apart or doesn't.
func followProvider(t *testing.T, m *machine, name string, trusted bool) {
	t.Helper()
	m.sh("cd /etc/understudy; rm -rf *; cp " + m.dir + "/*.pem .")
	word := ""
	for n, block := range blocksOf(readFile(t, "../docs/primaries/"+name+".md")) {
		switch {
		case strings.HasPrefix(block, "hostname = "):
			write(t, filepath.Join(m.dir, "conf"), block)
			m.sh("cp ../conf /etc/understudy/understudy.toml")
		case strings.HasPrefix(block, "understudy policy preset "):
			out := m.sh(strings.Replace(block, "understudy doctor\n", "", 1))
			if !strings.Contains(out, "is right: domains 1") {
				t.Error(out)
			}
			word = regexp.MustCompile(`(?m)^\S{20,}$`).FindString(out)
		case strings.HasPrefix(block, "list-recipients ") && strings.Contains(block, "understudy push "):
			m.sh("export SSL_CERT_FILE=/etc/understudy/cert.pem\numask 077\necho " + word + " > token\nlist-recipients() { printf 'alice@example.org\\nbob@example.org\\n'; }\n" + block)
			eventually(t, time.Minute, "the list is in force", func() bool {
				_, err := m.try("grep 'policy in force.*\"recipients\":2' /var/log/understudy.log")
				return err == nil
			})
		case strings.HasPrefix(block, "list-recipients "): // of another version
		case strings.HasPrefix(block, "understudy policy learn "):
			m.sh("cp /dev/null /var/log/mail.log; " + block)
		case block == "understudy doctor\n":
		default:
			t.Errorf("this test doesn't know block %d:\n%s", n, block)
		}
	}
	if out, _ := m.try("understudy doctor"); !strings.Contains(out, "The daemon runs, and decides by a fresh policy.") || trusted != strings.Contains(out, "takes mail from here as it would from the sender") {
		t.Errorf("doctor says\n%s", out)
	}
}

// knowsAlice sends a message to alice through the secondary, and one to nobody.
func knowsAlice(t *testing.T, mx1 *machine, when string) {
	t.Helper()
	for to, want := range map[string]string{"alice": " 250 2.0.0", "nosuch": "550 5.1.1"} {
		out, _ := mx1.try("swaks --server 203.0.113.2 --local-interface 203.0.113.9 --helo client.example.net --from bob@example.net --to " + to + "@example.org")
		if !strings.Contains(out, want) {
			t.Errorf("to %s, while the primary is %s:\n%s", to, when, out)
		}
	}
}

// suitePair is two machines with the package, the first with an address for a client.
func suitePair(t *testing.T) (mx1, mx2 *machine) {
	t.Helper()
	mx1, mx2 = newMachine(t, "mx1", ""), newMachine(t, "mx2", "")
	connect(t, mx1, mx2)
	run(t, "ip", "-n", mx1.name, "addr", "add", "203.0.113.9/24", "dev", "eth0")
	for _, m := range []*machine{mx1, mx2} {
		m.sh(codeBlocks(t, "../README.md", "Set it up beside a Postfix primary")[0])
	}
	return mx1, mx2
}

var secondaryLine = regexp.MustCompile(`(?m)^understudy setup secondary .*$`)

// TestContainerSetup follows docs/primaries/suites.md with a docker-mailserver of another name than
// by default: what set-up finds, writes and starts, and what doctor says then, and without the
// container; then mail, while it is up, down and back.
func TestContainerSetup(t *testing.T) {
	mx1, mx2 := suitePair(t)
	dockerMailserver(t, mx1)
	blocks := suitePage(t, mx1, "docker-mailserver")
	out := mx1.sh(strings.TrimSpace(blocks[0]) + " --yes")
	for _, want := range []string{"This is docker-mailserver: docker ps shows the container mail", "SupplementaryGroups=docker", `postfix_prefix = ["docker", "exec", "-i", "mail"]`, "Put this into postfix-main.cf in the directory"} {
		if !strings.Contains(out, want) {
			t.Errorf("set-up doesn't say %q", want)
		}
	}
	line := secondaryLine.FindString(out)
	if !strings.HasPrefix(line, "understudy setup secondary --hostname mx2.example.org --primary mx1.example.org:25 --domain example.org ") {
		t.Fatalf("set-up says\n%s", out)
	}
	if out, err := mx1.try("understudy doctor --secondary 203.0.113.2"); err == nil || !strings.Contains(out, "mend: put `smtpd_authorized_xclient_hosts = 203.0.113.2` into postfix-main.cf in the directory that is mounted at /tmp/docker-mailserver, and run docker restart mail") {
		t.Errorf("before the container's main.cf has the secondary, doctor says\n%s", out)
	}
	mx1.sh("mv ../mail/pid ../mail/pid.old")
	if out, err := mx1.try("understudy doctor"); err == nil || !strings.Contains(out, "policy-unread") || !strings.Contains(out, "No such container: mail; start it or, if docker ps shows another name") {
		t.Errorf("without the container doctor says\n%s", out)
	}
	mx1.sh("mv ../mail/pid.old ../mail/pid")

	// postfix-main.cf is applied by the container's start, by postconf -e.
	for _, l := range regexp.MustCompile(`(?m)^    ((?:mynetworks|smtpd_authorized_xclient_hosts) = .*)$`).FindAllStringSubmatch(out, -1) {
		mx1.sh("docker exec -i mail postconf -e '" + l[1] + "'")
	}
	mx1.sh("docker exec -i mail postfix reload")
	mx2.sh(line + " --yes")
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh("understudy doctor"); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	knowsAlice(t, mx1, "up")
	mx1.sh("docker exec -i mail postfix stop")
	knowsAlice(t, mx1, "down")
	mx1.sh("docker exec -i mail postfix start")
	eventually(t, time.Minute, "alice has both messages", func() bool {
		out, _ := mx1.try("ls ../mail/var/mail/alice/new | wc -l")
		return strings.TrimSpace(out) == "2"
	})
}

// TestContainerPage follows docs/primaries/container.md word for word: with the container's file system,
// by a publisher that has no other rights than its drop-in gives, and with the container.
func TestContainerPage(t *testing.T) {
	blocks := blocksOf(readFile(t, "../docs/primaries/container.md"))
	if len(blocks) != 5 {
		t.Fatalf("the page has %d blocks of code, this test knows 5:\n%q", len(blocks), blocks)
	}
	byHand := codeBlocks(t, "../README.md", "The same by hand")
	mx1, mx2 := suitePair(t)
	root := dockerMailserver(t, mx1)
	mx1.sh("mount -t tmpfs tmpfs /srv; mkdir -p /srv/mail/root; mount --bind " + root + " /srv/mail/root; mount --bind /usr /srv/mail/root/usr")
	follow := func(conf, dropIn string) (domains, join string) {
		write(t, filepath.Join(mx1.dir, "publish.toml"), conf)
		out := mx1.sh("cp ../publish.toml /etc/understudy/\n" + dropIn + blocks[4])
		domains = regexp.MustCompile(`domains = \[.*"example.org".*\]`).FindString(out)
		if domains == "" {
			t.Errorf("--check says\n%s", out)
		}
		if out := mx1.sh("understudy policy status -c /etc/understudy/publish.toml"); !strings.Contains(out, "example.org") {
			t.Errorf("published is\n%s", out)
		}
		return domains, regexp.MustCompile(`(?m)^understudy join understudy1-\S+$`).FindString(out)
	}
	follow(blocks[2], blocks[3])
	mx1.sh("systemctl stop understudy-publish; sed -i s/^AmbientCapabilities=CAP_SYS_CHROOT/AmbientCapabilities=/ /etc/systemd/system/understudy-publish.service.d/chroot.conf; systemctl enable --now understudy-publish")
	if out, err := mx1.try("understudy doctor --secondary 203.0.113.2"); err == nil || !strings.Contains(out, "publisher-failing") || !strings.Contains(out, "/usr/share/understudy/chroot.conf says how") {
		t.Errorf("without the right to chroot doctor says\n%s", out)
	}
	if out, err := mx1.try("understudy doctor --secondary 203.0.113.2"); err == nil || !strings.Contains(out, "mend: put `smtpd_authorized_xclient_hosts = 203.0.113.2` into /srv/mail/root/etc/postfix/main.cf, and have the Postfix there reload it") {
		t.Errorf("below a root doctor says\n%s", out)
	}
	mx1.sh("systemctl stop understudy-publish; rm -r /etc/systemd/system/understudy-publish.service.d /var/lib/understudy")

	domains, join := follow(blocks[0], blocks[1])
	if out, err := mx1.try("understudy doctor --secondary 203.0.113.2"); err == nil || !strings.Contains(out, "mend: put `smtpd_authorized_xclient_hosts = 203.0.113.2` where the container keeps its main.cf, as one that is changed inside goes with it; then docker exec -i mail postfix reload") {
		t.Errorf("with the container doctor says\n%s", out)
	}
	mx1.sh("docker exec -i mail postconf -e 'mynetworks = 127.0.0.0/8 203.0.113.2' 'smtpd_authorized_xclient_hosts = 203.0.113.2'; docker exec -i mail postfix reload")
	write(t, filepath.Join(mx2.dir, "understudy.toml"), regexp.MustCompile(`(?m)^domains = .*`).ReplaceAllLiteralString(byHand[3], domains))
	mx2.sh("cp ../understudy.toml /etc/understudy/\n" + strings.Replace(byHand[5], "understudy join understudy1-…", join, 1))
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh("understudy doctor"); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	mx1.sh("docker exec -i mail postfix stop")
	knowsAlice(t, mx1, "down")
}

// TestAppliancePage follows docs/primaries/appliance.md word for word, with a Postfix for the filter
// and one for the server after it, whose door is open to strangers first.
func TestAppliancePage(t *testing.T) {
	blocks := blocksOf(readFile(t, "../docs/primaries/appliance.md"))
	if len(blocks) != 3 {
		t.Fatalf("the page has %d blocks of code, this test knows 3:\n%q", len(blocks), blocks)
	}
	mx1, mx2 := suitePair(t)
	run(t, "ip", "-n", mx1.name, "addr", "add", "203.0.113.3/24", "dev", "eth0")
	mx1.sh(`cp -a /etc/postfix /etc/postfix-server
both='inet_protocols=ipv4 smtpd_tls_security_level= mydestination='
postconf -e $both myhostname=filter.example.org maillog_file=/var/log/mail.log inet_interfaces=203.0.113.1 smtp_bind_address=203.0.113.1 relay_domains=example.org \
  'relay_recipient_maps=inline:{alice@example.org=alice}' 'transport_maps=inline:{example.org=smtp:[203.0.113.3]}' 'mynetworks=127.0.0.0/8 203.0.113.2' smtpd_authorized_xclient_hosts=203.0.113.2
postconf -c /etc/postfix-server -e $both myhostname=mail.example.org maillog_file=/var/log/server.log inet_interfaces=203.0.113.3 queue_directory=/var/spool/postfix-server data_directory=/var/lib/postfix-server \
  mynetworks=127.0.0.0/8 virtual_mailbox_domains=example.org 'virtual_mailbox_maps=inline:{alice@example.org=alice/}' virtual_mailbox_base=/var/mail virtual_uid_maps=static:65534 virtual_gid_maps=static:65534
chown nobody /var/mail
newaliases
postfix start
mkdir -p /var/spool/postfix-server; install -d -o postfix /var/lib/postfix-server
postfix -c /etc/postfix-server start`)
	t.Cleanup(func() { _, _ = mx1.try("postfix stop; postfix -c /etc/postfix-server stop") })
	write(t, filepath.Join(mx2.dir, "conf"), blocks[0])
	write(t, filepath.Join(mx2.dir, "policy"), blocks[1])
	mx2.sh("cp ../conf /etc/understudy/understudy.toml; cp ../policy /etc/understudy/policy.toml")
	if out, _ := mx2.try(blocks[2]); !strings.Contains(out, "back-door  mail.example.org:25") || strings.Contains(out, "no-client-identity") {
		t.Errorf("with a back door doctor says\n%s", out)
	}
	mx1.sh("postconf -c /etc/postfix-server -e 'smtpd_client_restrictions=check_client_access inline:{203.0.113.1=permit}, reject'; postfix -c /etc/postfix-server reload")
	if out, _ := mx2.try("understudy doctor"); strings.Contains(out, "back-door") || !strings.Contains(out, "The servers behind the primary let no stranger in.") {
		t.Errorf("without a back door doctor says\n%s", out)
	}
	knowsAlice(t, mx1, "up")
	mx1.sh("postfix stop")
	knowsAlice(t, mx1, "down")
	mx1.sh("postfix start")
	eventually(t, time.Minute, "alice has both messages", func() bool {
		out, _ := mx1.try("ls /var/mail/alice/new | wc -l")
		return strings.TrimSpace(out) == "2"
	})
	if log := mx1.sh("cat /var/log/mail.log"); !strings.Contains(log, "client=unknown[203.0.113.9]") {
		t.Errorf("the filter isn't told whose mail it is:\n%s", tail([]byte(log), 3000))
	}
}

// TestSuiteSetup: a Mail-in-a-Box, with its own queries on a database of its own schema, is found on
// the machine and set up.
func TestSuiteSetup(t *testing.T) {
	mx1, mx2 := suitePair(t)
	const files = "../policy/postfix/testdata/suites/mail-in-a-box/"
	for _, name := range []string{"schema.sql", "virtual-mailbox-domains.cf", "virtual-mailbox-maps.cf", "virtual-alias-maps.cf"} {
		write(t, filepath.Join(mx1.dir, name), strings.ReplaceAll(readFile(t, files+name), "@CONNECTION@", "dbpath = /var/users.sqlite"))
	}
	main := strings.ReplaceAll(readFile(t, files+"main.cf"), "@DIR@", "/etc/postfix")
	write(t, filepath.Join(mx1.dir, "more.cf"), main)
	mx1.sh(`cd ..; touch /etc/mailinabox.conf; cp virtual-*.cf /etc/postfix/; cat more.cf >> /etc/postfix/main.cf
sqlite3 /var/users.sqlite ".read schema.sql" "INSERT INTO users (email, password) VALUES ('alice@example.org', '')"
chmod 644 /var/users.sqlite
postconf -e myhostname=mx1.example.org 'mydestination = localhost' inet_protocols=ipv4 inet_interfaces=all maillog_file=/var/log/mail.log smtpd_tls_security_level=
newaliases; postfix start`)
	t.Cleanup(func() { _, _ = mx1.try("postfix stop") })
	out := mx1.sh("understudy setup primary --secondary mx2.example.org --yes")
	if !strings.Contains(out, "This is Mail-in-a-Box: there is /etc/mailinabox.conf.") || !strings.Contains(out, `suite = "mail-in-a-box"`) {
		t.Errorf("set-up says\n%s", out)
	}
	mx2.sh(secondaryLine.FindString(out) + " --yes")
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh("understudy doctor"); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	mx1.sh("postfix stop")
	knowsAlice(t, mx1, "down")
	mx1.sh("chmod 640 /etc/postfix/virtual-mailbox-maps.cf")
	if out, _ := mx1.try("understudy doctor"); !strings.Contains(out, "publisher-may-not-read  /etc/postfix/virtual-mailbox-maps.cf") || !strings.Contains(out, "mode 0640 and group 0") {
		t.Errorf("with a table that is root's alone doctor says\n%s", out)
	}
}
