package policy

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
)

// kindACLEnd is a list's end, which refuses.
const kindACLEnd = "acl_end"

// aclKindNames are the kinds of an ACL's rules.
var aclKindNames = []string{"acl_accept", "acl_defer", "acl_deny", "acl_discard", "acl_drop", "acl_require", kindACLEnd, "acl_hosts", "acl_helo", "acl_syntax"}

// refuse is a refusal outside of all lists. A code of RFC 3463 marks what isn't in the
// primary's words.
func refuse(st Stage, kind string, code int, dsn, text string) Verdict {
	v := Verdict{Action: Defer, Reply: envelope.Reply{Code: code, Enhanced: dsn, Text: printable(text, true)}, Rule: Rule{Stage: st, Kind: kind}}
	if code >= 500 {
		v.Action = Reject
	}
	return v
}

// isHost says that the client is in a host list of the settings.
func (r *aclRun) isHost(list string) bool {
	return list != "" && r.matches(listHost, r.client.Addr.String(), list, nil) == aclOK
}

// aclConnect judges a client.
func (s *Session) aclConnect(ctx context.Context) Verdict {
	r := s.aclRun(ctx, Connect)
	if r.isHost(r.acl.RejectHosts) {
		v := refuse(Connect, "acl_hosts", 554, "", "SMTP service not available")
		v.Close = true
		return v
	}
	v, _ := r.judge("connect")
	return v
}

// aclHelo judges a HELO name.
func (s *Session) aclHelo(ctx context.Context, name string) Verdict {
	r := s.aclRun(ctx, Helo)
	st := &s.aclState
	st.helo, st.heloChecked = "", false
	if !r.acl.validHelo(name) && !r.isHost(r.acl.HeloJunk) {
		return refuse(Helo, "acl_syntax", 501, "5.5.2", "Syntactically invalid HELO argument(s)")
	}
	st.helo, st.shown, s.client.Helo, s.heloGiven = name, name, name, true
	st.nameShown = st.looked
	if must := r.isHost(r.acl.HeloVerify); must && r.verifyHelo() != aclOK {
		code := 550
		if _, rc := r.hostName(); rc == aclDefer {
			code = 451
		}
		st.helo, st.shown, s.client.Helo, s.heloGiven = "", "", "", false
		return refuse(Helo, "acl_helo", code, fmt.Sprint(code/100, ".7.1"), "HELO argument does not match calling host")
	}
	v, rc := r.judge("helo")
	if rc != aclOK {
		st.helo, st.shown, s.client.Helo, s.heloGiven = "", "", "", false
		return v
	}
	st.heloSeen = true
	return v
}

// aclMail judges a reverse-path.
func (s *Session) aclMail(ctx context.Context, from envelope.ReversePath, p MailParams) Verdict {
	s.Reset()
	r := s.aclRun(ctx, Mail)
	if !s.aclState.heloSeen && (r.isHost(r.acl.HeloVerify) || r.isHost(r.acl.RequireHelo)) {
		return refuse(Mail, "acl_helo", 503, "", "HELO or EHLO required")
	}
	s.utf8 = p.UTF8
	sender := ""
	if !from.Null() {
		domain := from.Domain
		switch {
		case domain == "" && r.isHost(r.acl.UnqualifiedSender):
			domain = r.acl.QualifyDomain
		case domain == "":
			return refuse(Mail, "acl_syntax", 501, "", fmt.Sprintf("<%s>: sender address must contain a domain", from.Local))
		case !r.acl.validDomain(domain) || from.Dot && !r.acl.TrailingDot:
			return refuse(Mail, "acl_syntax", 501, "5.1.7", "Bad sender address syntax")
		}
		sender = from.Local + "@" + domain
	}
	if limit := s.snap.spec.Limits.MessageSize; limit > 0 && p.Size > limit {
		return refuse(Mail, kindSize, 552, "", "Message size exceeds maximum permitted")
	}
	s.aclState.sender, s.aclState.size = sender, p.Size
	v, rc := r.judge("mail")
	switch rc {
	case aclOK:
	case aclDiscard:
		s.aclState.gone = true
	default:
		s.aclState.sender = ""
		return v
	}
	s.hasSender = true
	return v
}

