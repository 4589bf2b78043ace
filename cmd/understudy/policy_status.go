package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/pushed"
	policysync "github.com/understudy-mx/understudy/sync"
)

type policyStatusCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (policyStatusCmd) Help() string {
	return `Asks the running daemon how it follows its primary. State fresh: as the primary decides; stale: out of contact for longer than stale_after, unknown recipients are answered 450; none: no policy yet, clients are answered 421. Last change: when the content of the policy changed last, and in what; sources: when the primary read each of them last without a mistake.

With [push] it shows the lists of recipients that were pushed, as ` + "`understudy push list`" + ` does.

On the primary, with the publisher's configuration, it asks the publisher what it publishes.

Examples:

    understudy policy status
    understudy policy status -c ` + publishConfig
}

func (c *policyStatusCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := config.Load(c.Conf)
	if err == nil && cfg.IsPublisher {
		return publishFlag{c.Conf}.ask(func(p operator.Publisher) error {
			s, err := p.Status(ctx)
			if err := render(out, c.JSON, &s, err, printPublisher); err != nil || c.JSON || cfg.Push.Listen == "" {
				return err
			}
			return showPushed(ctx, out, operator.Pushed(p))
		})
	}
	if err == nil && cfg.Policy.File != "" {
		return c.fromFile(ctx, out, cfg)
	}
	return c.ask(func(d operator.Daemon) error {
		s, err := d.Policy(ctx)
		if err := render(out, c.JSON, &s, err, printFollower); err != nil || c.JSON {
			return err
		}
		now, err := lookAt(ctx, d)
		for _, line := range now.clientsUntold() {
			fmt.Fprintln(out, line)
		}
		return err
	})
}

// fromFile shows how a policy file's recipients are known that it doesn't list.
func (c *policyStatusCmd) fromFile(ctx context.Context, out io.Writer, cfg *config.Config) error {
	return c.ask(func(d operator.Daemon) error {
		known, err := d.Asked(ctx)
		if err != nil {
			return err
		}
		if cfg.Push.Listen == "" && len(known.Domains) == 0 {
			_, err := d.Policy(ctx) // says that there is nothing to follow
			return err
		}
		var lists []pushed.Status
		if cfg.Push.Listen != "" {
			if lists, err = operator.Pushed(d).Lists(ctx); err != nil {
				return err
			}
		}
		if c.JSON {
			return printJSON(out, map[string]any{"pushed": lists, "asked": known})
		}
		if cfg.Push.Listen != "" {
			err = printPushed(out, lists)
		}
		if err == nil && len(known.Domains) > 0 {
			err = printAsked(out, known)
		}
		return err
	})
}

func showPushed(ctx context.Context, out io.Writer, p operator.Pushed) error {
	all, err := p.Lists(ctx)
	if err != nil {
		return err
	}
	return printPushed(out, all)
}

func printFollower(out io.Writer, s *operator.PolicyStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "State\t%s\n", s.State)
	if s.Staged != "" {
		fmt.Fprintf(w, "Mass deletion\t%s; see `understudy policy pending`\n", s.Staged)
	}
	fmt.Fprintf(w, "Primary\t%s, which calls us %s\nFingerprint\t%s\n", printable(s.Primary), printable(s.Name), s.Fingerprint)
	if s.Version > 0 {
		fmt.Fprintf(w, "Version\t%d (epoch %d), sha256:%s\n", s.Version, s.Epoch, shortDigest(s.Digest))
		fmt.Fprintf(w, "Vouched for\t%s\n", ago(s.Signed))
		printChange(w, s.LastChange)
		known := ""
		if s.Hashed {
			known = ", hashed: their addresses are not known here"
		}
		fmt.Fprintf(w, "Recipients\t%d in %s%s\n", s.Recipients, plural(s.Domains, "domain"), known)
	}
	printCounts(w, s.Counts)
	printSources(w, s.Sources)
	if s.Notice != "" {
		fmt.Fprintf(w, "The primary says\t%s\n", printable(s.Notice))
	}
	if s.Alarm != "" {
		fmt.Fprintf(w, "Alarm\t%s\n", printable(s.Error))
	}
	return w.Flush()
}

func printPublisher(out io.Writer, s *policysync.PublisherStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if s.Version == 0 {
		fmt.Fprintln(w, "Version\tnone: nothing is published, secondaries get no policy")
	} else {
		fmt.Fprintf(w, "Version\t%d (epoch %d), sha256:%s\n", s.Version, s.Epoch, shortDigest(s.Digest))
		fmt.Fprintf(w, "Signed\t%s\n", ago(s.Signed))
		printChange(w, s.LastChange)
		known := ""
		if s.Hashed {
			known = ", hashed for the secondaries"
		}
		fmt.Fprintf(w, "Recipients\t%d%s\n", s.Recipients, known)
	}
	printCounts(w, s.Counts)
	printSources(w, s.Sources)
	if s.Notice != "" {
		fmt.Fprintf(w, "Trouble\t%s\n", printable(s.Notice))
	}
	for _, text := range s.Wrong {
		fmt.Fprintf(w, "Listing contradicted\t%s\n", printable(text))
	}
	fmt.Fprintf(w, "Secondaries\t%d; see `understudy peers`\n", s.Peers)
	return w.Flush()
}

func shortDigest(digest string) string { return printable(digest[:min(16, len(digest))]) }

// ago spells a time and its age.
func ago(t time.Time) string {
	return fmt.Sprintf("%s (%s ago)", t.Local().Format(time.RFC3339), age(time.Since(t)))
}

func printChange(w io.Writer, c *policysync.LastChange) {
	if c == nil {
		return
	}
	what := []string{fmt.Sprintf("version %d to %d", c.From, c.To)}
	switch {
	case c.From == 0:
		what = []string{"the first version"}
	case !c.Compared:
		what = append(what, "not compared")
	default:
		what = append(what, fmt.Sprintf("+%d -%d recipients", c.Added, c.Removed))
	}
	if len(c.Tables) > 0 {
		what = append(what, "tables "+printable(strings.Join(c.Tables, " ")))
	}
	if c.Settings > 0 {
		what = append(what, plural(c.Settings, "line")+" of settings")
	}
	fmt.Fprintf(w, "Last change\t%s: %s\n", ago(c.At), strings.Join(what, ", "))
}

func printCounts(w io.Writer, counts map[string]uint64) {
	for _, d := range slices.Sorted(maps.Keys(counts)) {
		name := printable(d)
		if d == "" {
			name = "(local names)"
		}
		fmt.Fprintf(w, "  %s\t%d\n", name, counts[d])
	}
}

// printSources says when each source of the primary was read last.
func printSources(w io.Writer, list []policysync.Source) {
	if len(list) > 0 {
		fmt.Fprintln(w, "Sources\tas read last")
	}
	for _, s := range list {
		read := "not since the publisher started"
		if !s.Read.IsZero() {
			read = ago(s.Read)
		}
		if s.Failing {
			read += ", failing"
		}
		fmt.Fprintf(w, "  %s\t%s\n", printable(s.Name), read)
	}
}
