package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// cmdExim makes a real Exim ready in a directory that has its exim.conf, with @DIR@ for
// the directory. It needs root. $EXIM is its program.
func cmdExim(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	x, err := eximIn(dir, ts.ReadFile(args[0]+"/exim.conf"))
	ts.Check(err)
	ts.Setenv("EXIM", x.Program)
}

func eximIn(dir, conf string) (*testmx.Exim, error) {
	x, err := testmx.NewExim(dir, "127.0.0.1:53")
	if err != nil {
		return nil, err
	}
	head := "spool_directory = @DIR@/spool\nlog_file_path = @DIR@/log/%slog\nkeep_environment =\nprimary_hostname = mx.example.org\n"
	return x, os.WriteFile(x.Config, []byte(strings.ReplaceAll(head+conf, "@DIR@", dir)), 0o644)
}

// TestEximPrimary: a list in a file that changes is published, as is the configuration;
// of an Exim that fails the last good policy stays.
func TestEximPrimary(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(strings.ReplaceAll(text, "@DIR@", dir)), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("users", "alice\n", 0o644)
	x, err := eximIn(dir, `acl_smtp_rcpt = rcpt
begin acl
rcpt:
  require message = unknown
          local_parts = lsearch;@DIR@/users
  accept domains = example.org
begin routers
all:
  driver = accept
  transport = t
begin transports
t:
  driver = appendfile
  file = /dev/null
`)
	if err != nil {
		t.Fatal(err)
	}
	put("publish.toml", `state_dir = "@DIR@/state"
[publish]
listen = "127.0.0.1:0"
address = "127.0.0.1:1"
poll = "24h"
[policy]
exim = "`+x.Program+`"
exim_config = "`+x.Config+`"
[metrics]
listen = ""
`, 0o600)
	p, log := running(t, filepath.Join(dir, "publish.toml"))
	answers := func(address string, code int) func() bool {
		return func() bool { return rcpt(t, p.publisher.Current(), address) == code }
	}
	await(t, "bob is unknown", answers("bob@example.org", 550))
	put("users", "alice\nbob\n", 0o644)
	await(t, "bob is known", answers("bob@example.org", 250))

	program, err := os.ReadFile(x.Program)
	if err != nil {
		t.Fatal(err)
	}
	const refused = "the last good policy stays published"
	put("exim", "#!/bin/sh\necho out of order >&2\nexit 1\n", 0o755)
	put("users", "carol\n", 0o644)
	await(t, "the failure is logged", func() bool { return log.count(refused) > 0 })
	if !answers("bob@example.org", 250)() || p.publisher.Ready() == nil || log.count("out of order") == 0 {
		t.Errorf("of a failing Exim: bob is answered %d, ready: %v", rcpt(t, p.publisher.Current(), "bob@example.org"), p.publisher.Ready())
	}
	put("exim", string(program), 0o755)
	put("users", "dave\n", 0o644)
	await(t, "it is well again", answers("dave@example.org", 250))
	if p.publisher.Ready() != nil || !answers("bob@example.org", 550)() {
		t.Errorf("bob is still known, or it isn't ready: %v", p.publisher.Ready())
	}
}

// TestIsExim: an Exim is told by its greeting; nobody and others aren't taken for one.
func TestIsExim(t *testing.T) {
	dir, addr := t.TempDir(), testmx.FreeAddr()
	x, err := eximIn(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if isExim(t.Context(), addr) {
		t.Error("nobody is an Exim")
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for Exim's own user
		t.Fatal(err)
	}
	at := strings.LastIndexByte(addr, ':')
	daemon, err := testmx.StartDaemon(addr, out, x.Program, "-C", x.Config, "-bdf", "-oX", addr[:at]+"."+addr[at+1:], "-oP", filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Kill()
	if !isExim(t.Context(), addr) {
		t.Error("an Exim isn't one")
	}
}
