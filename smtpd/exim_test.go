package smtpd

import (
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// eximSnapshot is a policy in an Exim's words.
func eximSnapshot(t *testing.T) *policy.Snapshot {
	return snapshot(t, func(s *policy.Spec) {
		s.ACL = &policy.ACL{
			Hostname: "mx.test", Stages: map[string]string{"rcpt": "rcpt", "data": "data"},
			Lists: map[string][]policy.ACLStatement{
				"rcpt": {
					{Verb: "discard", Items: []policy.ACLCondition{{Kind: "local_parts", Arg: "devnull"}}},
					{Verb: "accept", Items: []policy.ACLCondition{{Kind: "domains", Arg: "corp.example"}}},
				},
				"data": {
					{Verb: "deny", Items: []policy.ACLCondition{{Kind: "condition", Arg: "${if def:h_X-Bad:}"}}},
					{Verb: "accept"},
				},
			},
		}
	})
}

// TestDiscardOne: an Exim's discard is about one recipient; the others get the message.
// Where all are lost nothing judges it, and RSET doesn't bring it to mind.
func TestDiscardOne(t *testing.T) {
	srv, spool := newServer(t)
	snap := eximSnapshot(t)
	srv.Policy = func() *policy.Snapshot { return snap }
	talk(t, srv, `S: 220
C: EHLO a.example
S: 250
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<devnull@corp.example>
S: 250
C: RCPT TO:<alice@corp.example>
S: 250
C: DATA
S: 354
C: X: 1
C:
C: .
S: 250
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<devnull@corp.example>
S: 250
C: DATA
S: 354
C: X-Bad: 1
C:
C: .
S: 250
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<alice@corp.example>
S: 250
C: DATA
S: 354
C: X-Bad: 1
C:
C: .
S: 550
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<devnull@corp.example>
S: 250
C: RSET
S: 250
C: DATA
S: 503
C: MAIL FROM:<b@x.example>
S: 250
C: DATA
S: 354
C: X-Bad: 1
C:
C: .
S: 250
C: DATA
S: 503
C: MAIL FROM:<b@x.example>
S: 250
C: DATA
S: 554
`)
	got := spool.accepted()
	if len(got) != 1 || len(got[0].env.To) != 1 || got[0].env.To[0].Path.String() != "alice@corp.example" {
		t.Errorf("kept %+v", got)
	}
}

// TestLikeExim: a SIZE= is forgotten with its MAIL, and parameters need EHLO.
func TestLikeExim(t *testing.T) {
	srv, _ := newServer(t)
	snap := eximSnapshot(t)
	srv.Policy = func() *policy.Snapshot { return snap }
	talk(t, srv, `S: 220
C: HELO a.example
S: 250
C: MAIL FROM:<b@x.example> SIZE=1
S: 501 5.5.4
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<alice@corp.example> NOTIFY=NEVER
S: 501 5.5.4
C: EHLO a.example
S: 250
C: MAIL FROM:<b@x.example> SIZE=99999999
S: 552
C: MAIL FROM:<b@x.example>
S: 250
C: RCPT TO:<alice@corp.example> NOTIFY=NEVER
S: 250
C: RSET
S: 250
C: HELO _
S: 501
C: MAIL FROM:<b@x.example> SIZE=1
S: 501 5.5.4
`)
}

// TestHeloOfOctets: a HELO name that isn't UTF-8 has a form to be refused for, and the
// name before it is forgotten. Other commands stay UTF-8.
func TestHeloOfOctets(t *testing.T) {
	srv, _ := newServer(t)
	snap := snapshot(t, func(s *policy.Spec) {
		s.ACL = &policy.ACL{
			Hostname: "mx.test", Stages: map[string]string{"mail": "mail"},
			Lists: map[string][]policy.ACLStatement{"mail": {
				{Verb: "deny", Items: []policy.ACLCondition{{Kind: "condition", Arg: "${if eq{$sender_helo_name}{a.example}}"}}},
				{Verb: "accept"},
			}},
		}
	})
	srv.Policy = func() *policy.Snapshot { return snap }
	talk(t, srv, "S: 220\nC: EHLO a.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 550\n"+
		"C: EHLO \xff.example\nS: 501\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RSET\nS: 250\nC: MAIL FROM:<\xff@x.example>\nS: 500 5.5.2\n")
}
