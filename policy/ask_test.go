package policy

import (
	"bytes"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// TestAsk: the primary is asked about a recipient exactly when the evaluation
// comes past the rule and nothing refuses.
func TestAsk(t *testing.T) {
	must := Restriction{kindAsk, "check_policy_service:unix:grey"}
	may := Restriction{kindAskElseIgnore, "x"}
	warn, permit := Restriction{Kind: kindWarn}, Restriction{Kind: "permit_mynetworks"}
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   string // Verdict.Ask
		must   bool
		code   int // of the verdict, 0 when it lets the recipient in
	}{
		{"no such rule", func(s *Spec) {}, "", false, 0},
		{"recipient", func(s *Spec) { s.Restrictions.Recipient = []Restriction{must} }, "rcpt ask_primary check_policy_service:unix:grey", true, 0},
		{"client", func(s *Spec) { s.Restrictions.Client = []Restriction{must} }, "connect ask_primary check_policy_service:unix:grey", true, 0},
		{"client, at once", func(s *Spec) { s.DelayReject = false; s.Restrictions.Client = []Restriction{must} }, "connect ask_primary check_policy_service:unix:grey", true, 0},
		{"helo, at once", func(s *Spec) { s.DelayReject = false; s.Restrictions.Helo = []Restriction{may} }, "helo ask_primary_else_ignore x", false, 0},
		{"sender, at once", func(s *Spec) { s.DelayReject = false; s.Restrictions.Sender = []Restriction{must} }, "mail ask_primary check_policy_service:unix:grey", true, 0},
		{"the stricter one counts", func(s *Spec) {
			s.Restrictions.Client, s.Restrictions.Recipient = []Restriction{may}, []Restriction{may, must}
		}, "rcpt ask_primary check_policy_service:unix:grey", true, 0},
		{"in a class", func(s *Spec) {
			s.Classes = map[string][]Restriction{"grey": {may}}
			s.Restrictions.Recipient = []Restriction{{Kind: "grey"}}
		}, "rcpt ask_primary_else_ignore x", false, 0},
		{"permitted before", func(s *Spec) { s.Restrictions.Recipient = []Restriction{permit, must} }, "", false, 0},
		{"permitted in another list", func(s *Spec) {
			s.Restrictions.Sender, s.Restrictions.Recipient = []Restriction{permit, must}, []Restriction{may, permit}
		}, "rcpt ask_primary_else_ignore x", false, 0},
		{"only a warning", func(s *Spec) { s.Restrictions.Recipient = []Restriction{warn, must} }, "", false, 0},
		{"refused behind it", func(s *Spec) { s.Restrictions.Recipient = []Restriction{must, {Kind: "reject"}} }, "", false, 554},
		{"unknown recipient", func(s *Spec) {
			s.Restrictions.Recipient, s.Addresses.Relay.Recipients = []Restriction{must}, []string{"nobody"}
		}, "", false, 550},
		{"at DATA", func(s *Spec) { s.Restrictions.Data = []Restriction{may} }, "", false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := NewSpec()
			nobody, err := table.NewSet([]string{"nobody@example.org"})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables = map[string]*table.Table{"nobody": nobody}
			spec.MyNetworks = []string{"192.0.2.0/24"}
			spec.Addresses.Relay.Domains = []string{"example.org"}
			spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
			tt.change(spec)
			v, _ := judge(t, spec)
			got := ""
			if v.Ask.Kind != "" {
				got = v.Ask.String()
			}
			if got != tt.want || v.MustAsk() != tt.must || v.Reply.Code != tt.code {
				t.Errorf("asks %q, must %t, reply %v; want %q, %t, %d", got, v.MustAsk(), v.Reply, tt.want, tt.must, tt.code)
			}
			if v.Ask.Kind != "" && v.Rule != v.Ask {
				t.Errorf("the rule is %v", v.Rule)
			}
		})
	}
}

// judge plays a session up to DATA against a policy that went through its
// canonical encoding.
func judge(t *testing.T, spec *Spec) (rcpt, data Verdict) {
	t.Helper()
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if has := bytes.Contains(snap.Encode(), []byte(kindAsk)); snap.Asks() != has {
		t.Errorf("Asks says %t", snap.Asks())
	}
	if snap, err = decode("snapshot", snap.Encode()); err != nil {
		t.Fatal(err)
	}
	c := client
	c.Name, c.NameStatus = "mail.sender.example", envelope.NameOK
	s := snap.Session(&testmx.MapResolver{}, c)
	defer s.Close()
	s.Connect(t.Context())
	s.Helo(t.Context(), "mail.sender.example")
	s.Mail(t.Context(), from, MailParams{})
	return s.Rcpt(t.Context(), to), s.Data(t.Context())
}

// TestAskAtData: what must be asked there defers, since it can't be.
func TestAskAtData(t *testing.T) {
	spec := NewSpec()
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Restrictions.Data = []Restriction{{Kind: kindAsk}}
	rcpt, data := judge(t, spec)
	if rcpt.Action != Permit || rcpt.Ask.Kind != "" || data.Reply.Code != 450 || data.Rule.Kind != kindAsk {
		t.Errorf("RCPT %+v, DATA %+v", rcpt, data)
	}
}

// TestAskEach: who needs no asking isn't asked about because another did.
func TestAskEach(t *testing.T) {
	spec := NewSpec()
	some, err := table.NewHash(map[string]string{"alice@example.org": "ask_primary service"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*table.Table{"some": some}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Restrictions.Recipient = []Restriction{{"check_recipient_access", "some"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	s.Mail(t.Context(), from, MailParams{})
	alice := s.Rcpt(t.Context(), to)
	bob := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "bob", Domain: "example.org"}})
	if !snap.Asks() || !alice.MustAsk() || alice.Ask.Key != "service" || bob.Ask.Kind != "" {
		t.Errorf("Asks %t, alice %v, bob %v", snap.Asks(), alice.Ask, bob.Ask)
	}
}

// TestWithdraw: a recipient whom the primary refused doesn't count.
func TestWithdraw(t *testing.T) {
	spec := NewSpec()
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Restrictions.Data = []Restriction{{Kind: "reject_multi_recipient_bounce"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for withdrawn, want := range map[bool]Action{false: Reject, true: Permit} {
		s := snap.Session(&testmx.MapResolver{}, client)
		s.Mail(t.Context(), envelope.ReversePath{}, MailParams{})
		s.Rcpt(t.Context(), to)
		s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "bob", Domain: "example.org"}})
		if withdrawn {
			s.Withdraw()
		}
		if v := s.Data(t.Context()); v.Action != want {
			t.Errorf("withdrawn %t: %v", withdrawn, v)
		}
		s.Close()
	}
}
