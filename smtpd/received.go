package smtpd

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// received makes our trace field, RFC 5321 §4.4. The client chose its HELO
// name and its PTR: both are cleaned.
func received(hostname string, env *envelope.Envelope, tls bool) string {
	c := &env.Client
	name := c.Name
	if name == "" {
		name = unknown
	}
	helo := c.Helo
	if helo == "" {
		helo = name
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Received: from %s (%s [%s])\r\n", cleanName(helo), cleanName(name), literal(c.Addr))
	if tls {
		version, cipher, _ := strings.Cut(c.TLS, " ")
		fmt.Fprintf(&b, "\t(using %s with cipher %s)\r\n", version, cipher)
	}
	fmt.Fprintf(&b, "\tby %s with %s id %s", hostname, withProtocol(env, tls), env.ID)
	if len(env.To) == 1 {
		fmt.Fprintf(&b, "\r\n\tfor <%s>", env.To[0].Path)
	}
	fmt.Fprintf(&b, "; %s\r\n", env.Received.Format("Mon, 2 Jan 2006 15:04:05 -0700 (MST)"))
	return b.String()
}

// withProtocol is the protocol's name by RFC 3848 and RFC 6531 §4.3. TLS has a
// name only in ESMTP.
func withProtocol(env *envelope.Envelope, tls bool) string {
	p := "ESMTP"
	switch {
	case env.UTF8:
		p = "UTF8SMTP"
	case env.Client.Protocol != "ESMTP":
		return "SMTP"
	}
	if tls {
		p += "S"
	}
	return p
}

// literal is the inside of an address literal, RFC 5321 §4.1.3.
func literal(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return unknown
	case a.Is6():
		return "IPv6:" + a.String()
	}
	return a.String()
}

// cleanName keeps a name from breaking out of its place in the field, and from
// making the line longer than RFC 5322 §2.1.1 allows.
func cleanName(s string) string { return clean(s[:min(len(s), 255)]) }

// ownTraces counts the Received fields that a server of our name put there,
// with the words of received. A message that comes a third time runs in a
// circle; once is no proof: the primary may forward to a domain whose way leads
// through us, too.
func ownTraces(header []byte, hostname string) int {
	n := 0
	for field := range fields(header) {
		name, value, _ := strings.Cut(field, ":")
		if !strings.EqualFold(strings.TrimRight(name, " \t"), "Received") {
			continue
		}
		words := strings.Fields(value)
		for i := range len(words) - 2 {
			if strings.EqualFold(words[i], "by") && strings.EqualFold(words[i+1], hostname) && strings.EqualFold(words[i+2], "with") {
				n++
				break
			}
		}
	}
	return n
}

// headerField is the value of the first field of that name, "" without one.
func headerField(header []byte, want string) string {
	for field := range fields(header) {
		if name, value, _ := strings.Cut(field, ":"); strings.EqualFold(strings.TrimRight(name, " \t"), want) {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fields yields the fields of a header section, unfolded but for their line ends.
func fields(header []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		var field []byte
		for line := range bytes.Lines(header) {
			if len(field) > 0 && line[0] != ' ' && line[0] != '\t' {
				if !yield(string(field)) {
					return
				}
				field = nil
			}
			field = append(field, line...)
		}
		if len(field) > 0 {
			yield(string(field))
		}
	}
}
