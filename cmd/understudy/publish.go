package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/understudy-mx/understudy/internal/config"
)

// publishFlag is the flag -c of each command that reads a publisher's
// configuration.
type publishFlag struct {
	Conf string `name:"config" short:"c" placeholder:"FILE" default:"${publish}" help:"The publisher's configuration file (default: ${publish})."`
}

func (f publishFlag) load() (*config.Config, error) {
	cfg, err := config.Load(f.Conf)
	if err != nil {
		return nil, mistakes{err}
	}
	if !cfg.IsPublisher {
		return nil, mistakes{fmt.Errorf("%s: has no section [publish], so it is a secondary's; the primary's publisher needs a file of its own, see understudy.conf(5)", f.Conf)}
	}
	return cfg, nil
}

type publishCmd struct {
	publishFlag
	Check bool `help:"Read everything once, say what is in it, which domains a secondary must allow and what it can't replicate, and end."`
}

func (publishCmd) Help() string {
	return `Runs on the primary, beside Postfix. Reads the policy from its configuration and maps (or from a policy file), adds the recipients of each [[source]], and offers it to the secondaries that are paired by ` + "`understudy invite` and `understudy join`" + `.

Files are read again as soon as they change, other sources are polled. Only what was read completely and without a mistake is published; when a source fails, the last good policy stays, and the log, a metric and the secondaries say so.

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
		return checkSources(ctx, cfg, out)
	}
	boundGarbage()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	p, err := newPublisher(cfg, newLogger(cfg.Log, os.Stderr))
	if err != nil {
		return err
	}
	return p.run(ctx, hup)
}

func checkSources(ctx context.Context, cfg *config.Config, out io.Writer) error {
	learned, err := loadLearned(cfg)
	if err != nil {
		return err
	}
	r, err := readSources(ctx, cfg, learned, nil, nil)
	if err != nil {
		return mistakes{err}
	}
	if r.report != nil {
		if err := r.report.Print(out); err != nil {
			return err
		}
		if r.report.HasOptions() {
			fmt.Fprintf(out, "\nTo choose or list: postfix_choose = [\"ITEM=CHOICE\", ...], postfix_list = [\"TABLE=COMMAND\", ...] under [policy] of %s\n", cfg.File)
		}
		fmt.Fprintln(out)
	}
	for _, name := range r.useless {
		fmt.Fprintf(out, "%s adds nobody: the policy lists no recipients in the domains of its addresses\n", name)
	}
	domains := make([]string, 0, 8)
	for _, d := range acceptedDomains(r.snapshot.Spec()) {
		domains = append(domains, strconv.Quote(d))
	}
	fmt.Fprintf(out, "The secondary's configuration must allow these domains:\n\n    [sync]\n    domains = [%s]\n\n", strings.Join(domains, ", "))
	stats := r.snapshot.Stats()
	_, err = fmt.Fprintf(out, "%s is right: domains %d, recipients %d, rules %d, %s\n",
		cfg.File, stats.Domains, stats.Recipients, stats.Rules, digest(r.snapshot))
	return err
}
