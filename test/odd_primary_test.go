package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// sink is a running smtp-sink.
type sink struct {
	t    *testing.T
	dir  string
	stop func()
}

// startSink runs smtp-sink at addr, with more arguments, until stop or the
// test's end. It keeps each message in a file below dir.
func startSink(t *testing.T, addr, dir string, more ...string) *sink {
	t.Helper()
	if err := os.Chmod(dir, 0o777); err != nil { // it gives up root
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	args := append([]string{"-u", "nobody", "-d", filepath.Join(dir, "m.")}, more...)
	cmd := exec.CommandContext(ctx, "smtp-sink", append(args, addr, "100")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &sink{t: t, dir: dir}
	s.stop = func() {
		cancel()
		_ = cmd.Wait() // killed
		s.stop = func() {}
	}
	t.Cleanup(func() { s.stop() })
	eventually(t, 10*time.Second, "smtp-sink listens", func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return s
}

// subjects counts the messages in the sink's files by subject.
func (s *sink) subjects() map[string]int {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "m.*"))
	if err != nil {
		s.t.Fatal(err)
	}
	count := map[string]int{}
	for _, name := range names {
		for line := range strings.Lines(readFile(s.t, name)) {
			if subject, ok := strings.CutPrefix(line, "Subject: "); ok {
				count[strings.TrimSpace(subject)]++
			}
		}
	}
	return count
}

const backlog = 12

// backlogOf has a backlog accepted, of several clients.
func backlogOf(t *testing.T, s *secondary) *testmx.Ledger {
	t.Helper()
	books := new(testmx.Ledger)
	for i := range backlog {
		if r := sendAs(t, s.addr, fmt.Sprintf("192.0.2.%d", i%4+1), books); !strings.HasPrefix(r, "250 ") {
			t.Fatalf("not accepted: %s", r)
		}
	}
	return books
}

// TestSinkAsPrimary: smtp-sink offers XCLIENT and answers it as if it were NOOP.
// It gets the mail, and the operator is told what is missing.
func TestSinkAsPrimary(t *testing.T) {
	addr := testmx.FreeAddr()
	secondary := newSecondary(t, addr, policyFor("alice@example.org"), "")
	secondary.start()
	backlogOf(t, secondary)
	s := startSink(t, addr, tempDir(t))
	eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	if out := secondary.cli("queue", "list"); !strings.Contains(out, `primary takes us for the client of all mail: it answers XCLIENT with "250 2.0.0 Ok"`) {
		t.Errorf("queue list:\n%s", out)
	}
	if n := secondary.metric(`understudy_primary_without_xclient{route="primary"}`); n != 1 {
		t.Errorf("understudy_primary_without_xclient is %v", n)
	}
	secondary.stop()
	if n := strings.Count(readFile(t, secondary.path("log")), "takes us for the client of all mail"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	total := 0
	for subject, n := range s.subjects() {
		total += n
		if want := backlog / 4; n != want {
			t.Errorf("%q came %d times, want %d", subject, n, want)
		}
	}
	if total != backlog {
		t.Errorf("%d messages arrived, want %d", total, backlog)
	}
}

// TestUnfitPrimary: primaries that answer every session with a 5xx, at the
// greeting or at MAIL. Nothing is held for it, nothing reconnects without pause,
// queue show says what is wrong, and the backlog drains once that is mended.
func TestUnfitPrimary(t *testing.T) {
	for _, tt := range []struct{ name, reply, command string }{
		{"smtp-sink, greeting", "554 5.3.2", "CONNECT"},
		{"smtp-sink, 500 to MAIL", "500 5.3.0", "MAIL"},
		{"smtp-sink, 503 to MAIL", "503 5.5.1", "MAIL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := testmx.FreeAddr()
			secondary := newSecondary(t, addr, policyFor("alice@example.org"), "")
			secondary.start()
			backlogOf(t, secondary)
			unfit := startSink(t, addr, tempDir(t), "-B", tt.reply+" No", "-f", tt.command)
			wantUnfit(t, secondary, tt.reply)
			unfit.stop()
			s := startSink(t, addr, tempDir(t))
			eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
			secondary.stop()
			total := 0
			for _, n := range s.subjects() {
				total += n
			}
			if total != backlog {
				t.Errorf("%d messages arrived, want %d", total, backlog)
			}
		})
	}
	for _, tt := range []struct{ name, reply, main string }{
		{"Postfix, greeting", "554 5.7.1", "smtpd_delay_reject = no\nsmtpd_client_restrictions = reject"},
		{"Postfix wants TLS", "530 5.7.0", "smtpd_tls_security_level = encrypt\nsmtpd_tls_cert_file = %s\nsmtpd_tls_key_file = %s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			primary := newPostfix(t)
			secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "tls = \"off\"\n")
			if strings.Contains(tt.main, "%s") {
				secondary.certificate(t)
				tt.main = fmt.Sprintf(tt.main, secondary.path("tls.pem"), secondary.path("tls.key"))
			}
			secondary.start()
			books := backlogOf(t, secondary)
			primary.writeMain(tt.main)
			primary.start()
			wantUnfit(t, secondary, tt.reply)
			// Probes come each second, sessions with mail hardly.
			began, before := time.Now(), connects(t, primary)
			eventually(t, 20*time.Second, "five connections more", func() bool { return connects(t, primary) >= before+5 })
			if took := time.Since(began); took < 3*time.Second {
				t.Errorf("five connections in %v", took)
			}
			primary.reconfigure()
			eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
			secondary.stop()
			closeBooks(t, books, primary, 0)
		})
	}
}

