package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// publishFlag is the flag -c of each command that reads a publisher's
// configuration.
type publishFlag struct {
	Conf string `name:"config" short:"c" placeholder:"FILE" default:"${publish}" help:"The publisher's configuration file (default: ${publish})."`
}

func (f publishFlag) load() (*config.Config, error) {
	cfg, err := config.Load(f.Conf)
	if err != nil {
		return nil, mistakes{confError(err, f.Conf, "write one with a section [publish], see understudy.conf(5)")}
	}
	if !cfg.IsPublisher {
		return nil, mistakes{fmt.Errorf("%s: has no section [publish], so it is a secondary's; the primary's publisher needs a file of its own, see understudy.conf(5)", f.Conf)}
	}
	return cfg, nil
}

// ask asks the running publisher.
func (f publishFlag) ask(do func(operator.Publisher) error) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	p := publisherOf(cfg)
	defer p.Close()
	return do(p)
}

func publisherOf(cfg *config.Config) operator.Publisher {
	c := control.Dial(control.SocketPath(publisher.Dir(cfg)))
	c.Program = "understudy publish"
	return operator.Publisher{Client: c}
}

type publishCmd struct {
	publishFlag
	Check bool `help:"Read everything once, say what is in it, which domains a secondary must allow and what it can't replicate, and end."`
	All   bool `help:"With --check: report what is replicated, too, item by item."`
}

func (publishCmd) Help() string {
	return `Runs on the primary, beside Postfix. Reads the policy from its configuration and maps (or from a policy file), adds the recipients of each [[source]], and offers it to the secondaries that are paired by ` + "`understudy invite` and `understudy join`" + `.

Files are read again as soon as they change, other sources are polled. Only what was read completely and without a mistake is published; when a source fails, the last good policy stays, and the log, a metric and the secondaries say so.

With --check the exit code is 1 when secondaries would turn away (4xx) all mail for a domain, because it can't be known that the primary serves it, or who is there.

Secondaries connect by TLS 1.3 and their keys are pinned; no certificate, no password.

Examples:

    understudy publish --check
    systemctl enable --now understudy-publish`
}

func (c *publishCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if c.Check {
		return checkSources(ctx, cfg, c.All, out)
	}
	boundGarbage()
	p, err := newPublication(cfg, newLogger(cfg.Log, os.Stderr))
	if err != nil {
		return err
	}
	return p.run(ctx)
}

func checkSources(ctx context.Context, cfg *config.Config, all bool, out io.Writer) error {
	r, err := publisher.Check(ctx, cfg)
	if err != nil {
		return mistakes{err}
	}
	if r.Report != nil {
		if err := r.Report.Print(out, all); err != nil {
			return err
		}
		if r.Report.HasOptions() {
			fmt.Fprintf(out, "\nTo choose or list: %s under [policy] of %s\n", r.Choosing, cfg.File)
		}
		fmt.Fprintln(out)
	}
	for _, name := range r.Useless {
		fmt.Fprintf(out, "%s adds nobody: the policy lists no recipients in the domains of its addresses\n", name)
	}
	domains := make([]string, 0, 8)
	for _, d := range acceptedDomains(r.Snapshot.Spec()) {
		domains = append(domains, strconv.Quote(d))
	}
	fmt.Fprintf(out, "The secondary's configuration must allow these domains:\n\n    [sync]\n    domains = [%s]\n\n", strings.Join(domains, ", "))
	if tables := domainPatterns(r.Snapshot.Spec()); len(tables) > 0 {
		fmt.Fprintf(out, "Add those that only a pattern names: %s\n\n", strings.Join(tables, ", "))
	}
	stats := r.Snapshot.Stats()
	_, err = fmt.Fprintf(out, "%s is right: domains %d, recipients %d, rules %d, %s\n",
		cfg.File, stats.Domains, stats.Recipients, stats.Rules, inforce.Digest(r.Snapshot))
	return cmp.Or(err, turnedAway(r))
}

// acceptedDomains are those that the policy accepts mail for, sorted.
func acceptedDomains(spec *policy.Spec) []string {
	a := &spec.Addresses
	all := slices.Concat(a.Local.Domains, a.VirtualAliases.Domains, a.VirtualMailbox.Domains, a.Relay.Domains)
	slices.Sort(all)
	return slices.Compact(all)
}

// domainPatterns are the tables that say by patterns which domains are served;
// nobody can list these.
func domainPatterns(spec *policy.Spec) (tables []string) {
	a := &spec.Addresses
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		for _, m := range c.Match {
			name, isTable := strings.CutPrefix(m, "table:")
			if t := spec.Tables[name]; isTable && t != nil && !t.Keyed() && !slices.Contains(tables, name) {
				tables = append(tables, name)
			}
		}
	}
	return tables
}

// turnedAway is an error when the policy puts off all mail for a domain.
func turnedAway(r *publisher.Reading) error {
	var errs []error
	if r.Report != nil {
		for _, list := range r.Report.DomainsUnknown() {
			errs = append(errs, fmt.Errorf("all mail for the domains of %s would be turned away (450): they can't be known", list))
		}
	}
	const most = 20
	domains := fidelity.TurnedAway(r.Snapshot.Spec())
	for n, d := range domains {
		if n == most {
			errs = append(errs, fmt.Errorf("and so would all mail for %d more domains", len(domains)-most))
			break
		}
		errs = append(errs, fmt.Errorf("all mail for %s would be turned away (450): not one of its recipients is known; list or ask the tables named above", d))
	}
	return errors.Join(errs...)
}
