package smtpd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// errLost is a primary's death, maybe behind the dot.
type errLost struct{ behind bool }

func (errLost) Error() string          { return "gone" }
func (e errLost) MayHaveArrived() bool { return e.behind }

// actor is a primary that a Live plays to. Its answers go by the stage and the
// address; "gone" and "behind" are deaths.
type actor struct {
	answers map[string]string
	dead    bool
	copy    bytes.Buffer
	log     []string
	arrived int // messages that End ended with a yes
	client  envelope.Client

	compared []string // what Live.Compare was told
}

func (a *actor) say(what, normal string) (envelope.Reply, error) {
	a.log = append(a.log, what)
	answer := a.answers[what]
	if answer == "" {
		answer = normal
	}
	if a.dead {
		answer = "gone"
	}
	switch answer {
	case "gone", "behind":
		a.dead = true
		return envelope.Reply{}, fmt.Errorf("live: %w", errLost{answer == "behind"})
	case "later":
		return envelope.Reply{}, nil
	}
	r := envelope.Reply{Text: strings.TrimSpace(answer[4:])}
	fmt.Sscan(answer[:3], &r.Code)
	if status, text, found := strings.Cut(r.Text, " "); found && strings.Count(status, ".") == 2 {
		r.Enhanced, r.Text = status, text
	}
	return r, nil
}

func (a *actor) Mail(_ context.Context, env *envelope.Envelope, _ int64) (envelope.Reply, error) {
	a.dead, a.client = false, env.Client
	return a.say("MAIL", "250 2.1.0 Sender ok")
}
func (a *actor) Rcpt(_ context.Context, to *envelope.Recipient) (envelope.Reply, error) {
	return a.say(to.Path.String(), "250 2.1.5 Recipient ok")
}
func (a *actor) Data(context.Context) (envelope.Reply, error) { return a.say("DATA", "354 Go") }
func (a *actor) Write(p []byte) (int, error)                  { return a.copy.Write(p) }
func (a *actor) End(context.Context) (envelope.Reply, error) {
	r, err := a.say(".", "250 2.0.0 Ok: queued as PRIMARY")
	if r.Positive() {
		a.arrived++
	}
	return r, err
}
func (a *actor) Reset() { a.log = append(a.log, "reset") }
func (a *actor) Close() { a.log = append(a.log, "close") }

// liveServer is newServer with a primary that decides.
func liveServer(t *testing.T, a *actor) (*Server, *fakeSpool) {
	s, spool := newServer(t)
	l := &Live{Play: func(*Command) Player { return a }, Offers: func() (Extensions, bool) { return Extensions{EightBit: true, UTF8: true, DSN: true}, true }}
	s.init()
	l.Compare = func(c *Command, v policy.Verdict, r envelope.Reply) {
		a.compared = append(a.compared, fmt.Sprint(c.At, " ", cmp.Or(v.Rule.Kind, "default"), " ", v.Action, " ", r.Code))
		if c.At == policy.Rcpt {
			s.Compare("live", v, r)
		}
	}
	s.Decide = l.PlayThrough
	return s, spool
}

