// Package listertest starts real database servers for tests: PostgreSQL,
// MariaDB and OpenLDAP, each with data of its own in a temporary directory, on
// loopback and a Unix socket, for the length of one test. The tests run as
// root, as a server's own user can't be taken otherwise. A server that isn't
// installed fails the test (test/install-peers installs them).
package listertest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// Password is that of every user; it has what quoting goes wrong with.
const Password = `s3cret' "\pass=word%s`

// startTimeout bounds the start of a server.
const startTimeout = 15 * time.Second

// Server is one that runs.
type Server struct {
	Dir     string // holds the Unix socket, and all that the server keeps
	Socket  string
	Port    int         // on 127.0.0.1
	CA      string      // PEM file of the authority that signed the server's certificate for 127.0.0.1
	also    func() bool // what else must hold before it is ready
	script  func(t testing.TB, db, sql string)
	mysql   bool
	process *exec.Cmd
	ended   chan struct{} // closed when the process has ended
}

// Address is host and port.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// directory is a temporary one that name owns. Its path is short, as a Unix
// socket's must be.
func directory(t testing.TB, name string) (dir string, owner *syscall.Credential) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("database servers want users of their own: run the tests as root, as .ci/run does")
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("%v: run test/install-peers", err)
	}
	dir, err = os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// program finds one on the path, in /usr/sbin or by a pattern.
func program(t testing.TB, name, pattern string) string {
	t.Helper()
	if found, _ := filepath.Glob(pattern); len(found) > 0 {
		return found[len(found)-1]
	}
	p, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s isn't installed: run test/install-peers", name)
	}
	return p
}

// run runs a command to its end, as owner unless that is nil.
func run(t testing.TB, owner *syscall.Credential, dir, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, out)
	}
	return string(out)
}

// start starts a server and waits until it answers at its port and socket. A
// port that somebody takes in between makes it end at once; then another is
// tried.
func (s *Server) start(t testing.TB, owner *syscall.Credential, command func(port int) []string) {
	t.Helper()
	for try := range 3 {
		s.Port = int(netip.MustParseAddrPort(testmx.FreeAddr()).Port())
		argv := command(s.Port)
		log := &bytes.Buffer{}
		s.process = exec.Command(argv[0], argv[1:]...)
		s.process.Dir = s.Dir
		s.process.Stdout, s.process.Stderr = log, log
		s.process.SysProcAttr = &syscall.SysProcAttr{Credential: owner, Pdeathsig: syscall.SIGKILL}
		s.ended = make(chan struct{})
		started := make(chan error)
		go func() {
			runtime.LockOSThread() // Pdeathsig comes when the thread ends that started the process
			defer runtime.UnlockOSThread()
			err := s.process.Start()
			if started <- err; err == nil {
				s.process.Wait()
			}
			close(s.ended)
		}()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		err := s.ready()
		if err == nil {
			t.Cleanup(func() {
				select {
				case <-s.ended:
					t.Logf("%s had ended: %v", filepath.Base(argv[0]), s.process.ProcessState)
				default:
					s.Stop()
				}
				if t.Failed() {
					said := log.Bytes()
					t.Logf("%s said at last:\n%s", filepath.Base(argv[0]), said[max(0, len(said)-2000):])
				}
			})
			return
		}
		s.Stop()
		if try == 2 {
			t.Fatalf("%s: %v\n%s", filepath.Base(argv[0]), err, log)
		}
	}
}

func (s *Server) ready() error {
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		up := s.also == nil || s.also()
		for network, address := range map[string]string{"tcp": s.Address(), "unix": s.Socket} {
			c, err := net.Dial(network, address)
			if err == nil {
				c.Close()
			}
			up = up && err == nil
		}
		if up {
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("has ended")
		case <-deadline.C:
			return fmt.Errorf("doesn't answer within %v", startTimeout)
		case <-tick.C:
		}
	}
}

// Stop ends the server. A second call does nothing.
func (s *Server) Stop() {
	s.process.Process.Signal(syscall.SIGINT) // PostgreSQL: at once, in order
	s.process.Process.Signal(syscall.SIGTERM)
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	select {
	case <-s.ended:
	case <-patience.C:
		s.process.Process.Kill()
		<-s.ended
	}
}

func write(t testing.TB, owner *syscall.Credential, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if owner != nil {
		if err := os.Chown(name, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return name
}
