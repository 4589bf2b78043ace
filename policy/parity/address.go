package parity

import (
	"strings"
)

// path spells a mailbox, mostly as it is, else in one of the ways that clients
// and tests of relays have.
func (d draw) path(mailbox string) string {
	at := strings.LastIndexByte(mailbox, '@')
	local, domain := mailbox[:max(0, at)], mailbox[at+1:]
	if at < 0 {
		local, domain = mailbox, d.often(d.m.Senders)
	}
	if d.focus != mixed || d.IntN(4) > 0 || d.m.Sober {
		return "<" + local + "@" + domain + ">"
	}
	f := addressForms[d.IntN(len(addressForms))]
	ext := string(d.m.Delimiters[d.IntN(len(d.m.Delimiters))])
	s := strings.NewReplacer("{l}", local, "{d}", domain, "{L}", strings.ToUpper(local), "{D}", strings.ToUpper(domain),
		"{+}", ext, "{o}", d.pick(d.m.Domains), "{s}", d.often(d.m.Senders)).Replace(f)
	if d.oneIn(10) && !strings.Contains(s, "  ") {
		s = strings.Replace(s, "@", " @ ", 1)
	}
	return s
}

// AddressForms returns the ways to write an address that sessions use.
func AddressForms() []string { return addressForms }

// addressForms are ways to write local ({l}, {L} in capitals) at domain ({d},
// {D}). {o} is one of our domains, {s} a sender's, {+} an address delimiter.
var addressForms = []string{
	"<{L}@{d}>", "<{l}@{D}>", "<{L}@{D}>",
	"<{l}{+}ext@{d}>", "<{l}{+}a{+}b@{d}>", "<{L}{+}Ext@{D}>", "<{+}{l}@{d}>", "<{l}{+}@{d}>", "<{l}+x@{d}>", "<{l}-x@{d}>",
	"<owner-{l}@{d}>", "<{l}-request@{d}>", "<owner-{l}{+}x@{d}>",
	`<"{l}"@{d}>`, `<"{l}{+}x"@{d}>`, `<"{l} x"@{d}>`, `<"\{l}"@{d}>`, `<\{l}@{d}>`, `<"">`, `<""@{d}>`, `<"{l}@{d}"@{o}>`, `<"{l}@{d}">`, `<"{l}"x@{d}>`,
	`<"a\"b"@{d}>`, `<"{l}%{d}"@{o}>`, `<"{l}`,
	"<@{s}:{l}@{d}>", "<@{s},@{o}:{l}@{d}>", "<@{s}@{o}:{l}@{d}>", "<@:{l}@{d}>",
	"<{l}%{d}@{o}>", "<{l}%{s}@{o}>", "<{l}%{d}>", "<{d}!{l}@{o}>", "<{s}!{l}@{o}>", "<{d}!{l}>", "<{l}@{d}@{o}>", "<{l}@{s}@{d}>", "<{l}%{s}@{d}>",
	"<{s}!{l}@{d}>", "<{l}%{d}%{s}@{o}>", "<{l}%@{d}>", "<%{d}@{o}>", "<!{l}@{o}>",
	"<{l}@{d}.>", "<{l}@{d}..>", "<{l}@.{d}>", "<{l}@>", "<@{d}>", "<{l}>", "{l}@{d}", "{l}", "<{l}@{d}", "{l}@{d}>", "< {l}@{d} >", "<<{l}@{d}>>", "<{l}@{d}>x", "<{l}@{d}> x",
	"<{l}(comment)@{d}>", "<{l}@{d}(comment)>", "<(comment){l}@{d}>", "<{l}@{d}(comment>", "<{l} x@{d}>", "<{l}@{d} x>",
	"<{l}@[127.0.0.1]>", "<{l}@[192.0.2.1]>", "<{l}@[IPv6:::1]>", "<{l}@[IPv6:2001:db8::1]>", "<{l}@[::1]>", "<{l}@127.0.0.1>", "<{l}@[127.0.0.1>", "<{l}@[x]>",
	"<{l}@[{d}]>", "<{l}@#16909060>",
	"<-{l}@{d}>", "<{l}-@{d}>", "<.{l}@{d}>", "<{l}.@{d}>", "<{l}..x@{d}>", "<{l},x@{d}>", "<{l}@{d},x@{d}>", "<{l};x@{d}>", "<{l}:x@{d}>", "<{l}/x@{d}>", "<{l}'x@{d}>", "<{l}=x@{d}>",
	"<{l}@-{d}>", "<{l}@{d}->", "<{l}@x_y.{d}>", "<{l}@host>", "<{l}@sub.{d}>", "<{l}@a.b.{d}>", "<{l}@1.2.3.4>", "<{l}@1.{d}>", "<{l}@x..{d}>",
	"<{l}\xc3\xa9@{d}>", "<{l}\xff@{d}>", "<{l}@b\xc3\xbccher.{d}>", "<{l}@b\xc3\xbccher.example>", "<{l}@xn--bcher-kva.example>",
	"<{l}\t@{d}>", "<{l}@\t{d}>",
	"<aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@{d}>",
	"<{l}@aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.{d}>",
	"<postmaster@{d}>", "<PostMaster@{d}>", "<>", "< >", "", "<@>", "<{l}@{d}\\>", "<\\>", "<\"{l}\\\"@{d}>",
}
