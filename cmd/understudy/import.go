package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

type policyImportCmd struct {
	Postfix importPostfixCmd `cmd:"" help:"Read a Postfix's configuration on the machine where it runs."`
	Exim    importEximCmd    `cmd:"" help:"Read an Exim's configuration on the machine where it runs."`
}

type importPostfixCmd struct {
	ConfigDir string   `placeholder:"DIR" help:"Postfix's configuration directory (default: that of the default instance)."`
	Suite     string   `placeholder:"NAME" help:"The mail suite that it belongs to: one of ${suites}."`
	Prefix    string   `placeholder:"COMMAND" help:"The command that runs a command where Postfix lives, such as \"docker exec -i NAME\" or \"ssh root@mx1\"."`
	Root      string   `placeholder:"DIR" help:"The directory that is Postfix's root: that of a container's file system, or of a chroot."`
	Host      []string `placeholder:"ADDRESS=ADDRESS" sep:"none" help:"How a server is reached from here that a table names, such as mysql=127.0.0.1:13306."`
	Service   string   `placeholder:"NAME" help:"The service of master.cf to stand in for (default: the one on port 25)."`
	Output    string   `required:"" short:"o" placeholder:"FILE" help:"Where to write the snapshot."`
	Choose    []string `placeholder:"ITEM=CHOICE" sep:"none" help:"What to do instead of an item that isn't replicated, one of the options that the report shows for it; an item is named \"parameter: element\"."`
	Filter    []string `placeholder:"ENDPOINT=PROGRAM:FILE" sep:"none" help:"Which filter listens at an endpoint of main.cf and where its configuration is, such as inet:localhost:8891=opendkim:/etc/opendkim.conf; programs: amavis, clamav-milter, clamsmtpd, dspam, opendkim, opendmarc, policyd-spf, postgrey, rspamd, spamass-milter, spampd."`
	List      []string `placeholder:"TABLE=COMMAND" sep:"none" help:"A shell command that prints the entries of a table that can't be read otherwise: key, tab, value. Or, for mysql, pgsql and sqlite, query: and a SELECT of key and value, which is put to the table's own database."`
	Ask       string   `placeholder:"FILE" help:"Recipients, one a line, to ask the tables about that can't be listed; they need not exist."`
	All       bool     `help:"Report what is replicated, too, item by item."`
	JSON      bool     `name:"json" help:"Print the report as JSON."`
}

func (importPostfixCmd) Help() string {
	return `Reads main.cf and master.cf as Postfix itself does (through postconf), with every table that they name, writes the policy as a snapshot for [policy] file, and prints the parity report: what the secondary decides exactly as the primary, what it can't, and what it does instead.

Tables of recipients that can't be listed (tcp, socketmap, queries that compute) are left out, and unknown recipients are then put off, not refused. Name their entries by --list, or recipients to ask them about by --ask; "understudy publish" goes on asking.

The report begins with the domains and recipients that can't be known, and what mail that concerns. Mistakes in Postfix's own files follow, then what isn't replicated, item by item.

Where an item can't be replicated, the report shows what is done instead and what else you can choose, by --choose:

    ignore           as if it weren't there
    defer            who would be accepted gets 450
    soften           refusals that follow become 450: it might have permitted
    pass             clients that get there pass all of postscreen
    ask              ask the live primary; 450 while it can't be asked
    ask-else-ignore  ask the live primary; ignore while it can't be asked
    ask-else-soften  ask the live primary; soften while it can't be asked

The primary is asked at RCPT, in the client's name, about whoever would be accepted, and its refusal is passed on. For that it has to list the secondary in smtpd_authorized_xclient_hosts: without XCLIENT it would judge the secondary, so it can't be asked. A question takes ten seconds at most. Where the item might have permitted, ask softens refusals that follow, too. A policy service is asked twice about a message: at RCPT, and when it is relayed.

If anything can't be read, nothing is written, each mistake is named with its parameter and table, and the exit code is 2.

Examples:

    understudy policy import postfix -o /var/lib/understudy/policy.json
    understudy policy import postfix --suite mailcow -o policy.json
    understudy policy import postfix --prefix 'docker exec -i mail' --host mysql=127.0.0.1:13306 -o policy.json
    understudy policy import postfix --config-dir /etc/postfix-in -o policy.json --json > report.json
    understudy policy import postfix -o policy.json --list 'mysql:/etc/postfix/aliases.cf=query:SELECT address, goto FROM alias'
    understudy policy import postfix -o policy.json --choose 'smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:10023=defer'`
}

func (c *importPostfixCmd) Run(ctx context.Context, out io.Writer) error {
	for _, s := range slices.Concat(c.Choose, c.List, c.Filter, c.Host) {
		if !strings.Contains(s, "=") {
			return mistakes{fmt.Errorf("--choose, --list, --filter and --host: %q lacks a \"=\"", s)}
		}
	}
	p := config.Policy{Suite: c.Suite, Postfix: c.ConfigDir, PostfixPrefix: strings.Fields(c.Prefix), PostfixRoot: c.Root, PostfixHosts: c.Host, PostfixList: c.List}
	if err := p.FillPreset(); err != nil {
		return mistakes{err}
	}
	commands, queries := postfix.ParseLists(p.PostfixList)
	rows := newProgress("row", 0)
	src := postfix.Source{
		Host: publisher.HostOf(&p), ConfigDir: p.Postfix, Service: c.Service, Lister: counted{p: rows},
		Choices: fidelity.ParseChoices(c.Choose), Commands: commands, Queries: queries, Filters: c.Filter,
	}
	if p.Preset != nil {
		src.Usual = fidelity.ParseChoices(p.Preset.Choose)
	}
	if c.Ask != "" {
		src.Learned = &postfix.Learned{}
		list := lister.Source{Type: "file", Name: "--ask", Path: c.Ask}
		if err := list.List(ctx, func(key, _ string) error { src.Ask = append(src.Ask, key); return nil }); err != nil {
			return mistakes{err}
		}
	}
	spec, report, err := postfix.Import(ctx, src)
	rows.end()
	if err != nil {
		return importError(ctx, err)
	}
	return writeImport(out, c.Output, spec, &report, c.JSON, c.All)
}

// writeImport writes an import's policy, and prints its report.
func writeImport(out io.Writer, path string, spec *policy.Spec, report *fidelity.Report, asJSON, all bool) error {
	spec.NotReplicated = report.Lacking()
	snap, err := policy.Compile(spec)
	if err != nil {
		return mistakes{err}
	}
	if err := service.ReplaceFile(path, snap.Encode()); err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, *report)
	}
	if err := report.Print(out, all); err != nil {
		return err
	}
	stats := snap.Stats()
	_, err = fmt.Fprintf(out, "\n%s: domains %d, recipients %d, rules %d, %s\n",
		path, stats.Domains, stats.Recipients, stats.Rules, inforce.Digest(snap))
	return err
}

// counted counts what databases list.
type counted struct {
	postfix.Databases
	p *progressLine
}

func (c counted) Rows(ctx context.Context, db *postfix.Database, query string, row func(columns []string) error) error {
	return c.Databases.Rows(ctx, db, query, func(columns []string) error {
		c.p.step(1)
		return row(columns)
	})
}

// importError tells an interrupted import from a wrong configuration.
func importError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; nothing is written")
	}
	return mistakes{err}
}
