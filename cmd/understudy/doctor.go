package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/handwritten"
	"github.com/understudy-mx/understudy/queue/postgres"
)

type doctorCmd struct {
	Conf      string       `name:"config" short:"c" placeholder:"FILE" help:"The configuration file (default: ${config}, else ${publish})."`
	Secondary []netip.Addr `placeholder:"IP" help:"On the primary: where a secondary hands mail over from; without it, where the paired ones asked from."`
	JSON      bool         `name:"json" help:"As JSON."`
}

func (doctorCmd) Help() string {
	return `Looks at a set-up from outside and says what is wrong, how it was seen, and what mends it: on the secondary at MX records, names and certificates (with MTA-STS and DANE), the door, the primary's trust, DNS lists, clock, disk and the queue's database; on the primary at what Postfix lets the secondaries do. It changes nothing and sends no mail.

Exit status: 0 when nothing is wrong (there may be warnings), 1 when something is or can't be known.`
}

func (c *doctorCmd) Run(ctx context.Context, out io.Writer) error {
	if c.Conf == "" {
		c.Conf = defaultConfig
		if _, err := os.Stat(c.Conf); errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat(publishConfig); err == nil {
				c.Conf = publishConfig
			}
		}
	}
	cfg, err := loadConfig(c.Conf)
	if err != nil {
		return err
	}
	exam := doctor.Exam{StateDir: cfg.StateDir, MinFree: int64(cfg.Queue.MinFree), DNS: resolver.Servers(cfg.DNS.Servers)}
	var findings []doctor.Finding
	if cfg.IsPublisher {
		findings, err = c.onPrimary(ctx, cfg, exam)
	} else {
		findings, err = c.onSecondary(ctx, cfg, exam)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(out, findings)
	} else {
		err = printFindings(out, findings)
	}
	if err == nil && doctor.Ill(findings) {
		err = errors.New("something is wrong: see above")
	}
	return err
}

func printFindings(out io.Writer, findings []doctor.Finding) error {
	w := bufio.NewWriter(out)
	for _, f := range findings {
		if f.Severity == doctor.OK {
			fmt.Fprintf(w, "%-8s %s\n", f.Severity, f.Reason)
			continue
		}
		fmt.Fprintf(w, "%-8s %s  %s\n", f.Severity, f.Check, f.Subject)
		for _, line := range []struct{ head, text string }{{"", f.Reason}, {"seen: ", f.Evidence}, {"mend: ", f.Remedy}} {
			if line.text != "" {
				fmt.Fprintf(w, "         %s%s\n", line.head, line.text)
			}
		}
	}
	return w.Flush()
}

func (c *doctorCmd) onSecondary(ctx context.Context, cfg *config.Config, e doctor.Exam) ([]doctor.Finding, error) {
	if len(c.Secondary) > 0 {
		return nil, mistakes{errors.New("--secondary is for the primary; here it is this machine")}
	}
	e.Hostname, e.Doors = cfg.Hostname, cfg.SMTP.Listen
	for _, p := range append([]config.Primary{cfg.Primary}, routed(cfg)...) {
		e.Behind = append(e.Behind, p.Behind...)
		e.Primaries = append(e.Primaries, doctor.Primary{Address: p.Address, TLS: p.TLS, TLSName: p.TLSName, XClient: p.ByXClient(), Proxy: p.ByProxy()})
	}
	daemon := daemonOf(cfg)
	defer daemon.Close()
	now, err := daemon.Status(ctx)
	e.Daemon = doctor.Daemon{Err: err, Unpaired: cfg.Policy.File != "", Held: now.Held, Quarantined: now.Quarantined, Damaged: now.Damaged, Filters: tryFilters(ctx, cfg)}
	for _, f := range now.Filters {
		if f.Idle {
			e.Daemon.Idle = append(e.Daemon.Idle, f.Name+" for "+f.For)
		}
	}
	if err == nil {
		beside(ctx, daemon, &e.Daemon)
	}
	var files []string
	if cfg.Policy.File != "" {
		_, files, _ = handwritten.Load(cfg.Policy.File, nil) // a mistake in it is seen below
	}
	e.Push = pushOf(ctx, cfg, operator.Pushed(daemon), files)
	e.Spool = examineSpool(ctx, cfg, daemon)
	if err == nil && !e.Daemon.Unpaired {
		s, err := daemon.Policy(ctx)
		e.Daemon.Policy, e.Daemon.Staged, e.Daemon.Problem = s.State, s.Staged, s.Error
		switch {
		case err != nil: // not paired
			e.Daemon.Policy, e.Daemon.Problem = "none", err.Error()
		case s.Alarm == "":
			e.Daemon.Problem = s.Notice
		}
	}
	snap, err := snapshotOf(ctx, cfg, cfg.Policy.File)
	if err != nil {
		e.Hosts = cfg.Sync.Domains // all that is known without a policy
		return e.Run(ctx, progress()), nil
	}
	e.Zones = snap.DNSLists()
	e.Domains, e.Hosts = domainsOf(snap.Spec())
	return e.Run(ctx, progress()), nil
}

