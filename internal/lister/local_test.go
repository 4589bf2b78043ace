package lister_test

import (
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister"
)

func TestSQLite(t *testing.T) {
	dir := t.TempDir()
	ours, theirs, wal := filepath.Join(dir, "ours ?#%.db"), filepath.Join(dir, "theirs.db"), filepath.Join(dir, "wal.db")
	db, err := sql.Open("sqlite", strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23", " ", "%20").Replace("file:"+ours))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(sqlScript); err != nil {
		t.Fatal(err)
	}
	for path, extra := range map[string]string{theirs: "", wal: "PRAGMA journal_mode=WAL;"} {
		cmd := exec.Command("sqlite3", path)
		cmd.Stdin = strings.NewReader(extra + sqlScript)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
		}
	}
	garbage := file(t, strings.Repeat("no database", 100))
	testSource(t, "sqlite", map[string]string{"dbpath": ours}, none, aliases, []good{
		{"made by the driver", nil},
		{"made by sqlite3", []string{"dbpath", theirs}},
		{"with a write-ahead log", []string{"dbpath", wal}},
	}, []bad{
		{"no file", []string{"dbpath", "/nonexistent"}, "dbpath", nil},
		{"relative", []string{"dbpath", "x.db"}, "dbpath", nil},
		{"no database", []string{"dbpath", garbage}, "dbpath", nil},
		{"wrong query", []string{"query", "SELECT adress FROM alias"}, "query", nil},
		{"a write", []string{"query", "INSERT INTO alias VALUES ('x', 'x', 1, 1) RETURNING address"}, "query", nil},
		{"no SELECT", []string{"query", "PRAGMA foreign_keys = 1"}, "query", nil},
		{"too many rows", []string{"max_rows", "12"}, "max_rows", lister.ErrRows},
		{"too many octets", []string{"max_bytes", "0123456789012345678901234567890"}, "max_bytes", lister.ErrBytes},
		{"too slow", []string{"timeout", "300ms", "query", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c"}, "timeout", lister.ErrTime},
	})
	if entries, _ := filepath.Glob(filepath.Join(dir, "theirs.db?*")); len(entries) > 0 {
		t.Errorf("listing leaves %q", entries)
	}
	rows(t, source("sqlite", map[string]string{"dbpath": ours}), "SELECT 1 = 1, 1.5, NULL, x'41'", "1", "1.5", "", "A")
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestText(t *testing.T) {
	plain := file(t, "# recipients\nalice@example.org\r\n\n  \nbob@example.org   b, c\n\td\n\"with space\"@example.org\n  # a comment\n\"a \\\"b\\\" c\" v\nlast@example.org")
	want := map[string]string{"alice@example.org": "", "bob@example.org": "b, c d", "with space": "@example.org", `a "b" c`: "v", "last@example.org": ""}
	virtual := file(t, "sales@example.org a@b, c@d\n@example.com x\n")
	folded := file(t, "Sales@example.org x\n")
	for _, cmd := range [][]string{{"hash:" + virtual}, {"-f", "hash:" + folded}} {
		if out, err := exec.Command("/usr/sbin/postmap", cmd...).CombinedOutput(); err != nil {
			t.Fatalf("postmap: %v (run test/install-peers)\n%s", err, out)
		}
	}
	print := []string{"/usr/bin/printf", `a@b\tx y\r\n\n \nc@d\n`}
	printed := map[string]string{"a@b": "x y", "c@d": ""}
	for _, tt := range []struct {
		name   string
		source lister.Source
		want   map[string]string
	}{
		{"file", lister.Source{Type: "file", Path: plain}, want},
		{"file with a BOM", lister.Source{Type: "file", Path: file(t, "\ufeffalice@example.org\r\nbob@example.org")}, map[string]string{"alice@example.org": "", "bob@example.org": ""}},
		{"empty file", lister.Source{Type: "file", Path: "/dev/null"}, map[string]string{}},
		{"hash", lister.Source{Type: "map", Path: "hash:" + virtual}, map[string]string{"sales@example.org": "a@b, c@d", "@example.com": "x"}},
		{"capitals are never found", lister.Source{Type: "map", Path: "hash:" + folded}, map[string]string{}},
		{"texthash", lister.Source{Type: "map", Path: "texthash:" + virtual, Postmap: "/usr/sbin/postmap"}, map[string]string{"sales@example.org": "a@b, c@d", "@example.com": "x"}},
		{"command", lister.Source{Type: "command", Command: print}, printed},
		{"shell", lister.Source{Type: "command", Shell: true, Command: []string{`printf "$1" | cat`, print[1]}}, printed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := list(t, &tt.source)
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func TestTextErrors(t *testing.T) {
	long := file(t, "a@b\n"+strings.Repeat("x", 300<<10)+"\n")
	command := func(s string) lister.Source { return lister.Source{Type: "command", Shell: true, Command: []string{s}} }
	for _, tt := range []struct {
		name    string
		source  lister.Source
		limits  lister.Limits
		setting string
		text    string
		is      error
	}{
		{"no file", lister.Source{Type: "file", Path: "/nonexistent"}, lister.Limits{}, "path", "no such file", os.ErrNotExist},
		{"a directory", lister.Source{Type: "file", Path: "/etc"}, lister.Limits{}, "path", "directory", nil},
		{"a long line", lister.Source{Type: "file", Path: long}, lister.Limits{}, "path", ":2:", nil},
		{"an open quote", lister.Source{Type: "file", Path: file(t, "a@b\n\"x y\nc@d\n")}, lister.Limits{}, "path", ":2:", nil},
		{"rows of a file", lister.Source{Type: "file", Path: file(t, "a\nb\nc\n")}, lister.Limits{Rows: 2}, "max_rows", "more than 2", lister.ErrRows},
		{"octets of a file", lister.Source{Type: "file", Path: file(t, "a\nb\nc\n")}, lister.Limits{Bytes: 5}, "max_bytes", "more than 5", lister.ErrBytes},
		{"no map", lister.Source{Type: "map", Path: "hash:/nonexistent"}, lister.Limits{}, "path", "No such file", nil},
		{"no type", lister.Source{Type: "map", Path: "/etc/aliases"}, lister.Limits{}, "path", "no map", nil},
		{"an option", lister.Source{Type: "map", Path: "-q:x"}, lister.Limits{}, "path", "no map", nil},
		{"no command", lister.Source{Type: "command"}, lister.Limits{}, "command", "missing", nil},
		{"no program", lister.Source{Type: "command", Command: []string{"/nonexistent"}}, lister.Limits{}, "command", "no such file", nil},
		{"exit 3", command("echo a@b; echo broken >&2; exit 3"), lister.Limits{}, "command", "exit status 3: broken", nil},
		{"killed", command("echo a@b; kill -9 $$"), lister.Limits{}, "command", "killed", nil},
		{"rows of a command", command("yes"), lister.Limits{Rows: 9}, "max_rows", "more than 9", lister.ErrRows},
		{"octets of a command", command("yes ''"), lister.Limits{Bytes: 9}, "max_bytes", "more than 9", lister.ErrBytes},
		{"a command that hangs", command("sleep 1000 | sleep 1000"), lister.Limits{Time: 200 * time.Millisecond}, "timeout", "200ms", lister.ErrTime},
		{"a daemon that holds the output", command("echo a@b; setsid sleep 1000 &"), lister.Limits{}, "command", "left running", nil},
		{"a daemon that prints on", command("setsid yes & sleep 0.1"), lister.Limits{Time: 300 * time.Millisecond}, "timeout", "300ms", lister.ErrTime},
		{"a daemon that holds the errors", command("setsid sleep 1000 >/dev/null &"), lister.Limits{}, "command", "left running", nil},
		{"a hanging command's daemon", command("setsid sleep 1000 & sleep 1000"), lister.Limits{Time: 200 * time.Millisecond}, "timeout", "200ms", lister.ErrTime},
		{"a line of a command", command("tr '\\0' x </dev/zero"), lister.Limits{}, "command", "a line of more", nil},
		{"no type", lister.Source{Type: "oracle"}, lister.Limits{}, "type", "oracle", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.source.Name, tt.source.Limits = "recipients", tt.limits
			start := time.Now()
			_, err := list(t, &tt.source)
			checkError(t, err, "recipients", tt.setting, tt.is)
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("want %q", tt.text)
			}
			if time.Since(start) > 10*time.Second {
				t.Errorf("took %v", time.Since(start))
			}
		})
	}
}

// TestCommandsChildren wants nothing to be left of a command that ends.
func TestCommandsChildren(t *testing.T) {
	for name, script := range map[string]string{
		"in its group":            `sleep 1000 >/dev/null 2>&1 & echo $! >"$1"`,
		"in one of its own":       `setsid sh -c 'echo $$ >"$1"; exec sleep 1000' sh "$1" >/dev/null 2>&1 & while ! test -s "$1"; do :; done`,
		"two forks away":          `(setsid sh -c 'sleep 1000 & echo $! >"$1"' sh "$1" >/dev/null 2>&1 &); while ! test -s "$1"; do :; done`,
		"and it ignores a signal": `setsid sh -c 'trap "" HUP TERM INT; echo $$ >"$1"; while :; do sleep 1; done' sh "$1" >/dev/null 2>&1 & while ! test -s "$1"; do :; done`,
	} {
		t.Run(name, func(t *testing.T) { wantNoChild(t, script) })
	}
}

func wantNoChild(t *testing.T, script string) {
	pid := filepath.Join(t.TempDir(), "pid")
	s := lister.Source{Type: "command", Shell: true, Command: []string{script, pid}}
	if _, err := list(t, &s); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", strings.TrimSpace(string(b))))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		<-tick.C
	}
	t.Error("its child runs on")
}
