package test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// verdictPolicy has a rule of every kind that the policy file knows.
const verdictPolicy = `
domains = ["example.org", "example.net"]
recipients = ["alice@example.org", "bob@example.org", "@example.net"]
recipient_delimiter = "+"

[client]
allow = ["192.0.2.50"]
block = ["198.51.100.0/24", { match = "203.0.113.9", reply = "no thank you" }]

[helo]
block = ["bad.helo.example"]

[sender]
block = ["spammer.example", "eve@good.example"]

[checks]
reject_unknown_sender_domain = true
reject_non_fqdn_sender = true
reject_invalid_helo_hostname = true

[[dnsbl]]
zone = "dnsbl.example"
codes = "127.0.0.[2..11]"
`

// TestVerdicts: one table drives policy explain and the server. Both must give
// the documented replies, with the DNS that a real server answers over UDP and
// TCP: lists, TXT, SERVFAIL, silence, truncation, error codes.
func TestVerdicts(t *testing.T) {
	dns, err := demo.StartDNS(
		"good.example. 60 IN MX 10 mail.good.example.",
		"spammer.example. 60 IN MX 10 mail.spammer.example.",
		"2.2.0.192.dnsbl.example. 60 IN A 127.0.0.2",
		`2.2.0.192.dnsbl.example. 60 IN TXT "listed, see https://dnsbl.example/192.0.2.2"`,
		"3.2.0.192.dnsbl.example. 60 IN A 127.255.255.254", // the list refused the question
		"4.2.0.192.dnsbl.example. 60 IN A 127.0.0.99",      // a code outside of the filter
		"5.2.0.192.dnsbl.example. 60 IN A 127.0.0.4",       // asked again over TCP
		"50.2.0.192.dnsbl.example. 60 IN A 127.0.0.2",      // listed, but on our allowlist
	)
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	dns.Behave("5.2.0.192.dnsbl.example.", demo.Behaviour{Truncate: true})
	dns.Behave("6.2.0.192.dnsbl.example.", demo.Behaviour{Drop: true})
	dns.Behave("broken.example.", demo.Behaviour{Rcode: 2})

	s := newSecondary(t, testmx.FreeAddr(), verdictPolicy, fmt.Sprintf("[dns]\nservers = [%q]\ntimeout = \"300ms\"\n", dns.Addr()))
	s.start()
	for _, tt := range []struct {
		name, client, helo, from, to string
		want                         string // prefix of the reply at RCPT
		rule                         string // within what explain names as the rule
	}{
		{"good mail", "192.0.2.1", "mail.good.example", "bob@good.example", "alice@example.org", "250 2.1.5", ""},
		{"null reverse-path", "192.0.2.1", "mail.good.example", "", "alice@example.org", "250 2.1.5", ""},
		{"subaddress", "192.0.2.1", "mail.good.example", "bob@good.example", "alice+lists@example.org", "250 2.1.5", ""},
		{"letter case", "192.0.2.1", "mail.good.example", "bob@good.example", "Alice@EXAMPLE.org", "250 2.1.5", ""},
		{"catch-all", "192.0.2.1", "mail.good.example", "bob@good.example", "anyone@example.net", "250 2.1.5", ""},
		{"unknown recipient", "192.0.2.1", "mail.good.example", "bob@good.example", "nobody@example.org", "550 5.1.1 ", "recipient"},
		{"foreign domain", "192.0.2.1", "mail.good.example", "bob@good.example", "alice@elsewhere.example", "554 5.7.1 <alice@elsewhere.example>: Relay access denied", "reject_unauth_destination"},
		{"subdomain of ours", "192.0.2.1", "mail.good.example", "bob@good.example", "alice@sub.example.org", "554 5.7.1", "reject_unauth_destination"},
		{"percent hack", "192.0.2.1", "mail.good.example", "bob@good.example", "alice%elsewhere.example@example.org", "554 5.7.1", "reject_unauth_destination"},
		{"listed client", "192.0.2.2", "mail.good.example", "bob@good.example", "alice@example.org", "554 5.7.1 Service unavailable; Client host [192.0.2.2] blocked using dnsbl.example; listed, see https://dnsbl.example/192.0.2.2", "reject_rbl_client"},
		{"list refuses to answer", "192.0.2.3", "mail.good.example", "bob@good.example", "alice@example.org", "250 2.1.5", ""},
		{"code outside of the filter", "192.0.2.4", "mail.good.example", "bob@good.example", "alice@example.org", "250 2.1.5", ""},
		{"truncated answer", "192.0.2.5", "mail.good.example", "bob@good.example", "alice@example.org", "554 5.7.1 Service unavailable; Client host [192.0.2.5]", "reject_rbl_client"},
		{"list is silent", "192.0.2.6", "mail.good.example", "bob@good.example", "alice@example.org", "250 2.1.5", ""},
		{"allowed client passes the list", "192.0.2.50", "mail.good.example", "bob@good.example", "alice@example.org", "250 2.1.5", ""},
		{"allowed client, unknown recipient", "192.0.2.50", "mail.good.example", "bob@good.example", "nobody@example.org", "550 5.1.1", "recipient"},
		{"allowed client, foreign domain", "192.0.2.50", "mail.good.example", "bob@good.example", "alice@elsewhere.example", "554 5.7.1", "reject_unauth_destination"},
		{"blocked network", "198.51.100.7", "mail.good.example", "bob@good.example", "alice@example.org", "554 5.7.1", "check_client_access"},
		{"blocked address with a text", "203.0.113.9", "mail.good.example", "bob@good.example", "alice@example.org", "554 5.7.1", "check_client_access"},
		{"blocked EHLO name", "192.0.2.1", "bad.helo.example", "bob@good.example", "alice@example.org", "554 5.7.1", "check_helo_access"},
		{"invalid EHLO name", "192.0.2.1", "-bad-.example", "bob@good.example", "alice@example.org", "501 5.5.2", "reject_invalid_helo_hostname"},
		{"blocked sender domain", "192.0.2.1", "mail.good.example", "bob@spammer.example", "alice@example.org", "554 5.7.1", "check_sender_access"},
		{"blocked sender", "192.0.2.1", "mail.good.example", "eve@good.example", "alice@example.org", "554 5.7.1", "check_sender_access"},
		{"sender domain without a dot", "192.0.2.1", "mail.good.example", "bob@localhost", "alice@example.org", "504 5.5.2", "reject_non_fqdn_sender"},
		{"sender domain does not exist", "192.0.2.1", "mail.good.example", "bob@missing.example", "alice@example.org", "450 4.1.8", "reject_unknown_sender_domain"},
		{"sender domain's DNS fails", "192.0.2.1", "mail.good.example", "bob@broken.example", "alice@example.org", "450 4", "reject_unknown_sender_domain"},
		{"postmaster", "198.51.100.7", "mail.good.example", "bob@good.example", "postmaster", "250 2.1.5", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := testmx.Send(t, s.addr, demo.Mail{
				XClient: "ADDR=" + tt.client + " NAME=host.good.example REVERSE_NAME=host.good.example",
				Helo:    tt.helo, From: tt.from, To: []string{tt.to}, Content: []byte(message(tt.name, 10)),
			})
			if !o.Mail.Positive() || len(o.Rcpt) != 1 {
				t.Fatalf("no reply at RCPT: %+v", o)
			}
			if got := o.Rcpt[0].String(); !strings.HasPrefix(got, tt.want) {
				t.Errorf("server: %q, want %q", got, tt.want)
			}
			explained := s.explain(t, tt.client, tt.helo, tt.from, tt.to)
			if o.Rcpt[0].Positive() {
				if explained.Action != "permit" {
					t.Errorf("server: %s, explain: %+v", o.Rcpt[0], explained)
				}
				return
			}
			if diff := cmp.Diff(o.Rcpt[0].String(), explained.Reply); diff != "" {
				t.Errorf("explain differs from the server (-server +explain):\n%s", diff)
			}
			if !strings.Contains(explained.Rule, tt.rule) {
				t.Errorf("explain names the rule %q, want one with %q", explained.Rule, tt.rule)
			}
		})
	}
	s.stop()
}

// verdict is a line of policy explain --json.
type verdict struct{ Stage, Action, Reply, Rule string }

// explain returns what policy explain says of the recipient.
func (s *secondary) explain(t *testing.T, client, helo, from, to string) verdict {
	t.Helper()
	out, err := exec.Command(binary, "policy", "explain", "-c", s.path("understudy.toml"), "--json",
		"--client", client, "--name", "host.good.example", "--helo="+helo, "--from="+from, "--to", to).CombinedOutput()
	if err != nil {
		t.Fatalf("policy explain: %v\n%s", err, out)
	}
	var lines []verdict
	if err := json.Unmarshal(out, &lines); err != nil {
		t.Fatalf("policy explain --json: %v\n%s", err, out)
	}
	for _, v := range lines {
		if v.Stage == "rcpt" || v.Action != "permit" {
			return v
		}
	}
	t.Fatalf("policy explain has no verdict at RCPT:\n%s", out)
	return verdict{}
}
