package test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sh runs a script and returns what it printed; a failure ends the test.
func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", script, "test"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// TestPackage builds the Debian package twice, has lintian look at it, and
// installs, upgrades, removes and purges it in a Debian made for it.
func TestPackage(t *testing.T) {
	packages := func() map[string][32]byte {
		sh(t, "make deb")
		sums := map[string][32]byte{}
		files, _ := filepath.Glob("../dist/*.deb")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sums[filepath.Base(f)] = sha256.Sum256(b)
		}
		return sums
	}
	sh(t, "rm -rf dist")
	first := packages()
	if len(first) != 2 {
		t.Fatalf("built %d packages, want one for amd64 and one for arm64", len(first))
	}
	for name, sum := range packages() {
		if sum != first[name] {
			t.Errorf("%s: the second build differs from the first", name)
		}
	}
	if out := sh(t, "lintian --allow-root --fail-on error,warning,info dist/*.deb"); out != "" {
		t.Errorf("lintian:\n%s", out)
	}
	root := t.TempDir()
	sh(t, `debootstrap --variant=minbase --include=ca-certificates bookworm "$1" http://deb.debian.org/debian >"$1.log" 2>&1 || { tail "$1.log"; exit 1; }
		cp dist/*_$(dpkg --print-architecture).deb "$1/new.deb"
		systemd/deb/root $(dpkg --print-architecture) 0.0.1 "$(git log -1 --format=%cD)"
		ARCH=$(dpkg --print-architecture) VERSION=0.0.1 go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2 package -f systemd/deb/nfpm.yaml -p deb -t "$1/old.deb"`, root)
	in := func(script string) string { return sh(t, `chroot "$1" bash -euo pipefail -c "$2" 2>&1`, root, script) }
	has := func(what, out, want string) {
		if !strings.Contains(out, want) {
			t.Errorf("%s: got %s, want %q", what, out, want)
		}
	}
	has("install", in("dpkg -i old.deb"), "doesn't run yet")
	has("version", in("understudy version"), "understudy 0.0.1 ")
	has("unit", in("cat /usr/lib/systemd/system/understudy.service"), "ExecStart=/usr/bin/understudy serve")
	in(`printf '[primary]\naddress = "mx1.example.org:25"\n[sync]\ndomains = ["example.org"]\n' >/etc/understudy/understudy.toml
		mkdir -p /var/lib/understudy/queue /var/lib/understudy/sync && echo key >/var/lib/understudy/sync/pairing`)
	in("understudy config -n")
	in("dpkg -i new.deb")
	has("upgraded", in("understudy version"), "understudy 0.1~git")
	has("after the upgrade", in("cat /var/lib/understudy/sync/pairing /etc/understudy/understudy.toml"), "key\n[primary]")
	has("completion", in(`source /usr/share/bash-completion/completions/understudy; COMP_WORDS=(understudy queue exp) COMP_CWORD=2; _understudy; echo "${COMPREPLY[*]}"`), "export")
	in("dpkg -r understudy")
	has("after removal", in("ls /usr/bin/understudy || true; cat /var/lib/understudy/sync/pairing"), "key")
	has("purge", in("rm /etc/understudy/understudy.toml; dpkg -P understudy"), "mail that was accepted may wait")
	in("dpkg -i new.deb; rm -r /var/lib/understudy/queue; dpkg -P understudy")
	if left := in("ls -d /var/lib/understudy /etc/understudy /usr/share/doc/understudy 2>/dev/null || true"); len(bytes.TrimSpace([]byte(left))) > 0 {
		t.Errorf("left after a purge: %s", left)
	}
}
