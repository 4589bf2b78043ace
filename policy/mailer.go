package policy

import (
	"cmp"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Mailer returns an address as the primary resolves it, and the next hop and
// transport that Postfix's defaults have for its class: the macros that a milter
// gets about it.
func (s *Session) Mailer(m envelope.Mailbox) (addr, host, transport string) {
	if m == (envelope.Mailbox{}) {
		return "", s.snap.MilterSettings().Hostname, "local"
	}
	a := s.snap.resolve(&s.find, m, s.utf8)
	s.find.failed = false
	addr = envelope.Mailbox{Local: a.local, Domain: a.domain}.String()
	addrs := &s.snap.spec.Addresses
	configured, usual := addrs.DefaultTransport, "smtp"
	if a.class != classDefault {
		configured = addrs.class(a.class).Transport
		usual = map[addressClass]string{classLocal: "local", classVirtualAlias: "error", classVirtualMailbox: "virtual", classRelay: "relay"}[a.class]
	}
	transport, host, _ = strings.Cut(configured, ":")
	return addr, cmp.Or(host, a.domain), cmp.Or(transport, usual)
}
