package postfix

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCDB lists what postmap wrote, and never a part of it.
func TestCDB(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte("alice@box.example first\n@other.example   a, b\nlast@box.example x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/postmap", "cdb:"+file).CombinedOutput(); err != nil {
		t.Fatalf("postmap: %v (install postfix-cdb, see test/install-peers)\n%s", err, out)
	}
	i := &importer{src: &Source{}, files: map[string]bool{}}
	tab, err := i.cdbTable(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"alice@box.example": "first", "@other.example": "a, b", "last@box.example": "x"}
	if diff := cmp.Diff(want, tab.Entries); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !i.files[file+".cdb"] {
		t.Error("a change of the file wouldn't be noticed")
	}
	whole, err := os.ReadFile(file + ".cdb")
	if err != nil {
		t.Fatal(err)
	}
	write := func(b string) {
		if err := os.WriteFile(file+".cdb", []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n := range whole {
		write(string(whole[:n]))
		if tab, err := i.cdbTable(file); err == nil {
			t.Fatalf("%d of %d octets are taken: %v", n, len(whole), tab.Entries)
		}
	}
	write(string(whole[:2048]) + "\xff\xff\xff\xff\xff\xff\xff\xff" + string(whole[2056:]))
	if _, err := i.cdbTable(file); err == nil {
		t.Error("lengths beyond the end are taken")
	}
}

func FuzzCDB(f *testing.F) {
	f.Add(strings.Repeat("\x08\x08\x00\x00\x00\x00\x00\x00", 256) + "\x01\x00\x00\x00\x01\x00\x00\x00")
	file := filepath.Join(f.TempDir(), "x")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file+".cdb", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = (&importer{src: &Source{}, files: map[string]bool{}}).cdbTable(file)
	})
}
