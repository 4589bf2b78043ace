package policysync

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
)

// failing is a file system on which an operation on a file fails.
type failing struct {
	fileSystem
	op, name string
}

func (f *failing) fails(op, name string) error {
	if op == f.op && strings.HasSuffix(name, f.name) {
		return errKilled
	}
	return nil
}

func (f *failing) WriteFile(name string, b []byte) error {
	if err := f.fails("write", name); err != nil {
		return err
	}
	return f.fileSystem.WriteFile(name, b)
}

func (f *failing) Rename(from, to string) error {
	if err := f.fails("rename", to); err != nil {
		return err
	}
	return f.fileSystem.Rename(from, to)
}

func (f *failing) SyncDir(dir string) error {
	if err := f.fails("sync", dir); err != nil {
		return err
	}
	return f.fileSystem.SyncDir(dir)
}

func (f *failing) ReadDir(dir string) ([]string, error) {
	if err := f.fails("list", dir); err != nil {
		return nil, err
	}
	return f.fileSystem.ReadDir(dir)
}

// TestHeadsUnreadable: a follower that can't see which version it holds doesn't
// start as if it held none: it would take an older one.
func TestHeadsUnreadable(t *testing.T) {
	p := newTestPublisher(t)
	o := FollowerOptions{Dir: p.join(t, "mx2"), Domains: []string{"example.org"}, Metrics: newMetrics(), fs: &failing{osFS{}, "list", "heads"}}
	if _, err := OpenFollower(o); !errors.Is(err, errKilled) {
		t.Errorf("it starts: %v", err)
	}
}

// TestInviteWithoutAddress: an invitation to nowhere isn't made.
func TestInviteWithoutAddress(t *testing.T) {
	for n, good := range map[int]bool{0: false, 1: true, 255: true, 256: false} {
		p := newTestPublisher(t, func(o *PublisherOptions) { o.Address = strings.Repeat("a", n) })
		if _, err := p.Invite("mx2"); (err == nil) != good {
			t.Errorf("an address of %d octets: %v", n, err)
		}
	}
}

// TestJoinDamagedKey: a key that can't be read is named, and the invitation
// stands.
func TestJoinDamagedKey(t *testing.T) {
	p, dir := newTestPublisher(t), t.TempDir()
	invitation, err := p.Invite("mx2")
	if err != nil {
		t.Fatal(err)
	}
	key := path.Join(dir, clientKeyFile)
	write(t, key, []byte("no key"))
	if _, err := Join(t.Context(), dir, invitation); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("got %v, want an error that names %s", err, key)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), dir, invitation); err != nil {
		t.Errorf("without it: %v", err)
	}
}

// TestRotationFails: keys that could not be stored are not said to be.
func TestRotationFails(t *testing.T) {
	p := newTestPublisher(t)
	disk := &failing{fileSystem: osFS{}}
	p.o.fs = disk
	disk.op, disk.name = "write", nextPolicyKeyFile
	if p.RotateKeys() == nil {
		t.Error("the next policy key was not stored, and RotateKeys is content")
	}
	disk.op = ""
	for op, name := range map[string]string{"rename": serverKeyFile, "sync": path.Base(p.o.Dir)} {
		p := newTestPublisher(t)
		disk := &failing{fileSystem: osFS{}}
		p.o.fs = disk
		if err := p.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		if disk.op, disk.name = op, name; name != serverKeyFile {
			disk.name = p.o.Dir
		}
		if p.FinishRotation(false) == nil {
			t.Errorf("%s fails, and FinishRotation is content", op)
		}
	}
}

// TestApproveKeepsRemovals: an approval stands when what it makes obsolete can't
// be forgotten.
func TestApproveKeepsRemovals(t *testing.T) {
	l := newLess(t, 50)
	l.step(t, 20)
	if !l.step(t, 5) {
		t.Fatal("nothing is staged")
	}
	l.f.store.fs = &failing{osFS{}, "write", removalsFile}
	if err := l.f.Approve(l.n); err != nil || l.f.Pending() != nil {
		t.Errorf("approval: %v", err)
	}
	if got := testutil.ToFloat64(l.f.o.Metrics.SyncAlarms.WithLabelValues(string(AlarmStore))); got != 1 {
		t.Errorf("%v alarms of the store", got)
	}
}

