package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/locate"
)

var update = os.Getenv("UPDATE") != ""

// minimal is the shortest file that is complete.
const minimal = "[primary]\naddress = \"mx1.example.org:25\"\n[policy]\nfile = \"policy.toml\"\n"

func TestMistakes(t *testing.T) {
	_, err := Load("testdata/mistakes.conf")
	if err == nil {
		t.Fatal("got no error, want many")
	}
	got := strings.ReplaceAll(err.Error(), "testdata/", "") + "\n"
	const golden = "testdata/mistakes.want"
	if update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
}

func TestParse(t *testing.T) {
	c, err := Parse("/etc/understudy/understudy.conf", []byte(`
hostname = "MX2.Example.Org."
state_dir = "state"
smtp = { listen = ["[::1]:2525"], xclient_from = ["10.1.2.3", "2001:db8::/32"] }
metrics.listen = ""
[primary]
address = "[2001:db8::1]:25"
"tls" = "off"
[policy]
file = "/srv/policy.toml"
[queue]
max_age = "1d12h"
min_free = "1GiB"
return = "vouched"
return_through = "smarthost"
[dns]
servers = ["::1", "192.0.2.1:5353"]
[[route]]
name = "a"
address = "mx3.example.org:2525"
domains = ["Sales.example.org", ".example.net"]
probe_interval = "2s"
[[route]]
name = "smarthost"
address = "smtp.example.org:25"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.File = "/etc/understudy/understudy.conf"
	want.Hostname = "mx2.example.org"
	want.StateDir = "/etc/understudy/state"
	want.SMTP.Listen = []string{"[::1]:2525"}
	want.SMTP.XClientFrom = nil
	for _, s := range []string{"10.1.2.3/32", "2001:db8::/32"} {
		p, err := parsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		want.SMTP.XClientFrom = append(want.SMTP.XClientFrom, p)
	}
	want.Metrics.Listen = ""
	base := want.Primary
	want.Primary.Address, want.Primary.TLS = "[2001:db8::1]:25", "off"
	want.Policy.File = "/srv/policy.toml"
	want.Queue.MaxAge, want.Queue.MinFree = 36*time.Hour, 1<<30
	want.DNS.Servers = []string{"[::1]:53", "192.0.2.1:5353"}
	base.Address, base.ProbeInterval = "mx3.example.org:2525", 2*time.Second
	want.Routes = []Route{{Name: "a", Domains: []string{"sales.example.org", ".example.net"}, Primary: base}}
	smarthost := Default().Primary
	smarthost.Address = "smtp.example.org:25"
	want.Routes = append(want.Routes, Route{Name: "smarthost", Primary: smarthost})
	want.Queue.Return, want.Queue.ReturnThrough = "vouched", "smarthost"
	if diff := cmp.Diff(want, c, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// TestPrintRoundTrip: what Print writes is a configuration that reads as the
// same one, in full and as differences.
func TestPrintRoundTrip(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "understudy.conf")
	text := minimal + "[smtp]\nxclient_from = [\"192.0.2.0/24\"]\ncommand_timeout = \"90s\"\n" +
		"[[route]]\nname = \"a\"\ndomains = [\"b.example\"]\naddress = \"c.example:25\"\ntls = \"off\"\n"
	want, err := Parse(path, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, onlyDiffs := range []bool{false, true} {
		var b bytes.Buffer
		if err := Print(&b, want, onlyDiffs); err != nil {
			t.Fatal(err)
		}
		got, err := Parse(path, b.Bytes())
		if err != nil {
			t.Fatalf("onlyDiffs %v: %v in\n%s", onlyDiffs, err, b.String())
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
			t.Errorf("onlyDiffs %v (-want +got):\n%s", onlyDiffs, diff)
		}
		if onlyDiffs && strings.Contains(b.String(), "max_age") {
			t.Errorf("differences hold a default:\n%s", b.String())
		}
	}
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings {
		path := locate.Join(s.section, s.name)
		if seen[path] {
			t.Errorf("%s stands twice", path)
		}
		seen[path] = true
		if !strings.HasSuffix(strings.TrimRight(s.doc, ")"), ".") {
			t.Errorf("%s: doc is no sentence: %q", path, s.doc)
		}
		c := Default()
		c.Routes, c.Sources, c.Filters = make([]Route, 1), make([]Source, 1), make([]Filter, 1)
		s.setDefault(c)
		literal(s.field(c))
	}
	for _, name := range sections() {
		if sectionDoc[name] == "" {
			t.Errorf("section %s has no introduction", name)
		}
	}
}

func TestStateDirFromSystemd(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/var/lib/private/understudy")
	if got := Default().StateDir; got != "/var/lib/private/understudy" {
		t.Errorf("state_dir: got %q", got)
	}
}

func TestCredentials(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x.service")
	c, err := Parse("/etc/x.conf", []byte(minimal+"[smtp]\ntls_cert = \"cert.pem\"\ntls_key = \"$CREDENTIALS_DIRECTORY/key.pem\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.SMTP.TLSKey, "/run/credentials/x.service/key.pem"; got != want {
		t.Errorf("tls_key: got %q, want %q", got, want)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "missing.conf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was read")
	}
	big := filepath.Join(dir, "big.conf")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#\n"), maxFile/2+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("huge file: got %v", err)
	}
	_, err := Parse("x.conf", []byte("a = 1\nb = \n"))
	var m *Mistake
	if !errors.As(err, &m) || m.Line != 2 || m.Col < 4 {
		t.Errorf("syntax: got %v", err)
	}
	if _, err = Parse("x.conf", []byte(" \"\\\n")); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("syntax error at a line's end: got %q, want one line", err)
	}
}

func TestDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"14d": 14 * 24 * time.Hour, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "0s": 0,
	} {
		got, err := parseDuration(s)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
		if formatDuration(got) != s {
			t.Errorf("%q: formatted %q", s, formatDuration(got))
		}
	}
	for _, s := range []string{"", "10", "s", "-1s", "1.5h", "1w", "10 s", "99999999999999999d", "1hm"} {
		if d, err := parseDuration(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/mistakes.conf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(minimal))
	f.Add([]byte("a = 1 #"))
	f.Add([]byte("a = [ 1, #"))
	f.Add([]byte("a = \"\"\"x\"\"\"\"\n[b.'c d']\ne = [{f = '#'}, [1]]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Parse("x.conf", b); err == nil {
			if err := Print(&bytes.Buffer{}, c, false); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestPrimaryIsNeeded: even with routes for all domains, <Postmaster> needs one.
func TestPrimaryIsNeeded(t *testing.T) {
	_, err := Parse("x.conf", []byte("[policy]\nfile = \"p\"\n[[route]]\nname = \"a\"\naddress = \"a.example:25\"\ndomains = [\"a.example\"]\n"))
	if err == nil || !strings.Contains(err.Error(), "primary.address: missing") {
		t.Errorf("got %v", err)
	}
}

// TestStore: the keys of the queue's store go together.
func TestStore(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"store = \"postgres\"\ndsn = \"postgres://u@db1,db2/understudy\"\ndsn_password = \"pw\"\ndurability = \"one-machine\"\n", ""},
		{"store = \"postgres\"\n", `x.conf:6:1: queue.store: "postgres" needs the key "dsn"`},
		{"store = \"postgres\"\ndsn = \"postgres://u:secret@db1/understudy\"\n", `x.conf:7:1: queue.dsn: has a password; write that into a file`},
		{"store = \"postgres\"\ndsn = \"host=db1\"\n", `x.conf:7:1: queue.dsn: is no address of a PostgreSQL database; write it like`},
		{"dsn = \"postgres://u@db1/understudy\"\n", `x.conf:6:1: queue.dsn: is for store = "postgres"`},
		{"store = \"oracle\"\ndsn = \"postgres://u@db1/understudy\"\n", `x.conf:6:1: queue.store: "oracle" is not one of its values`},
		{"durability = \"none\"\n", `x.conf:6:1: queue.durability: "none" is not one of its values`},
	} {
		c, err := Parse("x.conf", []byte(minimal+"[queue]\n"+tt.text))
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %s", tt.text, err, tt.want)
		case err != nil && strings.Contains(err.Error(), "secret"), err != nil && strings.Count(err.Error(), "\n") > 0:
			t.Errorf("%s: %v", tt.text, err)
		case err == nil && (c.Queue.DSN == "" || filepath.Base(c.Queue.DSNPassword) != "pw"):
			t.Errorf("%s: %+v", tt.text, c.Queue)
		}
	}
}
