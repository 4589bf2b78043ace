package outage

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock plays samples at times counted from the first.
type clock struct {
	t     *testing.T
	book  *Book
	begin time.Time
}

func (c *clock) at(d time.Duration, up bool, since time.Duration, s Sample) {
	r := Route{Name: "primary", Up: up, Since: c.begin.Add(since)}
	if !up {
		r.Error = "connection refused"
	}
	s.Routes = []Route{r}
	if s.Waiting > 0 {
		s.Oldest = c.begin.Add(since)
	}
	c.book.Observe(c.begin.Add(d), s)
}

func (c *clock) reopen() {
	c.t.Helper()
	if err := c.book.Save(); err != nil {
		c.t.Fatal(err)
	}
	book, err := Open(c.book.name)
	if err != nil {
		c.t.Fatal(err)
	}
	c.book = book
}

func newClock(t *testing.T) *clock {
	book, err := Open(filepath.Join(t.TempDir(), "outages.json"))
	if err != nil {
		t.Fatal(err)
	}
	return &clock{t, book, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
}

// TestBook plays an outage of four days with a restart amid, at which those
// counters begin anew that the queue doesn't keep.
func TestBook(t *testing.T) {
	c := newClock(t)
	day := 24 * time.Hour
	c.at(0, true, 0, Sample{Accepted: 100, Refused: map[string]uint64{"reject_rbl_client": 7}})
	c.at(time.Minute, false, 50*time.Second, Sample{Accepted: 100, Refused: map[string]uint64{"reject_rbl_client": 7}})
	c.at(2*time.Hour, false, 50*time.Second, Sample{Accepted: 110, Waiting: 10, Refused: map[string]uint64{"reject_rbl_client": 9, "unknown_recipient": 1}})
	c.reopen()
	c.at(3*day, false, 2*day, Sample{Accepted: 115, Waiting: 15, Refused: map[string]uint64{"reject_rbl_client": 2}})
	c.at(4*day, true, 4*day-time.Minute, Sample{Accepted: 116, Waiting: 15, Relayed: 1})
	c.at(4*day+time.Hour, true, 4*day, Sample{Accepted: 118, Relayed: 14, Held: 2})
	c.at(5*day, true, 4*day, Sample{Accepted: 119, Relayed: 40})
	want := []Outage{{
		ID: 1, Route: "primary", Began: c.begin.Add(50 * time.Second), Noticed: "connection refused", Ended: c.begin.Add(4*day - time.Minute), Drained: c.begin.Add(4*day + time.Hour),
		Accepted: 15, Refused: map[string]uint64{"reject_rbl_client": 4, "unknown_recipient": 1}, Relayed: 14, Held: 2, Longest: int64((3*day - 50*time.Second) / time.Second), Saved: 10,
	}}
	got := c.book.List()
	got[0].Hours = nil
	want[0].Longest = got[0].Longest
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if l := got[0].Longest; l < int64(day/time.Second) {
		t.Errorf("the longest wait is %d s", l)
	}
}

// TestNoOutage: a next hop that never answered, and one that was away for a
// moment without mail.
func TestNoOutage(t *testing.T) {
	c := newClock(t)
	c.book.Observe(c.begin, Sample{Routes: []Route{{Name: "primary"}}})
	c.at(time.Second, false, time.Second, Sample{})
	c.at(30*time.Second, true, 29*time.Second, Sample{})
	if got := c.book.List(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	c.at(time.Minute, false, time.Minute, Sample{})
	c.at(61*time.Second, false, time.Minute, Sample{Accepted: 1, Waiting: 1})
	c.at(70*time.Second, true, 65*time.Second, Sample{Accepted: 1, Waiting: 1})
	if got := c.book.List(); len(got) != 1 || got[0].Accepted != 1 || got[0].Drained != (time.Time{}) {
		t.Errorf("%+v", got)
	}
}

func TestBounds(t *testing.T) {
	c := newClock(t)
	for i := range 2 * maxOutages {
		d := time.Duration(i) * 10 * time.Hour
		c.at(d, false, d, Sample{})
		c.at(d+time.Hour, true, d+time.Hour, Sample{})
	}
	got := c.book.List()
	if len(got) != maxOutages || got[maxOutages-1].ID != 2*maxOutages {
		t.Errorf("%d outages, the last %d", len(got), got[len(got)-1].ID)
	}
	d := 20000 * time.Hour
	c.at(d, false, d, Sample{})
	c.at(d+5000*time.Hour, false, d, Sample{Accepted: 3})
	if got := c.book.List(); len(got[len(got)-1].Hours) != maxHours {
		t.Errorf("%d hours", len(got[len(got)-1].Hours))
	}
}

// TestDamagedBook: the daemon goes on without it.
func TestDamagedBook(t *testing.T) {
	name := filepath.Join(t.TempDir(), "outages.json")
	if err := os.WriteFile(name, []byte(`{"outages":[{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	book, err := Open(name)
	if err == nil || len(book.List()) != 0 {
		t.Errorf("half a book: %v, %v", book.List(), err)
	}
	c := &clock{t, book, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	c.at(0, false, 0, Sample{})
	c.reopen()
	if n := len(c.book.List()); n != 1 {
		t.Errorf("%d outages afterwards", n)
	}
	if _, err := os.Stat(name + ".damaged"); err != nil {
		t.Error(err)
	}
}

// TestPlanned: a stand-in is an outage that was planned; it ends when the next hop
// isn't left alone any more, however long that was up.
func TestPlanned(t *testing.T) {
	c := newClock(t)
	planned := Route{Name: "primary", Since: c.begin.Add(time.Hour), Error: "planned: disks", Planned: "disks"}
	up := Route{Name: "primary", Up: true, Since: c.begin}
	c.book.Observe(c.begin, Sample{Routes: []Route{up}})
	c.book.Observe(c.begin.Add(time.Hour), Sample{Routes: []Route{planned}, Accepted: 0})
	c.reopen()
	c.book.Observe(c.begin.Add(2*time.Hour), Sample{Routes: []Route{planned}, Accepted: 5, Waiting: 5, Oldest: c.begin.Add(time.Hour)})
	c.book.Observe(c.begin.Add(3*time.Hour), Sample{Routes: []Route{up}, Accepted: 5})
	all := c.book.List()
	if len(all) != 1 || all[0].Planned != "disks" || all[0].Length(c.begin) != 2*time.Hour || all[0].Accepted != 5 || all[0].Drained.IsZero() {
		t.Errorf("%+v", all)
	}
}
