package main

import (
	"context"
	"fmt"
	"html/template"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/metrics"
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
	s := outage.Sample{
		Accepted: q.Accepted, Waiting: waiting, Oldest: q.Oldest,
		Relayed: settled["relayed"], Held: settled["held"] + settled["expired"], Returned: total(metrics.Counts(d.metrics.Returned, "by", nil)),
		Refused: metrics.Counts(d.metrics.Verdicts, "rule", map[string]string{"action": "reject"}),
	}
	for _, r := range d.relay.Status() {
		s.Routes = append(s.Routes, outage.Route{Name: r.Name, Up: r.Up, Since: r.Since, Error: r.LastError})
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
	Report outageReportCmd `cmd:"" help:"Write one as a page to print."`
}

func (outageCmd) Help() string {
	return `An outage begins when the next hop doesn't answer and ends when it does; it is drained when nothing waits any more. Accepted and refused count until the end, relayed, held and returned until it is drained. Saved are the messages that a sender who gives up after 72 hours would have lost; all others would have come late, if at all.`
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
	for _, f := range outageFacts(&o) {
		fmt.Fprintf(w, "%s\t%s\n", f.Name, printable(f.Text))
	}
	return w.Flush()
}

// outageFact is one line about an outage.
type outageFact struct{ Name, Text string }

func outageFacts(o *outage.Outage) []outageFact {
	moment := func(t time.Time, none string) string {
		if t.IsZero() {
			return none
		}
		return t.Local().Format(time.RFC1123)
	}
	facts := []outageFact{
		{"Outage", fmt.Sprintf("%d, of the next hop %s", o.ID, o.Route)},
		{"Began", moment(o.Began, "")},
		{"Noticed by", o.Noticed},
		{"Ended", moment(o.Ended, "not yet")},
		{"Drained", moment(o.Drained, "not yet")},
		{"Lasted", age(o.Length(time.Now()))},
		{"Accepted", plural(int(o.Accepted), "message") + fmt.Sprintf(", beside %d that waited before", o.Waited)},
		{"Relayed", plural(int(o.Relayed), "recipient")},
		{"Held", plural(int(o.Held), "recipient")},
		{"Returned", plural(int(o.Returned), "recipient")},
		{"Longest wait", age(time.Duration(o.Longest) * time.Second)},
		{"Saved", fmt.Sprintf("%s from senders who give up after %d hours", plural(int(o.Saved), "message"), outage.Retry)},
		{"Refused", plural(int(o.Refusals()), "verdict")},
	}
	rules := slices.SortedFunc(maps.Keys(o.Refused), func(a, b string) int {
		if o.Refused[a] != o.Refused[b] {
			return int(o.Refused[b]) - int(o.Refused[a])
		}
		return strings.Compare(a, b)
	})
	for _, r := range rules {
		facts = append(facts, outageFact{"  by " + r, fmt.Sprint(o.Refused[r])})
	}
	return facts
}

type outageReportCmd struct {
	ID int `arg:"" optional:"" help:"Its number; without it, the last one."`
	daemonFlag
}

func (outageReportCmd) Help() string {
	return `Writes HTML that needs nothing else, for a browser to show or print.

Example:

    understudy outage report > outage.html`
}

func (c *outageReportCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		o, err := findOutage(ctx, d, c.ID)
		if err != nil {
			return err
		}
		return outagePage.Execute(out, outageFacts(&o))
	})
}

var outagePage = template.Must(template.New("outage").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Outage</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
th { text-align: left; font-weight: 600; padding-right: 2rem; vertical-align: top; white-space: pre }
td, th { border-bottom: 1px solid #8884; padding-top: .3rem; padding-bottom: .3rem }
table { border-collapse: collapse; width: 100% }
</style>
<h1>An outage of the primary mail server</h1>
<table>
{{range .}}<tr><th scope="row">{{.Name}}</th><td>{{.Text}}</td></tr>
{{end}}</table>
</html>
`))
