package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

type policyCmd struct {
	Import  policyImportCmd  `cmd:"" help:"Make a policy of the primary's own configuration."`
	Check   policyCheckCmd   `cmd:"" help:"Check a policy file."`
	Explain policyExplainCmd `cmd:"" help:"Print what a client would be told at each stage, and by which rule."`
	Preset  policyPresetCmd  `cmd:"" help:"Print a policy file for a primary of a known kind, to be completed."`
	Learn   policyLearnCmd   `cmd:"" help:"Take recipients from a log, for a primary that gives no list."`
	Status  policyStatusCmd  `cmd:"" help:"Show the policy that came from the primary: version, age, trouble."`
	Diff    policyDiffCmd    `cmd:"" help:"Show what changed between two versions."`
	Pending policyPendingCmd `cmd:"" help:"Show the mass deletion that waits for a decision."`
	Approve policyApproveCmd `cmd:"" help:"Let a mass deletion take effect."`
	Reject  policyRejectCmd  `cmd:"" help:"Refuse a mass deletion: what was deleted stays."`
}

type policyCheckCmd struct {
	File string `arg:"" help:"The policy: TOML, or a snapshot."`
	JSON bool   `name:"json" help:"What is in it, as JSON."`
}

func (policyCheckCmd) Help() string {
	return `Reads a policy with all files that it names, as serve would. If it is right, says what is in it; else prints every mistake with file, line and column, and ends with exit code 2.

A small policy:

    domains = ["example.org"]
    recipients = ["alice@example.org", "@example.net"]

Examples:

    understudy policy check policy.toml
    understudy policy check new.toml && mv new.toml /etc/understudy/policy.toml`
}

type policyPresetCmd struct {
	Name string `arg:"" optional:"" help:"The kind; without it, all are listed."`
}

func (policyPresetCmd) Help() string {
	return `For primaries that can't be read: what is documented of their rules, with the sources. Write your domains into it.

Examples:

    understudy policy preset
    understudy policy preset microsoft365 > /etc/understudy/policy.toml`
}

func (c *policyPresetCmd) Run(out io.Writer) error {
	if c.Name == "" {
		_, err := fmt.Fprintln(out, strings.Join(handwritten.Presets(), "\n"))
		return err
	}
	text, known := handwritten.Preset(c.Name)
	if !known {
		return mistakes{fmt.Errorf("%q is no preset; choose one of %s", c.Name, strings.Join(handwritten.Presets(), ", "))}
	}
	_, err := out.Write(text)
	return err
}

// checked is what is in a policy that is right.
type checked struct {
	Domains    int    `json:"domains"`
	Recipients int    `json:"recipients"`
	Rules      int    `json:"rules"`
	Digest     string `json:"digest"`
}

func (c *policyCheckCmd) Run(out io.Writer) error {
	s, _, err := handwritten.Load(c.File, nil)
	if err != nil {
		return mistakes{err}
	}
	stats := s.Stats()
	in := checked{stats.Domains, stats.Recipients, stats.Rules, inforce.Digest(s)}
	return render(out, c.JSON, in, nil, func(out io.Writer, in checked) error {
		_, err := fmt.Fprintf(out, "%s is right: domains %d, recipients %d, rules %d, %s\n", c.File, in.Domains, in.Recipients, in.Rules, in.Digest)
		return err
	})
}

// policyFlags say which policy to play sessions against.
type policyFlags struct {
	File string `arg:"" optional:"" help:"The policy; without it, that of the configuration."`
	Conf string `name:"config" short:"c" placeholder:"FILE" help:"The configuration, for its policy and its DNS servers (default: ${config} when no policy is named)."`
}

// load reads the policy, and the configuration. dns are servers in place of the configured.
func (f policyFlags) load(ctx context.Context, dns []string) (snap *policy.Snapshot, cfg *config.Config, err error) {
	cfg = config.Default()
	if f.Conf != "" || f.File == "" {
		if cfg, err = loadConfig(cmp.Or(f.Conf, defaultConfig)); err != nil {
			return nil, nil, err
		}
	}
	if len(dns) > 0 {
		cfg.DNS.Servers = dns
	}
	snap, err = snapshotOf(ctx, cfg, cmp.Or(f.File, cfg.Policy.File))
	return snap, cfg, err
}

// snapshotOf reads a policy file, or without one asks the daemon for the policy
// from the primary.
func snapshotOf(ctx context.Context, cfg *config.Config, file string) (*policy.Snapshot, error) {
	if file == "" {
		daemon := daemonOf(cfg)
		defer daemon.Close()
		return daemon.Snapshot(ctx)
	}
	snap, _, err := handwritten.Load(file, nil)
	if err != nil {
		return nil, mistakes{err}
	}
	return snap, nil
}
