package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Texts of Postfix's error transport.
const (
	errorTransport = "error:"
	retryTransport = "retry:"
	noErrorText    = "Address is undeliverable"
)

// transportOf is the primary's transport for an address if it refuses mail,
// "error:text" or "retry:text", and the table that says so. As in
// trivial-rewrite(8): the class' transport, then transport_maps except for virtual
// aliases, then relocated_maps.
func (e *eval) transportOf(a *address) (transport, table string) {
	s, addrs := e.snap, &e.snap.spec.Addresses
	switch a.class {
	case classVirtualAlias:
	case classDefault:
		transport = addrs.DefaultTransport
	default:
		transport = addrs.class(a.class).Transport
	}
	if h := e.find.transport(s.transport, a); h.ok() && a.class != classVirtualAlias {
		v := e.find.value(h)
		channel, nexthop, _ := strings.Cut(v, ":")
		if was, _, _ := strings.Cut(transport, ":"); channel == "" {
			channel = was // the class' transport, with another next hop
		}
		transport, table = channel+":"+nexthop, h.t.name
	}
	if h := e.find.recipient(s.relocated, a); h.ok() {
		return errorTransport + "5.1.6 User has moved to " + e.find.value(h), h.t.name
	}
	return transport, table
}

// undeliverable refuses an address whose transport is one of errors.
func (e *eval) undeliverable(a *address, class, kind string) (st status, decided bool) {
	transport, table := e.transportOf(a)
	if e.find.failed {
		return e.lookupFailed(kind), true
	}
	rule := Rule{Stage: e.stage, Kind: kind, Table: table, Key: a.key()}
	code, digit := 550, "5"
	text, failing := strings.CutPrefix(transport, errorTransport)
	if !failing {
		code, digit = 450, "4"
		if text, failing = strings.CutPrefix(transport, retryTransport); !failing {
			return dunno, false
		}
	}
	if text == "" {
		text = noErrorText
	}
	dsn := digit + ".1.1"
	if class == classSender {
		dsn = digit + ".1.0"
	}
	dsn, text = splitDSN(dsn, text)
	if e.inDoubt(a, class) { // an alias would not go there
		code = 450
	}
	return e.reject(rule, code, fixDSN(dsn, class), rejectedText(a.raw, class, text)), true
}

// rejectLoginMismatch refuses a sender that has an owner: nobody logs in here.
func rejectLoginMismatch(e *eval, c *check) status {
	if e.sender.raw == "" {
		return dunno
	}
	h := e.find.recipient(e.snap.senderLogin, &e.sender)
	if !h.ok() {
		return dunno
	}
	rule := Rule{Stage: e.stage, Kind: c.kind.name, Table: h.t.name, Key: h.key()}
	return e.reject(rule, 553, "5.7.1", "<"+e.sender.raw+">: Sender address rejected: not logged in")
}

func rejectPipelining(e *eval, c *check) status {
	if !e.pipelined {
		return dunno
	}
	return e.reject(e.ruleOf(c), 503, "5.5.0", e.whatRejected("Improper use of SMTP command pipelining"))
}

// permitNakedIP permits a HELO name that is a bare address.
func permitNakedIP(e *eval, c *check) status {
	name := e.client.Helo
	if !e.heloGiven || strings.Trim(name, "0123456789.:") != "" {
		return dunno
	}
	if !envelope.ValidHostaddr(name) {
		return e.reject(e.ruleKey(c, name), e.snap.spec.Codes.InvalidHostname, "5.5.2",
			rejectedText(name, classHelo, "invalid ip address"))
	}
	return e.permit(e.ruleKey(c, name))
}

// Pipelined notes that the client sent a command before the reply to the one
// before it where the protocol forbids that: always without EHLO, and after
// commands such as HELO, EHLO, DATA, VRFY and QUIT with it. It applies to the rest
// of the session; reject_unauth_pipelining checks it.
func (s *Session) Pipelined() { s.pipelined = true }

// MindsPipelining says that a list of the policy, or the server by its order,
// asks for what Pipelined notes.
func (s *Snapshot) MindsPipelining() bool {
	minds := func(list []Restriction) bool {
		return slices.ContainsFunc(list, func(r Restriction) bool { return r.Kind == "reject_unauth_pipelining" })
	}
	l := &s.spec.Restrictions
	for _, list := range [][]Restriction{l.Client, l.Helo, l.Sender, l.Relay, l.Recipient, l.Data, l.EndOfData} {
		if minds(list) {
			return true
		}
	}
	for _, class := range s.spec.Classes {
		if minds(class) {
			return true
		}
	}
	return s.spec.Protocol.ForbidPipelining
}

// Command rewrites a command line, without its line end, as
// smtpd_command_filter wants it, before anything else looks at it.
func (s *Session) Command(line string) string {
	if len(s.snap.commandFilter) == 0 {
		return line
	}
	if h := s.find.one(s.snap.commandFilter, line, "", netip.Addr{}, true); h.ok() {
		return s.find.value(h)
	}
	return line
}

// Forbids says that the server hangs up on a command by its first word, unless
// it is one of SMTP.
func (s *Session) Forbids(verb string) bool { return s.hasWord(s.snap.forbidden, verb) }

// NoOp says that a command is answered as NOOP is, and does nothing.
func (s *Session) NoOp(verb string) bool { return s.hasWord(s.snap.noop, verb) }

// hasWord says that a list, of which the first match decides, holds a word.
func (s *Session) hasWord(list []matchItem, word string) bool {
	if len(list) == 0 {
		return false
	}
	word = strings.ToLower(word)
	for i := range list {
		m := &list[i]
		if m.name == word || m.table != nil && s.find.one([]*dict{m.table}, word, "", netip.Addr{}, true).ok() {
			return !m.not
		}
	}
	return false
}

// Protocol returns the settings of the SMTP server itself, besides its Limits. The
// caller must not change it.
func (s *Snapshot) Protocol() *Protocol { return &s.spec.Protocol }
