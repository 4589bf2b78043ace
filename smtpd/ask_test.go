package smtpd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// oracle answers for the primary and notes what it is asked.
type oracle struct {
	replies []envelope.Reply // one for each question; a zero one is an error
	log     []string
}

func (o *oracle) Ask(_ context.Context, to *envelope.Recipient) (envelope.Reply, error) {
	o.log = append(o.log, to.Path.String())
	r := o.replies[0]
	if o.replies = o.replies[1:]; r.Zero() {
		return r, errors.New("primary is down")
	}
	return r, nil
}

func (o *oracle) Close() { o.log = append(o.log, "closed") }

// TestAsk: the primary's word can only make a verdict stricter.
func TestAsk(t *testing.T) {
	const mail = "S: 220\nC: EHLO a.example\nS: 250\nC: MAIL FROM:<b@x.example> SIZE=9\nS: 250\n"
	const rcpt, carol = "C: RCPT TO:<alice@corp.example>\n", "C: RCPT TO:<carol@corp.example>\n"
	const data = "C: DATA\nS: 354\nC:\nC: .\nS: 250\n"
	grey := envelope.NewReply(450, "4.2.0", "Greylisted, see\nthe page")
	yes, no, nothing := envelope.NewReply(250, "2.1.5", "its own words"), envelope.NewReply(550, "5.7.1", "go away"), envelope.Reply{}
	for _, tt := range []struct {
		name, kind, script string
		replies            []envelope.Reply
		log                string // what the primary was asked
		counts             string // accepted, refused, deferred, unasked
	}{
		{"accepted", "ask_primary", rcpt + "S: 250 2.1.5 Ok\n" + data, []envelope.Reply{yes}, "alice@corp.example closed", "1 0 0 0"},
		{"refused", "ask_primary", rcpt + "S: 550 5.7.1 go away\nC: DATA\nS: 554\n", []envelope.Reply{no}, "alice@corp.example closed", "0 1 0 0"},
		{"deferred", "ask_primary_else_ignore", rcpt + "S: /^450-4.2.0 Greylisted, see\\n450 4.2.0 the page$/\n", []envelope.Reply{grey}, "alice@corp.example closed", "0 0 1 0"},
		{"unasked", "ask_primary", rcpt + "S: 450 4.7.0 <alice@corp.example>: Recipient address rejected: can't be checked now\n", []envelope.Reply{nothing}, "alice@corp.example closed", "0 0 0 1"},
		{"unasked and ignored", "ask_primary_else_ignore", rcpt + "S: 250\n" + data, []envelope.Reply{nothing}, "alice@corp.example closed", "0 0 0 1"},
		{"one refused, one accepted", "ask_primary", rcpt + "S: 550\n" + carol + "S: 250\n" + data + "C: RSET\nS: 250\n", []envelope.Reply{no, yes}, "alice@corp.example carol@corp.example closed", "1 1 0 0"},
		{"ours are refused unasked", "ask_primary", "C: RCPT TO:<dave@corp.example>\nS: 550\nC: RCPT TO:<a@elsewhere.example>\nS: 554\n", nil, "", "0 0 0 0"},
		{"who is refused doesn't count", "ask_primary", "C: RSET\nS: 250\nC: MAIL FROM:<>\nS: 250\n" + rcpt + "S: 550\n" + carol + "S: 250\n" + data, []envelope.Reply{no, yes},
			"alice@corp.example carol@corp.example closed", "1 1 0 0"},
		{"another transaction, another inquiry", "ask_primary", rcpt + "S: 250\nC: RSET\nS: 250\nC: MAIL FROM:<>\nS: 250\n" + rcpt + "S: 550\n", []envelope.Reply{yes, no},
			"alice@corp.example closed alice@corp.example closed", "1 1 0 0"},
		{"no such rule", "permit_mynetworks", rcpt + "S: 250\n" + data, nil, "", "0 0 0 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv, spool := newServer(t)
			srv.Metrics = metrics.New(prometheus.NewRegistry())
			snap := snapshot(t, func(s *policy.Spec) {
				s.Restrictions.Recipient = []policy.Restriction{{Kind: tt.kind}}
				s.Restrictions.Data = []policy.Restriction{{Kind: "reject_multi_recipient_bounce"}}
			})
			srv.Policy = func() *policy.Snapshot { return snap }
			o := &oracle{replies: tt.replies}
			var env *envelope.Envelope
			srv.Inquire = func(e *envelope.Envelope, _ int64) Asker { env = e; return o }
			talk(t, srv, mail+tt.script)
			if got := strings.Join(o.log, " "); got != tt.log {
				t.Errorf("the primary was asked %q, want %q", got, tt.log)
			}
			if env != nil && (env.Client.Helo != "a.example" || !env.Client.Addr.IsLoopback() || env.Client.NameStatus == envelope.NameUnasked) {
				t.Errorf("about the client %+v", env.Client)
			}
			var counts []string
			for _, r := range []string{"accepted", "refused", "deferred", "unasked"} {
				counts = append(counts, fmt.Sprint(testutil.ToFloat64(srv.Metrics.Asked.WithLabelValues(r))))
			}
			if diff := cmp.Diff(tt.counts, strings.Join(counts, " ")); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
			for _, m := range spool.accepted() {
				if want := "rcpt " + tt.kind; len(tt.log) > 0 && m.env.To[0].Rule != want {
					t.Errorf("let in by %q, want %q", m.env.To[0].Rule, want)
				}
			}
		})
	}
}

// TestAskNobody: without anybody to ask, the rule's own default counts. That is
// no error of the client's.
func TestAskNobody(t *testing.T) {
	for kind, want := range map[string]string{"ask_primary": "450", "ask_primary_else_ignore": "250"} {
		srv, _ := newServer(t)
		snap := snapshot(t, func(s *policy.Spec) {
			s.Restrictions.Recipient = []policy.Restriction{{Kind: kind}}
			s.Limits.HardErrors = 2
		})
		srv.Policy = func() *policy.Snapshot { return snap }
		talk(t, srv, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<>\nS: 250\n"+strings.Repeat("C: RCPT TO:<alice@corp.example>\nS: "+want+"\n", 3))
	}
}
