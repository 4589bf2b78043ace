package policy

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestDNSQuery: what dnsdb asks for, and what isn't asked.
func TestDNSQuery(t *testing.T) {
	for s, want := range map[string]string{
		"ptr=192.0.2.1":                        "ptr 192.0.2.1",
		">: defer_never,ptr=2001:db8::1":       "ptr 2001:db8::1",
		"defer_strict,mx=a.example":            "mx a.example",
		"a=one.example:two.example":            "a one.example two.example",
		">;, retrans_1s,retry_2,txt=x.example": "txt x.example",
		"x.example":                            "txt x.example",
	} {
		q, err := parseDNSQuery(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if got := q.typ + " " + strings.Join(q.names, " "); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
	for _, s := range []string{"tlsa=x.example", "whatever,a=x"} {
		if CheckDNSQuery(s) == nil {
			t.Errorf("%s: no error", s)
		}
	}
}

// TestManyNames: a client whose HELO, header or address is a list of names has few of them looked up.
func TestManyNames(t *testing.T) {
	for kind, arg := range map[string]string{
		"condition": "${lookup dnsdb{a=$sender_address_local_part}{yes}{no}}",
		"dnslists":  "list.example/$sender_address_local_part",
	} {
		for n, want := range map[int]Action{maxNames: Permit, maxNames + 1: Defer} {
			s := manyLists(t, 0, func(s *Spec) {
				s.ACL = &ACL{Hostname: "mx.test", Stages: map[string]string{"mail": "mail"}, Lists: map[string][]ACLStatement{"mail": {
					{Verb: "deny", Items: []ACLCondition{{Kind: kind, Arg: arg}}}, {Verb: "accept"},
				}}}
			}).Session(&testmx.MapResolver{}, client)
			who := from
			who.Mailbox.Local = strings.Repeat("x:", n-1) + "x"
			if v := s.Mail(t.Context(), who, MailParams{}); v.Action != want {
				t.Errorf("%s of %d names: %v %v", kind, n, v.Action, v.Reply)
			}
			s.Close()
		}
	}
}
