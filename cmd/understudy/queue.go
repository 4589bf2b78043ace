package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/queue"
)

type queueCmd struct {
	List       queueListCmd    `cmd:"" help:"List the messages, oldest first."`
	Show       queueShowCmd    `cmd:"" help:"Show one message: envelope, state and last reply of each recipient."`
	Read       queueReadCmd    `cmd:"" help:"Read messages, as text that is safe for a terminal."`
	Watch      watchCmd        `cmd:"" hidden:"" help:"The same as understudy watch."`
	Flush      queueFlushCmd   `cmd:"" help:"Try everything deferred now."`
	Hold       queueHoldCmd    `cmd:"" help:"Keep messages back until they are released."`
	Release    queueReleaseCmd `cmd:"" help:"Put held messages back in line."`
	Return     queueReturnCmd  `cmd:"" help:"Return held messages to their senders, if those were vouched for."`
	Remove     queueRemoveCmd  `cmd:"" help:"Delete messages, for good."`
	Export     queueExportCmd  `cmd:"" help:"Copy messages into a maildir or an mbox, without touching the queue."`
	Verify     queueVerifyCmd  `cmd:"" help:"Check all that is stored, while the daemon is stopped."`
	Repair     queueRepairCmd  `cmd:"" help:"Make a damaged queue anew from what can be read of it, while the daemon is stopped."`
	Migrate    queueMigrateCmd `cmd:"" help:"Move the queue to another store, while the daemon is stopped."`
	Quarantine quarantineCmd   `cmd:"" help:"What was put aside because it is damaged."`
}

func (queueCmd) Help() string {
	return `These commands ask the running daemon through its control socket, so run them as root or as the daemon's user.

A message waits (queued), was put off by the primary (deferred), or is held: the primary refused it after we had accepted it, it outlived max_age, or an operator held it. What is held stays until it is released, returned or removed; with [queue] return = "vouched" mail of senders for whom SPF or DKIM vouched is returned by itself.`
}

// daemonFlag finds the daemon to ask.
type daemonFlag struct {
	Conf string `name:"config" short:"c" placeholder:"FILE" default:"${config}" help:"The daemon's configuration file (default: ${config}); says where its state directory is."`
}

func (f daemonFlag) dial() (operator.Daemon, error) {
	cfg, err := loadConfig(f.Conf)
	if err != nil {
		return operator.Daemon{}, err
	}
	return daemonOf(cfg), nil
}

func daemonOf(cfg *config.Config) operator.Daemon {
	return operator.Daemon{Client: control.Dial(control.SocketPath(cfg.StateDir))}
}

// ask asks the running daemon.
func (f daemonFlag) ask(do func(operator.Daemon) error) error {
	d, err := f.dial()
	if err != nil {
		return err
	}
	defer d.Close()
	return do(d)
}

// each does the same to several messages and reports each that failed.
func (f daemonFlag) each(ctx context.Context, ids []string, do func(operator.Daemon, context.Context, string) error) error {
	return f.ask(func(d operator.Daemon) error {
		var errs []error
		for _, id := range ids {
			errs = append(errs, do(d, ctx, id))
		}
		return errors.Join(errs...)
	})
}

type queueListCmd struct {
	daemonFlag
	filterFlags
	JSON bool `name:"json" help:"A JSON array, one object a message."`
}

func (queueListCmd) Help() string {
	return `Below the messages stands what is wrong with the queue itself, if anything; in JSON that is in watch --json.

Examples:

    understudy queue list
    understudy queue list --state held --to '*@example.org' --older-than 24h
    understudy queue list --json | jq '.[] | select(.recipients[].state == "held") | .id'`
}

func (c *queueListCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.check(); err != nil {
		return err
	}
	list := listText
	if c.JSON {
		list = listJSON
	}
	return c.ask(func(d operator.Daemon) error {
		err := list(out, c.filterFlags, func(fn func(queue.Info) error) error {
			return d.Messages(ctx, func(info queue.Info) error {
				if !c.match(info) {
					return nil
				}
				return fn(info)
			})
		})
		if err != nil || c.JSON {
			return err
		}
		now, err := lookAt(ctx, d)
		for _, line := range now.trouble() {
			fmt.Fprintln(out, line)
		}
		return err
	})
}

