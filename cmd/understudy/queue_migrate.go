package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/move"
	"github.com/understudy-mx/understudy/queue/store"
)

type queueMigrateCmd struct {
	daemonFlag
	To   string `required:"" enum:"leveldb,postgres" help:"Where the mail is to go: leveldb (the state directory) or postgres (the database of dsn)."`
	JSON bool   `name:"json" help:"As a JSON object."`
}

func (queueMigrateCmd) Help() string {
	return `Moves all mail from the state directory into the database, or back, with the daemon stopped. Messages keep their IDs, their age, their order, and the state of each recipient. Stopped at any moment, by whatever, it loses nothing and leaves no message in line in both places; run it again, and it goes on.

The configuration has to name the database for either direction, so store is "postgres" meanwhile. To go to the database:

    systemctl stop understudy.socket understudy.service
    # in the configuration: [queue] store = "postgres", dsn = "postgres://..."
    understudy queue migrate --to postgres && systemctl start understudy

Run it as root or as the daemon's user. To come back, set store = "leveldb" and remove dsn after the migration.`
}

func (c *queueMigrateCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := loadConfig(c.Conf)
	if err != nil {
		return err
	}
	if cfg.Queue.Store != storePostgres {
		return mistakes{cfg.Mistake("queue.store", `a migration needs both stores; set store = "postgres" and dsn until it is done`)}
	}
	var from, to queueOpener = queueDir(cfg), nil
	if to, err = queueStore(cfg, nil); err != nil {
		return err
	}
	if c.To == "leveldb" {
		from, to = to, from
	}
	done, err := migrate(ctx, cfg, from, to)
	for _, dir := range []string{queueDir(cfg).Path, spoolDir(cfg)} {
		if gave := giveTo(cfg.StateDir, dir); err == nil && !errors.Is(gave, fs.ErrNotExist) {
			err = gave
		}
	}
	switch {
	case errors.Is(err, queue.ErrLocked):
		return fmt.Errorf("%w: stop the daemon first", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nothing to move: there is no queue in %s", from)
	case err != nil:
		return fmt.Errorf("%w; nothing is lost, run it again to go on (%s moved this time)", err, plural(done.Messages, "message"))
	case c.JSON:
		err = printJSON(out, done)
	default:
		_, err = fmt.Fprintf(out, "%s and %d quarantined moved to %s\n", plural(done.Messages, "message"), done.Quarantined, to)
	}
	if done.Left() > 0 && err == nil {
		err = fmt.Errorf("%s stayed: %s", plural(done.Left(), "message"), done.Why())
	}
	return err
}

func migrate(ctx context.Context, cfg *config.Config, from, to queueOpener) (done move.Result, err error) {
	look, err := from.OpenReadOnly(nil)
	if err != nil {
		return done, err // there is none, or a daemon has it
	}
	said, _ := store.LoadTotals(look) // the move says why there are none
	if err := look.Close(); err != nil {
		return done, err
	}
	var alarms []string
	origin, err := from.Open(func(kind, line string) { alarms = append(alarms, kind+": "+store.Cut(line)) })
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, origin.Close()) }()
	if len(alarms) > 0 {
		return done, fmt.Errorf("%s complains about its data; `understudy queue verify` tells more: %s", from, alarms[0])
	}
	q, err := queue.Open(queue.Options{Store: to, Route: routeOf(cfg)})
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	p := newProgress("message", int(said.Messages))
	defer p.end()
	return move.Move{From: origin, To: q, Route: routeOf(cfg), Moved: p.step}.Run(ctx)
}
