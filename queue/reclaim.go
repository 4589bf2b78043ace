package queue

import (
	"context"
	"time"

	"github.com/understudy-mx/understudy/queue/store"
)

// Only compaction frees the space of deleted keys. It is considered this often,
// when at least reclaimAbove octets have left since; the first time in any case, for
// mail that left in an earlier run.
const (
	reclaimEvery = 30 * time.Second
	reclaimAbove = 32 << 20
)

// reclaim compacts what was drained, everything before the oldest message, where the
// store finds that worth it.
func (q *Queue) reclaim(ctx context.Context) {
	ticker := time.NewTicker(reclaimEvery)
	defer ticker.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if left := q.left.Load(); first || left >= reclaimAbove {
			q.left.Add(-left)
			q.compactDrained()
		}
	}
}

// compactDrained compacts everything before the oldest message. Accepting goes
// on meanwhile.
func (q *Queue) compactDrained() {
	q.mu.Lock()
	t := q.totals
	q.mu.Unlock()
	oldest := t.Next
	if t.Messages > 0 {
		q.oldestTime() // finds the oldest
		q.mu.Lock()
		oldest = q.oldest.seq
		q.mu.Unlock()
	}
	var drained []store.Range
	for _, space := range []byte{store.SpaceBody, store.SpaceRecord} {
		drained = append(drained, store.Range{Start: []byte{space}, Limit: store.SeqKey(space, oldest)})
	}
	if err := q.store.Reclaim(drained...); err != nil {
		q.readFailed(err)
	}
}
