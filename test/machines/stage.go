package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stage is the machines: mx1, mx2 and mx3, at 10.0.0.1 to 3, and mx, the primary,
// at 10.0.0.10. They meet on a bridge in a network namespace where this process
// lives, too.
type stage struct {
	dir      string
	page     map[string][]block
	began    time.Time
	machines []*machine
	primary  *machine
	sent     map[string]bool // by Message-ID: what was answered 250
}

type machine struct {
	s    *stage
	n    int // 10 is the primary
	name string
	boot *exec.Cmd
	pid  string // of its first process
}

func (m *machine) ip() string { return fmt.Sprintf("10.0.0.%d", m.n) }
func (m *machine) ns() string { return fmt.Sprintf("usmachine%d", m.n) }

// bash runs a script here.
func bash(script string, args ...string) (string, error) {
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", script, "bash"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w\n%s\n%s", err, script, out.String())
	}
	return out.String(), err
}

// do runs a script on the machine, as its root.
func (m *machine) do(script string) (string, error) {
	out, err := bash(`exec nsenter -t "$1" -a env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -euo pipefail -c "cd; $2" 2>&1`, m.pid, script)
	if err != nil {
		err = fmt.Errorf("on %s: %w", m.name, err)
	}
	return out, err
}

// retry does it until it succeeds.
func retry(within time.Duration, do func() error) error {
	end := time.After(within)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-end:
			return fmt.Errorf("not within %v: %w", within, err)
		case <-tick.C:
		}
	}
}

// shows retries a script on the machine until what it prints has all of the words.
func (m *machine) shows(within time.Duration, script string, words ...string) error {
	return retry(within, func() error {
		out, err := m.do(script)
		for _, w := range words {
			if !strings.Contains(out, w) {
				err = errors.Join(err, fmt.Errorf("on %s: %s: lacks %q:\n%s", m.name, script, w, out))
			}
		}
		return err
	})
}

