package parity

import (
	"fmt"
	"strings"
)

// transaction is a whole mail transaction with a message, to the recipient
// that may get one.
func (d draw) transaction() []Command {
	mail := Command{Line: "MAIL FROM:<bob@" + d.often(d.m.Senders) + ">"}
	if d.oneIn(5) {
		mail.Line = "MAIL FROM:<>"
	}
	if d.m.Data != "*" {
		return []Command{mail, {Line: "RCPT TO:<" + d.m.Data + ">"}, d.data()}
	}
	if d.oneIn(3) {
		mail.Line = d.mail()
	}
	all := []Command{mail}
	for range 1 + d.IntN(3) {
		all = append(all, Command{Line: "RCPT TO:<" + d.pick(d.m.Recipients) + ">"})
	}
	if d.m.Sober && d.oneIn(4) {
		for range 6 {
			all = append(all, Command{Line: "RCPT TO:" + d.recipient()})
		}
	}
	return append(all, d.data())
}

// part begins a body of parts: what patterns match is a field of the first, or
// of the message in it.
func (d draw) part(b *strings.Builder) {
	b.WriteString("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n")
	if d.oneIn(2) {
		b.WriteString("Content-Type: message/rfc822\r\n\r\n")
	}
	b.WriteString(strings.Trim(d.pick(d.m.Strings), "\r\n\x00") + "\r\n")
}

// data is DATA with a small message. Its fields hold what patterns match, one
// time in a few.
func (d draw) data() Command {
	var b strings.Builder
	field := func(name, body string) { fmt.Fprintf(&b, "%s: %s\r\n", name, body) }
	if d.oneIn(20) {
		for range d.pick([]string{"x", "xx", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}) {
			field("Received", "from a by b; Thu, 1 Jan 2026 00:00:00 +0000")
		}
	}
	field("From", "Bob <bob@example.com>")
	field("To", "you@example.org")
	field("Message-ID", fmt.Sprintf("<%d@parity.example>", d.Uint64()))
	subject := "understudy parity probe"
	switch {
	case d.oneIn(3):
		subject = d.pick(d.m.Strings)
		if len(d.m.Fields) > 0 {
			subject = d.pick(d.m.Fields)
		}
	case d.oneIn(8):
		subject += "\r\n\t" + d.pick(d.m.Strings)
	}
	subject = strings.Trim(strings.ReplaceAll(subject, "\x00", ""), "\r\n")
	if name, _, ok := strings.Cut(subject, ": "); ok && !strings.ContainsAny(name, " \t\r\n") {
		b.WriteString(subject + "\r\n")
	} else {
		field("Subject", subject)
	}
	if d.oneIn(4) {
		d.part(&b)
	}
	b.WriteString("\r\nThis is a probe. It may be deleted.\r\n")
	if d.oneIn(4) {
		b.WriteString(d.pick(d.m.Strings) + "\r\n")
	}
	if limit := d.m.Size; limit > 0 && limit <= 1<<20 && d.oneIn(3) {
		for b.Len() < int(limit)-2000+d.IntN(4000) {
			b.WriteString("0123456789012345678901234567890123456789\r\n")
		}
	}
	return Command{Line: "DATA", Message: b.String()}
}
