package smtpd

import (
	"log/slog"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// Compare holds the primary's reply to a recipient against the lists by which
// the snapshot decided, counts where it contradicts them, and logs the first
// time for each table. by says how the reply came: "live" or "ask".
func (s *Server) Compare(by string, v policy.Verdict, primary envelope.Reply) {
	rule, lists := v.Listed, contradicted(v, primary)
	switch lists {
	case "":
		return
	case "unlisted":
		rule = v.Rule
	}
	s.Metrics.Contradicted.WithLabelValues(by, lists).Inc()
	if _, again := s.contradicted.LoadOrStore(policy.Rule{Kind: rule.Kind, Table: rule.Table}, true); !again {
		s.Log.Warn("primary contradicts the policy's lists", "by", by, peer("rule", rule.String()), peer("reply", primary.String()),
			slog.String("next", "only the metric counts further ones of this table"))
	}
}

// contradicted says what the lists have that the primary denies: "listed" for
// whom it doesn't know, "unlisted" for whom it takes, else "".
func contradicted(v policy.Verdict, primary envelope.Reply) string {
	switch {
	case v.Listed.Kind != "" && primary.UserUnknown():
		return "listed"
	case v.Action == policy.Reject && unlisted(v) && primary.Positive():
		return "unlisted"
	}
	return ""
}
