// Command understudy is a backup MX that decides as its primary would, keeps
// what it accepts, and hands it over when the primary is back.
//
// This package parses the command line and wires the rooms together; it
// decides nothing itself. Exit codes: 0 done; 1 something at run time is in the
// way (state directory, port, no daemon); 2 the command line, the
// configuration or the policy is wrong, one line for each mistake; 3 a list that
// was pushed waits for the operator.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/suite"
)

//go:generate go run . man ../../docs/man

// defaultConfig is where a configuration is looked for without -c.
const defaultConfig = "/etc/understudy/understudy.toml"

// publishConfig is where the primary's publisher has it.
const publishConfig = "/etc/understudy/publish.toml"

const about = `A backup MX that gives every sender the answer your primary would have given, keeps what it accepts, and hands it over when the primary is back.`

// cli is the command line; kong reads the tags.
type cli struct {
	Serve    serveCmd    `cmd:"" help:"Run the backup MX."`
	Demo     demoCmd     `cmd:"" help:"Play an outage on this machine; it leaves nothing behind."`
	Watch    watchCmd    `cmd:"" help:"Watch the primary, the queue and its drain."`
	Queue    queueCmd    `cmd:"" help:"Look at the mail that waits, and settle it by hand."`
	Greylist greylistCmd `cmd:"" help:"Look at whom greylisting remembers."`
	Fleet    fleetCmd    `cmd:"" help:"List the secondaries that share the database."`
	Outage   outageCmd   `cmd:"" help:"Look back at the primary's outages."`
	StandIn  standInCmd  `cmd:"" help:"Stand in for the primary for a planned time, although it may be up."`
	Page     pageCmd     `cmd:"" help:"Print the address of the operator's page, with its token."`
	DNSBL    dnsblCmd    `cmd:"" name:"dnsbl" help:"Show the policy's DNS lists, and whether they are well."`
	Policy   policyCmd   `cmd:"" help:"Import, check, explain and compare policies; approve deletions."`
	Parity   parityCmd   `cmd:"" help:"Prove that the policy decides as the live primary does."`
	Setup    setupCmd    `cmd:"" help:"Set up a pair from scratch."`
	Doctor   doctorCmd   `cmd:"" help:"Look for what is wrong with the set-up, and say what mends it."`
	Join     joinCmd     `cmd:"" help:"On the secondary: pair with the primary that printed an invitation."`
	Publish  publishCmd  `cmd:"" help:"On the primary: offer its policy to the secondaries."`
	Invite   inviteCmd   `cmd:"" help:"On the primary: invite a secondary."`
	Peers    peersCmd    `cmd:"" help:"On the primary: list the paired secondaries, their policy and queue."`
	Revoke   revokeCmd   `cmd:"" help:"On the primary: end a secondary's access."`
	Push     pushCmd     `cmd:"" help:"Push a list of recipients; manage the lists that were pushed."`
	Rotate   rotateCmd   `cmd:"" help:"Replace the publisher's keys, or a secondary's; the pairing stays."`
	Config   configCmd   `cmd:"" help:"Print the configuration in force, every key with its meaning."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
	Man      manCmd      `cmd:"" hidden:"" help:"Write the manual pages."`

	Complete completeCmd `cmd:"" hidden:"" help:"Complete a command line, for a shell."`
}

// confFlag is the flag -c of each command that reads the configuration.
type confFlag struct {
	Conf string `name:"config" short:"c" placeholder:"FILE" default:"${config}" help:"The configuration file (default: ${config})."`
}

func (f confFlag) load() (*config.Config, error) { return loadConfig(f.Conf) }

// mistakes are errors in what the operator wrote: exit code 2, one a line.
type mistakes struct{ error }

func (m mistakes) Unwrap() error { return m.error }

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parser, err := newParser(&cli{})
	if err != nil {
		panic(err) // the tags above are wrong
	}
	cmd, err := parser.Parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "understudy: %v; see %s --help\n", err, commandPath(err))
		return 2
	}
	cmd.BindTo(ctx, (*context.Context)(nil))
	cmd.BindTo(os.Stdout, (*io.Writer)(nil))
	err = cmd.Run()
	var wrong mistakes
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errStaged):
		fmt.Fprintln(os.Stderr, "understudy:", err)
		return 3
	case errors.As(err, &wrong):
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(os.Stderr, line)
		}
		return 2
	case errors.Is(err, syscall.EPIPE):
		return 0 // the reader of our output has seen enough
	}
	for line := range strings.SplitSeq("understudy: "+err.Error(), "\n") {
		fmt.Fprintln(os.Stderr, printable(line)) // it may quote a peer
	}
	return 1
}

func newParser(c *cli) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("understudy"),
		kong.Description(about),
		kong.Vars{"config": defaultConfig, "publish": publishConfig, "suites": strings.Join(suite.Names(), ", ")},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Help(func(o kong.HelpOptions, c *kong.Context) error {
			if c.Selected() == nil && c.Command() == "" {
				return overview(c.Stdout, c.Model.Node)
			}
			return kong.DefaultHelpPrinter(o, c)
		}),
	)
}

// overview is the help of the program itself: the commands, on one screen.
func overview(out io.Writer, n *kong.Node) error {
	fmt.Fprintln(out, "A backup MX that decides as its primary; understudy <command> --help says more.")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range n.Children {
		if !c.Hidden && c.Name != "version" { // which people find untold, and a screen has 24 lines
			fmt.Fprintf(w, "  %s\t%s\n", c.Name, c.Help)
		}
	}
	return w.Flush()
}

// commandPath names the command whose help fits a mistake on the command line.
func commandPath(err error) string {
	var pe *kong.ParseError
	if errors.As(err, &pe) && pe.Context != nil && pe.Context.Selected() != nil {
		return pe.Context.Selected().FullPath()
	}
	return "understudy"
}