// TestLive has each ending of a live session: what the sender gets, whether the
// message is kept, marked, or the primary's.
func TestLive(t *testing.T) {
	type answers = map[string]string
	const alice, nobody, hello = "alice@corp.example", "nobody@corp.example", "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\n"
	const mail = hello + "S: 250 2.1.0 Sender ok\nC: RCPT TO:<alice@corp.example>\n"
	const data = mail + "S: 250 2.1.5 Recipient ok\nC: DATA\n"
	const sent = data + "S: 354 End data\nC: ..x\nC: .\n"
	const queued = "S: /^250 2.0.0 Ok: queued as ID1$/\n"
	for _, tt := range []struct {
		name    string
		answers answers
		script  string
		kept    int
		marked  bool
		arrived int
		log     string // up to the first reset, "" for any
	}{
		{"accepted", nil, sent + "S: /^250 2.0.0 Ok: queued as PRIMARY$/\n", 0, false, 1, "MAIL|alice@corp.example|DATA|."},
		{"a recipient that the snapshot doesn't know", nil, hello + "S: 250\nC: RCPT TO:<nobody@corp.example>\nS: 250 2.1.5 Recipient ok\nC: DATA\nS: 354\nC: x\nC: .\nS: 250 2.0.0 Ok: queued as PRIMARY\n", 0, false, 1, ""},
		{"MAIL refused", answers{"MAIL": "450 4.7.1 later"}, hello + "S: 450 4.7.1 later\nC: RCPT TO:<alice@corp.example>\nS: 503\n", 0, false, 0, "MAIL"},
		{"greylisted", answers{alice: "450 4.2.0 Greylisted, see\nthe page"}, mail + "S: /^450-4.2.0 Greylisted, see\\n450 4.2.0 the page$/\nC: DATA\nS: 554 5.5.1\n", 0, false, 0, "MAIL|alice@corp.example"},
		{"recipients of different fates", answers{nobody: "550 5.1.1 no"}, mail + "S: 250\nC: RCPT TO:<nobody@corp.example>\nS: 550 5.1.1 no\nC: DATA\nS: 354\nC: x\nC: .\nS: 250 2.0.0 Ok: queued as PRIMARY\n", 0, false, 1, ""},
		{"DATA refused", answers{"DATA": "554 5.7.1 no"}, data + "S: 554 5.7.1 no\n", 0, false, 0, ""},
		{"message refused", answers{".": "554 5.7.1 Gtube"}, sent + "S: /^554 5.7.1 Gtube$/\n", 0, false, 0, "MAIL|alice@corp.example|DATA|."},
		{"message deferred", answers{".": "451 4.7.1 come back"}, sent + "S: 451 4.7.1 come back\n", 0, false, 0, ""},
		{"421 to the message", answers{".": "421 4.3.2 full"}, sent + "S: 421 4.3.2 full\n", 0, false, 0, ""},

		{"dead before MAIL", answers{"MAIL": "gone"}, hello + "S: 250 2.1.0 Ok\nC: RCPT TO:<nobody@corp.example>\nS: 550 5.1.1\nC: RCPT TO:<alice@corp.example>\nS: 250 2.1.5 Ok\nC: DATA\nS: 354\nC: x\nC: .\n" + queued, 1, false, 0, "MAIL"},
		{"dead before a recipient", answers{alice: "gone"}, hello + "S: 250\nC: RCPT TO:<nobody@corp.example>\nS: 250 2.1.5 Recipient ok\nC: RCPT TO:<alice@corp.example>\nS: 250 2.1.5 Ok\nC: RCPT TO:<noone@corp.example>\nS: 550 5.1.1\nC: DATA\nS: 354\nC: x\nC: .\n" + queued, 1, false, 0, "MAIL|nobody@corp.example|alice@corp.example"},
		{"dead in a message for whom only the primary knows", answers{".": "gone"}, hello + "S: 250\nC: RCPT TO:<a@elsewhere.example>\nS: 250 2.1.5 Recipient ok\nC: DATA\nS: 354\nC: x\nC: .\n" + queued, 1, false, 0, ""},
		{"dead before 354", answers{"DATA": "gone"}, sent + queued, 1, false, 0, "MAIL|alice@corp.example|DATA"},
		{"dead in the message", answers{".": "gone"}, sent + queued, 1, false, 0, "MAIL|alice@corp.example|DATA|."},
		{"no reply after the dot", answers{".": "behind"}, sent + queued, 1, true, 0, "MAIL|alice@corp.example|DATA|."},
		{"the first recipient tells", answers{"MAIL": "later", alice: "550 5.7.1 sender refused"}, hello + "S: 250 2.1.0 Ok\nC: RCPT TO:<alice@corp.example>\nS: 550 5.7.1 sender refused\n", 0, false, 0, ""},

		{"RSET", nil, mail + "S: 250\nC: RSET\nS: 250\n", 0, false, 0, "MAIL|alice@corp.example"},
		{"the client goes in the message", nil, data + "S: 354\nC: x\n", 0, false, 0, "MAIL|alice@corp.example|DATA"},
		{"smuggling", nil, data + "S: 354\nC! \"a\\r.\\rb\\r\\n.\\r\\n\"\nS: 550 5.6.0\n", 0, false, 0, "MAIL|alice@corp.example|DATA"},
		{"a bare LF", nil, data + "S: 354\nC! \"a\\n.\\nb\\r\\n.\\r\\n\"\nS: 550 5.6.0\n", 0, false, 0, "MAIL|alice@corp.example|DATA"},
		{"a dead disk", nil, "", 0, false, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &actor{answers: tt.answers}
			s, spool := liveServer(t, a)
			if tt.name == "a dead disk" {
				spool.write = errors.New("no disk")
				tt.script = sent + "S: 451 4.3.0\n"
			}
			talk(t, s, tt.script)
			kept := spool.accepted()
			if len(kept) != tt.kept || a.arrived != tt.arrived {
				t.Errorf("%d messages are kept and %d have arrived, want %d and %d", len(kept), a.arrived, tt.kept, tt.arrived)
			}
			for _, m := range kept {
				if m.env.MayHaveArrived != tt.marked {
					t.Errorf("marked: %v", m.env.MayHaveArrived)
				}
			}
			if i := slices.Index(a.log, "reset"); tt.log != "" && (i < 0 || strings.Join(a.log[:i], "|") != tt.log) {
				t.Errorf("said %q, want %q and a reset", a.log, tt.log)
			}
			if a.client.Helo != "a" || !a.client.Addr.IsValid() || a.client.Protocol != "ESMTP" {
				t.Errorf("its client is %+v", a.client)
			}
			if strings.ContainsAny(strings.ReplaceAll(a.copy.String(), "\r\n", ""), "\r\n\x00") {
				t.Errorf("passed on %q", a.copy.String())
			}
		})
	}
}

