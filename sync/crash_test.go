package policysync

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/policy/table"
)

var errKilled = errors.New("killed")

// inode is a file's content: as written, and as a power cut leaves it.
type inode struct{ written, synced []byte }

// memFS is a disk that dies at an operation of the test's choice. Files and
// names survive a power cut only when they were synced.
type memFS struct {
	mu      sync.Mutex
	ops     int
	killAt  int // 0: never
	now     map[string]*inode
	durable map[string]*inode
	dirs    map[string]bool // true: durable
}

func newMemFS() *memFS {
	return &memFS{now: map[string]*inode{}, durable: map[string]*inode{}, dirs: map[string]bool{"/": true}}
}

// step is one operation; it fails when the disk is dead.
func (m *memFS) step() error {
	m.ops++
	if m.killAt > 0 && m.ops >= m.killAt {
		return errKilled
	}
	return nil
}

func (m *memFS) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	for d := dir; d != "/"; d = path.Dir(d) {
		if _, ok := m.dirs[d]; !ok {
			m.dirs[d] = false
		}
	}
	return nil
}

func (m *memFS) WriteFile(name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	n := &inode{written: bytes.Clone(b[:len(b)/2])}
	m.now[name] = n
	if err := m.step(); err != nil {
		return err
	}
	n.written = bytes.Clone(b)
	if err := m.step(); err != nil {
		return err
	}
	n.synced = n.written
	return nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	m.now[to] = m.now[from]
	delete(m.now, from)
	return nil
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	if m.now[name] == nil {
		return fs.ErrNotExist
	}
	delete(m.now, name)
	return nil
}

func (m *memFS) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	maps.DeleteFunc(m.durable, func(n string, _ *inode) bool { return path.Dir(n) == dir && m.now[n] == nil })
	for n, i := range m.now {
		if path.Dir(n) == dir {
			m.durable[n] = i
		}
	}
	for d := range m.dirs {
		if path.Dir(d) == dir {
			m.dirs[d] = true
		}
	}
	return nil
}

func (m *memFS) ReadFile(name string, limit int) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.now[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	if len(n.written) > limit {
		return nil, errors.New("too long")
	}
	return bytes.Clone(n.written), nil
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.dirs[dir]; !ok {
		return nil, fs.ErrNotExist
	}
	var names []string
	for n := range m.now {
		if path.Dir(n) == dir {
			names = append(names, path.Base(n))
		}
	}
	for n := range m.dirs {
		if n != "/" && path.Dir(n) == dir {
			names = append(names, path.Base(n))
		}
	}
	return names, nil
}

// crash returns the disk as it is found afterwards. "kill": all that was
// written is there, synced or not, and the next power cut may take it. "power": what wasn't synced is gone. "torn": names made it
// to the disk, and half of the content that wasn't synced.
func (m *memFS) crash(how string) *memFS {
	out := newMemFS()
	gone := func(name string) bool {
		for d := path.Dir(name); d != "/"; d = path.Dir(d) {
			if !m.dirs[d] && how == "power" {
				return true
			}
		}
		return false
	}
	for d, durable := range m.dirs {
		if durable || how == "torn" && !gone(d) {
			out.dirs[d] = true
		}
	}
	if how == "kill" {
		maps.Copy(out.dirs, m.dirs)
		maps.Copy(out.now, m.now)
		maps.Copy(out.durable, m.durable)
		return out
	}
	files := m.now
	if how == "power" {
		files = m.durable
	}
	for name, n := range files {
		b := n.synced
		if b == nil {
			b = n.written[:len(n.written)/2]
		}
		if !gone(name) {
			i := &inode{bytes.Clone(b), bytes.Clone(b)}
			out.now[name], out.durable[name] = i, i
		}
	}
	return out
}

// fakeRemote is a primary without a network.
type fakeRemote struct {
	raw    []byte
	chunks map[hash][]byte
	codec  *codec
}

func (r *fakeRemote) head(context.Context, uint64) ([]byte, error) { return r.raw, nil }

func (r *fakeRemote) chunk(_ context.Context, h hash) ([]byte, error) {
	if r.chunks[h] == nil {
		return nil, errGone
	}
	return r.codec.pack(r.chunks[h]), nil
}

