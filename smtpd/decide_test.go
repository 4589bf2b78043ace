package smtpd

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// other is a Decider as one for a living primary would be: it has the last word
// where it has one, passes the message on, and notes what it is told.
type other struct {
	Decider
	replies  map[policy.Stage]envelope.Reply // what it says in the snapshot's place
	keywords []string
	copy     bytes.Buffer
	log      []string
}

func (o *other) Decide(ctx context.Context, c *Command) Decision {
	d := o.Decider.Decide(ctx, c)
	said := c.At.String()
	switch c.At {
	case policy.Helo:
		said, d.Keywords = fmt.Sprint(said, " ", c.Helo, " ", len(c.Keywords)), o.keywords
	case policy.Mail:
		said = fmt.Sprint(said, " ", c.Env.From, " ", c.Size)
	case policy.Rcpt:
		said = fmt.Sprint(said, " ", c.To.Path, " ", c.Client(ctx).Addr)
	case policy.Data:
		d.Copy = &o.copy
	case policy.EndOfData:
		said = fmt.Sprint(said, " ", c.Message.Size)
	}
	o.log = append(o.log, said)
	if r, decided := o.replies[c.At]; decided {
		d.Action, d.Reply, d.Elsewhere = policy.Permit, r, c.At == policy.EndOfData
		if r.Permanent() {
			d.Action = policy.Reject
		}
	}
	return d
}

func (o *other) Reset() { o.Decider.Reset(); o.log = append(o.log, "reset") }
func (o *other) Close() { o.Decider.Close(); o.log = append(o.log, "close") }

// TestDecider: somebody else may decide each command, in words of its own, and
// have the message with us or in our place.
func TestDecider(t *testing.T) {
	type replies = map[policy.Stage]envelope.Reply
	yes := envelope.NewReply(250, "2.6.0", "mine now\nas 42")
	no := envelope.NewReply(550, "5.7.1", "spam, see\nthe page")
	const begin = "connect|helo a 7|mail b@x.example 9"
	const rcpt, end = "|rcpt alice@corp.example 127.0.0.1", "|reset|close"
	for _, tt := range []struct {
		name    string
		replies replies
		script  string
		log     string
		kept    int
		copied  string
	}{
		{"kept and passed on", nil, "S: 250 2.1.5 Ok\nC: DATA\nS: 354\nC: ..x\nC: .\nS: 250 2.0.0 Ok: queued as ID1\n",
			begin + rcpt + "|data|message 4" + end, 1, "\r\n.x\r\n"},
		{"passed on alone", replies{policy.EndOfData: yes}, "S: 250 2.1.5 Ok\nC: DATA\nS: 354\nC: x\nC: .\nS: /^250-2.6.0 mine now\\n250 2.6.0 as 42$/\n",
			begin + rcpt + "|data|message 3" + end, 0, "\r\nx\r\n"},
		{"refused after the dot", replies{policy.EndOfData: no}, "S: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: /^550-5.7.1 spam, see\\n550 5.7.1 the page$/\n",
			begin + rcpt + "|data|message 3" + end, 0, "\r\nx\r\n"},
		{"its own words", replies{policy.Rcpt: yes, policy.Data: yes}, "S: /^250-2.6.0 mine now\\n250 2.6.0 as 42$/\nC: DATA\nS: 354 End data\nC: .\nS: 250\n",
			begin + rcpt + "|data|message 0" + end, 1, "\r\n"},
		{"refused at RCPT", replies{policy.Rcpt: no}, "S: 550-5.7.1 spam, see\nC: DATA\nS: 554 5.5.1 Error: no valid recipients\n", begin + rcpt + end, 0, ""},
		{"broken message", replies{policy.EndOfData: yes}, "S: 250\nC: DATA\nS: 354\nC! \"a\\rb\\r\\n.\\r\\n\"\nS: 550 5.6.0\n", begin + rcpt + "|data" + end, 0, "\r\n"},
		{"a bug of its own", replies{policy.Rcpt: envelope.NewReply(354, "", "what?")}, "S: 451 4.3.5 Server configuration error\n", begin + rcpt + end, 0, ""},
		{"what it doesn't hear of", nil, "S: 250\nC: VRFY alice@corp.example\nS: 252\nC: RCPT TO:\nS: 501\nC: RSET\nS: 250\nC: DATA x\nS: 503\n", begin + rcpt + end, 0, ""},
		{"octets that go to nobody", replies{policy.Rcpt: yes}, "S: 250\nC: RCPT TO:<\"a\x01b\"@corp.example>\nS: 550 5.1.1\nC: RSET\nS: 250\nC: MAIL FROM:<\"a\x01\"@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 501\n",
			begin + rcpt + "|reset" + end, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, spool := newServer(t)
			o := &other{replies: tt.replies}
			s.Decide = func(snapshot Decider) Decider { o.Decider = snapshot; return o }
			talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example> SIZE=9\nS: 250\nC: RCPT TO:<alice@corp.example>\n"+tt.script)
			if diff := cmp.Diff(tt.log, strings.Join(o.log, "|")); diff != "" {
				t.Errorf("decided (-want +got):\n%s", diff)
			}
			trace, content, _ := strings.Cut(o.copy.String(), "+0000 (UTC)")
			if content != tt.copied || content != "" && !strings.HasPrefix(trace, "Received: from a (") {
				t.Errorf("passed on %q", o.copy.String())
			}
			kept := spool.accepted()
			if len(kept) != tt.kept {
				t.Errorf("%d messages kept, want %d", len(kept), tt.kept)
			}
			for _, m := range kept {
				if m.body != o.copy.String() {
					t.Errorf("kept %q", m.body)
				}
			}
		})
	}
}

// TestReplyText: whatever a reply quotes, it stays the line that it is.
func TestReplyText(t *testing.T) {
	got := appendReply(nil, envelope.NewReply(550, "5.7.1", "%s", "a\xffb\rc\x00 é\n"+strings.Repeat("x", 600)))
	if want := "550-5.7.1 a?b?c? é\r\n550 5.7.1 " + strings.Repeat("x", 500) + "\r\n"; string(got) != want {
		t.Errorf("got %q", got)
	}
}

// TestDeciderKeywords: EHLO offers what the Decider leaves of it, and the rest
// isn't for use.
func TestDeciderKeywords(t *testing.T) {
	s, _ := newServer(t)
	snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.MessageSize = 1000 })
	s.Policy = func() *policy.Snapshot { return snap }
	s.Decide = func(snapshot Decider) Decider {
		return &other{Decider: snapshot, keywords: []string{"PIPELINING", "SIZE 500"}}
	}
	talk(t, s, `S: 220
C: EHLO a
S: /^250-mx.test\n250-PIPELINING\n250 SIZE 500$/
C: MAIL FROM:<> SIZE=501
S: 552
C: MAIL FROM:<ü@x.example> SMTPUTF8
S: 555
C: MAIL FROM:<> BODY=8BITMIME
S: 555
C: MAIL FROM:<> RET=FULL
S: 501 5.7.1
C: MAIL FROM:<> SIZE=500
S: 250
C: RCPT TO:<alice@corp.example> NOTIFY=NEVER
S: 501 5.7.1
C: RCPT TO:<alice@corp.example>
S: 250
C: DATA
S: 354
C: `+strings.Repeat("x", 499)+`
C: .
S: 552 5.3.4
`)
}
