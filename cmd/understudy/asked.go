package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/understudy-mx/understudy/internal/asked"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// openAsked has recipients verified whom nothing lists.
func (d *daemon) openAsked() {
	route := routeOf(d.cfg)
	d.asked = asked.Open(asked.Options{File: filepath.Join(d.cfg.StateDir, "asked.json"), Log: d.log, Metrics: d.metrics,
		Ask: func(ctx context.Context, m envelope.Mailbox) (envelope.Reply, error) {
			return d.relay.Verify(ctx, route(m.Domain), m)
		},
		Domains: func() []string {
			if snap := d.current(); snap != nil {
				return handwritten.Asked(snap)
			}
			return nil
		}})
	d.smtp.Verify = d.asked.Lookup
}

type policyLearnCmd struct {
	Logs []string `arg:"" help:"Logs of a Postfix or an Exim, the oldest first; - is standard input."`
	daemonFlag
}

func (policyLearnCmd) Help() string {
	return `For domains in recipients_asked: takes recipients to whom a log says that mail was delivered, so that they are known before an outage. The log may be that of a server that sends to the primary, or of the primary. The primary is asked about each soon, a few a minute; what it doesn't have is forgotten then.

Examples:

    understudy policy learn /var/log/mail.log.1 /var/log/mail.log
    zcat /var/log/mail.log.*.gz | understudy policy learn -
    docker logs mailserver 2>&1 | understudy policy learn -`
}

func (c *policyLearnCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		s, err := d.Asked(ctx)
		if err != nil {
			return err
		}
		if len(s.Domains) == 0 {
			return mistakes{fmt.Errorf("the policy in force asks about no domain's recipients; set recipients_asked in its file")}
		}
		found := map[string]bool{}
		for _, name := range c.Logs {
			if err := readDelivered(name, s.Domains, found); err != nil {
				return mistakes{err}
			}
		}
		n, err := d.Learn(ctx, found)
		if err == nil {
			_, err = fmt.Fprintf(out, "%s in the logs, %d of them new.\n", plural(len(found), "recipient"), n)
		}
		return err
	})
}

// maxLearned bounds what is taken from logs.
const maxLearned = 100_000

func readDelivered(name string, domains []string, found map[string]bool) error {
	in := io.ReadCloser(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		in = f
	}
	defer in.Close()
	return asked.ReadLog(in, func(address string) {
		address = strings.ToLower(address)
		for _, d := range domains {
			if strings.HasSuffix(address, "@"+d) && len(found) < maxLearned && len(address) <= 320 {
				found[address] = true
			}
		}
	})
}

func printAsked(out io.Writer, s asked.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Recipients asked about\t%s\n", printable(strings.Join(s.Domains, " ")))
	fmt.Fprintf(w, "  known by asking\t%d, of them %d from logs only\n", s.Yes, s.Log)
	fmt.Fprintf(w, "  unknown by asking\t%d\n", s.No)
	if len(s.Everybody) > 0 {
		fmt.Fprintf(w, "  accepts everybody\t%s: the primary accepts recipients that are made up\n", printable(strings.Join(s.Everybody, " ")))
	}
	fmt.Fprintln(w, "  learned, not listed\tall others are put off (450) while the primary can't be asked")
	return w.Flush()
}
