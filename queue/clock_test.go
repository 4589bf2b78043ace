package queue

import (
	"testing"
	"time"
)

// TestClockJumps restarts the queue with a clock that is a year off, either
// way: deferred mail is tried soon, and not held for its age before it was in
// line for that long by the queue's own age as well.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, jump := range map[string]time.Duration{"a year back": -year, "a year ahead": year} {
		bubble(t, name, func(t *testing.T) {
			disk, b := newMemDisk(), newBook()
			o := options(disk)
			o.Relayer = hop{b}
			o.MaxAge = 14 * 24 * time.Hour
			q := mustOpen(t, o)
			id := mustAccept(t, q, "body", "a@defer.example")
			stop := run(t, q)
			time.Sleep(time.Second)
			stop()
			o.Metrics = nil
			o.Now = func() time.Time { return time.Now().Add(jump) }
			q = mustOpen(t, o)
			stop = run(t, q)
			time.Sleep(time.Minute)
			i, err := q.Get(id)
			if err != nil || i.Recipients[0].Attempts < 2 || i.Recipients[0].State != "deferred" {
				t.Errorf("a minute after the jump: %+v, %v", i.Recipients, err)
			}
			time.Sleep(13 * 24 * time.Hour)
			if i, err := q.Get(id); err != nil || i.Recipients[0].State != "deferred" {
				t.Errorf("13 days later: %+v, %v", i.Recipients, err)
			}
			time.Sleep(2 * 24 * time.Hour)
			i, err = q.Get(id)
			if err != nil || jump > 0 != (i.Recipients[0].State == "held") {
				t.Errorf("15 days later: %+v, %v", i.Recipients, err)
			}
			stop()
		})
	}
}
