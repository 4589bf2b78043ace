package policysync

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/understudy-mx/understudy/policy"
)

// attack is one thing that a primary in wrong hands may try, after it served
// version 1 honestly. Each field, when set, spoils one part of version 2.
type attack struct {
	name   string
	want   Alarm
	spec   func(t *testing.T, s *policy.Spec) // the policy itself
	forge  func(f *forgery)                   // its chunks and index
	head   func(h *Head)                      // what is signed
	raw    func(b []byte) []byte              // what is sent as the head
	answer http.HandlerFunc                   // any answer
	same   bool                               // each chunk has an octet changed
	wait   time.Duration                      // between the signature and its arrival
}

// signed makes a head's octets of others.
func signed(b []byte) []byte { return append(b, ed25519.Sign(testKey('p'), b)...) }

func unsigned(b []byte) []byte { return b[: len(b)-64 : len(b)-64] }

func onHead(fn http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/head" {
			fn(w, r)
		}
	}
}

// onChunk answers the request for a chunk with octets that claim to be
// compressed.
func onChunk(body func() []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/chunks/") {
			w.Header().Set("Content-Encoding", "zstd")
			_, _ = w.Write(body())
		}
	}
}

func zeros(n int) []byte {
	e, _ := zstd.NewWriter(nil)
	defer e.Close()
	return e.EncodeAll(make([]byte, n), nil)
}

var headAttacks = []attack{
	{name: "other key", want: AlarmSignature, raw: func(b []byte) []byte {
		return append(unsigned(b), ed25519.Sign(testKey('x'), unsigned(b))...)
	}},
	{name: "TLS key in place of the policy key", want: AlarmSignature, raw: func(b []byte) []byte {
		return append(unsigned(b), ed25519.Sign(testKey('s'), unsigned(b))...)
	}},
	{name: "one bit changed", want: AlarmSignature, raw: func(b []byte) []byte { b[100] ^= 4; return b }},
	{name: "signature of zeros", want: AlarmSignature, raw: func(b []byte) []byte { return append(unsigned(b), make([]byte, 64)...) }},
	{name: "no signature", want: AlarmSignature, raw: unsigned},
	{name: "empty", want: AlarmSignature, raw: func([]byte) []byte { return nil }},
	{name: "signature of a shorter text", want: AlarmSignature, raw: func(b []byte) []byte {
		return append(unsigned(b), ed25519.Sign(testKey('p'), b[:50])...)
	}},
	{name: "signed text of another kind", want: AlarmSignature, raw: func([]byte) []byte { return signed([]byte("something else, signed with the same key")) }},
	{name: "endless head", want: AlarmProtocol, raw: func(b []byte) []byte { return append(b, make([]byte, maxHead)...) }},
	{name: "cut and signed again", want: AlarmHead, raw: func(b []byte) []byte { return signed(unsigned(b)[:150:150]) }},
	{name: "trailing octets, signed", want: AlarmHead, raw: func(b []byte) []byte { return signed(append(unsigned(b), "more"...)) }},
	{name: "unknown format", want: AlarmHead, raw: func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[len(headMagic):], 2)
		return signed(unsigned(b))
	}},
	{name: "no index", want: AlarmHead, head: func(h *Head) { h.index = nil }},
	{name: "more index chunks than may be", want: AlarmHead, head: func(h *Head) { h.index = make([]ref, maxIndexChunks+1) }},
	{name: "index chunk too large", want: AlarmHead, head: func(h *Head) { h.index[0].size = maxIndexChunk + 1 }},
	{name: "no server key", want: AlarmHead, head: func(h *Head) { h.ServerPins = nil }},
	{name: "three policy keys", want: AlarmHead, head: func(h *Head) { h.PolicyKeys = make([]Pin, 3) }},
	{name: "notice that is no text", want: AlarmHead, head: func(h *Head) { h.Notice = "\xff\xfe" }},
	{name: "notice too long", want: AlarmHead, head: func(h *Head) { h.Notice = strings.Repeat("a", maxNotice+1) }},
	{name: "year 10000", want: AlarmHead, head: func(h *Head) { h.Created = time.Unix(maxTime+1, 0) }},
	{name: "other publisher's stream", want: AlarmStream, head: func(h *Head) { h.Stream[15]++ }},
	{name: "replay of another follower's head", want: AlarmAudience, head: func(h *Head) { h.Audience[0] = 1 }},
	{name: "rollback to version 1 of an older epoch", want: AlarmRollback, head: func(h *Head) { h.Epoch--; h.Version = 1; h.Prev = hash{} }},
	{name: "equivocation", want: AlarmEquivocal, head: func(h *Head) { h.Version = 1; h.Prev = hash{} }},
	{name: "fork", want: AlarmFork, head: func(h *Head) { h.Prev[0]++ }},
	{name: "version 0 of a new epoch", want: AlarmFork, head: func(h *Head) { h.Epoch++; h.Version = 0 }},
	{name: "fast-forward to the last version", want: AlarmFastForward, head: func(h *Head) { h.Version = 1<<64 - 1 }},
	{name: "fast-forward to the last epoch", want: AlarmFastForward, head: func(h *Head) { h.Epoch = 1<<64 - 1 }},
	{name: "freeze: an expired head", want: AlarmExpired, wait: time.Hour},
	{name: "our clock a year ahead", want: AlarmExpired, wait: 365 * 24 * time.Hour},
	{name: "our clock a year behind", want: AlarmFuture, wait: -365 * 24 * time.Hour},
	{name: "signature of tomorrow", want: AlarmFuture, head: func(h *Head) { h.Created = h.Created.Add(24 * time.Hour); h.Expires = h.Created.Add(headLife) }},
	{name: "head that lives for a year", want: AlarmLifetime, head: func(h *Head) { h.Expires = h.Created.AddDate(1, 0, 0) }},
	{name: "expiry before the signature", want: AlarmLifetime, head: func(h *Head) { h.Expires = h.Created.Add(-time.Second) }},
	{name: "snapshot of an exabyte", want: AlarmSize, head: func(h *Head) { h.Octets = 1 << 60 }},
	{name: "too many chunks", want: AlarmSize, head: func(h *Head) { h.Chunks = maxChunks + 1 }},
	{name: "wrong number of records", want: AlarmContent, head: func(h *Head) { h.Records++ }},
	{name: "wrong number of octets", want: AlarmContent, head: func(h *Head) { h.Octets-- }},
	{name: "wrong number of chunks", want: AlarmContent, head: func(h *Head) { h.Chunks++ }},
	{name: "wrong number of recipients", want: AlarmContent, head: func(h *Head) { h.Recipients-- }},
	{name: "wrong number of domains", want: AlarmContent, head: func(h *Head) { h.Domains++ }},
	{name: "wrong counts by domain", want: AlarmContent, head: func(h *Head) { h.PerDomain[0]++ }},
}

