package policy

import (
	"cmp"
	"context"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/mailauth"
)

// Session judges one SMTP session. Its methods follow the session's commands
// and are called one after another, never at once. A new identity of the client
// (XCLIENT, PROXY) is a new Session.
type Session struct {
	snap    *Snapshot
	client  envelope.Client
	find    finder
	lookups lookups

	deferUnanswered bool                  // see DeferUnanswered
	vouching        bool                  // see Vouch
	grey            GreyMemory            // nil: none
	standIn         func(*MilterUse) bool // see StandIns
	milters         []MilterUse           // of the client; nil: not looked up yet

	aclState  aclSession
	screened  screening
	heloGiven bool
	pipelined bool
	started   bool
	stated    bool // the client's names came with it, by XCLIENT
	named     bool // they are filled in

	// Of the mail transaction.
	hasSender, hasRcpt bool
	utf8               bool
	sender, rcpt       address
	rcptCount          int      // accepted
	rcpts              []string // … as they are, if a filter's greylisting asks for them
	discard, hold      bool
	discardRule        Rule
	holdRule           Rule
	content            *content
	milter             *mailauth.Verifier   // what the milters read
	signed             *mailauth.DKIMResult // … and what came of it, once somebody asked
	putOff             []GreyTry            // by greylisting, of the recipient asked about last
	spfPass            map[string]bool      // what policy services said of the sender, by name

	// State that a stage leaves to later ones.
	deferPermit, deferReject                              deferral
	deferPermitClient, deferPermitHelo, deferPermitSender bool
	senderChecked, rcptChecked                            bool
	ask                                                   [Rcpt + 1]Rule // by stage, see askPrimary

	before    address // rcpt and hasRcpt before the last Rcpt
	hadBefore bool
}

// DeferUnanswered has the session answer 450 when a DNS blocklist doesn't answer
// and no earlier rule has decided. By default that counts as not listed, as in
// Postfix. Call it first.
func (s *Session) DeferUnanswered() { s.deferUnanswered = true }

func (s *Session) eval(ctx context.Context, st Stage) *eval {
	s.find.failed = false // earlier failures, as for a word or a network list, don't concern this stage
	return &eval{Session: s, ctx: ctx, stage: st, inTransaction: s.hasSender}
}

// Connect judges the client, and starts looking up its names and the DNS lists
// that will be asked about it. With delayed reject the answer is always
// Permit.
func (s *Session) Connect(ctx context.Context) Verdict {
	s.start(ctx)
	if s.snap.acl != nil {
		return s.aclConnect(ctx)
	}
	e := s.eval(ctx, Connect)
	if s.snap.spec.DelayReject {
		return e.verdict(Connect, dunno)
	}
	s.names(ctx)
	return e.verdict(Connect, e.checkClient())
}

func (s *Session) start(ctx context.Context) {
	if s.started {
		return
	}
	s.started = true
	var qs []question
	if !s.stated {
		qs = append(qs, s.lookups.clientNames(s.client.Addr))
	}
	if !s.snap.networks.hasAddr(s.client.Addr) {
		for _, z := range s.snap.prefetch {
			qs = append(qs, s.lookups.listed(reverseAddr(s.client.Addr)+z))
		}
	}
	s.lookups.start(ctx, qs)
}

// names fills in the client's names, waiting for their look-up. If ctx ends first
// they are unknown for now, and looked up again at the next command.
func (s *Session) names(ctx context.Context) {
	s.start(ctx)
	if s.named {
		return
	}
	if s.stated {
		s.named = true
		if s.client.Name == "" {
			s.client.Name = unknown
		}
		if s.client.ReverseName == "" {
			s.client.ReverseName = unknown
		}
		if s.client.ReverseStatus == envelope.NameUnasked {
			s.client.ReverseStatus = s.client.NameStatus
		}
		return
	}
	a := s.lookups.get(ctx, s.lookups.clientNames(s.client.Addr))
	s.named = a.done != nil
	s.client.Name, s.client.NameStatus = a.name, a.nameStatus
	s.client.ReverseName, s.client.ReverseStatus = a.reverse, a.reverseStatus
}

