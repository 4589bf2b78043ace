package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
)

// TestWatch watches an outage end: the view says that the primary is down,
// then how fast the queue drains and for how long yet, and the command ends
// when nothing waits.
func TestWatch(t *testing.T) {
	primary := &demo.Primary{}
	startAgain(t, primary)
	s := newSecondary(t, primary.Addr(), policyFor("alice@example.org"), "[queue]\nmin_free = \"1MiB\"\n")
	s.binary = plainBinary(t)
	primary.Stop()
	const messages = 3000
	fillQueue(t, s.path("state/queue"), messages)
	s.start()
	cmd := exec.Command(s.binary, "watch", "--until-empty", "--json", "--interval", "100ms", "-c", s.path("understudy.toml"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = &bytes.Buffer{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	type view struct {
		Messages, Accepted int
		Waiting            bool
		Out                float64  `json:"out_per_second"`
		Empty              *float64 `json:"empty_after_seconds"`
		Routes             []struct {
			Up        bool
			LastError string `json:"last_error"`
		}
		Destinations []struct{ Sessions int }
	}
	var v view
	sawDown, sawRate := false, false
	for d := json.NewDecoder(out); d.More(); {
		v = view{}
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if !sawDown && !v.Routes[0].Up && v.Routes[0].LastError != "" {
			sawDown = true
			startAgain(t, primary)
		}
		sawRate = sawRate || v.Out > 0 && v.Empty != nil && v.Routes[0].Up && v.Destinations[0].Sessions > 0
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, cmd.Stderr)
	}
	if !sawDown || !sawRate || v.Waiting || v.Messages != 0 || v.Accepted != messages {
		t.Errorf("down seen: %v, draining seen: %v, in the end %+v", sawDown, sawRate, v)
	}
	watchOnTerminal(t, s)
}

// watchOnTerminal looks at the picture in a real terminal emulator, as it is, after
// the terminal became smaller, and after the watch was interrupted.
func watchOnTerminal(t *testing.T, s *secondary) {
	t.Helper()
	tmux := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("tmux", append([]string{"-S", s.path("tmux")}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v\n%s (test/install-peers installs tmux)", args, err, out)
		}
		return string(out)
	}
	tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "env", "LC_ALL=C.UTF-8", "sh", "-c", "trap : INT; "+s.binary+" watch --interval 200ms -c "+s.path("understudy.toml")+"; exec sleep 600")
	t.Cleanup(func() { tmux("kill-server") })
	screen := func(width, height int, wants ...string) {
		t.Helper()
		var shown string
		eventually(t, 20*time.Second, fmt.Sprintf("a picture with %q", wants), func() bool {
			shown = tmux("capture-pane", "-p")
			for _, w := range wants {
				if !strings.Contains(shown, w) {
					return false
				}
			}
			return true
		})
		for i, line := range strings.Split(strings.TrimRight(shown, "\n"), "\n") {
			if len([]rune(line)) > width || i >= height {
				t.Errorf("row %d beyond %d×%d: %q", i, width, height, line)
			}
		}
	}
	screen(80, 24, "Understudy mx2.example.org", "Queue     0 messages", "nothing waits", "primary   up for", "\nWaiting   ", "\nLeaving   ")
	tmux("resize-window", "-x", "50", "-y", "12")
	screen(50, 12, "Understudy mx2.example.org", "Queue     0 messages")
	tmux("send-keys", "C-c")
	screen(50, 12, "Queue     0 messages")
	eventually(t, 20*time.Second, "the charts have gone with the picture", func() bool { return !strings.Contains(tmux("capture-pane", "-p"), "Understudy mx2") })
	once, err := exec.Command(s.binary, "watch", "--once", "--interval", "100ms", "-c", s.path("understudy.toml")).Output()
	if err != nil || !strings.Contains(string(once), "nothing waits\n") || strings.Contains(string(once), "\x1b") {
		t.Errorf("--once: %v %q", err, once)
	}
}