// listJSON writes an array, listText a table, of what each calls them with.
func listJSON(out io.Writer, _ filterFlags, each func(func(queue.Info) error) error) error {
	separator := "[\n"
	err := each(func(info queue.Info) error {
		b, err := json.Marshal(info)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s%s", separator, b)
		separator = ",\n"
		return err
	})
	if err != nil {
		return err
	}
	if separator == "[\n" {
		separator = "["
	}
	_, err = fmt.Fprintf(out, "%s]\n", strings.TrimPrefix(separator, ","))
	return err
}

func listText(out io.Writer, f filterFlags, each func(func(queue.Info) error) error) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var messages, held int
	var size int64
	err := each(func(info queue.Info) error {
		if messages == 0 {
			fmt.Fprintln(w, "ID\tAGE\tSIZE\tSTATE\tFROM\tTO")
		}
		messages++
		size += info.Size
		if state(info) == "held" {
			held++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t<%s>\t%s\n", info.ID, age(time.Since(info.Accepted)),
			bytesText(info.Size), state(info), printable(info.From), firstRecipient(info))
		if messages%1000 == 0 {
			return w.Flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if messages == 0 {
		fmt.Fprintln(w, f.none())
	} else {
		fmt.Fprintf(w, "%s, %s, %d held\n", plural(messages, "message"), bytesText(size), held)
	}
	return w.Flush()
}

// state sums up a message's recipients: what needs the operator comes first.
func state(info queue.Info) string {
	rank := map[string]int{"queued": 1, "deferred": 2, "held": 3}
	sum := "-"
	for _, r := range info.Recipients {
		if rank[r.State] > rank[sum] {
			sum = r.State
		}
	}
	return sum
}

func firstRecipient(info queue.Info) string {
	switch n := len(info.Recipients); n {
	case 0:
		return "-"
	case 1:
		return printable(info.Recipients[0].Address)
	default:
		return fmt.Sprintf("%s and %d more", printable(info.Recipients[0].Address), n-1)
	}
}

type queueShowCmd struct {
	daemonFlag
	ID   string `arg:"" help:"The message, as queue list names it."`
	JSON bool   `name:"json" help:"As a JSON object." xor:"form"`
	Body bool   `name:"body" help:"Write the message itself, header and body, as it will be relayed." xor:"form"`
}

func (queueShowCmd) Help() string {
	return `Examples:

    understudy queue show ID
    understudy queue show ID --body | less`
}

func (c *queueShowCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		if c.Body {
			return c.copyBody(ctx, out, d)
		}
		info, err := d.Message(ctx, c.ID)
		return render(out, c.JSON, info, err, func(out io.Writer, info queue.Info) error {
			now, err := lookAt(ctx, d)
			if err != nil {
				return err
			}
			return showText(out, info, now)
		})
	})
}

func (c *queueShowCmd) copyBody(ctx context.Context, out io.Writer, d operator.Daemon) error {
	body, err := d.Body(ctx, c.ID)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(out, body); err != nil {
		return fmt.Errorf("read message %s: %w", c.ID, err)
	}
	return nil
}

func showText(out io.Writer, info queue.Info, now daemonNow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Message\t%s\n", info.ID)
	fmt.Fprintf(w, "Accepted\t%s (%s ago)\n", info.Accepted.Format(time.RFC3339), age(time.Since(info.Accepted)))
	fmt.Fprintf(w, "Size\t%d octets\n", info.Size)
	fmt.Fprintf(w, "From\t<%s>\n", printable(info.From))
	client := "[" + info.Client.Addr.String() + "]"
	if info.Client.Name != "" {
		client = printable(info.Client.Name) + " " + client
	}
	fmt.Fprintf(w, "Client\t%s, HELO %s\n", client, printable(info.Client.Helo))
	if info.MayHaveArrived {
		fmt.Fprintf(w, "May arrive twice\tthe primary had it, and didn't answer\n")
	}
	if info.Report {
		fmt.Fprintf(w, "Report\tto the sender of a message that was returned\n")
	} else {
		fmt.Fprintf(w, "Vouched for\t%s\n", vouchedText(info.Auth))
	}
	for _, r := range info.Recipients {
		fmt.Fprintf(w, "\t\nTo\t<%s>\n", printable(r.Address))
		fmt.Fprintf(w, "  route\t%s\n", now.wayTo(r.Destination))
		fmt.Fprintf(w, "  state\t%s\n", stateText(r))
		fmt.Fprintf(w, "  attempts\t%d%s\n", r.Attempts, next(r))
		if r.Reply != "" {
			fmt.Fprintf(w, "  last reply\t%s\n", printable(r.Reply))
		}
		fmt.Fprintf(w, "  accepted by\t%s\n", printable(r.Rule))
	}
	return w.Flush()
}

