package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// pusher is whoever pushes a list of example.org's recipients somewhere.
type pusher struct {
	t          *testing.T
	dir        string
	addr, cert string // the server's
	token      string // its file
}

// newPusher makes a certificate for the server at addr, host:port, and returns the
// section [push] for it.
func newPusher(t *testing.T, addr string) (p *pusher, section string) {
	t.Helper()
	p = &pusher{t: t, dir: tempDir(t), addr: addr}
	host, _, _ := net.SplitHostPort(addr)
	cert, key := testmx.Certificate(hostname, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(host)} })
	p.cert, p.token = filepath.Join(p.dir, "cert.pem"), filepath.Join(p.dir, "token")
	write(t, p.cert, string(cert))
	write(t, filepath.Join(p.dir, "key.pem"), string(key))
	return p, fmt.Sprintf("[push]\nlisten = %q\ndomains = [\"example.org\"]\ntls_cert = %q\ntls_key = %q\n", addr, p.cert, filepath.Join(p.dir, "key.pem"))
}

// authorize takes a token from a process, by its command line.
func (p *pusher) authorize(cli func(...string) string) {
	write(p.t, p.token, cli("push", "token", "example.org"))
}

// push pushes, and wants that exit status.
func (p *pusher) push(want int, list ...string) (out string) {
	p.t.Helper()
	write(p.t, filepath.Join(p.dir, "list"), strings.Join(list, "\n"))
	cmd := exec.Command(binary, "push", "example.org", filepath.Join(p.dir, "list"), "--url", "https://"+p.addr, "--token-file", p.token, "--ca", p.cert, "--tries", "1", "--cache", filepath.Join(p.dir, "cache"))
	text, err := cmd.CombinedOutput()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		p.t.Fatal(err)
	}
	if code != want {
		p.t.Errorf("understudy push ends with %d, want %d:\n%s", code, want, text)
	}
	return string(text)
}

// begin opens a PUT of a list and sends half of it.
func (p *pusher) begin(list []string) io.Closer {
	p.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(p.t, p.cert)))
	c, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: roots})
	if err != nil {
		p.t.Fatal(err)
	}
	text := strings.Join(list, "\n") + "\n"
	req, err := http.NewRequest("PUT", "https://"+p.addr+"/v1/recipients/example.org", strings.NewReader(text))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(readFile(p.t, p.token)))
	var whole bytes.Buffer
	if err := req.Write(&whole); err != nil {
		p.t.Fatal(err)
	}
	if _, err := c.Write(whole.Bytes()[:whole.Len()-len(text)/2]); err != nil {
		p.t.Fatal(err)
	}
	return c
}

