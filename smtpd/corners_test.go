package smtpd

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// Corners that the dialogues don't reach, or whose effect no reply shows.

// verdicts counts what was decided at a stage.
func verdicts(s *Server, stage, action, kind string) float64 {
	return testutil.ToFloat64(s.Metrics.Verdicts.WithLabelValues(stage, action, kind))
}

func TestWords(t *testing.T) {
	for list, want := range map[string][]string{
		"": nil, " ": nil, "a": {"a"}, "a  b ": {"a", "b"}, " a": {"a"}, `"a b" <c d>`: {`"a b"`, "<c d>"},
	} {
		if diff := cmp.Diff(want, slices.Collect(words(list))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", list, diff)
		}
	}
}

func TestVerifyJunk(t *testing.T) {
	s, _ := newServer(t)
	talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: VRFY <>\nS: 501 5.1.3\nC: VRFY alice@-x-\nS: 501 5.1.3\nC: VRFY postmaster\nS: 252\n"+
		"C: VRFY  alice@corp.example \nS: 252 2.0.0 alice@corp.example\n")
}

func TestETRNBeforeHelo(t *testing.T) {
	s, _ := newServer(t)
	snap := snapshot(t, func(spec *policy.Spec) { spec.HeloRequired = true })
	s.Policy = func() *policy.Snapshot { return snap }
	talk(t, s, "S: 220\nC: ETRN corp.example\nS: 503 Error: send HELO/EHLO first\nC: EHLO a\nS: 250\nC: ETRN corp.example\nS: 459\n")
}

// TestSizeCounted: a SIZE beyond the limit counts as one.
func TestSizeCounted(t *testing.T) {
	s, _ := newServer(t)
	snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.MessageSize = 1000 })
	s.Policy = func() *policy.Snapshot { return snap }
	talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<> SIZE=1000\nS: 250\nC: RSET\nS: 250\nC: MAIL FROM:<> SIZE=1001\nS: 552\n")
	limited(t, s, "message_size", 1)
}

// TestScreenCounted: what postscreen refuses in place of the greeting counts as
// a verdict.
func TestScreenCounted(t *testing.T) {
	snap := snapshot(t, func(spec *policy.Spec) {
		spec.Postscreen = &policy.Postscreen{Access: []string{"table:screen"}, DenylistAction: "drop", GreetAction: "ignore", DNSBLAction: "ignore"}
		table, err := table.NewHash(map[string]string{"192.0.2.1": "reject"})
		if err != nil {
			t.Fatal(err)
		}
		spec.Tables["screen"] = table
	})
	bubble(t, func(s *Server) { s.Policy = func() *policy.Snapshot { return snap } }, func(t *testing.T, s *Server, ln *pipeListener) {
		c := newClient(t, ln.dial("192.0.2.1"))
		c.want("521")
		c.Close()
		synctest.Wait()
		if n := verdicts(s, "connect", "reject", "postscreen_access_list"); n != 1 {
			t.Errorf("counted %v times", n)
		}
	})
}

// TestScreenedParameters: postscreen looks at no parameter of those whom it
// refuses at RCPT, and at no limit.
func TestScreenedParameters(t *testing.T) {
	snap := snapshot(t, func(spec *policy.Spec) {
		spec.Postscreen = &policy.Postscreen{Access: []string{"table:screen"}, DenylistAction: "enforce", GreetAction: "ignore", DNSBLAction: "ignore"}
		spec.Limits.MessageSize = 1000
		spec.Protocol.Discard = []string{"DSN"}
		table, err := table.NewHash(map[string]string{"192.0.2.1": "reject"})
		if err != nil {
			t.Fatal(err)
		}
		spec.Tables["screen"] = table
	})
	for _, params := range []string{"SIZE=10000000000000", "BY=120;R", "RET=HDRS", "BODY=x", "FOO=bar"} {
		bubble(t, func(s *Server) { s.Policy = func() *policy.Snapshot { return snap } }, func(t *testing.T, s *Server, ln *pipeListener) {
			c := newClient(t, ln.dial("192.0.2.1"))
			c.want("220")
			c.send("EHLO a.example\r\n")
			c.want("250")
			c.send("MAIL FROM:<b@x.example> " + params + "\r\n")
			c.want("250")
			c.send("RCPT TO:<alice@corp.example> " + params + "\r\n")
			c.want("550")
			c.Close()
			synctest.Wait()
		})
	}
}

