package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

type parityCmd struct {
	Play   parityPlayCmd   `cmd:"" default:"withargs" help:"Play sessions to the primary and to the policy, and compare every reply; the default."`
	Live   parityLiveCmd   `cmd:"" help:"How the policy agrees with the primary in live sessions."`
	Shadow parityShadowCmd `cmd:"" help:"On the primary: how the published policy agrees with the verdicts in its log."`
}

type parityPlayCmd struct {
	policyFlags
	Primary  string   `xor:"from" required:"" placeholder:"HOST:PORT" help:"The primary; it must allow XCLIENT from here."`
	Trace    string   `xor:"from" required:"" placeholder:"FILE" help:"Instead of asking a primary, play the sessions that --record wrote and compare with what it replied then."`
	Record   string   `placeholder:"FILE" help:"Write the sessions with the primary's replies to a file, for --trace."`
	Sessions int      `default:"1000" placeholder:"N" help:"How many sessions to play (default: ${default})."`
	Seed     uint64   `default:"1" placeholder:"S" help:"Which sessions: the same seed and policy give the same (default: ${default})."`
	Parallel int      `default:"4" placeholder:"N" help:"Sessions at once (default: ${default})."`
	DNS      []string `placeholder:"IP:PORT" help:"DNS servers to ask instead of the configured ones; they should be the primary's."`
	Domain   []string `placeholder:"NAME" help:"Domains to name as senders' besides a few that exist and some that don't."`
	Data     string   `placeholder:"RECIPIENT" help:"Send messages too, to this recipient only. Without it no message is ever sent."`
}

func (parityPlayCmd) Help() string {
	return `Plays the same sessions against the live primary and against the local policy, and compares the codes of every reply. The sessions are drawn from the policy itself (its domains, recipients, networks and tables) and from a grammar of what clients write. Whom a session speaks for is stated by XCLIENT, so the primary must list this machine in smtpd_authorized_xclient_hosts: best on a service of its own, such as in master.cf

    127.0.0.1:2525 inet n - y - - smtpd
        -o smtpd_authorized_xclient_hosts=127.0.0.1

and never on one that others can reach.

A trace proves a policy without the primary: record sessions while it is there, and play them against any later policy or program. The DNS is asked anew, so a trace ages as the names in it do. It holds recipients; keep it from others. What the policy has the primary asked about, the primary is asked here too; with a trace it counts as accepted.

Prints each kind of difference once, as the shortest session that shows it, and at last "sessions N, decisions M, differences D". The exit code is 1 when there is a difference.

Examples:

    understudy parity policy.json --primary 127.0.0.1:2525
    understudy parity policy.json --primary 127.0.0.1:2525 --sessions 100000 --seed 7 --data test@example.org
    understudy parity policy.json --primary 127.0.0.1:2525 --record monday.trace
    understudy parity policy.json --trace monday.trace`
}

// clients and names that a DNS without our doing knows, or doesn't. The first
// of each should be welcome everywhere.
func (c *parityPlayCmd) material() parity.Material {
	at := netip.MustParseAddr
	return parity.Material{
		Clients: []parity.Client{
			{Addr: at("198.51.100.25"), Name: "mail.iana.org", Reverse: "mail.iana.org"},
			{Addr: at("198.51.100.26")},
			{Addr: at("198.51.100.27"), Name: parity.Temporary, Reverse: parity.Temporary},
			{Addr: at("198.51.100.28"), Reverse: "mail.iana.org"},
			{Addr: at("127.0.0.2")},
			{Addr: at("127.0.0.1"), Name: "localhost", Reverse: "localhost"},
		},
		Helos: []string{"www.iana.org", "nowhere.invalid", "iana.org"},
		Senders: append(slices.Clone(c.Domain), "iana.org", "www.iana.org", "example.com", "nowhere.invalid", "nodot",
			"under_score.iana.org", "[192.0.2.1]", "[IPv6:2001:db8::1]"),
		Data: c.Data,
	}
}

