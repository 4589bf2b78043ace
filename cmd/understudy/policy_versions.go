package main

import (
	"context"
	"fmt"
	"io"

	"github.com/understudy-mx/understudy/internal/operator"
	policysync "github.com/understudy-mx/understudy/sync"
)

type policyPendingCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (policyPendingCmd) Help() string {
	return `When the primary deletes half of the recipients of a domain or table, more than a hundredth (and a hundred) of all, or a whole domain, the deleted are answered 450 until the operator approves or rejects the deletion. What went in the last 7 days without being asked about counts too, unless it came back. This shows what waits.`
}

func (c *policyPendingCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		p, err := d.Pending(ctx)
		return render(out, c.JSON, p, err, printPending)
	})
}

func printPending(out io.Writer, p *policysync.Pending) error {
	if p == nil {
		_, err := fmt.Fprintln(out, "No deletion is pending.")
		return err
	}
	fmt.Fprintf(out, "Version %d deletes %d of the %d recipients of version %d (%s).\n", p.Version, p.Recipients, p.Of, p.Since, p.State)
	for _, d := range p.Domains {
		fmt.Fprintf(out, "  domain %s\n", printable(d))
	}
	for _, a := range p.Some {
		fmt.Fprintf(out, "  %s\n", printable(a))
	}
	if n := p.Recipients - uint64(len(p.Some)); n > 0 {
		fmt.Fprintf(out, "  and %d more\n", n)
	}
	_, err := fmt.Fprintf(out, "understudy policy approve %d lets it take effect; understudy policy reject %d keeps the version before.\n", p.Version, p.Version)
	return err
}

type policyApproveCmd struct {
	Version uint64 `arg:"" help:"The version, as understudy policy pending shows it."`
	daemonFlag
}

func (c *policyApproveCmd) Run(ctx context.Context) error {
	return c.ask(func(d operator.Daemon) error { return d.Approve(ctx, c.Version) })
}

type policyRejectCmd struct {
	Version uint64 `arg:"" help:"The version, as understudy policy pending shows it."`
	daemonFlag
}

func (policyRejectCmd) Help() string {
	return `The version before the deletion stays in force until the primary publishes one that deletes less, or the deletion is approved after all.`
}

func (c *policyRejectCmd) Run(ctx context.Context) error {
	return c.ask(func(d operator.Daemon) error { return d.Reject(ctx, c.Version) })
}

type policyDiffCmd struct {
	From uint64 `arg:"" optional:"" help:"A version; without one, the version before."`
	To   uint64 `arg:"" optional:"" help:"A later version; without one, the version in force."`
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (policyDiffCmd) Help() string {
	return `Shows who was added and removed, and which settings, tables and entries of tables changed, between two versions that are held: the last two, and the one before a mass deletion that waits. Where the primary hashes recipients, only their numbers and domains can be shown.`
}

func (c *policyDiffCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		if c.From != 0 && c.To == 0 {
			s, err := d.Policy(ctx)
			if err != nil {
				return err
			}
			c.To = s.Version
		}
		change, err := d.Diff(ctx, c.From, c.To)
		return render(out, c.JSON, &change, err, printDiff)
	})
}

func printDiff(out io.Writer, d *policysync.Change) error {
	fmt.Fprintf(out, "Version %d to %d: %d recipients added, %d removed\n", d.From, d.To, d.Added, d.Removed)
	if d.Hashed {
		fmt.Fprintln(out, "Recipients are hashed; only their domains can be shown.")
	}
	for _, part := range []struct {
		sign string
		some []string
		all  uint64
	}{{"-", d.RemovedSome, d.Removed}, {"+", d.AddedSome, d.Added}} {
		for _, a := range part.some {
			fmt.Fprintf(out, "%s %s\n", part.sign, printable(a))
		}
		if n := part.all - uint64(len(part.some)); n > 0 {
			fmt.Fprintf(out, "%s and %d more\n", part.sign, n)
		}
	}
	for _, t := range d.Tables {
		fmt.Fprintf(out, "table %s\n", printable(t))
	}
	for _, s := range d.Entries {
		fmt.Fprintf(out, "entry %s\n", printable(s))
	}
	for _, s := range d.Settings {
		fmt.Fprintf(out, "setting %s\n", printable(s))
	}
	return nil
}
