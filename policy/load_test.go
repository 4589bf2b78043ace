package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the mistakes' tests see into their files")

// TestMistakes reads the policies of testdata/mistakes: the first file of an
// archive is the policy, "want" the lines that the operator should see.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no mistakes: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range ar.Files {
				parts[f.Name] = string(f.Data)
			}
			_, err = Parse(ar.Files[0].Name, ar.Files[0].Data, func(name string) ([]byte, error) {
				if b, found := parts[name]; found {
					return []byte(b), nil
				}
				return nil, &fs.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
			})
			if err == nil {
				t.Fatal("no error")
			}
			if *update {
				for i := range ar.Files {
					if ar.Files[i].Name == "want" {
						ar.Files[i].Data = []byte(err.Error() + "\n")
					}
				}
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(parts["want"], err.Error()+"\n"); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

const smallPolicy = `domains = ["example.org"]
recipients = ["alice@example.org"]
[client]
block = ["192.0.2.0/24", "bad.example"]
[[dnsbl]]
zone = "bl.example"
codes = "127.0.0.2"
reply = "Listed at $rbl_domain"
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.toml")
	list := filepath.Join(dir, "list")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, `recipients_file = "list"`+"\n"+smallPolicy)
	write(list, "bob@example.org\n")
	s, files, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{path, list}, files); diff != "" {
		t.Errorf("files: -want +got\n%s", diff)
	}
	if diff := cmp.Diff(Stats{Domains: 1, Recipients: 2, Rules: 6}, s.Stats()); diff != "" {
		t.Errorf("stats: -want +got\n%s", diff)
	}

	// The files to watch are named even when one is missing.
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	_, files, err = Load(path, nil)
	if err == nil || len(files) != 2 {
		t.Errorf("got files %v and error %v, want both files and an error", files, err)
	}
	if !strings.HasPrefix(err.Error(), path+":1:1: ") {
		t.Errorf("error doesn't start with its place: %v", err)
	}
	if _, _, err := Load(filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing policy: %v", err)
	}
	if _, _, err := Load(dir, nil); err == nil {
		t.Error("a directory was loaded")
	}

	// The canonical encoding is a policy file too.
	snapshot := filepath.Join(dir, "snapshot.json")
	write(snapshot, string(s.Encode()))
	back, _, err := Load(snapshot, nil)
	if err != nil {
		t.Fatal(err)
	}
	if back.Digest() != s.Digest() {
		t.Error("the digest changed on the way")
	}
}

func TestEncodeIsCanonical(t *testing.T) {
	files, err := filepath.Glob("testdata/decisions/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parts := map[string][]byte{}
		for _, f := range ar.Files {
			parts[f.Name] = f.Data
		}
		s := loadParts(t, parts)
		back, err := Parse("s.json", s.Encode(), nil)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if !bytes.Equal(s.Encode(), back.Encode()) {
			t.Errorf("%s: encoding again differs\n%s", file, cmp.Diff(string(s.Encode()), string(back.Encode())))
		}
		r := specReader{d: json.NewDecoder(bytes.NewReader(s.Encode()))}
		if _, err := r.spec(); err != nil {
			t.Errorf("%s: can't be read token by token: %v", file, err)
		}
		wantStreamed(t, string(s.Encode()), s)
	}
}

// TestDecodeLate reads a snapshot in which somebody added recipients by hand.
func TestDecodeLate(t *testing.T) {
	encoding := func(keys string) string {
		s, err := Parse("p.toml", []byte("domains = [\"a.example\"]\nrecipients = [\"b@a.example\", \"d@a.example\"]\n"), nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Replace(string(s.Encode()), `"b@a.example"`, keys, 1)
	}
	for keys, want := range map[string][]string{
		`"b@a.example"`:                               {"b@a.example", "d@a.example"},
		`"b@a.example", "A@a.example"`:                {"a@a.example", "b@a.example", "d@a.example"},
		`"z@a.example", "c@a.example", "a@a.example"`: {"a@a.example", "c@a.example", "d@a.example", "z@a.example"},
		`"b@a.example", "B@a.example"`:                nil,
		`"b@a.example", "d@a.example"`:                nil,
		`"c@a.example", "b@a.example", "C@a.example"`: nil,
	} {
		s, err := Parse("s.json", []byte(encoding(keys)), nil)
		if want == nil {
			if err == nil || !strings.Contains(err.Error(), "twice") {
				t.Errorf("%s: got %v", keys, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		table, got := s.spec.Tables["recipients"], []string(nil)
		for key := range table.Entries(0, table.Len()) {
			got = append(got, string(key))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", keys, diff)
		}
	}
}

// TestCompilePanics: what makes Compile panic is an error of that policy alone.
func TestCompilePanics(t *testing.T) {
	if s, err := Compile(nil); s != nil || err == nil {
		t.Errorf("no policy is compiled: %v, %v", s, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	s, err := Parse("p.toml", []byte(smallPolicy), nil)
	if err != nil {
		t.Fatal(err)
	}
	good := string(s.Encode())
	for _, test := range []struct{ name, old, new, want string }{
		{"version", `"version": 1`, `"version": 7`, "s.json:1:1: version 7 is unknown; this program reads version 1"},
		{"no version", `"version": 1,`, ``, "s.json:1:1: version is missing; this is no policy snapshot"},
		{"field", `"delay_reject"`, `"delayreject"`, `s.json: json: unknown field "delayreject"`},
		{"table field", `"type": "cidr"`, `"type": "cidr", "sort": 1`, `s.json: json: unknown field "sort"`},
		{"table type", `"type": "cidr"`, `"type": "btree"`, `s.json: unknown table type "btree"`},
		{"field's type", `"delay_reject": true`, `"delay_reject": 1`, "s.json:3:19: delay_reject: want bool, not number"},
		{"restriction", `"reject_unauth_destination"`, `"reject_unauth_destinations"`,
			`s.json: restrictions.relay: unknown restriction "reject_unauth_destinations"`},
		{"table", `"check_client_access client.block.names"`, `"check_client_access client.blok.names"`,
			`s.json: restrictions.client: check_client_access: no table is called "client.blok.names"`},
		{"filter", `"reject_rbl_client bl.example=127.0.0.2"`, `"reject_rbl_client bl.example=127.0.0"`,
			`s.json: restrictions.client: reject_rbl_client: filter "127.0.0": it needs four fields; write it as 127.0.0.2 or 127.0.0.[2..11;20]`},
		{"prefix", `"192.0.2.0/24"`, `"192.0.2.1/24"`, `s.json: "192.0.2.1/24" has host bits; write 192.0.2.0/24`},
		{"code", `"defer_code": 450`, `"defer_code": 250`, `s.json: codes.defer_code: 250 is no reply code from 400 to 599`},
		{"octet", `"version": 1,`, `"version": 1, "content": {"message_reject_characters": [0, 256]},`,
			"s.json: content: message_reject_characters: 256 is no octet from 0 to 255"},
		{"rest", "\n}\n", "\n}\n{}\n", "not valid JSON"},
		{"syntax", `"version": 1,`, `"version": 1`, "not valid JSON"},
	} {
		bad := strings.Replace(good, test.old, test.new, 1)
		if bad == good {
			t.Fatalf("%s: %q is not in the snapshot\n%s", test.name, test.old, good)
		}
		_, err := Parse("s.json", []byte(bad), nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s:\n got %v\nwant %s", test.name, err, test.want)
		}
	}
}

// TestExample keeps the example complete: it holds every key there is.
func TestExample(t *testing.T) {
	s, files, err := Load("testdata/example.toml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); len(files) != 2 || got.Domains != 2 || got.Recipients != 4 {
		t.Errorf("got %+v from %v", got, files)
	}
	b, err := os.ReadFile("testdata/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]string{rootKeys, listKeys, entryKeys, dnsblKeys, checkKeys, limitKeys} {
		for _, k := range keys {
			if !bytes.Contains(b, []byte(k)) {
				t.Errorf("key %s is not in the example", k)
			}
		}
	}
}
