package systemd

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExposure: systemd's own judgement of how much the services may do,
// 1.2 of 10 at most. It needs systemd-analyze, which every system that can run
// the units has, so its absence is a failure.
func TestExposure(t *testing.T) {
	for _, unit := range []string{"understudy.service", "understudy-publish.service", "understudy-push@.service"} {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=12", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security: %v\n%s", err, out)
		}
		if !strings.Contains(string(out), "Overall exposure level for "+strings.Replace(unit, "@.", "@i.", 1)+": ") {
			t.Errorf("systemd-analyze security gave no level:\n%s", out)
		}
	}
}

// TestVerify: systemd understands every line. The program and the manual
// pages, which need not be installed here, are taken out first.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	const dropIns = "understudy-publish.service.d/"
	if err := os.Mkdir(filepath.Join(dir, dropIns), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"understudy.service": "", "understudy.socket": "", "understudy-publish.service": "", "understudy-push@.service": "", "understudy-push@.timer": "", dropIns + "postgrey.conf": "postgrey.conf", dropIns + "rspamd.conf": "rspamd.conf", dropIns + "exim.conf": "exim.conf", dropIns + "docker.conf": "docker.conf", dropIns + "chroot.conf": "chroot.conf"} {
		b, err := os.ReadFile(cmp.Or(file, name))
		if err != nil {
			t.Fatal(err)
		}
		var unit []string
		for line := range strings.SplitSeq(string(b), "\n") {
			switch {
			case strings.HasPrefix(line, "Documentation="):
				continue
			case strings.HasPrefix(line, "ExecStart="):
				line = "ExecStart=/bin/true"
			}
			unit = append(unit, line)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(unit, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("systemd-analyze", "verify", "--no-pager", filepath.Join(dir, "understudy.service"), filepath.Join(dir, "understudy.socket"), filepath.Join(dir, "understudy-publish.service"), filepath.Join(dir, "understudy-push@example.org.timer"), filepath.Join(dir, "understudy-push@example.org.service")).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestPromises: what the documentation promises of the units.
func TestPromises(t *testing.T) {
	for name, lines := range map[string][]string{
		"understudy.service": {"Type=notify", "WatchdogSec=60", "DynamicUser=yes", "StateDirectory=understudy",
			"LoadCredential=understudy.key", "TimeoutStartSec=300", "Requires=understudy.socket",
			"ExecReload=/bin/kill -HUP $MAINPID"},
		"understudy-publish.service": {"Type=notify", "WatchdogSec=60", "DynamicUser=yes", "StateDirectory=understudy",
			"SupplementaryGroups=adm systemd-journal", "ExecReload=/bin/kill -HUP $MAINPID"},
		"understudy-push@.service": {"Type=oneshot", "DynamicUser=yes", "RuntimeDirectory=understudy-push/%i", "StateDirectory=understudy-push/%i"},
		"understudy.socket":        {"ListenStream=25", "Backlog=4096"},
	} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range lines {
			if !strings.Contains(string(b), "\n"+want+"\n") {
				t.Errorf("%s lacks the line %q", name, want)
			}
		}
	}
}
