package policysync

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestInvitations: each way to come in without being invited.
func TestInvitations(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	invite := func(t *testing.T, name string) *token {
		t.Helper()
		p.joins.SetBurst(100) // rows are no attack on the rate
		s, err := p.Invite(name)
		if err != nil {
			t.Fatal(err)
		}
		tok, err := parseToken(s)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	join := func(tok *token) error {
		_, err := Join(t.Context(), t.TempDir(), tok.String())
		return err
	}
	for _, tt := range []struct {
		name string
		try  func(t *testing.T) error
		want Alarm
	}{
		{"invited", func(t *testing.T) error { return join(invite(t, "a")) }, ""},
		{"token used before", func(t *testing.T) error {
			tok := invite(t, "b")
			if err := join(tok); err != nil {
				t.Fatal(err)
			}
			invite(t, "other") // keeps the door open to strangers
			return join(tok)
		}, AlarmRefused},
		{"token of sixteen minutes ago", func(t *testing.T) error {
			tok := invite(t, "c")
			p.clock.add(16 * time.Minute)
			invite(t, "other")
			return join(tok)
		}, AlarmRefused},
		{"nobody is invited", func(t *testing.T) error {
			tok := invite(t, "d")
			p.clock.add(16 * time.Minute)
			return join(tok)
		}, AlarmRefused},
		{"wrong secret", func(t *testing.T) error {
			tok := invite(t, "e")
			tok.secret[0]++
			return join(tok)
		}, AlarmRefused},
		{"right secret after five wrong ones", func(t *testing.T) error {
			tok := invite(t, "f")
			bad := *tok
			bad.secret[0]++
			for range maxTries {
				if join(&bad) == nil {
					t.Fatal("a wrong secret")
				}
			}
			return join(tok)
		}, AlarmRefused},
		{"unknown invitation", func(t *testing.T) error {
			tok := invite(t, "g")
			tok.id[0]++
			return join(tok)
		}, AlarmRefused},
		{"revoked invitation", func(t *testing.T) error {
			tok := invite(t, "h")
			if err := p.Revoke("h"); err != nil {
				t.Fatal(err)
			}
			invite(t, "other")
			return join(tok)
		}, AlarmRefused},
		{"replaced invitation", func(t *testing.T) error {
			tok := invite(t, "i")
			invite(t, "i")
			return join(tok)
		}, AlarmRefused},
		{"another machine answers", func(t *testing.T) error {
			tok := invite(t, "j")
			tok.server[0]++
			return join(tok)
		}, AlarmPin},
		{"nobody answers", func(t *testing.T) error {
			tok := invite(t, "k")
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			tok.address = l.Addr().String()
			l.Close()
			return join(tok)
		}, AlarmUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.try(t)
			if got := alarmOf(err, ""); got != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("got %v, want alarm %q", err, tt.want)
			}
		})
	}
}

// TestProofIsBound: a proof made for one session or key is worth nothing in
// another.
func TestProofIsBound(t *testing.T) {
	p := newTestPublisher(t)
	s, err := p.Invite("a")
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := parseToken(s)
	id, pin := hex.EncodeToString(tok.id[:]), Pin{1}
	if _, err := p.peers.redeem(id, []byte("short"), []byte("session 1"), pin, p.clock.now(), "", nil); err == nil {
		t.Error("a proof that is none")
	}
	proof := signWith(tok, "session 1")
	if _, err := p.peers.redeem(id, proof, []byte("session 2"), pin, p.clock.now(), "", nil); err == nil {
		t.Error("a proof of another session")
	}
	if _, err := p.peers.redeem(id, proof, []byte("session 1"), pin, p.clock.now(), "", nil); err != nil {
		t.Error(err)
	}
}

func signWith(tok *token, msg string) []byte {
	return ed25519.Sign(tok.proofKey(), []byte(msg))
}

func TestTokens(t *testing.T) {
	good := (&token{address: "mx1.example.org:8525", server: Pin{1}, id: inviteID{2}, secret: [16]byte{3}}).String()
	if tok, err := parseToken(" " + good + "\n"); err != nil || tok.String() != good {
		t.Errorf("%v, %v", tok, err)
	}
	if len(good) > 160 {
		t.Errorf("a token of %d characters is no line to paste", len(good))
	}
	for n := range good {
		if _, err := parseToken(good[:n]); err == nil {
			t.Fatalf("cut to %d characters", n)
		}
		if _, err := parseToken(good[:n] + string(good[n]^1) + good[n+1:]); err == nil {
			t.Fatalf("character %d changed", n)
		}
	}
	for _, addr := range []string{"", "host", "host:1/x", "a@b:1", "h:1?x", "h:1#x", strings.Repeat("a", 250) + ":1 24"} {
		if _, err := parseToken((&token{address: addr}).String()); err == nil {
			t.Errorf("address %q", addr)
		}
	}
	for _, name := range []string{"", "A", "a b", "a/b", "../x", "a\n", "a\x00", "ä", strings.Repeat("a", 64)} {
		if _, err := newPrimaryDir(t).Invite(name); err == nil {
			t.Errorf("name %q", name)
		}
	}
}

