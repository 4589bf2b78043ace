package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/policy"
)

// TestGuarded: the doctor names the databases that a publisher can't read for lack of the
// drop-in, with the commands that put it there.
func TestGuarded(t *testing.T) {
	spec := &policy.Spec{Postscreen: &policy.Postscreen{GreetPassed: []string{"btree:/var/lib/postfix/postscreen_cache#postscreen"}}}
	spec.Filters.Greylists = map[string]policy.Greylist{"postgrey-1": {Database: "/var/lib/postgrey"}}
	spec.Filters.Milters = []policy.Milter{{Greylist: &policy.RspamdGreylist{}}}
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	const both = "btree:/var/lib/postfix/postscreen_cache postgrey:/var/lib/postgrey"
	for _, tt := range []struct {
		name, says string
		cfg        config.Policy
		want       string
	}{
		{"without the drop-in", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=\\n", config.Policy{}, both},
		{"without either drop-in", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=\\nMemoryDenyWriteExecute=yes\\n", config.Policy{}, "rspamd " + both},
		{"as root in the sandbox", "User=root\\nLoadState=loaded\\nAmbientCapabilities=\\nMemoryDenyWriteExecute=yes\\n", config.Policy{}, "rspamd"},
		{"with rspamd's", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=\\nMemoryDenyWriteExecute=no\\n", config.Policy{}, both},
		{"with another right", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=cap_net_bind_service\\n", config.Policy{}, both},
		{"with the drop-in", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=cap_net_bind_service cap_dac_read_search\\n", config.Policy{}, ""},
		{"as root", "User=root\\nLoadState=loaded\\nAmbientCapabilities=\\n", config.Policy{}, ""},
		{"without the unit", "User=\\nLoadState=not-found\\nAmbientCapabilities=\\n", config.Policy{}, ""},
		{"by a command", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=\\n", config.Policy{PostfixList: []string{"postgrey:/var/lib/postgrey=true"}}, "btree:/var/lib/postfix/postscreen_cache"},
		{"elsewhere", "User=understudy\\nLoadState=loaded\\nAmbientCapabilities=\\n", config.Policy{PostfixPrefix: []string{"podman", "exec", "mail"}}, ""},
	} {
		if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\nprintf '"+tt.says+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range guarded(&tt.cfg, spec, unitOf(t.Context(), "understudy-publish")) {
			names = append(names, g.What)
			conf := "postgrey.conf"
			if g.What == "rspamd" {
				conf = "rspamd.conf"
			}
			if g.Why == "" || !strings.Contains(g.Remedy, "install -D -m 644 /usr/share/understudy/"+conf+" /etc/systemd/system/understudy-publish.service.d/"+conf) {
				t.Errorf("%s: %s: remedy %q", tt.name, g.What, g.Remedy)
			}
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestClosedTo: the doctor names the files that a publisher can't read by their modes, or
// those of the directories above.
func TestClosedTo(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const adm, other = 4, 60001 // Debian's, and nobody's
	for _, f := range []struct {
		name string
		mode os.FileMode
		gid  int
	}{
		{"shut", 0o700 | os.ModeDir, 0}, {"group", 0o750 | os.ModeDir, adm},
		{"open", 0o644, 0}, {"root", 0o600, 0}, {"adm", 0o640, adm}, {"other", 0o640, other}, {"adm-may-not", 0o600, adm}, {"shut/open", 0o644, 0}, {"group/open", 0o644, 0},
	} {
		path := filepath.Join(dir, f.name)
		var err error
		if f.mode.IsDir() {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, f.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, f.mode.Perm()); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"/home/alice/list", "/root/list"}
	for _, name := range []string{"open", "root", "adm", "other", "adm-may-not", "shut/open", "group/open", "missing"} {
		files = append(files, filepath.Join(dir, name))
	}
	unit := func(more ...string) map[string]string {
		u := map[string]string{"LoadState": "loaded", "User": "understudy", "SupplementaryGroups": "adm systemd-journal", "ProtectHome": "no"}
		for i := 0; i < len(more); i += 2 {
			u[more[i]] = more[i+1]
		}
		return u
	}
	for _, tt := range []struct {
		name string
		unit map[string]string
		want []string
	}{
		{"as the package has it", unit(), []string{"root", "other", "adm-may-not", "shut/open"}},
		{"without groups", unit("SupplementaryGroups", ""), []string{"root", "adm", "other", "adm-may-not", "shut/open", "group/open"}},
		{"with a group that is missing", unit("SupplementaryGroups", "adm nosuch"), []string{"root", "other", "adm-may-not", "shut/open"}},
		{"without homes", unit("ProtectHome", "yes"), []string{"/home/alice/list", "/root/list", "root", "other", "adm-may-not", "shut/open"}},
		{"with postgrey.conf", unit("AmbientCapabilities", "cap_dac_read_search", "ProtectHome", "yes"), []string{"/home/alice/list", "/root/list"}},
		{"as root", unit("User", "root"), nil},
		{"without the unit", unit("LoadState", "not-found"), nil},
		{"without systemd", nil, nil},
	} {
		var got []string
		for _, g := range closedTo(tt.unit, files, "do this") {
			got = append(got, strings.TrimPrefix(g.What, dir+"/"))
			if g.Why == "" || g.Remedy != "do this" && !strings.Contains(g.Remedy, "ProtectHome=read-only") {
				t.Errorf("%s: %+v", tt.name, g)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
