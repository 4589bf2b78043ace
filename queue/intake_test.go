package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

// IDs of messages of other stores.
const (
	idA = "000000000000000a"
	idB = "000000000000000b"
	idC = "000000000000000c"
	idD = "000000000000000d"
	idG = "00000000000000gn" // gone
	idN = "00000000000000nv" // never was
)

// intoMemory opens a queue for messages of other stores.
func intoMemory(t *testing.T) *Queue {
	t.Helper()
	o := options(nil)
	o.Store = storetest.New()
	q := mustOpen(t, o)
	t.Cleanup(func() { mustClose(t, q) })
	return q
}

// foreign is a message of another store, and its body.
func foreign(id string) (*store.Record, func() (io.ReadCloser, error)) {
	body := "Subject: " + id + "\r\n\r\n"
	r := &store.Record{Env: *mailTo(), Size: int64(len(body)), Inline: true, Recipients: []store.Recipient{
		{Recipient: mailTo("a@example.com").To[0], Since: 1}}}
	r.Env.ID, r.Env.Received = id, time.Unix(1000, 0)
	return r, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
}

// arriveFrom stores messages of another store, unconfirmed.
func arriveFrom(t *testing.T, q *Queue, origin string, ids ...string) {
	t.Helper()
	in := q.Intake(origin, 0)
	for _, id := range ids {
		r, open := foreign(id)
		if err := in.Add(r, open); err != nil {
			t.Fatal(err)
		}
	}
	if stored, err := in.Store(t.Context()); err != nil || !slices.Equal(stored, ids) {
		t.Fatalf("stored %q of %q, %v", stored, ids, err)
	}
}

// TestKnows: a queue has a message, or a note where it went, or neither.
func TestKnows(t *testing.T) {
	q := intoMemory(t)
	has := mustAccept(t, q, bodyOf(100, 1), "a@example.com")
	both := mustAccept(t, q, bodyOf(100, 2), "a@example.com")
	note := store.Batch{}
	for _, id := range []string{idG, both} {
		note.Put(store.MovedKey(id), []byte("store 7"))
	}
	if err := q.store.Apply(note); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]struct {
		here bool
		to   string
	}{has: {true, ""}, both: {true, ""}, idG: {false, "store 7"}, idN: {false, ""}} {
		if here, to, err := q.Knows(id); here != want.here || to != want.to || err != nil {
			t.Errorf("%s: here %v, moved to %q, %v", id, here, to, err)
		}
	}
}

// TestOrigins: each store is named once from which messages are coming, until all of
// them are confirmed or forgotten.
func TestOrigins(t *testing.T) {
	q := intoMemory(t)
	if o := q.Origins(); len(o) != 0 {
		t.Errorf("before any: %q", o)
	}
	arriveFrom(t, q, "one", idA, idB)
	arriveFrom(t, q, "two", idC)
	origins := func() []string { return slices.Sorted(slices.Values(q.Origins())) }
	if o := origins(); !slices.Equal(o, []string{"one", "two"}) {
		t.Errorf("from %q", o)
	}
	if ids := q.Coming("one"); !slices.Equal(ids, []string{idA, idB}) {
		t.Errorf("coming from one: %q", ids)
	}
	if err := q.Confirm("one", []string{idA, idC}, false); err != nil {
		t.Fatal(err)
	}
	if o := origins(); !slices.Equal(o, []string{"one", "two"}) {
		t.Errorf("one of each is left: %q", o)
	}
	if err := errors.Join(q.Forget("one", []string{idB}), q.Confirm("two", []string{idC}, false)); err != nil {
		t.Fatal(err)
	}
	if o := q.Origins(); len(o) != 0 {
		t.Errorf("after all: %q", o)
	}
	if _, err := q.Get(idB); !errors.Is(err, ErrNotFound) {
		t.Errorf("forgotten: %v", err)
	}
}