func (r *fakeRemote) post(context.Context, string, any, int) ([]byte, error) { return nil, nil }

func (r *fakeRemote) close() {}

// crashRig runs a follower on a disk that dies.
type crashRig struct {
	e     *evil
	codec *codec
	now   time.Time
}

func (c *crashRig) open(t *testing.T, disk *memFS) (*Follower, error) {
	t.Helper()
	return OpenFollower(FollowerOptions{Dir: "/var/sync", Domains: []string{"example.org", "example.com"},
		Metrics: newMetrics(), fs: disk, now: func() time.Time { return c.now }})
}

// offered is what the primary serves: version n with count recipients (below 0:
// so many, hashed), signed at a second.
type offered struct {
	version uint64
	count   int
	second  int
}

// crashSecret is what the hashed offers are hashed under.
var crashSecret = &table.Secret{1}

// pollOn lets f see an offer.
func (c *crashRig) pollOn(t *testing.T, f *Follower, o offered) error {
	hashed := o.count < 0
	src := source1(t, newSpec(t, []string{"example.org"}, names(max(o.count, -o.count), "example.org")...))
	h := c.e.head(o.version, hash{})
	h.Created = h.Created.Add(time.Duration(o.second) * time.Second)
	if f.cur != nil {
		switch last := f.cur.head; {
		case last.Version == o.version:
			h.Prev = last.Prev
		case last.hashed():
			h.Prev = last.Source
		case hashed:
			h.Prev = sourceOf(crashSecret, last.identity)
		default:
			h.Prev = last.identity
		}
	}
	if hashed {
		var err error
		if src, err = hashSource(src, crashSecret, nil, nil); err != nil {
			t.Fatal(err)
		}
		h.SecretID, h.Source = secretID(crashSecret), sourceOf(crashSecret, hash{byte(o.version)})
	}
	c.e.offer(t, forgeryOf(src), h, nil)
	f.http = &fakeRemote{c.e.raw, c.e.chunks, c.codec}
	return f.poll(t.Context())
}

// plain says that an address, or the head of a version with addresses, is on
// the disk.
func (c *crashRig) plain(t *testing.T, disk *memFS) (found []string) {
	t.Helper()
	for name, n := range disk.now {
		b := n.written
		if strings.Contains(name, "/chunks/") {
			var err error
			if b, err = c.codec.dec.DecodeAll(b, make([]byte, 0, maxChunk)); err != nil {
				t.Fatal(err)
			}
		}
		h, err := decodeHead(b[:max(0, len(b)-ed25519.SignatureSize)])
		if bytes.Contains(b, []byte("user0")) || err == nil && !h.hashed() {
			found = append(found, name)
		}
	}
	return found
}