// beside asks a daemon for what it watches by itself: the DNS lists and the parity.
func beside(ctx context.Context, daemon operator.Daemon, d *doctor.Daemon) {
	if lists, err := daemon.Lists(ctx); err == nil { // else it is of an earlier version
		for _, l := range lists {
			if l.Aside {
				d.SetAside = append(d.SetAside, l.Zone)
			}
		}
	}
	if r, err := daemon.Parity(ctx, false); err == nil {
		d.Decided, d.Unexplained = r.Same+r.Different, r.Unexplained
	}
	if s, err := daemon.Asked(ctx); err == nil {
		d.Everybody = s.Everybody
	}
}

// examineSpool asks the database itself, and the daemon for the others; nil when the
// queue is in a directory.
func examineSpool(ctx context.Context, cfg *config.Config, daemon operator.Daemon) *doctor.Spool {
	if cfg.Queue.Store != storePostgres {
		return nil
	}
	s := &doctor.Spool{OneMachine: cfg.Queue.Durability == oneMachine}
	own, err := spoolOf(cfg, cfg.Hostname, nil)
	if err == nil {
		var found postgres.Server
		found, err = own.Examine(ctx)
		s.Unproven, s.Superuser, s.Standbys = found.Unproven, found.Superuser, found.Standbys
	}
	s.Err = err
	view, _ := daemon.Fleet(ctx) // a daemon that doesn't answer is a finding already
	for _, m := range view.Members {
		if !m.Alive && m.Name != view.Self {
			s.Unheard = append(s.Unheard, m.Name)
		}
		if m.Differs {
			s.Differing = append(s.Differing, m.Name)
		}
	}
	return s
}

// progress shows what is looked at on a terminal.
func progress() func(check string) {
	if !isTerminal(os.Stderr) {
		return nil
	}
	return func(check string) { fmt.Fprintf(os.Stderr, "\r\x1b[Klooking at: %s\r", check) }
}

func notReplicated(r *fidelity.Report) (items []doctor.Gap) {
	if r == nil {
		return nil // a policy file is followed as it is
	}
	for _, it := range r.Items {
		if it.Class == fidelity.NotReplicated {
			items = append(items, doctor.Gap{What: it.ID() + ": " + it.Why, Remedy: it.Remedy})
		}
	}
	return items
}

func routed(cfg *config.Config) (all []config.Primary) {
	for _, r := range cfg.Routes {
		all = append(all, r.Primary)
	}
	return all
}

// domainsOf are the domains that take mail from outside, and the primary's own
// host names, which may do so.
func domainsOf(s *policy.Spec) (domains, hosts []string) {
	a := &s.Addresses
	if s.ACL != nil { // Exim's lists don't tell the two apart
		for _, d := range a.Relay.Domains {
			if d == "localhost" || strings.EqualFold(d, s.ACL.Hostname) {
				hosts = append(hosts, d)
			} else {
				domains = append(domains, d)
			}
		}
		return domains, hosts
	}
	return slices.Concat(a.VirtualAliases.Domains, a.VirtualMailbox.Domains, a.Relay.Domains), a.Local.Domains
}

func (c *doctorCmd) onPrimary(ctx context.Context, cfg *config.Config, e doctor.Exam) ([]doctor.Finding, error) {
	p := &doctor.Publisher{}
	var err error
	switch cfg.Policy.Kind() {
	case "postfix":
		if p, err = examinePostfix(ctx, publisher.HostOf(&cfg.Policy), cfg.Policy.Postfix); err == nil {
			p.Set = setPostfix(&cfg.Policy)
		}
	case "exim":
		p.Exim, err = examineExim(ctx, publisher.EximOf(&cfg.Policy))
	}
	if err != nil { // the rest can be examined without it
		p = &doctor.Publisher{Away: err}
	}
	p.Secondaries = c.Secondary
	client := publisherOf(cfg)
	defer client.Close()
	peers, err := client.Peers(ctx)
	if p.Running = err; err == nil {
		s, _ := client.Status(ctx)
		p.Failing = s.Notice
	}
	files := sourceFiles(cfg)
	if cfg.Policy.File != "" {
		_, more, _ := handwritten.Load(cfg.Policy.File, nil) // a mistake in it is seen below
		files = append(files, more...)
	}
	e.Push = pushOf(ctx, cfg, operator.Pushed(client), files)
	e.Push.Name, _, _ = net.SplitHostPort(cfg.Publish.Address)
	for _, q := range peers {
		peer := doctor.Peer{Name: q.Name, Seen: q.Polled}
		if q.Report != nil {
			peer.Problem = q.Report.Health.Problem
		}
		p.Peers = append(p.Peers, peer)
		if a, err := netip.ParseAddr(q.Address); err == nil && len(c.Secondary) == 0 {
			p.Secondaries = append(p.Secondaries, a)
		}
	}
	r, err := publisher.Check(ctx, cfg)
	if p.Unread = err; err == nil {
		e.Zones = r.Snapshot.DNSLists()
		p.Gaps = notReplicated(r.Report)
		unit := unitOf(ctx, "understudy-publish")
		p.Guarded = guarded(&cfg.Policy, r.Snapshot.Spec(), unit)
		switch {
		case cfg.Policy.Kind() == "exim":
			p.Guarded = append(p.Guarded, closedTo(unit, r.Files, eximRemedy)...)
		case cfg.Policy.Kind() == "postfix" && publisher.HostOf(&cfg.Policy).Local():
			p.Guarded = append(p.Guarded, closedTo(unit, r.Files, postfixRemedy)...)
		}
	}
	return e.RunPublisher(ctx, p, progress()), nil
}

