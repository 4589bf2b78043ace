package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/metrics"
	policysync "github.com/understudy-mx/understudy/sync"
)

// outageSample is how often the book of outages is kept, outageSave how often
// it is written at the least.
const (
	outageSample = 2 * time.Second
	outageSave   = 30 * time.Second
)

func outageFile(stateDir string) string { return filepath.Join(stateDir, "outages.json") }

// keepOutages keeps the book until ctx ends.
func (d *daemon) keepOutages(ctx context.Context) error {
	tick := time.NewTicker(outageSample)
	defer tick.Stop()
	saved := time.Now()
	for {
		turned := d.outages.Observe(time.Now(), d.sample())
		if now := time.Now(); turned || now.Sub(saved) >= outageSave || ctx.Err() != nil {
			if err := d.outages.Save(); err != nil {
				d.log.Error("outages aren't written down", "err", err)
			}
			saved = now
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done(): // once more, for what ended meanwhile
		case <-tick.C:
		}
	}
}

func (d *daemon) sample() outage.Sample {
	q := d.queue.Status()
	waiting := 0
	if q.Waiting {
		waiting = max(1, q.Messages-q.Held)
	}
	settled := metrics.Counts(d.metrics.RelayReplies, "result", nil)
	ending := metrics.Counts(d.metrics.LiveMessages, "ending", nil)
	s := outage.Sample{
		Accepted: q.Accepted, Waiting: waiting, Oldest: q.Oldest,
		Relayed: settled["relayed"], Held: settled["held"] + settled["expired"], Returned: total(metrics.Counts(d.metrics.Returned, "by", nil)), Twice: ending["after_dot"] + ending["late"],
		Refused: metrics.Counts(d.metrics.Verdicts, "rule", map[string]string{"action": "reject"}),
	}
	for _, r := range d.relay.Status() {
		route := outage.Route{Name: r.Name, Up: r.Up, Since: r.Since, Error: r.LastError}
		if w := d.standIn.Now(); w != nil {
			route.Planned = w.Reason
			if r.Up {
				route = outage.Route{Name: r.Name, Since: w.Began, Error: "planned: " + w.Reason, Planned: w.Reason}
			}
		}
		s.Routes = append(s.Routes, route)
	}
	return s
}

func total(counts map[string]uint64) (n uint64) {
	for _, v := range counts {
		n += v
	}
	return n
}

type outageCmd struct {
	List   outageListCmd   `cmd:"" help:"List the primary's outages, the last one last."`
	Show   outageShowCmd   `cmd:"" help:"Show one: when, how it was noticed, what became of the mail."`
	Report outageReportCmd `cmd:"" help:"Write one as a page to print, signed."`
	Verify outageVerifyCmd `cmd:"" help:"Check that a report is as it was signed, and by whom."`
}

func (outageCmd) Help() string {
	return `An outage begins when the next hop doesn't answer and ends when it does; it is drained when nothing waits any more. Accepted and refused count until the end, relayed, held and returned until it is drained. A message counts as saved when the outage went on for 72 hours or more after it was accepted: a sender that gives up by then would have lost it. All others that were accepted would have come late.`
}

type outageListCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (c *outageListCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		all, err := d.Outages(ctx)
		return render(out, c.JSON, all, err, printOutages)
	})
}

func printOutages(out io.Writer, all []outage.Outage) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "The primary has not been away.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tROUTE\tBEGAN\tLASTED\tACCEPTED\tREFUSED\tRELAYED\tHELD\tRETURNED\tSTATE")
	for _, o := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", o.ID, printable(o.Route), o.Began.Local().Format(time.DateTime), age(o.Length(time.Now())),
			o.Accepted, o.Refusals(), o.Relayed, o.Held, o.Returned, outageState(&o))
	}
	return w.Flush()
}

func outageState(o *outage.Outage) string {
	switch {
	case o.Ended.IsZero() && o.Planned != "":
		return "stand-in"
	case o.Ended.IsZero():
		return "away"
	case o.Drained.IsZero():
		return "draining"
	}
	return "over"
}

// findOutage returns one outage; 0 is the last.
func findOutage(ctx context.Context, d operator.Daemon, id int) (o outage.Outage, err error) {
	all, err := d.Outages(ctx)
	if err != nil {
		return o, err
	}
	at := slices.IndexFunc(all, func(o outage.Outage) bool { return o.ID == id })
	if id == 0 {
		at = len(all) - 1
	}
	if at < 0 {
		return o, fmt.Errorf("there is no such outage; `understudy outage list` lists %d", len(all))
	}
	return all[at], nil
}

