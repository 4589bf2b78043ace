package policy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// TestMiltersInTurn: which milters are asked, some of which filters of ours stand
// for, and what one hears of another. The author's domain rejects by DMARC what it
// hasn't signed.
func TestMiltersInTurn(t *testing.T) {
	public, key, _ := ed25519.GenerateKey(nil)
	dns := &testmx.MapResolver{TXT: map[string][]string{
		"_dmarc.author.test": {"v=DMARC1; p=reject"}, "k._domainkey.author.test": {"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)}}}
	const unsigned = "From: a@author.test\r\nSubject: it\r\n\r\ntext\r\n"
	var signed bytes.Buffer
	o := &dkim.SignOptions{Domain: "author.test", Selector: "k", Signer: key, HeaderKeys: []string{"From", "Subject"}}
	if err := dkim.Sign(&signed, strings.NewReader(unsigned), o); err != nil {
		t.Fatal(err)
	}
	dkim := func(none string, exempt ...string) Milter {
		return Milter{Where: "unix:/dkim", DKIM: &DKIMFilter{BadSignature: "reject", NoSignature: none, KeyNotFound: "accept", Security: "tempfail", Quarantine: true, Exempt: exempt}}
	}
	dmarc := Milter{Where: "unix:/dmarc", DMARC: &DMARCFilter{RejectFailures: true, DKIM: true}}
	second := dmarc
	second.Where = "unix:/second"
	other := Milter{Where: "unix:/other"}
	const byDKIM, byDMARC = "reject by opendkim no signature", "reject by opendmarc fail, p=reject"
	for _, tt := range []struct {
		name     string
		access   string // of a restriction at the end of data
		milters  []Milter
		standIns string // the milters for which filters stand, each with its word
		message  string
		want     string // who decides, and which filters were asked
	}{
		{"opendmarc hears of opendkim's signatures", "", []Milter{dkim("accept"), dmarc}, "", signed.String(), "permit"},
		{"opendmarc comes first", "", []Milter{dmarc, dkim("accept")}, "", signed.String(), byDMARC},
		{"no signature", "", []Milter{dkim("accept"), dmarc}, "", unsigned, byDMARC},
		{"a stand-in's signatures", "", []Milter{dkim("accept"), dmarc}, "/dkim permit", signed.String(), "permit, /dkim asked"},
		{"a stand-in without signatures", "", []Milter{dkim("reject"), dmarc}, "/dkim permit", unsigned, byDMARC + ", /dkim asked"},
		{"a stand-in that isn't opendkim", "", []Milter{other, dmarc}, "/other permit", signed.String(), byDMARC + ", /other asked"},
		{"a stand-in for opendmarc", "", []Milter{dmarc}, "/dmarc permit", unsigned, "permit, /dmarc asked"},
		{"a stand-in for opendmarc tells the next nothing", "", []Milter{dmarc, second}, "/dmarc permit", signed.String(), byDMARC + ", /dmarc asked"},
		{"a stand-in rejects", "", []Milter{other, dmarc}, "/other reject", unsigned, "reject by filter, /other asked"},
		{"a stand-in discards", "", []Milter{other, dmarc}, "/other discard", unsigned, "discard by filter, /other asked"},
		{"a stand-in holds", "", []Milter{other, dmarc}, "/other hold", unsigned, "hold by filter, /other asked"},
		{"nobody stands for it", "", []Milter{other, dmarc}, "", unsigned, byDMARC},
		{"opendkim discards", "", []Milter{dkim("discard"), dmarc}, "", unsigned, "discard by opendkim no signature"},
		{"opendkim holds", "", []Milter{dkim("quarantine"), dmarc}, "", unsigned, "hold by opendkim no signature"},
		{"opendkim rejects", "", []Milter{dkim("reject"), dmarc}, "", unsigned, byDKIM},
		{"an author's domain that it doesn't look at", "", []Milter{dkim("reject", "AUTHOR.test")}, "", unsigned, "permit"},
		{"refused before", "REJECT", []Milter{other}, "/other discard", unsigned, "reject by check_client_access"},
		{"discarded before", "DISCARD", []Milter{other}, "/other reject", unsigned, "discard by check_client_access"},
		{"held before", "HOLD", []Milter{other, dmarc}, "/other permit", unsigned, byDMARC + ", /other asked"},
		{"held before, and nobody minds", "HOLD", []Milter{other}, "/other permit", unsigned, "hold by check_client_access, /other asked"},
		{"held before and by a milter", "HOLD", []Milter{other, dmarc}, "/other hold", unsigned, "hold by check_client_access, /other asked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := NewSpec()
			spec.Addresses.Relay = AddressClass{Domains: []string{"here.test"}}
			spec.Filters.Milters = tt.milters
			if tt.access != "" {
				spec.Restrictions.EndOfData = []Restriction{{Kind: "check_client_access", Arg: "all"}}
				spec.Tables = map[string]*table.Table{"all": table.NewStatic(tt.access)}
			}
			snap, err := Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			s := snap.Session(dns, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Helo: "h.test", Name: "client.test", NameStatus: envelope.NameOK})
			defer s.Close()
			stands, word, _ := strings.Cut(tt.standIns, " ")
			s.StandIns(func(u *MilterUse) bool { return stands != "" && strings.HasSuffix(u.Name, stands) })
			s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "author.test"}}, MailParams{})
			s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "b", Domain: "here.test"}})
			s.Data(t.Context())
			if w := s.Content(); w != nil {
				w.Write([]byte(tt.message))
			}
			asked := ""
			v := s.Message(t.Context(), Message{Size: int64(len(tt.message)), Ask: func(ctx context.Context, i int) Verdict {
				asked += ", " + strings.TrimPrefix(s.Milters(ctx)[i].Name, "unix:") + " asked"
				answer := map[string]Verdict{"permit": {Action: Permit}, "discard": {Action: Discard}, "hold": {Action: Hold}, "reject": {Action: Reject, Reply: milterReject}}[word]
				answer.Rule = Rule{Stage: EndOfData, Kind: "filter"}
				return answer
			}})
			got := v.Action.String()
			if v.Action != Permit {
				got += " by " + v.Rule.Kind
				if strings.HasPrefix(v.Rule.Kind, "open") {
					got += " " + v.Rule.Key
				}
			}
			if got += asked; got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}
