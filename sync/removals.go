package policysync

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/understudy-mx/understudy/policy/table"
)

// window is how long a deletion that wasn't staged is remembered.
const window = 7 * 24 * time.Hour

// Bounds of what is remembered. Beyond them only numbers are kept, and a recipient
// who comes back still counts as removed.
const (
	maxRemovedKeys   = 100_000
	maxRemovedOctets = 4 << 20
	maxRemovalsFile  = 32 << 20
)

// removals are the recipients that versions of the last window removed without
// being staged, except those who came back. A value is never changed, only
// replaced; nil is empty.
type removals struct {
	secret *table.Secret // what keys and domains are hashed under, nil: they are plain
	hours  []removedHour // the oldest first
}

// removedHour is what the versions of an hour removed.
type removedHour struct {
	at    time.Time // when it began
	keys  map[lostKey]bool
	of    map[string]uint64 // by list: how many entries it had, at most
	count map[string]uint64 // by list: removed beyond keys
}

// since drops what is older than the window. An hour of the future was written
// before the clock was set back: it lasts for a window from now on.
func (r *removals) since(now time.Time) *removals {
	stale := func(h removedHour) bool { return now.Sub(h.at) >= window+time.Hour }
	future := func(h removedHour) bool { return h.at.After(now) }
	if r == nil || !slices.ContainsFunc(r.hours, stale) && !slices.ContainsFunc(r.hours, future) {
		return r
	}
	hours := slices.DeleteFunc(slices.Clone(r.hours), stale)
	for i := range hours {
		if future(hours[i]) {
			hours[i].at = now
		}
	}
	if len(hours) == 0 {
		return nil
	}
	return &removals{r.secret, hours}
}

// under spells the removals as a listing does. Those hashed for another pairing,
// or before the primary ended hashing, can't be spelled so and are forgotten.
func (r *removals) under(s *table.Secret) *removals {
	switch {
	case r == nil || sameSecret(r.secret, s):
		return r
	case r.secret != nil:
		return nil
	}
	hasher := table.NewHasher(s)
	list := func(name string) string {
		if name != allLists && name[0] == domainList("")[0] {
			return domainList(string(hasher.Tag([]byte(name[1:]))))
		}
		return name
	}
	out := &removals{secret: s}
	for _, h := range r.hours {
		n := newRemovedHour(h.at)
		for k := range h.keys {
			n.keys[lostKey{k.table, string(hasher.Digest([]byte(k.key)))}] = true
		}
		for name, of := range h.of {
			n.of[list(name)] = of
		}
		for name, c := range h.count {
			n.count[list(name)] = c
		}
		out.hours = append(out.hours, n)
	}
	return out
}

func newRemovedHour(at time.Time) removedHour {
	return removedHour{at, map[lostKey]bool{}, map[string]uint64{}, map[string]uint64{}}
}

// lost counts, by list, recipients removed before a deletion and still missing.
func (r *removals) lost(d *deletion) map[string]loss {
	if r == nil {
		return nil
	}
	sum, again, l := map[string]loss{}, d.set(), d.listing
	for _, h := range r.hours {
		for k := range h.keys {
			if !again[k] && !l.lists([]byte(k.key)) {
				for _, name := range k.lists(l) {
					sum[name] = sum[name].plus(loss{n: 1})
				}
			}
		}
		for name, c := range h.count {
			sum[name] = sum[name].plus(loss{n: c})
		}
		for name, of := range h.of {
			sum[name] = sum[name].plus(loss{of: of})
		}
	}
	return sum
}

// lists names the lists that an entry was in.
func (k lostKey) lists(l *listing) []string {
	return []string{allLists, tableList(k.table), domainList(l.domain([]byte(k.key)))}
}

// set makes a set of a deletion's keys. A recipient may be removed, come back
// and be removed again.
func (d *deletion) set() map[lostKey]bool {
	set := make(map[lostKey]bool, len(d.keys))
	for _, k := range d.keys {
		set[k] = true
	}
	return set
}

