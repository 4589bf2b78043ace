package queue

import (
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

// Status is the queue at one moment, for an operator who watches it.
type Status struct {
	At time.Time `json:"at"`
	// Accepted counts the messages since the queue was made, without DSNs of our
	// own.
	Accepted    uint64    `json:"accepted"`
	Messages    int       `json:"messages"`
	Deferred    int       `json:"deferred"`
	Held        int       `json:"held"`
	Bytes       int64     `json:"bytes"`
	Oldest      time.Time `json:"oldest,omitzero"`
	FreeBytes   uint64    `json:"free_bytes"`
	Quarantined int       `json:"quarantined"`
	// Waiting says that a recipient is to be relayed to; held ones are not.
	Waiting bool `json:"waiting"`
	// Broken says that the store is being reopened after a failed write.
	Broken bool `json:"broken"`
	// Damaged says that a merge met a damaged block: nothing is merged until the
	// next start, and Repair makes the store whole.
	Damaged bool `json:"damaged"`
	// Twice counts the messages since the start that a next hop may have twice.
	Twice        int64            `json:"twice,omitempty"`
	Destinations []DestinationNow `json:"destinations"` // that mail was for since the start
}

// DestinationNow is what the drain does for one destination.
type DestinationNow struct {
	Name     string    `json:"name"`
	Sessions int       `json:"sessions"`
	Allowed  int       `json:"allowed"`               // sessions, as fast as it takes mail now
	Pause    time.Time `json:"paused_until,omitzero"` // sessions failed
}

// Status reads no more than the oldest record, and the first of each line when
// all messages are held.
func (q *Queue) Status() Status {
	s := q.Stats()
	q.mu.Lock()
	t := q.totals
	q.mu.Unlock()
	now := Status{
		At: q.now(), Accepted: t.Next - 1 - uint64(t.Reports), Messages: int(t.Messages), Deferred: int(t.Deferred), Held: int(t.Held),
		Bytes: t.Bytes, Oldest: s.Oldest, FreeBytes: s.FreeBytes, Quarantined: int(t.Quarantined),
		Waiting: q.waits(t), Broken: q.poison.Load() != nil, Damaged: s.Damaged, Twice: q.twice.Load(),
		Destinations: []DestinationNow{},
	}
	q.each("", func(d *dest) {
		d.mu.Lock()
		defer d.mu.Unlock()
		at := DestinationNow{Name: d.name, Sessions: d.pace.lanes, Allowed: d.room()}
		if d.pace.wait.After(now.At) {
			at.Pause = d.pace.wait
		}
		now.Destinations = append(now.Destinations, at)
	})
	slices.SortFunc(now.Destinations, func(a, b DestinationNow) int { return strings.Compare(a.Name, b.Name) })
	return now
}

// Demand is what a destination could use now.
type Demand struct {
	Sessions int // that are open, or about to be
	Mail     int // due or on its way, as far as it was read ahead
}

// Demands has those of the destinations that mail was for since the start.
func (q *Queue) Demands() map[string]Demand {
	now, all := q.now(), map[string]Demand{}
	q.each("", func(d *dest) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.ready) == 0 { // nobody reads where no session is allowed
			_ = d.refill(now) // the drain meets the error, too
		}
		due := len(d.ready)
		for _, e := range d.again {
			if !e.wait.After(now) {
				due++
			}
		}
		all[d.name] = Demand{Sessions: d.pace.lanes, Mail: due + d.pace.lanes - d.pace.idle}
	})
	return all
}

// Sessions is how many to the destination of that name are open, or about to be.
func (q *Queue) Sessions(name string) (n int) {
	q.each(name, func(d *dest) {
		d.mu.Lock()
		n += d.pace.lanes
		d.mu.Unlock()
	})
	return n
}

// waits says that a message has a recipient that is in line or deferred. A
// message counts as held when only some of its recipients are.
func (q *Queue) waits(t store.Totals) bool {
	if t.Messages != t.Held || t.Held == 0 {
		return t.Messages > 0
	}
	found := false
	for _, space := range []byte{store.SpaceLine, store.SpaceDeferred} {
		err := q.store.Page(store.From([]byte{space}, nil), func(_, _ []byte) bool {
			found = true
			return false
		})
		found = found || err != nil // in doubt there is
	}
	return found
}
