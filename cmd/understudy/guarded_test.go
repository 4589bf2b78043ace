package main

import (
	"os"
	"path/filepath"
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
