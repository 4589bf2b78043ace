package smtpd

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// verify answers VRFY as RCPT with the same address would be, 252 in place of
// 250. Whom it finds unknown counts like an unknown recipient: one learns no
// more by it than by RCPT.
func (s *session) verify(arg string) {
	if s.snap.Protocol().DisableVRFY {
		s.reply(envelope.NewReply(502, "5.5.1", "VRFY command is disabled"))
		return
	}
	all := slices.Collect(words(arg))
	utf8 := false
	if n := len(all); n > 0 && upper(all[n-1]) == "SMTPUTF8" && s.snap.Protocol().Offers("SMTPUTF8") {
		all, utf8 = all[:n-1], true
	}
	if len(all) == 0 {
		syntax := "Syntax: VRFY address"
		if !s.snap.Protocol().NoUTF8 {
			syntax += " [SMTPUTF8]"
		}
		s.reply(envelope.NewReply(501, "5.5.4", "%s", syntax))
		return
	}
	if s.policy.Screened() {
		s.reply(s.policy.Screen(s.ctx, s.early).Reply)
		return
	}
	if s.tooManyRecipients() {
		return
	}
	if s.barred() {
		return
	}
	name := strings.Join(all, " ")
	path, err := envelope.ParseVerify(name)
	if err != nil || !path.Postmaster() && !s.policy.Valid(path.Mailbox, path.Dot, utf8) {
		s.reply(envelope.NewReply(501, "5.1.3", "Bad recipient address syntax"))
		return
	}
	v := s.policy.Verify(s.ctx, path, utf8)
	s.judged(policy.Rcpt, v)
	s.countUnknown(v)
	s.answer(Decision{Verdict: v}, envelope.NewReply(252, "2.0.0", "%s", name))
}

// etrn answers ETRN, RFC 1985: no queue starts for it.
func (s *session) etrn(arg string) {
	switch all := slices.Collect(words(arg)); {
	case s.client.Helo == "" && s.snap.Spec().HeloRequired:
		s.reply(envelope.NewReply(503, "", "Error: send HELO/EHLO first"))
	case s.barred():
	case s.tx != nil:
		s.reply(envelope.NewReply(503, "", "Error: MAIL transaction in progress"))
	case len(all) != 1:
		s.reply(envelope.NewReply(500, "", "Syntax: ETRN domain"))
	default:
		domain := all[0]
		if domain[0] == '@' || domain[0] == '#' {
			domain = domain[1:]
		}
		addr := strings.TrimPrefix(strings.Trim(domain, "[]"), "IPv6:")
		if _, err := netip.ParseAddr(addr); !envelope.ValidDomain(domain) && err != nil {
			s.reply(envelope.NewReply(501, "", "Error: invalid parameter syntax"))
			return
		}
		s.reply(envelope.NewReply(459, "", "<%s>: service unavailable", domain))
	}
}

// xforward refuses XFORWARD: we take nobody's word for whom mail came from.
func (s *session) xforward(args string) {
	switch {
	case s.tx != nil:
		s.reply(envelope.NewReply(503, "5.5.1", "Error: MAIL transaction in progress"))
	case strings.Trim(args, space) == "":
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: XFORWARD attribute=value..."))
	default:
		s.reply(envelope.NewReply(550, "5.7.0", "Error: insufficient authorization"))
	}
}
