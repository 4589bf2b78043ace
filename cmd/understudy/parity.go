package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/smtpd"
)

type parityCmd struct {
	File     string   `arg:"" optional:"" help:"The policy; without it, that of the configuration."`
	Conf     string   `name:"config" short:"c" placeholder:"FILE" help:"The configuration, for its policy and its DNS servers (default: ${config} when no policy is named)."`
	Primary  string   `required:"" placeholder:"HOST:PORT" help:"The primary; it must allow XCLIENT from here."`
	Sessions int      `default:"1000" placeholder:"N" help:"How many sessions to play (default: ${default})."`
	Seed     uint64   `default:"1" placeholder:"S" help:"Which sessions: the same seed and policy give the same (default: ${default})."`
	Parallel int      `default:"4" placeholder:"N" help:"Sessions at once (default: ${default})."`
	DNS      []string `placeholder:"IP:PORT" help:"DNS servers to ask instead of the configured ones; they should be the primary's."`
	Domain   []string `placeholder:"NAME" help:"Domains to name as senders' besides a few that exist and some that don't."`
	Data     string   `placeholder:"RECIPIENT" help:"Send messages too, to this recipient only. Without it no message is ever sent."`
}

func (parityCmd) Help() string {
	return `Plays the same sessions against the live primary and against the local policy, and compares the codes of every reply. The sessions are drawn from the policy itself (its domains, recipients, networks and tables) and from a grammar of what clients write. Whom a session speaks for is stated by XCLIENT, so the primary must list this machine in smtpd_authorized_xclient_hosts: best on a service of its own, such as in master.cf

    127.0.0.1:2525 inet n - y - - smtpd
        -o smtpd_authorized_xclient_hosts=127.0.0.1

and never on one that others can reach.

Prints each kind of difference once, as the shortest session that shows it, and at last "sessions N, decisions M, differences D". The exit code is 1 when there is a difference.

Examples:

    understudy parity policy.json --primary 127.0.0.1:2525
    understudy parity policy.json --primary 127.0.0.1:2525 --sessions 100000 --seed 7 --data test@example.org`
}

// clients and names that a DNS without our doing knows, or doesn't. The first
// of each should be welcome everywhere.
func (c *parityCmd) material() parity.Material {
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

func (c *parityCmd) Run(ctx context.Context, out io.Writer) error {
	snap, cfg, err := c.load()
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
		Hostname: cfg.Hostname, Policy: func() *policy.Snapshot { return snap }, Resolver: newResolver(cfg, nil), Spool: nowhere{},
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxUnknownRecipients: 1 << 30,
		ShutdownTimeout: time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, pipe) }()
	res, err := parity.Run(ctx, parity.Options{
		Primary: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", c.Primary)
		},
		Local: pipe.Dial, Material: parity.NewMaterial(&spec, c.material()),
		Sessions: c.Sessions, Seed: c.Seed, Parallel: c.Parallel,
	})
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

func (c *parityCmd) load() (*policy.Snapshot, *config.Config, error) {
	cfg := config.Default()
	if c.Conf != "" || c.File == "" {
		if c.Conf == "" {
			c.Conf = defaultConfig
		}
		var err error
		if cfg, err = config.Load(c.Conf); err != nil {
			return nil, nil, mistakes{err}
		}
	}
	if c.File == "" {
		c.File = cfg.Policy.File
	}
	if len(c.DNS) > 0 {
		cfg.DNS.Servers = c.DNS
	}
	if c.Data != "" {
		if _, err := envelope.ParseMailbox(c.Data); err != nil {
			return nil, nil, mistakes{fmt.Errorf("--data: %q: %w", c.Data, err)}
		}
	}
	if c.Sessions < 1 || c.Parallel < 1 {
		return nil, nil, mistakes{errors.New("--sessions and --parallel: at least 1")}
	}
	snap, _, err := readPolicy(c.File)
	if err != nil {
		return nil, nil, mistakes{err}
	}
	return snap, cfg, nil
}

// nowhere takes messages and forgets them.
type nowhere struct{}

func (nowhere) Ready(int64) error { return nil }
func (nowhere) Begin(e *envelope.Envelope) (smtpd.Draft, error) {
	e.ID = "nowhere"
	return nowhere{}, nil
}
func (nowhere) Write(b []byte) (int, error)  { return len(b), nil }
func (nowhere) ID() string                   { return "nowhere" }
func (nowhere) Commit(context.Context) error { return nil }
func (nowhere) Abort()                       {}
