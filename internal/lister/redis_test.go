package lister_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestRedis lists the keys of a real server: more than one SCAN returns, with strange octets,
// of one database, with and without an end, at a port and at a path.
func TestRedis(t *testing.T) {
	addr, socket := testmx.FreeAddr(), filepath.Join(t.TempDir(), "s")
	_, port, _ := net.SplitHostPort(addr)
	var out bytes.Buffer
	d, err := testmx.StartDaemon(addr, &out, "/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", port, "--unixsocket", socket, "--save", "", "--requirepass", "p w")
	if err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	t.Cleanup(func() { _ = d.Kill() })
	var script strings.Builder
	word := func(words ...string) {
		fmt.Fprintf(&script, "*%d\r\n", len(words))
		for _, w := range words {
			fmt.Fprintf(&script, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	want := map[string]string{}
	word("ACL", "SETUSER", "reader", "on", ">other", "~*", "+@all")
	word("SELECT", "3")
	for n := range 2000 {
		key := fmt.Sprintf("k%d\r\n*", n)
		want[key] = "value"
		word("SET", key, "value", "EX", "1000")
	}
	want["kept"] = ""
	word("SET", "kept", "")
	word("SET", "other", "value")
	word("SELECT", "0")
	word("SET", "k0", "of another database")
	cmd := exec.Command("redis-cli", "-p", port, "-a", "p w", "--no-auth-warning", "--pipe")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, r := range []lister.Redis{{Address: addr, Password: "p w", DB: "3"}, {Address: socket, Password: "p w", DB: "3"}, {Address: addr, Username: "reader", Password: "other", DB: "3"}} {
		got := map[string]string{}
		if err := r.List(t.Context(), "k*", func(key, value string, left time.Duration) error {
			got[key] = value
			if ends := left > 900*time.Second && left <= 1000*time.Second; ends == (key == "kept") || key == "kept" && left >= 0 {
				t.Errorf("%q will be kept for %v", key, left)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %d keys, want %d", r.Address, len(got), len(want))
		}
	}
	for _, tt := range []struct {
		r    lister.Redis
		want string
	}{
		{lister.Redis{Address: addr}, "NOAUTH"},
		{lister.Redis{Address: addr, Password: "secret"}, "AUTH: \"WRONGPASS"},
		{lister.Redis{Address: addr, Password: "p w", DB: "99"}, "SELECT: \"ERR"},
		{lister.Redis{Address: addr, Password: "p w", DB: "3", Limits: lister.Limits{Rows: 1000}}, "more keys"},
		{lister.Redis{Address: addr, Password: "p w", DB: "3", Limits: lister.Limits{Bytes: 1000}}, "EOF"},
		{lister.Redis{Address: testmx.FreeAddr()}, "refused"},
	} {
		err := tt.r.List(t.Context(), "k*", func(string, string, time.Duration) error { return nil })
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v, want %s", tt.r, err, tt.want)
		}
	}
}

// TestHostileRedis: a server that speaks no sense is an error, in time and without eating the
// memory.
func TestHostileRedis(t *testing.T) {
	for name, says := range map[string]string{
		"too long a string":  "$999999999\r\n",
		"too long a list":    "*999999999\r\n",
		"lists within lists": strings.Repeat("*1\r\n", 10000),
		"negative":           "$-2\r\n",
		"no length":          "*x\r\n",
		"a line without end": strings.Repeat("+", 1<<20),
		"bare LF":            "+0\n",
		"no list":            "+OK\r\n",
		"no cursor":          "*0\r\n",
		"half":               "*2\r\n$1\r\n0\r\n*1\r\n$5\r\nab",
		"no time":            "*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n$1\r\nv\r\n$1\r\nx\r\n",
		"an error":           "-ERR " + strings.Repeat("\x1b", 1000) + "\r\n",
		"the same for ever":  strings.Repeat("*2\r\n$1\r\n1\r\n*0\r\n", 1<<16),
	} {
		t.Run(name, func(t *testing.T) {
			address := listen(t, func(c net.Conn) {
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = io.WriteString(c, says)
			})
			r := lister.Redis{Address: address, Limits: lister.Limits{Bytes: 1 << 20, Time: 5 * time.Second}}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := r.List(t.Context(), "k*", func(string, string, time.Duration) error { return nil })
			runtime.ReadMemStats(&after)
			if err == nil || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%v", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("%d octets allocated", n)
			}
		})
	}
}