// TestCrash kills the follower at each operation on its disk, in three ways.
// Whoever opens the store next finds the state before or the one after, whole,
// and can go on.
func TestCrash(t *testing.T) {
	cl := newClock()
	codec, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer codec.close()
	rig := &crashRig{e: &evil{clock: cl, epoch: uint64(cl.now().Add(-time.Hour).Unix())}, codec: codec, now: cl.now().Add(5 * time.Second)}
	approve := func(t *testing.T, f *Follower) error { return f.Approve(2) }
	reject := func(t *testing.T, f *Follower) error { return f.Reject(2) }
	for _, tt := range []struct {
		name   string
		before []offered
		prep   func(t *testing.T, f *Follower) error
		do     offered
		act    func(t *testing.T, f *Follower) error // in place of do
		states []string                              // that a restart may find
	}{
		{"first version", nil, nil, offered{1, 300, 0}, nil, []string{"0 0", "1 300"}},
		{"change", []offered{{1, 300, 0}}, nil, offered{2, 301, 1}, nil, []string{"1 300", "2 301"}},
		{"second change", []offered{{1, 300, 0}, {2, 301, 1}}, nil, offered{3, 302, 2}, nil, []string{"2 301", "3 302"}},
		{"new signature", []offered{{1, 300, 0}}, nil, offered{1, 300, 1}, nil, []string{"1 300"}},
		{"mass deletion", []offered{{1, 300, 0}}, nil, offered{2, 100, 1}, nil, []string{"1 300", "2 100 pending"}},
		{"its end", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{3, 299, 2}, nil, []string{"2 100 pending", "3 299"}},
		{"its growth", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{3, 90, 2}, nil, []string{"2 100 pending", "3 90 pending"}},
		{"approval", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{}, approve, []string{"2 100 pending", "2 100"}},
		{"rejection", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{},
			reject, []string{"2 100 pending", "2 100 rejected"}},
		{"change after rejection", []offered{{1, 300, 0}, {2, 100, 1}},
			reject, offered{3, 101, 2}, nil, []string{"2 100 rejected", "3 101 rejected"}},
		{"hashing begins", []offered{{1, 300, 0}, {2, 301, 1}}, nil, offered{3, -301, 2}, nil, []string{"2 301", "3 301"}},
		{"hashing and a mass deletion", []offered{{1, 300, 0}}, nil, offered{2, -100, 1}, nil, []string{"1 300", "2 100 pending"}},
		{"hashing while one is pending", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{3, -99, 2}, nil, []string{"2 100 pending", "3 99 pending"}},
		{"hashing ends one", []offered{{1, 300, 0}, {2, 100, 1}}, nil, offered{3, -299, 2}, nil, []string{"2 100 pending", "3 299"}},
		{"hashing after rejection", []offered{{1, 300, 0}, {2, 100, 1}}, reject, offered{3, -99, 2}, nil, []string{"2 100 rejected", "3 99 rejected"}},
		{"change after hashing", []offered{{1, 300, 0}, {2, -100, 1}}, nil, offered{3, -98, 2}, nil, []string{"2 100 pending", "3 98 pending"}},
		{"rejection after hashing", []offered{{1, 300, 0}, {2, -100, 1}}, nil, offered{}, reject, []string{"2 100 pending", "2 100 rejected"}},
		{"approval after hashing", []offered{{1, 300, 0}, {2, -100, 1}}, nil, offered{}, approve, []string{"2 100 pending", "2 100"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen, kills := map[string]int{}, 0
			for kill := 1; ; kill++ {
				disk := rig.disk(t, tt.before, tt.prep)
				f, err := rig.open(t, disk)
				if err != nil {
					t.Fatal(err)
				}
				disk.ops, disk.killAt = 0, kill
				if tt.act != nil {
					err = tt.act(t, f)
				} else {
					err = rig.pollOn(t, f, tt.do)
				}
				done := disk.ops < kill
				f.Close()
				if done && err != nil {
					t.Fatal(err)
				}
				for _, how := range []string{"kill", "power", "torn"} {
					rig.after(t, disk.crash(how), fmt.Sprintf("killed at operation %d, %s", kill, how), tt.states, err == nil, seen)
				}
				if done {
					break
				}
				kills++
			}
			t.Logf("%d operations, %v", kills, seen)
			for _, s := range tt.states {
				if seen[s] == 0 {
					t.Errorf("state %q was never found", s)
				}
			}
		})
	}
}

// TestRemovalsCrash: no crash leaves a version in force without what it removed
// being remembered.
func TestRemovalsCrash(t *testing.T) {
	cl := newClock()
	codec, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer codec.close()
	rig := &crashRig{e: &evil{clock: cl, epoch: uint64(cl.now().Add(-time.Hour).Unix())}, codec: codec, now: cl.now().Add(5 * time.Second)}
	seen := map[uint64]int{}
	for _, how := range []string{"kill", "power", "torn"} {
		for kill, done := 1, false; !done; kill++ {
			disk := rig.disk(t, []offered{{1, 300, 0}}, nil)
			f, err := rig.open(t, disk)
			if err != nil {
				t.Fatal(err)
			}
			disk.ops, disk.killAt = 0, kill
			err = rig.pollOn(t, f, offered{2, 210, 1})
			done = disk.ops < kill
			f.Close()
			if done && err != nil {
				t.Fatal(err)
			}
			again, err := rig.open(t, disk.crash(how))
			if err != nil {
				t.Fatal(err)
			}
			version := again.Status().Version
			seen[version]++
			if version == 2 && (again.removals == nil || len(again.removals.hours[0].keys) != 90) {
				t.Errorf("%s at operation %d: version 2 is in force, remembered is %+v", how, kill, again.removals)
			}
			again.Close()
		}
	}
	if seen[1] == 0 || seen[2] == 0 {
		t.Errorf("versions found: %v", seen)
	}
}

