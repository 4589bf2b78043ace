package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
)

// brittle opens a store one of whose reads fails: when left gets to zero.
type brittle struct {
	store.Opener
	left atomic.Int64
}

func brittleOptions(o Options) (Options, *brittle) {
	b := &brittle{Opener: o.Store}
	o.Store = b
	return o, b
}

func (b *brittle) Open(alarm func(kind, detail string)) (store.Store, error) {
	s, err := b.Opener.Open(alarm)
	if err != nil {
		return nil, err
	}
	return &brittleStore{s, b}, nil
}

// everyRead has do fail at its first read, at its second, and so on, until it
// reads no more. It returns how many there were.
func (b *brittle) everyRead(do func(n int)) int {
	for n := 1; ; n++ {
		b.left.Store(int64(n))
		do(n)
		if b.left.Swap(0) > 0 {
			return n - 1
		}
	}
}

type brittleStore struct {
	store.Store
	b *brittle
}

func (s *brittleStore) Free() (octets, files uint64, err error) {
	if err := s.read(); err != nil {
		return 0, 0, err
	}
	return s.Store.Free()
}

func (s *brittleStore) read() error {
	if s.b.left.Add(-1) == 0 {
		return errDisk
	}
	return nil
}

func (s *brittleStore) Get(key []byte) ([]byte, error) {
	if err := s.read(); err != nil {
		return nil, err
	}
	return s.Store.Get(key)
}

func (s *brittleStore) Page(r store.Range, fn func(key, value []byte) bool) error {
	if err := s.read(); err != nil {
		return err
	}
	return s.Store.Page(r, fn)
}

func (s *brittleStore) Open(id string) (io.ReadCloser, int64, error) {
	if err := s.read(); err != nil {
		return nil, 0, err
	}
	return s.Store.Open(id)
}

// TestOperatorsReadErrors: what can't be read now is never said to be gone, and
// whatever fails can be tried again.
func TestOperatorsReadErrors(t *testing.T) {
	o, b := brittleOptions(options(newMemDisk()))
	q := mustOpen(t, o)
	damaged := mustAccept(t, q, bodyOf(100_000, 1), "a@example.com")
	id, err := commit(q, returnable("a@example.com", "b@example.com"), bodyOf(100_000, 2))
	if err != nil {
		t.Fatal(err)
	}
	var batch store.Batch
	batch.Put(store.SeqKey(store.SpaceRecord, 1), []byte("evil"))
	if err := q.store.Apply(batch); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	q = mustOpen(t, o)
	defer mustClose(t, q)
	closed := func(r io.ReadCloser, err error) error {
		if err == nil {
			r.Close()
		}
		return err
	}
	for _, op := range []struct {
		name  string
		do    func() error
		reads int // at least
	}{
		{"Get", func() error { _, err := q.Get(id); return err }, 2},
		{"Body", func() error { return closed(q.Body(id)) }, 3},
		{"Walk", func() error { return q.Walk(t.Context(), func(Info) error { return nil }) }, 1},
		{"WalkQuarantine", func() error { return q.WalkQuarantine(t.Context(), func(Quarantine) error { return nil }) }, 1},
		{"QuarantineRecord", func() error { _, err := q.QuarantineRecord(1); return err }, 1},
		{"QuarantineBody of " + damaged, func() error { return closed(q.QuarantineBody(1)) }, 4},
		{"Hold", func() error { return q.Hold(id) }, 2},
		{"Return", func() error { return q.Return(id) }, 3},
	} {
		reads := b.everyRead(func(n int) {
			if err := op.do(); err != nil && !errors.Is(err, errDisk) || err == nil && b.left.Load() <= 0 {
				t.Errorf("%s, when read %d fails: %v", op.name, n, err)
			}
		})
		if reads < op.reads {
			t.Errorf("%s reads %d times, not %d", op.name, reads, op.reads)
		}
	}
}

