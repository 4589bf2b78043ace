package smtpd

import (
	"errors"
	"log/slog"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

var errNobody = errors.New("there is nobody to ask")

// ask has the primary judge a recipient that was let in, where the policy says
// so. It can only make the decision stricter.
func (s *session) ask(d *Decision) {
	result := "accepted"
	r, err := s.inquire(d.MustVerify())
	switch {
	case err != nil:
		result = "unasked"
		s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "primary not asked",
			append(s.who(policy.Rcpt), slog.String("rule", d.Ask.String()), slog.Bool("deferred", d.MustAsk()), peer("error", err.Error()))...)
		if d.MustAsk() {
			d.Action, d.Ours = policy.Defer, true
			d.Reply = envelope.NewReply(450, "4.7.0", "<%s>: Recipient address rejected: can't be checked now, try again later", s.rcpt.Path)
		}
	case r.Temporary():
		result, d.Action, d.Reply = "deferred", policy.Defer, r
	case !r.Positive():
		if !d.MustVerify() {
			s.srv.Compare("ask", d.Verdict, r)
		}
		result, d.Action, d.Reply = "refused", policy.Reject, r
	}
	s.srv.Metrics.Asked.WithLabelValues(result).Inc()
	if refused(d.Verdict) {
		d.Rule = d.Ask
		s.policy.Withdraw()
	}
}

// inquire asks about the recipient in hand; verify: only whether it exists.
func (s *session) inquire(verify bool) (envelope.Reply, error) {
	if verify && s.srv.Verify != nil {
		r, err := s.srv.Verify(s.ctx, s.client.Addr, s.rcpt.Path.Mailbox)
		if err == nil && r.Permanent() {
			s.unknown++
		}
		return r, err
	}
	if verify {
		return envelope.Reply{}, errNobody
	}
	if s.srv.Inquire == nil {
		return envelope.Reply{}, errNobody
	}
	if s.tx.inquiry == nil {
		s.tx.env.Client = s.known(s.ctx)
		s.tx.inquiry = s.srv.Inquire(&s.tx.env, s.tx.size)
	}
	return s.tx.inquiry.Ask(s.ctx, &s.rcpt)
}
