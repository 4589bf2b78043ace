package exim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// readableDir is a directory that Exim's own user may read, too.
func readableDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "understudy-exim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// importText imports a configuration by a real Exim. It needs root.
func importText(t *testing.T, text string, choices ...string) (*policy.Spec, fidelity.Report, string, error) {
	t.Helper()
	dir := readableDir(t)
	x, err := testmx.NewExim(dir, "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	text = "log_file_path = " + dir + "/log/%slog\nspool_directory = " + dir + "/spool\nkeep_environment =\nprimary_hostname = mx.example.org\n" +
		strings.ReplaceAll(text, "@DIR@", dir)
	if err := os.WriteFile(x.Config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Choices: fidelity.ParseChoices(choices), Own: []string{}})
	return spec, report, x.Config, err
}

const unknownConfig = `domainlist local_domains = example.org
acl_smtp_rcpt = check_rcpt
begin acl
check_rcpt:
  accept condition = ${run{/bin/sh -c "touch @DIR@/executed"}{yes}{no}}
  deny   message = slow
         ratelimit = 10 / 1h / strict
  deny   !verify = sender/callout
  deny   condition = ${readsocket{@DIR@/socket}{x}}
  warn   set acl_m_x = ${perl{f}}
  deny   condition = ${if eq{$acl_m_x}{1}}
  deny   spam = nobody
  deny   domains = cdb;@DIR@/x.cdb
  require verify = not_blind
  accept domains = +local_domains
begin routers
program:
  driver = queryprogram
  command = /bin/true
  command_user = mail
  transport = t
local:
  driver = accept
  transport = t
begin transports
t:
  driver = appendfile
  file = /dev/null
  user = mail
`

// TestUnknown: what can't be followed is named with file and line, has choices, and is
// never executed.
func TestUnknown(t *testing.T) {
	spec, report, file, err := importText(t, strings.ReplaceAll(unknownConfig, "  require verify = not_blind\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(file), "executed")); err == nil {
		t.Error("${run} was executed")
	}
	want := map[string]string{ // part of an item's ID: what is done by default
		"${run{": "defer", "ratelimit": "ignore", "sender/callout": "ignore", "${readsocket": "defer", "set = acl_m_x": "defer", "$acl_m_x": "defer",
		"spam": "ignore", "cdb;": "defer", "router program": "defer",
	}
	for part, instead := range want {
		found := false
		for _, it := range report.Items {
			if !strings.Contains(it.ID(), part) || it.Class != fidelity.NotReplicated {
				continue
			}
			found = true
			if it.Instead != instead || len(it.Options) < 2 {
				t.Errorf("%s: instead %q, options %q; want %q and a choice", it.ID(), it.Instead, it.Options, instead)
			}
			if !strings.Contains(it.Why, file) {
				t.Errorf("%s: %q doesn't say where", it.ID(), it.Why)
			}
		}
		if !found {
			t.Errorf("nothing in the report is about %s: %q", part, report.Lacking())
		}
	}
	for _, it := range report.Items {
		if strings.Contains(it.ID(), "ratelimit") && !strings.Contains(it.Why, file+":11:") {
			t.Errorf("ratelimit: %q; want line 11", it.Why)
		}
	}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := policy.Decode("again", strings.NewReader(string(snap.Encode())), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest() != snap.Digest() {
		t.Error("the policy isn't the same after its way through the encoding")
	}
}

// TestChoices: the operator's choice stands in the policy; one that nothing offers is a
// mistake.
func TestChoices(t *testing.T) {
	const item = "check_rcpt: deny ratelimit = 10 / 1h / strict"
	spec, _, _, err := importText(t, unknownConfig, item+"=ask")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range spec.ACL.Lists["check_rcpt"] {
		for _, it := range s.Items {
			found = found || it.Kind == "unknown" && it.Arg == "ask"
		}
	}
	if !found {
		t.Errorf("no statement asks: %v", spec.ACL.Lists["check_rcpt"])
	}
	for _, bad := range []string{item + "=perhaps", "check_rcpt: deny nothing=ignore"} {
		if _, _, _, err := importText(t, unknownConfig, bad); err == nil || !strings.Contains(err.Error(), "choice") {
			t.Errorf("choice %q: %v; want an error about the choice", bad, err)
		}
	}
}

// TestNoExim: one that isn't there is said, with the remedy.
func TestNoExim(t *testing.T) {
	_, _, err := Import(t.Context(), Source{Program: "/nonexistent/exim4"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/exim4") {
		t.Errorf("error %v; want one that names the program", err)
	}
}