// TestAuditReadErrors: a queue whose index has to be built anew is opened with
// all of it right, or not at all.
func TestAuditReadErrors(t *testing.T) {
	o, b := brittleOptions(options(newMemDisk()))
	q := mustOpen(t, o)
	for range 3 {
		mustAccept(t, q, "body", "a@example.com", "b@example.net")
	}
	mustClose(t, q)
	o.Route = func(string) string { return "one" }
	reads := b.everyRead(func(n int) {
		q, err := Open(o)
		if err == nil {
			mustClose(t, q)
		}
		if b.left.Load() <= 0 && !errors.Is(err, errDisk) || err != nil && !errors.Is(err, errDisk) {
			t.Errorf("when read %d fails: %v", n, err)
		}
	})
	if reads < 8 {
		t.Errorf("%d reads", reads)
	}
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	q = mustOpen(t, o)
	defer mustClose(t, q)
	if strings.Contains(log.String(), "building it anew") {
		t.Errorf("built again and again:\n%s", &log)
	}
	var got, want []string
	if err := store.Scan(q.store, []byte{store.SpaceLine}, func(key, _ []byte) error { got = append(got, string(key)); return nil }); err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(3) {
		want = append(want, string(store.LineKey("one", seq+1)))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestDamageReadErrors: a damaged record is put aside as it was found, whichever
// read fails on the way.
func TestDamageReadErrors(t *testing.T) {
	for n := range int64(24) {
		bubble(t, fmt.Sprint(n), func(t *testing.T) {
			o, b := brittleOptions(options(newMemDisk()))
			o.Relayer = newFakeHop()
			q := mustOpen(t, o)
			mustAccept(t, q, "body", "a@example.com")
			var batch store.Batch
			batch.Put(store.SeqKey(store.SpaceRecord, 1), []byte("evil"))
			if err := q.store.Apply(batch); err != nil {
				t.Fatal(err)
			}
			b.left.Store(n)
			stop := run(t, q)
			time.Sleep(time.Hour)
			b.left.Store(0)
			raw, err := q.QuarantineRecord(1)
			if err != nil || string(raw) != "evil" || q.Quarantined() != 1 || q.Stats().Messages != 0 {
				t.Errorf("%q, %v; %d put aside, %d left", raw, err, q.Quarantined(), q.Stats().Messages)
			}
			stop()
		})
	}
}

// TestOneHeld: a start returns what a crash kept from being returned, be it one
// message.
func TestOneHeld(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		reports := new(letters)
		o := options(newMemDisk())
		o.Relayer = refuser{reports: reports}
		q := mustOpen(t, o)
		if _, err := commit(q, returnable("refused@example.com"), mail); err != nil {
			t.Fatal(err)
		}
		runFor(t, q, time.Minute)
		mustClose(t, q)
		o.Return = true
		q = mustOpen(t, o)
		defer mustClose(t, q)
		runFor(t, q, time.Minute)
		if got := reports.take(); len(got) != 1 {
			t.Errorf("%d reports", len(got))
		}
	})
}

// TestReturneesAreBounded: more senders than there is room for don't take away
// what others had.
func TestReturneesAreBounded(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := options(newMemDisk())
		o.Relayer = refuser{reports: new(letters)}
		q := mustOpen(t, o)
		defer mustClose(t, q)
		var ids []string
		for _, local := range []string{"known", "new"} {
			env := returnable("refused@example.com")
			env.From.Local = local
			id, err := commit(q, env, mail)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		runFor(t, q, time.Minute)
		known, err := q.find(ids[0])
		if err != nil {
			t.Fatal(err)
		}
		r := &returner{q: q, given: map[string]int{known.Env.From.String(): 1}}
		for n := 1; n < maxReturnees; n++ {
			r.given[fmt.Sprint(n)] = 1
		}
		for _, id := range ids {
			r.give(id)
		}
		if left := walk(t, q); len(left) != 2 || left[0].ID != ids[1] || !left[1].Report {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestReturnWithoutSpace: a report that finds no room leaves the message as it is.
func TestReturnWithoutSpace(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		disk := newMemDisk()
		o := options(disk)
		o.MinFree, o.Relayer = 1<<30, refuser{reports: new(letters)}
		q := mustOpen(t, o)
		defer mustClose(t, q)
		id, err := commit(q, returnable("refused@example.com"), mail)
		if err != nil {
			t.Fatal(err)
		}
		runFor(t, q, time.Minute)
		before := walk(t, q)
		disk.SetFree(testmx.Space{Bytes: 1 << 20, Inodes: 1 << 20})
		time.Sleep(time.Minute)
		wantReply(t, q.Return(id), 452, "4.3.1")
		if diff := cmp.Diff(before, walk(t, q), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Error(diff)
		}
		disk.SetFree(testmx.Space{Bytes: 1 << 40, Inodes: 1 << 20})
		time.Sleep(time.Minute)
		if err := q.Return(id); err != nil {
			t.Error(err)
		}
	})
}

// TestSpaceUnknown: whoever can't tell how much space is left doesn't say that
// there is none.
func TestSpaceUnknown(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o, b := brittleOptions(options(newMemDisk()))
		q := mustOpen(t, o)
		defer mustClose(t, q)
		time.Sleep(time.Minute)
		b.left.Store(1)
		wantReply(t, q.Ready(0), 451, "4.3.0")
		if n := testutil.ToFloat64(o.Metrics.StoreErrors.WithLabelValues("statfs")); n != 1 {
			t.Errorf("counted %v times", n)
		}
	})
}