// aclRcpt judges a forward-path. The session's own copy of the address is for what
// comes after.
func (s *Session) aclRcpt(ctx context.Context, to envelope.ForwardPath) Verdict {
	r := s.aclRun(ctx, Rcpt)
	st := &s.aclState
	st.rcpts++
	v := r.recipient(to)
	switch {
	case v.Action == Reject:
		st.fails++
	case v.Action == Defer:
		st.defers++
	case v.Action == Discard:
		if st.fails++; !st.gone {
			v.Action, v.Lost = Permit, true
		}
	default:
		st.accepted++
		s.before, s.hadBefore = s.rcpt, s.hasRcpt
		s.rcpt, s.hasRcpt = address{raw: r.local + "@" + r.domain, local: r.local, domain: r.domain}, true
		s.rcptCount++
	}
	return v
}

func (r *aclRun) recipient(to envelope.ForwardPath) Verdict {
	r.local, r.domain = to.Local, expansion.Lower(to.Domain)
	switch {
	case r.domain == "" && (strings.EqualFold(to.Local, "postmaster") || r.isHost(r.acl.UnqualifiedRecipient)):
		r.domain = expansion.Lower(r.acl.QualifyRecipient)
	case r.domain == "":
		return refuse(Rcpt, "acl_syntax", 501, "", fmt.Sprintf("<%s>: recipient address must contain a domain", to.Local))
	case !r.acl.validDomain(r.domain) || to.Dot && !r.acl.TrailingDot || to.Local == "":
		return refuse(Rcpt, "acl_syntax", 501, "5.1.3", "Bad recipient address syntax")
	}
	if n := r.acl.MaxRecipients; n > 0 && r.aclState.rcpts > n {
		code := 452
		r.aclState.tooMany = true
		if r.acl.MaxReject {
			code = 552
		}
		return refuse(Rcpt, kindRcptLimit, code, "", "too many recipients")
	}
	if r.aclState.gone {
		return Verdict{Action: Discard, Rule: Rule{Stage: Mail, Kind: "acl_discard"}}
	}
	v, _ := r.judge("rcpt")
	if (v.Action == Permit || v.Action == Discard) && !r.snap.allows(r.domain) {
		return refuse(Rcpt, kindForeignDomain, 450, "4.7.1", "relay not permitted for now")
	}
	return v
}

// aclData judges DATA.
func (s *Session) aclData(ctx context.Context) Verdict {
	if s.Over() {
		return refuse(Data, kindRcptLimit, 554, "", "Too many recipients")
	}
	v, _ := s.aclRun(ctx, Data).judge("predata")
	return v
}

// Over says that there were so many recipients that DATA is refused, and ends the mail
// transaction.
func (s *Session) Over() bool {
	return s.snap.acl != nil && s.snap.acl.MaxReject && s.aclState.tooMany
}

// aclContent is where the message goes for the list of its end.
func (s *Session) aclContent() io.Writer {
	if !s.snap.acl.usesLen {
		return nil
	}
	s.aclState.header = &headerBox{}
	return s.aclState.header
}

// aclMessage judges a message.
func (s *Session) aclMessage(ctx context.Context, m Message) Verdict {
	limits := &s.snap.spec.Limits
	if limits.MessageSize > 0 && m.Size > limits.MessageSize {
		return refuse(EndOfData, kindSize, 552, "", "Message size exceeds maximum permitted")
	}
	if s.snap.tooFar(m.Hops) { // Exim counts when it delivers; this ends a loop
		return refuse(EndOfData, kindHops, 550, "", `Too many "Received" headers - suspected mail loop`)
	}
	if s.aclState.accepted == 0 {
		return Verdict{} // every recipient is lost
	}
	r := s.aclRun(ctx, EndOfData)
	r.message = m
	v, _ := r.judge("data")
	s.aclState.header = nil
	return v
}

// resetACL ends the mail transaction.
func (s *Session) resetACL() {
	st := &s.aclState
	for name := range st.vars {
		if strings.HasPrefix(name, "acl_m") {
			delete(st.vars, name)
		}
	}
	clear(st.verified)
	clear(st.told)
	st.sender, st.gone, st.tooMany, st.header = "", false, false, nil
	st.rcpts, st.fails, st.defers, st.accepted = 0, 0, 0, 0
}
