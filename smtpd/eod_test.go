package smtpd

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// oneMessage sends a message as a client, and returns the reply to it.
func oneMessage(c *client, body, want string) {
	c.send("MAIL FROM:<>\r\n")
	c.want("250")
	c.send("RCPT TO:<alice@corp.example>\r\n")
	c.want("250")
	c.send("DATA\r\n")
	c.want("354")
	c.send(body + ".\r\n")
	c.want(want)
}

// TestEndOfDataActions is about HOLD and DISCARD that come after the message.
func TestEndOfDataActions(t *testing.T) {
	for _, action := range []string{"HOLD", "DISCARD", "OK"} {
		s, spool := newServer(t)
		snap := snapshot(t, func(spec *policy.Spec) {
			table, err := table.NewHash(map[string]string{"192.0.2.9": action})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables["eod"] = table
			spec.Restrictions.EndOfData = []policy.Restriction{{Kind: "check_client_access", Arg: "eod"}}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		ln := newPipeListener()
		stop := serve(t, s, ln)
		c := newClient(t, ln.dial("192.0.2.9"))
		c.want("220")
		oneMessage(c, "x\r\n", "250 2.0.0 Ok: queued as")
		c.Close()
		stop()
		kept := spool.messages
		if (len(kept) == 0) != (action == "DISCARD") {
			t.Errorf("%s: %d messages kept", action, len(kept))
		}
		for _, m := range kept {
			if m.env.Hold != (action == "HOLD") {
				t.Errorf("%s: held: %v", action, m.env.Hold)
			}
		}
	}
}

// TestOwnHopLimit is about a policy without one: 100 Received fields, ours
// among them, are too many.
func TestOwnHopLimit(t *testing.T) {
	s, _ := newServer(t)
	snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.Hops = 0 })
	s.Policy = func() *policy.Snapshot { return snap }
	ln := newPipeListener()
	stop := serve(t, s, ln)
	c := newClient(t, ln.dial("192.0.2.9"))
	c.want("220")
	hop := "Received: from a\r\n"
	oneMessage(c, strings.Repeat(hop, 98)+"\r\n", "250")
	oneMessage(c, strings.Repeat(hop, 99)+"\r\n", "554 5.4.0")
	c.Close()
	stop()
}