// Client returns the client with its names, waiting for their look-up.
func (s *Session) Client(ctx context.Context) envelope.Client {
	s.names(ctx)
	return s.client
}

// Helo judges the argument of HELO or EHLO.
func (s *Session) Helo(ctx context.Context, name string) Verdict {
	if s.snap.acl != nil {
		return s.aclHelo(ctx, name)
	}
	before, given := s.client.Helo, s.heloGiven
	s.client.Helo, s.heloGiven = name, true
	e := s.eval(ctx, Helo)
	if s.snap.spec.DelayReject || s.screened.st == refused {
		return e.verdict(Helo, dunno)
	}
	s.names(ctx)
	st := e.checkHelo()
	if st == refused { // then the client has not said it
		s.client.Helo, s.heloGiven = before, given
	}
	return e.verdict(Helo, st)
}

// Mail judges a reverse-path and begins a mail transaction.
func (s *Session) Mail(ctx context.Context, from envelope.ReversePath, p MailParams) Verdict {
	if s.snap.acl != nil {
		return s.aclMail(ctx, from, p)
	}
	s.Reset()
	e := s.eval(ctx, Mail)
	if s.snap.spec.HeloRequired && !s.heloGiven {
		return e.verdict(Mail, e.answer(Rule{Stage: Mail, Kind: kindHeloRequired}, 503, "5.5.1", "Error: send HELO/EHLO first"))
	}
	s.utf8 = p.UTF8
	if !from.Null() {
		s.sender = s.snap.resolve(&s.find, asGiven(from.Mailbox, from.Dot), p.UTF8)
		if s.find.failed {
			e.what = s.sender.raw
			return e.verdict(Mail, e.lookupFailed(kindServerError))
		}
		if s.sender.bad {
			return e.verdict(Mail, e.answer(Rule{Stage: Mail, Kind: kindSyntax}, 501, "5.1.7", "Bad sender address syntax"))
		}
	}
	if limit := s.snap.spec.Limits.MessageSize; limit > 0 && p.Size > limit {
		return e.verdict(Mail, e.answer(Rule{Stage: Mail, Kind: kindSize}, 552, "5.3.4", "Message size exceeds fixed limit"))
	}
	s.hasSender, e.inTransaction = true, true
	st := dunno
	if !s.snap.spec.DelayReject && s.screened.st != refused {
		s.names(ctx)
		st = e.checkMail()
	}
	if st != refused && s.undeclared(s.sender.raw) {
		st = e.answer(Rule{Stage: Mail, Kind: kindStrictUTF8}, 553, "5.6.7", textUndeclared)
	}
	return e.verdict(Mail, st)
}

const textUndeclared = "Must declare SMTPUTF8 to send unicode address"

// undeclared says that strict_smtputf8 refuses an address.
func (s *Session) undeclared(raw string) bool {
	return s.snap.spec.Protocol.StrictUTF8 && !s.utf8 && !isASCII(raw)
}

// Rcpt judges a forward-path, and with delayed reject the client, its HELO
// name and the reverse-path too.
func (s *Session) Rcpt(ctx context.Context, to envelope.ForwardPath) Verdict {
	if s.snap.acl != nil {
		return s.aclRcpt(ctx, to)
	}
	if s.screen(ctx, false); s.screened.st == refused {
		return s.screened.e.verdict(Rcpt, refused)
	}
	e := s.eval(ctx, Rcpt)
	a := s.snap.resolve(&s.find, asGiven(to.Mailbox, to.Dot), s.utf8)
	if s.find.failed {
		e.what = a.raw
		return e.verdict(Rcpt, e.lookupFailed(kindServerError))
	}
	if a.bad && !to.Postmaster() {
		return e.verdict(Rcpt, e.answer(Rule{Stage: Rcpt, Kind: kindSyntax}, 501, "5.1.3", "Bad recipient address syntax"))
	}
	if n := s.snap.spec.Limits.Recipients; n > 0 && s.rcptCount >= n {
		return e.verdict(Rcpt, e.answer(Rule{Stage: Rcpt, Kind: kindRcptLimit}, 452, "4.5.3", "Error: too many recipients"))
	}
	if s.undeclared(a.raw) {
		return e.verdict(Rcpt, e.answer(Rule{Stage: Rcpt, Kind: kindStrictUTF8}, 553, "5.6.7", textUndeclared))
	}
	s.before, s.hadBefore, s.putOff = s.rcpt, s.hasRcpt, nil
	s.rcpt, s.hasRcpt = a, true
	if to.Postmaster() || s.snap.verifies(to) && s.snap.allows(a.domain) {
		s.count()
		return Verdict{Rule: Rule{Stage: Rcpt, Kind: kindPostmaster}}
	}
	s.names(ctx)
	e.atRcpt = true
	st := e.confine(e.checkRcpt(), &a)
	s.count()
	if st == refused {
		s.Withdraw()
	}
	return e.verdict(Rcpt, st)
}

