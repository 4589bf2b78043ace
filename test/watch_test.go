package test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

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
	cmd := exec.Command(s.binary, "queue", "watch", "--until-empty", "--json", "--interval", "100ms", "-c", s.path("understudy.toml"))
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
	// On a terminal it is redrawn in place.
	screen, err := exec.Command("script", "-qec", s.binary+" queue watch --until-empty -c "+s.path("understudy.toml"), "/dev/null").Output()
	if err != nil || !strings.Contains(string(screen), "nothing waits\x1b[K\r\n") {
		t.Errorf("%v: on a terminal %q", err, screen)
	}
}
