package policy

import (
	"context"
	"net/netip"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// TestConfine: whatever a policy opens, only the allowed domains are let in.
func TestConfine(t *testing.T) {
	permit := []Restriction{{Kind: "permit"}}
	all, err := table.NewRegexp([][2]string{{"/./x", "OK"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, door := range []struct {
		name string
		open func(s *Spec)
	}{
		{"domains", func(s *Spec) {
			s.Addresses.Relay.Domains = []string{"allowed.example", "victim.example", ".sub.example"}
		}},
		{"names that match", func(s *Spec) { s.Addresses.Relay.Match = []string{"victim.example"} }},
		{"patterns that match", func(s *Spec) {
			s.Tables = map[string]*table.Table{"all": all}
			s.Addresses.VirtualMailbox.Match = []string{"table:all"}
		}},
		{"mynetworks", func(s *Spec) {
			s.MyNetworks = []string{"0.0.0.0/0"}
			s.Restrictions.Relay = []Restriction{{Kind: "permit_mynetworks"}}
		}},
		{"restriction that permits", func(s *Spec) { s.Restrictions.Relay, s.Restrictions.Recipient = permit, permit }},
		{"no restriction", func(*Spec) {}},
		{"origin of probes", func(s *Spec) { s.Addresses.MyOrigin = "victim.example" }},
	} {
		t.Run(door.name, func(t *testing.T) {
			s := NewSpec()
			s.RejectUnlistedRcpt = false
			door.open(s)
			open, err := Compile(s)
			if err != nil {
				t.Fatal(err)
			}
			confined := open.Confine([]string{"Allowed.example", ".sub.example"})
			for to, want := range map[string]int{
				"u@allowed.example": 250, "u@a.sub.example": 250, "u@a.b.sub.example": 250, "postmaster": 250,
				"u@victim.example": 450, "u@x.allowed.example": 450, "u@sub.example": 450, "u@notallowed.example": 450,
				"u@xsub.example": 450, "u@[192.0.2.1]": 450, "double-bounce@victim.example": 450, "u%victim.example@x.example": 450,
				"postmaster@victim.example": 450,
			} {
				if asked := rcptCode(t, open, to); asked != 250 {
					continue // the door isn't open for it
				}
				if got := rcptCode(t, confined, to); got != want {
					t.Errorf("%s is answered %d, want %d", to, got, want)
				}
			}
			if rcptCode(t, open, "u@victim.example") != 250 && rcptCode(t, open, "double-bounce@victim.example") != 250 {
				t.Error("the door isn't open")
			}
		})
	}
}

func rcptCode(t *testing.T, s *Snapshot, to string) int {
	t.Helper()
	ctx := context.Background()
	se := s.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	defer se.Close()
	se.Helo(ctx, "client.example")
	se.Mail(ctx, envelope.ReversePath{}, MailParams{})
	m := envelope.Mailbox{Local: to}
	if to != "postmaster" {
		var err error
		if m, err = envelope.ParseMailbox(to); err != nil {
			t.Fatal(err)
		}
	}
	v := se.Rcpt(ctx, envelope.ForwardPath{Mailbox: m})
	if v.Action == Permit {
		return 250
	}
	if v.Rule.Kind == kindForeignDomain && v.Action != Defer {
		t.Errorf("%s: %+v", to, v)
	}
	return v.Reply.Code
}
