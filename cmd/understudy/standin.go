package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/standin"
)

// standsIn leaves the primary alone while a window is open.
func (d *daemon) standsIn(w *standin.Window) {
	end := 0.0
	if w != nil {
		end = float64(w.Until.Unix())
	}
	d.metrics.StandInEnd.Set(end)
	d.relay.Rest(w != nil)
}

type standInCmd struct {
	For    time.Duration `arg:"" optional:"" name:"duration" help:"How long: 30m, 2h, 48h; up to 168h."`
	Reason string        `placeholder:"TEXT" help:"Why, for those who read the log and the list of outages."`
	End    bool          `help:"End it now."`
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (standInCmd) Help() string {
	return `Before work on the primary: from now on sessions are judged by the policy, accepted mail is kept, and nothing is relayed, although the primary may be up. Sessions that are played through to it end with their message. What the policy has the primary asked about is answered as in an outage. It ends by itself, or by --end, and survives a restart of the daemon; then the backlog is relayed.

Given again, it changes end and reason. It is shown by "understudy queue list" and "understudy watch", in the metrics (understudy_stand_in_end_timestamp_seconds) and as a planned one in "understudy outage list".

Examples:

    understudy stand-in 2h --reason 'new disks in mx1'
    understudy stand-in --end`
}

func (c *standInCmd) Run(ctx context.Context, out io.Writer) error {
	switch {
	case c.End && (c.For != 0 || c.Reason != ""):
		return mistakes{errors.New("--end takes no duration and no --reason")}
	case !c.End && (c.For < standin.Shortest || c.For > standin.Longest):
		return mistakes{fmt.Errorf("how long? Write a duration from 1m to 168h: understudy stand-in 2h --reason TEXT")}
	case !c.End && (c.Reason == "" || len(c.Reason) > standin.MaxReason):
		return mistakes{fmt.Errorf("--reason: say why, in up to %d octets", standin.MaxReason)}
	}
	return c.ask(func(d operator.Daemon) error {
		if c.End {
			if err := d.EndStandIn(ctx); err != nil {
				return err
			}
			_, err := fmt.Fprintln(out, "The stand-in is over.")
			return err
		}
		w, err := d.StandIn(ctx, c.For, c.Reason)
		return render(out, c.JSON, w, err, func(out io.Writer, w standin.Window) error {
			_, err := fmt.Fprintln(out, "Stand-in "+standInText(&w))
			return err
		})
	})
}

func standInText(w *standin.Window) string {
	return fmt.Sprintf("until %s: %s", w.Until.Local().Format(time.DateTime), printable(w.Reason))
}
