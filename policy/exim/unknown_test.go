package exim

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// readableDir is a directory that Exim's own user may read, too. All have names of one
// length, since a report cuts long texts short.
func readableDir(t *testing.T) string {
	t.Helper()
	var dir string
	err := fs.ErrExist
	for errors.Is(err, fs.ErrExist) {
		dir = fmt.Sprintf("/dev/shm/understudy-exim%010d", rand.Uint32())
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newExim makes a real Exim with a configuration. It needs root.
func newExim(t *testing.T, text string) *testmx.Exim {
	t.Helper()
	return newEximWith(t, "127.0.0.1:53", text)
}

// newEximWith is newExim with a DNS server.
func newEximWith(t *testing.T, nameserver, text string) *testmx.Exim {
	t.Helper()
	dir := readableDir(t)
	x, err := testmx.NewExim(dir, nameserver)
	if err != nil {
		t.Fatal(err)
	}
	text = "log_file_path = " + dir + "/log/%slog\nspool_directory = " + dir + "/spool\nkeep_environment =\nprimary_hostname = mx.example.org\n" +
		strings.ReplaceAll(text, "@DIR@", dir)
	if err := os.WriteFile(x.Config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return x
}

// importText imports a configuration by a real Exim.
func importText(t *testing.T, text string, choices ...string) (*policy.Spec, fidelity.Report, string, error) {
	t.Helper()
	x := newExim(t, text)
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Rows: Databases, Directory: Directories, Choices: fidelity.ParseChoices(choices), Own: []string{}})
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
  deny   domains = nis;x
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
		"spam": "ignore", "nis;": "defer", "router program": "defer",
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

// TestSilentExim: an Exim that hangs, fails or prints half of its configuration is an
// error that says what to do; nothing is imported.
func TestSilentExim(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"hangs":       {"sleep 1000 & wait", "doesn't answer: run it by hand"},
		"fails":       {"echo '2026-11-29 Exim configuration error in line 3' >&2; exit 1", "configuration error in line 3"},
		"denied":      {"echo 'failed to open configuration file /x: Permission denied' >&2; exit 1", "let the publisher read it: see /usr/share/understudy/exim.conf"},
		"half":        {"[ \"$2\" != config ] || { exec 3>&1; real \"$@\" | head -c 300 >&3; exit; }; real \"$@\"", "its output is cut short"},
		"half, fails": {"[ \"$2\" != config ] || { real \"$@\" | head -c 300; exit 1; }; real \"$@\"", "exit status 1"},
		"old":         {"echo 'Exim version 3.36 #1'", "this is Exim 3.36; Exim 4 is read"},
		"other":       {"echo sendmail", "doesn't say which version of Exim it is"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newExim(t, "acl_smtp_rcpt = rcpt\nbegin acl\nrcpt:\n  require verify = recipient\n  accept domains = example.org\nbegin routers\nall:\n  driver = accept\n  transport = drop\nbegin transports\ndrop:\n  driver = appendfile\n  file = /dev/null\n")
			script := "#!/bin/sh\nreal() { " + x.Program + " \"$@\"; }\n[ \"$1\" != -C ] || { c=$2; shift 2; }\nreal() { " + x.Program + " -C \"$c\" \"$@\"; }\n" + tt.script + "\n"
			program := filepath.Join(x.Dir, "other")
			if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			_, _, err := Import(t.Context(), Source{Program: program, Config: x.Config, Getent: x.Getent, Own: []string{}, Patience: 3 * time.Second})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

// TestInHosts: addresses in host lists.
func TestInHosts(t *testing.T) {
	a, six := netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")
	for list, want := range map[string][2]bool{
		"": {false, true}, "203.0.113.2": {true, true}, "198.51.100.1 : 203.0.113.0/24": {true, true}, "!203.0.113.2 : *": {false, true}, "*": {true, true},
		"+relay_hosts : 203.0.113.2": {false, false}, "203.0.113.2 : +relay_hosts": {true, true}, "mx2.example.org": {false, false}, "<; 2001:db8::2 ; 203.0.113.2": {true, true},
	} {
		if in, known := InHosts(list, a); in != want[0] || known != want[1] {
			t.Errorf("%q: %v, %v", list, in, known)
		}
	}
	if in, _ := InHosts("2001::db8::::2", six); !in {
		t.Error("an IPv6 address with doubled colons isn't found")
	}
}

// TestOption asks a real Exim.
func TestOption(t *testing.T) {
	x := newExim(t, "hosts_proxy = 203.0.113.2\n")
	src := Source{Program: x.Program, Config: x.Config}
	for name, want := range map[string]string{"hosts_proxy": "203.0.113.2", "primary_hostname": "mx.example.org", "configure_file": x.Config, "smtp_accept_max_per_host": ""} {
		if got, err := src.Option(t.Context(), name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := src.Option(t.Context(), "hosts_parrot"); err == nil {
		t.Errorf("an option that isn't one is %q", got)
	}
}