// TestLiveSnapshot: what the snapshot said of MAIL counts from the primary's
// death on.
func TestLiveSnapshot(t *testing.T) {
	a := &actor{answers: map[string]string{"alice@corp.example": "gone"}}
	s, spool := liveServer(t, a)
	snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.MessageSize = 100 })
	s.Policy = func() *policy.Snapshot { return snap }
	refuse := envelope.NewReply(554, "5.7.1", "not from you")
	inner := s.Decide
	s.Decide = func(d Decider) Decider {
		return inner(&other{Decider: d, replies: map[policy.Stage]envelope.Reply{policy.Mail: refuse}})
	}
	talk(t, s, `S: 220
C: EHLO a
S: 250
C: MAIL FROM:<b@x.example>
S: 250 2.1.0 Sender ok
C: RCPT TO:<alice@corp.example>
S: 554 5.7.1 not from you
C: RCPT TO:<alice@corp.example>
S: 554 5.7.1 not from you
C: DATA
S: 554 5.5.1
`)
	if n := len(spool.accepted()); n != 0 {
		t.Errorf("%d messages are kept", n)
	}
}

// TestLiveCompare: the snapshot's verdicts are told beside the primary's, at every
// stage; what the snapshot would have said of recipients is not, where it refused
// the sender.
func TestLiveCompare(t *testing.T) {
	a := &actor{answers: map[string]string{"alice@corp.example": "450 4.2.0 Greylisted", "bob@corp.example": "550 5.1.1 no", ".": "554 5.7.1 Gtube"}}
	s, _ := liveServer(t, a)
	const hello = "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\n"
	talk(t, s, hello+"C: RCPT TO:<alice@corp.example>\nS: 450\nC: RCPT TO:<bob@corp.example>\nS: 550\nC: RCPT TO:<nobody@corp.example>\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: 554\n")
	want := []string{"mail none permit 250", "rcpt listed_recipient permit 450", "rcpt unlisted_recipient reject 550", "rcpt unlisted_recipient reject 250",
		"data none permit 354", "message none permit 554"}
	if diff := gocmp.Diff(want, a.compared); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a.compared = nil
	snap := snapshot(t, func(p *policy.Spec) {
		p.DelayReject = false
		p.Restrictions.Sender = []policy.Restriction{{Kind: "reject"}}
	})
	s.Policy = func() *policy.Snapshot { return snap }
	talk(t, s, hello+"C: RCPT TO:<nobody@corp.example>\nS: 250\n")
	if diff := gocmp.Diff([]string{"mail reject reject 250"}, a.compared); diff != "" {
		t.Errorf("a sender that the snapshot refuses (-want +got):\n%s", diff)
	}
}

// TestLiveKeywords: EHLO offers what we have and the primary offers.
func TestLiveKeywords(t *testing.T) {
	all := []string{"PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "STARTTLS", "LIMITS RCPTMAX=10"}
	for _, tt := range []struct {
		o    Extensions
		size string
		want string
	}{
		{Extensions{true, true, true, 0}, "SIZE 1000", "PIPELINING|SIZE 1000|8BITMIME|SMTPUTF8|ENHANCEDSTATUSCODES|DSN|STARTTLS|LIMITS RCPTMAX=10"},
		{Extensions{false, false, false, 500}, "SIZE 1000", "PIPELINING|SIZE 500|ENHANCEDSTATUSCODES|STARTTLS|LIMITS RCPTMAX=10"},
		{Extensions{true, false, false, 2000}, "SIZE 1000", "PIPELINING|SIZE 1000|8BITMIME|ENHANCEDSTATUSCODES|STARTTLS|LIMITS RCPTMAX=10"},
		{Extensions{false, true, false, 500}, "SIZE", "PIPELINING|SIZE 500|SMTPUTF8|ENHANCEDSTATUSCODES|STARTTLS|LIMITS RCPTMAX=10"},
		{Extensions{false, false, true, 0}, "SIZE", "PIPELINING|SIZE|ENHANCEDSTATUSCODES|DSN|STARTTLS|LIMITS RCPTMAX=10"},
	} {
		all[1] = tt.size
		if diff := gocmp.Diff(tt.want, strings.Join(tt.o.cut(all), "|")); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.o, diff)
		}
	}
}

// TestComesBack: what was here before and comes back from where it went runs in
// a circle.
func TestComesBack(t *testing.T) {
	for next, want := range map[bool]string{true: "S: 554 5.4.6", false: "S: 250"} {
		s, _ := newServer(t)
		s.IsNextHop = func(domain string, addr netip.Addr) bool { return next && domain == "corp.example" && addr.IsValid() }
		const hello = "S: 220\nC: EHLO a\nS: 250\n"
		const one = "C: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\n"
		talk(t, s, hello+one+"C: Subject: 1\nC:\nC: x\nC: .\nS: 250\n"+one+"C: Received: from a (b [192.0.2.1])\nC:  by mx.test with ESMTP id 1\nC:\nC: x\nC: .\n"+want+"\n")
	}
}
