package postfix

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
)

func dumped(text string) (got []string, err error) {
	err = lister.ReadDump(strings.NewReader(text), func(database int, key, value []byte) error {
		got = append(got, fmt.Sprintf("%d %s %s", database, key, value))
		return nil
	})
	return got, err
}

const oneDump = "VERSION=3\nformat=print\ntype=btree\nHEADER=END\n a/b\n 1,2\n \\c3\\a9 \\\\\n 3\nDATA=END\n"

func TestReadDump(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{"print", oneDump, []string{"0 a/b 1,2", "0 é \\ 3"}, ""},
		{"two", oneDump + "VERSION=3\nformat=bytevalue\ndb_pagesize=4096\nHEADER=END\n 61\n 6263\nDATA=END\n", []string{"0 a/b 1,2", "0 é \\ 3", "1 a bc"}, ""},
		{"empty", "", nil, "the dump is cut short"},
		{"cut in the data", strings.TrimSuffix(oneDump, "DATA=END\n"), []string{"0 a/b 1,2", "0 é \\ 3"}, "the dump is cut short"},
		{"cut between key and value", "VERSION=3\nHEADER=END\n 61\nDATA=END\n", nil, `"DATA=END" isn't db_dump's`},
		{"a message", "perl: not found\n", nil, `"perl: not found" isn't db_dump's`},
		{"a format", "format=xml\nHEADER=END\nDATA=END\n", nil, `"format=xml" is unknown`},
		{"no hexadecimal", "HEADER=END\n zz\n", nil, "encoding/hex: invalid byte: U+007A 'z'"},
		{"half an escape", "format=print\nHEADER=END\n a\\4\n", nil, `"a\\4" ends in an escape`},
		{"a long line", "HEADER=END\n " + strings.Repeat("6", 64<<10) + "\n", nil, "bufio.Scanner: token too long"},
	} {
		got, err := dumped(tt.text)
		if diff := cmp.Diff(tt.want, got); diff != "" || fmt.Sprint(err) != fmt.Sprint(orNil(tt.err)) {
			t.Errorf("%s: %v, want %q (-want +got):\n%s", tt.name, err, tt.err, diff)
		}
	}
}

// orNil is an error's text, "" for none, as fmt.Sprint prints the error.
func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// TestDumpOfBerkeleyDB: db5.3_dump's own output is read, in both formats.
func TestDumpOfBerkeleyDB(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.db")
	load := exec.Command("db5.3_load", name)
	load.Stdin = strings.NewReader(oneDump)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; run test/install-peers", err, out)
	}
	want, err := dumped(oneDump)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{name}, {"-p", name}} {
		out, err := exec.Command("db5.3_dump", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := dumped(string(out))
		if diff := cmp.Diff(want, got, cmp.Transformer("sorted", sorted)); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got):\n%s", args, err, diff)
		}
	}
}

func sorted(s []string) map[string]bool {
	m := map[string]bool{}
	for _, e := range s {
		m[e] = true
	}
	return m
}

// FuzzDump: nothing that a command prints does more than fail.
func FuzzDump(f *testing.F) {
	f.Add([]byte(oneDump))
	f.Add([]byte("HEADER=END\n 61\n 352c31373930303030303030\nDATA=END\nHEADER=END\n 61\n 312c32\nDATA=END\n"))
	g := &policy.Greylist{Delay: 300, MaxAge: 35 * 86400, AutoClients: 5}
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := chooseKnown(bytes.NewReader(text), g, 1_790_000_000)
		if err != nil {
			return
		}
		for _, v := range k.clients.Entries(0, k.clients.Len()) {
			if _, err := policy.ParseGreyClient(v); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestChooseKnown(t *testing.T) {
	const now = 1_790_000_000
	entry := func(key string, a, b int64) string { return fmt.Sprintf(" %s\n %d,%d\n", key, a, b) }
	head := "VERSION=3\nformat=print\nHEADER=END\n"
	text := head + entry("passed", now-400, now-100) + entry("new", now-299, now) + entry("too old", now-36*86400, now-35*86400-1) +
		entry("Just", now-36*86400, now-35*86400) + " odd\n x\n" + " host\n 1,400000000000000000000\n" + "DATA=END\n" +
		head + entry("192.0.2.1", 5, now-100) + entry("192.0.2.2", 4, now-100) + entry("192.0.2.3", 9, now-36*86400) + "DATA=END\n"
	k, err := chooseKnown(strings.NewReader(text), &policy.Greylist{Delay: 300, MaxAge: 35 * 86400, AutoClients: 5}, now)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for key, value := range k.triplets.Entries(0, k.triplets.Len()) {
		got["t "+string(key)] = value
	}
	for key, value := range k.clients.Entries(0, k.clients.Len()) {
		got["c "+string(key)] = value
	}
	want := map[string]string{"t passed": "20717", "t just": "20682", "c 192.0.2.1": "5,1790035200", "c 192.0.2.2": "4,1789999900"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRememberedGreylist: a database is left alone for a while, and one that can't be
// read any more is what it was.
func TestRememberedGreylist(t *testing.T) {
	m := &Memo{}
	now := time.Now()
	reads, broken := 0, error(nil)
	look := func(rules string) (*greyKnown, error) {
		return m.greylist("dir", rules, 10*time.Second, func() (*greyKnown, error) {
			reads++
			return &greyKnown{read: now, took: time.Second, rules: rules, left: reads}, broken
		})
	}
	for _, tt := range []struct {
		name, rules string
		age         time.Duration
		broken      error
		left        int
		err         bool
		failing     bool
	}{
		{"first", "a", 0, nil, 1, false, false},
		{"soon after", "a", 19 * time.Second, nil, 1, false, false},
		{"later", "a", 21 * time.Second, nil, 2, false, false},
		{"broken later", "a", 21 * time.Second, errors.New("gone"), 2, false, true},
		{"other rules", "b", 0, nil, 4, false, false},
		{"broken with other rules", "c", 0, errors.New("gone"), 0, true, false},
	} {
		if last := m.greylists["dir"]; last != nil {
			last.read = time.Now().Add(-tt.age)
		}
		broken = tt.broken
		k, err := look(tt.rules)
		if (err != nil) != tt.err || err == nil && (k.left != tt.left || (k.failing != nil) != tt.failing) {
			t.Errorf("%s: %+v, %v", tt.name, k, err)
		}
	}
}
