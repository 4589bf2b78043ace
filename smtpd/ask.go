package smtpd

import (
	"errors"
	"log/slog"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

var errNobody = errors.New("there is nobody to ask")

// asked has the primary judge a recipient that the policy lets in, where the
// policy says so. It can only make the verdict stricter.
func (f *front) asked(v policy.Verdict) policy.Verdict {
	if v.Ask.Kind == "" {
		return v
	}
	result := "accepted"
	r, err := f.ask()
	switch {
	case err != nil:
		result = "unasked"
		f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "primary not asked",
			append(f.who(policy.Rcpt), slog.String("rule", v.Ask.String()), slog.Bool("deferred", v.MustAsk()), peer("error", err.Error()))...)
		if v.MustAsk() {
			r = envelope.NewReply(450, "4.7.0", "<%s>: Recipient address rejected: can't be checked now, try again later", f.rcpt.Path)
			v.Action, v.Reply = policy.Defer, r
			f.errs-- // ours, not the client's
		}
	case r.Temporary():
		result, v.Action, v.Reply = "deferred", policy.Defer, r
	case !r.Positive():
		result, v.Action, v.Reply = "refused", policy.Reject, r
	}
	f.srv.Metrics.Asked.WithLabelValues(result).Inc()
	if refused(v) {
		v.Rule = v.Ask
		f.policy.Withdraw()
	}
	return v
}

// ask asks about the recipient in hand.
func (f *front) ask() (envelope.Reply, error) {
	if f.srv.Inquire == nil {
		return envelope.Reply{}, errNobody
	}
	if f.tx.inquiry == nil {
		f.identify(f.tx)
		f.tx.inquiry = f.srv.Inquire(&f.tx.env, f.tx.size)
	}
	return f.tx.inquiry.Ask(f.ctx, &f.rcpt)
}

// identify puts the client with all that is known of it into the envelope.
func (f *front) identify(tx *transaction) {
	tx.env.Client = f.policy.Client(f.ctx)
	tx.env.Client.Helo, tx.env.Client.Protocol, tx.env.Client.TLS = f.client.Helo, f.client.Protocol, f.client.TLS
}

// endInquiry lets go of the primary: there is nobody more to ask about.
func (tx *transaction) endInquiry() {
	if tx.inquiry != nil {
		tx.inquiry.Close()
		tx.inquiry = nil
	}
}
