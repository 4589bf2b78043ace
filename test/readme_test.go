package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/demo"
)

// machine is a network namespace with a file system of its own: what is written
// below /etc, /var and /usr/local stays there and goes with it. Its address is
// that of the README.
type machine struct {
	t    *testing.T
	name string // of the network namespace
	dir  string // on the host: what the machine can't get by itself
	pid  string // of its first process
}

// boot makes private mounts and waits for the machine's end.
const boot = `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs %[1]s/disk
mkdir %[1]s/disk/more
[ -z '%[2]s' ] || cp -a '%[2]s/.' %[1]s/disk/more
for d in etc var usr usr/local; do
  lower=/$d
  [ ! -d %[1]s/disk/more/$d ] || lower=%[1]s/disk/more/$d:$lower
  mkdir -p %[1]s/disk/$d.new %[1]s/disk/$d.work
  mount -t overlay overlay -o lowerdir=$lower,upperdir=%[1]s/disk/$d.new,workdir=%[1]s/disk/$d.work /$d
done
mount -t proc proc /proc
printf '127.0.0.1 localhost\n203.0.113.1 mx1.example.org mx1 filter.example.org\n203.0.113.2 mx2.example.org mx2\n203.0.113.3 mail.example.org\n' > /etc/hosts
echo nameserver 127.0.0.1 > /etc/resolv.conf
touch %[1]s/up
sleep infinity & wait # and reap whom others leave`

// A stand-in for systemctl starts what the unit starts, and waits until it is
// ready as Type=notify does. Where a drop-in names groups or capabilities, it runs as a user of
// its own with these, who gets no other rights; the group docker is as good as root. "show" says
// what the unit's files say. It knows no socket activation: cmd's TestUnderSystemd does.
const systemctl = `#!/bin/bash
set -eu
[ "$1" = daemon-reload ] && exec ls /etc/systemd/system/understudy.socket
[ "$1 $2" = "reload exim4" ] && exec kill -HUP $(cat /var/lib/exim4/pid)
said() { cat /etc/systemd/system/$1.service /etc/systemd/system/$1.service.d/*.conf 2>/dev/null | sed -n "s/^$2=//p"; }
if [ "$1" = show ]; then
  unit=${@: -1}
  [ -f /etc/systemd/system/$unit.service ] && echo LoadState=loaded
  for property in User ProtectHome MemoryDenyWriteExecute SupplementaryGroups; do echo $property=$(said $unit $property); done
  exit
fi
if [ "$1" = stop ]; then
  pid=$(cat /var/log/$2.pid)
  kill $pid
  for _ in {1..300}; do [ -d /proc/$pid ] || exec rm /var/log/$2.pid; sleep 0.1; done
  exit 1
fi
[ "$1 $2" = "enable --now" ]
for unit in "${@:3}"; do
  [ -f "/etc/systemd/system/${unit%.service}.service" ] || [ -f "/etc/systemd/system/$unit" ]
  [ "${unit%.socket}" = "$unit" ] || continue
  unit=${unit%.service} log=/var/log/${unit%.service}.log
  [ ! -d /proc/$(cat /var/log/$unit.pid 2>/dev/null || echo none) ] || continue
  mkdir -p -m 700 /var/lib/understudy
  : > $log
  groups=$(said $unit SupplementaryGroups) as=
  if grep -Eqs '^(SupplementaryGroups|AmbientCapabilities)' /etc/systemd/system/$unit.service.d/*.conf; then
    getent group $groups > /dev/null # with one that is missing systemd starts nothing
    caps=$(for c in $(said $unit AmbientCapabilities); do echo -n ,+${c#CAP_}; done | tr A-Z a-z)
    [[ $groups = *docker* ]] || chown -R 64000:64000 /var/lib/understudy
    [[ $groups = *docker* ]] || as="setpriv --no-new-privs --bounding-set=-all$caps --inh-caps=-all$caps --ambient-caps=-all$caps --reuid=64000 --regid=64000 --groups=$(for g in $groups; do getent group $g | cut -d: -f3; done | paste -sd,)"
  fi
  setsid $as $(sed -n s/^ExecStart=//p /etc/systemd/system/$unit.service) > $log 2>&1 < /dev/null &
  echo $! > /var/log/$unit.pid
  for _ in {1..300}; do grep -q '"msg":"ready"' $log && continue 2; sleep 0.1; done
  cat $log; exit 1
done
`

// A stand-in for apt puts the package's files where they can run here: TestPackage
// has the real one.
const apt = `#!/bin/sh
install -m 755 understudy /usr/local/bin/ && install -m 644 systemd/*.service systemd/*.socket /etc/systemd/system/ && mkdir -p /etc/understudy
install -D -m 644 -t /usr/share/understudy systemd/*.conf
`

