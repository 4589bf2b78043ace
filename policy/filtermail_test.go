package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestMilters: what a milter's word becomes. That it is the word of the real
// programs, test/parity and internal/mailauth compare.
func TestMilters(t *testing.T) {
	unsigned := "From: a@author.test\r\nDate: x\r\n\r\ntext\r\n"
	signed := "DKIM-Signature: v=1; a=rsa-sha256; d=author.test; s=%s; h=from; bh=x; b=y\r\n" + unsigned
	dkim := func(bad, none, key string) []Milter {
		return []Milter{{DKIM: &DKIMFilter{BadSignature: bad, NoSignature: none, KeyNotFound: key, Security: "tempfail", MaxHeader: 2000, Quarantine: true, Peers: []string{"192.0.2.9"}}}}
	}
	dmarc := func(d DMARCFilter) []Milter { return []Milter{{DMARC: &d}} }
	strict := DMARCFilter{RejectFailures: true, Quarantine: true, RejectString: "no: %s"}
	for _, tt := range []struct {
		name, client, message string
		milters               []Milter
		record                string // of DMARC
		want                  string
	}{
		{"accepted", "192.0.2.1", unsigned, dkim("reject", "accept", "accept"), "", "permit"},
		{"rejected", "192.0.2.1", unsigned, dkim("accept", "reject", "accept"), "", "reject 550 5.7.0 no DKIM signature data"},
		{"a peer's", "192.0.2.9", unsigned, dkim("accept", "reject", "accept"), "", "permit"},
		{"discarded", "192.0.2.1", unsigned, dkim("accept", "discard", "accept"), "", "discard"},
		{"quarantined", "192.0.2.1", unsigned, dkim("accept", "quarantine", "accept"), "", "hold"},
		{"no key", "192.0.2.1", fmt.Sprintf(signed, "gone"), dkim("accept", "accept", "reject"), "", "reject 550 5.7.0 DKIM key retrieval failed"},
		{"no answer", "192.0.2.1", fmt.Sprintf(signed, "broken"), dkim("accept", "accept", "reject"), "", "defer 451 4.7.5 DKIM key retrieval failed"},
		{"no answer, no matter", "192.0.2.1", fmt.Sprintf(signed, "broken"), dkim("reject", "accept", "accept"), "", "permit"},
		{"syntax", "192.0.2.1", "DKIM-Signature: x\r\n" + unsigned, dkim("reject", "accept", "accept"), "", "reject 550 5.7.0 DKIM signature syntax error"},
		{"header too large", "192.0.2.1", "X: " + strings.Repeat("x", 3000) + "\r\n" + unsigned, dkim("reject", "accept", "accept"), "", "defer 451 4.7.1 Service unavailable - try again later"},
		{"the first decides", "192.0.2.1", unsigned, append(dkim("accept", "tempfail", "accept"), dmarc(strict)...), "v=DMARC1; p=reject", "defer 451 4.7.0 no DKIM signature data"},
		{"the second, too", "192.0.2.1", unsigned, append(dkim("reject", "accept", "accept"), dmarc(strict)...), "v=DMARC1; p=reject", "reject 550 5.7.1 no: author.test"},
		{"DMARC quarantines", "192.0.2.1", unsigned, dmarc(strict), "v=DMARC1; p=quarantine", "hold"},
		{"a coin", "192.0.2.1", unsigned, dmarc(strict), "v=DMARC1; p=reject; pct=50", "defer 451 4.7.1 Service unavailable - try again later"},
		{"no percent", "192.0.2.1", unsigned, dmarc(strict), "v=DMARC1; p=reject; pct=0", "permit"},
		{"DMARC without an answer", "192.0.2.1", strings.Replace(unsigned, "author", "silent", 1), dmarc(strict), "", "permit"},
		{"DMARC without an answer, and the operator defers", "192.0.2.1", strings.Replace(unsigned, "author", "silent", 1), dmarc(strict), "", "defer 451 4.7.1 Service unavailable - try again later"},
		{"ignored author", "192.0.2.1", unsigned, dmarc(DMARCFilter{RejectFailures: true, IgnoreDomains: []string{"AUTHOR.test"}}), "v=DMARC1; p=reject", "permit"},
		{"SPF of its own", "192.0.2.1", unsigned, dmarc(DMARCFilter{RejectFailures: true, SelfSPF: true}), "v=DMARC1; p=reject", "permit"},
		{"required fields", "192.0.2.1", "From: a@author.test\r\n\r\n", dmarc(DMARCFilter{RequiredHeaders: true}), "", "reject 550 5.7.1 Command rejected"},
		{"several authors", "192.0.2.1", "From: a@a.test, b@b.test\r\n\r\n", dmarc(DMARCFilter{RejectMultiFrom: true}), "", "reject 550 5.7.1 Command rejected"},
	} {
		spec := NewSpec()
		spec.Addresses.Relay = AddressClass{Domains: []string{"here.test"}}
		spec.Filters.Milters = tt.milters
		snap, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		r := &testmx.MapResolver{TXT: map[string][]string{"author.test": {"v=spf1 ip4:192.0.2.1 -all"}}, Fail: []string{"broken._domainkey.author.test", "_dmarc.silent.test"}}
		if tt.record != "" {
			r.TXT["_dmarc.author.test"] = []string{tt.record}
		}
		s := snap.Session(r, envelope.Client{Addr: netip.MustParseAddr(tt.client), Helo: "h.test", Name: "client.test", NameStatus: envelope.NameOK})
		if strings.HasSuffix(tt.name, "the operator defers") {
			s.DeferUnanswered()
		}
		s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "author.test"}}, MailParams{})
		s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "b", Domain: "here.test"}})
		s.Data(t.Context())
		s.Content().Write([]byte(tt.message))
		v := s.Message(t.Context(), Message{Size: int64(len(tt.message))})
		s.Close()
		got := v.Action.String()
		if v.Reply.Code != 0 {
			got += fmt.Sprintf(" %d %s %s", v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	for _, bad := range []Filters{{Milters: []Milter{{}}}, {Milters: dkim("bounce", "accept", "accept")}, {Milters: dmarc(DMARCFilter{SPF: "gone"})},
		{SPF: map[string]SPFService{"x": {HELO: "Fail", MailFrom: "Fail", Seconds: 20, VoidLookups: 2, Skip: []string{"x"}}}}, {SPF: map[string]SPFService{"x": {}}}} {
		spec := NewSpec()
		spec.Filters = bad
		if _, err := Compile(spec); err == nil {
			t.Errorf("%+v compiles", bad)
		}
	}
}