type outageShowCmd struct {
	ID int `arg:"" optional:"" help:"Its number; without it, the last one."`
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (c *outageShowCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		o, err := findOutage(ctx, d, c.ID)
		return render(out, c.JSON, o, err, printOutage)
	})
}

func printOutage(out io.Writer, o outage.Outage) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range outage.Facts(&o, time.Local, time.Now()) {
		fmt.Fprintf(w, "%s\t%s\n", f.Name, f.Text)
	}
	return w.Flush()
}

type outageReportCmd struct {
	ID int `arg:"" optional:"" help:"Its number; without it, the last one."`
	daemonFlag
	Format string `enum:"html,text,json" default:"html" help:"html (to print), text or json."`
}

func (outageReportCmd) Help() string {
	return `Writes a report that can be shown to others: it is signed with this machine's key, by which its primary knows it. HTML needs nothing else, for a browser to show or print.

Examples:

    understudy outage report > outage.html
    understudy outage report 7 --format text`
}

func (c *outageReportCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		o, err := findOutage(ctx, d, c.ID)
		if err != nil {
			return err
		}
		report, err := d.OutageReport(ctx, o.ID, c.Format)
		if err != nil {
			return err
		}
		_, err = out.Write(report)
		return err
	})
}

// signOutage writes the report of an outage, signed with the key of our pairing.
func (d *daemon) signOutage(o outage.Outage, format string) ([]byte, error) {
	key, err := policysync.Identity(syncDir(d.cfg))
	if err != nil {
		return nil, err
	}
	r := outage.Report{Host: d.cfg.Hostname, Made: time.Now().UTC().Truncate(time.Second), Outage: o}
	return r.Sign(format, key)
}

type outageVerifyCmd struct {
	File string         `arg:"" help:"The report; - is standard input."`
	Key  policysync.Pin `placeholder:"HEX" help:"The key that must have signed it."`
	Conf string         `name:"config" short:"c" placeholder:"FILE" help:"The configuration of this machine's daemon or publisher, which knows keys (default: ${publish}, else ${config})."`
	JSON bool           `name:"json" help:"As JSON."`
}

func (outageVerifyCmd) Help() string {
	return `Tells whether a report is as it was signed, and by whom. On the primary, the publisher knows its secondaries' keys (key in peers --json); on a secondary, its own counts; elsewhere --key says which.

Exit status: 0 when the report is unchanged and the key is one that is known, else 1.`
}

// maxReport bounds a report's size.
const maxReport = 4 << 20

func (c *outageVerifyCmd) Run(ctx context.Context, out io.Writer) error {
	in := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	doc, err := io.ReadAll(io.LimitReader(in, maxReport+1))
	if err == nil && len(doc) > maxReport {
		err = fmt.Errorf("%s is larger than a report can be", c.File)
	}
	if err != nil {
		return err
	}
	key, err := outage.Verify(doc)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	pin := policysync.PinOf(key)
	signer, err := c.signer(ctx, pin)
	if err != nil {
		return err
	}
	return render(out, c.JSON, signature{signer, pin.String()}, nil, func(out io.Writer, s signature) error {
		_, err := fmt.Fprintf(out, "The report is unchanged since %s signed it (key %s).\n", s.Signer, s.Key)
		return err
	})
}

// signature is what is known of a good one.
type signature struct {
	Signer string `json:"signer"`
	Key    string `json:"key"`
}

// signer says whose a key is.
func (c *outageVerifyCmd) signer(ctx context.Context, pin policysync.Pin) (string, error) {
	unknown := fmt.Errorf("the signature is good, but whose key it is isn't known: %s; name the one it must be with --key", pin)
	if c.Key != (policysync.Pin{}) {
		if c.Key != pin {
			return "", fmt.Errorf("another key signed the report: %s", pin)
		}
		return "the key named", nil
	}
	for _, name := range []string{c.Conf, publishConfig, defaultConfig} {
		cfg, err := config.Load(name)
		switch {
		case name == "":
			continue
		case err != nil && name == c.Conf:
			return "", mistakes{err}
		case err != nil:
			continue
		case !cfg.IsPublisher:
			if key, err := policysync.Identity(syncDir(cfg)); err == nil && policysync.PinOf(key.Public().(ed25519.PublicKey)) == pin {
				return "this machine", nil
			}
		default:
			p := publisherOf(cfg)
			defer p.Close()
			peers, err := p.Peers(ctx)
			if err != nil {
				return "", err
			}
			if i := slices.IndexFunc(peers, func(q policysync.Peer) bool { return q.Key == pin }); i >= 0 {
				return "the secondary " + printable(peers[i].Name), nil
			}
		}
		if c.Conf != "" {
			break
		}
	}
	return "", unknown
}