var contentAttacks = []attack{
	{name: "index chunks left out", want: AlarmContent, forge: func(f *forgery) { f.layout = f.layout[:1] }},
	{name: "index of nothing", want: AlarmContent, forge: func(f *forgery) { f.index = []byte{tagChunk} }},
	{name: "index cut", want: AlarmContent, forge: func(f *forgery) {
		f.layout.encode(func(b []byte) { f.index = append(f.index, b...) })
		f.index = f.index[:len(f.index)-1]
	}},
	{name: "index with an unknown tag", want: AlarmContent, forge: func(f *forgery) { f.index = []byte{9, 0, 0} }},
	{name: "index that can't be read, of nothing", want: AlarmContent, forge: func(f *forgery) { f.index, f.layout = []byte{9}, nil }},
	{name: "unknown kind of table", want: AlarmContent, forge: func(f *forgery) { f.layout[1].kind = 77 }},
	{name: "second settings", want: AlarmContent, forge: func(f *forgery) { f.layout = append(f.layout, f.layout[0]) }},
	{name: "table without a name", want: AlarmContent, forge: func(f *forgery) { f.layout[1].name = "" }},
	{name: "tables out of order", want: AlarmContent, forge: func(f *forgery) {
		f.layout = append(f.layout, section{kind: kindSet, name: "a"})
	}},
	{name: "same table twice", want: AlarmContent, forge: func(f *forgery) { f.layout = append(f.layout, f.layout[1]) }},
	{name: "section's count too high", want: AlarmContent, forge: func(f *forgery) { f.layout[1].records++ }},
	{name: "chunk's count too high", want: AlarmContent, forge: func(f *forgery) { f.layout[1].chunks[0].records++; f.layout[1].records++ }},
	{name: "chunk of no octets", want: AlarmContent, forge: func(f *forgery) { f.layout[1].chunks[0].size = 0 }},
	{name: "chunk of a gigabyte", want: AlarmSize, forge: func(f *forgery) { f.layout[1].chunks[0].size = 1 << 30 }},
	{name: "chunk larger than may be", want: AlarmContent, forge: func(f *forgery) { f.layout[1].chunks[0].size = maxChunk + 1 }},
	{name: "keys that don't ascend", want: AlarmContent, forge: func(f *forgery) { f.table("b@example.org", "a@example.org") }},
	{name: "same key twice", want: AlarmContent, forge: func(f *forgery) { f.table("a@example.org", "a@example.org") }},
	{name: "record cut", want: AlarmContent, forge: func(f *forgery) {
		f.layout[1].chunks = []ref{f.add([]byte{0, 9, 0, 0, 'a'}, 1)}
		f.layout[1].records = 1
	}},
	{name: "record longer than may be", want: AlarmContent, forge: func(f *forgery) {
		f.layout[1].chunks = []ref{f.add(append([]byte{0x20, 0, 0, 0}, make([]byte, 8192)...), 1)}
		f.layout[1].records = 1
	}},
	{name: "value in a set", want: AlarmContent, forge: func(f *forgery) {
		b, _ := appendRecord(nil, []byte("a@example.org"), []byte("OK"))
		f.layout[1].chunks, f.layout[1].records = []ref{f.add(b, 1)}, 1
	}},
	{name: "key in the settings", want: AlarmContent, forge: func(f *forgery) {
		b, _ := appendRecord(nil, []byte("key"), []byte("{}"))
		f.layout[0].chunks, f.layout[0].records = []ref{f.add(b, 1)}, 1
	}},
	{name: "settings that are no JSON", want: AlarmPolicy, forge: func(f *forgery) { f.settings("\x00\x01") }},
	{name: "settings with an unknown field", want: AlarmPolicy, forge: func(f *forgery) { f.settings(`{"version":1,"next_hop":"evil.example"}`) }},
	{name: "settings of an unknown version", want: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec) { s.Version = 99 }},
	{name: "settings followed by more", want: AlarmPolicy, forge: func(f *forgery) { f.settings(`{"version":1} {}`) }},
	{name: "settings with a table", want: AlarmPolicy, forge: func(f *forgery) { f.settings(`{"version":1,"tables":{"x":{"type":"static","value":"OK"}}}`) }},
	{name: "settings nested a thousand times", want: AlarmPolicy, forge: func(f *forgery) { f.settings(strings.Repeat("[", 20000)) }},
	{name: "unknown restriction", want: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec) {
		s.Restrictions.Recipient = []policy.Restriction{{Kind: "run_command", Arg: "rm"}}
	}},
	{name: "reply code that accepts", want: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec) { s.Codes.UnknownRelayRcpt = 250 }},
	{name: "table that isn't there", want: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec) { s.Addresses.Relay.Recipients = []string{"../../etc/passwd"} }},
}

