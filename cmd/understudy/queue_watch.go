package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/relay"
)

// daemonNow is what the daemon answers to one who watches.
type daemonNow operator.Status

type queueWatchCmd struct {
	daemonFlag
	Interval   time.Duration `name:"interval" default:"1s" placeholder:"DURATION" help:"How often to look (default: ${default})."`
	UntilEmpty bool          `name:"until-empty" help:"End when nothing waits to be relayed any more; what is held doesn't count."`
	JSON       bool          `name:"json" help:"A JSON object a line."`
}

func (queueWatchCmd) Help() string {
	return `Shows what waits, how fast mail comes in and goes out, when the queue will be empty at that rate, and how each next hop is: until interrupted. On a terminal the picture is redrawn in place, elsewhere it is a line each time. Rates are those of the last ten seconds.

Examples:

    understudy queue watch
    timeout 1h understudy queue watch --until-empty --interval 10s && echo the outage is over`
}

func (c *queueWatchCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Interval < 100*time.Millisecond {
		return mistakes{fmt.Errorf("interval %v is shorter than 100ms", c.Interval)}
	}
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	show := c.show(out)
	ticker := time.NewTicker(c.Interval)
	defer ticker.Stop()
	var w operator.Watch
	for {
		now, err := lookAt(ctx, client)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted: that is how one leaves
		case err != nil:
			return err
		}
		w.Add(operator.Status(now))
		if err := show(watchView{w.View()}); err != nil || c.UntilEmpty && !now.Waiting {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func lookAt(ctx context.Context, d operator.Daemon) (daemonNow, error) {
	now, err := d.Status(ctx)
	return daemonNow(now), err
}

// show is how each view is printed.
func (c *queueWatchCmd) show(out io.Writer) func(watchView) error {
	if c.JSON {
		e := json.NewEncoder(out)
		return func(v watchView) error { return e.Encode(v) }
	}
	if !isTerminal(out) || os.Getenv("TERM") == "dumb" {
		return func(v watchView) error {
			_, err := fmt.Fprintln(out, v.line())
			return err
		}
	}
	drawn := 0
	return func(v watchView) error {
		var b strings.Builder
		if drawn > 0 {
			fmt.Fprintf(&b, "\x1b[%dA", drawn)
		}
		width, lines := columns(out), v.lines()
		for _, line := range lines {
			b.WriteString(clip(line, width) + "\x1b[K\n")
		}
		b.WriteString("\x1b[J") // a destination may have gone
		drawn = len(lines)
		_, err := io.WriteString(out, b.String())
		return err
	}
}

// columns is a terminal's width; a line that is longer would spoil the redrawing.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 80
}

func clip(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width])
	}
	return s
}

// watchView is a picture, as it is drawn.
type watchView struct{ operator.View }

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
