package test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// sh runs a script and returns what it printed; a failure ends the test.
func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", script, "test"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// TestPackage builds the Debian package twice, has lintian look at it, and
// installs, upgrades, removes and purges it in a Debian made for it, which runs
// under its own systemd.
func TestPackage(t *testing.T) {
	t.Parallel()
	packages := func() map[string][32]byte {
		sh(t, "make deb")
		sums := map[string][32]byte{}
		files, _ := filepath.Glob("../dist/*.deb")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sums[filepath.Base(f)] = sha256.Sum256(b)
		}
		return sums
	}
	sh(t, "rm -rf dist")
	first := packages()
	if len(first) != 2 {
		t.Fatalf("built %d packages, want one for amd64 and one for arm64", len(first))
	}
	for name, sum := range packages() {
		if sum != first[name] {
			t.Errorf("%s: the second build differs from the first", name)
		}
	}
	if out := sh(t, "lintian --allow-root --fail-on error,warning,info dist/*.deb"); out != "" {
		t.Errorf("lintian:\n%s", out)
	}
	d := newDebian(t)
	sh(t, `cp dist/*_$(dpkg --print-architecture).deb "$1/new.deb"
		systemd/deb/root $(dpkg --print-architecture) 0.0.1 "$(git log -1 --format=%cD)"
		ARCH=$(dpkg --print-architecture) VERSION=0.0.1 go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2 package -f systemd/deb/nfpm.yaml -p deb -t "$1/old.deb"`, d.root)
	d.has("install", "dpkg -i /old.deb", "doesn't run yet")
	d.has("version", "understudy version", "understudy 0.0.1 commit "+strings.TrimSpace(sh(t, "git rev-parse --short=12 HEAD"))+" of 20")
	d.upgrade()
	d.has("completion", `source /usr/share/bash-completion/completions/understudy; COMP_WORDS=(understudy queue exp) COMP_CWORD=2; _understudy; echo "${COMPREPLY[*]}"`, "export")
	d.in("dpkg -r understudy")
	d.has("after removal", "! systemctl is-active understudy.service understudy.socket understudy-publish.service; ls /usr/bin/understudy || true; ls -d /var/lib/understudy/queue", "/var/lib/understudy/queue")
	d.has("purge", "rm /etc/understudy/*; dpkg -P understudy", "mail that was accepted may wait")
	d.in("dpkg -i /new.deb; rm -r /var/lib/private/understudy/queue; dpkg -P understudy")
	if left := d.in("ls -d /var/lib/understudy /var/lib/private/understudy /etc/understudy /usr/share/doc/understudy 2>/dev/null || true"); left != "" {
		t.Errorf("left after a purge: %s", left)
	}
}

// debian is a Debian in a directory, with a systemd as its first process and a
// network of its own.
type debian struct {
	t    *testing.T
	root string
	pid  string // of its first process
	net  *farAway
}

func newDebian(t *testing.T) *debian {
	t.Helper()
	d := &debian{t: t, root: tempDir(t), net: newFarAway(t)}
	sh(t, `debootstrap --variant=minbase --include=ca-certificates,systemd,systemd-sysv,dbus bookworm "$1" http://deb.debian.org/debian >"$1.log" 2>&1 || { tail "$1.log"; exit 1; }`, d.root)
	log, err := os.Create(d.root + ".boot")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	boot := exec.Command("systemd-nspawn", "--keep-unit", "--register=no", "--network-namespace-path=/run/netns/"+d.net.name, "-D", d.root, "--boot")
	boot.Stdout, boot.Stderr = log, log
	if err := boot.Start(); err != nil {
		t.Fatalf("%v (test/install-peers installs systemd-container)", err)
	}
	t.Cleanup(func() {
		_ = boot.Process.Signal(syscall.SIGTERM) // it shuts down
		_ = boot.Wait()                          // its status is that of the last process
	})
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", boot.Process.Pid)
	eventually(t, time.Minute, "the Debian is up", func() bool {
		b, err := os.ReadFile(children)
		if d.pid = strings.TrimSpace(string(b)); err != nil || d.pid == "" {
			return false
		}
		out, _ := exec.Command("nsenter", "-t", d.pid, "-a", "systemctl", "is-system-running").CombinedOutput()
		state := strings.TrimSpace(string(out))
		return state == "running" || state == "degraded"
	})
	return d
}

// in runs a script on the Debian, as its root.
func (d *debian) in(script string) string {
	d.t.Helper()
	return sh(d.t, `exec nsenter -t "$1" -a bash -euo pipefail -c "$2" 2>&1`, d.pid, script)
}

// group: the publisher's unit reads what the group postfix may read, as since the upgrade
// there is one, and starts without one, too.
func (d *debian) group() {
	d.t.Helper()
	d.has("what Postfix's group may read", `sed -i 's/"alice@example.org"/&, "bob@example.org"/' /etc/understudy/policy.toml
for i in $(seq 50); do
	understudy policy status -c /etc/understudy/publish.toml >/tmp/status
	grep -q '^Recipients *2' /tmp/status && break
	sleep 0.2
done
tr -s ' ' </tmp/status; ls -l /etc/understudy/policy.toml`, "\nRecipients 2\n")
	d.in(`chmod 644 /etc/understudy/policy.toml; groupdel postfix; systemctl daemon-reload; systemctl restart understudy-publish`)
}