// wantUnfit waits until the primary counts as down for a reply, and wants the
// whole backlog in line and queue show to name it.
func wantUnfit(t *testing.T, s *secondary, reply string) {
	t.Helper()
	var show string
	eventually(t, 30*time.Second, "queue show names the reply "+reply, func() bool {
		show = s.cli("queue", "show", s.queue()[0].ID)
		return strings.Contains(show, "with "+reply)
	})
	if !strings.Contains(show, "  route        primary, down for ") {
		t.Errorf("queue show:\n%s", show)
	}
	if up := s.metric(`understudy_primary_up{route="primary"}`); up != 0 {
		t.Errorf("understudy_primary_up is %v", up)
	}
	queue := s.queue()
	for _, m := range queue {
		if r := m.Recipients[0]; r.State != "queued" {
			t.Errorf("%s is %s: %s", m.ID, r.State, r.Reply)
		}
	}
	if len(queue) != backlog {
		t.Errorf("%d messages wait, want %d", len(queue), backlog)
	}
}

func connects(t *testing.T, p *postfix) int {
	t.Helper()
	return strings.Count(readFile(t, filepath.Join(p.dir, "mail.log")), ": connect from ")
}

// TestHeldByHeaderChecks: queue show names the rule by which the policy holds a
// message.
func TestHeldByHeaderChecks(t *testing.T) {
	primary := newPostfix(t, "header_checks = regexp:{{/^Subject: by 192/ HOLD look at it}}")
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	out, err := exec.Command(secondary.binary, "policy", "import", "postfix", "--config-dir", filepath.Join(primary.dir, "conf"), "--service", primary.addr,
		"-o", secondary.path("policy.json")).CombinedOutput()
	if err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	write(t, secondary.path("understudy.toml"), strings.Replace(readFile(t, secondary.path("understudy.toml")), "policy.toml", "policy.json", 1))
	secondary.start()
	if r := sendAs(t, secondary.addr, "192.0.2.1", nil); !strings.HasPrefix(r, "250 ") {
		t.Fatalf("not accepted: %s", r)
	}
	show := secondary.cli("queue", "show", secondary.queue()[0].ID)
	if !strings.Contains(show, "  state        held: by the policy: message header_checks ") {
		t.Errorf("queue show:\n%s", show)
	}
	secondary.stop()
}
