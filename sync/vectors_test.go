package policysync

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

const (
	vectors       = "testdata/vectors"
	hashedVectors = "testdata/vectors-hashed"
)

//go:generate env UPDATE=1 go test -run ^TestVectors$ .

// vectorSettings are fixed, so that a field that the policy gains changes no
// vector.
const vectorSettings = `{
 "version": 1,
 "addresses": {
  "local": {"domains": ["mx1.example.org"], "recipients": ["users"]},
  "virtual_alias": {},
  "virtual_mailbox": {},
  "relay": {"domains": ["example.org"], "recipients": ["recipients"]}
 }
}
`

// vectorSource is small and has a table of every kind.
func vectorSource(t *testing.T) *source {
	s := newSpec(t, []string{"example.org"}, "alice@example.org", "bob@example.org", "@sub.example.org")
	s.Addresses.Local = policy.AddressClass{Domains: []string{"mx1.example.org"}, Recipients: []string{"users"}}
	s.Tables["users"], _ = table.NewSet([]string{"root", "postmaster"})
	s.Tables["senders"], _ = table.NewHash(map[string]string{"spam.example": "REJECT", "ham.example": "OK"})
	s.Tables["clients"], _ = table.NewCIDR([][2]string{{"192.0.2.0/24", "OK"}, {"2001:db8::1", "REJECT 5.7.1 no"}})
	s.Tables["nobody"] = table.NewStatic("DUNNO")
	src, err := layOut(s, cutSettings([]byte(vectorSettings)), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// vectorHead signs the vectors' head: version 2, with every field set.
func vectorHead(src *source) (*Head, []byte) {
	h := &Head{Stream: [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, Epoch: 1_800_000_000, Version: 2, Prev: hash{0xaa, 0xbb},
		Created: time.Unix(1_800_000_060, 0), Expires: time.Unix(1_800_000_660, 0),
		ServerPins: []Pin{PinOf(publicOf(testKey('s'))), PinOf(publicOf(testKey('t')))},
		PolicyKeys: []Pin{Pin(publicOf(testKey('p')))}, Notice: "sql: last good answer 5 minutes ago"}
	src.fill(h)
	return h, h.sign(testKey('p'))
}

// vectorPairing is an invitation and its proof.
func vectorPairing(t *testing.T) []byte {
	tok := &token{address: "mx1.example.org:8525", server: PinOf(publicOf(testKey('s'))), id: inviteID{1, 2, 3}, secret: [16]byte{4, 5, 6}}
	exported, client := bytes.Repeat([]byte{7}, 32), PinOf(publicOf(testKey('c')))
	msg := append(append([]byte(joinPrefix), exported...), client[:]...)
	b, err := json.MarshalIndent(map[string]string{
		"token": tok.String(), "address": tok.address, "server_pin": tok.server.String(), "id": hex.EncodeToString(tok.id[:]),
		"secret": hex.EncodeToString(tok.secret[:]), "verifier": hex.EncodeToString(publicOf(tok.proofKey())),
		"exporter": hex.EncodeToString(exported), "client_pin": client.String(), "proof": hex.EncodeToString(ed25519.Sign(tok.proofKey(), msg)),
		"policy_key": Pin(publicOf(testKey('p'))).String(), "fingerprint": Fingerprint(tok.server, client, Pin(publicOf(testKey('p')))),
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// vectorFiles are what a head and its chunks are, by name.
func vectorFiles(src *source, h *Head, raw []byte) map[string][]byte {
	files := map[string][]byte{"head.bin": raw, "policy.pub": []byte(hex.EncodeToString(h.PolicyKeys[0][:]) + "\n")}
	for _, r := range h.index {
		files["chunks/"+hex.EncodeToString(r.hash[:])] = src.chunk(r.hash)
	}
	for name := range src.places {
		files["chunks/"+hex.EncodeToString(name[:])] = src.chunk(name)
	}
	return files
}

// hashedVectorFiles are the same policy hashed.
func hashedVectorFiles(t *testing.T) map[string][]byte {
	var secret table.Secret
	for i := range secret {
		secret[i] = byte(i)
	}
	plain := vectorSource(t)
	h, _ := vectorHead(plain)
	src, err := hashSource(plain, &secret, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Prev, h.Source, h.SecretID = sourceOf(&secret, h.Prev), sourceOf(&secret, h.identity), secretID(&secret)
	src.fill(h)
	files := vectorFiles(src, h, h.sign(testKey('p')))
	text, _ := secret.MarshalText()
	files["secret"] = append(text, '\n')
	files["keys.txt"] = []byte("alice@example.org\nmallory@example.org\n@sub.example.org\nroot\nspam.example\n")
	return files
}

// TestVectors keeps the protocol's bytes what docs/PROTOCOL.md says: with
// UPDATE=1 it writes them.
func TestVectors(t *testing.T) {
	src := vectorSource(t)
	h, raw := vectorHead(src)
	files := vectorFiles(src, h, raw)
	files["pairing.json"] = vectorPairing(t)
	checkVectors(t, vectors, files)
	checkVectors(t, hashedVectors, hashedVectorFiles(t))
}

func checkVectors(t *testing.T, dir string, files map[string][]byte) {
	if os.Getenv("UPDATE") != "" {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "chunks"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("python3", "testdata/verify.py", dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "head.json"), out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s changed: the format is another now; give it another number, then run with UPDATE=1", name)
		}
	}
}

// TestIndependentHashes: the same decoder finds hashed keys, by the document
// alone.
func TestIndependentHashes(t *testing.T) {
	want, err := os.ReadFile(filepath.Join(hashedVectors, "head.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("python3", "testdata/verify.py", hashedVectors).Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	var said struct {
		Found map[string]struct{ Tables []string }
	}
	if err := json.Unmarshal(got, &said); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for key, f := range said.Found {
		found[key] = strings.Join(f.Tables, " ")
	}
	if diff := cmp.Diff(map[string]string{"alice@example.org": "recipients", "mallory@example.org": "", "@sub.example.org": "recipients", "root": "users", "spam.example": "senders"}, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}

// TestIndependentDecoder runs the decoder that knows nothing but the document,
// on the vectors and on spoilt ones.
func TestIndependentDecoder(t *testing.T) {
	for _, tool := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatal(tool + " is missing: run test/install-peers")
		}
	}
	want, err := os.ReadFile(filepath.Join(vectors, "head.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("python3", "testdata/verify.py", vectors).Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	h, _ := vectorHead(vectorSource(t))
	var said struct {
		Identity   string
		Epoch      uint64
		Recipients uint64
		Notice     string
		Tables     map[string]int
	}
	if err := json.Unmarshal(got, &said); err != nil {
		t.Fatal(err)
	}
	if said.Identity != hex.EncodeToString(h.identity[:]) || said.Epoch != h.Epoch || said.Recipients != 5 || said.Notice != h.Notice || said.Tables["senders"] != 2 {
		t.Errorf("the decoder read %+v", said)
	}
	for _, spoil := range []string{"head.bin", "chunks"} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(vectors)); err != nil {
			t.Fatal(err)
		}
		err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() && strings.Contains(name, dir+"/"+spoil) {
				var b []byte
				if b, err = os.ReadFile(name); err == nil {
					b[len(b)/2] ^= 1
					err = os.WriteFile(name, b, 0o644)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("python3", "testdata/verify.py", dir).Output(); err == nil {
			t.Errorf("with %s spoilt the decoder says %s", spoil, out)
		}
	}
}