// newPrimaryDir is a publisher that doesn't listen.
func newPrimaryDir(t *testing.T) *Publisher {
	t.Helper()
	p, err := OpenPublisher(PublisherOptions{Dir: t.TempDir(), Address: "127.0.0.1:1", Metrics: newMetrics()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSecretsAtRest: nothing on the primary's disk lets anybody join, and keys
// are their owner's alone.
func TestSecretsAtRest(t *testing.T) {
	p := newTestPublisher(t)
	s, err := p.Invite("a")
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := parseToken(s)
	dir := p.join(t, "b")
	for _, d := range []string{p.o.Dir, dir} {
		err := filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			if fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", name, fi.Mode())
			}
			b, err := os.ReadFile(name)
			for _, secret := range [][]byte{tok.secret[:], []byte(hex.EncodeToString(tok.secret[:])), tok.proofKey().Seed()} {
				if bytes.Contains(b, secret) {
					t.Errorf("%s holds the invitation's secret", name)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestRevoke(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	poll(t, f)
	waiting := make(chan error, 1)
	go func() { waiting <- f.poll(t.Context()) }()
	<-p.waiting
	if err := p.Revoke("mx2"); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; alarmOf(err, "") != AlarmRefused {
		t.Errorf("a revoked follower that was waiting: %v", err)
	}
	if err := f.poll(t.Context()); alarmOf(err, "") != AlarmRefused {
		t.Errorf("a revoked follower on its connection: %v", err)
	}
	f.http.close()
	if err := f.poll(t.Context()); alarmOf(err, "") != AlarmRefused || !strings.Contains(err.Error(), "refused our key") { // in TLS
		t.Errorf("a revoked follower that comes again: %v", err)
	}
	if got := rcpt(t, f.Current(), "a@example.org"); got != 250 {
		t.Errorf("a is answered %d", got)
	}
	if p.Revoke("mx2") == nil || len(p.Peers()) != 0 {
		t.Error("it is there still")
	}
}

// TestRevokedWaiting: what a follower waits for when it is revoked isn't sent.
func TestRevokedWaiting(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	poll(t, f)
	type answer struct {
		head []byte
		err  error
	}
	waiting := make(chan answer, 1)
	go func() {
		b, err := f.http.head(t.Context(), 1)
		waiting <- answer{b, err}
	}()
	<-p.waiting
	if err := p.Revoke("mx2"); err != nil {
		t.Fatal(err)
	}
	if a := <-waiting; alarmOf(a.err, "") != AlarmRefused || a.head != nil {
		t.Errorf("a head of %d octets, %v", len(a.head), a.err)
	}
}

// TestSameKeysStay: a head that announces the keys that are trusted writes and
// says nothing.
func TestSameKeysStay(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	var log strings.Builder
	f.o.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := &Head{ServerPins: f.pair.pins(), PolicyKeys: f.pair.keys()}
	file := filepath.Join(f.o.Dir, pairingFile)
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.trust(h); err != nil || log.Len() > 0 {
		t.Errorf("%v, log %q", err, log.String())
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("the pairing was written anew, %v", err)
	}
	h.PolicyKeys = append([]Pin{{1}}, h.PolicyKeys...)
	f.o.fs = &failing{osFS{}, "write", pairingFile}
	if err := f.trust(h); alarmOf(err, "") != AlarmStore || log.Len() > 0 {
		t.Errorf("another key that can't be stored: %v, log %q", err, log.String())
	}
	f.o.fs = osFS{}
	if err := f.trust(h); err != nil || !strings.Contains(log.String(), "policy_keys=2") {
		t.Errorf("another key: %v, log %q", err, log.String())
	}
	if after, err := os.Stat(file); err != nil || os.SameFile(before, after) {
		t.Errorf("the new keys aren't stored, %v", err)
	}
}

// TestRotation changes the primary's keys, then the follower's, without
// pairing again.
func TestRotation(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org")
	poll(t, f)
	if p.FinishRotation(true) == nil {
		t.Error("finished what wasn't begun")
	}
	p.clock.add(time.Second)
	if err := p.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	if p.RotateKeys() == nil || p.FinishRotation(false) == nil {
		t.Error("keys changed before the follower knew")
	}
	p.clock.add(2 * time.Second)
	p.publish(t, newSpec(t, []string{"example.org"}, "b@example.org"))
	poll(t, f)
	if err := p.FinishRotation(false); err != nil {
		t.Fatal(err)
	}
	p.publish(t, newSpec(t, []string{"example.org"}, "c@example.org"))
	f.http.close()
	poll(t, f)
	if n, k := len(f.pair.pins()), len(f.pair.keys()); n != 1 || k != 1 || f.pair.pins()[0] != PinOf(publicOf(p.keys.server)) {
		t.Errorf("the follower trusts %d server keys and %d policy keys", n, k)
	}
	old, self := f.http, f.self
	waiting := make(chan error, 1)
	go func() { waiting <- f.poll(t.Context()) }()
	<-p.waiting
	f.o.fs = &deadRename{osFS{}}
	if err := f.RotateKey(t.Context()); err == nil {
		t.Error("a key that couldn't be stored is in use")
	}
	f.o.fs = osFS{}
	if err := f.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.self == self {
		t.Error("the follower has its old key")
	}
	if _, err := f.http.head(t.Context(), 0); err != nil { // ends the old key's time
		t.Fatal(err)
	}
	p.publish(t, newSpec(t, []string{"example.org"}, "d@example.org"))
	if err := <-waiting; err != nil {
		t.Errorf("a poll that waited meanwhile: %v", err)
	}
	if got := rcpt(t, f.Current(), "d@example.org"); got != 250 {
		t.Errorf("d is answered %d", got)
	}
	old.close()
	if _, err := old.head(t.Context(), 0); alarmOf(err, "") != AlarmRefused {
		t.Errorf("the old key is good still: %v", err)
	}
	if again := p.follow(t, dir, "example.org"); again.self != f.self {
		t.Error("after a restart the follower has another key")
	}
}

// deadRename is a disk on which no new key takes the old one's place.
type deadRename struct{ fileSystem }

func (d deadRename) Rename(from, to string) error {
	if path.Base(to) == clientKeyFile {
		return errKilled
	}
	return d.fileSystem.Rename(from, to)
}

// TestPublisherRestart: numbers go on, and content that didn't change makes no
// version.
func TestPublisherRestart(t *testing.T) {
	dir := t.TempDir()
	open := func() *Publisher {
		p, err := OpenPublisher(PublisherOptions{Dir: dir, Metrics: newMetrics()})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, two := snapshot(t, newSpec(t, []string{"example.org"}, "a@example.org")), snapshot(t, newSpec(t, []string{"example.org"}))
	var epoch uint64
	for i, tt := range []struct {
		publish bool
		version uint64
	}{{true, 1}, {true, 1}, {false, 2}, {false, 2}, {true, 3}} {
		p, s := open(), two
		if tt.publish {
			s = one
		}
		if err := p.Publish(s); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			epoch = p.head.Epoch
		}
		if p.head.Version != tt.version || p.head.Epoch != epoch {
			t.Errorf("start %d: version %d.%d, want %d.%d", i, p.head.Epoch, p.head.Version, epoch, tt.version)
		}
	}
	for _, name := range []string{stateFile, peersFile, policyKeyFile} {
		b, err := os.ReadFile(path.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, path.Join(dir, name), []byte("{"))
		if _, err := OpenPublisher(PublisherOptions{Dir: dir, Metrics: newMetrics()}); err == nil {
			t.Errorf("%s is damaged and nobody minds", name)
		}
		write(t, path.Join(dir, name), b)
	}
	if _, err := OpenFollower(FollowerOptions{Dir: t.TempDir(), Domains: []string{"x"}, Metrics: newMetrics()}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(fmt.Sprint(err), "invite") {
		t.Errorf("a follower that isn't paired: %v", err)
	}
}

// TestPairedAgain: who was paired anew under the same name is another one; what
// its old session waits for isn't answered.
func TestPairedAgain(t *testing.T) {
	p := &peers{file: peersState{Peers: []peer{{Name: "mx2", Fingerprint: "new"}, {Name: "mx3", Fingerprint: "third"}}}}
	for _, tt := range []struct {
		name, fingerprint string
		want              bool
	}{{"mx2", "new", true}, {"mx3", "third", true}, {"mx2", "old", false}, {"mx2", "third", false}, {"mx4", "new", false}} {
		if got := p.paired(&peer{Name: tt.name, Fingerprint: tt.fingerprint}); got != tt.want {
			t.Errorf("%s %s: %v", tt.name, tt.fingerprint, got)
		}
	}
}
