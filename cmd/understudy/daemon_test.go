package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/queue/store"
)

func TestRouteOf(t *testing.T) {
	route := routeOf(&config.Config{Routes: []config.Route{
		{Name: "a", Domains: []string{"example.org", ".sub.example.org"}},
		{Name: "b", Domains: []string{".example.org", "x.sub.example.org"}},
	}, Queue: config.Queue{ReturnThrough: "b"}})
	for domain, want := range map[string]string{
		"example.org":         "a",
		"EXAMPLE.ORG.":        "a",
		"www.example.org":     "b",
		"sub.example.org":     "b",
		"y.sub.example.org":   "a",
		"x.sub.example.org":   "b",
		"z.x.sub.example.org": "a",
		"notexample.org":      "primary",
		"org":                 "primary",
		"":                    "primary",
		"[192.0.2.1]":         "primary",
		store.Returns:         "b",
	} {
		if got := route(domain); got != want {
			t.Errorf("%q: got %q, want %q", domain, got, want)
		}
	}
}

// TestStateDirOfAnother runs serve as nobody, on a state directory of root's.
func TestStateDirOfAnother(t *testing.T) {
	if os.Getuid() != 0 {
		err := stateError("/proc/1", fmt.Errorf("mkdir: %w", fs.ErrPermission))
		if !strings.Contains(err.Error(), "belongs to root") {
			t.Errorf("got %v", err)
		}
		return
	}
	dir := serveDir(t, strings.Replace(unitConfig, "192.0.2.1:25", "127.0.0.1:0", 1))
	for d := dir; d != "/" && d != "/tmp"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "understudy"), exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "understudy"), "serve", "-c", "understudy.toml")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit code 1", err)
	}
	for _, want := range []string{"/state can't be written by nobody", "belongs to root, mode 0755"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in: %s", want, out)
		}
	}
}
