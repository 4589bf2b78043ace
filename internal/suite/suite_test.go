package suite

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSuites(t *testing.T) {
	for _, s := range Suites {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

// TestDetect: an engine that shows containers as docker does.
func TestDetect(t *testing.T) {
	for name, tt := range map[string]struct {
		ps      string
		want    string
		prefix  string
		renamed bool
	}{
		"nothing":   {"web-1\tnginx:1.27\tweb\n", "", "", false},
		"mailcow":   {"mailcowdockerized-postfix-tlspol-mailcow-1\tghcr.io/mailcow/postfix-tlspol:1.8\tpostfix-tlspol-mailcow\nmailcowdockerized-postfix-mailcow-1\tghcr.io/mailcow/postfix:3.10.12-1\tpostfix-mailcow\n", "mailcow", "mailcowdockerized-postfix-mailcow-1", false},
		"elsewhere": {"cow-postfix-mailcow-1\tghcr.io/mailcow/postfix:3.10.12-1\tpostfix-mailcow\n", "mailcow", "cow-postfix-mailcow-1", true},
		"dms":       {"mailserver\tghcr.io/docker-mailserver/docker-mailserver:latest\tmailserver\n", "docker-mailserver", "mailserver", false},
		"dms run":   {"mx\tdocker-mailserver/docker-mailserver\t<no value>\n", "docker-mailserver", "mx", true},
		"digest":    {"mailserver\tghcr.io/docker-mailserver/docker-mailserver@sha256:0f4e\tmailserver\n", "docker-mailserver", "mailserver", false},
		"pulled":    {"mailserver\t0f4e1c2d3b4a\tmailserver\nweb-1\t0123456789ab\tweb\n", "docker-mailserver", "mailserver", false},
		"compose 1": {"mailcowdockerized_postfix-mailcow_1\tmailcow/postfix:1.80\tpostfix-mailcow\n", "mailcow", "mailcowdockerized_postfix-mailcow_1", true},
		"mailu":     {"mailu-admin-1\tghcr.io/mailu/admin:2024.06\tadmin\nmailu-smtp-1\tghcr.io/mailu/postfix:2024.06\tsmtp\n", "mailu", "mailu-smtp-1", false},
		"broken":    {"\x00\t\t\t\n", "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			script := `#!/bin/sh
[ "$*" != 'inspect --format {{.Config.Image}} mailserver' ] || exec echo mailserver/docker-mailserver:15
[ "$1 $2" = 'ps --format' ] || exit 1
exec cat '` + bin + "/ps'\n"
			if err := os.WriteFile(filepath.Join(bin, "ps"), []byte(tt.ps), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":/bin")
			var got []Found
			for _, f := range Detect(t.Context()) {
				if len(f.Containers) > 0 { // the machine's own files don't count
					got = append(got, f)
				}
			}
			switch {
			case tt.want == "" && len(got) == 0:
			case len(got) != 1 || got[0].Name != tt.want || got[0].Prefix[3] != tt.prefix || got[0].Renamed != tt.renamed:
				t.Errorf("got %+v", got)
			}
		})
	}
}
