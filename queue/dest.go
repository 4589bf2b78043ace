package queue

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

// readAhead is how many entries a destination reads from each of its lines at
// a time, some 100 KiB. A session looks for its client's mail among them.
const readAhead = 512

// maxAgain bounds the entries that a destination keeps in memory because a
// session failed under them.
const maxAgain = 1024

// entry is a message in a destination's line.
type entry struct {
	seq     uint64
	key     []byte // in the index
	client  string // clientSum, "" when unknown
	flushed int64  // taken by a flush: recipients last tried before this time are due
	fails   int    // sessions that failed under it in a row
	wait    time.Time
}

// dest is the drain's state for one destination.
type dest struct {
	q    *Queue
	name string
	kick chan struct{} // capacity 1; wakes the drain

	mu sync.Mutex // guards what follows; held over reads of the store, never over a write
	// The cursors: the last keys read. What lies before is in flight, in
	// ready, in again, or gone.
	lineAt, deferredAt, flushAt []byte
	flushing                    int64 // time of the Flush that flushAt belongs to, 0 when done
	ready                       []entry
	again                       []entry   // a session failed under them
	due                         time.Time // of the next deferred one; zero when unknown or none
	bell                        chan struct{}
	pace                        pace
}

// dest finds a destination's state, or makes it.
func (q *Queue) dest(name string) *dest {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.dests[name]
	if d == nil {
		d = &dest{q: q, name: name, kick: make(chan struct{}, 1), bell: make(chan struct{})}
		d.pace.reset()
		q.dests[name] = d
		if q.started != nil {
			q.started(d)
		}
	}
	return d
}

// noticed takes note of an index key that was just written. A key before the
// cursor (a release, a clock that went back) moves the cursor back.
func (d *dest) noticed(key []byte) {
	d.mu.Lock()
	if key[0] == store.SpaceLine {
		d.lineAt = before(d.lineAt, key)
	} else {
		d.deferredAt = before(d.deferredAt, key)
		if t := time.Unix(0, store.KeyDue(key)); d.due.IsZero() || t.Before(d.due) {
			d.due = t
		}
	}
	d.ring()
	d.mu.Unlock()
}

// rewind has all of the index read again. What is in memory as well is then met
// twice, and the second time nothing of it is due.
func (d *dest) rewind() {
	d.mu.Lock()
	d.lineAt, d.deferredAt = nil, nil
	d.mu.Unlock()
}

// before moves a cursor back to just before key.
func before(cursor, key []byte) []byte {
	if cursor == nil || string(cursor) < string(key) {
		return cursor
	}
	c := slices.Clone(key)
	binary.BigEndian.PutUint64(c[len(c)-8:], store.KeySeq(c)-1) // numbers begin at 1
	return c
}

// ring wakes the drain and the lanes that wait. The caller holds mu.
func (d *dest) ring() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
	close(d.bell)
	d.bell = make(chan struct{})
}

// pop takes the next due entry: one under which a session failed, else in turn a
// deferred one and the oldest in line. Unless client is "", the first entry of
// client that was read ahead overtakes.
func (d *dest) pop(now time.Time, client string) (e entry, ok bool, err error) {
	for i, e := range d.again {
		if !e.wait.After(now) && !d.q.busy(e.seq) {
			d.again = slices.Delete(d.again, i, i+1)
			return e, true, nil
		}
	}
	if len(d.ready) == 0 {
		err = d.refill(now)
	}
	if len(d.ready) == 0 {
		return e, false, err
	}
	i := 0
	if client != "" {
		i = max(0, slices.IndexFunc(d.ready, func(e entry) bool { return e.client == client }))
	}
	e = d.ready[i]
	copy(d.ready[1:], d.ready[:i])
	d.ready = d.ready[1:]
	return e, true, err
}

// refill reads ahead, as far as the store can be read.
func (d *dest) refill(now time.Time) error {
	var deferred, line []entry
	prefix := store.DestPrefix(store.SpaceDeferred, d.name)
	d.due = time.Time{}
	err := d.q.store.Page(store.From(prefix, d.deferredAt), func(key, _ []byte) bool {
		if due := time.Unix(0, store.KeyDue(key)); due.After(now) {
			d.due = due
			return false
		}
		deferred = append(deferred, entry{seq: store.KeySeq(key), key: slices.Clone(key)})
		d.deferredAt = deferred[len(deferred)-1].key
		return len(deferred) < readAhead
	})
	if err == nil && d.flushing != 0 {
		deferred, err = d.refillFlush(prefix, deferred)
	}
	if err == nil {
		err = d.q.store.Page(store.From(store.DestPrefix(store.SpaceLine, d.name), d.lineAt), func(key, client []byte) bool {
			line = append(line, entry{seq: store.KeySeq(key), key: slices.Clone(key), client: string(client)})
			d.lineAt = line[len(line)-1].key
			return len(line) < readAhead
		})
	}
	d.ready = d.ready[:0]
	for i := range max(len(deferred), len(line)) {
		if i < len(deferred) {
			d.ready = append(d.ready, deferred[i])
		}
		if i < len(line) {
			d.ready = append(d.ready, line[i])
		}
	}
	return err
}

