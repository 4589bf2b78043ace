package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/policy/exim"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

type importEximCmd struct {
	Program string   `placeholder:"FILE" help:"Exim's program (default: exim4 or exim, on the path or in /usr/sbin)."`
	Config  string   `placeholder:"FILE" help:"Exim's configuration file (default: its own choice)."`
	Output  string   `required:"" short:"o" placeholder:"FILE" help:"Where to write the snapshot."`
	Choose  []string `placeholder:"ITEM=CHOICE" sep:"none" help:"What to do instead of an item that isn't replicated, one of the options that the report shows for it; an item is named \"parameter: element\"."`
	All     bool     `help:"Report what is replicated, too, item by item."`
	JSON    bool     `name:"json" help:"Print the report as JSON."`
}

func (importEximCmd) Help() string {
	return `Reads what "exim -bP config" prints, with the files, directories and databases that its lists and routers ask, writes the policy as a snapshot for [policy] file, and prints the parity report: what the secondary decides exactly as the primary, what it can't, and what it does instead. Run it as root: Exim shows others less.

Nothing that the configuration would have Exim run is ever run: ${run}, ${perl}, ${readsocket} and their like are named, with file and line.

Where an item can't be replicated, the report shows what is done instead and what else you can choose, by --choose:

    defer    who comes to it gets 451
    ask      ask the live primary at RCPT; 450 while it can't be asked
    ignore   its statement decides nothing

Examples:

    understudy policy import exim -o /var/lib/understudy/policy.json
    understudy policy import exim --config /etc/exim4/exim4.conf -o policy.json --all`
}

func (c *importEximCmd) Run(ctx context.Context, out io.Writer) error {
	for _, s := range c.Choose {
		if !strings.Contains(s, "=") {
			return mistakes{fmt.Errorf("--choose: %q lacks a \"=\"", s)}
		}
	}
	spec, report, err := exim.Import(ctx, exim.Source{Program: c.Program, Config: c.Config, Choices: fidelity.ParseChoices(c.Choose), Rows: exim.Databases, Directory: exim.Directories})
	if err != nil {
		return importError(ctx, err)
	}
	return writeImport(out, c.Output, spec, &report, c.JSON, c.All)
}
