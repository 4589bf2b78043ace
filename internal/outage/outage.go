// Package outage records the primary's outages: when each began and ended, how it
// was noticed, and how much mail was accepted, refused, relayed and held. The book
// outlives the daemon, which continues an outage that it finds open.
//
// An outage has two ends: the next hop answers again, and then, later, nothing
// waits any more. Mail is counted as accepted and refused until the first, as
// relayed and held until the second. The counts are the whole secondary's, also
// when it has several next hops.
package outage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
)

// Retry is how long a sender tries at the most, in hours, by the defaults of
// the usual servers: five days, but many give up after three. Mail that such a
// sender would have lost is what Outage.Saved counts.
const Retry = 72

const (
	maxOutages = 500         // that are kept
	maxHours   = 24 * 60     // of which the accepted mail is known hour by hour
	minLength  = time.Minute // shorter ones, without mail, are none
)

// Outage is one line of the book.
type Outage struct {
	ID      int       `json:"id"` // from 1
	Route   string    `json:"route"`
	Began   time.Time `json:"began"`
	Noticed string    `json:"noticed"`           // the error
	Planned string    `json:"planned,omitempty"` // the reason of a stand-in; "" when none was planned
	Ended   time.Time `json:"ended,omitzero"`    // zero: it goes on
	Drained time.Time `json:"drained,omitzero"`  // zero: mail of it may wait
	Waited  int       `json:"waited"`            // messages that waited when it began

	Accepted uint64            `json:"accepted"`     // messages, while it lasted
	Refused  map[string]uint64 `json:"refused"`      // verdicts, by kind of rule, while it lasted
	Relayed  uint64            `json:"relayed"`      // recipients, until it was drained
	Held     uint64            `json:"held"`         // recipients, until it was drained, less those returned
	Returned uint64            `json:"returned"`     // recipients, until it was drained
	Twice    uint64            `json:"may_be_twice"` // messages that the primary had whole and didn't answer, until it was drained
	Longest  int64             `json:"longest_wait_seconds"`
	Saved    uint64            `json:"saved"` // messages that a sender who gives up after Retry hours would have lost

	Hours []uint64 `json:"hours,omitempty"` // messages accepted in each hour

	Told map[string]string `json:"told,omitempty"` // what the operator was told last, "began" or "ended", by way
}

// Length is how long it lasted, or lasts by now.
func (o *Outage) Length(now time.Time) time.Duration {
	if !o.Ended.IsZero() {
		now = o.Ended
	}
	return now.Sub(o.Began)
}

// Refusals are all verdicts that refused.
func (o *Outage) Refusals() (n uint64) {
	for _, v := range o.Refused {
		n += v
	}
	return n
}

// Route is how a next hop is.
type Route struct {
	Name  string
	Up    bool
	Since time.Time
	Error string // "" when it was never found away
	// Planned is why it is left alone although it may be up; then it isn't Up, and
	// Since is when that began.
	Planned string
}

// Sample is the state of next hops and mail at one moment.
type Sample struct {
	Routes   []Route
	Accepted uint64 // since the queue was made
	Waiting  int    // messages
	Oldest   time.Time

	Relayed, Held, Returned, Twice uint64            // since the process began
	Refused                        map[string]uint64 // likewise
}

// file is the book on disk.
type file struct {
	Accepted *uint64  `json:"accepted"` // of the last sample
	Outages  []Outage `json:"outages"`
}

// Book is the book, in a file.
type Book struct {
	name string

	mu    sync.Mutex // guards what follows
	all   []Outage
	last  Sample
	known bool // last.Accepted is
	dirty bool
}

// Open reads the book in a file, which need not exist. With an error the book is
// empty: no mail waits for what it says. A damaged one is put aside.
func Open(name string) (*Book, error) {
	b := &Book{name: name}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	var f file
	if err == nil {
		if err = json.Unmarshal(text, &f); err != nil {
			err = errors.Join(err, os.Rename(name, name+".damaged"))
		}
	}
	if err != nil {
		return b, fmt.Errorf("read the book of outages: %w", err)
	}
	if b.all = f.Outages; f.Accepted != nil {
		b.last.Accepted, b.known = *f.Accepted, true
	}
	return b, nil
}