var wireAttacks = []attack{
	{name: "other chunk under the name", want: AlarmContent, answer: onChunk(func() []byte { return zeros(100) })},
	{name: "other chunk of the same size", want: AlarmContent, same: true},
	{name: "chunk that is not compressed", want: AlarmContent, answer: onChunk(func() []byte { return []byte("plain") })},
	{name: "compression bomb", want: AlarmContent, answer: onChunk(func() []byte { return zeros(16 << 20) })},
	{name: "bomb of many frames", want: AlarmContent, answer: onChunk(func() []byte { return bytes.Repeat(zeros(maxChunk), 500) })},
	{name: "frame with a window of a gigabyte", want: AlarmContent, answer: onChunk(func() []byte {
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x01, 0x00, 0x00}
	})},
	{name: "endless chunk", want: AlarmProtocol, answer: func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/chunks/") {
			w.Header().Set("Content-Encoding", "zstd")
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 32<<10))
			}
		}
	}},
	{name: "chunk that isn't there", want: AlarmContent, answer: func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/chunks/") {
			w.WriteHeader(http.StatusNotFound)
		}
	}},
	{name: "chunk without its encoding", want: AlarmProtocol, answer: func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/chunks/") {
			_, _ = w.Write(zeros(10))
		}
	}},
	{name: "connection cut in a chunk", want: AlarmUnreachable, answer: onChunk(func() []byte { panic(http.ErrAbortHandler) })},
	{name: "endless head", want: AlarmProtocol, answer: onHead(func(w http.ResponseWriter, _ *http.Request) {
		for err := error(nil); err == nil; {
			_, err = w.Write(make([]byte, 32<<10))
		}
	})},
	{name: "redirect", want: AlarmProtocol, answer: onHead(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusFound)
	})},
	{name: "server error", want: AlarmProtocol, answer: onHead(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })},
	{name: "refusal", want: AlarmRefused, answer: onHead(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })},
	{name: "busy for ever", want: AlarmUnreachable, answer: onHead(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })},
	{name: "huge header", want: AlarmUnreachable, answer: onHead(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("a", 1<<20))
		w.WriteHeader(200)
	})},
}

