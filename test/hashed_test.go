package test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// TestHashed follows a Postfix primary that begins to hash its recipients:
// the decisions stay, the addresses leave the secondary's disk.
func TestHashed(t *testing.T) {
	p := newPublisher(t, newFarAway(t))
	p.mailboxes("alice@example.org", "postbox@example.org")
	p.start()
	s := newFollowing(t, "127.0.0.1:1")
	pair(t, p, s)
	s.start()
	s.wantReply("alice@example.org", 250)
	if !s.holds("alice@") {
		t.Fatal("plain, the address is not found on the secondary's disk: the search can't tell")
	}
	boxes := func(names ...string) { // so many that one that goes asks nobody
		t.Helper()
		p.mailboxes(append(slices.Clone(stays), names...)...)
	}
	boxes("alice@example.org", "postbox@example.org")
	s.wantReply(stays[0], 250)
	restart := func() {
		t.Helper()
		p.kill()
		p.start()
	}
	write(t, p.conf(), strings.Replace(readFile(t, p.conf()), "[policy]\n", "hashed = true\n[policy]\n", 1))
	restart()
	eventually(t, 60*time.Second, "the address is gone from the secondary's disk", func() bool { return !s.holds("alice@") })
	s.wantReply("Alice@example.org", 250)
	s.wantReply("hanna@example.org", 550)
	boxes("alice@example.org", "hanna@example.org")
	s.wantReply("hanna@example.org", 250)
	s.wantReply("postbox@example.org", 550)
	if v := s.explain(t, "192.0.2.200", "mx.good.example", "bob@sender.example", "hanna@example.org"); v.Action != "permit" {
		t.Errorf("explain says %+v", v)
	}
	if out := s.cli("policy", "diff"); !strings.Contains(out, "+ (hashed)@example.org") || strings.Contains(out, "hanna") {
		t.Errorf("diff says\n%s", out)
	}

	version := s.sync().Version
	restart() // the same version, signed anew: no other identity
	p.cli("rotate")
	boxes("alice@example.org", "gerd@example.org")
	s.wantReply("gerd@example.org", 250) // with the new keys
	p.cli("rotate", "--finish", "--force")
	boxes("alice@example.org", "ivan@example.org")
	s.wantReply("ivan@example.org", 250)
	s.kill()
	p.kill()
	s.start() // without its primary
	s.wantReply("ivan@example.org", 250)
	s.wantReply("hanna@example.org", 550)
	if st := s.sync(); st.Version != version+2 {
		t.Errorf("version %d after %d", st.Version, version)
	}
	for _, word := range []string{"alice@", "hanna@", "ivan@", "gerd@", "postbox@"} {
		if s.holds(word) {
			t.Errorf("%s can be read on the secondary's disk", word)
		}
	}
	if log := readFile(t, s.path("log")); strings.Contains(log, `"alarm":"equivocation"`) || strings.Contains(log, `"alarm":"fork"`) {
		t.Error("hashing raised an alarm")
	}
}

// holds looks for a word in what the secondary keeps of its primary's policy.
func (s *secondary) holds(word string) bool {
	s.t.Helper()
	dec, err := zstd.NewReader(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer dec.Close()
	found := false
	err = filepath.WalkDir(s.path("state/sync"), func(name string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) { // it is being replaced
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			return nil
		}
		if plain, e := dec.DecodeAll(b, nil); e == nil {
			b = plain
		}
		found = found || bytes.Contains(bytes.ToLower(b), []byte(word))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}
