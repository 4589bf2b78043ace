package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
)

// errDatabaseBack ends a daemon that has begun without the database: another one is to
// begin with it. That one moves what this one leaves in the state directory.
var errDatabaseBack = errors.New("the database is there; starting again with it")

// alone is a daemon that has begun while the database was away. Its queue is the
// directory's, and adopts nobody's mail.
type alone struct {
	queue *queue.Queue
	fleet *fleet.Fleet
	spool postgres.Opener
	m     *metrics.Metrics
	log   *slog.Logger
}

// openAlone opens the state directory's queue, because the database is away.
func (d *daemon) openAlone(o queue.Options, away error) error {
	spool, err := spoolOf(d.cfg, d.cfg.Hostname, d.log)
	if err != nil {
		return err
	}
	o.Store = queueDir(d.cfg)
	q, err := queue.Open(o)
	if err != nil {
		return errors.Join(storeError(d.cfg, away), stateError(d.cfg.StateDir, err))
	}
	d.log.Error("the database is away: mail is kept on this machine alone until it is there", "dir", queueDir(d.cfg).Path, "err", away)
	d.queue = q
	d.metrics.Queue(q.Stats)
	d.metrics.Fallback.Set(1)
	d.alone = &alone{queue: q, fleet: d.fleet, spool: spool, m: d.metrics, log: d.log}
	return nil
}

// await returns errDatabaseBack once the spool could be taken.
func (a *alone) await(ctx context.Context) error {
	tick := time.NewTicker(fallbackEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.m.FallbackMessages.Set(float64(a.queue.Stats().Messages))
		a.fleet.Beat(ctx) // who adopts the spool's mail lets go of it then
		s, err := a.spool.Open(nil)
		if err == nil {
			err = s.Close()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return errDatabaseBack
		}
		a.log.Debug("the spool can't be taken yet", "err", err)
	}
}