// newMachine starts one, whose file system has the files below the directory more, too.
func newMachine(t *testing.T, name, more string) *machine {
	t.Helper()
	m := &machine{t: t, name: fmt.Sprintf("understudy-%s-%d", name, os.Getpid()%10000), dir: tempDir(t)}
	for _, d := range []string{"bin", "src", "disk"} {
		if err := os.Mkdir(filepath.Join(m.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"systemd", "docs"} {
		if err := os.Symlink(absolute(t, "../"+d), filepath.Join(m.dir, "src", d)); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range map[string]string{"systemctl": systemctl, "make": "#!/bin/sh\nexec cp " + binary + " understudy\n", "apt": apt} {
		if err := os.WriteFile(filepath.Join(m.dir, "bin", name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "ip", "netns", "add", m.name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", m.name) })
	run(t, "ip", "-n", m.name, "link", "set", "lo", "up")
	init := exec.Command("ip", "netns", "exec", m.name, "unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", fmt.Sprintf(boot, m.dir, more))
	init.Stderr = os.Stderr
	if err := init.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = init.Process.Kill() // its child, the machine's first process, goes with it, and all others
		_ = init.Wait()
	})
	eventually(t, 20*time.Second, name+" is up", func() bool {
		_, err := os.Stat(filepath.Join(m.dir, "up"))
		return err == nil
	})
	m.pid = strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/task/%[1]d/children", init.Process.Pid)))
	return m
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v (the test needs root and iproute2, see test/install-peers)\n%s", name, strings.Join(args, " "), err, out)
	}
}

// try runs commands as the machine's root would type them.
func (m *machine) try(commands string) (string, error) {
	cmd := exec.Command("nsenter", "-t", m.pid, "-m", "-p", "-n", "bash", "-e", "-c", "cd "+m.dir+"/src\n"+commands)
	cmd.Env = append(os.Environ(), "PATH="+m.dir+"/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) sh(commands string) string {
	m.t.Helper()
	out, err := m.try(commands)
	if err != nil {
		log, _ := m.try("tail -n 20 /var/log/understudy*.log /var/log/mail.log")
		m.t.Fatalf("%s: %v\n%s\n%s\nits logs:\n%s", m.name, err, commands, out, log)
	}
	return out
}

// codeBlocks returns the code of a section of a page, in order.
func codeBlocks(t *testing.T, page, section string) (blocks []string) {
	t.Helper()
	_, text, _ := strings.Cut(readFile(t, page), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	return blocksOf(text)
}

// blocksOf returns the code of a text: fenced, or indented by four columns, in a list by
// seven. Blank lines don't end a block whose next line is indented, too.
func blocksOf(text string) (blocks []string) {
	for _, m := range regexp.MustCompile("(?ms)^ *```toml\n(.*?)^ *```$|((?:^(?:    |       )\\S[^\n]*\n(?:\n+(?:    |       )\\S[^\n]*\n)*)+)").FindAllStringSubmatch(text, -1) {
		block := m[1] + m[2]
		indent := block[:len(block)-len(strings.TrimLeft(block, " "))]
		if m[2] != "" && len(indent) != 4 && len(indent) != 7 {
			continue // a list's running text
		}
		blocks = append(blocks, strings.ReplaceAll("\n"+block, "\n"+indent, "\n")[1:])
	}
	return blocks
}

// inside runs do in the machine's network.
func (m *machine) inside(do func() error) {
	m.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread stays in the namespace, and ends with the goroutine
		ns, err := os.Open("/run/netns/" + m.name)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		m.t.Fatal(err)
	}
}

// dns starts a DNS server on the machine, which serves records.
func (m *machine) dns(records ...string) {
	m.t.Helper()
	m.inside(func() error {
		d, err := demo.StartDNSAt("127.0.0.1:53", records...)
		if err == nil {
			m.t.Cleanup(d.Close)
		}
		return err
	})
}

// connect puts two machines on one net with the README's addresses, each with a DNS.
func connect(t *testing.T, mx1, mx2 *machine, records ...string) {
	t.Helper()
	run(t, "ip", "link", "add", "eth0", "netns", mx1.name, "type", "veth", "peer", "name", "eth0", "netns", mx2.name)
	for m, address := range map[*machine]string{mx1: "203.0.113.1/24", mx2: "203.0.113.2/24"} {
		run(t, "ip", "-n", m.name, "addr", "add", address, "dev", "eth0")
		run(t, "ip", "-n", m.name, "link", "set", "eth0", "up")
		m.dns(append(records, ". 60 IN NS ns.example.", "example.org. 60 IN MX 10 mx1.example.org.", "example.org. 60 IN MX 20 mx2.example.org.", "example.net. 60 IN MX 10 mx1.example.org.",
			"mx1.example.org. 60 IN A 203.0.113.1", "filter.example.org. 60 IN A 203.0.113.1", "mail.example.org. 60 IN A 203.0.113.3", "mx2.example.org. 60 IN A 203.0.113.2", "2.113.0.203.in-addr.arpa. 60 IN PTR mx2.example.org.")...)
	}
}

// readmePair is two machines on one net, the first a Postfix.
func readmePair(t *testing.T, records ...string) (mx1, mx2 *machine) {
	t.Helper()
	mx1, mx2 = newMachine(t, "mx1", ""), newMachine(t, "mx2", "")
	connect(t, mx1, mx2, records...)
	mx1.sh(`postconf -e myhostname=mx1.example.org 'mydestination = $myhostname, localhost' inet_protocols=ipv4 inet_interfaces=all maillog_file=/var/log/mail.log \
  smtpd_tls_security_level= virtual_mailbox_domains=example.org virtual_mailbox_maps=hash:/etc/postfix/vmailbox virtual_mailbox_base=/var/mail \
  virtual_uid_maps=static:65534 virtual_gid_maps=static:65534
chown nobody /var/mail
echo alice@example.org alice/ > /etc/postfix/vmailbox
postmap /etc/postfix/vmailbox
newaliases
postfix start`)
	t.Cleanup(func() { _, _ = mx1.try("postfix stop") })
	return mx1, mx2
}

// TestSetup follows the README's set-up to the letter on two machines. make, apt
// and systemctl are played by scripts; the line for the secondary is the one
// that setup prints.
func TestSetup(t *testing.T) {
	blocks := codeBlocks(t, "../README.md", "Set it up beside a Postfix primary")
	if len(blocks) != 4 || strings.Count(strings.Join(blocks, ""), "\n") > 6 {
		t.Fatalf("the README has these blocks of code there; this test knows four, of six commands at most:\n%s", strings.Join(blocks, "---\n"))
	}
	mx1, mx2 := readmePair(t)
	for _, m := range []*machine{mx1, mx2} {
		m.sh(blocks[0])
	}
	if out, err := mx1.try(blocks[1]); err == nil || !strings.Contains(out, "--yes") {
		t.Errorf("without anybody to ask, setup says\n%s", out)
	}
	out := mx1.sh(strings.TrimSpace(blocks[1]) + " --yes")
	if page := blocksOf(readFile(t, "../docs/primaries/postfix.md")); len(page) != 2 || page[0] != blocks[1] || mx1.sh("cat /etc/understudy/publish.toml") != page[1] {
		t.Errorf("docs/primaries/postfix.md has other commands than the README, or another configuration than set-up writes:\n%q", page)
	}
	line := regexp.MustCompile(`(?m)^understudy setup secondary .*$`).FindString(out)
	word := regexp.MustCompile(`understudy1-\S+`)
	if got := word.ReplaceAllString(line, "understudy1-…"); got != strings.TrimSpace(strings.Replace(blocks[2], "--domain example.org", "--domain example.org --domain localhost --domain mx1.example.org", 1)) {
		t.Errorf("setup prints\n%s\nand the README has\n%s", got, blocks[2])
	}
	mx2.sh(line + " --yes")
	for _, m := range []*machine{mx1, mx2} {
		if out := m.sh(blocks[3]); strings.Contains(out, "no-client-identity") || !strings.Contains(out, "ok ") {
			t.Errorf("%s: the doctor says\n%s", m.name, out)
		}
	}
	if out, _ := mx1.try("swaks --server 203.0.113.2 --helo client.example.net --from bob@example.net --to alice@example.org"); !strings.Contains(out, " 250 2.0.0") {
		t.Errorf("to alice:\n%s", out)
	}
	// Again: nothing changes.
	state := "cat /etc/understudy/*; postconf -n; understudy peers | awk '{print $1, $2}'"
	before := mx1.sh(state)
	if out := mx1.sh(strings.TrimSpace(blocks[1]) + " --yes"); !strings.Contains(out, "mx2 is paired") || strings.Contains(out, "postconf") {
		t.Errorf("a second setup says\n%s", out)
	}
	if after := mx1.sh(state); after != before {
		t.Errorf("a second setup changed\n%s\nto\n%s", before, after)
	}
	if out := mx2.sh(line + " --yes"); !strings.Contains(out, "is as it should be") || !strings.Contains(out, "This machine is paired") {
		t.Errorf("a second setup there says\n%s", out)
	}
}

// TestReadme follows the set-up by hand to the letter. Only make and systemctl
// are played by scripts, and the domains are those that --check prints, as the
// text says.
func TestReadme(t *testing.T) {
	blocks := codeBlocks(t, "../README.md", "The same by hand")
	if len(blocks) != 7 {
		t.Fatalf("the README has %d blocks of code there, this test knows 7:\n%s", len(blocks), strings.Join(blocks, "---\n"))
	}
	mx1, mx2 := readmePair(t)
	mx1.sh(blocks[0])
	mx2.sh(blocks[0])
	write(t, filepath.Join(mx1.dir, "src/publish.toml"), blocks[1])
	mx1.sh("cp publish.toml /etc/understudy/")
	check := mx1.sh(blocks[2])
	domains := regexp.MustCompile(`(?m)^ *(domains = \[.*\])$`).FindStringSubmatch(check)
	if domains == nil || !strings.Contains(domains[1], `"example.org"`) || !strings.Contains(blocks[3], "domains = [") {
		t.Fatalf("--check names no domains, or the README's configuration none:\n%s\n%s", check, blocks[3])
	}
	write(t, filepath.Join(mx2.dir, "src/understudy.toml"), regexp.MustCompile(`(?m)^domains = .*`).ReplaceAllLiteralString(blocks[3], domains[1]))
	mx2.sh("cp understudy.toml /etc/understudy/")
	line, _, _ := strings.Cut(mx1.sh(blocks[4]), "\n")
	if !strings.HasPrefix(line, "understudy join understudy1-") || !strings.Contains(blocks[5], "understudy join understudy1-…\n") {
		t.Fatalf("%q is not the line to paste of\n%s", line, blocks[5])
	}
	status := mx2.sh(strings.Replace(blocks[5], "understudy join understudy1-…", line, 1))
	print := regexp.MustCompile(`the same on both sides: (\S+)`).FindStringSubmatch(status)
	if peers := mx1.sh("understudy peers"); print == nil || !strings.Contains(peers, print[1]) {
		t.Errorf("the fingerprint of\n%s is not in\n%s", status, peers)
	}
	mx1.sh(`sed -i '/^mynetworks/d' /etc/postfix/main.cf; cat >> /etc/postfix/main.cf <<'end'
` + blocks[6] + "end\npostfix reload")
	if out := mx1.sh("understudy policy status -c /etc/understudy/publish.toml"); !strings.Contains(out, "example.org") {
		t.Error(out)
	}
	eventually(t, 20*time.Second, "the secondary follows", func() bool { return strings.Contains(mx2.sh("understudy policy status"), "fresh") })
	if out := mx2.sh("understudy policy status"); strings.Contains(out, "Alarm") {
		t.Errorf("after the set-up:\n%s", out)
	}

	send := func(to string) string {
		out, _ := mx1.try("swaks --server 203.0.113.2 --helo client.example.net --from bob@example.net --to " + to)
		return out
	}
	if out := send("alice@example.org"); !strings.Contains(out, "<~  250 2.0.0") && !strings.Contains(out, "<-  250 2.0.0") {
		t.Errorf("to alice:\n%s", out)
	}
	if out := send("nobody@example.org"); !strings.Contains(out, "550 5.1.1") {
		t.Errorf("to nobody:\n%s", out)
	}
	eventually(t, 30*time.Second, "alice has the message", func() bool {
		out, _ := mx1.try("cat /var/mail/alice/new/*")
		return strings.Contains(out, "bob@example.net")
	})
	if log := mx1.sh("cat /var/log/mail.log"); !strings.Contains(log, "client=unknown[203.0.113.1]") {
		t.Errorf("the primary doesn't name the client:\n%s", tail([]byte(log), 3000))
	}
	mx1.sh("postfix stop")
	if out := send("alice@example.org"); !strings.Contains(out, " 250 2.0.0") {
		t.Errorf("to alice while the primary is down:\n%s", out)
	}
	mx1.sh("postfix start")
	eventually(t, 2*time.Minute, "alice has the second message", func() bool {
		out, _ := mx1.try("ls /var/mail/alice/new | wc -l")
		return strings.TrimSpace(out) == "2"
	})
	mx1.sh("echo carol@example.org carol/ >> /etc/postfix/vmailbox; postmap /etc/postfix/vmailbox")
	eventually(t, 30*time.Second, "the secondary knows carol", func() bool { return strings.Contains(send("carol@example.org"), " 250 2.0.0") })
}
