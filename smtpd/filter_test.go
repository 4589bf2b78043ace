package smtpd

import (
	"context"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// withFilter has a filter stand for the second of two milters, and nobody for the
// first.
func withFilter(t *testing.T, s *Server, change func(*policy.Spec)) *testmx.Milter {
	t.Helper()
	m, addr := &testmx.Milter{Name: "A"}, testmx.FreeAddr()
	if err := m.Start(addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	s.Filters = []*Filter{{Name: "f", For: "inet:localhost:8891", Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}}
	snap := snapshot(t, func(spec *policy.Spec) {
		spec.Filters.Milters = []policy.Milter{{Where: "inet:127.0.0.1:8890"}, {Where: "inet:127.0.0.1:8891"}}
		if change != nil {
			change(spec)
		}
	})
	s.Policy = func() *policy.Snapshot { return snap }
	return m
}

// TestFilterWhileLive: while the primary decides the filters hear nothing. When it
// dies, they are told all that was said, and judge what follows.
func TestFilterWhileLive(t *testing.T) {
	const hello = "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\nC: X-eom: 550 5.7.1 Spam\nC:\nC: x\nC: .\n"
	for _, tt := range []struct {
		name, last string // the primary's answer to the message
		reply      string
		hears      bool
	}{
		{"the primary takes the message", "", "S: 250 2.0.0 Ok: queued as PRIMARY\n", false},
		{"it may have taken it", "behind", "S: 250 2.0.0 Ok: queued as ID1\n", false},
		{"it dies", "gone", "S: 550 5.7.1 Spam\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &actor{answers: map[string]string{".": tt.last}}
			s, _ := liveServer(t, a)
			m := withFilter(t, s, nil)
			talk(t, s, hello+tt.reply)
			least := 0
			if tt.hears {
				least = 1
			}
			heard := strings.Join(m.Heard(least), "")
			for _, event := range []string{"\nC ", "\nH ", "\nM ", "\nR ", "\nT ", "\nL ", "\nB ", "\nE "} {
				if strings.Contains(heard, event) != tt.hears {
					t.Errorf("event %q: the filter heard\n%s", event, heard)
				}
			}
		})
	}
}

// refuseAtOnce refuses b@x at MAIL.
func refuseAtOnce(spec *policy.Spec) {
	spec.DelayReject = false
	spec.Restrictions.Sender = []policy.Restriction{{Kind: "reject_non_fqdn_sender"}}
}

// TestUnknownWhileLive: nor do the filters answer a command that nobody knows. When
// the primary is gone they do, and hear first whose it is.
func TestUnknownWhileLive(t *testing.T) {
	for mail, want := range map[string]string{"250 2.1.0 Sender ok": "", "gone": "C H U "} {
		s, _ := liveServer(t, &actor{answers: map[string]string{"MAIL": mail}})
		m := withFilter(t, s, refuseAtOnce)
		sender, unknown := "250", "500 5.5.2"
		if want != "" {
			sender, unknown = "504", "550 5.7.1"
		}
		talk(t, s, "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x>\nS: "+sender+"\nC: XX-r\nS: "+unknown+"\nC: QUIT\nS: 221\n")
		heard := strings.Join(m.Heard(len(want)/6), "")
		events := ""
		for line := range strings.Lines(heard) {
			if event, _, _ := strings.Cut(line, " "); event != "" && strings.Contains("CHMU", event) {
				events += event + " "
			}
		}
		if events != want {
			t.Errorf("MAIL is answered %s: the filter heard\n%s", mail, heard)
		}
	}
}

// TestFilterHearsNoRefusedSender: a MAIL that the restrictions refuse is no
// transaction for a filter, which would count it, or hold it against the next.
func TestFilterHearsNoRefusedSender(t *testing.T) {
	s, _ := newServer(t)
	m := withFilter(t, s, refuseAtOnce)
	talk(t, s, "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x>\nS: 504\nC: MAIL FROM:<b@x.example>\nS: 250\nC: QUIT\nS: 221\n")
	if heard := strings.Join(m.Heard(1), ""); strings.Count(heard, "\nM ") != 1 || !strings.Contains(heard, "<b@x.example>") {
		t.Errorf("the filter heard\n%s", heard)
	}
}

// TestFilterVerdict: what a filter's answer counts as, in metrics and the log.
func TestFilterVerdict(t *testing.T) {
	reply := func(code int) milter.Answer {
		return milter.Answer{Action: milter.Refuse, Reply: envelope.Reply{Code: code}}
	}
	for _, tt := range []struct {
		answer milter.Answer
		want   policy.Action
		closes bool
		key    string
	}{
		{reply(550), policy.Reject, false, ""}, {reply(451), policy.Defer, false, ""},
		{reply(521), policy.Reject, true, ""}, {reply(421), policy.Defer, true, ""},
		{milter.Answer{Action: milter.Discard}, policy.Discard, false, ""},
		{milter.Answer{Action: milter.Hold, Reason: "odd"}, policy.Hold, false, "odd"},
		{milter.Answer{}, policy.Permit, false, ""},
	} {
		want := policy.Verdict{Action: tt.want, Reply: tt.answer.Reply, Close: tt.closes, Rule: policy.Rule{Stage: policy.Mail, Kind: "milter", Table: "f", Key: tt.key}}
		if got := new(filtering).verdictOf(policy.Mail, tt.answer, "f"); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v is %+v", tt.answer, got)
		}
	}
}
