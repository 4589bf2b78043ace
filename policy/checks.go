package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func (e *eval) ruleOf(c *check) Rule { return Rule{Stage: e.stage, Kind: c.kind.name} }

func (e *eval) ruleKey(c *check, key string) Rule {
	return Rule{Stage: e.stage, Kind: c.kind.name, Key: key}
}

// whatRejected is the text of a restriction that may be in any list.
func (e *eval) whatRejected(why string) string { return rejectedText(e.what, e.class, why) }

func rejectedText(what, class, why string) string {
	return fmt.Sprintf("<%s>: %s rejected: %s", what, class, why)
}

// namaddr is Postfix's "name[address]".
func (e *eval) namaddr() string { return e.client.Name + "[" + e.client.Addr.String() + "]" }

// known is name, or "" when there is none.
func known(name string) string {
	if strings.EqualFold(name, unknown) {
		return ""
	}
	return name
}

// subjectX return the value that a restriction checks, and its class in a reply.
func subjectHelo(e *eval) (what, class string) { return e.client.Helo, classHelo }

func subjectSender(e *eval) (what, class string) { return e.sender.raw, classSender }

func subjectRcpt(e *eval) (what, class string) { return e.rcpt.raw, classRcpt }

func permitMyNetworks(e *eval, c *check) status {
	if !e.snap.networks.has(&e.find, e.client.Addr, e.client.Name) {
		return dunno
	}
	return e.permit(e.ruleKey(c, e.client.Addr.String()))
}

func rejectUnknownClient(e *eval, c *check) status {
	if e.client.NameStatus == envelope.NameOK {
		return dunno
	}
	code := e.snap.spec.Codes.UnknownClient
	if e.client.NameStatus == envelope.NameTemp {
		code = 450
	}
	addr := e.client.Addr.String()
	return e.reject(e.ruleKey(c, addr), code, "4.7.25",
		"Client host rejected: cannot find your hostname, ["+addr+"]")
}

func rejectUnknownReverse(e *eval, c *check) status {
	if e.client.ReverseStatus == envelope.NameOK {
		return dunno
	}
	code := e.snap.spec.Codes.UnknownClient
	if e.client.ReverseStatus == envelope.NameTemp {
		code = 450
	}
	addr := e.client.Addr.String()
	return e.reject(e.ruleKey(c, addr), code, "4.7.1",
		"Client host rejected: cannot find your reverse hostname, ["+addr+"]")
}

func checkClientAccess(e *eval, c *check) status {
	h := e.find.domain(c.table, e.client.Name)
	if !h.ok() {
		h = e.find.addr(c.table, e.client.Addr)
	}
	if !h.ok() {
		return dunno
	}
	return e.access(c, h, e.namaddr(), classClient)
}

func checkReverseAccess(e *eval, c *check) status {
	h := e.find.domain(c.table, e.client.ReverseName)
	if !h.ok() {
		h = e.find.addr(c.table, e.client.Addr)
	}
	if !h.ok() {
		return dunno
	}
	return e.forbidOK(c, e.access(c, h, e.client.ReverseName, classRevClient))
}

// forbidOK turns a permission by something that anyone can forge into
// Postfix's server error.
func (e *eval) forbidOK(c *check, st status) status {
	if st == ok && !e.discard {
		return e.serverError(e.ruleOf(c))
	}
	return st
}

func checkHeloAccess(e *eval, c *check) status {
	if !e.heloGiven {
		return dunno
	}
	if h := e.find.domain(c.table, e.client.Helo); h.ok() {
		return e.access(c, h, e.client.Helo, classHelo)
	}
	return dunno
}

// rejectHelo applies test to a HELO name; a name in brackets must be an
// address literal and nothing else is asked of it.
func rejectHelo(test func(e *eval, c *check, name string) status) checkFunc {
	return func(e *eval, c *check) status {
		name := e.client.Helo
		if !e.heloGiven {
			return dunno
		}
		if !strings.HasPrefix(name, "[") {
			return test(e, c, name)
		}
		if _, valid := envelope.LiteralAddr(name); valid {
			return dunno
		}
		return e.reject(e.ruleKey(c, name), e.snap.spec.Codes.InvalidHostname, "5.5.2",
			rejectedText(name, classHelo, "invalid ip address"))
	}
}

func invalidHelo(e *eval, c *check, name string) status {
	if n := trimDot(name); envelope.ValidHostname(n) || envelope.ValidHostaddr(n) {
		return dunno
	}
	return e.reject(e.ruleKey(c, name), e.snap.spec.Codes.InvalidHostname, "5.5.2",
		rejectedText(name, classHelo, "Invalid name"))
}

