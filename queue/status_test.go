package queue

import (
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestStatus: what was accepted, and whether something waits when some or all
// of it is held.
func TestStatus(t *testing.T) {
	q := mustOpen(t, options(newMemDisk()))
	defer mustClose(t, q)
	want := func(what string, accepted uint64, messages int, waiting bool) {
		t.Helper()
		s := q.Status()
		if s.Accepted != accepted || s.Messages != messages || s.Waiting != waiting || s.Broken {
			t.Errorf("%s: %+v", what, s)
		}
	}
	want("at first", 0, 0, false)
	one := mustAccept(t, q, "one", "a@example.com")
	two := mustAccept(t, q, "two", "a@example.com", "b@defer.example")
	want("two messages", 2, 2, true)
	if s := q.Status(); len(s.Destinations) != 2 || s.Destinations[0].Name != "mx.defer.example" || s.Destinations[0].Allowed != 1 {
		t.Errorf("destinations: %+v", s.Destinations)
	}
	for _, id := range []string{one, two} {
		if err := q.Hold(id); err != nil {
			t.Fatal(err)
		}
	}
	want("both held", 2, 2, false)
	// Held for one recipient, in line for the other.
	if err := q.change(two, func(r *store.Record) bool { r.Recipients[1].State = store.Queued; return true }); err != nil {
		t.Fatal(err)
	}
	want("one in part", 2, 2, true)
	if err := q.Remove(two); err != nil {
		t.Fatal(err)
	}
	want("one left", 2, 1, false)
}
