package postfix_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// install copies a configuration to a directory of its own, with @DIR@ being
// that directory, and indexes its *.map files.
func install(t *testing.T, files map[string]string) postfix.Source {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(text, "@DIR@", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		// Postfix waits for files that were changed just now to settle.
		hourAgo := time.Now().Add(-time.Hour)
		if err := os.Chtimes(name, hourAgo, hourAgo); err != nil {
			t.Fatal(err)
		}
		return name
	}
	if _, ok := files["master.cf"]; !ok {
		write("master.cf", "smtp inet n - y - - smtpd\n")
	}
	for name, text := range files {
		write(name, text)
	}
	for name := range files {
		if filepath.Ext(name) == ".map" {
			if out, err := exec.Command("/usr/sbin/postmap", "-c", dir, "hash:"+filepath.Join(dir, name)).CombinedOutput(); err != nil {
				t.Fatalf("postmap %s: %v\n%s", name, err, out)
			}
		}
	}
	getent := write("getent", "#!/bin/sh\nprintf 'root:x:0:0::/root:/bin/sh\\nalice:x:1000:1000::/home/alice:/bin/sh\\nBob:x:1001:1001:::\\n'\n")
	if err := os.Chmod(getent, 0o700); err != nil {
		t.Fatal(err)
	}
	return postfix.Source{ConfigDir: dir, Getent: getent, Root: filepath.Join(dir, "root")} // not the filters of this machine
}

// base is enough of a main.cf to import, independent of the machine.
const base = `compatibility_level = 3.6
myhostname = mx.example.org
mydestination = $myhostname
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
alias_maps =
local_recipient_maps = inline:{root=x}
`

func load(t *testing.T, src postfix.Source) (*policy.Spec, fidelity.Report) {
	t.Helper()
	spec, report, err := postfix.Import(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Compile(spec); err != nil {
		t.Errorf("the engine refuses the imported policy: %v", err)
	}
	return spec, report
}

// TestProfiles imports configurations modelled on what sites and
// distributions run; each main.cf names its source. The report and the policy
// are compared with want.txt; with UPDATE=1 it is written.
func TestProfiles(t *testing.T) {
	dirs, err := filepath.Glob("testdata/profiles/*")
	if err != nil || len(dirs) < 10 {
		t.Fatalf("only %d profiles: %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			files := map[string]string{}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				files[e.Name()] = string(b)
			}
			delete(files, "want.txt")
			src := install(t, files)
			spec, report := load(t, src)
			got := render(t, src, spec, report)
			want := filepath.Join(dir, "want.txt")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(b), got); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", want, diff)
			}
		})
	}
}

// ownVersion is what a milter is told of this machine's Postfix.
var ownVersion = regexp.MustCompile(`"v": "Postfix [0-9.]+"`)

// render writes the report and the policy without what changes from run to run.
func render(t *testing.T, src postfix.Source, spec *policy.Spec, report fidelity.Report) string {
	t.Helper()
	report.MailVersion = "3.x"
	for n := range report.Items { // before Print cuts them
		report.Items[n].Element = strings.ReplaceAll(report.Items[n].Element, src.ConfigDir, "@DIR@")
		report.Items[n].Parameter = strings.ReplaceAll(report.Items[n].Parameter, src.ConfigDir, "@DIR@")
		report.Items[n].Remedy = strings.ReplaceAll(report.Items[n].Remedy, src.ConfigDir, "@DIR@")
	}
	var b bytes.Buffer
	if err := report.Print(&b, true); err != nil {
		t.Fatal(err)
	}
	spec.Addresses.Local.Domains = slices.DeleteFunc(spec.Addresses.Local.Domains, func(domain string) bool { // this machine's addresses
		addr, err := netip.ParseAddr(strings.TrimPrefix(strings.Trim(domain, "[]"), "ipv6:"))
		return err == nil && !addr.IsLoopback()
	})
	j, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n" + ownVersion.ReplaceAllString(string(j), `"v": "Postfix 3.x"`) + "\n")
	return strings.ReplaceAll(b.String(), src.ConfigDir, "@DIR@")
}