func nonFQDNHelo(e *eval, c *check, name string) status {
	if n := trimDot(name); e.validName(n) && strings.Contains(n, ".") {
		return dunno
	}
	return e.reject(e.ruleKey(c, name), e.snap.spec.Codes.NonFQDN, "5.5.2",
		rejectedText(name, classHelo, "need fully-qualified hostname"))
}

const malformedReply = "Malformed DNS server reply"

func unknownHelo(e *eval, c *check, name string) status {
	rule := e.ruleKey(c, name)
	text := rejectedText(name, classHelo, "Host not found")
	status := dnsNotFound // a name outside of ASCII: Postfix asks for it as it is
	if isASCII(name) {
		status = e.lookups.get(e.ctx, e.lookups.exists(name, false)).status
	}
	switch status {
	case dnsNotFound, dnsMalformed:
		if status == dnsMalformed {
			text = rejectedText(name, classHelo, malformedReply)
		}
		return e.reject(rule, e.snap.spec.Codes.UnknownHostname, "4.7.1", text)
	case dnsTemp:
		return e.tempfail(e.snap.spec.UnknownHeloTempfail, rule, 450, "4.7.1", text)
	}
	return dunno
}

// validName admits an internationalized name only where the client asked for
// SMTPUTF8.
func (e *eval) validName(name string) bool {
	return (isASCII(name) || e.utf8) && envelope.ValidHostname(toASCII(name))
}

func nonFQDN(subject func(*eval) (string, string)) checkFunc {
	return func(e *eval, c *check) status {
		what, class := subject(e)
		if what == "" {
			return dunno
		}
		domain := ""
		if i := strings.LastIndexByte(what, '@'); i >= 0 {
			domain = what[i+1:]
		}
		if strings.HasPrefix(domain, "[") && strings.HasSuffix(domain, "]") {
			return dunno
		}
		if d := trimDot(domain); e.validName(d) && strings.Contains(d, ".") {
			return dunno
		}
		return e.reject(e.ruleKey(c, what), e.snap.spec.Codes.NonFQDN, "4.5.2",
			rejectedText(what, class, "need fully-qualified address"))
	}
}

func checkSenderAccess(e *eval, c *check) status {
	if !e.hasSender {
		return dunno
	}
	var h hit
	if e.sender.raw == "" {
		h = e.find.one([]*dict{c.table}, cmp.Or(e.snap.spec.NullSenderKey, "<>"), "", netip.Addr{}, true)
	} else {
		h = e.find.mailAccess(c.table, &e.sender)
	}
	if !h.ok() {
		return dunno
	}
	return e.access(c, h, e.sender.raw, classSender)
}

func checkRcptAccess(e *eval, c *check) status {
	if !e.hasRcpt {
		return dunno
	}
	h := e.find.mailAccess(c.table, &e.rcpt)
	if !h.ok() {
		return dunno
	}
	st := e.access(c, h, e.rcpt.raw, classRcpt)
	if st == ok && e.rcpt.routed && !e.snap.spec.AllowUntrustedRouting {
		return dunno // too suspicious for an OK
	}
	return st
}

func rejectUnknownSenderDomain(e *eval, c *check) status {
	return e.unknownDomain(c, &e.sender, classSender, "4.1.8")
}

func rejectUnknownRcptDomain(e *eval, c *check) status {
	if !e.hasRcpt {
		return dunno
	}
	return e.unknownDomain(c, &e.rcpt, classRcpt, "4.1.2")
}

func (e *eval) unknownDomain(c *check, a *address, class, dsn string) status {
	if a.domain == "" || a.class.final() || strings.HasPrefix(a.domain, "[") && strings.HasSuffix(a.domain, "]") {
		return dunno
	}
	rule := e.ruleKey(c, a.domain)
	text := rejectedText(a.raw, class, "Domain not found")
	switch status := e.lookups.get(e.ctx, e.lookups.exists(a.domain, true)).status; status {
	case dnsNullMX:
		code, dsn := 550, "4.7.27"
		if class == classRcpt {
			code, dsn = 556, "4.1.10"
		}
		return e.reject(rule, code, dsn,
			rejectedText(a.raw, class, "Domain "+toASCII(a.domain)+" does not accept mail (nullMX)"))
	case dnsNotFound, dnsMalformed:
		if status == dnsMalformed {
			text = rejectedText(a.raw, class, malformedReply)
		}
		return e.reject(rule, e.snap.spec.Codes.UnknownAddress, dsn, text)
	case dnsTemp:
		return e.tempfail(e.snap.spec.UnknownAddressTempfail, rule, 450, dsn, text)
	}
	return dunno
}