// count notes that the recipient is accepted.
func (s *Session) count() {
	s.rcptCount++
	if s.snap.needsRcpts {
		s.rcpts = append(s.rcpts, s.rcpt.raw)
	}
}

// Verify judges VRFY, which changes nothing for the commands that follow.
func (s *Session) Verify(ctx context.Context, to envelope.ForwardPath, utf8 bool) Verdict {
	if s.snap.acl != nil { // Exim says nothing about an address
		return Verdict{Rule: Rule{Stage: Rcpt, Kind: kindNone}}
	}
	rcpt, hasRcpt, count, wasUTF8 := s.rcpt, s.hasRcpt, s.rcptCount, s.utf8
	discard, hold := s.discard, s.hold
	defer func() {
		s.rcpt, s.hasRcpt, s.rcptCount, s.utf8 = rcpt, hasRcpt, count, wasUTF8
		s.discard, s.hold = discard, hold
	}()
	s.utf8 = utf8
	e := s.eval(ctx, Rcpt)
	a := s.snap.resolve(&s.find, asGiven(to.Mailbox, to.Dot), utf8)
	switch {
	case s.find.failed:
		e.what = a.raw
		return e.verdict(Rcpt, e.lookupFailed(kindServerError))
	case s.undeclared(a.raw):
		return e.verdict(Rcpt, e.answer(Rule{Stage: Rcpt, Kind: kindStrictUTF8}, 553, "5.6.7", textUndeclared))
	case to.Postmaster():
		return Verdict{Rule: Rule{Stage: Rcpt, Kind: kindPostmaster}}
	}
	s.rcpt, s.hasRcpt = a, true
	s.names(ctx)
	return e.verdict(Rcpt, e.confine(e.checkRcpt(), &a))
}

// Withdraw takes back the recipient that Rcpt let in last, because the primary or
// the server refuses it.
func (s *Session) Withdraw() {
	s.rcpt, s.hasRcpt = s.before, s.hadBefore
	s.rcptCount--
	s.rcpts = s.rcpts[:max(0, len(s.rcpts)-1)]
	s.aclState.accepted--
}

// verifies says that to is the sender of Postfix's own address probes
// (address_verify_sender), which it lets in before all checks: it compares the
// domain as it was given.
func (s *Snapshot) verifies(to envelope.ForwardPath) bool {
	a := &s.spec.Addresses
	local, domain, _ := strings.Cut(a.VerifySender, "@")
	switch {
	case a.VerifySender == "<>" || a.VerifySender+a.MyOrigin == "":
		return false
	case a.VerifySender == "":
		local, domain = s.doubleBounce(), a.MyOrigin
	}
	return strings.EqualFold(to.Local, local) && strings.EqualFold(to.Domain, domain) && !to.Dot
}

// Valid says that the policy doesn't answer an address with 501. Mail and Rcpt do
// so, too; a server asks first because it examines the parameters after an address
// only if the address is valid.
func (s *Session) Valid(m envelope.Mailbox, dot, utf8 bool) bool {
	if s.snap.acl != nil { // Mail and Rcpt say so
		return true
	}
	a := s.snap.resolve(&s.find, asGiven(m, dot), utf8)
	s.find.failed = false // then Mail or Rcpt says so
	return !a.bad
}

