package resolver

import "time"

// maxEntry bounds the octets of one cached answer; a larger one is not kept.
const maxEntry = 4 << 10

// cache keeps answers until they expire or newer ones push them out. It has
// two generations: when the young one is full the old one goes, with all that
// nobody asked for lately. The zero value keeps nothing.
type cache struct {
	half       int // entries of a generation
	young, old map[question]entry
}

type entry struct {
	answer  answer
	expires time.Time
}

func newCache(size int) cache {
	return cache{half: max(1, size/2), young: make(map[question]entry)}
}

func (c *cache) get(q question, now time.Time) (answer, bool) {
	e, ok := c.young[q]
	if !ok {
		if e, ok = c.old[q]; ok && now.Before(e.expires) {
			c.insert(q, e)
		}
	}
	return e.answer, ok && now.Before(e.expires)
}

func (c *cache) put(q question, a answer, now time.Time) {
	if a.ttl <= 0 || a.size() > maxEntry {
		return
	}
	c.insert(q, entry{a, now.Add(a.ttl)})
}

func (c *cache) insert(q question, e entry) {
	if _, known := c.young[q]; !known && len(c.young) >= c.half {
		c.old, c.young = c.young, make(map[question]entry)
	}
	c.young[q] = e
}
