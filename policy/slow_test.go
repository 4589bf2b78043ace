package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// endless is a pattern that takes too long on a name such as slow.
const endless = `/^(?=(a))(((\1+)+)+)+!/`

var slow = strings.Repeat("a", 60)

// TestSlowPattern: who can't be looked up in time is put off, whatever the
// table is for.
func TestSlowPattern(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"restriction list": func(s *Spec) {
			s.RejectUnlistedRcpt = false // nothing is looked up after it
			s.Restrictions.Recipient = []Restriction{{Kind: "check_recipient_access", Arg: "slow"}}
		},
		"class": func(s *Spec) {
			s.RejectUnlistedRcpt = false
			s.Classes = map[string][]Restriction{"late": {{Kind: "check_recipient_access", Arg: "slow"}}}
			s.Restrictions.Recipient = []Restriction{{Kind: "late"}}
		},
		"recipient table": func(s *Spec) { s.Addresses.Relay.Recipients = []string{"slow"} },
	} {
		s := slowSession(t, change)
		s.Mail(t.Context(), envelope.ReversePath{}, MailParams{})
		v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: slow, Domain: "relay.example"}})
		if v.Action != Defer || v.Reply.Code != 451 {
			t.Errorf("%s: %v %s", name, v.Action, v.Reply)
		}
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "b!", Domain: "relay.example"}}); v.Reply.Code == 451 {
			t.Errorf("%s: the next: %s", name, v.Reply)
		}
	}
}

// TestSlowNetworkList: a look-up that failed between the commands isn't held
// against the next of them.
func TestSlowNetworkList(t *testing.T) {
	s := slowSession(t, func(s *Spec) {
		s.Protocol.BareNewline = "reject"
		s.Protocol.BareNewlineExclusions = []string{"table:slow"}
	})
	if s.BareNewline(t.Context()); !s.find.failed {
		t.Fatal("the look-up took no time")
	}
	if v := s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "b.example"}}, MailParams{}); v.Action != Permit {
		t.Errorf("MAIL: %s", v.Reply)
	}
}

func slowSession(t *testing.T, change func(*Spec)) *Session {
	pcre, err := table.NewPCRE([][2]string{{endless, "OK"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"slow": pcre}
	spec.Addresses.Relay.Domains = []string{"relay.example"}
	change(spec)
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	client := envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: slow + ".example", NameStatus: envelope.NameOK}
	return snap.Session(nil, client)
}

// TestPatternTakesTooLong: a pattern that would take years is answered later.
func TestPatternTakesTooLong(t *testing.T) {
	spec := NewSpec()
	evil, err := table.NewPCRE([][2]string{{`/^(?=a)(a+)+$/s`, "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*table.Table{"evil": evil}
	spec.Restrictions.Sender = []Restriction{{"check_sender_access", "evil"}}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	slowly := envelope.ReversePath{Mailbox: envelope.Mailbox{Local: strings.Repeat("a", 60), Domain: "x.example"}}
	s.Mail(t.Context(), slowly, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Reply.Code != 451 || v.Reply.Enhanced != "4.3.0" {
		t.Errorf("got %v", v.Reply)
	}
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Action != Permit {
		t.Errorf("got %v, the failure outlived its look-up", v.Reply)
	}
}