// authorized says that the recipient is at one of our domains, and that its
// local-part doesn't route elsewhere.
func (e *eval) authorized() bool {
	if e.rcpt.routed && !e.snap.spec.AllowUntrustedRouting {
		return false
	}
	return e.rcpt.class != classDefault
}

func (e *eval) rejectUnauth(c *check, code int, dsn string) status {
	if !e.hasRcpt || e.authorized() {
		return dunno
	}
	if e.snap.spec.DomainsIncomplete && code >= 500 {
		code, dsn = 454, "4.7.1"
	}
	return e.reject(e.ruleKey(c, e.rcpt.domain), code, dsn, "<"+e.rcpt.raw+">: Relay access denied")
}

func rejectMultiBounce(e *eval, c *check) status {
	limit := 0
	if !e.atRcpt {
		limit = 1
	}
	if !e.hasSender || e.sender.raw != "" || e.rcptCount <= limit {
		return dunno
	}
	return e.reject(e.ruleOf(c), e.snap.spec.Codes.MultiRecipientBounce, "5.5.3",
		e.whatRejected("Multi-recipient bounce"))
}

// unlisted refuses an address at one of our domains that no table lists. Any
// entry of an alias table will do.
func (e *eval) unlisted(a *address, class, kind string) status {
	checked := &e.rcptChecked
	if class == classSender {
		checked = &e.senderChecked
	}
	if *checked {
		return dunno
	}
	*checked = e.warnIfReject == 0
	e.find.unsure = false
	s := e.snap
	aliases := [][]*dict{s.rcptCanonical, nil, s.canonical, s.virtualAlias}
	if class == classSender {
		aliases[1] = s.senderCanonical
	}
	for _, tables := range aliases {
		if h := e.find.recipient(tables, a); h.ok() {
			return e.foundRecipient(h, class)
		}
	}
	if st, decided := e.undeliverable(a, class, kind); decided {
		return st
	}
	return e.unknownUser(a, class, kind)
}

// unknownUser refuses an address that the tables of its class don't list.
func (e *eval) unknownUser(a *address, class, kind string) status {
	var code int
	var where string
	codes := &e.snap.spec.Codes
	switch a.class {
	case classDefault:
		return dunno
	case classLocal:
		switch a.local {
		case "postmaster", "mailer-daemon", e.snap.doubleBounce():
			return dunno
		}
		code, where = codes.UnknownLocalRcpt, "local recipient"
	case classVirtualAlias:
		code, where = codes.UnknownVirtualAlias, "virtual alias"
	case classVirtualMailbox:
		code, where = codes.UnknownVirtualMailbox, "virtual mailbox"
	case classRelay:
		code, where = codes.UnknownRelayRcpt, "relay recipient"
	}
	if tables := e.snap.recipients[a.class]; a.class != classVirtualAlias {
		if len(tables) == 0 {
			return dunno
		}
		if h := e.find.recipient(tables, a); h.ok() {
			return e.foundRecipient(h, class)
		}
		if e.find.failed {
			return e.lookupFailed(kind)
		}
	}
	dsn := "5.1.1"
	switch {
	case a.class == classVirtualAlias: // Postfix's error transport has its own way
		dsn = fixDSN(dsn, class)
	case class == classSender:
		dsn = "5.1.0"
	}
	if doubt := e.inDoubt(a, class); code >= 500 && (doubt || e.snap.spec.Addresses.class(a.class).Incomplete) {
		code = 450
	}
	rule := Rule{Stage: e.stage, Kind: kind, Table: where + " table", Key: a.key()}
	text := "User unknown in " + where + " table"
	if e.snap.spec.HideTableNames {
		text = "User unknown"
	}
	return e.reject(rule, code, dsn, rejectedText(a.raw, class, text))
}

// inDoubt says that the tables asked so far may have the key without our knowing,
// and notes a recipient about whom the primary can be asked.
func (e *eval) inDoubt(a *address, class string) bool {
	if e.find.unsure && class == classRcpt {
		e.unsure = a.key()
	}
	return e.find.unsure || e.snap.spec.Addresses.AliasesIncomplete
}

func (e *eval) foundRecipient(h hit, class string) status {
	if class == classRcpt {
		e.listed = Rule{Stage: Rcpt, Kind: kindListed, Table: h.t.name, Key: h.key()}
	}
	return dunno
}
