package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/offline"
)

type queueRepairCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As a JSON object."`
}

func (queueRepairCmd) Help() string {
	return `For a queue that the daemon refuses to open because it is damaged, or of which queue list and watch say so; the daemon must be stopped. It is made anew from the files that can be read, and checked as at every start. The damaged store is kept beside it, in the state directory under queue/store.damaged-TIME, as it was found; remove it once nothing is missed.

Mail that has left the queue may be back, and be relayed a second time: that is why nothing repairs itself. What is found of a message in part is put aside: see queue quarantine. What can't be read at all is missing; how much that is stands in docs/DURABILITY.md.

Run it as root or as the daemon's user:

    systemctl stop understudy.socket understudy.service
    understudy queue repair && systemctl start understudy`
}

func (c *queueRepairCmd) Run(out io.Writer) error {
	cfg, err := loadConfig(c.Conf)
	if err != nil {
		return err
	}
	if cfg.Queue.Store == storePostgres {
		return errors.New("the queue is in a database, and isn't repaired from here: understudy queue verify says what can't be read; " +
			"pg_amcheck and a REINDEX, or a standby that is whole, mend the database (docs/FLEET.md). What can be read is relayed meanwhile")
	}
	p := newProgress("record", 0)
	done, err := offline.Repair(queueDir(cfg), routeOf(cfg), func() { p.step(1) })
	p.end()
	if gave := giveTo(cfg.StateDir, queueDir(cfg).Path); err == nil {
		err = gave
	}
	switch {
	case errors.Is(err, leveldb.ErrWhole):
		_, err = fmt.Fprintln(out, "Nothing to repair: all of the store can be read.")
		return err
	case errors.Is(err, queue.ErrLocked):
		return errors.New("the daemon runs: stop it first")
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no queue in state directory %s: is it the daemon's? Name its configuration with -c", cfg.StateDir)
	case err != nil:
		return stateError(cfg.StateDir, err)
	case c.JSON:
		return printJSON(out, done)
	}
	for _, n := range done.Notes {
		fmt.Fprintln(out, printable(n))
	}
	if done.More > 0 {
		fmt.Fprintf(out, "and %d more\n", done.More)
	}
	_, err = fmt.Fprintf(out, "%s, %d quarantined; the damaged store is kept as %s\n",
		plural(done.Messages, "message"), done.Quarantined, done.Aside)
	return err
}
