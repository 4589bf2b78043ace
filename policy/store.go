package policy

import (
	"bytes"
	"fmt"
	"math"
	"slices"
)

// store is a sorted set of keys in one block of memory: a key costs its octets
// and four more, and a look-up allocates nothing.
type store struct {
	data []byte
	off  []uint32 // key i is data[off[i]:off[i+1]]
}

// newStore takes keys over and sorts them. It returns the first key that
// appears twice, if one does.
func newStore(keys []string) (s store, dup string, err error) {
	slices.Sort(keys)
	size := 0
	for i, k := range keys {
		if i > 0 && keys[i-1] == k {
			return s, k, fmt.Errorf("key %q appears twice", k)
		}
		size += len(k)
	}
	if uint64(size) > math.MaxUint32 {
		return s, "", fmt.Errorf("keys take %d octets; a table holds at most %d", size, uint32(math.MaxUint32))
	}
	s.data = make([]byte, 0, size)
	s.off = make([]uint32, 1, len(keys)+1)
	for _, k := range keys {
		s.data = append(s.data, k...)
		s.off = append(s.off, uint32(len(s.data)))
	}
	return s, "", nil
}

func (s *store) len() int { return max(0, len(s.off)-1) }

func (s *store) key(i int) []byte { return s.data[s.off[i]:s.off[i+1]] }

// find returns the index of key, or -1.
func (s *store) find(key []byte) int {
	if i := s.after(key) - 1; i >= 0 && bytes.Equal(s.key(i), key) {
		return i
	}
	return -1
}

// after is the number of keys up to key.
func (s *store) after(key []byte) int {
	lo, hi := 0, s.len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if bytes.Compare(s.key(mid), key) <= 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}
