package policysync

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// listed is a policy of n recipients.
func listed(t *testing.T, n int) *policy.Snapshot {
	t.Helper()
	return snapshot(t, newSpec(t, []string{"example.org"}, names(n, "example.org")...))
}

// TestPublisherCrash kills the publisher at each operation on its disk. One
// that starts while its sources are broken offers the version before or the
// one after, whole, and never another content under a version that was seen.
func TestPublisherCrash(t *testing.T) {
	cl := newClock()
	open := func(disk *memFS) *Publisher {
		t.Helper()
		p, err := OpenPublisher(PublisherOptions{Dir: "/var/publish", Metrics: newMetrics(), now: cl.now, fs: disk})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	first := newMemFS()
	if err := errors.Join(first.MkdirAll("/var"), first.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	p := open(first)
	if err := p.Restore(); !errors.Is(err, ErrNothing) {
		t.Fatalf("restore of nothing: %v", err)
	}
	if err := p.Publish(listed(t, 300)); err != nil {
		t.Fatal(err)
	}
	found := map[uint64]int{}
	for kill, done := 1, false; !done; kill++ {
		disk := first.crash("kill")
		p := open(disk)
		if err := p.Restore(); err != nil {
			t.Fatal(err)
		}
		seen := p.head
		disk.ops, disk.killAt = 0, kill
		err := p.Publish(listed(t, 301))
		if done = disk.ops < kill; done && err != nil {
			t.Fatal(err)
		}
		if p.head.Version == 2 {
			seen = p.head
		}
		for _, how := range []string{"kill", "power", "torn"} {
			what := fmt.Sprintf("killed at operation %d, %s", kill, how)
			after := open(disk.crash(how))
			if err := after.Restore(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			h := after.head
			if found[h.Recipients]++; h.Recipients != 300 && h.Recipients != 301 || err == nil && h.Recipients != 301 {
				t.Fatalf("%s: %d recipients are offered", what, h.Recipients)
			}
			if err := judge(seen, h, after.name, Pin{}, cl.now()); err != nil {
				t.Fatalf("%s: a follower says %v", what, err)
			}
			for name := range after.src.places {
				if after.src.chunk(name) == nil {
					t.Fatalf("%s: a chunk is missing", what)
				}
			}
		}
	}
	if found[300] == 0 || found[301] == 0 {
		t.Errorf("found %v", found)
	}
}

// TestRestoreDamaged: a stored policy that was spoilt is not offered, and the
// next good reading is.
func TestRestoreDamaged(t *testing.T) {
	dir := t.TempDir()
	open := func() *Publisher {
		t.Helper()
		p, err := OpenPublisher(PublisherOptions{Dir: dir, Metrics: newMetrics()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	p := open()
	if err := p.Publish(listed(t, 300)); err != nil {
		t.Fatal(err)
	}
	_, file := p.last.chunkPath(p.src.layout.section("recipients").chunks[0].hash)
	flip(t, file, 20)
	again := open()
	if err := again.Restore(); err == nil || again.raw != nil {
		t.Errorf("a damaged policy is offered: %v", err)
	}
	if err := again.Publish(listed(t, 300)); err != nil {
		t.Fatal(err)
	}
	if v := again.head.Version; v != 1 {
		t.Errorf("the same policy became version %d", v)
	}
	if err := open().Restore(); err != nil {
		t.Errorf("after a good reading: %v", err)
	}
	if left, err := os.ReadDir(path.Join(dir, lastDir, "heads")); err != nil || len(left) != 1 {
		t.Errorf("%d heads are kept: %v", len(left), err)
	}
}

// TestDamagedFrames damages what a publisher's disk holds: it makes the frames
// anew, and followers notice nothing.
func TestDamagedFrames(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, names(5000, "example.org")...))
	damaged := 0
	err := filepath.WalkDir(filepath.Join(p.o.Dir, lastDir, "chunks"), func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		frame, err := os.ReadFile(file)
		if damaged++; err != nil || damaged%2 == 0 {
			return errors.Join(err, os.WriteFile(file, []byte("no frame"), 0o600))
		}
		chunk, err := p.codec.dec.DecodeAll(frame, make([]byte, 0, maxChunk))
		chunk[len(chunk)-1]++
		return errors.Join(err, os.WriteFile(file, p.codec.pack(chunk), 0o600))
	})
	if err != nil || damaged < 3 {
		t.Fatalf("%d files: %v", damaged, err)
	}
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	poll(t, f)
	if got := f.Current().Stats().Recipients; got != 5000 {
		t.Errorf("got %d recipients", got)
	}
}