func (m *machine) paste(script string) error {
	began := time.Now()
	out, err := m.do(script)
	fmt.Printf("-- %s, %v: %s\n", m.name, time.Since(began).Round(100*time.Millisecond), first(script))
	if log, e := os.OpenFile(filepath.Join(m.s.dir, "pasted.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); e == nil {
		fmt.Fprintf(log, "#### %s\n%s----\n%s\n", m.name, script, out)
		log.Close()
	}
	return err
}

// first is the first line of a script that tells something.
func first(script string) string {
	script = strings.TrimPrefix(script, ". /etc/fleet/env\n")
	line, _, _ := strings.Cut(script, "\n")
	return line
}

// prepare makes what all machines share: a Debian, and the packages that the page
// installs, as a repository.
func prepare(dir string) error {
	_, err := bash(`mkdir -p "$1" && cd "$1" && rm -f pasted.log
[ -e base.ok ] || {
	rm -rf base repo
	debootstrap --variant=minbase --include=ca-certificates,systemd,systemd-sysv,dbus,iproute2,openssh-server,openssh-client bookworm base http://deb.debian.org/debian
	chroot base apt-get install -q -y --download-only --no-install-recommends patroni etcd-server etcd-client postgresql postfix dnsmasq iptables
	chroot base apt-get install -q -y --download-only patroni etcd-server etcd-client postgresql
	mkdir base/repo && mv base/var/cache/apt/archives/*.deb base/repo && mv base/repo . && mkdir base/repo
	(cd repo && dpkg-scanpackages -m . /dev/null 2>/dev/null | gzip >Packages.gz)
	rm -rf base/var/lib/apt/lists/*
	echo 'deb [trusted=yes] file:/repo ./' >base/etc/apt/sources.list
	mkdir -m 700 -p base/root/.ssh
	ssh-keygen -q -t ed25519 -N '' -f base/root/.ssh/id_ed25519
	cp base/root/.ssh/id_ed25519.pub base/root/.ssh/authorized_keys
	printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' >base/root/.ssh/config
	echo force-unsafe-io >base/etc/dpkg/dpkg.cfg.d/90try
	touch base.ok
}
for n in 1 2 3; do echo 10.0.0.$n mx$n.example.org; done >hosts
printf '127.0.0.1 localhost\n10.0.0.10 mx.example.org\n' >>hosts
cp hosts base/etc/hosts
echo nameserver 10.0.0.10 >base/etc/resolv.conf`, dir)
	if err != nil {
		return err
	}
	for _, version := range []string{"0.0.1", "0.0.2"} {
		_, err := bash(`[ -e "$1/understudy_$2_amd64.deb" ] || {
	systemd/deb/root amd64 $2 "$(git log -1 --format=%cD)"
	ARCH=amd64 VERSION=$2 go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2 package -f systemd/deb/nfpm.yaml -p deb -t "$1"
}`, dir, version)
		if err != nil {
			return err
		}
	}
	return nil
}

// boot makes the network and starts all machines.
func (s *stage) boot() error {
	runtime.LockOSThread() // its namespace is another one from here
	if _, err := bash(`ip netns del usmachines 2>/dev/null || true; ip netns add usmachines`); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	if _, err := bash(`ip link set lo up; ip link add br0 type bridge; ip addr add 10.0.0.254/24 dev br0; ip link set br0 up`); err != nil {
		return err
	}
	for _, n := range []int{10, 1, 2, 3} {
		m := &machine{s: s, n: n, name: fmt.Sprintf("mx%d.example.org", n)}
		if n == 10 {
			m.name, s.primary = "mx.example.org", m
		} else {
			s.machines = append(s.machines, m)
		}
		if err := m.wire(); err != nil {
			return err
		}
		if err := m.up(); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) enter() error {
	f, err := os.Open("/run/netns/usmachines")
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, e := syscall.RawSyscall(308, f.Fd(), syscall.CLONE_NEWNET, 0) // setns
	if e != 0 {
		return e
	}
	return nil
}

func (m *machine) wire() error {
	_, err := bash(`ip netns del "$1" 2>/dev/null || true
ip netns add "$1"
ip link add "$1" type veth peer name host0 netns "$1"
ip link set "$1" master br0 up
ip -n "$1" addr add "$2/24" dev host0
ip -n "$1" link set lo up
ip -n "$1" link set host0 up`, m.ns(), m.ip())
	return err
}

func (m *machine) root() string { return filepath.Join(m.s.dir, m.name) }

// up boots the machine, with what its disk has; a new one has a bare Debian.
func (m *machine) up() error {
	_, err := bash(`mkdir -p "$1/disk" "$1/work" "$1/root"
mountpoint -q "$1/root" || mount -t overlay overlay -o "lowerdir=$2/base,upperdir=$1/disk,workdir=$1/work" "$1/root"
echo "$3" >"$1/root/etc/hostname"`, m.root(), m.s.dir, m.name)
	if err != nil {
		return err
	}
	log, err := os.Create(m.root() + ".boot")
	if err != nil {
		return err
	}
	defer log.Close()
	m.boot = exec.Command("systemd-nspawn", "--keep-unit", "--register=no", "--resolv-conf=off", "--network-namespace-path=/run/netns/"+m.ns(),
		"--bind="+filepath.Join(m.s.dir, "repo")+":/repo", "--bind="+m.s.dir+":/stage", "-D", m.root()+"/root", "--boot")
	m.boot.Stdout, m.boot.Stderr = log, log
	m.boot.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a SIGINT is for us alone
	if err := m.boot.Start(); err != nil {
		return err
	}
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", m.boot.Process.Pid)
	return retry(time.Minute, func() error {
		b, err := os.ReadFile(children)
		if m.pid = strings.TrimSpace(string(b)); err != nil || m.pid == "" {
			return fmt.Errorf("%s doesn't boot: %v", m.name, err)
		}
		out, _ := m.do("systemctl is-system-running || true; umount /proc/sys/kernel/random/boot_id 2>/dev/null && systemctl restart systemd-journald || true")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return fmt.Errorf("%s: %s", m.name, state)
		}
		return nil
	})
}

// cut takes the machine's power; wiped, its disk is empty after it.
func (m *machine) cut(wiped bool) error {
	if m.boot != nil {
		if _, err := bash(`kill -9 "$1"`, m.pid); err != nil {
			return err
		}
		_ = m.boot.Wait()
		m.boot = nil
	}
	if !wiped {
		return nil
	}
	_, err := bash(`umount "$1/root"; rm -rf "$1"`, m.root())
	return err
}

// link sets the machine's network up or down.
func (m *machine) link(state string) error {
	_, err := bash(`ip link set "$1" "$2"`, m.ns(), state)
	return err
}

func (s *stage) end() {
	for _, m := range append(s.machines, s.primary) {
		if m != nil {
			_ = m.cut(true)
			_, _ = bash(`ip netns del "$1"`, m.ns())
		}
	}
	_, _ = bash(`ip netns del usmachines`)
}