// TestXClientHelo: a name that comes with XCLIENT is judged like one of HELO.
func TestXClientHelo(t *testing.T) {
	s, _ := newServer(t)
	equip(t, s, []string{"xclient", "helo-fqdn"}, nil)
	talk(t, s, "S: 220\nC: XCLIENT NAME=a.example ADDR=192.0.2.1 HELO=a.example\nS: 220\n")
	if n := verdicts(s, "helo", "permit", "none"); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// TestUnsure: whom the policy isn't sure of is put off, and told to who asked
// to be told.
func TestUnsure(t *testing.T) {
	for _, told := range []bool{true, false} {
		s, _ := newServer(t)
		snap := snapshot(t, func(spec *policy.Spec) {
			there, err := table.NewSet([]string{"bob@corp.example"})
			if err != nil {
				t.Fatal(err)
			}
			absent, err := table.NewSet([]string{"erin@corp.example", "@corp.example"})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables["tcp:x"], spec.Tables["absent"] = there, absent
			spec.Learned = map[string]policy.Learned{"tcp:x": {Absent: "absent"}}
			spec.Addresses.Relay.Recipients = append(spec.Addresses.Relay.Recipients, "tcp:x")
		})
		s.Policy = func() *policy.Snapshot { return snap }
		var unsure []string
		if told {
			s.Unsure = func(recipient string) { unsure = append(unsure, recipient) }
		}
		talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<bob@corp.example>\nS: 250\nC: RCPT TO:<erin@corp.example>\nS: 550\nC: RCPT TO:<dave@corp.example>\nS: 450\n")
		if told != slices.Equal(unsure, []string{"dave@corp.example"}) {
			t.Errorf("told %t: %q", told, unsure)
		}
	}
}

// TestUnansweredDefers: with DeferUnanswered a list that doesn't answer puts
// the client off.
func TestUnansweredDefers(t *testing.T) {
	for defers, want := range map[bool]string{true: "450 4.7.1", false: "250"} {
		s, _ := newServer(t)
		snap := snapshot(t, func(spec *policy.Spec) {
			spec.Restrictions.Client = []policy.Restriction{{Kind: "reject_rbl_client", Arg: "bl.example"}}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		s.Resolver = &testmx.MapResolver{Fail: []string{"1.0.0.127.bl.example"}}
		s.DeferUnanswered = defers
		talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: "+want+"\n")
	}
}

// TestStressAgain: stress ends below seven of ten places, and when it comes
// again, nobody gets longer than the first left him.
func TestStressAgain(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnections = 10 }, func(t *testing.T, s *Server, ln *pipeListener) {
		var clients []*client
		enter := func() {
			c := newClient(t, ln.dial(fmt.Sprintf("198.51.100.%d", len(clients)+1)))
			c.want("220")
			clients = append(clients, c)
			synctest.Wait()
		}
		leave := func(stressed bool) {
			t.Helper()
			clients[len(clients)-1].Close()
			clients = clients[:len(clients)-1]
			synctest.Wait()
			if s.crowd.stressed.Load() != stressed {
				t.Errorf("%d of 10: under stress: %t", len(clients), !stressed)
			}
		}
		for range 8 {
			enter()
		}
		start := time.Now()
		time.Sleep(stressTimeout / 2)
		leave(true)
		leave(false)
		enter()
		enter()
		if !s.crowd.stressed.Load() {
			t.Fatal("not under stress again")
		}
		clients[0].want("421 4.4.2")
		if d := time.Since(start); d != stressTimeout {
			t.Errorf("the first client stayed for %v, want %v", d, stressTimeout)
		}
		for _, c := range clients {
			c.Close()
		}
		synctest.Wait()
	})
}

// TestHangsUpAsThePrimary: where the primary's answer to a recipient is one that
// ends a session, ours ends with it.
func TestHangsUpAsThePrimary(t *testing.T) {
	s, _ := newServer(t)
	snap := snapshot(t, func(spec *policy.Spec) { spec.Restrictions.Recipient = []policy.Restriction{{Kind: "ask_primary"}} })
	s.Policy = func() *policy.Snapshot { return snap }
	s.Inquire = func(*envelope.Envelope, int64) Asker {
		return &oracle{replies: []envelope.Reply{envelope.NewReply(521, "5.7.1", "go away")}}
	}
	ln := newPipeListener()
	stop := serve(t, s, ln)
	c := newClient(t, ln.dial("192.0.2.1"))
	c.want("220")
	c.send("EHLO a\r\n")
	c.want("250")
	c.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nNOOP\r\n")
	c.want("250 2.1.0")
	c.want("521 5.7.1 go away")
	c.wantClosed()
	c.Close()
	stop()
}

// TestNamesForReplies: what of a client's name is shown, and what is looked for.
func TestNamesForReplies(t *testing.T) {
	for name, want := range map[string]string{
		"mx.example": "mx.example", "a b<c>(d)\\e\";@f": "a?b?c??d??e???f", "\x00\x1f\x7f\u0085x": "????x", "bücher.example": "bücher.example",
	} {
		if got := neutered(name); got != want {
			t.Errorf("neutered %q: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"mx.example": "mx.example", "b\xfccher": "b?cher", "bü": "b??", "~\x7f": "~\x7f"} {
		if got := masked(name); got != want {
			t.Errorf("masked %q: %q, want %q", name, got, want)
		}
	}
}

// TestMoreAfterQUIT: who says more after QUIT gets its reply and an orderly end
// all the same, no reset that may overtake them.
func TestMoreAfterQUIT(t *testing.T) {
	s, _ := newServer(t)
	ln := listen(t)
	serve(t, s, ln)
	for range 5 {
		c := dial(t, ln)
		_, err := io.WriteString(c, "EHLO x\r\nQUIT\r\n"+strings.Repeat("x", 60_000)) // less than sockets hold
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(said), "\r\n221 ") {
			t.Errorf("%q, %v", said, err)
		}
		c.Close()
	}
}

// TestLoneLineFeed: a line of nothing but a line feed is one, and is answered: a
// client that sends it doesn't wait for its time-out.
func TestLoneLineFeed(t *testing.T) {
	text := []byte("\nQUIT\r\n")
	in, skipped := &input{buf: text, w: len(text)}, 0
	for _, want := range []string{"\n", "QUIT\r\n", ""} {
		if line, err := in.line(&skipped); string(line) != want || err != nil {
			t.Errorf("got %q, %v, want %q", line, err, want)
		}
	}
}