// TestPushPublisher pushes to a publisher whose policy is a Postfix's, then a file, and
// has two secondaries follow: a mass deletion is decided once on each, half a list
// when the publisher dies is none, a stale list refuses nobody for good.
func TestPushPublisher(t *testing.T) {
	far := newFarAway(t)
	p := newPublisher(t, far)
	pusher, section := newPusher(t, far.addr+":9628")
	state := filepath.Join(p.dir, "state/push")
	list := filepath.Join(state, "example.org.list")
	conf := readFile(t, p.conf()) + section
	write(t, p.conf(), conf+fmt.Sprintf("[[source]]\nname = \"pushed\"\ntype = \"file\"\npath = %q\n", list))
	p.start() // a source is missing: it says so, and waits
	pusher.authorize(p.cli)
	one, two := newFollowing(t, p.postfix.addr), newFollowing(t, p.postfix.addr)
	pair(t, p, one)
	line, _, _ := strings.Cut(p.cli("invite", "mx3"), "\n")
	two.cli(strings.Fields(line)[1:]...)
	all := numbered("pushed%d@example.org", 30)
	pusher.push(0, all...)
	one.start()
	two.start()
	both := func(to string, code int) {
		t.Helper()
		one.wantReply(to, code)
		two.wantReply(to, code)
	}
	both("pushed29@example.org", 250)
	both("alice@example.org", 250) // Postfix's own
	both("nobody@example.org", 550)

	// A mass deletion is staged where it takes effect, not on the publisher as well.
	pusher.push(0, all[:5]...)
	both("pushed29@example.org", 450)
	both("pushed4@example.org", 250)
	if out := p.cli("push", "list"); strings.Contains(out, "approve") || !strings.Contains(out, "in force") {
		t.Error(out)
	}
	one.cli("policy", "approve", fmt.Sprint(one.sync().Version))
	one.wantReply("pushed29@example.org", 550)
	two.wantReply("pushed29@example.org", 450)
	two.cli("policy", "reject", fmt.Sprint(two.sync().Version))
	two.wantReply("pushed29@example.org", 250)
	pusher.push(0, all...) // it was a mistake
	both("pushed29@example.org", 250)

	// The publisher dies in the middle of a list.
	c := pusher.begin(append(slices.Clone(all), "half@example.org"))
	eventually(t, 20e9, "the list is being received", func() bool {
		begun, _ := filepath.Glob(filepath.Join(state, ".tmp-*"))
		return len(begun) > 0
	})
	p.kill()
	c.Close()
	p.start()
	if left, _ := filepath.Glob(filepath.Join(state, ".tmp-*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	pusher.push(0, append(slices.Clone(all), "whole@example.org")...)
	both("whole@example.org", 250)
	both("half@example.org", 550)

	// A list that grows stale, as the store marks it.
	unsure := filepath.Join(state, "example.org.unsure")
	write(t, unsure, "stale\n")
	both("nobody@example.org", 450)
	both("pushed29@example.org", 250)
	if err := os.Remove(unsure); err != nil {
		t.Fatal(err)
	}
	both("nobody@example.org", 550)

	// The same with a policy file.
	p.kill()
	file := filepath.Join(p.dir, "policy.toml")
	write(t, file, fmt.Sprintf("domains = [\"example.org\"]\nrecipients = [\"alice@example.org\"]\nrecipients_pushed = %q\n", state))
	before, rest, _ := strings.Cut(conf, "[policy]\n")
	_, rest, _ = strings.Cut(rest, "[[source]]\n")
	_, rest, _ = strings.Cut(rest, "path = \"bulk\"\n")
	write(t, p.conf(), before+fmt.Sprintf("[policy]\nfile = %q\n", file)+rest)
	p.start()
	pusher.push(0, append(slices.Clone(all), "file@example.org")...)
	both("file@example.org", 250)
	for _, s := range []*secondary{one, two} {
		s.cli("policy", "approve", fmt.Sprint(s.sync().Version)) // Postfix's local users are gone
	}
	both("nobody@example.org", 550)
	pusher.push(0, all[:5]...)
	both("pushed29@example.org", 450)
	both("nobody@example.org", 550) // they never were
	one.cli("policy", "approve", fmt.Sprint(one.sync().Version))
	one.wantReply("pushed29@example.org", 550)
	one.stop()
	two.stop()
}

// TestPushDiskFull pushes a list for which there is no room: it is refused, the one
// before stays, nothing is left over, and the next is taken once there is room.
func TestPushDiskFull(t *testing.T) {
	state := filepath.Join(tempDir(t), "mnt")
	mount(t, state, "-t", "tmpfs", "-o", "size=9m,mode=0700", "tmpfs")
	pusher, section := newPusher(t, testmx.FreeAddr())
	s := newSecondaryIn(t, filepath.Join(state, "state"), "127.0.0.1:1", "domains = [\"example.org\"]\nrecipients_pushed = \""+state+"/state/push\"\n", section+"[queue]\nmin_free = \"0KiB\"\nmin_free_inodes = 0\n")
	s.start()
	pusher.authorize(s.cli)
	s.wantReply("pushed1@example.org", 450)
	pusher.push(0, numbered("pushed%d@example.org", 1000)...)
	s.wantReply("pushed999@example.org", 250)
	if out := pusher.push(1, numbered("pushed%d@example.org", 400_000)...); !strings.Contains(out, "can't be stored now") {
		t.Error(out)
	}
	if left, _ := filepath.Glob(filepath.Join(state, "state/push/.tmp-*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	s.wantReply("pushed999@example.org", 250)
	s.wantReply("pushed1000@example.org", 550)
	pusher.push(0, numbered("pushed%d@example.org", 1001)...)
	s.wantReply("pushed1000@example.org", 250)
	s.kill()
	s.start()
	s.wantReply("pushed1000@example.org", 250)
	s.stop()
}
