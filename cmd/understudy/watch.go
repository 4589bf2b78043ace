package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/relay"
)

// daemonNow is what the daemon answers to one who watches.
type daemonNow operator.Status

type watchCmd struct {
	daemonFlag
	Interval   time.Duration `name:"interval" default:"1s" placeholder:"DURATION" help:"How often to look (default: ${default})."`
	Once       bool          `name:"once" help:"Look once, over one interval, and end."`
	UntilEmpty bool          `name:"until-empty" help:"End when nothing waits to be relayed any more; what is held doesn't count."`
	JSON       bool          `name:"json" help:"A JSON object a line."`
}

func (watchCmd) Help() string {
	return `Shows how each next hop is, what waits, how fast mail comes in and goes out, when the queue will be empty at that rate, the last ten minutes as a chart, and the policy, its parity and the last outage: until interrupted. On a terminal the picture stays in place and only what changes is sent; elsewhere it is a line each time. Rates are those of the last ten seconds.

Examples:

    understudy watch
    ssh mx2.example.org understudy watch --once
    timeout 1h understudy watch --until-empty --interval 10s && echo the outage is over`
}

func (c *watchCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Interval < 100*time.Millisecond {
		return mistakes{fmt.Errorf("--interval %v is shorter than 100ms", c.Interval)}
	}
	cfg, err := loadConfig(c.Conf)
	if err != nil {
		return err
	}
	d := daemonOf(cfg)
	defer d.Close()
	show, end := c.show(out, cfg.Hostname)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	ticker := time.NewTicker(c.Interval)
	defer ticker.Stop()
	w := watcher{desk: d}
	for first := true; ; first = false {
		v, err := w.look(ctx)
		if ctx.Err() != nil {
			return end() // interrupted: that is how one leaves
		}
		if err == nil && !(c.Once && first) {
			err = show(v)
		}
		if err != nil || c.UntilEmpty && !v.Waiting || c.Once && !first {
			return errors.Join(err, end())
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return end()
			case <-resized:
				if err := show(v); err != nil {
					return errors.Join(err, end())
				}
			case <-ticker.C:
				waiting = false
			}
		}
	}
}

// watcher asks the daemon: for the queue at each look, for the rest now and then.
type watcher struct {
	desk  operator.Daemon
	queue operator.Watch
	asked time.Time
	rest  watchView
}

func (w *watcher) look(ctx context.Context) (v watchView, err error) {
	now, err := w.desk.Status(ctx)
	if err != nil {
		return v, err
	}
	w.queue.Add(now)
	if now.At.Sub(w.asked) >= 5*time.Second {
		w.asked, w.rest = now.At, watchView{}
		// Where one of these can't be had, its line is missing.
		if p, err := w.desk.Policy(ctx); err == nil {
			w.rest.policy = &p
		}
		if r, err := w.desk.Parity(ctx, false); err == nil {
			w.rest.parity = &r
		}
		if all, err := w.desk.Outages(ctx); err == nil && len(all) > 0 {
			w.rest.outage = &all[len(all)-1]
		}
	}
	v = w.rest
	v.View = w.queue.View()
	return v, nil
}

func lookAt(ctx context.Context, d operator.Daemon) (daemonNow, error) {
	now, err := d.Status(ctx)
	return daemonNow(now), err
}

// show is how each view is printed, and what ends it.
func (c *watchCmd) show(out io.Writer, hostname string) (show func(watchView) error, end func() error) {
	text := func(format func(watchView) string) func(watchView) error {
		return func(v watchView) error {
			_, err := fmt.Fprintln(out, format(v))
			return err
		}
	}
	nothing := func() error { return nil }
	switch {
	case c.JSON:
		e := json.NewEncoder(out)
		return func(v watchView) error { return e.Encode(v.View) }, nothing
	case c.Once:
		return text(func(v watchView) string { return strings.Join(v.lines(), "\n") }), nothing
	case !isTerminal(out) || os.Getenv("TERM") == "dumb":
		return text(watchView.line), nothing
	}
	s := &canvas{out: out}
	var past chart
	var last watchView
	begun := false
	show = func(v watchView) error {
		if !begun {
			begun = true
			if _, err := io.WriteString(out, screenOn); err != nil {
				return err
			}
		}
		if v.At != last.At {
			past.add(v)
		}
		last = v
		width, height := terminalSize(out)
		return s.draw(v.picture(hostname, &past, width, height))
	}
	return show, func() error { // what was seen last stays
		if !begun {
			return nil
		}
		_, err := fmt.Fprintln(out, screenOff+strings.Join(last.lines(), "\n"))
		return err
	}
}

