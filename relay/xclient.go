package relay

import (
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// maxCommand is RFC 5321 §4.5.3.1.4's command line, without CRLF. XCLIENT_README
// holds clients to it.
const maxCommand = 510

// xclient returns the XCLIENT command that states who c is, in the attributes
// that the next hop takes, or "" when c is unknown. One command has it all,
// because Postfix takes a second one only from the client that it then believes
// us to be. HELO and REVERSE_NAME give way if the line gets too long: HELO is
// said again by EHLO.
func xclient(c envelope.Client, offered string) string {
	if !c.Addr.IsValid() {
		return ""
	}
	name := hostAttr(c.Name, c.NameStatus)
	addr := c.Addr.Unmap().WithZone("")
	prefix := ""
	if addr.Is6() {
		prefix = "IPV6:"
	}
	helo := xtext(c.Helo)
	if helo == "" || len(helo) > 255 {
		helo = "[UNAVAILABLE]"
	}
	proto := "ESMTP"
	if strings.EqualFold(c.Protocol, "SMTP") {
		proto = "SMTP"
	}
	attrs := []struct{ name, value string }{
		{"NAME", name},
		{"ADDR", prefix + addr.String()},
		{"PORT", "[UNAVAILABLE]"}, // else each connection of a client would need a session of ours
		{"PROTO", proto},
		{"REVERSE_NAME", hostAttr(c.ReverseName, c.ReverseStatus)}, // after NAME, which sets it too
		{"HELO", helo},
	}
	command := "XCLIENT"
	for _, a := range attrs {
		attr := " " + a.name + "=" + a.value
		if strings.Contains(offered, " "+a.name+" ") && len(command)+len(attr) <= maxCommand {
			command += attr
		}
	}
	if command == "XCLIENT" {
		return ""
	}
	return command
}

// hostAttr is the value of NAME or REVERSE_NAME. A name that the next hop would
// not take for one is unavailable; one that nobody has asked for is so for now.
func hostAttr(name string, status envelope.NameStatus) string {
	switch {
	case status == envelope.NameTemp, status == envelope.NameUnasked:
		return "[TEMPUNAVAIL]"
	case status != envelope.NameOK, !isHostname(name):
		return "[UNAVAILABLE]"
	}
	return name
}

// isHostname is as strict as Postfix's valid_hostname: labels of letters,
// digits, "-" and "_", not all numeric.
func isHostname(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 255 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case isDigit(c), c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// xtext encodes s as RFC 3461 §4 has it.
func xtext(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c <= '~' && c != '+' && c != '=' {
			b.WriteByte(c)
		} else {
			b.WriteByte('+')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// heloName is the client's HELO argument as it can go into an EHLO: what
// Postfix would mask when the client itself said it, we mask the same way.
func heloName(helo string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune("<>()\\\";@", r) {
			return '?'
		}
		return r
	}, helo[:min(len(helo), 255)])
}