// refillFlush continues a Flush: it visits every deferred entry once, whatever
// its time, but for those tried since the Flush began.
func (d *dest) refillFlush(prefix []byte, entries []entry) ([]entry, error) {
	seen := 0
	err := d.q.store.Page(store.From(prefix, d.flushAt), func(key, value []byte) bool {
		d.flushAt = slices.Clone(key)
		if len(value) == 8 && int64(binary.BigEndian.Uint64(value)) < d.flushing {
			entries = append(entries, entry{seq: store.KeySeq(key), key: d.flushAt, flushed: d.flushing})
		}
		seen++
		return len(entries) < 2*readAhead && seen < 4096
	})
	if err == nil && seen == 0 {
		d.flushing, d.flushAt = 0, nil
	}
	return entries, err
}

// retryMin is the wait of a message under which two sessions in a row failed. It
// doubles with each further failure, up to backoffMax.
const retryMin = 5 * time.Second

// putBack returns an entry under which a session failed. It waits longer each
// time, so that a message that breaks every session doesn't hold up the rest.
// The first failure costs nothing: an outage does that to any message under way.
func (d *dest) putBack(e entry, now time.Time) {
	if e.fails++; e.fails > 1 {
		e.wait = now.Add(min(retryMin<<min(e.fails-2, 20), backoffMax))
	}
	d.keep(e)
}

// keep holds an entry in memory for its next turn.
func (d *dest) keep(e entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.again) >= maxAgain { // find them again from the index
		for _, old := range append(d.again, e) {
			if old.key[0] == store.SpaceLine {
				d.lineAt = before(d.lineAt, old.key)
			} else {
				d.deferredAt = before(d.deferredAt, old.key)
			}
		}
		d.again = nil
	} else {
		d.again = append(d.again, e)
		slices.SortFunc(d.again, func(a, b entry) int {
			if a.seq < b.seq {
				return -1
			}
			return 1
		})
	}
	d.ring()
}

// wakeIn is how long until something becomes due by the clock alone.
func (d *dest) wakeIn(now time.Time, atMost time.Duration) time.Duration {
	if wait := d.pace.free.Sub(now); wait > 0 {
		return max(min(wait, atMost), minWait)
	}
	wait := atMost
	if !d.due.IsZero() {
		wait = min(wait, d.due.Sub(now))
	}
	for _, e := range d.again {
		wait = min(wait, max(e.wait.Sub(now), minWait))
	}
	return max(wait, minWait)
}

// minWait keeps a drain from spinning on an entry that is due but in flight.
const minWait = 10 * time.Millisecond

// flush makes the deferred due now.
func (d *dest) flush(now time.Time) {
	d.mu.Lock()
	d.flushing, d.flushAt = now.UnixNano(), nil
	for i := range d.again {
		d.again[i].wait = time.Time{}
	}
	d.ring()
	d.mu.Unlock()
}

// pace is how many sessions a destination gets: one at first, the canary, one
// more for each round of good answers, half after a bad one or when answers
// take much longer than they did.
type pace struct {
	window  float64
	lanes   int // sessions running
	idle    int // of them, waiting for a message
	fails   int // sessions failed since the last good answer
	wait    time.Time
	lastCut time.Time
	down    bool
	// What a small message takes: the least lately seen, and on average.
	least, usual time.Duration
	free         time.Time // with a max rate, when the next message may go
}

func (p *pace) reset() {
	p.window, p.fails, p.wait = 1, 0, time.Time{}
	p.least, p.usual = 0, 0
}

// A next hop is slow when messages take slowTimes as long as the fastest did,
// and slowAlways more: not even its own pauses are that long.
const (
	slowTimes  = 4
	slowAlways = 250 * time.Millisecond
)

// took notes how long a small message took, and says whether the next hop has
// become slow. The least time rises slowly, so that an idle hour doesn't set it
// for ever.
func (p *pace) took(d time.Duration) (slow bool) {
	p.least += p.least / 512
	if d < p.least || p.least == 0 {
		p.least = d
	}
	if p.usual == 0 {
		p.usual = d
	}
	p.usual += (d - p.usual) / 8
	if p.usual < slowTimes*p.least+slowAlways {
		return false
	}
	p.usual = p.least // what the smaller window makes of it counts anew
	return true
}

// rateBurst is how much of a pause a max rate may make up for.
const rateBurst = 100 * time.Millisecond

// spend takes a message's share of a rate per second; 0 is no limit.
func (p *pace) spend(now time.Time, rate int) {
	if rate <= 0 {
		return
	}
	if earliest := now.Add(-rateBurst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Second / time.Duration(rate))
}

func (p *pace) good(most int) {
	p.fails = 0
	p.window = min(p.window+1/p.window, float64(max(1, most)))
}

// bad halves the window, at most once a second: one round of bad answers is
// one event.
func (p *pace) bad(now time.Time) {
	if d := now.Sub(p.lastCut); d >= 0 && d < time.Second && !p.lastCut.IsZero() {
		return
	}
	p.lastCut = now
	p.window = max(1, p.window/2)
}

// failed notes that a session failed.
func (p *pace) failed(now time.Time) {
	p.bad(now)
	p.fails++
	p.wait = now.Add(min(time.Second<<min(p.fails-1, 6), time.Minute))
}