func TestPairingCheck(t *testing.T) {
	one, three := make([]Pin, 1), make([]Pin, 3)
	for _, tt := range []struct {
		name           string
		server, policy []Pin
		good           bool
	}{
		{"mx2", one, one, true},
		{"mx2", make([]Pin, maxKeys), make([]Pin, maxKeys), true},
		{"mx2", nil, one, false},
		{"mx2", three, one, false},
		{"mx2", one, nil, false},
		{"mx2", one, three, false},
		{"", one, one, false},
		{"a\nb", one, one, false},
	} {
		p := &pairing{Name: tt.name, ServerPins: tt.server, PolicyKeys: tt.policy}
		if err := p.check(); (err == nil) != tt.good {
			t.Errorf("%q with %d and %d keys: %v", tt.name, len(tt.server), len(tt.policy), err)
		}
	}
}

// TestKeyNotStored: a follower whose next key couldn't be stored is told: it would
// use that and be turned away.
func TestKeyNotStored(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	p.peers.fs = &failing{osFS{}, "write", ".json"}
	req := struct {
		Pin Pin `json:"pin"`
	}{Pin{1}}
	if _, err := f.http.post(t.Context(), "/v1/key", req, 1024); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("%v", err)
	}
}

// TestKeyOfAnother: a follower that announces the key of another as its next one
// gets 409, and the key stays where it is.
func TestKeyOfAnother(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	g := p.follow(t, p.join(t, "mx3"), "example.org")
	before := fmt.Sprint(p.peers.list())
	for _, pin := range []Pin{g.self, f.self} {
		req := struct {
			Pin Pin `json:"pin"`
		}{pin}
		if _, err := f.http.post(t.Context(), "/v1/key", req, 1024); err == nil || !strings.Contains(err.Error(), "409") {
			t.Errorf("%v", err)
		}
	}
	if after := fmt.Sprint(p.peers.list()); after != before {
		t.Errorf("the peers are %s, were %s", after, before)
	}
}

func TestTooManyTables(t *testing.T) {
	s := newSpec(t, []string{"example.org"}, "a@example.org")
	for i := len(s.Tables); i < maxSections-1; i++ { // the settings are one, too
		s.Tables[fmt.Sprintf("t%04d", i)] = s.Tables["recipients"]
	}
	if _, err := newSource(s, nil); err != nil {
		t.Errorf("as many as can be carried: %v", err)
	}
	s.Tables["one more"] = s.Tables["recipients"]
	if _, err := newSource(s, nil); err == nil {
		t.Error("more than can be carried")
	}
}

// TestLongestFrame fills a frame up with what a decompressor skips.
func TestLongestFrame(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	chunk := []byte("chunk")
	frame := c.pack(chunk)
	fill := maxFrame - len(frame) - 8
	frame = binary.LittleEndian.AppendUint32(frame, 0x184d2a50) // RFC 8878 §3.1.2
	frame = append(binary.LittleEndian.AppendUint32(frame, uint32(fill)), make([]byte, fill)...)
	if b, err := c.unpack(frame, len(chunk)); err != nil || !bytes.Equal(b, chunk) {
		t.Errorf("a frame of %d octets: %q, %v", len(frame), b, err)
	}
}

func TestUnknownFormat(t *testing.T) {
	key := testKey('k')
	raw := testHead(time.Now()).sign(key)
	body := raw[:len(raw)-64]
	body[len(headMagic)+1] = 9
	if _, err := decodeHead(body); err == nil || !strings.Contains(err.Error(), "format 9 is unknown, this program knows 1 and 2") {
		t.Errorf("format 9: %v", err)
	}
}

// TestLinger: what is said before a connection is closed arrives, though the
// peer's own words were never read.
func TestLinger(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	s, err := lingering{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(s, one); err != nil { // the rest has come by now
		t.Fatal(err)
	}
	if _, err := io.WriteString(s, "refused"); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if b, err := io.ReadAll(c); err != nil || string(b) != "refused" {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// closing notes that it was closed.
type closing struct {
	fakeRemote
	closed bool
}

func (c *closing) close() { c.closed = true }

func TestRunCloses(t *testing.T) {
	e := newEvil(t)
	f := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	old := f.http
	defer old.close()
	c := new(closing)
	f.http = c
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != nil || !c.closed {
		t.Errorf("Run: %v, closed %v", err, c.closed)
	}
}

// TestLocalSubdomains: bare names of a class whose domains are a pattern can't
// be spelled one by one.
func TestLocalSubdomains(t *testing.T) {
	spec := policy.NewSpec()
	d := &deletion{recipients: 1, keys: []lostKey{{"users", "alice"}}, listing: newListing(&content{spec: spec}, spec)}
	for domain, want := range map[string]bool{"example.org": true, ".example.org": false, "": false} {
		spec.Addresses.Local.Domains = []string{domain}
		if keys, exact := d.accessKeys(); exact != want || exact != (len(keys) == 1) {
			t.Errorf("%q: keys %q, exact %v", domain, keys, exact)
		}
	}
}
