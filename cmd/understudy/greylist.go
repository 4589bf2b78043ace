package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/policy/greylist"
)

type greylistCmd struct {
	List   greylistListCmd   `cmd:"" help:"List whom greylisting remembers."`
	Show   greylistShowCmd   `cmd:"" help:"Show what is remembered of an address."`
	Export greylistExportCmd `cmd:"" help:"Print who has passed, for the primary's postgrey."`
}

func (greylistCmd) Help() string {
	return `Where the primary's postgrey is part of the policy, a secondary greylists by itself. It knows whom the primary knew; what it has seen itself these commands show. A client is one that has passed: with as many messages as --auto-whitelist-clients says (5) it is let in whatever it sends. A triplet is a client's network, a sender and a recipient. With --privacy both are hashes.

On the primary, with the publisher's configuration, they show whom its secondaries have let in: each tells that while both are up. What passed before a secondary's last start, and more than 10,000 entries at once, "understudy greylist export" there has.

Examples:

    understudy greylist list --passed
    understudy greylist export triplets -c ` + publishConfig
}

// greylist calls fn for each entry of a secondary, or on the primary for each that
// its secondaries have told.
func (f daemonFlag) greylist(ctx context.Context, fn func(greylist.Entry) error) error {
	cfg, err := loadConfig(f.Conf)
	if err != nil {
		return err
	}
	if cfg.IsPublisher {
		return publishFlag(f).ask(func(p operator.Publisher) error { return p.Greylist(ctx, fn) })
	}
	return f.ask(func(d operator.Daemon) error { return d.Greylist(ctx, fn) })
}

type greylistListCmd struct {
	daemonFlag
	Clients bool `help:"Only clients."`
	Passed  bool `help:"Only what has passed."`
	JSON    bool `name:"json" help:"A JSON object a line."`
}

func (c *greylistListCmd) Run(ctx context.Context, out io.Writer) error {
	return printGreylist(out, c.JSON, func(fn func(greylist.Entry) error) error {
		return c.greylist(ctx, func(e greylist.Entry) error {
			if c.Clients && e.Kind != greylist.Client || c.Passed && !e.Passed {
				return nil
			}
			return fn(e)
		})
	})
}

type greylistShowCmd struct {
	Text string `arg:"" help:"A client's address, a sender, a recipient, or another part of an entry; case doesn't matter."`
	daemonFlag
	JSON bool `name:"json" help:"A JSON object a line."`
}

func (c *greylistShowCmd) Run(ctx context.Context, out io.Writer) error {
	text := strings.ToLower(c.Text)
	return printGreylist(out, c.JSON, func(fn func(greylist.Entry) error) error {
		return c.greylist(ctx, func(e greylist.Entry) error {
			if !strings.Contains(strings.ToLower(e.Key), text) {
				return nil
			}
			return fn(e)
		})
	})
}

// printGreylist prints entries as they come: there may be half a million.
func printGreylist(out io.Writer, asJSON bool, walk func(func(greylist.Entry) error) error) error {
	b := bufio.NewWriter(out)
	err := walk(func(e greylist.Entry) error {
		if asJSON {
			return json.NewEncoder(b).Encode(e)
		}
		what := "deferred"
		switch {
		case e.Kind == greylist.Client:
			what = fmt.Sprintf("passed %d", e.Count)
		case e.Passed:
			what = "passed"
		}
		_, err := fmt.Fprintf(b, "%-8s %-10s %s  %s\n", e.Kind, what, e.Last.Format(time.DateTime), printable(e.Key))
		return err
	})
	if err != nil {
		return err
	}
	return b.Flush()
}

type greylistExportCmd struct {
	Kind string `arg:"" enum:"triplets,clients" help:"triplets or clients: postgrey has a database for each."`
	daemonFlag
}

func (greylistExportCmd) Help() string {
	return `After an outage the primary's postgrey can learn whom its secondaries have let in. Entries that it has stay as they are; db5.3_load names them and exits 1. On the primary:

    understudy greylist export triplets -c ` + publishConfig + ` > /tmp/triplets
    understudy greylist export clients -c ` + publishConfig + ` > /tmp/clients

    systemctl stop postgrey
    cd /var/lib/postgrey
    db5.3_recover
    db5.3_load -n postgrey.db < /tmp/triplets
    db5.3_load -n postgrey_clients.db < /tmp/clients
    systemctl start postgrey

Without -c, on a secondary, it prints what that one has let in.`
}

func (c *greylistExportCmd) Run(ctx context.Context, out io.Writer) error {
	return greylist.WriteDump(out, strings.TrimSuffix(c.Kind, "s"), func(fn func(greylist.Entry) error) error { return c.greylist(ctx, fn) })
}