// chart is what the sparklines show: a column for each ten seconds of the last
// ten minutes.
type chart struct {
	columns []chartColumn
}

type chartColumn struct {
	at       int64 // which ten seconds
	waiting  float64
	leaving  float64
	arriving float64
}

const (
	chartStep    = 10 // seconds
	chartColumns = 60
)

// add takes a view. A column is the highest of its views.
func (c *chart) add(v watchView) {
	at := v.At.Unix() / chartStep
	if n := len(c.columns); n == 0 || c.columns[n-1].at != at {
		c.columns = append(c.columns, chartColumn{at: at})
		c.columns = c.columns[max(0, len(c.columns)-chartColumns):]
	}
	last := &c.columns[len(c.columns)-1]
	last.waiting = max(last.waiting, float64(v.Messages-v.Held))
	last.arriving, last.leaving = max(last.arriving, v.In), max(last.leaving, v.Out)
}

// lines are the sparklines.
func (c *chart) lines(width int) []string {
	levels := plain
	if unicodeTerminal() {
		levels = blocks
	}
	line := func(name, unit string, value func(chartColumn) float64) string {
		var values []float64
		most := 1.0
		for _, col := range c.columns {
			values = append(values, value(col))
			most = max(most, value(col))
		}
		most = roof(most)
		return fmt.Sprintf("%-9s %s %.0f%s", name, sparkline(values, most, min(chartColumns, max(1, width-20)), levels), most, unit)
	}
	return []string{
		line("Waiting", "", func(c chartColumn) float64 { return c.waiting }),
		line("Arriving", "/s", func(c chartColumn) float64 { return c.arriving }),
		line("Leaving", "/s", func(c chartColumn) float64 { return c.leaving }),
	}
}

// watchView is a picture, as it is drawn.
type watchView struct {
	operator.View
	policy *operator.PolicyStatus
	parity *meter.Report
	outage *outage.Outage
}

// picture is what a terminal shows. The charts go first where it is low.
func (v watchView) picture(hostname string, past *chart, width, height int) []string {
	clock := v.At.Local().Format(time.TimeOnly)
	head := "Understudy " + printable(hostname)
	lines := append([]string{head + strings.Repeat(" ", max(1, width-len(head)-len(clock))) + clock, ""}, v.lines()...)
	if charts := past.lines(width); len(lines)+len(charts)+1 <= height {
		lines = append(append(lines, ""), charts...)
	}
	return lines
}

func (v watchView) ends() string {
	switch {
	case !v.Waiting:
		return "nothing waits"
	case v.EmptyAfter == nil:
		return "not shrinking"
	}
	return "empty in " + age(time.Duration(*v.EmptyAfter*float64(time.Second)))
}

func (v watchView) oldest() string {
	if v.Oldest.IsZero() {
		return ""
	}
	return ", oldest " + age(v.At.Sub(v.Oldest))
}

// storeDamaged fits into a terminal's line, with the remedy.
const storeDamaged = "damaged: stop understudy when you can, run understudy queue repair"

// trouble is what is wrong with the queue, or between us and a next hop that is
// up, a line each.
func (n daemonNow) trouble() (lines []string) {
	if n.Quarantined > 0 {
		lines = append(lines, fmt.Sprintf("Damaged   %s put aside: see understudy queue quarantine list", plural(n.Quarantined, "message")))
	}
	if n.Broken {
		lines = append(lines, "Store     being reopened after a failed write: mail is answered 451")
	}
	if n.Damaged {
		lines = append(lines, "Store     "+storeDamaged)
	}
	if w := n.StandIn; w != nil {
		lines = append(lines, "Stand-in  "+standInText(w))
	}
	for _, f := range n.Filters {
		switch {
		case f.Away:
			lines = append(lines, fmt.Sprintf("Filter    %s doesn't answer since %s: %s", printable(f.Name), f.Since.Local().Format(time.DateTime), printable(f.Error)))
		case f.Idle:
			lines = append(lines, fmt.Sprintf("Filter    %s is never asked: the policy has no milter %s", printable(f.Name), printable(f.For)))
		}
	}
	return append(lines, n.clientsUntold()...)
}