// asGiven restores the dot that the client wrote after the domain: DNS lists and
// tables of servers have no entry for such a name.
func asGiven(m envelope.Mailbox, dot bool) envelope.Mailbox {
	if dot {
		m.Domain += "."
	}
	return m
}

// Data judges the DATA command.
func (s *Session) Data(ctx context.Context) Verdict {
	if s.snap.acl != nil {
		return s.aclData(ctx)
	}
	e := s.eval(ctx, Data)
	s.names(ctx)
	return e.verdict(Data, e.checkData(Data, s.snap.data, "DATA", classData))
}

// Message judges a whole message.
func (s *Session) Message(ctx context.Context, m Message) Verdict {
	if s.snap.acl != nil {
		return s.aclMessage(ctx, m)
	}
	e := s.eval(ctx, EndOfData)
	limits := &s.snap.spec.Limits
	if limits.MessageSize > 0 && m.Size > limits.MessageSize {
		return e.verdict(EndOfData, e.answer(Rule{Stage: EndOfData, Kind: kindSize}, 552, "5.3.4", "Error: message file too big"))
	}
	s.names(ctx)
	gone := s.discard
	st := e.checkData(EndOfData, s.snap.endOfData, "END-OF-MESSAGE", classEOD)
	if !gone { // whatever is wrong with what DATA or a command before threw away
		st = e.contentVerdict(st, m)
	}
	if st != refused && !s.discard && limits.MessageSize > 0 && s.snap.spec.Content.Hostname != "" && s.queueFile(m) > limits.MessageSize {
		st = e.answer(Rule{Stage: EndOfData, Kind: kindSize}, 552, "5.3.4", "Error: message file too big")
	}
	e.askFilter = m.Ask
	return e.verdict(EndOfData, e.askMilters(st))
}

// tooFar says that a message with so many Received fields, the primary's
// included, goes round in circles. RFC 5321 §6.3 asks for a limit of at least 100.
func (s *Snapshot) tooFar(hops int) bool { return hops >= cmp.Or(s.spec.Limits.Hops, 100) }

// Values of Protocol.BareNewline.
const (
	bareReject    = "reject"
	bareNormalize = "normalize"
)

// BareNewline returns what Protocol.BareNewline says for this client, and the
// code of the reply with which "reject" refuses.
func (s *Session) BareNewline(ctx context.Context) (mode string, code int) {
	p := &s.snap.spec.Protocol
	if mode = p.BareNewline; mode == bareReject && len(p.BareNewlineExclusions) > 0 {
		if s.names(ctx); s.snap.bareLF.has(&s.find, s.client.Addr, s.client.Name) {
			mode = bareNormalize
		}
	}
	return mode, cmp.Or(p.BareNewlineCode, 550)
}

// Unlimited says that Limits.Client doesn't concern this client.
func (s *Session) Unlimited(ctx context.Context) bool {
	if len(s.snap.spec.Limits.Client.Exceptions) == 0 {
		return false
	}
	s.names(ctx)
	return s.snap.unlimited.has(&s.find, s.client.Addr, s.client.Name)
}

// Nested notes a MAIL inside of the mail transaction. It is refused, and yet makes
// Postfix forget that the first one had SMTPUTF8.
func (s *Session) Nested() { s.utf8 = false }

// Reset ends the mail transaction: RSET, or the end of a message.
func (s *Session) Reset() {
	s.hasSender, s.hasRcpt, s.utf8 = false, false, false
	s.sender, s.rcpt, s.rcptCount, s.rcpts = address{}, address{}, 0, nil
	s.discard, s.hold = false, false
	s.discardRule, s.holdRule = Rule{}, Rule{}
	s.content, s.milter, s.signed, s.putOff, s.spfPass = nil, nil, nil, nil, map[string]bool{}
	s.lookups.reset()
	s.resetACL()
}

// Close ends the session's look-ups and waits for them.
func (s *Session) Close() { s.lookups.close() }