// vouchedText says whether the sender was vouched for, and by what.
func vouchedText(a envelope.Auth) string {
	if !a.Checked {
		return "not checked"
	}
	said := []string{"SPF " + cmp.Or(a.SPF, "not checked")}
	for _, s := range a.DKIM {
		said = append(said, "DKIM "+s.Result+" for "+printable(s.Domain))
	}
	by := map[string]string{"": "no", "spf": "by SPF", "dkim": "by DKIM"}[a.Vouched]
	return by + " (" + strings.Join(said, ", ") + ")"
}

// wayTo names a destination and says how its next hop is.
func (n daemonNow) wayTo(dest string) string {
	for _, r := range n.Routes {
		if r.Name == dest {
			return printable(dest) + ", " + watchView{View: operator.View{Status: operator.Status(n)}}.route(r)
		}
	}
	return printable(dest)
}

// stateText says of a held recipient why it is.
func stateText(r queue.RecipientInfo) string {
	why := map[string]string{
		"refused":  "the next hop refused it after it was accepted here",
		"expired":  "put off for longer than max_age",
		"operator": "by an operator",
		"policy":   strings.TrimSuffix("by the policy: "+printable(r.HeldBy), ": "),
	}[r.Reason]
	return strings.TrimSuffix(r.State+": "+why, ": ")
}

func next(r queue.RecipientInfo) string {
	if r.State != "deferred" || r.NextAttempt.IsZero() {
		return ""
	}
	if wait := time.Until(r.NextAttempt); wait > 0 {
		return ", next in " + age(wait)
	}
	return ", next now"
}

type queueFlushCmd struct{ daemonFlag }

func (queueFlushCmd) Help() string {
	return `Makes every deferred recipient due now. Held messages stay held: see release. While the primary is down nothing moves; it is probed all the time, and the queue starts by itself when it answers.`
}

func (c *queueFlushCmd) Run(ctx context.Context) error {
	return c.ask(func(d operator.Daemon) error { return d.Flush(ctx) })
}

// idsArg is the messages of a command that takes several.
type idsArg struct {
	IDs []string `arg:"" name:"id" help:"The messages, as queue list names them."`
}

type queueHoldCmd struct {
	daemonFlag
	idsArg
}

func (queueHoldCmd) Help() string {
	return `A held message is kept, and not relayed until you release it.`
}

func (c *queueHoldCmd) Run(ctx context.Context) error {
	return c.each(ctx, c.IDs, operator.Daemon.Hold)
}

type queueReleaseCmd struct {
	daemonFlag
	idsArg
}

func (queueReleaseCmd) Help() string {
	return `Puts every held recipient of the messages back in line; their age counts anew. If the primary refused one, correct the reason first, or it will be refused and held again.`
}

func (c *queueReleaseCmd) Run(ctx context.Context) error {
	return c.each(ctx, c.IDs, operator.Daemon.Release)
}

type queueReturnCmd struct {
	daemonFlag
	idsArg
}

func (queueReturnCmd) Help() string {
	return `The sender gets a report (DSN) that its message wasn't delivered, and the held recipients leave the queue. A message is returned only if SPF or DKIM vouched for its sender when it came, since a forged sender would get the report; otherwise the command says why not. queue show tells whether a sender was vouched for.`
}

func (c *queueReturnCmd) Run(ctx context.Context) error {
	return c.each(ctx, c.IDs, operator.Daemon.Return)
}

type queueRemoveCmd struct {
	daemonFlag
	idsArg
}

func (queueRemoveCmd) Help() string {
	return `Deletes the messages. Nobody is told and nothing can bring them back: queue show --body saves one first.`
}

func (c *queueRemoveCmd) Run(ctx context.Context) error {
	return c.each(ctx, c.IDs, operator.Daemon.Remove)
}