// TestClosedUnderADraft: its client is told to come again.
func TestClosedUnderADraft(t *testing.T) {
	q := mustOpen(t, options(newMemDisk()))
	d, err := q.Begin(mailTo("a@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	wantReply(t, d.Commit(t.Context()), 451, "4.3.0")
}

// silentHop settles messages without a word.
type silentHop struct{}

func (silentHop) Up(string) bool { return true }

func (silentHop) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		t.Settle(nil, nil)
	}
	return nil
}

// TestSettledWithoutAReply: recipients that nothing was said about, though the
// session went well, are deferred, not tried again at once.
func TestSettledWithoutAReply(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := options(newMemDisk())
		o.Relayer = silentHop{}
		q := mustOpen(t, o)
		defer mustClose(t, q)
		mustAccept(t, q, "body", "a@example.com")
		runFor(t, q, 10*time.Second)
		if left := walk(t, q); len(left) != 1 || left[0].Recipients[0].State != "deferred" || left[0].Recipients[0].Reply != "451 4.3.0 no reply" || left[0].Recipients[0].Attempts != 1 {
			t.Errorf("%+v", left)
		}
	})
}

// TestRefusalIsLogged: the operator reads in the log what the next hop refuses
// of what was accepted, and by which rule that was.
func TestRefusalIsLogged(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		var log bytes.Buffer
		o := options(newMemDisk())
		o.Relayer, o.Log = refuser{reports: new(letters)}, slog.New(slog.NewTextHandler(&log, nil))
		q := mustOpen(t, o)
		defer mustClose(t, q)
		env := returnable("refused@example.com", "later@example.com")
		env.To[0].Rule = "the rule"
		again := mailTo("later@example.com")
		again.MayHaveArrived = true
		if _, err := commit(q, again, mail); err != nil {
			t.Fatal(err)
		}
		if _, err := commit(q, env, mail); err != nil {
			t.Fatal(err)
		}
		runFor(t, q, time.Minute)
		if n := strings.Count(log.String(), `level=ERROR msg="refused after we accepted it: held (parity incident)"`); n != 1 ||
			!strings.Contains(log.String(), `to=refused@example.com reply="550 5.7.1 no, and`) || !strings.Contains(log.String(), `rule="the rule"`) {
			t.Errorf("%d lines:\n%s", n, &log)
		}
		if strings.Contains(log.String(), "may have had before") {
			t.Errorf("relayed, it says of what was deferred:\n%s", &log)
		}
	})
}

// TestHealthyInTime: a disk that hangs isn't waited for.
func TestHealthyInTime(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		disk := newMemDisk()
		q := mustOpen(t, options(disk))
		defer mustClose(t, q)
		disk.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpSync {
				time.Sleep(time.Minute)
			}
			return nil
		})
		start := time.Now()
		if err := q.Healthy(); err == nil || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		disk.Fault(nil)
		time.Sleep(2 * time.Minute)
		if err := q.Healthy(); err != nil {
			t.Error(err)
		}
	})
}