// List returns all outages, the first one first.
func (b *Book) List() []Outage {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Clone(b.all)
	for i := range all {
		all[i].Refused, all[i].Hours, all[i].Told = maps.Clone(all[i].Refused), slices.Clone(all[i].Hours), maps.Clone(all[i].Told)
	}
	return all
}

// Observe notes a sample, taken every few seconds. turned says that an outage
// began or ended.
func (b *Book) Observe(now time.Time, s Sample) (turned bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known {
		b.last.Accepted, b.known = s.Accepted, true
	}
	for _, r := range s.Routes {
		turned = b.turn(now, r, s.Waiting) || turned
	}
	for i := range b.all {
		if o := &b.all[i]; o.Drained.IsZero() {
			b.count(o, now, &s)
			if !o.Ended.IsZero() && s.Waiting == 0 {
				o.Drained, turned = now, true
			}
		}
	}
	b.last = s
	b.all = slices.DeleteFunc(b.all, func(o Outage) bool {
		return !o.Ended.IsZero() && o.Accepted == 0 && o.Ended.Sub(o.Began) < minLength
	})
	if n := len(b.all) - maxOutages; n > 0 {
		b.all = slices.Delete(b.all, 0, n)
	}
	return turned
}

// turn begins or ends the outage of a route.
func (b *Book) turn(now time.Time, r Route, waiting int) (turned bool) {
	open := slices.IndexFunc(b.all, func(o Outage) bool { return o.Route == r.Name && o.Ended.IsZero() })
	switch {
	case open < 0 && !r.Up && r.Error != "":
		id := 1
		if n := len(b.all); n > 0 {
			id = b.all[n-1].ID + 1
		}
		b.all = append(b.all, Outage{ID: id, Route: r.Name, Began: r.Since, Noticed: r.Error, Planned: r.Planned, Waited: waiting, Refused: map[string]uint64{}})
	case open >= 0 && r.Up:
		o := &b.all[open]
		o.Ended = r.Since
		if o.Ended.Before(o.Began) {
			o.Ended = now
		}
		if o.Planned != "" {
			o.Ended = now // it was up before
		}
		late := int(o.Ended.Sub(o.Began)/time.Hour) - Retry
		for _, n := range o.Hours[:max(0, min(late, len(o.Hours)))] {
			o.Saved += n
		}
	default:
		return false
	}
	b.dirty = true
	return true
}

// count adds what has happened since the last sample.
func (b *Book) count(o *Outage, now time.Time, s *Sample) {
	o.Relayed += since(b.last.Relayed, s.Relayed)
	returned := since(b.last.Returned, s.Returned)
	o.Returned += returned
	o.Held += since(b.last.Held, s.Held)
	o.Twice += since(b.last.Twice, s.Twice)
	o.Held -= min(o.Held, returned) // more only where it was held before the outage
	if s.Waiting > 0 && !s.Oldest.IsZero() {
		o.Longest = max(o.Longest, int64(now.Sub(s.Oldest)/time.Second))
	}
	b.dirty = true
	if !o.Ended.IsZero() {
		return
	}
	n := since(b.last.Accepted, s.Accepted)
	o.Accepted += n
	hour := min(max(0, int(now.Sub(o.Began)/time.Hour)), maxHours-1)
	for len(o.Hours) <= hour {
		o.Hours = append(o.Hours, 0)
	}
	o.Hours[hour] += n
	for rule, v := range s.Refused {
		if d := since(b.last.Refused[rule], v); d > 0 {
			o.Refused[rule] += d
		}
	}
}

// since is the growth of a counter; a smaller value means that it began anew.
func since(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// Tell notes that the operator was told of an outage by some way.
func (b *Book) Tell(id int, way, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.all {
		if o := &b.all[i]; o.ID == id {
			if o.Told == nil {
				o.Told = map[string]string{}
			}
			o.Told[way], b.dirty = what, true
		}
	}
}

// Save writes the book, if there is anything new.
func (b *Book) Save() error {
	b.mu.Lock()
	text, err := json.Marshal(file{&b.last.Accepted, b.all})
	dirty := b.dirty
	b.dirty = false
	b.mu.Unlock()
	if !dirty || err != nil {
		return err
	}
	if err := service.ReplaceFile(b.name, text); err != nil {
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
		return fmt.Errorf("the book of outages: %w", err)
	}
	return nil
}
