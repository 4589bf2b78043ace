package smtpd

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// TestPolicyInTheDoor: what a policy says about content, commands and their
// order is asked and obeyed.
func TestPolicyInTheDoor(t *testing.T) {
	patterns, err := table.NewPCRE([][2]string{{`/^(Subject: spam|buy now)/is`, "REJECT"}, {`/^b\?cher/`, "REJECT"}, {`/^LHLO (.*)/is`, "EHLO $1"}})
	if err != nil {
		t.Fatal(err)
	}
	checks := func(s *policy.Spec) {
		s.Tables["patterns"] = patterns
		s.Content = policy.ContentChecks{Header: []string{"patterns"}, Body: []string{"patterns"}}
	}
	const mail = "C: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\n"
	for _, tt := range []struct {
		name, script string
		change       func(*policy.Spec)
	}{
		{"header refused", mail + "C: Subject: spam\nC:\nC: hello\nC: .\nS: 550 5.7.1\nC: NOOP\nS: 250\n", checks},
		{"body refused", mail + "C: Subject: x\nC:\nC: hello\nC: buy now\nC: .\nS: 550 5.7.1\nC: NOOP\nS: 250\n", checks},
		{"stuffed body refused as unstuffed", mail + "C: Subject: x\nC:\nC: ..\nC: buy now\nC: .\nS: 550 5.7.1\n", checks},
		{"content passes", mail + "C: Subject: x\nC:\nC: hello\nC: .\nS: 250 2.0.0 Ok: queued\n", checks},
		{"command filter", "C: LHLO a\nS: 250-mx.test\n", func(s *policy.Spec) {
			s.Tables["patterns"], s.CommandFilter = patterns, []string{"patterns"}
		}},
		{"VRFY disabled", "C: VRFY alice\nS: 502 5.5.1\n", func(s *policy.Spec) { s.Protocol.DisableVRFY = true }},
		{"no SMTPUTF8 and no DSN", "C: EHLO b\xfccher.example\nS: /(?s)^250-mx.test\\n250-PIPELINING\\n250-SIZE 10240000\\n250-8BITMIME\\n250-ENHANCEDSTATUSCODES\\n250 LIMITS RCPTMAX=1000$/\n" +
			"C: MAIL FROM:<b\xfc@x.example>\nS: 501 5.1.7\nC: MAIL FROM:<b@x.example> SMTPUTF8\nS: 555 5.5.4\nC: MAIL FROM:<b@x.example> RET=HDRS\nS: 501 5.7.1\nC: MAIL FROM:<bü@x.example>\nS: 250\n",
			func(s *policy.Spec) { s.Protocol.NoUTF8, s.Protocol.Discard = true, []string{"DSN"} }},
		{"a HELO name in octets", "C: EHLO b\xfccher.example\nS: 554 5.7.1\nC: EHLO bcher.example\nS: 250\n", func(s *policy.Spec) {
			s.Protocol.NoUTF8, s.DelayReject = true, false
			s.Tables["patterns"], s.Restrictions.Helo = patterns, []policy.Restriction{{Kind: "check_helo_access", Arg: "patterns"}}
		}},
		{"an address before what follows it", "C: MAIL FROM:<-b@x.example> FOO\nS: 501 5.1.7\nC: MAIL FROM:<b@192.0.2.1> FOO\nS: 501 5.1.7\nC: MAIL FROM:<b@x.example>\nS: 250\n" +
			"C: RCPT TO:<-alice@corp.example> FOO\nS: 501 5.1.3\nC: RCPT TO:<alice@192.0.2.1> FOO\nS: 501 5.1.3\nC: RCPT TO:<alice@bücher.example> FOO\nS: 501 5.1.3\n", nil},
		{"an address as the policy allows it", "C: MAIL FROM:<-b@192.0.2.1> FOO\nS: 555\nC: MAIL FROM:<-b@192.0.2.1>\nS: 250\n",
			func(s *policy.Spec) { s.Addresses.AllowMinUser, s.Addresses.NumericDomain = true, true }},
		{"soft bounce", "C: FOO\nS: 400 4.5.2\nC: MAIL FROM:<-b@x.example>\nS: 401 4.1.7\n" + mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 450 4.6.0\n",
			func(s *policy.Spec) { s.SoftBounce = true }},
		{"bare LF refused unless the policy says so", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 550 5.6.0\nS: CLOSED\n", nil},
		{"bare LF as the policy says", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 250 2.0.0\n",
			func(s *policy.Spec) { s.Protocol.BareNewline = "normalize" }},
		{"bare LF refused as the policy says", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 554 5.5.2\nC! \"NOOP\\n\"\nS: 554 5.5.2\nS: CLOSED\n",
			func(s *policy.Spec) { s.Protocol.BareNewline, s.Protocol.BareNewlineCode = "reject", 554 }},
		{"bare LF from whom the policy excludes", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 250 2.0.0\nC! \"NOOP\\n\"\nS: 250\n",
			func(s *policy.Spec) {
				s.Protocol.BareNewline, s.Protocol.BareNewlineExclusions = "reject", []string{"0.0.0.0/0"}
			}},
		{"command that does nothing", "C! \"LURK\\r\\nNOOP\\r\\n\"\nS: 250 2.0.0\nS: 250 2.0.0\n", func(s *policy.Spec) { s.Protocol.NoopCommands = []string{"lurk"} }},
		{"command that ends the session", "C: HELP\nS: 221 2.7.0\nS: CLOSED\n", func(s *policy.Spec) { s.Protocol.ForbiddenCommands = []string{"HELP"} }},
		{"no command of SMTP's does", "C: NOOP\nS: 250\nC: ETRN x\nS: 459\n", func(s *policy.Spec) { s.Protocol.ForbiddenCommands = []string{"etrn", "noop"} }},
		{"pipelining forbidden", "C! \"EHLO a\\r\\nNOOP\\r\\n\"\nS: 554 5.5.0 Error: SMTP protocol synchronization\nS: CLOSED\n",
			func(s *policy.Spec) { s.Protocol.ForbidPipelining = true }},
		{"pipelining where it is allowed", "C: EHLO a\nS: 250\nC! \"MAIL FROM:<>\\r\\nRCPT TO:<alice@corp.example>\\r\\nDATA\\r\\n\"\nS: 250\nS: 250\nS: 354\n",
			func(s *policy.Spec) { s.Protocol.ForbidPipelining = true }},
		{"pipelining refused at DATA", "C: EHLO a\nS: 250\nC! \"MAIL FROM:<>\\r\\nRCPT TO:<alice@corp.example>\\r\\nDATA\\r\\nx\\r\\n\"\nS: 250\nS: 250\nS: 503 5.5.0\n",
			func(s *policy.Spec) { s.Restrictions.Data = []policy.Restriction{{Kind: "reject_unauth_pipelining"}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv, _ := newServer(t)
			snap := snapshot(t, tt.change)
			srv.Policy = func() *policy.Snapshot { return snap }
			talk(t, srv, "S: 220\n"+tt.script)
		})
	}
}

// TestExtensionsWithdrawn: a transaction is judged by the policy that is in force
// at MAIL. Where that has less than EHLO offered, the client may come again;
// where it has more, or the session never saw an EHLO, nothing is lost.
func TestExtensionsWithdrawn(t *testing.T) {
	with := snapshot(t, nil)
	without := snapshot(t, func(s *policy.Spec) { s.Protocol.NoUTF8 = true })
	for _, tt := range []struct {
		name, script string
		next         *policy.Snapshot
	}{
		{"withdrawn", "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 421 4.3.2\nS: CLOSED\n", without},
		{"withdrawn, not offered", "S: 220\nC: HELO a\nS: 250\nC: MAIL FROM:<b@x.example> SMTPUTF8\nS: 555 5.5.4\n", without},
		{"added", "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@bücher.example> SMTPUTF8\nS: 250\n", with},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv, _ := newServer(t)
			first := with
			if tt.next == with {
				first = without
			}
			asked := 0
			srv.Policy = func() *policy.Snapshot {
				if asked++; asked == 1 {
					return first
				}
				return tt.next
			}
			talk(t, srv, tt.script)
		})
	}
}

// TestRefusedSessions: a session that a policy's 421 ends was refused.
func TestRefusedSessions(t *testing.T) {
	for _, reply := range []string{"421 4.7.0 not now", "521 5.7.0 never"} {
		s, _ := newServer(t)
		snap := snapshot(t, func(spec *policy.Spec) {
			table, err := table.NewHash(map[string]string{"alice@corp.example": reply})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables["who"] = table
			spec.Restrictions.Recipient = []policy.Restriction{{Kind: "check_recipient_access", Arg: "who"}}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		talk(t, s, "S: 220\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: "+reply[:9]+"\nS: CLOSED\n")
		if n := testutil.ToFloat64(s.Metrics.Sessions.WithLabelValues("refused")); n != 1 {
			t.Errorf("%s: %v sessions refused", reply, n)
		}
	}
}
