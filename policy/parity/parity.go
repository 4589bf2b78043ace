// Package parity proves that two SMTP servers decide alike: it plays the same
// sessions against both and compares the codes of every reply.
//
// A session is one client, stated by XCLIENT, and what it says. Sessions are
// drawn at random, by a seed, from what a policy itself names (its domains,
// recipients, networks and every key of its tables) and from a grammar of what
// clients write: subaddressed, quoted, routed and misspelt addresses, HELO
// names of every kind, parameters good and bad. A session that ends differently
// on the two is made as short as it can be while it still does.
//
// The package judges nothing itself, and sends no message unless it was given a
// recipient. Both servers are reached by a Dialer, so that one of them may be in
// this process.
//
// Invariants: the same Material and seed give the same sessions. A session has a
// connection of its own, since errors add up on one. Nothing but XCLIENT tells
// a server whom it speaks to, so both must allow it.
//
// RFC 5321 (commands and replies), RFC 3463 (status codes); XCLIENT as in
// Postfix's XCLIENT_README.
package parity

import (
	"fmt"
	"net/netip"
	"strings"
)

// Client is whom a session speaks for. A name of "" is one that the DNS says
// does not exist; Temporary names are those that it failed to tell.
type Client struct {
	Addr    netip.Addr
	Name    string // verified
	Reverse string // what the address maps to, verified or not
}

// Temporary stands for a name that the DNS failed to tell.
const Temporary = "[TEMPUNAVAIL]"

func (c Client) String() string {
	return fmt.Sprintf("%s name=%s reverse=%s", c.Addr, orUnavailable(c.Name), orUnavailable(c.Reverse))
}

func orUnavailable(name string) string {
	if name == "" {
		return "[UNAVAILABLE]"
	}
	return name
}

// xclient is the command that states the client.
func (c Client) xclient() string {
	addr := c.Addr.String()
	if c.Addr.Is6() {
		addr = "IPV6:" + addr
	}
	return fmt.Sprintf("XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", addr, orUnavailable(c.Name), orUnavailable(c.Reverse))
}

// Command is a command line and, for DATA, the message that follows a 354, with
// CRLF line ends and without dot-stuffing.
type Command struct {
	Line    string
	Message string
}

// verb is the name under which a command is compared and counted.
func (c Command) verb() string {
	verb, _, _ := strings.Cut(c.Line, " ")
	return strings.ToUpper(verb)
}

// Session is what one client says, in order.
type Session struct {
	Client   Client
	Commands []Command
	// Proxied: the client is stated by the PROXY protocol, and its name is what the
	// DNS says.
	Proxied bool
}

// Reply is a server's reply, as far as it is compared, and its text.
type Reply struct {
	Code     int // 0: the connection ended instead
	Enhanced string
	Text     string
}

func (r Reply) String() string {
	if r.Code == 0 {
		return "no reply, connection closed"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s %s", r.Code, r.Enhanced, r.Text))
}

// same says that two replies decide alike.
func (r Reply) same(o Reply) bool { return r.Code == o.Code && r.Enhanced == o.Enhanced }

// Transcript is a session's replies: to the connection as the stated client,
// to each command and, after an accepted DATA, to the message. It
// is shorter when the server ended the session.
type Transcript []Reply

// Difference is a session that the two servers answer differently.
type Difference struct {
	Session        Session
	Primary, Local Transcript
}

// at is the index of the first replies that differ, or -1.
func at(a, b Transcript) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || !a[i].same(b[i]) {
			return i
		}
	}
	return -1
}

// Where returns the command at which the servers part, and what they say to it.
func (d *Difference) Where() (line string, primary, local Reply) {
	i := at(d.Primary, d.Local)
	if labels := d.Session.labels(d.Primary, d.Local); i >= 0 && i < len(labels) {
		line = labels[i]
	}
	if i >= 0 && i < len(d.Primary) {
		primary = d.Primary[i]
	}
	if i >= 0 && i < len(d.Local) {
		local = d.Local[i]
	}
	return line, primary, local
}

// signature tells kinds of differences apart.
func (d *Difference) signature() string {
	i := at(d.Primary, d.Local)
	labels := d.Session.labels(d.Primary, d.Local)
	verb := "end"
	if i < len(labels) {
		verb = Command{Line: labels[i]}.verb()
	}
	return fmt.Sprint(verb, " ", codes(d.Primary, i), " ", codes(d.Local, i))
}

func codes(t Transcript, i int) string {
	if i < 0 || i >= len(t) {
		return "-"
	}
	return fmt.Sprint(t[i].Code, " ", t[i].Enhanced)
}

// labels say what each reply of the longer transcript answers.
func (s Session) labels(ts ...Transcript) []string {
	labels := []string{"(connect) " + s.Client.String()}
	for _, c := range s.Commands {
		labels = append(labels, c.Line)
		for _, t := range ts {
			if n := len(labels); c.Message != "" && n <= len(t) && t[n-1].Code == 354 {
				labels = append(labels, fmt.Sprintf("(message of %d octets)", len(c.Message)))
				break
			}
		}
	}
	return labels
}

// String prints the session with both servers' replies where they differ.
func (d *Difference) String() string {
	var b strings.Builder
	labels := d.Session.labels(d.Primary, d.Local)
	for i, l := range labels {
		p, q := reply(d.Primary, i), reply(d.Local, i)
		if p == "" && q == "" {
			break
		}
		fmt.Fprintf(&b, "  %s\n", printable(l))
		if i == at(d.Primary, d.Local) {
			fmt.Fprintf(&b, "    primary: %s\n    local:   %s\n", printable(p), printable(q))
			break
		}
		fmt.Fprintf(&b, "    both:    %s\n", printable(p))
	}
	return b.String()
}

func reply(t Transcript, i int) string {
	if i < len(t) {
		return t[i].String()
	}
	return ""
}

func printable(s string) string {
	const width = 400
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, s[:min(len(s), width)])
}
