package queue

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// TestMovedMeanwhile: a queue loses its store while a message is in a session, and
// another moves that message away. What the next hop answers then changes nothing: no
// half a message comes back, and the counts stay right. What was relayed is counted:
// the other queue relays it as well.
func TestMovedMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		code  int
		found bool // that the store is lost by the settling itself
	}{{250, false}, {450, false}, {550, false}, {250, true}, {450, true}} {
		mem := storetest.New()
		o := options(nil)
		o.Store = mem
		relaying, answer := make(chan struct{}), make(chan struct{})
		o.Relayer = relayFunc(func(next func(time.Duration) *envelope.Transfer) {
			for t := next(0); t != nil; t = next(0) {
				close(relaying)
				<-answer
				t.Settle([]envelope.Reply{envelope.NewReply(tt.code, "", "answer")}, nil)
			}
		})
		q := mustOpen(t, o)
		id, err := commit(q, mailTo("a@example.com"), "Subject: moved\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- q.Run(ctx) }()
		<-relaying
		takeAway(t, q, mem, id, !tt.found)
		close(answer)
		for q.busy(1) {
			if err := q.Healthy(); err != nil && !tt.found {
				t.Fatal(err)
			}
		}
		cancel()
		if err := errors.Join(<-ran, q.Close()); err != nil {
			t.Fatal(err)
		}
		twice := map[int]float64{250: 1}[tt.code]
		if n := testutil.ToFloat64(o.Metrics.RelayedTwice.WithLabelValues("moved")); n != twice || q.twice.Load() != int64(twice) {
			t.Errorf("%+v: %v relayed twice, want %v", tt, n, twice)
		}
		again := options(nil)
		again.Store = mem
		q = mustOpen(t, again)
		if n := testutil.ToFloat64(again.Metrics.StoreAlarms.WithLabelValues("missing")) + testutil.ToFloat64(again.Metrics.Quarantined); n != 0 || len(walk(t, q)) != 0 {
			t.Errorf("%+v: %v alarms, messages %+v", tt, n, walk(t, q))
		}
		mustClose(t, q)
	}
}

// TestLostInSession: once another may have the store, no message that is in a session is
// read to its end, so that no final dot follows; when the store is ours again it is relayed.
func TestLostInSession(t *testing.T) {
	mem := storetest.New()
	o := options(nil)
	o.Store = mem
	var ends []error
	settled := make(chan struct{})
	o.Relayer = relayFunc(func(next func(time.Duration) *envelope.Transfer) {
		for t := next(0); t != nil; t = next(0) {
			if len(ends) == 0 {
				mem.Lose(store.ErrReopening)
			}
			body, err := t.Open()
			if err == nil {
				_, err = io.ReadAll(body)
				body.Close()
			}
			ends = append(ends, err)
			mem.Lose(nil)
			if err != nil {
				t.Settle(nil, err)
				continue
			}
			t.Settle([]envelope.Reply{envelope.NewReply(250, "", "taken")}, nil)
			close(settled)
		}
	})
	q := mustOpen(t, o)
	if _, err := commit(q, mailTo("a@example.com"), "Subject: lost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	stop := run(t, q)
	<-settled
	stop()
	if len(ends) != 2 || !errors.Is(ends[0], store.ErrReopening) || ends[1] != nil {
		t.Errorf("read to the end with %v; want once an error, and once none", ends)
	}
}

// takeAway deletes a message as another holder of the store does, whose change makes
// the queue's next one fail, which comes now or is the settling.
func takeAway(t *testing.T, q *Queue, mem *storetest.Memory, id string, now bool) {
	t.Helper()
	rec, err := q.find(id)
	if err != nil {
		t.Fatal(err)
	}
	totals, err := store.LoadTotals(q.store)
	if err != nil {
		t.Fatal(err)
	}
	totals.Add(rec, -1)
	b := store.Batch{{Key: []byte{store.SpaceTotals}, Value: totals.Encode()}}
	for _, key := range [][]byte{store.SeqKey(store.SpaceRecord, rec.Seq), store.SeqKey(store.SpaceBody, rec.Seq), store.IDKey(id)} {
		b.Delete(key)
	}
	for _, e := range rec.Index(q.route) {
		b.Delete(e.Key)
	}
	mem.Fence(b, errors.New("fenced"))
	if !now {
		return
	}
	if q.Healthy() == nil {
		t.Fatal("no fault")
	}
	for q.Healthy() != nil {
	}
}

type relayFunc func(next func(time.Duration) *envelope.Transfer)

func (relayFunc) Up(string) bool { return true }

func (f relayFunc) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	f(next)
	return nil
}

// failing is a store of which a record can't be read once: the lease ended just then.
type failing struct {
	*storetest.Memory
	armed atomic.Bool
}

type failingStore struct {
	store.Store
	f *failing
}

func (f *failing) Open(alarm func(kind, detail string)) (store.Store, error) {
	s, err := f.Memory.Open(alarm)
	return failingStore{s, f}, err
}

func (s failingStore) Get(key []byte) ([]byte, error) {
	if key[0] == store.SpaceRecord && s.f.armed.Swap(false) {
		return nil, store.ErrReopening
	}
	return s.Store.Get(key)
}

// TestLostAgain: the store is lost, comes back, and is lost again before what a next hop has
// taken meanwhile is noted. It is noted later, and not relayed twice.
func TestLostAgain(t *testing.T) {
	mem := &failing{Memory: storetest.New()}
	o := options(nil)
	o.Store = mem
	var relayed atomic.Int64
	o.Relayer = relayFunc(func(next func(time.Duration) *envelope.Transfer) {
		for t := next(0); t != nil; t = next(0) {
			if relayed.Add(1) == 1 {
				mem.FaultOnce(false, errors.New("lost"))
				mem.armed.Store(true)
			}
			t.Settle([]envelope.Reply{envelope.NewReply(250, "", "taken")}, nil)
		}
	})
	q := mustOpen(t, o)
	if _, err := commit(q, mailTo("a@example.com"), "Subject: lost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	stop := run(t, q)
	for deadline := time.Now().Add(30 * time.Second); q.Stats().Messages > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	stop()
	if n := relayed.Load(); n != 1 || mem.armed.Load() {
		t.Errorf("relayed %d times; lost again: %v", n, !mem.armed.Load())
	}
}
