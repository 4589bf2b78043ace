package host_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
)

// prefixed is a Host behind a script that gets the command as its arguments.
func prefixed(t *testing.T, script string) *host.Host {
	t.Helper()
	name := filepath.Join(t.TempDir(), "engine")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &host.Host{Prefix: []string{name, "exec", "-i", "mail"}}
}

const passOn = `[ "$1 $2 $3" = "exec -i mail" ] || { echo "Error: No such container: $3" >&2; exit 1; }; shift 3; exec "$@"`

// hosts are this machine by each way.
func hosts(t *testing.T) map[string]*host.Host {
	ssh := prefixed(t, `shift 3; exec sh -c "$*"`)
	if err := os.Rename(ssh.Prefix[0], filepath.Join(filepath.Dir(ssh.Prefix[0]), "ssh")); err != nil {
		t.Fatal(err)
	}
	ssh.Prefix[0] = filepath.Join(filepath.Dir(ssh.Prefix[0]), "ssh")
	return map[string]*host.Host{"here": nil, "command": prefixed(t, passOn), "ssh": ssh, "root": {Root: "/"}}
}

func output(t *testing.T, h *host.Host, p host.Program) (string, error) {
	var out bytes.Buffer
	readErr, err := h.Run(t.Context(), p, func(r io.Reader) error { _, err := io.Copy(&out, r); return err })
	return out.String(), errors.Join(readErr, err)
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			for _, in := range []string{"", "a b\n", strings.Repeat("x", 100_000), "'\"$(id)`\\ \n\n"} {
				if got, err := output(t, h, host.Program{Argv: []string{"cat"}, Stdin: in}); got != in || err != nil {
					t.Errorf("cat: %.40q, %v", got, err)
				}
				if got, err := output(t, h, host.Program{Argv: []string{"printf", "%s|", in, "it's", ""}}); got != in+"|it's||" || err != nil {
					t.Errorf("printf: %.40q, %v", got, err)
				}
			}
			if got, err := output(t, h, host.Program{Argv: []string{"pwd"}, Dir: dir}); got != dir+"\n" || err != nil {
				t.Errorf("pwd: %q, %v", got, err)
			}
			var said bytes.Buffer
			var exit *host.ExitError
			got, err := output(t, h, host.Program{Argv: []string{"sh", "-c", "echo out; echo err >&2; exit 1"}, Stderr: &said})
			if got != "out\n" || said.String() != "err\n" || !errors.As(err, &exit) || exit.Status != 1 {
				t.Errorf("got %q, %q, %v", got, &said, err)
			}
			if _, err := output(t, h, host.Program{Argv: []string{"no-such-program"}}); !errors.Is(err, host.ErrStart) {
				t.Errorf("no such program: %v", err)
			}
		})
	}
}

// TestCommandFails: what the command before the program does isn't the program's doing.
func TestCommandFails(t *testing.T) {
	for name, script := range map[string]string{
		"no container":   `echo "Error response from daemon: No such container: mail" >&2; exit 1`,
		"silent":         `exit 1`,
		"nothing":        `exit 0`,
		"cut short":      `shift 3; "$@" | head -c 7`,
		"cut in the end": `shift 3; "$@" | head -c -1`,
		"more behind":    passOn + "; echo",
		"more before":    "echo hello; " + passOn,
		"killed":         `shift 3; "$@"; kill -9 $$`,
	} {
		t.Run(name, func(t *testing.T) {
			h := prefixed(t, strings.Replace(script, "exec \"$@\"; echo", "\"$@\"; echo more", 1))
			got, err := output(t, h, host.Program{Argv: []string{"echo", "a long enough line"}})
			var exit *host.ExitError
			if name == "killed" { // all has come, with the mark
				if err != nil {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), "engine exec -i mail: ") {
				t.Errorf("got %q, %v", got, err)
			}
			if name == "no container" && !strings.Contains(err.Error(), "No such container") {
				t.Errorf("got %v", err)
			}
			if _, err := h.ReadFile(t.Context(), "/etc/passwd", 1<<20); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ReadFile: %v", err)
			}
			if _, err := h.Stamps(t.Context(), []string{"/etc/passwd"}); err == nil {
				t.Error("Stamps says nothing")
			}
		})
	}
}