func (d *debian) has(what, script, want string) {
	d.t.Helper()
	if out := d.in(script); !strings.Contains(out, want) {
		d.t.Errorf("%s: got %s, want %q", what, out, want)
	}
}

// upgrade sets a pair up under the real units, and upgrades it from old.deb to
// new.deb while senders come: none is refused, all mail is there, and the pair
// is paired.
func (d *debian) upgrade() {
	d.t.Helper()
	d.in(`umount /proc/sys/kernel/random/boot_id # nspawn's, which the units' own /proc doesn't have
systemctl restart systemd-journald
cat >/etc/understudy/policy.toml <<.
domains = ["example.org"]
recipients = ["alice@example.org"]
.
cat >/etc/understudy/publish.toml <<.
publish.address = "127.0.0.1:9626"
publish.log = "journal"
policy.file = "/etc/understudy/policy.toml"
.
cat >/etc/understudy/understudy.toml <<.
hostname = "mx2.example.org"
primary.address = "127.0.0.1:2525"
sync.domains = ["example.org"]
metrics.listen = "" # the publisher has the port
.
systemctl enable --now understudy-publish
understudy join $(understudy invite mx2 | grep -o 'understudy1-[^ ]*')
systemctl enable --now understudy.socket understudy.service`)
	paired := func() []string {
		return strings.Fields(d.in("understudy policy status | grep -i fingerprint; understudy peers --json | grep fingerprint; systemctl is-active understudy.service understudy-publish.service understudy.socket"))
	}
	before := paired()
	senders := send(d.t, d.net.addr+":25")
	senders.flow()
	d.in("groupadd postfix; chgrp postfix /etc/understudy/policy.toml; chmod 640 /etc/understudy/policy.toml; dpkg -i /new.deb")
	senders.flow()
	d.group()
	mails, told := senders.end()
	d.has("upgraded", "understudy version; readlink /proc/$(systemctl show -P MainPID understudy.service)/exe", "understudy 0.1~git")
	if after := paired(); !slices.Equal(after, before) {
		d.t.Errorf("after the upgrade %q, before %q", after, before)
	}
	var queue []json.RawMessage
	if err := json.Unmarshal([]byte(d.in("understudy queue list --json")), &queue); err != nil || len(queue) != mails {
		d.t.Errorf("%d mails queued, %d were answered 250 (%v)", len(queue), mails, err)
	}
	d.has("the journal, as the publisher's unit may read it", `for i in $(seq 50); do
	logger -p mail.info -t postfix/smtpd 'connect from mail.example.net[192.0.2.1]'
	understudy parity shadow --json -c /etc/understudy/publish.toml >/tmp/shadow
	grep -q '"sessions": [1-9]' /tmp/shadow && grep -q '"log": "journal"' /tmp/shadow && break
	sleep 0.2
done
grep '"sessions": [1-9]' /tmp/shadow; cat /tmp/shadow`, `"log": "journal"`)
	d.push()
	d.t.Logf("%d mails, %d senders told to come again", mails, told)
}

// push has the package's unit push a list to the publisher.
func (d *debian) push() {
	d.t.Helper()
	cert, key := testmx.Certificate("mx1.example.org", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
	write(d.t, filepath.Join(d.root, "etc/understudy/push.crt"), string(cert))
	write(d.t, filepath.Join(d.root, "etc/understudy/push.key"), string(key))
	d.has("the lister", "test -x /usr/share/understudy/list-recipients && head -c 22 /usr/share/understudy/list-recipients", "#!/usr/bin/env python3")
	d.has("a push by the unit", `cat >>/etc/understudy/publish.toml <<.
push.listen = "127.0.0.1:9628"
push.domains = ["example.org"]
push.tls_cert = "/etc/understudy/push.crt"
push.tls_key = "/etc/understudy/push.key"
.
systemctl restart understudy-publish
understudy push token example.org -c /etc/understudy/publish.toml >/etc/understudy/push-token
mkdir -p /etc/systemd/system/understudy-push@example.org.service.d
cat >/etc/systemd/system/understudy-push@example.org.service.d/override.conf <<.
[Service]
Environment="PUSH=--url https://127.0.0.1:9628 --ca %d/ca"
LoadCredential=ca:/etc/understudy/push.crt
LoadCredential=token:/etc/understudy/push-token
ExecStart=
ExecStart=/bin/sh -c 'echo bob@%i >\$RUNTIME_DIRECTORY/list'
$(grep ExecStart=/usr/bin/understudy /usr/lib/systemd/system/understudy-push@.service)
.
systemctl daemon-reload
systemctl start understudy-push@example.org || journalctl -u understudy-push@example.org
systemctl enable --now understudy-push@example.org.timer
systemctl is-active understudy-push@example.org.timer
understudy push list -c /etc/understudy/publish.toml`, "example.org  1 ")
	d.in("systemctl disable --now understudy-push@example.org.timer; systemctl revert understudy-push@example.org.service; rm -r /etc/understudy/push*; sed -i /^push/d /etc/understudy/publish.toml; systemctl restart understudy-publish")
}
