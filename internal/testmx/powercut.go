package testmx

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
)

// Left is what a power cut leaves of what was not synced.
type Left int

// The ways of a power cut.
const (
	// LeftNothing: only what was synced.
	LeftNothing Left = iota
	// LeftAll: everything, as after a crash of the process alone.
	LeftAll
	// LeftSome: any of the unsynced directory changes without the others;
	// unsynced octets up to anywhere, their sectors in any order: one that
	// didn't make it holds zeros or what the disk held before.
	LeftSome
)

// sector is what a disk writes as a whole.
const sector = 512

// Cut is the disk after a power cut now. rnd is for LeftSome. In a function
// given to Watch it MUST be called, and anywhere else it MUST NOT while the
// disk is in use.
func (d *Disk) Cut(l Left, rnd *rand.Rand) *Disk {
	c := NewDisk()
	c.Journaling, c.Locked, c.free = d.Journaling, d.Locked, d.free
	c.root = d.root.cut(l, rnd)
	return c
}

func (n *inode) cut(l Left, rnd *rand.Rand) *inode {
	if n.entries == nil {
		return n.cutFile(l, rnd)
	}
	left := make(map[string]*inode, len(n.entries))
	same := n.durable == nil
	keep := func(name string, e *inode) {
		left[name] = e.cut(l, rnd)
		same = same && left[name] == e
	}
	survives := func() bool { return l == LeftAll || l == LeftSome && rnd.IntN(2) == 0 }
	for _, name := range sortedNames(n.entries) {
		e := n.entries[name]
		switch old := n.durable[name]; {
		case n.durable == nil || old == e || survives():
			keep(name, e)
		case old != nil:
			keep(name, old)
		}
	}
	for _, name := range sortedNames(n.durable) {
		if n.entries[name] == nil && !survives() {
			keep(name, n.durable[name])
		}
	}
	if same {
		if !n.frozen { // a frozen one is shared, and others may cut it now
			n.frozen = true
		}
		return n
	}
	return &inode{entries: left}
}

// sortedNames makes a cut the same each time for the same rnd.
func sortedNames(m map[string]*inode) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (n *inode) cutFile(l Left, rnd *rand.Rand) *inode {
	size := len(n.data)
	switch {
	case n.closed && n.synced == size:
		return n
	case l == LeftNothing:
		size = n.synced
	case l == LeftSome:
		size = n.synced + rnd.IntN(size-n.synced+1)
	}
	data := n.data[:size:size]
	if l == LeftSome && size > n.synced && rnd.IntN(2) == 0 {
		data = slices.Clone(data)
		for at := n.synced; at < size; at = (at/sector + 1) * sector {
			s := data[at:min(size, (at/sector+1)*sector)]
			switch rnd.IntN(4) {
			case 0:
				clear(s)
			case 1:
				for i := range s {
					s[i] = byte(rnd.Uint32())
				}
			}
		}
	}
	return &inode{data: data, synced: size, closed: true}
}

// Sum is a checksum over names and contents of a Disk that a cut left: equal
// for equal disks.
func (d *Disk) Sum(seed maphash.Seed) uint64 { return d.root.sum(seed) }

func (n *inode) sum(seed maphash.Seed) (sum uint64) {
	if n.entries == nil {
		return maphash.Bytes(seed, n.data)
	}
	for name, e := range n.entries {
		sum += maphash.Comparable(seed, struct {
			name string
			sum  uint64
		}{name, e.sum(seed)})
	}
	return sum
}
