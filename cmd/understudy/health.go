package main

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	policysync "github.com/understudy-mx/understudy/sync"
)

// knockTimeout is how long an accept loop may take in good health.
const knockTimeout = 10 * time.Second

// ready says whether mail can be taken: for /readyz. Its text is ours.
func (d *daemon) ready() error {
	switch {
	case d.stopping.Load():
		return errors.New("stopping")
	case d.current() == nil:
		return errors.New("no policy is held")
	}
	if d.fallback != nil {
		return d.fallback.healthy()
	}
	return d.queue.Healthy()
}

// alive says whether the process does its work, or a restart would help: the
// store is written and synced, and each door is answered. A full disk is no
// reason: the door answers 452, and mail flows when there is space again.
func (d *daemon) alive(ctx context.Context) error {
	if d.fleet == nil { // a restart doesn't bring a database back
		if err := d.queue.Healthy(); err != nil && !d.noSpace() {
			return err
		}
	}
	for _, door := range d.doors {
		if err := door.Knock(ctx, knockTimeout); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) noSpace() bool {
	var r *envelope.ReplyError
	return errors.As(d.queue.Ready(0), &r) && r.Reply.Code == 452
}

// health is what the primary's operator is told about us.
func (d *daemon) health() policysync.Health {
	q := d.queue.Stats()
	h := policysync.Health{Software: versionLine(), QueueMessages: q.Messages, Problem: problem(d.ready(), q)}
	if !q.Oldest.IsZero() {
		h.QueueOldest = int64(max(0, time.Since(q.Oldest).Seconds()))
	}
	return h
}

// problem is the worst of what is wrong, "" when all is well.
func problem(ready error, q metrics.QueueStats) string {
	switch {
	case ready != nil:
		return ready.Error()
	case q.Damaged:
		return "the queue's store is " + storeDamaged
	case q.Held > 0:
		return plural(q.Held, "message") + " held"
	}
	return ""
}