// TestConfirm: a confirmed message may have arrived if its origin says so, or the
// caller, and else not; the others stay where they are.
func TestConfirm(t *testing.T) {
	for _, tt := range []struct{ was, says, want bool }{{false, false, false}, {true, false, true}, {false, true, true}, {true, true, true}} {
		q := intoMemory(t)
		in := q.Intake("one", 0)
		r, open := foreign(idA)
		r.Env.MayHaveArrived = tt.was
		if err := in.Add(r, open); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Store(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := q.Confirm("two", []string{idA}, true); err != nil || len(q.Coming("one")) != 1 {
			t.Errorf("another store's word counts: %v, coming %q", err, q.Coming("one"))
		}
		if err := q.Confirm("one", []string{idA, idN}, tt.says); err != nil {
			t.Fatal(err)
		}
		is, err := q.find(idA)
		if err != nil {
			t.Fatal(err)
		}
		if is.Origin != "" || is.Env.MayHaveArrived != tt.want {
			t.Errorf("%+v: origin %q, may have arrived %v", tt, is.Origin, is.Env.MayHaveArrived)
		}
		if n := len(walk(t, q)); n != 1 || q.Stats().Messages != 1 {
			t.Errorf("%d messages, %d counted", n, q.Stats().Messages)
		}
	}
}

// TestAddQuarantined: what another store has put aside is put aside here, once,
// under a number of its own.
func TestAddQuarantined(t *testing.T) {
	q := intoMemory(t)
	live := mustAccept(t, q, bodyOf(100, 1), "a@example.com")
	body := func(s string) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
	}
	in := q.Intake("one", 0)
	add := func(id, raw string, inline bool, open func() (io.ReadCloser, error)) {
		t.Helper()
		if err := in.AddQuarantined(id, []byte(raw), inline, open); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.AddQuarantined(live, []byte("damaged"), true, body("of another")); !errors.Is(err, ErrOtherMessage) {
		t.Errorf("under the ID of a message that is fine: %v", err)
	}
	// Again, as after a restart of the move, that had got as far as the first without an
	// ID; a message comes along.
	for again := range 3 {
		if again == 1 {
			in = q.Intake("one", 0)
		}
		add(idA, "damaged A", true, body("body of A"))
		add(idB, "damaged B", false, body("body of B"))
		if again < 2 {
			add("", "damaged, whose?", true, body("body of somebody"))
		}
		if again == 1 {
			add("", "damaged, and without a body", true, nil)
		}
		if r, open := foreign(idC); len(q.Coming("one")) == 0 {
			if err := in.Add(r, open); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := in.Store(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	later := mustAccept(t, q, bodyOf(100, 2), "a@example.com")
	want := map[string]string{"damaged A": "body of A", "damaged B": "body of B", "damaged, whose?": "body of somebody", "damaged, and without a body": ""}
	numbers := map[uint64]bool{}
	err := q.WalkQuarantine(context.Background(), func(a Quarantine) error {
		raw, err := q.QuarantineRecord(a.Seq)
		if err != nil {
			return err
		}
		text, ok := want[string(raw)]
		delete(want, string(raw))
		if !ok || numbers[a.Seq] {
			t.Errorf("number %d: %q, once more", a.Seq, raw)
		}
		numbers[a.Seq] = true
		r, err := q.QuarantineBody(a.Seq)
		if text == "" {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%q has a body: %v", raw, err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%q: %w", raw, err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if !bytes.Contains(got, []byte(text)) {
			t.Errorf("%q: body %q", raw, got)
		}
		return err
	})
	if err != nil || len(want) != 0 {
		t.Errorf("missing %v, %v", want, err)
	}
	if totals, err := store.LoadTotals(q.store); err != nil || totals.Quarantined != 4 || totals.Messages != 3 {
		t.Errorf("counted %+v, %v", totals, err)
	}
	for _, id := range []string{live, idC, later} {
		seq, err := store.SeqOf(q.store, id)
		if err != nil || numbers[seq] {
			t.Errorf("%s has number %d, as has one put aside; %v", id, seq, err)
		}
		numbers[seq] = true
	}
}

// TestArrivedReports: what comes from another store was accepted there; it doesn't
// count as accepted here, and neither does a report of ours.
func TestArrivedReports(t *testing.T) {
	q := intoMemory(t)
	mustAccept(t, q, bodyOf(100, 1), "a@example.com")
	in := q.Intake("one", 0)
	for id, report := range map[string]bool{idA: false, idB: true} {
		r, open := foreign(id)
		if r.Env.Report = report; report {
			r.Env.From = envelope.ReversePath{}
		}
		if err := in.Add(r, open); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.AddQuarantined(idD, []byte("damaged"), true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Store(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := q.Status().Accepted; n != 1 {
		t.Errorf("%d accepted", n)
	}
}
