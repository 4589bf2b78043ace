package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/understudy-mx/understudy/internal/config"
)

type manCmd struct {
	Dir string `arg:"" help:"Directory for the pages."`
}

func (c *manCmd) Run() error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	pages, err := manPages()
	if err != nil {
		return err
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(c.Dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// manPages makes the manual pages from the table of keys and the command line.
func manPages() (map[string][]byte, error) {
	var conf, cmd bytes.Buffer
	if err := config.Man(&conf); err != nil {
		return nil, err
	}
	parser, err := newParser(&cli{})
	if err != nil {
		return nil, err
	}
	manCommands(&cmd, parser.Model.Node)
	return map[string][]byte{"understudy.conf.5": conf.Bytes(), "understudy.8": cmd.Bytes()}, nil
}

const manHead = `.\" Generated from the command line's own help; edit that, then run "go generate ./cmd/understudy".
.TH UNDERSTUDY 8 "" "Understudy" "System administration"
.SH NAME
understudy \- backup MX that decides as its primary would
.SH SYNOPSIS
.B understudy
.I command
.RI [ options ]
.SH DESCRIPTION
`

const manTail = `.SH SIGNALS
Of
.BR "understudy serve" :
.TP
.BR SIGTERM ", " SIGINT
Stop: no new connections, messages that are being received may finish within
shutdown_timeout, nothing accepted is lost.
.TP
.B SIGHUP
Read the policy file and the certificate again, and from the configuration
domains, stale_after and max_recipients of [push]; what else has changed there
waits for a restart. A bad file is refused and logged; the last good one stays
in force.
.PP
.B understudy publish
stops likewise, and on SIGHUP reads all its sources again, and those keys.
.SH ENVIRONMENT
.TP
.B STATE_DIRECTORY
The default of state_dir; systemd sets it.
.TP
.B CREDENTIALS_DIRECTORY
Where systemd's LoadCredential= puts its files.
.TP
.BR LISTEN_FDS ", " NOTIFY_SOCKET ", " WATCHDOG_USEC
Socket activation, readiness and watchdog, as systemd defines them.
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
Something at run time is in the way: the state directory can't be written, is
in use by another instance or comes from a newer version; a port is taken; no
daemon answers.
.TP
.B 2
The command line, the configuration or the policy is unreadable or wrong. Each
mistake has a line, with file, line and column.
.SH FILES
.TP
.I /etc/understudy/understudy.toml
The configuration, understudy.conf(5).
.TP
.I /etc/understudy/publish.toml
That of the primary's publisher.
.TP
.I /var/lib/understudy/sync
The pairing with the primary, our key, and the policy that came last.
.TP
.I /var/lib/understudy/publish
On the primary: the publisher's keys, the paired secondaries, the policy published last and its control socket.
.TP
.I /var/lib/understudy/queue
The queue.
.TP
.I /var/lib/understudy/control.sock
The socket through which the commands ask the daemon; its owner's and root's alone.
.SH SEE ALSO
.BR understudy.conf (5),
.BR postfix (1)
`

func manCommands(w io.Writer, root *kong.Node) {
	fmt.Fprint(w, manHead, config.Roff(about), "\n.SH COMMANDS\n")
	for _, n := range root.Leaves(true) {
		manCommand(w, n)
	}
	io.WriteString(w, manTail)
}

func manCommand(w io.Writer, n *kong.Node) {
	fmt.Fprintf(w, ".SS \"%s\"\n", config.Roff(n.FullPath()+summary(n)))
	io.WriteString(w, config.Roff(n.Help)+"\n")
	if n.Detail != "" {
		manText(w, n.Detail)
	}
	for _, p := range n.Positional {
		fmt.Fprintf(w, ".TP\n.I %s\n%s\n", config.Roff(p.Name), config.Roff(p.Help))
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			if f.Name != "help" {
				fmt.Fprintf(w, ".TP\n.B %s\n%s\n", config.Roff(flagNames(f)), config.Roff(f.Help))
			}
		}
	}
}

func summary(n *kong.Node) (s string) {
	for _, p := range n.Positional {
		s += " " + p.Summary()
	}
	return s
}

func flagNames(f *kong.Flag) string {
	s := "--" + f.Name
	if !f.IsBool() {
		s += "=" + strings.ToUpper(strings.Trim(f.FormatPlaceHolder(), `"`))
	}
	if f.Short != 0 {
		s = "-" + string(f.Short) + ", " + s
	}
	return s
}

// manText writes paragraphs; what is indented stays as it is.
func manText(w io.Writer, text string) {
	for par := range strings.SplitSeq(text, "\n\n") {
		if strings.HasPrefix(par, " ") {
			fmt.Fprintf(w, ".PP\n.RS\n.nf\n%s\n.fi\n.RE\n", config.Roff(strings.ReplaceAll(par, "\n    ", "\n")[4:]))
			continue
		}
		fmt.Fprintf(w, ".PP\n%s\n", config.Roff(par))
	}
}