// TestHangs: a command that doesn't come to run anything is ended, and a program that takes
// its time isn't.
func TestHangs(t *testing.T) {
	h := prefixed(t, "exec sleep 600")
	h.Patience = 100 * time.Millisecond
	for name, do := range map[string]func() error{
		"program": func() error { _, err := output(t, h, host.Program{Argv: []string{"echo"}}); return err },
		"file":    func() error { _, err := h.ReadFile(t.Context(), "/etc/passwd", 1<<20); return err },
		"stamps":  func() error { _, err := h.Stamps(t.Context(), []string{"/etc/passwd"}); return err },
	} {
		err := do()
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "engine exec -i mail: no answer within 100ms") {
			t.Errorf("%s: %v", name, err)
		}
	}
	h = prefixed(t, passOn)
	h.Patience = time.Second
	if got, err := output(t, h, host.Program{Argv: []string{"sh", "-c", "sleep 1.2; echo late"}}); got != "late\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "a 'name' *")
	for name, text := range map[string]string{odd: "one\n", filepath.Join(dir, "b.conf"): "two", filepath.Join(dir, "c.conf"): ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if b, err := h.ReadFile(ctx, odd, 4); string(b) != "one\n" || err != nil {
				t.Errorf("got %q, %v", b, err)
			}
			if _, err := h.ReadFile(ctx, odd, 3); err == nil || !strings.Contains(err.Error(), "larger than 3") {
				t.Errorf("too large: %v", err)
			}
			if _, err := h.ReadFile(ctx, dir, 100); err == nil {
				t.Error("a directory was read")
			}
			if _, err := h.ReadFile(ctx, filepath.Join(dir, "none"), 3); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("none: %v", err)
			}
			want := []string{filepath.Join(dir, "b.conf"), filepath.Join(dir, "c.conf")}
			if got, err := h.Glob(ctx, filepath.Join(dir, "*.conf")); !reflect.DeepEqual(got, want) || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			if got, err := h.Glob(ctx, "/no/such/*"); len(got) > 0 || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			before, err := h.Stamps(ctx, append(want, odd, "/none"))
			if err != nil || len(before) != 4 || before["/none"] != "" || before[odd] == "" {
				t.Fatalf("got %q, %v", before, err)
			}
			if err := os.WriteFile(want[0], []byte(time.Now().String()), 0o600); err != nil {
				t.Fatal(err)
			}
			after, err := h.Stamps(ctx, append(want, odd, "/none"))
			if err != nil || after[want[0]] == before[want[0]] || after[odd] != before[odd] {
				t.Errorf("got %q after %q, %v", after, before, err)
			}
			if err := os.WriteFile(want[0], []byte("two"), 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestEscapes: links below a root lead nowhere else.
func TestEscapes(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{filepath.Join(outside, "secret"): "outside", filepath.Join(root, "etc", "real"): "inside", filepath.Join(root, "secret"): "inside"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := &host.Host{Root: root}
	for _, tt := range []struct{ link, target, want string }{
		{"etc/relative", "real", "inside"},
		{"etc/absolute", "/etc/real", "inside"},
		{"etc/up", "../../../../../../secret", "inside"},
		{"etc/dir", "/", ""},
		{"etc/out", filepath.Join(outside, "secret"), ""},
		{"etc/far", "../../" + filepath.Base(outside) + "/secret", ""},
		{"etc/loop", "loop", ""},
		{"etc/chain", "absolute", "inside"},
	} {
		if err := os.Symlink(tt.target, filepath.Join(root, tt.link)); err != nil {
			t.Fatal(err)
		}
		b, err := h.ReadFile(t.Context(), "/"+tt.link, 100)
		if string(b) != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s -> %s: %q, %v", tt.link, tt.target, b, err)
		}
	}
	for _, name := range []string{"/../secret", "/etc/dir/../secret", "/etc/dir/etc/dir/secret"} {
		if b, err := h.ReadFile(t.Context(), name, 100); string(b) != "inside" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestDial(t *testing.T) {
	root := t.TempDir()
	unix, err := net.Listen("unix", filepath.Join(root, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	behind := prefixed(t, passOn)
	below := &host.Host{Root: root}
	for _, h := range []*host.Host{behind, below} {
		h.Servers = host.ParseServers([]string{"mysql=" + tcp.Addr().String(), "pg:5432=unix:" + unix.Addr().String(), "unix:/run/my.sock=" + tcp.Addr().String(), "moved=unix:/none"})
	}
	for _, tt := range []struct {
		h                *host.Host
		network, address string
		want             string // of the error
	}{
		{behind, "tcp", "mysql:3306", ""},
		{behind, "tcp", "pg:5432", ""},
		{behind, "tcp", "pg:5433", `postfix_hosts = ["pg:5433=127.0.0.1:PORT"]`},
		{behind, "unix", "/run/my.sock", ""},
		{behind, "tcp", "moved:3306", `no such file or directory; if moved:3306 is reached in another way now, say so: postfix_hosts = ["moved:3306=127.0.0.1:PORT"]`},
		{behind, "unix", "/run/other.sock", `postfix_hosts = ["unix:/run/other.sock=127.0.0.1:PORT"]`},
		{behind, "tcp", tcp.Addr().String(), "postfix_hosts"},
		{behind, "tcp", "localhost:25", "postfix_hosts"},
		{below, "unix", "/s", ""},
		{below, "unix", "/none", "no such file"},
		{below, "tcp", "[::1]:5432", "postfix_hosts"},
		{nil, "tcp", tcp.Addr().String(), ""},
	} {
		c, err := tt.h.Dial(t.Context(), tt.network, tt.address, 5*time.Second)
		if err == nil {
			c.Close()
		}
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %s %s: %v", tt.h, tt.network, tt.address, err)
		}
	}
}

func TestMachine(t *testing.T) {
	for name, h := range hosts(t) {
		want, _ := os.Hostname()
		if got := h.Hostname(t.Context()); got != want && name != "root" {
			t.Errorf("%s: %q", name, got)
		}
		if got := h.Addresses(t.Context()); name != "root" && !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) {
			t.Errorf("%s: without loopback: %v", name, got)
		}
		if got := h.Addresses(t.Context()); name != "root" && !reflect.DeepEqual(sorted(got), sorted((*host.Host)(nil).Addresses(t.Context()))) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNameBelow: a root has its name in a file.
func TestNameBelow(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("there.example.org\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	below := &host.Host{Root: root}
	if name, all := below.Hostname(t.Context()), below.Addresses(t.Context()); name != "there.example.org" || all != nil {
		t.Errorf("%q, %v", name, all)
	}
}

func sorted(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}
