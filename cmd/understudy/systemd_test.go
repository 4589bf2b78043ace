package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const unitConfig = `hostname = "mx2.example.org"
state_dir = "state"
[smtp]
listen = ["192.0.2.1:25"]
[primary]
address = "127.0.0.1:1"
[policy]
file = "policy.toml"
[metrics]
listen = ""
[queue]
min_free = "1MiB"
`

// serveDir makes a directory with a configuration and a policy.
func serveDir(t *testing.T, conf string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"understudy.toml": conf,
		"policy.toml":     "domains = [\"example.org\"]\nrecipients = [\"alice@example.org\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestUnderSystemd plays systemd: it passes the listening socket, and reads
// what the daemon notifies, from its readiness to its stop.
func TestUnderSystemd(t *testing.T) {
	dir := serveDir(t, unitConfig)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "understudy")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec ./understudy serve -c understudy.toml`)
	cmd.Dir, cmd.Stderr = dir, t.Output()
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=150000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()

	expect(t, notify, "READY=1")
	greet(t, l.Addr().String())
	expect(t, notify, "WATCHDOG=1")
	expect(t, notify, "WATCHDOG=1")
	sendSignal(t, cmd, syscall.SIGHUP)
	expect(t, notify, "RELOADING=1")
	expect(t, notify, "READY=1")
	sendSignal(t, cmd, syscall.SIGTERM)
	expect(t, notify, "STOPPING=1")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(patience):
		t.Error("still there after SIGTERM")
	}
	// The socket is systemd's: whoever connects now waits for the next start.
	c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
	if err != nil {
		t.Errorf("refused while the service is down: %v", err)
	} else {
		c.Close()
	}
}

func sendSignal(t *testing.T, cmd *exec.Cmd, s os.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// expect reads notifications until one has the wanted line.
func expect(t *testing.T, notify *net.UnixConn, want string) {
	t.Helper()
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for {
		n, err := notify.Read(b)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		for line := range strings.SplitSeq(string(b[:n]), "\n") {
			if line == want {
				return
			}
		}
	}
}

func greet(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); !strings.HasPrefix(line, "220 mx2.example.org ") {
		t.Errorf("banner: got %q, %v", line, err)
	}
}