// disk is a synced disk with a paired follower that has seen some offers.
func (c *crashRig) disk(t *testing.T, before []offered, prep func(*testing.T, *Follower) error) *memFS {
	t.Helper()
	m := newMemFS()
	p := &pairing{Address: "primary:1", Name: "mx2", Stream: evilStream, Secrets: []*table.Secret{crashSecret}, ServerPins: c.e.head(1, hash{}).ServerPins, PolicyKeys: c.e.head(1, hash{}).PolicyKeys}
	err := errors.Join(m.MkdirAll("/var/sync"), m.SyncDir("/"), m.SyncDir("/var"),
		saveKey(m, "/var/sync/"+clientKeyFile, testKey('c')), p.save(m, "/var/sync"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.open(t, m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, o := range before {
		if err := c.pollOn(t, f, o); err != nil {
			t.Fatal(err)
		}
	}
	if prep != nil {
		if err := prep(t, f); err != nil {
			t.Fatal(err)
		}
	}
	return m.crash("kill")
}

// after opens what a crash left. committed: the operation had said that it was
// done.
func (c *crashRig) after(t *testing.T, disk *memFS, what string, states []string, committed bool, seen map[string]int) {
	t.Helper()
	f, err := c.open(t, disk)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer f.Close()
	s := f.Status()
	state := strings.TrimSpace(fmt.Sprintf("%d %d %s", s.Version, s.Recipients, s.Staged))
	seen[state]++
	allowed := states
	if committed {
		allowed = states[len(states)-1:]
	}
	found := false
	for _, a := range allowed {
		found = found || a == state
	}
	if !found {
		t.Fatalf("%s: a restart finds %q, not one of %q", what, state, allowed)
	}
	if s.Version > 0 && f.Current() == nil {
		t.Fatalf("%s: version %d is not in force", what, s.Version)
	}
	if c := s.LastChange; s.Version > 0 && (c == nil || c.To != s.Version) {
		t.Fatalf("%s: version %d is in force, the last change was %+v", what, s.Version, c)
	}
	next := offered{s.Version + 1, 305, 4}
	if s.Hashed {
		if found := c.plain(t, disk); len(found) > 0 {
			t.Fatalf("%s: a hashed version is in force beside plain %q", what, found)
		}
		next.count = -next.count
	}
	// It can go on: a later version with everybody in it.
	if err := c.pollOn(t, f, next); err != nil {
		t.Fatalf("%s: then %v", what, err)
	}
	if g, err := f.store.loadGuard(); g != nil || err != nil || f.Status().Recipients != 305 || f.Status().Staged != "" {
		t.Fatalf("%s: then %+v, guard %+v, %v", what, f.Status(), g, err)
	}
	last, err := c.open(t, disk.crash("power"))
	if err != nil {
		t.Fatalf("%s: then the power is cut: %v", what, err)
	}
	defer last.Close()
	if got := last.Status(); got.Version != s.Version+1 || got.Recipients != 305 {
		t.Fatalf("%s: then the power is cut: %+v", what, got)
	}
}

// calls is a file that notes what is done to it.
type calls struct {
	did  []string
	fail string
}

func (c *calls) do(what string) error {
	c.did = append(c.did, what)
	if what == c.fail {
		return errKilled
	}
	return nil
}

func (c *calls) Write(b []byte) (int, error) { return len(b), c.do("write") }
func (c *calls) Sync() error                 { return c.do("sync") }
func (c *calls) Close() error                { return c.do("close") }

// TestWriteSynced: the model above trusts WriteFile to sync.
func TestWriteSynced(t *testing.T) {
	for fail, want := range map[string]string{"": "write sync close", "write": "write close", "sync": "write sync close", "close": "write sync close"} {
		c := &calls{fail: fail}
		err := writeSynced(c, nil)
		if got := strings.Join(c.did, " "); got != want || (err != nil) != (fail != "") {
			t.Errorf("%q fails: %s, %v; want %s", fail, got, err, want)
		}
	}
}
