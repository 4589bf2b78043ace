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

// TestCheck: what each entry of the table is held to.
func TestCheck(t *testing.T) {
	good := Suite{Postfix: "/etc/postfix", From: "its files", Containers: []Container{{Role: "mx", Name: "mx-1"}}, Prefix: []string{"docker", "exec", "-i", "{mx}"}, Hosts: []string{"db={mx}"}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Suite){
		"no Postfix":            func(s *Suite) { s.Postfix = "" },
		"no files":              func(s *Suite) { s.From = "" },
		"nothing to know it by": func(s *Suite) { s.Containers, s.Prefix, s.Hosts = nil, nil, nil },
		"no such container":     func(s *Suite) { s.Prefix = []string{"docker", "exec", "-i", "{postfix}"} },
		"half a name":           func(s *Suite) { s.Hosts = []string{"db={mx"} },
		"no key":                func(s *Suite) { s.List = []string{"pgsql"} },
	} {
		s := good
		spoil(&s)
		if s.Check() == nil {
			t.Errorf("%s: passes", name)
		}
	}
	for i, name := range Names() {
		if Find(name) != &Suites[i] {
			t.Errorf("%s isn't found", name)
		}
	}
	if len(Names()) != len(Suites) || Find("none") != nil {
		t.Errorf("%d names of %d suites", len(Names()), len(Suites))
	}
}

// TestBy: podman in docker's place is what the preset's commands call.
func TestBy(t *testing.T) {
	s := Suite{Prefix: []string{"docker", "exec", "-i", "mx"}, Main: "mount it, then docker restart mx", List: []string{"pgsql=docker exec db psql", "file=/etc/docker"}}.by("podman")
	if s.Prefix[0] != "podman" || s.Prefix[3] != "mx" || s.Main != "mount it, then podman restart mx" || s.List[0] != "pgsql=podman exec db psql" || s.List[1] != "file=/etc/docker" {
		t.Errorf("%+v", s)
	}
	bin := t.TempDir()
	script := "#!/bin/sh\n[ \"$1\" = ps ] && printf 'mailserver\\tdocker-mailserver/docker-mailserver:15\\tmailserver\\n'\n"
	if err := os.WriteFile(filepath.Join(bin, "podman"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":/bin")
	for _, f := range Detect(t.Context()) {
		if f.Name == "docker-mailserver" && f.Prefix[0] == "podman" && f.Prefix[3] == "mailserver" {
			return
		}
	}
	t.Error("podman's container isn't found")
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
