// Package test holds the whole-program tests: the real binary between real
// senders (smtp-source, swaks) and a real Postfix as the primary. Every test
// that sends mail keeps a ledger: each 250 is relayed or held, or it fails.
package test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// hostname is the secondary's name in every test; the Received field bears it.
const hostname = "mx2.example.org"

var binary string // the understudy under test, built once with the race detector

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "understudy-bin")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "understudy")
	build := exec.Command("go", "build", "-race", "-o", binary, "../cmd/understudy")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		panic(fmt.Sprintf("build understudy: %v", err))
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each subcommand takes a second longer
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// secondary is one understudy process with its files.
type secondary struct {
	t           *testing.T
	binary      string
	dir         string
	addr        string // SMTP
	metricsAddr string
	cmd         *exec.Cmd
	done        chan error
}

// newSecondary writes a configuration that relays to primary and enforces the
// policy (TOML); it leaves the process stopped. extra is TOML that comes last.
func newSecondary(t *testing.T, primary, policy, extra string) *secondary {
	t.Helper()
	return newSecondaryIn(t, "", primary, policy, extra)
}

// newSecondaryIn has a state directory of its own; "" is one beside the rest.
func newSecondaryIn(t *testing.T, state, primary, policy, extra string) *secondary {
	t.Helper()
	s := &secondary{t: t, binary: binary, dir: tempDir(t), addr: testmx.FreeAddr(), metricsAddr: testmx.FreeAddr()}
	if state == "" {
		state = s.path("state")
	}
	write(t, s.path("policy.toml"), policy)
	write(t, s.path("understudy.toml"), fmt.Sprintf(`hostname = %q
state_dir = %q
[smtp]
listen = [%q]
xclient_from = ["127.0.0.0/8"]
max_connections_per_client = 200
[policy]
file = "policy.toml"
[metrics]
listen = %q
[log]
format = "json"
[primary]
address = %q
max_connections = 5
probe_interval = "1s"
%s
`, hostname, state, s.addr, s.metricsAddr, primary, extra))
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.kill()
		}
		log, _ := os.ReadFile(s.path("log"))
		if i := bytes.Index(log, []byte("DATA RACE")); i >= 0 {
			t.Errorf("the race detector spoke:\n%s", log[i:min(len(log), i+4000)])
		}
		if t.Failed() {
			t.Logf("the end of understudy's log:\n%s", tail(log, 6000))
		}
	})
	return s
}

func (s *secondary) path(name string) string { return filepath.Join(s.dir, name) }

// start runs serve and returns when it is ready for mail.
func (s *secondary) start() {
	s.t.Helper()
	s.startWithin(20 * time.Second)
}

func (s *secondary) startWithin(limit time.Duration) {
	s.t.Helper()
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.binary, "serve", "-c", s.path("understudy.toml"))
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(s.cmd, s.done)
	eventually(s.t, limit, "understudy is ready", func() bool {
		resp, err := http.Get("http://" + s.metricsAddr + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return false
		}
		c, err := net.DialTimeout("tcp", s.addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// kill is SIGKILL: nothing gets a chance to clean up.
func (s *secondary) kill() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("kill understudy: %v", err)
	}
	<-s.done
	s.cmd = nil
}

// stop is SIGTERM and must end with exit code 0.
func (s *secondary) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.done:
		if err != nil {
			s.t.Errorf("understudy after SIGTERM: %v", err)
		}
	case <-time.After(40 * time.Second):
		s.t.Errorf("understudy did not end within 40 s of SIGTERM")
		s.kill()
	}
	s.cmd = nil
}

// cli runs a subcommand against this secondary's configuration.
func (s *secondary) cli(args ...string) string {
	s.t.Helper()
	args = append(args, "-c", s.path("understudy.toml"))
	out, err := exec.Command(s.binary, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("understudy %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// queued is a message as `queue list --json` shows it.
type queued struct {
	ID         string `json:"id"`
	Recipients []struct {
		Address, State, Reply, Rule string
	} `json:"recipients"`
}

func (s *secondary) queue() []queued {
	s.t.Helper()
	var all []queued
	if err := json.Unmarshal([]byte(s.cli("queue", "list", "--json")), &all); err != nil {
		s.t.Fatalf("queue list --json: %v", err)
	}
	return all
}

// metric reads one sample, by its full name with labels.
func (s *secondary) metric(name string) (value float64) {
	s.t.Helper()
	resp, err := http.Get("http://" + s.metricsAddr + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				s.t.Fatalf("%s: %v", line, err)
			}
			return value
		}
	}
	s.t.Fatalf("no sample %s", name)
	return 0
}

// message makes a message whose body has n octets of lines that a careless
// relay would change: leading dots, spaces at the end, 8-bit text, long lines.
func message(subject string, n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: %s\r\n\r\n", subject)
	lines := []string{".", "..", ".leading dot", "trailing space ", "\tGrüße, 世界", strings.Repeat("x", 900), "", rand.Text()}
	body := 0
	for i := 0; body < n; i++ {
		line := lines[i%len(lines)] + "\r\n"
		if len(line) > n-body {
			line = strings.Repeat("z", n-body)
		}
		b.WriteString(line)
		body += len(line)
	}
	if !strings.HasSuffix(b.String(), "\r\n") {
		b.WriteString("\r\n")
	}
	return b.String()
}
