package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/operator"
	policysync "github.com/understudy-mx/understudy/sync"
)

type peersCmd struct {
	publishFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (peersCmd) Help() string {
	return `Lists the paired secondaries: when each asked last, which version of the policy it has and in what state, how much mail waits there, and what is wrong: an alarm of its policy comes first, with the remedy. A version that isn't the newest of those listed is marked with "!". The fingerprint is the one that ` + "`understudy join`" + ` printed there.`
}

func (c *peersCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Publisher) error {
		peers, err := p.Peers(ctx)
		return render(out, c.JSON, peers, err, printPeers)
	})
}

func printPeers(out io.Writer, peers []policysync.Peer) error {
	if len(peers) == 0 {
		_, err := fmt.Fprintln(out, "No secondary is paired; `understudy invite` invites one.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tFINGERPRINT\tSEEN\tVERSION\tDIGEST\tSTATE\tQUEUE\tOLDEST\tPROBLEM")
	newest := newestOf(peers)
	for _, p := range peers {
		seen := "not since the start"
		if !p.Polled.IsZero() {
			seen = age(time.Since(p.Polled)) + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(p.Name), p.Fingerprint, seen, reported(p.Report, newest))
	}
	return w.Flush()
}

// policyVersion orders the policies of a publisher.
type policyVersion struct{ epoch, version uint64 }

// newestOf is the newest policy that a secondary has.
func newestOf(peers []policysync.Peer) (newest policyVersion) {
	for _, p := range peers {
		if r := p.Report; r != nil && (r.Epoch > newest.epoch || r.Epoch == newest.epoch && r.Version > newest.version) {
			newest = policyVersion{r.Epoch, r.Version}
		}
	}
	return newest
}

// reported are the columns that a secondary fills.
func reported(r *policysync.Report, newest policyVersion) string {
	if r == nil {
		return "-\t-\t-\t-\t-\t-"
	}
	version := fmt.Sprint(r.Version)
	if newest != (policyVersion{r.Epoch, r.Version}) {
		version += "!"
	}
	state := r.State
	if r.Staged != "" {
		state += ", deletion " + r.Staged
	}
	oldest, problem := "-", "-"
	if r.Health.QueueMessages > 0 {
		oldest = age(time.Duration(r.Health.QueueOldest) * time.Second)
	}
	if r.Health.Problem != "" {
		problem = r.Health.Problem
	}
	return fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s", version, shortDigest(r.Digest), printable(state), r.Health.QueueMessages, oldest, printable(problem))
}

type revokeCmd struct {
	Name string `arg:"" help:"The secondary, as understudy peers calls it."`
	publishFlag
}

func (revokeCmd) Help() string {
	return `Ends a secondary's access at once, and takes back an open invitation of that name. The secondary goes on with the policy that it has, and grows stale.`
}

func (c *revokeCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Publisher) error {
		if err := p.Revoke(ctx, c.Name); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "%s is revoked.\n", c.Name)
		return err
	})
}

type rotateCmd struct {
	publishFlag
	Finish bool `help:"Take the announced keys into use and forget the old ones."`
	Force  bool `help:"With --finish: even if a secondary hasn't heard of the new keys; it has to be paired again."`
}

func (rotateCmd) Help() string {
	return `Makes new keys for the publisher and announces them, signed by the old ones. When every secondary has fetched them, which takes a minute, --finish takes them into use.

On a secondary, with the daemon's configuration, it replaces the secondary's key, at once. The fingerprint that peers shows stays that of the pairing.

Examples:

    understudy rotate && sleep 90 && understudy rotate --finish
    understudy rotate -c ` + defaultConfig
}

func (c *rotateCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := config.Load(c.Conf)
	done := "New keys are announced. `understudy rotate --finish` takes them into use when every secondary has them."
	switch {
	case err == nil && !cfg.IsPublisher && !c.Finish:
		done = "The secondary has a new key."
		err = daemonFlag{c.Conf}.ask(func(d operator.Daemon) error { return d.RotateKey(ctx) })
	case c.Finish:
		done = "The new keys are in use."
		err = c.ask(func(p operator.Publisher) error { return p.FinishRotation(ctx, c.Force) })
	default:
		err = c.ask(func(p operator.Publisher) error { return p.Rotate(ctx) })
	}
	if err == nil {
		_, err = fmt.Fprintln(out, done)
	}
	return err
}
