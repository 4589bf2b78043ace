package table

import "bytes"

// Diff calls removed and added, which may be nil, with the keys that only one of
// two tables has. It skips shared memory: most of the tables, if one was built with
// Builder.AddRange from the other. Keys are valid until the function returns. Tables
// that are nil or have no keys count as empty.
func Diff(old, now *Table, removed, added func(key []byte)) {
	x, y := new(segments), new(segments)
	if old != nil {
		x = &old.keys
	}
	if now != nil {
		y = &now.keys
	}
	x.diff(y, func(left, both bool, key, _ []byte) {
		switch {
		case both:
		case left && removed != nil:
			removed(key)
		case !left && added != nil:
			added(key)
		}
	})
}

// skip passes the segments that both have in common here.
func (c *cursor) skip(o *cursor) {
	for c.at == 0 && o.at == 0 && !c.done() && !o.done() && c.x.segs[c.seg] == o.x.segs[o.seg] {
		c.seg++
		o.seg++
	}
}

// diff calls only with each key that only one of two has, left saying which, and
// for both where the values differ. It skips shared segments. Keys and values are
// valid until only returns.
func (x *segments) diff(o *segments, only func(left, both bool, key, value []byte)) {
	a, b := cursor{x: x}, cursor{x: o}
	for {
		a.skip(&b)
		order := 0
		var left, right []byte
		if !a.done() {
			left = a.key()
		}
		if !b.done() {
			right = b.key()
		}
		switch {
		case a.done() && b.done():
			return
		case b.done():
			order = -1
		case a.done():
			order = 1
		default:
			order = bytes.Compare(left, right)
		}
		differ := order != 0 || !bytes.Equal(a.value(), b.value())
		if order <= 0 {
			if differ {
				only(true, order == 0, left, a.value())
			}
			a.next()
		}
		if order >= 0 {
			if differ {
				only(false, order == 0, right, b.value())
			}
			b.next()
		}
	}
}