// TestAttacks: whatever the primary tries, version 1 stays in force, the alarm
// has its name, and an honest version 2 is taken afterwards.
func TestAttacks(t *testing.T) {
	e := newEvil(t)
	rcpts := names(300, "example.org")
	for _, list := range [][]attack{headAttacks, contentAttacks, wireAttacks} {
		for _, a := range list {
			t.Run(a.name, func(t *testing.T) { a.run(t, e, rcpts) })
		}
	}
	if n := len(headAttacks) + len(contentAttacks) + len(wireAttacks); n < 55 {
		t.Errorf("only %d attacks", n)
	}
}

func (a *attack) run(t *testing.T, e *evil, rcpts []string) {
	domains := []string{"example.org"}
	f := e.follower(t, newSpec(t, domains, rcpts...))
	before, first := f.Current(), f.cur.head
	spec := newSpec(t, domains, append(rcpts, "new@example.org")...)
	if a.spec != nil {
		a.spec(t, spec)
	}
	e.offer(t, e.forge(t, spec, a.forge), e.head(2, first.identity), a.head)
	if a.raw != nil {
		e.bytes(a.raw)
	}
	e.respond(a.answer)
	if a.same {
		e.spoil()
	}
	e.clock.add(a.wait)
	err := try(t, f)
	e.clock.add(-a.wait)
	if got := alarmOf(err, ""); got != a.want {
		t.Errorf("alarm %q, want %q: %v", got, a.want, err)
	}
	if f.Current() != before || f.cur.head != first {
		t.Error("the version in force changed")
	}
	names, err := f.store.heads()
	if err != nil || len(names) != 1 {
		t.Errorf("the store has heads %q: %v", names, err)
	}
	e.offer(t, e.forge(t, newSpec(t, domains, append(rcpts, "honest@example.org")...), nil), e.head(2, first.identity), nil)
	poll(t, f)
	if got := rcpt(t, f.Current(), "honest@example.org"); got != 250 {
		t.Errorf("afterwards the honest recipient is answered %d", got)
	}
}

