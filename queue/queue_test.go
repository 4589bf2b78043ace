package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// routeByDomain sends every domain to a destination of its own name.
func routeByDomain(domain string) string { return "mx." + domain }

func options(disk leveldb.Disk) Options {
	return Options{Store: leveldb.Dir{Path: "/q", Disk: disk, WriteBuffer: 32 << 10}, Route: routeByDomain,
		Metrics: metrics.New(prometheus.NewPedanticRegistry())}
}

// inDir is o on the file system, with LevelDB's usual buffers.
func inDir(o Options, path string) Options {
	o.Store = leveldb.Dir{Path: path}
	return o
}

// buffered is o with such a write buffer: a small one has journals rotate and
// tables merged.
func buffered(o Options, octets int) Options {
	d := o.Store.(leveldb.Dir)
	d.WriteBuffer = octets
	o.Store = d
	return o
}

var errDisk = errors.New("input/output error")

func newMemDisk() *testmx.Disk {
	d := testmx.NewDisk()
	d.Locked = ErrLocked
	return d
}

// bodyFile is where a large body lies on a disk.
func bodyFile(id string) string { return "/q/body/" + id[len(id)-1:] + "/" + id }

func mustOpen(t testing.TB, o Options) *Queue {
	t.Helper()
	q, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func mustClose(t testing.TB, q *Queue) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func mailTo(addresses ...string) *envelope.Envelope {
	env := &envelope.Envelope{
		From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "sender", Domain: "example.org"}},
		Client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Port: 4711, Name: "client.example.org",
			Helo: "client.example.org", Protocol: "ESMTP"},
		EightBit: true, EnvID: "abc", Ret: "HDRS",
	}
	for _, a := range addresses {
		local, domain, _ := strings.Cut(a, "@")
		env.To = append(env.To, envelope.Recipient{
			Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: domain}},
			Rule: "permit_listed", Notify: "NEVER"})
	}
	return env
}

// accept puts a message in the queue.
func accept(q *Queue, body string, to ...string) (id string, err error) {
	return commit(q, mailTo(to...), body)
}

func commit(q *Queue, env *envelope.Envelope, body string) (id string, err error) {
	d, err := q.Begin(env)
	if err != nil {
		return "", err
	}
	for rest := body; rest != ""; {
		n := min(len(rest), 4000)
		if _, err := io.WriteString(d, rest[:n]); err != nil {
			d.Abort()
			return "", err
		}
		rest = rest[n:]
	}
	return d.ID(), d.Commit(context.Background())
}

