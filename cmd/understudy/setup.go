package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/policy/exim"
)

type setupCmd struct {
	Primary   setupPrimaryCmd   `cmd:"" help:"On the primary, first: write its configuration, let the secondary in, invite it."`
	Secondary setupSecondaryCmd `cmd:"" help:"On the secondary: what setup primary printed."`
}

func (setupCmd) Help() string {
	return `Sets up a pair from scratch: on the primary beside Postfix or Exim, then, with the line that it prints, on the secondary. Each shows what it writes and which commands it runs, asks before it does so, and ends in ` + "`understudy doctor`" + `. What is there already stays as it is, so it can be run again.`
}

// setup asks, shows and does.
type setup struct {
	out io.Writer
	in  *bufio.Reader // nil: nobody to ask
	yes bool
}

func newSetup(out io.Writer, yes bool) *setup {
	s := &setup{out: out, yes: yes}
	if isTerminal(os.Stdin) {
		s.in = bufio.NewReader(os.Stdin)
	}
	return s
}

// may asks whether to do what was shown. Without somebody to ask, --yes decides.
func (s *setup) may(question string) (bool, error) {
	if s.yes {
		return true, nil
	}
	if s.in == nil {
		return false, mistakes{errors.New("there is nobody to ask: say --yes to all of it")}
	}
	fmt.Fprintf(s.out, "%s [Y/n] ", question)
	answer, err := s.in.ReadString('\n')
	if err != nil {
		return false, err
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "" || strings.HasPrefix(answer, "y"), nil
}

// file writes a configuration that isn't there yet.
func (s *setup) file(name, text string) error {
	if old, err := os.ReadFile(name); err == nil {
		state := "is there already, and stays as it is"
		if string(old) == text {
			state = "is as it should be"
		}
		fmt.Fprintf(s.out, "%s %s.\n", name, state)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fmt.Fprintf(s.out, "%s:\n\n%s\n", name, indent(text))
	if ok, err := s.may("Write it?"); !ok || err != nil {
		return errors.Join(err, declined(ok))
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

func declined(ok bool) error {
	if ok {
		return nil
	}
	return errors.New("stopped: nothing more was changed")
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n    ") + "\n"
}

// run runs commands, each as it is shown.
func (s *setup) run(ctx context.Context, commands ...[]string) error {
	for _, c := range commands {
		fmt.Fprintf(s.out, "    %s\n", shellWords(c))
	}
	if ok, err := s.may("Run this?"); !ok || err != nil {
		return errors.Join(err, declined(ok))
	}
	for _, c := range commands {
		if _, err := command(ctx, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// shellWords quotes what a shell would take apart.
func shellWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if quoted[i] = w; w == "" || strings.ContainsAny(w, " \t\n$`'\"\\*?[]{}()<>|&;#~") {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// retry polls until ready, for a process that was started just now.
func retry(ctx context.Context, what string, ready func() error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if err = ready(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}

type setupPrimaryCmd struct {
	publishFlag
	Secondary string `required:"" placeholder:"HOST" help:"The secondary's host name, as its MX record will have it."`
	From      string `placeholder:"IP" help:"Where it hands mail over from (default: the addresses of its name)."`
	Address   string `placeholder:"HOST:PORT" help:"Where secondaries reach this machine (default: the mail server's host name, port 9626)."`
	Postfix   string `placeholder:"DIR" help:"Postfix's configuration directory (default: the one it has)."`
	Exim      string `placeholder:"PROGRAM" help:"Set up beside this Exim, or auto for exim4 or exim where Debian has it (default: where one answers at port 25)."`
	Suite     string `placeholder:"NAME" help:"The mail suite that Postfix belongs to, or none (default: what is found here): one of ${suites}."`
	Yes       bool   `short:"y" help:"Don't ask."`

	host *host.Host   // where Postfix lives
	main string       // where that one's settings go, "" for main.cf
	exim *exim.Source // nil: it is a Postfix
}

func (c *setupPrimaryCmd) Run(ctx context.Context, out io.Writer) error {
	s := newSetup(out, c.Yes)
	keys, name, err := c.primary(ctx, s)
	if err != nil {
		return err
	}
	if c.Address == "" {
		c.Address = net.JoinHostPort(name, "9626")
	}
	from, err := c.from(ctx)
	if err != nil {
		return err
	}
	if err := s.file(c.Conf, fmt.Sprintf("[publish]\naddress = %q   # let the secondary through the firewall\n\n[policy]\n%s", c.Address, keys)); err != nil {
		return err
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	r, err := publisher.Check(ctx, cfg)
	if err != nil {
		return mistakes{err}
	}
	stats := r.Snapshot.Stats()
	known := plural(stats.Recipients, "recipient")
	if c.exim != nil {
		known = "recipients as its routers find them"
	}
	fmt.Fprintf(out, "The primary's policy: %s, %s. `understudy publish --check` tells what a secondary can't replicate.\n", plural(stats.Domains, "domain"), known)
	trust := c.trust
	if c.exim != nil {
		trust = c.trustByProxy
	}
	if err := trust(ctx, s, from); err != nil {
		return err
	}
	if err := s.run(ctx, []string{"systemctl", "enable", "--now", "understudy-publish"}); err != nil {
		return err
	}
	next := []string{"understudy", "setup", "secondary", "--hostname", c.Secondary, "--primary", net.JoinHostPort(name, "25")}
	if c.exim != nil {
		next = append(next, "--identity", "proxy")
	}
	for _, d := range acceptedDomains(r.Snapshot.Spec()) {
		next = append(next, "--domain", d)
	}
	invitation, err := c.invite(ctx, cfg)
	if err != nil {
		return err
	}
	if invitation != "" {
		fmt.Fprintf(out, "\nOn %s, within 15 minutes, this line; then here, `understudy doctor`:\n\n%s\n", c.Secondary, shellWords(append(next, "--join", invitation)))
		return nil
	}
	fmt.Fprintf(out, "%s is paired.\n\n", c.short())
	return (&doctorCmd{Conf: c.Conf, Secondary: from}).Run(ctx, out)
}

// from are the addresses that the secondary hands mail over from.
func (c *setupPrimaryCmd) from(ctx context.Context) ([]netip.Addr, error) {
	if c.From != "" {
		a, err := netip.ParseAddr(c.From)
		if err != nil {
			return nil, mistakes{fmt.Errorf("--from: %q is no address; write one such as 203.0.113.2", c.From)}
		}
		return []netip.Addr{a}, nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", c.Secondary)
	if err != nil {
		return nil, fmt.Errorf("find the secondary: %w; name its address by --from", err)
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, nil
}

// trust lets the secondary in, and lets it name the client.
func (c *setupPrimaryCmd) trust(ctx context.Context, s *setup, from []netip.Addr) error {
	p, err := examinePostfix(ctx, c.host, c.Postfix)
	if err != nil {
		return err
	}
	var commands [][]string
	for _, parameter := range []string{"mynetworks", "smtpd_authorized_xclient_hosts"} {
		value, missing := p.Postconf[parameter], false
		for _, a := range from {
			if in, err := p.Matches(ctx, parameter, a); err != nil {
				return fmt.Errorf("%s: %w", parameter, err)
			} else if !in {
				value, missing = strings.TrimSpace(value+" "+network(a)), true
			}
		}
		if missing {
			commands = append(commands, []string{"postconf", "-c", c.Postfix, "-e", parameter + " = " + value})
		}
	}
	if len(commands) == 0 {
		fmt.Fprintf(s.out, "Postfix trusts %s already.\n", c.Secondary)
		return nil
	}
	fmt.Fprintf(s.out, "Postfix is to take mail from %s without judging it as a sender, and to be told the real one:\n\n", c.Secondary)
	if !c.host.Local() { // what is changed in a container is gone with it
		for _, words := range commands {
			fmt.Fprintf(s.out, "    %s\n", words[len(words)-1])
		}
		where := "Put this where the container keeps its main.cf, as one that is changed inside goes with it, and have Postfix reload it."
		if c.main != "" {
			where = "Put this into " + c.main + "."
		}
		fmt.Fprintf(s.out, "\n%s\n\n", where)
		return nil
	}
	return s.run(ctx, append(commands, []string{"postfix", "-c", c.Postfix, "reload"})...)
}

// network is an address as Postfix's lists of networks have it.
func network(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func (c *setupPrimaryCmd) short() string {
	short, _, _ := strings.Cut(c.Secondary, ".")
	return short
}

// invite returns an invitation's word, "" when the secondary is paired.
func (c *setupPrimaryCmd) invite(ctx context.Context, cfg *config.Config) (token string, err error) {
	client := publisherOf(cfg)
	defer client.Close()
	err = retry(ctx, "the publisher doesn't answer; see journalctl -u understudy-publish", func() error {
		s, err := client.Status(ctx)
		if err == nil && s.Version == 0 {
			err = errors.New(cmp.Or(s.Notice, "nothing is published yet"))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	peers, err := client.Peers(ctx)
	if err != nil || peerNamed(peers, c.short()).Name != "" {
		return "", err
	}
	i, err := client.Invite(ctx, c.short())
	return i.Token, err
}

type setupSecondaryCmd struct {
	confFlag
	Hostname string   `required:"" placeholder:"HOST" help:"This machine's name, as its MX record will have it."`
	Primary  string   `required:"" placeholder:"HOST:PORT" help:"Where accepted mail goes."`
	Domain   []string `required:"" placeholder:"DOMAIN" help:"A domain that the primary may speak for; may be given several times."`
	Identity string   `placeholder:"HOW" enum:"xclient,proxy,none" default:"xclient" help:"How the primary is told the real client: xclient, proxy for an Exim, or none."`
	Join     string   `placeholder:"WORD" help:"The invitation's word."`
	Yes      bool     `short:"y" help:"Don't ask."`
}

func (c *setupSecondaryCmd) Run(ctx context.Context, out io.Writer) error {
	s := newSetup(out, c.Yes)
	var quoted []string
	for _, d := range c.Domain {
		quoted = append(quoted, strconv.Quote(d))
	}
	identity := ""
	if c.Identity != "xclient" {
		identity = fmt.Sprintf("identity = %q\n", c.Identity)
	}
	text := fmt.Sprintf("hostname = %q\n\n[primary]\naddress = %q\n%s\n[sync]\ndomains = [%s]\n", c.Hostname, c.Primary, identity, strings.Join(quoted, ", "))
	fresh, err := config.Parse(c.Conf, []byte(text))
	if err != nil {
		return mistakes{err}
	}
	if _, err := os.Stat(c.Conf); errors.Is(err, fs.ErrNotExist) { // else systemd may listen for us already
		if err := portFree(fresh.SMTP.Listen); err != nil {
			return err
		}
	}
	if err := s.file(c.Conf, text); err != nil {
		return err
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if err := s.run(ctx, []string{"systemctl", "enable", "--now", "understudy.socket", "understudy.service"}); err != nil {
		return err
	}
	daemon := daemonOf(cfg)
	defer daemon.Close()
	if err := retry(ctx, "the daemon doesn't answer; see journalctl -u understudy", func() error {
		_, err := daemon.Status(ctx)
		return err
	}); err != nil {
		return err
	}
	if err := c.pair(ctx, out, daemon); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return (&doctorCmd{Conf: c.Conf}).Run(ctx, out)
}

// pair joins, unless this machine is paired, and waits for the policy.
func (c *setupSecondaryCmd) pair(ctx context.Context, out io.Writer, daemon operator.Daemon) error {
	if s, err := daemon.Policy(ctx); err == nil {
		fmt.Fprintf(out, "This machine is paired with %s.\n", s.Primary)
	} else if c.Join == "" {
		return fmt.Errorf("%w; or give its word by --join", err)
	} else {
		joined, err := daemon.Join(ctx, c.Join)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "Paired with %s as %q. Fingerprint, the same on both sides: %s\n", joined.Address, joined.Name, joined.Fingerprint)
	}
	return retry(ctx, "the policy doesn't come; see understudy policy status", func() error {
		s, err := daemon.Policy(ctx)
		if err == nil && s.State != "fresh" {
			err = fmt.Errorf("its state is %s", s.State)
		}
		return err
	})
}

// portFree says who is where we are to listen, if anybody.
func portFree(listen []string) error {
	for _, at := range listen {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return fmt.Errorf("listen at %s: %w; another mail server may be there: systemctl disable --now postfix exim4", at, err)
		}
		l.Close()
	}
	return nil
}
