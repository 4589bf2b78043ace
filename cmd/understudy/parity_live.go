package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
)

type parityLiveCmd struct {
	daemonFlag
	All  bool `help:"Show each difference that is kept, the last one first."`
	JSON bool `name:"json" help:"As JSON."`
}

func (parityLiveCmd) Help() string {
	return `While the primary is up, each session is played through to it, and the policy is asked beside it with the same DNS answers. This shows how often both decided alike (accept, defer or refuse), and each kind of difference with its last example and what to do about it.

exact differences are those of rules that are followed exactly: a mistake of ours, or a drift. They count as late when a policy that agrees comes within half a minute, as for a new recipient. approximated: the policy didn't know, or may not. not_replicated: a milter, a policy service or the like decided, see docs/PARITY.md. given_dns: the DNS answered the two differently.

The last 1,000 differences are kept, without addresses where recipients are hashed.

Examples:

    understudy parity live
    understudy parity live --all --json | jq '.differences[] | select(.class == "exact")'`
}

func (c *parityLiveCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		r, err := d.Parity(ctx, c.All)
		return render(out, c.JSON, r, err, func(out io.Writer, r meter.Report) error {
			return printParity(out, r, "No live session has been decided by the primary yet.")
		})
	})
}

// printParity prints a meter's report; none is said where there is nothing.
func printParity(out io.Writer, r meter.Report, none string) error {
	if r.Rate == nil {
		_, err := fmt.Fprintln(out, none)
		return err
	}
	fmt.Fprintf(out, "agreement %s: %d of %d decisions since %s\n", percent(*r.Rate), r.Same, r.Same+r.Different, r.Since.Local().Format(time.DateTime))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSTAGE\tSAME\tDIFFERENT")
	for _, s := range r.Stages {
		fmt.Fprintf(w, "%s\t%d\t%d\n", printable(s.Stage), s.Same, s.Different)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, k := range r.Kinds {
		late := ""
		if k.Late > 0 {
			late = fmt.Sprintf(", %d late", k.Late)
		}
		fmt.Fprintf(out, "\n%s: %s at %s, %s%s\n", printable(k.Class), printable(k.Cause), printable(k.Stage), times(k.Count), late)
		printDifference(out, &k.Last)
		fmt.Fprintf(out, "    do       %s\n", printable(k.Advice))
	}
	if len(r.Differences) > 0 {
		fmt.Fprintf(out, "\nThe last %s:\n", plural(len(r.Differences), "difference"))
	}
	for _, d := range r.Differences {
		fmt.Fprintf(out, "\n%s %s: %s at %s\n", d.At.Local().Format(time.DateTime), printable(d.Class), printable(d.Cause), printable(d.Stage))
		printDifference(out, &d)
	}
	return nil
}

func printDifference(out io.Writer, d *meter.Difference) {
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(out, "    %-8s %s\n", name, printable(text))
		}
	}
	line("rule", d.Rule)
	line("ours", d.Ours)
	line("primary", d.Primary)
	line("by", d.Item)
	if d.Client != "" {
		line("client", fmt.Sprintf("%s helo %s, from %s to %s", d.Client, dash(d.Helo), dash(d.Sender), dash(d.Recipient)))
	}
	if d.SettledAfter != nil {
		line("settled", fmt.Sprintf("by the policy that came after %.1f s", *d.SettledAfter))
	}
}

// percent doesn't round up to 100 %.
func percent(rate float64) string {
	return fmt.Sprintf("%.2f %%", float64(int(rate*10_000))/100)
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

type parityShadowCmd struct {
	publishFlag
	All  bool `help:"Show each difference that is kept, the last one first."`
	JSON bool `name:"json" help:"As JSON."`
}

func (parityShadowCmd) Help() string {
	return `With log = "auto" under [publish], the publisher reads the primary's own log and judges by the published policy everybody whom the primary judged: each refusal, and each recipient of accepted mail. No mail goes through a secondary for that, so it shows whether the policy can be trusted before the MX record is changed. "understudy parity live --help" explains the classes of differences.

undecided are verdicts for which the log lacks what a rule asks for: the HELO name of accepted mail, TLS, the message. Tables that were edited without postmap are told as stale_table.

Examples:

    understudy parity shadow
    understudy parity shadow --all --json | jq '.differences[] | select(.class == "exact")'`
}

func (c *parityShadowCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Publisher) error {
		s, err := p.Parity(ctx, c.All)
		return render(out, c.JSON, s, err, printShadow)
	})
}

func printShadow(out io.Writer, s operator.Shadow) error {
	fmt.Fprintf(out, "log %s: %s, %s", printable(s.Log), plural(int(s.Sessions), "session"), plural(int(s.Judged), "verdict"))
	for _, n := range []struct {
		n    uint64
		what string
	}{{s.Undecided, "undecided"}, {s.Dropped, "left out, too many at once"}, {s.Unreadable, "unreadable"}} {
		if n.n > 0 {
			fmt.Fprintf(out, ", %d %s", n.n, n.what)
		}
	}
	if s.Last.IsZero() {
		fmt.Fprintln(out, "; no line of Postfix since the start")
	} else {
		fmt.Fprintf(out, "; the last line %s ago\n", age(time.Since(s.Last)))
	}
	if s.Error != "" {
		fmt.Fprintf(out, "it can't be read: %s\n", printable(s.Error))
	}
	return printParity(out, s.Report, "No verdict has been judged yet.")
}