func (c *parityPlayCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.check(); err != nil {
		return mistakes{err}
	}
	snap, cfg, err := c.load(ctx, c.DNS)
	if err != nil {
		return err
	}
	// Waiting is no decision; it would only take time here.
	spec := *snap.Spec()
	spec.Limits.SoftErrors = 0
	if snap, err = policy.Compile(&spec); err != nil {
		return mistakes{err}
	}
	pipe := parity.NewPipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &smtpd.Server{
		Hostname: cfg.Hostname, Policy: func() *policy.Snapshot { return snap }, Resolver: newResolver(cfg, nil), Keep: smtpd.Nowhere{},
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxUnknownRecipients: 1 << 30,
		ShutdownTimeout: time.Second, Inquire: c.inquire(cfg.Hostname),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, pipe) }()
	var res parity.Result
	if c.Trace != "" {
		res, err = c.replay(ctx, pipe.Dial)
	} else {
		res, err = c.compare(ctx, &spec, pipe.Dial)
	}
	cancel()
	err = errors.Join(err, <-served)
	if err != nil {
		if errors.Is(err, parity.ErrXClient) {
			err = fmt.Errorf("%w; add this machine to smtpd_authorized_xclient_hosts of the service at %s", err, c.Primary)
		}
		return err
	}
	if err := res.Print(out); err != nil {
		return err
	}
	if res.Differences > 0 {
		return errors.New("the primary and the policy decide differently")
	}
	return nil
}

// inquire asks the primary what the policy has it asked. A trace can't be asked;
// with one, nobody objects.
func (c *parityPlayCmd) inquire(hostname string) func(*envelope.Envelope, int64) smtpd.Asker {
	if c.Primary == "" {
		return func(*envelope.Envelope, int64) smtpd.Asker { return agreement{} }
	}
	client := relay.New(relay.Options{Hostname: hostname, Metrics: metrics.New(prometheus.NewRegistry()), Routes: map[string]relay.Route{
		defaultRoute: {Name: defaultRoute, Address: c.Primary, TLS: relay.TLSOff, XClient: true, MaxAsking: c.Parallel},
	}})
	return inquire(client, func(string) string { return defaultRoute })
}

// agreement accepts every recipient.
type agreement struct{}

func (agreement) Ask(context.Context, *envelope.Recipient) (envelope.Reply, error) {
	return envelope.NewReply(250, "2.1.5", "Ok"), nil
}
func (agreement) Close() {}

// compare asks the primary.
func (c *parityPlayCmd) compare(ctx context.Context, spec *policy.Spec, local parity.Dialer) (parity.Result, error) {
	o := parity.Options{
		Primary: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", c.Primary)
		},
		Local: local, Material: parity.NewMaterial(spec, c.material()),
		Sessions: c.Sessions, Seed: c.Seed, Parallel: c.Parallel,
	}
	if c.Record == "" {
		return parity.Run(ctx, o)
	}
	f, err := os.OpenFile(c.Record, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return parity.Result{}, mistakes{fmt.Errorf("--record: %w", err)}
	}
	defer f.Close()
	b := bufio.NewWriter(f)
	trace := parity.NewRecorder(b, c.Primary)
	o.Observe = func(_ int, s parity.Session, _ *parity.Difference, primary parity.Transcript) bool {
		trace.Add(s, primary)
		return false
	}
	res, err := parity.Run(ctx, o)
	if err == nil {
		err = errors.Join(trace.Close(), b.Flush(), f.Sync())
	}
	return res, err
}

func (c *parityPlayCmd) replay(ctx context.Context, local parity.Dialer) (parity.Result, error) {
	f, err := os.Open(c.Trace)
	if err != nil {
		return parity.Result{}, mistakes{fmt.Errorf("--trace: %w", err)}
	}
	defer f.Close()
	res, err := parity.Replay(ctx, bufio.NewReader(f), local)
	if err != nil && ctx.Err() == nil {
		err = mistakes{fmt.Errorf("%s: %w", c.Trace, err)}
	}
	return res, err
}

func (c *parityPlayCmd) check() error {
	if _, err := envelope.ParseMailbox(c.Data); c.Data != "" && err != nil {
		return fmt.Errorf("--data: %q: %w", c.Data, err)
	}
	if c.Record != "" && c.Trace != "" {
		return errors.New("--record and --trace: record from a primary")
	}
	if c.Sessions < 1 || c.Parallel < 1 {
		return errors.New("--sessions and --parallel: at least 1")
	}
	return nil
}
