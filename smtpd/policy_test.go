package smtpd

import (
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// TestPolicyInTheDoor: what a policy says about content, commands and their
// order is asked and obeyed.
func TestPolicyInTheDoor(t *testing.T) {
	patterns, err := policy.NewPCRE([][2]string{{`/^(Subject: spam|buy now)/is`, "REJECT"}, {`/^LHLO (.*)/is`, "EHLO $1"}})
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
		{"bare LF refused unless the policy says so", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 550 5.6.0\nS: CLOSED\n", nil},
		{"bare LF as the policy says", mail + "C! \"a\\nb\\r\\n.\\r\\n\"\nS: 250 2.0.0\n",
			func(s *policy.Spec) { s.Protocol.BareNewline = "normalize" }},
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
