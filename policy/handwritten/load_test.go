package handwritten

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/policy"
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
	if diff := cmp.Diff(policy.Stats{Domains: 1, Recipients: 2, Rules: 6}, s.Stats()); diff != "" {
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

// TestSpecs: what the example and the decision tables' policy files become.
func TestSpecs(t *testing.T) {
	files, err := filepath.Glob("../testdata/decisions/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("testdata/example.toml")
	if err != nil {
		t.Fatal(err)
	}
	policies := map[string][]byte{"example": example}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			if f.Name == "policy.toml" {
				policies[strings.TrimSuffix(filepath.Base(file), ".txtar")] = f.Data
			}
		}
	}
	if len(policies) < 4 {
		t.Fatalf("only %d policy files", len(policies))
	}
	for name, text := range policies {
		s, err := Parse(name, text, func(string) ([]byte, error) { return []byte("dave@example.org\n"), nil })
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata/specs", name+".json")
		if *update {
			if err := os.WriteFile(golden, s.Encode(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(s.Encode())); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}