// with adds a deletion, and forgets recipients who came back.
func (r *removals) with(d *deletion, now time.Time) *removals {
	again := d.set()
	out := &removals{secret: d.listing.secret}
	keys, octets := 0, 0
	if r = r.since(now); r != nil {
		for _, h := range r.hours {
			h.keys = maps.Clone(h.keys)
			maps.DeleteFunc(h.keys, func(k lostKey, _ bool) bool { return again[k] || d.listing.lists([]byte(k.key)) })
			if len(h.keys)+len(h.count) == 0 {
				continue
			}
			for k := range h.keys {
				octets += len(k.table) + len(k.key)
			}
			keys += len(h.keys)
			out.hours = append(out.hours, h)
		}
	}
	last := len(out.hours) - 1
	if last < 0 || now.Sub(out.hours[last].at) >= time.Hour {
		out.hours = append(out.hours, newRemovedHour(now))
		last++
	}
	h := &out.hours[last]
	h.of, h.count = maps.Clone(h.of), maps.Clone(h.count)
	h.add(d, keys, octets)
	return out
}

// add notes a deletion, its keys as far as there is room.
func (h *removedHour) add(d *deletion, keys, octets int) {
	rest := maps.Clone(d.lists)
	for _, k := range d.keys {
		octets += len(k.table) + len(k.key)
		if keys++; keys > maxRemovedKeys || octets > maxRemovedOctets {
			break
		}
		h.keys[k] = true
		for _, name := range k.lists(d.listing) {
			h.of[name] = max(h.of[name], d.lists[name].of)
			rest[name] = loss{rest[name].n - 1, rest[name].of}
		}
	}
	for name, l := range rest {
		if l.n > 0 && (name == allLists || name[0] == tableList("")[0] || h.of[name] > 0) { // other domains would be without bound
			h.of[name] = max(h.of[name], l.of)
			h.count[name] += l.n
		}
	}
}

const removalsFile = "removals.json"

// removalsOnDisk is what removals.json holds.
type removalsOnDisk struct {
	Secret []byte       `json:"secret,omitempty"` // its name
	Hours  []hourOnDisk `json:"hours"`
}

type hourOnDisk struct {
	At    time.Time           `json:"at"`
	Keys  map[string][][]byte `json:"keys"` // by table
	Lists []listOnDisk        `json:"lists"`
}

type listOnDisk struct {
	Name  []byte `json:"name"`
	Of    uint64 `json:"of"`
	Count uint64 `json:"count,omitempty"`
}

// saveRemovals makes r durable. It comes before the head, so that no crash forgets
// what a version removed.
func (s *store) saveRemovals(r *removals) error {
	var d removalsOnDisk
	if r == nil {
		r = new(removals)
	}
	if r.secret != nil {
		id := secretID(r.secret)
		d.Secret = id[:]
	}
	for _, h := range r.hours {
		o := hourOnDisk{At: h.at.UTC(), Keys: map[string][][]byte{}}
		for k := range h.keys {
			o.Keys[k.table] = append(o.Keys[k.table], []byte(k.key))
		}
		for name, of := range h.of {
			o.Lists = append(o.Lists, listOnDisk{[]byte(name), of, h.count[name]})
		}
		d.Hours = append(d.Hours, o)
	}
	b, err := json.Marshal(&d)
	if err == nil {
		err = replaceFile(s.fs, s.path(removalsFile), b)
	}
	if err != nil {
		return fmt.Errorf("store removals: %w", err)
	}
	return nil
}

// loadRemovals reads what saveRemovals wrote. Removals hashed under none of the
// secrets belong to another pairing.
func (s *store) loadRemovals(secrets []*table.Secret) (*removals, error) {
	b, err := s.fs.ReadFile(s.path(removalsFile), maxRemovalsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var d removalsOnDisk
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		return nil, fmt.Errorf("read removals (the last days' small deletions are forgotten): %w", err)
	}
	r := new(removals)
	if len(d.Secret) > 0 {
		i := slices.IndexFunc(secrets, func(s *table.Secret) bool { id := secretID(s); return string(id[:]) == string(d.Secret) })
		if i < 0 {
			return nil, nil
		}
		r.secret = secrets[i]
	}
	for _, o := range d.Hours {
		h := newRemovedHour(o.At)
		for name, keys := range o.Keys {
			for _, k := range keys {
				if r.secret != nil && len(k) != table.DigestSize {
					return nil, fmt.Errorf("read removals (the last days' small deletions are forgotten): a digest has %d octets", len(k))
				}
				h.keys[lostKey{name, string(k)}] = true
			}
		}
		for _, l := range o.Lists {
			h.of[string(l.Name)] = l.Of
			if l.Count > 0 {
				h.count[string(l.Name)] = l.Count
			}
		}
		r.hours = append(r.hours, h)
	}
	if len(r.hours) == 0 {
		return nil, nil
	}
	return r, nil
}
