package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/repeat"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/move"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/smtpd"
)

// fallbackEvery is how often the database is looked for while there is mail here.
const fallbackEvery = 2 * time.Second

// fallback keeps mail in the state directory while the database is away, and relays
// it from there. Once the database is back, the rest is moved. The directory's queue
// is open, or being moved, never both.
type fallback struct {
	main  *queue.Queue
	dir   leveldb.Dir
	o     queue.Options // of the directory's queue
	log   *slog.Logger
	m     *metrics.Metrics
	often repeat.Log
	open  atomic.Pointer[queue.Queue] // local, for who can't wait for mu

	mu     sync.Mutex   // guards what follows
	local  *queue.Queue // nil: closed
	ran    chan error   // local's Run has ended
	stop   context.CancelFunc
	moving bool
	over   bool // the daemon stops
}

// openFallback uses o for a queue in the state directory.
func (d *daemon) openFallback(o queue.Options) error {
	dir := queueDir(d.cfg)
	if d.cfg.Queue.Store != storePostgres {
		return nil
	}
	_, err := os.Stat(dir.Path)
	switch {
	case d.cfg.Queue.Fallback == "leveldb":
		o.Store = dir
		most := o.MaxConnections
		o.MaxConnections = func(dest string) int { return max(0, most(dest)-d.queue.Sessions(dest)) }
		d.fallback = &fallback{main: d.queue, dir: dir, o: o, log: d.log, m: d.metrics}
	case err == nil && !empty(dir):
		d.log.Warn("there may be mail in the state directory, which nobody relays", "remedy", "understudy queue migrate --to postgres, with the daemon stopped; or fallback = \"leveldb\"")
	}
	return nil
}

// empty says that a queue's directory surely has no mail, as after a migration.
func empty(dir leveldb.Dir) bool {
	s, err := dir.OpenReadOnly(nil)
	if err != nil {
		return false
	}
	defer s.Close()
	t, err := store.LoadTotals(s)
	return err == nil && t.Messages == 0
}

// Begin opens a draft in the database, or here while that is away.
func (f *fallback) Begin(env *envelope.Envelope) (smtpd.Draft, error) {
	draft, err := spool{f.main}.Begin(env)
	if !away(err) {
		return draft, err
	}
	local, lerr := f.here()
	if lerr != nil {
		f.often.Error(f.log, "", "no mail can be kept on this machine either", "err", lerr)
		return nil, err
	}
	return spool{local}.Begin(env)
}

// Ready is the queue's, or the directory's.
func (f *fallback) Ready(size int64) error {
	err := f.main.Ready(size)
	if !away(err) {
		return err
	}
	local, lerr := f.here()
	if lerr != nil {
		return err
	}
	return local.Ready(size)
}

// away says that the store can't be written; a full one is there.
func away(err error) bool {
	var r *envelope.ReplyError
	return errors.As(err, &r) && r.Reply.Code == 451
}

// here opens the directory's queue.
func (f *fallback) here() (*queue.Queue, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.local != nil:
		return f.local, nil
	case f.moving || f.over:
		return nil, errors.New("it is being moved")
	}
	q, err := queue.Open(f.o)
	if err != nil {
		return nil, err
	}
	f.log.Error("the database is away: mail is kept on this machine alone", "dir", f.dir.Path)
	f.m.Fallback.Set(1)
	ctx, stop := context.WithCancel(context.Background())
	f.local, f.stop, f.ran = q, stop, make(chan error, 1)
	f.open.Store(q)
	go func() { f.ran <- q.Run(ctx) }()
	return q, nil
}

// close ends the directory's queue. The caller holds mu.
func (f *fallback) close() error {
	if f.local == nil {
		return nil
	}
	f.stop()
	err := errors.Join(<-f.ran, f.local.Close())
	f.local = nil
	f.open.Store(nil)
	return err
}

func (f *fallback) wake(dest string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.local != nil {
		f.local.Wake(dest)
	}
}

// demands adds those of the mail on this machine.
func (f *fallback) demands(all map[string]queue.Demand) {
	q := f.open.Load()
	if q == nil {
		return
	}
	for dest, d := range q.Demands() {
		d.Sessions, d.Mail = d.Sessions+all[dest].Sessions, d.Mail+all[dest].Mail
		all[dest] = d
	}
}

func (f *fallback) reconsider() {
	if q := f.open.Load(); q != nil {
		q.Reconsider()
	}
}

// healthy says whether mail can be kept somewhere.
func (f *fallback) healthy() error {
	err := f.main.Healthy()
	if err == nil {
		return nil
	}
	if local, lerr := f.here(); lerr == nil {
		return local.Healthy()
	}
	return err
}

// waiting counts the mail on this machine; -1 when that isn't known.
func (f *fallback) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.local == nil {
		return -1
	}
	return f.local.Stats().Messages
}

// run moves what is here when the database is there, until ctx ends.
func (f *fallback) run(ctx context.Context) error {
	tick := time.NewTicker(fallbackEvery)
	defer tick.Stop()
	left := true // from an earlier run, perhaps
	for {
		if n := f.waiting(); n >= 0 {
			f.m.FallbackMessages.Set(float64(n))
			left = true
		}
		if left && f.main.Healthy() == nil {
			switch err := f.move(ctx); {
			case err == nil:
				left = false
			case ctx.Err() == nil:
				f.often.Warn(f.log, "", "mail isn't moved into the database yet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			f.over = true
			return f.close()
		case <-tick.C:
		}
	}
}

// move empties the directory into the database.
func (f *fallback) move(ctx context.Context) (err error) {
	f.mu.Lock()
	f.moving = true
	err = f.close()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.moving = false
		f.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	if _, err := os.Stat(f.dir.Path); os.IsNotExist(err) {
		return nil
	}
	s, err := f.dir.Open(func(kind, line string) {
		f.log.Error("queue store complains about its data", "dir", f.dir.Path, "kind", kind, "line", line)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	done, err := move.Move{From: s, To: f.main, Route: f.o.Route, Gently: true}.Run(ctx)
	if err != nil {
		return err
	}
	if done.Messages+done.Quarantined > 0 {
		f.log.Info("mail that was kept on this machine is in the database", "messages", done.Messages, "quarantined", done.Quarantined)
	}
	f.m.Fallback.Set(0)
	f.m.FallbackMessages.Set(float64(done.Left()))
	if done.Left() > 0 {
		return fmt.Errorf("%s stayed in %s: %s", plural(done.Left(), "message"), f.dir.Path, done.Why())
	}
	return nil
}
