package queue

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

const idChance = 35 // bits

// ids makes message IDs: unique, sorting by time, not to be guessed. They
// strictly rise, whatever the clock does: within a process because it
// remembers the last one, from one run to the next because the audit shows it
// every ID that is in the queue.
type ids struct {
	mu          sync.Mutex // guards what follows
	ms, chances uint64
}

func (g *ids) next(now time.Time) string {
	ms := uint64(max(0, now.UnixMilli())) & (1<<45 - 1)
	var b [8]byte
	rand.Read(b[:]) // never fails, crypto/rand
	chance := binary.BigEndian.Uint64(b[:]) & (1<<idChance - 1)
	g.mu.Lock()
	if ms <= g.ms {
		ms = g.ms
		// A step of up to 2^20 keeps the next one hard to guess.
		if chance = g.chances + 1 + chance&(1<<20-1); chance >= 1<<idChance {
			ms, chance = ms+1, chance&(1<<20-1)
		}
	}
	g.ms, g.chances = ms, chance
	g.mu.Unlock()

	var id [store.IDLen]byte
	for i := 8; i >= 0; i-- {
		id[i] = store.IDAlphabet[ms&31]
		ms >>= 5
	}
	for i := store.IDLen - 1; i > 8; i-- {
		id[i] = store.IDAlphabet[chance&31]
		chance >>= 5
	}
	return string(id[:])
}

// raise makes every ID to come higher than id.
func (g *ids) raise(id string) {
	var ms, chance uint64
	for i := range len(id) {
		digit := uint64(max(0, strings.IndexByte(store.IDAlphabet, id[i])))
		if i < 9 {
			ms = ms<<5 | digit
		} else {
			chance = chance<<5 | digit
		}
	}
	g.mu.Lock()
	if ms > g.ms || ms == g.ms && chance > g.chances {
		g.ms, g.chances = ms, chance
	}
	g.mu.Unlock()
}
