package config

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

const manHead = `.\" Generated from the table in internal/config; edit that, then run "go generate ./cmd/understudy".
.TH UNDERSTUDY.CONF 5 "" "Understudy" "File formats"
.SH NAME
understudy.conf \- configuration of the backup MX Understudy
.SH SYNOPSIS
.B /etc/understudy/understudy.toml
.SH DESCRIPTION
The file is TOML: keys and values, gathered in sections. Two things have no
default: where accepted mail goes, and whom it is accepted for. That of a
secondary which follows its primary:
.PP
.RS
.nf
hostname = "mx2.example.org"

[primary]
address = "mx1.example.org:25"

[sync]
domains = ["example.org"]
.fi
.RE
.PP
And
.IR /etc/understudy/publish.toml ,
on the primary:
.PP
.RS
.nf
[publish]
address = "mx1.example.org:9626"

[policy]
postfix = "/etc/postfix"
.fi
.RE
.PP
A key that does not exist or a value that does not fit stops the start: every
mistake is named with its line, its column and what to do. File names that do
not begin with a slash are read against the directory of the configuration.
.B understudy config
prints the configuration in force,
.B understudy config \-n
only what differs from the defaults.
.PP
A change to this file takes effect at the next restart; domains, stale_after
and max_recipients of [push] at the next SIGHUP (systemctl reload), too. The
files that it names (policy, certificate) are watched, and read again on SIGHUP
as well.
.PP
A duration is a number with a unit, ms, s, m, h or d: "10s", "14d", "1h30m". A
size is a number of bytes, or one with B, KiB, MiB, GiB or TiB: "64MiB".
`

const manTail = `.SH EXIT STATUS
.B understudy serve
ends with 2 when this file or the policy file can't be read or has mistakes,
and with 1 when something around it is in the way.
.SH SEE ALSO
.BR understudy (8),
.BR postconf (5)
`

// Man writes the manual page understudy.conf(5).
func Man(w io.Writer) error {
	b := bufio.NewWriter(w)
	b.WriteString(manHead)
	fmt.Fprintf(b, ".SH GLOBAL KEYS\nThese come before the first section.\n")
	manKeys(b, "")
	for _, name := range sections() {
		header := "[" + name + "]"
		if slices.Contains(repeated, name) {
			header = "[[" + name + "]]"
		}
		fmt.Fprintf(b, ".SH \"SECTION %s\"\n%s\n", header, Roff(sectionDoc[name]))
		manKeys(b, name)
	}
	manLimits(b)
	b.WriteString(manTail)
	return b.Flush()
}

func manKeys(w io.Writer, section string) {
	for _, s := range settings {
		if s.section != section {
			continue
		}
		def := s.def
		if def == "" {
			def = "none"
		}
		fmt.Fprintf(w, ".TP\n.B %s\n%s\n.br\nType: %s. Default: %s.\n",
			Roff(s.name), Roff(s.doc), Roff(s.kind.name), Roff(def))
	}
}

// Roff escapes one paragraph for a manual page; `words` become bold.
func Roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(text)
	parts := strings.Split(text, "`")
	for i := range parts {
		if i%2 == 1 {
			parts[i] = `\fB` + parts[i] + `\fR`
		}
	}
	text = strings.Join(parts, "")
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