// TestAttackOnDisk spoils what a follower stored. It never takes anything into
// force that the primary didn't sign.
func TestAttackOnDisk(t *testing.T) {
	e := newEvil(t)
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string, f *Follower)
		want  uint64 // version in force after a restart
	}{
		{"nothing", func(*testing.T, string, *Follower) {}, 2},
		{"newest head", func(t *testing.T, dir string, f *Follower) {
			flip(t, path.Join(dir, "heads", headName(f.cur.head)), 50)
		}, 1},
		{"newest head emptied", func(t *testing.T, dir string, f *Follower) {
			write(t, path.Join(dir, "heads", headName(f.cur.head)), nil)
		}, 1},
		{"a chunk of the newest", func(t *testing.T, _ string, f *Follower) { flip(t, lastChunk(f), 20) }, 1},
		{"a chunk removed", func(t *testing.T, _ string, f *Follower) {
			if err := os.Remove(lastChunk(f)); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"a chunk swapped for another", func(t *testing.T, _ string, f *Follower) {
			_, other := f.store.chunkPath(f.prev.head.index[0].hash)
			b, err := os.ReadFile(other)
			if err != nil {
				t.Fatal(err)
			}
			write(t, lastChunk(f), b)
		}, 1},
		{"a chunk replaced by one of its size", func(t *testing.T, _ string, f *Follower) {
			s := f.cur.content.layout.section("recipients")
			b, err := f.store.get(s.chunks[len(s.chunks)-1])
			if err != nil {
				t.Fatal(err)
			}
			b[strings.LastIndexByte(string(b), '@')-1]++ // another recipient, still the last
			write(t, lastChunk(f), f.codec.pack(b))
		}, 1},
		{"strange files", func(t *testing.T, dir string, _ *Follower) {
			write(t, path.Join(dir, "heads", "zzz"), []byte("x"))
			write(t, path.Join(dir, "heads", tempPrefix+"1"), []byte("x"))
			write(t, path.Join(dir, "chunks", "file"), nil)
			if err := os.Remove(path.Join(dir, "chunks", "file")); err != nil {
				t.Fatal(err)
			}
		}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := e.follower(t, newSpec(t, []string{"example.org"}, names(300, "example.org")...))
			e.offer(t, e.forge(t, newSpec(t, []string{"example.org"}, names(301, "example.org")...), nil), e.head(2, f.cur.head.identity), nil)
			poll(t, f)
			tt.spoil(t, path.Join(f.o.Dir, "store"), f)
			before := files(t, f.o.Dir)
			again, err := OpenFollower(FollowerOptions{Dir: f.o.Dir, Domains: f.o.Domains, Metrics: newMetrics(), now: e.clock.now})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			defer again.http.close()
			if got := again.Status().Version; got != tt.want {
				t.Errorf("version %d is in force, want %d", got, tt.want)
			}
			if diff := cmp.Diff(before, files(t, f.o.Dir)); diff != "" {
				t.Errorf("what is damaged was removed:\n%s", diff)
			}
			if tt.want == 1 {
				poll(t, again) // what is damaged is fetched again
			}
			if got := again.Status().Version; got != 2 {
				t.Errorf("after a poll version %d is in force", got)
			}
		})
	}
}

// files lists what is below a directory.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestGuardUnreadable: a staged deletion whose version before can't be read now
// may be so after another restart: nothing of it is removed.
func TestGuardUnreadable(t *testing.T) {
	e := newEvil(t)
	many := names(1000, "example.org")
	f := e.follower(t, newSpec(t, []string{"example.org"}, many...))
	chunk := lastChunk(f)
	e.step(t, f, 2, newSpec(t, []string{"example.org"}, many[:500]...))
	e.step(t, f, 3, newSpec(t, []string{"example.org"}, many[:499]...))
	for _, want := range []string{"", StagedPending} {
		flip(t, chunk, 20)
		again, err := OpenFollower(FollowerOptions{Dir: f.o.Dir, Domains: f.o.Domains, Metrics: newMetrics(), now: e.clock.now})
		if err != nil {
			t.Fatal(err)
		}
		if got := again.Status().Staged; got != want {
			t.Errorf("staged %q, want %q", got, want)
		}
		again.http.close()
		again.Close()
	}
}

// TestFalseTotals: an index that holds more than its head promised ends the
// transfer before its data is fetched.
func TestFalseTotals(t *testing.T) {
	e := newEvil(t)
	f := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	before, index := len(f.store.have), 0
	e.offer(t, e.forge(t, newSpec(t, []string{"example.org"}, names(5000, "example.org")...), nil), e.head(2, f.cur.head.identity), func(h *Head) { h.Octets, index = 1, len(h.index) })
	if err := try(t, f); alarmOf(err, "") != AlarmContent {
		t.Errorf("got %v", err)
	}
	if got := len(f.store.have) - before; got != index {
		t.Errorf("%d chunks were fetched, want the index's %d alone", got, index)
	}
}

func lastChunk(f *Follower) string {
	s := f.cur.content.layout.section("recipients")
	_, file := f.store.chunkPath(s.chunks[len(s.chunks)-1].hash)
	return file
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, name string, at int) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	write(t, name, b)
}

// TestChunkNames: the name is the hash of the uncompressed octets.
func TestChunkNames(t *testing.T) {
	src := source1(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	for h := range src.places {
		if sha256.Sum256(src.chunk(h)) != h {
			t.Errorf("chunk %x is misnamed", h)
		}
	}
}
