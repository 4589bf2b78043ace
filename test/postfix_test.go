package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// postfix is a real Postfix with a configuration, queue and log of its own on
// a loopback port. It delivers to one maildir, which the test reads. Needs
// root, as Postfix's master does.
type postfix struct {
	t    *testing.T
	dir  string
	addr string
	run  *testmx.Daemon // nil while it is stopped
}

const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = primary.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
maillog_file = %[1]s/mail.log
maillog_file_prefixes = /
virtual_mailbox_domains = example.org
virtual_mailbox_maps = static:all/
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_limit = 0
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
local_header_rewrite_clients =
message_size_limit = 20480000
smtpd_client_connection_count_limit = 0
`

// newPostfix writes the configuration, extra lines last, and leaves Postfix
// stopped.
func newPostfix(t *testing.T, extra ...string) *postfix {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a real Postfix is the primary here, and its master needs root: run the tests as root, as .ci/run does")
	}
	if _, err := exec.LookPath("postfix"); err != nil {
		t.Fatal("Postfix is not installed: apt-get install postfix (see .ci/run)")
	}
	p := &postfix{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	for _, d := range []string{"conf", "queue", "data", "mail"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(p.dir, "mail"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	p.writeMain(extra...)
	write(t, filepath.Join(p.dir, "conf/master.cf"), fmt.Sprintf(testmx.MasterCF, p.addr))
	if err := testmx.CheckPostfix(p.dir, filepath.Join(p.dir, "conf")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.dir, "mail.log"))
			t.Logf("the end of Postfix's log:\n%s", tail(log, 4000))
		}
	})
	return p
}

func (p *postfix) writeMain(extra ...string) {
	p.t.Helper()
	write(p.t, filepath.Join(p.dir, "conf/main.cf"), testmx.Override(fmt.Sprintf(mainCF, p.dir), strings.Join(extra, "\n")+"\n"))
}

// start brings the primary up and returns when it listens.
func (p *postfix) start() {
	p.t.Helper()
	run, err := testmx.StartDaemon(p.addr, nil, testmx.PostfixCommand(filepath.Join(p.dir, "conf"))...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.run = run
}

// kill ends Postfix and every process of it at once, as a power cut would.
func (p *postfix) kill() {
	if p.run == nil {
		return
	}
	if err := p.run.Kill(); err != nil {
		p.t.Errorf("kill Postfix: %v", err)
	}
	p.run = nil
	// A killed master leaves its lock file's pid behind; the lock itself is gone.
	os.Remove(filepath.Join(p.dir, "queue/pid/master.pid"))
}

// delivery is one file of the primary's maildir.
type delivery struct {
	to      string // X-Original-To, the recipient as it was relayed
	content []byte // what followed our Received field, line ends as in the maildir: LF
}

// deliveries reads the maildir. The content begins behind the Received field
// that names hostname, which is ours.
func (p *postfix) deliveries(hostname string) []delivery {
	p.t.Helper()
	var all []delivery
	dir := filepath.Join(p.dir, "mail/all/new")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, parseDelivery(p.t, b, hostname))
	}
	return all
}

// parseDelivery cuts off the fields that the primary and Understudy put
// before the message.
func parseDelivery(t *testing.T, b []byte, hostname string) delivery {
	t.Helper()
	var d delivery
	if _, after, ok := bytes.Cut(b, []byte("X-Original-To: ")); ok {
		to, _, _ := bytes.Cut(after, []byte("\n"))
		d.to = string(to)
	}
	by := bytes.Index(b, []byte("by "+hostname+" "))
	if by < 0 {
		t.Fatalf("a delivered message lacks our Received field:\n%s", b[:min(len(b), 1000)])
	}
	rest := b[by:]
	for { // the field ends at the first line end that no white space follows
		_, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			t.Fatalf("a delivered message ends within our Received field")
		}
		if len(after) == 0 || after[0] != ' ' && after[0] != '\t' {
			d.content = after
			return d
		}
		rest = after
	}
}

// settle waits until Postfix's own queue is empty.
func (p *postfix) settle() {
	p.t.Helper()
	eventually(p.t, time.Minute, "Postfix's queue is empty", func() bool {
		for _, queue := range []string{"maildrop", "incoming", "active", "deferred"} {
			n := 0
			err := filepath.WalkDir(filepath.Join(p.dir, "queue", queue), func(_ string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return nil // a file that went away meanwhile is what we wait for
				}
				// Without the x bit the file is unfinished: a killed smtpd left it, and it never counts.
				if info, err := d.Info(); err == nil && info.Mode()&0o100 != 0 {
					n++
				}
				return nil
			})
			if err != nil || n > 0 {
				return false
			}
		}
		return true
	})
}

// firstNumber is the number that smtp-source -N puts before its first
// recipient.
const firstNumber = 1

// smtpSource sends n messages with Postfix's own load generator over the
// given number of parallel sessions, with the file's content, to 1rcpt, 2rcpt
// and so on.
func smtpSource(t *testing.T, addr, file, rcpt string, n, sessions int) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "smtp-source", "-N", "-m", strconv.Itoa(n), "-s", strconv.Itoa(sessions),
		"-f", "sender@sender.example", "-t", rcpt, "-M", "client.sender.example", "-F", file, addr)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		return fmt.Errorf("smtp-source: %v\n%s", err, out)
	}
	return nil
}

// swaks plays one session with the Swiss army knife for SMTP and returns its
// transcript and exit code.
func swaks(t *testing.T, addr string, args ...string) (transcript string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "swaks", append([]string{"--server", addr, "--helo", "client.sender.example"}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		code = exit.ExitCode()
	default:
		t.Fatalf("swaks: %v", err)
	}
	return string(out), code
}

// tempDir is like t.TempDir, but other users may pass through it: Postfix's
// daemons drop root.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "understudy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// eventually polls until ok or the time is over; processes of their own have
// no channel to wait on. A busy machine gets two minutes for anything.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	limit = max(limit, 2*time.Minute)
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
