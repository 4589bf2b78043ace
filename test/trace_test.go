package test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lastLine is what parity comes to; a failure is told after it.
func lastLine(out string) string {
	out = strings.TrimSuffix(out, "understudy: the primary and the policy decide differently\n")
	out = strings.TrimSuffix(out, "\n")
	return out[strings.LastIndex(out, "\n")+1:]
}

// TestTrace records sessions with a real Postfix, messages to its test
// recipient among them, and plays them when it is gone: the imported policy
// comes to the same result, another one is told from it.
func TestTrace(t *testing.T) {
	p := newPostfix(t, "smtpd_authorized_xclient_hosts = 127.0.0.0/8", "smtpd_peername_lookup = no",
		"virtual_mailbox_maps = inline:{alice@example.org=all/, bob@example.org=all/}", "local_recipient_maps = inline:{root=x}")
	dir := tempDir(t)
	run := func(args ...string) (out string, code int) {
		t.Helper()
		cmd := exec.Command(binary, args...)
		cmd.Dir = dir
		b, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(b), cmd.ProcessState.ExitCode()
	}
	p.start()
	if out, code := run("policy", "import", "postfix", "--config-dir", filepath.Join(p.dir, "conf"), "--service", p.addr, "-o", "policy.json"); code != 0 {
		t.Fatal(out)
	}
	live, code := run("parity", "policy.json", "--primary", p.addr, "--sessions", "200", "--seed", "4", "--dns", "127.0.0.1:1", "--data", "alice@example.org", "--record", "trace")
	verdict := lastLine(live) // a few address forms are read otherwise: docs/PARITY-ADDRESSES.md
	if code > 1 || !strings.HasPrefix(verdict, "sessions 200, decisions ") {
		t.Fatalf("exit code %d\n%s", code, live)
	}
	if !strings.Contains(readFile(t, filepath.Join(dir, "trace")), "queued as") {
		t.Error("no message is in the trace")
	}
	p.kill()
	later, again := run("parity", "policy.json", "--trace", "trace", "--dns", "127.0.0.1:1")
	if again != code || lastLine(later) != verdict {
		t.Errorf("exit code %d\n%s\nwhile the primary lived %d\n%s", again, later, code, live)
	}
	policy := readFile(t, filepath.Join(dir, "policy.json"))
	write(t, filepath.Join(dir, "other.json"), strings.Replace(policy, `"alice@example.org"`, `"alicia@example.org"`, 1))
	out, code := run("parity", "other.json", "--trace", "trace", "--dns", "127.0.0.1:1")
	if code != 1 || !strings.Contains(out, "    primary: 250 2.1.5 Ok\n    local:   550 5.1.1 <") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
