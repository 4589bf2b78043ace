package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/policy"
)

type policyExplainCmd struct {
	policyFlags
	Client      string   `required:"" placeholder:"IP" help:"The client's address."`
	Name        string   `placeholder:"HOST" help:"Its verified host name, or unknown; without it the DNS is asked."`
	ReverseName string   `placeholder:"HOST" help:"The name that its address maps to, verified or not; without it, as --name."`
	Helo        string   `required:"" placeholder:"NAME" help:"What it says in EHLO."`
	From        string   `required:"" placeholder:"ADDRESS" help:"The sender; empty or <> for none."`
	To          []string `required:"" sep:"none" placeholder:"ADDRESS" help:"A recipient; may be given several times."`
	Size        int64    `placeholder:"OCTETS" help:"The message's size, as announced and sent."`
	DNS         []string `placeholder:"IP:PORT" help:"DNS servers to ask instead of the configured ones."`
	JSON        bool     `name:"json" help:"As JSON."`
}

func (policyExplainCmd) Help() string {
	return `Plays a session against a policy, without any mail, and prints the verdict at each stage. As in Postfix, what is wrong with a client, its EHLO name or a sender is usually said at RCPT.

Example:

    understudy policy explain policy.toml --client 192.0.2.1 --name mail.example.com \
        --helo mail.example.com --from bob@example.com --to alice@example.org`
}

// explained is one line of the explanation.
type explained struct {
	Stage    string   `json:"stage"`
	Subject  string   `json:"subject,omitempty"`
	Action   string   `json:"action"`
	Reply    string   `json:"reply,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// script is a session, parsed.
type script struct {
	client envelope.Client
	helo   string
	from   envelope.ReversePath
	to     []envelope.ForwardPath
	size   int64
}

func (c *policyExplainCmd) Run(ctx context.Context, out io.Writer) error {
	sc, err := c.script()
	if err != nil {
		return mistakes{err}
	}
	snap, cfg, err := c.load(ctx, c.DNS)
	if err != nil {
		return err
	}
	return render(out, c.JSON, explain(ctx, snap, newResolver(cfg, nil), sc), nil, printExplained)
}

func (c *policyExplainCmd) script() (script, error) {
	sc := script{helo: c.Helo, size: c.Size}
	var errs []error
	addr, err := netip.ParseAddr(c.Client)
	if err != nil {
		errs = append(errs, fmt.Errorf("--client: %q is no address; write one such as 192.0.2.1 or 2001:db8::1", c.Client))
	}
	sc.client.Addr = addr.Unmap()
	if c.ReverseName == "" {
		c.ReverseName = c.Name
	}
	if c.Name == "" && c.ReverseName != "" {
		c.Name = "unknown"
	}
	sc.client.Name, sc.client.NameStatus = named(c.Name)
	sc.client.ReverseName, sc.client.ReverseStatus = named(c.ReverseName)
	if c.From != "" && c.From != "<>" {
		if sc.from.Mailbox, err = envelope.ParseMailbox(c.From); err != nil {
			errs = append(errs, fmt.Errorf("--from: %q: %w", c.From, err))
		}
	}
	for _, to := range c.To {
		path, _, err := envelope.ParseForwardPath("<" + to + ">")
		if err != nil {
			errs = append(errs, fmt.Errorf("--to: %q: %w", to, err))
		}
		sc.to = append(sc.to, path)
	}
	return sc, errors.Join(errs...)
}

func named(name string) (string, envelope.NameStatus) {
	switch name {
	case "":
		return "", envelope.NameUnasked
	case "unknown":
		return name, envelope.NameNotFound
	}
	return name, envelope.NameOK
}

// explain plays a session and notes the verdicts. It stops where a client
// could not go on.
func explain(ctx context.Context, snap *policy.Snapshot, r *resolver.Resolver, sc script) []explained {
	s := snap.Session(r, sc.client)
	defer s.Close()
	var lines []explained
	add := func(stage policy.Stage, subject string, v policy.Verdict) (goOn bool) {
		l := explained{Stage: stage.String(), Subject: subject, Action: v.Action.String()}
		if !v.Reply.Zero() {
			l.Reply = v.Reply.String()
		}
		if v.Rule.Kind != "" {
			l.Rule = v.Rule.String()
		}
		for _, w := range v.Warnings {
			l.Warnings = append(l.Warnings, w.String())
		}
		lines = append(lines, l)
		return !v.Close && v.Action != policy.Reject && v.Action != policy.Defer
	}
	if !add(policy.Connect, sc.client.Addr.String(), s.Connect(ctx)) ||
		!add(policy.Helo, sc.helo, s.Helo(ctx, sc.helo)) ||
		!add(policy.Mail, "<"+sc.from.String()+">", s.Mail(ctx, sc.from, policy.MailParams{Size: sc.size})) {
		return lines
	}
	accepted := 0
	for _, to := range sc.to {
		v := s.Rcpt(ctx, to)
		if add(policy.Rcpt, "<"+to.String()+">", v) {
			accepted++
		}
		if v.Close {
			return lines
		}
	}
	if accepted > 0 && add(policy.Data, "", s.Data(ctx)) {
		add(policy.EndOfData, "", s.Message(ctx, policy.Message{Size: sc.size}))
	}
	return lines
}

func printExplained(out io.Writer, lines []explained) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STAGE\tOF\tVERDICT\tREPLY\tRULE")
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Stage, dash(printable(l.Subject)), l.Action, dash(printable(l.Reply)), dash(printable(l.Rule)))
		for _, warning := range l.Warnings {
			fmt.Fprintf(w, "\t\twould refuse\t\t%s\n", printable(warning))
		}
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