func mustAccept(t testing.TB, q *Queue, body string, to ...string) string {
	t.Helper()
	id, err := accept(q, body, to...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func readBody(q *Queue, id string) (string, error) {
	f, err := q.Body(id)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

func walk(t testing.TB, q *Queue) (infos []Info) {
	t.Helper()
	err := q.Walk(t.Context(), func(i Info) error { infos = append(infos, i); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return infos
}

func wantReply(t *testing.T, err error, code int, enhanced string) {
	t.Helper()
	var r *envelope.ReplyError
	if !errors.As(err, &r) || r.Reply.Code != code || r.Reply.Enhanced != enhanced {
		t.Errorf("got %v, want a reply %d %s", err, code, enhanced)
	}
}

var bodySizes = []int{0, 1, 4000, maxInline - 1, maxInline, maxInline + 1, 3*maxInline + 7, 1 << 20}

func bodyOf(size, seed int) string {
	return strings.Repeat(fmt.Sprintf("line %08d of a message\r\n", seed), size/28+1)[:size]
}

// TestSpare: a draft that spares memory keeps little of the body there, whatever
// its size, and is committed and aborted like another.
func TestSpare(t *testing.T) {
	o := options(newMemDisk())
	q := mustOpen(t, o)
	want := map[string]string{}
	for i, size := range append(slices.Clone(bodySizes), maxSpare, maxSpare+1) {
		for _, step := range []int{1000, 64 << 10} {
			d, err := q.Begin(mailTo("a@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			d.Spare()
			body := bodyOf(size, i)
			for rest := []byte(body); len(rest) > 0; rest = rest[min(len(rest), step):] {
				if _, err := d.Write(rest[:min(len(rest), step)]); err != nil {
					t.Fatal(err)
				}
				if cap(d.buf) > maxSpare {
					t.Fatalf("%d octets are in memory", cap(d.buf))
				}
			}
			if i%2 == 1 {
				d.Abort()
				continue
			}
			if err := d.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			want[d.ID()] = body
		}
	}
	mustClose(t, q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	for _, i := range walk(t, q) {
		if body, err := readBody(q, i.ID); err != nil || body != want[i.ID] {
			t.Errorf("body of %s: %d octets, %v; want %d", i.ID, len(body), err, len(want[i.ID]))
		}
		delete(want, i.ID)
	}
	if len(want) > 0 {
		t.Errorf("%d messages are missing", len(want))
	}
}

func TestAcceptAndRestart(t *testing.T) {
	for name, o := range map[string]Options{
		"disk in memory": options(newMemDisk()),
		"file system":    inDir(options(nil), filepath.Join(t.TempDir(), "q")),
		"another store":  {Store: storetest.New(), Route: routeByDomain, Metrics: metrics.New(prometheus.NewPedanticRegistry())},
	} {
		t.Run(name, func(t *testing.T) {
			q := mustOpen(t, o)
			ids := map[string]string{}
			var order []string
			for i, size := range bodySizes {
				id := mustAccept(t, q, bodyOf(size, i), "a@example.com", "b@example.net")
				ids[id] = bodyOf(size, i)
				order = append(order, id)
			}
			check := func(q *Queue) {
				t.Helper()
				var got []string
				for _, i := range walk(t, q) {
					got = append(got, i.ID)
					if body, err := readBody(q, i.ID); err != nil || body != ids[i.ID] {
						t.Errorf("body of %s: %d octets, %v; want %d", i.ID, len(body), err, len(ids[i.ID]))
					}
				}
				if diff := cmp.Diff(order, got); diff != "" {
					t.Errorf("order: %s", diff)
				}
			}
			check(q)
			before := q.Stats()
			mustClose(t, q)
			q = mustOpen(t, o)
			check(q)
			after := q.Stats()
			before.FreeBytes, after.FreeBytes = 0, 0
			if diff := cmp.Diff(before, after); diff != "" || after.Messages != len(order) {
				t.Errorf("stats after restart: %s", diff)
			}
			if err := q.Healthy(); err != nil {
				t.Error(err)
			}
			mustClose(t, q)
		})
	}
}

func TestInfo(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	o := options(newMemDisk())
	o.Now = func() time.Time { return now }
	q := mustOpen(t, o)
	defer mustClose(t, q)
	id := mustAccept(t, q, "hello\r\n", "a@example.com", "odd one@example.net")
	got, err := q.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	want := Info{ID: id, Seq: 1, Accepted: now, Size: 7, From: "sender@example.org", Client: mailTo().Client,
		Recipients: []RecipientInfo{
			{Address: "a@example.com", Destination: "mx.example.com", State: "queued", Rule: "permit_listed"},
			{Address: `"odd one"@example.net`, Destination: "mx.example.net", State: "queued", Rule: "permit_listed"},
		}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for _, id := range []string{"", "x", "0000000000000000", "../../etc/passwd"} {
		if _, err := q.Get(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%q): %v", id, err)
		}
	}
}

func TestValidID(t *testing.T) {
	good := strings.Repeat("0z", store.IDLen)[:store.IDLen]
	for id, want := range map[string]bool{good: true, good[1:]: false, good + "0": false, "": false, "/" + good[1:]: false, ":" + good[1:]: false, "`" + good[1:]: false, "{" + good[1:]: false, "A" + good[1:]: false} {
		if store.ValidID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

func TestIDs(t *testing.T) {
	var g ids
	now := time.UnixMilli(1_795_000_000_000)
	last := ""
	for i := range 100_000 {
		id := g.next(now.Add(-time.Duration(i%3) * time.Hour)) // the clock goes back
		if !store.ValidID(id) || id <= last {
			t.Fatalf("%q after %q", id, last)
		}
		last = id
	}
	var next ids // another run, the clock is wrong by years
	next.raise(last)
	if id := next.next(now.AddDate(-3, 0, 0)); id <= last {
		t.Errorf("after a restart %q, before %q", id, last)
	}
	var unordered ids // of one millisecond, met in whatever order
	low, high := last[:9]+"0000000", last[:9]+"z000000"
	for _, id := range []string{high, low} {
		unordered.raise(id)
	}
	if id := unordered.next(now.AddDate(-3, 0, 0)); id <= high {
		t.Errorf("after a restart %q, before %q", id, high)
	}
}

func TestHoldReleaseRemove(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	small := mustAccept(t, q, "small", "a@example.com")
	large := mustAccept(t, q, bodyOf(200_000, 1), "a@example.com")
	for _, id := range []string{small, large} {
		if err := q.Hold(id); err != nil {
			t.Fatal(err)
		}
		i, err := q.Get(id)
		if err != nil || i.Recipients[0].State != "held" || i.Recipients[0].Reason != "operator" {
			t.Errorf("held: %+v, %v", i, err)
		}
	}
	if s := q.Stats(); s.Held != 2 || s.Messages != 2 {
		t.Errorf("stats: %+v", s)
	}
	mustClose(t, q)
	q = mustOpen(t, options(disk))
	if err := q.Release(small); err != nil {
		t.Fatal(err)
	}
	if i, _ := q.Get(small); i.Recipients[0].State != "queued" {
		t.Errorf("released: %+v", i)
	}
	if s := q.Stats(); s.Held != 1 {
		t.Errorf("stats: %+v", s)
	}
	for _, id := range []string{small, large} {
		if err := q.Remove(id); err != nil {
			t.Fatal(err)
		}
		if err := q.Remove(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed twice: %v", err)
		}
	}
	if s := q.Stats(); s.Messages != 0 || s.Bytes != 0 || s.Held != 0 || !s.Oldest.IsZero() {
		t.Errorf("stats: %+v", s)
	}
	if names, _ := disk.List("/q/body/" + large[store.IDLen-1:]); len(names) != 0 {
		t.Errorf("body files left: %v", names)
	}
	mustClose(t, q)
}

func TestPolicyHold(t *testing.T) {
	q := mustOpen(t, options(newMemDisk()))
	defer mustClose(t, q)
	env := mailTo("a@example.com")
	env.Hold, env.HoldRule = true, "end-of-data header_checks regexp:/x /^Subject: a/"
	d, err := q.Begin(env)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i, err := q.Get(d.ID()); err != nil || i.Recipients[0].State != "held" || i.Recipients[0].Reason != "policy" ||
		i.Recipients[0].HeldBy != env.HoldRule || i.Recipients[0].Reply != "" {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	d, err := q.Begin(mailTo("a@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(d, bodyOf(300_000, 1))
	d.Abort()
	if names, _ := disk.List("/q/body/" + (d.ID()[store.IDLen-1:])); len(names) != 0 {
		t.Errorf("body files left: %v", names)
	}
	if err := d.Commit(t.Context()); err == nil {
		t.Error("commit after abort")
	}
	// A commit whose caller has gone away is not accepted.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d, _ = q.Begin(mailTo("a@example.com"))
	if err := d.Commit(ctx); err != nil {
		wantReply(t, err, 451, "4.3.0")
		if n := len(walk(t, q)); n != 0 {
			t.Errorf("%d messages", n)
		}
	}
	d, _ = q.Begin(mailTo())
	wantReply(t, d.Commit(t.Context()), 451, "4.3.0") // no recipients
	mustClose(t, q)
}

func TestLocked(t *testing.T) {
	o := inDir(options(nil), filepath.Join(t.TempDir(), "q"))
	q := mustOpen(t, o)
	defer mustClose(t, q)
	o.Metrics = nil
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
	if fi, err := os.Stat(o.Store.String()); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", fi.Mode(), err)
	}
}

func TestNewerVersion(t *testing.T) {
	o := options(newMemDisk())
	q := mustOpen(t, o)
	var b store.Batch
	b.Put([]byte{store.SpaceFormat}, binary.AppendUvarint(nil, store.FormatVersion+1))
	if err := q.store.Apply(b); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	_, err := Open(o)
	if !errors.Is(err, ErrNewerVersion) {
		t.Fatalf("Open: %v", err)
	}
	if _, err = Open(o); !errors.Is(err, ErrNewerVersion) { // the first let go of the lock
		t.Errorf("second Open: %v", err)
	}
}

func TestSpaceFloor(t *testing.T) {
	disk := newMemDisk()
	now := time.Now()
	o := options(disk)
	o.MinFree = 1 << 30
	o.Now = func() time.Time { return now }
	q := mustOpen(t, o)
	defer mustClose(t, q)
	if err := q.Ready(0); err != nil {
		t.Fatal(err)
	}
	wantReply(t, q.Ready(1<<40), 452, "4.3.1")
	d, err := q.Begin(mailTo("a@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	disk.SetFree(testmx.Space{Bytes: 1 << 20, Inodes: 1 << 20})
	if err := q.Ready(0); err != nil {
		t.Errorf("looked again within a second: %v", err)
	}
	now = now.Add(2 * time.Second)
	wantReply(t, q.Ready(0), 452, "4.3.1")
	_, err = q.Begin(mailTo("a@example.com"))
	wantReply(t, err, 452, "4.3.1")
	_, err = io.WriteString(d, bodyOf(2<<20, 1))
	wantReply(t, err, 452, "4.3.1")
	wantReply(t, d.Commit(t.Context()), 452, "4.3.1")
	disk.SetFree(testmx.Space{Bytes: 1 << 40, Inodes: 1 << 20})
	now = now.Add(2 * time.Second)
	mustAccept(t, q, "again", "a@example.com")
}

func TestConcurrentCommitsShareSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newMemDisk()
		q := mustOpen(t, options(disk))
		gate := make(chan struct{})
		first := true
		disk.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpSync && first {
				first = false
				<-gate // the first sync takes until all others wait
			}
			return nil
		})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { mustAccept(t, q, "body", "a@example.com") })
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := testutil.ToFloat64(q.m.Commits); n > 3 {
			t.Errorf("%v synced batches for 100 messages", n)
		}
		mustClose(t, q)
		leaveBubble()
	})
}

// leaveBubble lets goleveldb's last goroutine end, which waits up to a second
// of the bubble's time after Close.
func leaveBubble() { time.Sleep(2 * time.Second) }

// storeFault is a disk whose nth Store fails.
type storeFault struct {
	*testmx.Disk
	n int
}

func (d *storeFault) Store(dir string, readOnly bool) (storage.Storage, error) {
	if d.n--; d.n == 0 {
		return nil, syscall.EIO
	}
	return d.Disk.Store(dir, readOnly)
}

// TestStoreFails: an error of the file system when the store is opened, however
// often that is, ends the opening.
func TestStoreFails(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	mustAccept(t, q, "body", "a@example.com")
	mustClose(t, q)
	failed := 0
	for n := 1; ; n++ {
		faulty := &storeFault{disk, n}
		q, err := Open(options(faulty))
		if err == nil {
			mustClose(t, q)
		}
		if faulty.n > 0 {
			break
		}
		if failed++; !errors.Is(err, syscall.EIO) {
			t.Errorf("Store %d failed: %v", n, err)
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
}

func TestStoreAlarm(t *testing.T) {
	disk := newMemDisk()
	o := buffered(options(disk), 1<<20) // all in one journal
	q := mustOpen(t, o)
	for i := range 50 {
		mustAccept(t, q, bodyOf(3000, i), "a@example.com")
	}
	mustClose(t, q)
	for _, name := range disk.Files("/q/store") {
		if data := disk.Bytes(name); strings.HasSuffix(name, ".log") && len(data) > 70_000 {
			data[40_000] ^= 1 // LevelDB drops the block, and says so only in its log
			disk.SetBytes(name, data)
		}
	}
	o = options(disk)
	q = mustOpen(t, o)
	if got := len(walk(t, q)); got >= 50 {
		t.Fatalf("%d messages left: nothing was damaged", got)
	}
	for _, kind := range []string{"drop", "missing"} {
		if testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues(kind)) == 0 {
			t.Errorf("no alarm %q", kind)
		}
	}
	mustClose(t, q)
}

func TestQuarantine(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	ids := make([]string, 6)
	for i := range ids {
		ids[i] = mustAccept(t, q, bodyOf(100_000, i), "a@example.com")
	}
	disk.Remove(bodyFile(ids[0])) // missing
	disk.SetBytes(bodyFile(ids[1]), disk.Bytes(bodyFile(ids[1]))[:99])
	raw, err := q.store.Get(store.SeqKey(store.SpaceRecord, 3)) // flipped
	flipped := append([]byte(nil), raw...)
	flipped[len(flipped)-3] ^= 4
	var b store.Batch
	b.Put(store.SeqKey(store.SpaceRecord, 3), flipped)
	b.Put(store.SeqKey(store.SpaceRecord, 4), flipped) // under a foreign number
	orphan := bodyFile("0123456789abcdef")
	f, cerr := disk.Create(orphan)
	if cerr != nil {
		t.Fatal(cerr)
	}
	f.Write([]byte("left by a crash"))
	if err != nil || q.store.Apply(b) != nil {
		t.Fatal(err)
	}
	mustClose(t, q)

	o := options(disk)
	q = mustOpen(t, o)
	var got []string
	for _, i := range walk(t, q) {
		got = append(got, i.ID)
	}
	if diff := cmp.Diff(ids[4:], got); diff != "" {
		t.Errorf("left in service: %s", diff)
	}
	if n := testutil.ToFloat64(o.Metrics.Quarantined); n != 4 || q.Quarantined() != 4 {
		t.Errorf("quarantined: %v, %d", n, q.Quarantined())
	}
	if raw, err := q.store.Get(store.SeqKey(store.SpaceQuarantine, 3)); err != nil || string(raw) != string(flipped) {
		t.Errorf("quarantined record not kept: %v", err)
	}
	for _, id := range ids[1:] {
		if disk.Bytes(bodyFile(id)) == nil {
			t.Errorf("body file of %s is gone", id)
		}
	}
	if disk.Bytes(orphan) != nil {
		t.Error("orphaned body file still there")
	}
	if n := testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues("missing")); n != 0 {
		t.Error("quarantine taken for loss")
	}
	mustClose(t, q)
	q = mustOpen(t, options(disk))
	if q.Quarantined() != 4 || q.Stats().Messages != 2 {
		t.Errorf("after restart: %d quarantined, %+v", q.Quarantined(), q.Stats())
	}
	mustClose(t, q)
}

func TestRouteChange(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	for i := range 3 {
		mustAccept(t, q, bodyOf(10, i), "a@example.com", "b@example.net")
	}
	mustClose(t, q)
	o := options(disk)
	o.Route = func(string) string { return "one" }
	for range 2 { // the second Open finds it done
		q = mustOpen(t, o)
		for _, i := range walk(t, q) {
			if i.Recipients[0].Destination != "one" || i.Recipients[1].Destination != "one" {
				t.Errorf("destinations: %+v", i.Recipients)
			}
		}
		d := q.dest("one")
		var seqs []uint64
		for c := q.take(d, ""); c != nil; c = q.take(d, "") {
			seqs = append(seqs, c.rec.Seq)
			if len(c.to) != 2 {
				t.Errorf("recipients of %d: %v", c.rec.Seq, c.to)
			}
		}
		if diff := cmp.Diff([]uint64{1, 2, 3}, seqs); diff != "" {
			t.Error(diff)
		}
		if c := q.take(q.dest("mx.example.com"), ""); c != nil {
			t.Error("still in the line of the old route")
		}
		mustClose(t, q)
	}
}

// numberFrom is a number in the environment.
func numberFrom(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
