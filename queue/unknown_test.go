package queue

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// TestUnknownResult has one batch after another fail, as a connection does that
// is cut at COMMIT: it was applied, or it wasn't. What was refused is nowhere,
// what was settled is gone, what is counted is there.
func TestUnknownResult(t *testing.T) {
	for name, applied := range map[string]bool{"applied": true, "not applied": false} {
		bubble(t, name, func(t *testing.T) {
			m, h := storetest.New(), newFakeHop()
			failNext := func() { m.FaultOnce(applied, errors.New("connection lost")) }
			o := options(nil)
			o.Store, o.Relayer = m, h
			q := mustOpen(t, o)
			for _, size := range []int{100, 2 * maxInline} {
				failNext()
				id, err := accept(q, bodyOf(size, 1), "a@example.com")
				wantReply(t, err, 451, "4.3.0")
				time.Sleep(time.Second)
				if _, err := q.Get(id); !errors.Is(err, ErrNotFound) {
					t.Errorf("%d octets: refused, and then: %v", size, err)
				}
				if err := q.store.Bodies(func(id string) error { return errors.New(id) }); err != nil {
					t.Errorf("%d octets: a body is left: %v", size, err)
				}
			}
			kept := mustAccept(t, q, bodyOf(2*maxInline, 2), "a@example.com")
			failNext()
			if err := q.Hold(kept); err == nil {
				t.Error("held, who knows?")
			}
			time.Sleep(time.Second)
			if i, err := q.Get(kept); err != nil || (i.Recipients[0].State == "held") != applied || q.Stats().Held != map[bool]int{true: 1}[applied] {
				t.Errorf("%+v, %v, %+v", i, err, q.Stats())
			}
			if err := q.Release(kept); err != nil {
				t.Error(err)
			}
			failNext()
			stop := run(t, q)
			time.Sleep(time.Minute)
			if n := q.twice.Load(); n != 0 {
				t.Errorf("%d relayed twice", n)
			}
			if s := q.Stats(); s.Messages != 0 || s.Bytes != 0 || !slices.Equal(h.taken(), []string{kept + " a@example.com 250"}) {
				t.Errorf("relayed %v, left %+v", h.taken(), s)
			}
			stop()
		})
	}
}

// TestUnknownResultBehindCursor: what a batch without a result put in line is
// found, though the drain has read on past its place.
func TestUnknownResultBehindCursor(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		m, h := storetest.New(), newFakeHop()
		o := options(nil)
		o.Store, o.Relayer = m, h
		q := mustOpen(t, o)
		old := mustAccept(t, q, bodyOf(100, 1), "a@example.com")
		if err := q.Hold(old); err != nil {
			t.Fatal(err)
		}
		stop := run(t, q)
		defer stop()
		later := mustAccept(t, q, bodyOf(100, 2), "b@example.com")
		time.Sleep(time.Minute)
		m.FaultOnce(true, errors.New("connection lost"))
		if err := q.Release(old); err == nil {
			t.Error("released, who knows?")
		}
		time.Sleep(time.Minute)
		if want := []string{later + " b@example.com 250", old + " a@example.com 250"}; !slices.Equal(h.taken(), want) {
			t.Errorf("relayed %v, want %v", h.taken(), want)
		}
	})
}

// TestSaidOnce: while bodies can't be stored the log says so once, and not for each message;
// the metric counts each.
func TestSaidOnce(t *testing.T) {
	var log bytes.Buffer
	o := options(nil)
	o.Store, o.Log = storetest.New(), slog.New(slog.NewTextHandler(&log, nil))
	q := mustOpen(t, o)
	for range 1000 {
		if err := q.bodyError("create", store.ErrReopening); err == nil {
			t.Fatal("no reply")
		}
	}
	if n := testutil.ToFloat64(o.Metrics.StoreErrors.WithLabelValues("body_create")); n != 1000 {
		t.Errorf("%v counted, want 1000", n)
	}
	if n := strings.Count(log.String(), "message body not stored"); n != 1 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}