// clientsUntold says which next hops judge us in place of the clients.
func (n daemonNow) clientsUntold() (lines []string) {
	for _, r := range n.Routes {
		if r.WithoutXClient != "" {
			lines = append(lines, fmt.Sprintf("XCLIENT   %s takes us for the client of all mail: %s", printable(r.Name), printable(r.WithoutXClient)))
		}
	}
	return lines
}

// lines are the picture for a terminal.
func (v watchView) lines() []string {
	lines := []string{
		fmt.Sprintf("Queue     %s, %s%s", plural(v.Messages, "message"), bytesText(v.Bytes), v.oldest()),
		fmt.Sprintf("          %d in line, %d deferred, %d held", max(0, v.Messages-v.Deferred-v.Held), v.Deferred, v.Held),
		fmt.Sprintf("Rate      %.1f/s in, %.1f/s out; %s", v.In, v.Out, v.ends()),
		fmt.Sprintf("Space     %s free", bytesText(int64(v.FreeBytes))),
	}
	lines = append(lines, daemonNow(v.Status).trouble()...)
	for _, r := range v.Routes {
		lines = append(lines, fmt.Sprintf("%-9s %s", printable(r.Name), v.route(r)))
	}
	return append(lines, v.about()...)
}

// about is what changes seldom.
func (v watchView) about() (lines []string) {
	if p := v.policy; p != nil {
		s := fmt.Sprintf("Policy    version %d, %s, vouched for %s ago", p.Version, plural(int(p.Recipients), "recipient"), age(v.At.Sub(p.Signed)))
		if p.Version == 0 {
			s = "Policy    none yet: clients are answered 421"
		}
		if p.Alarm != "" {
			s += "; " + string(p.Alarm) + ": see understudy policy status"
		}
		lines = append(lines, s)
	}
	if r := v.parity; r != nil && r.Rate != nil {
		lines = append(lines, fmt.Sprintf("Parity    %.2f %% of %s as the primary's, %d unexplained", math.Floor(*r.Rate*10000)/100, plural(int(r.Same+r.Different), "decision"), r.Unexplained))
	}
	if o := v.outage; o != nil {
		lines = append(lines, fmt.Sprintf("Outage    %d, %s: since %s, %d accepted, %d refused, %d held", o.ID, outageState(o),
			o.Began.Local().Format(time.DateTime), o.Accepted, o.Refusals(), o.Held))
	}
	return lines
}

// line is the same in one line, without what seldom matters.
func (v watchView) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, %d deferred, %d held, %s%s; %.1f/s in, %.1f/s out, %s", v.At.Local().Format(time.TimeOnly),
		plural(v.Messages, "message"), v.Deferred, v.Held, bytesText(v.Bytes), v.oldest(), v.In, v.Out, v.ends())
	for _, r := range v.Routes {
		fmt.Fprintf(&b, "; %s %s", printable(r.Name), v.route(r))
	}
	if v.StandIn != nil {
		b.WriteString("; stand-in " + standInText(v.StandIn))
	}
	if v.Damaged {
		b.WriteString("; store " + storeDamaged)
	}
	return b.String()
}

// route says how a next hop is.
func (v watchView) route(r relay.RouteStatus) string {
	since := age(v.At.Sub(r.Since))
	switch {
	case !r.Up && r.LastError == "":
		return "being probed for the first time"
	case !r.Up:
		return "down for " + since + ", being probed: " + printable(r.LastError)
	}
	s := "up for " + since
	for _, d := range v.Destinations {
		if d.Name != r.Name {
			continue
		}
		s += fmt.Sprintf(", %d of %s", d.Sessions, plural(d.Allowed, "session"))
		if !d.Pause.IsZero() {
			s += ", next in " + age(d.Pause.Sub(v.At)) + ": sessions fail"
		}
	}
	return s
}