// setPostfix says how main.cf gets a value, where that Postfix lives.
func setPostfix(p *config.Policy) func(parameter, value string) string {
	set := func(parameter, value string) string { return fmt.Sprintf("%s = %s", parameter, value) }
	switch {
	case p.Preset != nil && p.Preset.Main != "":
		main := p.Preset.Main
		if at := slices.Index(p.PostfixPrefix, "-i"); at >= 0 && at+1 < len(p.PostfixPrefix) { // it may be called otherwise
			main = strings.Replace(main, " restart "+p.Preset.Containers[0].Name, " restart "+p.PostfixPrefix[at+1], 1)
		}
		return func(parameter, value string) string { return "put `" + set(parameter, value) + "` into " + main }
	case len(p.PostfixPrefix) > 0:
		return func(parameter, value string) string {
			return "put `" + set(parameter, value) + "` where the container keeps its main.cf, as one that is changed inside goes with it; then " + shellWords(append(slices.Clone(p.PostfixPrefix), "postfix", "reload"))
		}
	case p.PostfixRoot != "":
		return func(parameter, value string) string {
			return "put `" + set(parameter, value) + "` into " + filepath.Join(p.PostfixRoot, p.Postfix, "main.cf") + ", and have the Postfix there reload it"
		}
	case p.Postfix != "/etc/postfix":
		return func(parameter, value string) string {
			return shellWords([]string{"postconf", "-c", p.Postfix, "-e", set(parameter, value)}) + " && " + shellWords([]string{"postfix", "-c", p.Postfix, "reload"})
		}
	}
	return nil
}

// examinePostfix reads what a doctor has to know of a Postfix.
func examinePostfix(ctx context.Context, h *host.Host, dir string) (*doctor.Publisher, error) {
	p := &doctor.Publisher{Postconf: map[string]string{}, ReadFile: h.ReadFile}
	text, err := hostCommand(ctx, h, "postconf", "-c", dir, "-x")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, " =")
		p.Postconf[name] = strings.TrimSpace(value)
	}
	services, err := hostCommand(ctx, h, "postconf", "-c", dir, "-M")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(services) {
		f := strings.Fields(line) // service, type, private, unprivileged, chroot, wakeup, limit, command
		p.Screened = p.Screened || len(f) > 7 && f[1] == "inet" && f[7] == "postscreen"
	}
	p.Lookup = func(ctx context.Context, table, key string) (string, bool, error) {
		value, err := hostCommand(ctx, h, "postmap", "-c", dir, "-q", key, table)
		if said := (*hostError)(nil); errors.As(err, &said) && said.status == 1 && said.text == "" {
			return "", false, nil
		}
		return strings.TrimSpace(value), err == nil, err
	}
	return p, nil
}

// hostError is a program's failure where Postfix lives.
type hostError struct {
	name, text string
	status     int
}

func (e *hostError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.name, e.status, e.text)
}

// hostCommand runs a program where Postfix lives, for what it prints.
func hostCommand(ctx context.Context, h *host.Host, argv ...string) (string, error) {
	const most = 4 << 20
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out, said bytes.Buffer
	readErr, err := h.Run(ctx, host.Program{Argv: argv, Stderr: &said}, func(r io.Reader) error {
		_, err := io.Copy(&out, io.LimitReader(r, most))
		return err
	})
	var exit *host.ExitError
	switch {
	case errors.As(err, &exit):
		err = &hostError{argv[0], strings.TrimSpace(said.String()), exit.Status}
	case err != nil:
		err = fmt.Errorf("%s: %w", argv[0], err)
	}
	return out.String(), cmp.Or(err, readErr)
}

// command runs a program for what it prints.
func command(ctx context.Context, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(exit.Stderr))
	}
	return string(out), err
}
