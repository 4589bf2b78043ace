package policy_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/policy"
)

// TestPolicydSPF asks Debian's policyd-spf and our Session about the same
// clients, under random settings and zones.
func TestPolicydSPF(t *testing.T) {
	const configurations, each = 40, 40
	rng := rand.New(rand.NewPCG(7208, 3))
	seen := map[string]int{}
	server, err := demo.StartDNS(spfZone...)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.Behave("broken.test.", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	r := resolver.New(resolver.Options{Servers: []string{server.Addr()}})
	for range configurations {
		svc, conf := randomSPFService(rng)
		ask := policydSPF(t, server.Addr(), conf)
		spec := policy.NewSpec()
		spec.Addresses.Relay = policy.AddressClass{Domains: []string{"here.test"}}
		spec.Filters.SPF = map[string]policy.SPFService{"spf": svc}
		spec.Restrictions.Recipient = []policy.Restriction{{Kind: "check_spf", Arg: "spf"}}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		for i := range each {
			ip := pick(rng, "192.0.2.1", "192.0.2.2", "192.0.2.9", "2001:db8::1", "198.51.100.7")
			helo, sender := pick(rng, "mx.pass.test", "fail.test", "soft.test", "perm.test", "broken.test", "none.test", "sub.neutral.test", "NoMail.test"), ""
			if rng.IntN(5) > 0 {
				sender = "U.ser@" + pick(rng, "pass.test", "fail.test", "soft.test", "neutral.test", "perm.test", "broken.test", "none.test", "sub.neutral.test", "nomail.test")
			}
			action := ask(fmt.Sprintf("request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=%s\nhelo_name=%s\nsender=%s\nrecipient=Rcpt@here.test\ninstance=%d\n\n", ip, helo, sender, i))
			want := ""
			switch word, text, _ := strings.Cut(action, " "); word {
			case "550":
				dsn, rest, _ := strings.Cut(text, " ")
				if svc.OldCodes {
					dsn, rest = "5.7.1", text
				}
				want = "550 " + dsn + " <Rcpt@here.test>: Recipient address rejected: " + rest
			case "defer_if_permit":
				dsn, rest, _ := strings.Cut(text, " ")
				if svc.OldCodes {
					dsn, rest = "4.7.1", text
				}
				want = "450 " + dsn + " <Rcpt@here.test>: Recipient address rejected: " + rest
			}
			s := snap.Session(r, envelope.Client{Addr: netip.MustParseAddr(ip), Helo: helo, Name: "client.test", NameStatus: envelope.NameOK})
			from := envelope.ReversePath{}
			if sender != "" {
				from.Mailbox = envelope.Mailbox{Local: "U.ser", Domain: strings.TrimPrefix(sender, "U.ser@")}
			}
			s.Mail(t.Context(), from, policy.MailParams{})
			v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "Rcpt", Domain: "here.test"}})
			s.Close()
			got := ""
			if v.Reply.Code != 0 {
				got = fmt.Sprint(v.Reply.Code, " ", v.Reply.Enhanced, " ", v.Reply.Text)
			}
			seen[fmt.Sprint(v.Reply.Code, " ", v.Reply.Enhanced)]++
			if strings.Contains(want, "Permanent Error") || strings.Contains(want, "Temporary Error") { // the words differ
				want, got = want[:10], got[:min(len(got), 10)]
			}
			if got != want {
				t.Errorf("%s helo %s from <%s>: %q; policyd-spf %q\n%s", ip, helo, sender, got, action, conf)
			}
		}
	}
	for _, code := range []string{"0 ", "550 5.7.23", "550 5.7.24", "450 4.7.24", "550 5.7.1"} {
		if seen[code] < 10 {
			t.Errorf("%q only %d times: %v", code, seen[code], seen)
		}
	}
}

var spfZone = []string{
	`pass.test. 60 TXT "v=spf1 ip4:192.0.2.1 ip6:2001:db8::1 -all"`, `mx.pass.test. 60 TXT "v=spf1 a -all"`, `mx.pass.test. 60 A 192.0.2.1`,
	`fail.test. 60 TXT "v=spf1 ip4:203.0.113.1 -all exp=why.fail.test"`, `why.fail.test. 60 TXT "%{i} may not be %{d}"`, `soft.test. 60 TXT "v=spf1 ~all"`,
	`neutral.test. 60 TXT "v=spf1 ?all"`, `sub.neutral.test. 60 TXT "v=spf1 ?all"`, `perm.test. 60 TXT "v=spf1 all:x"`, `nomail.test. 60 TXT "v=spf1 -all"`,
	`none.test. 60 A 192.0.2.9`, `9.2.0.192.in-addr.arpa. 60 PTR host.none.test.`, `1.2.0.192.in-addr.arpa. 60 PTR mx.pass.test.`,
}

func pick(rng *rand.Rand, list ...string) string { return list[rng.IntN(len(list))] }

// randomSPFService is a setting and its spelling in policyd-spf.conf.
func randomSPFService(rng *rand.Rand) (policy.SPFService, string) {
	s := policy.SPFService{
		HELO: pick(rng, "Fail", "Softfail", "SPF_Not_Pass", "Null", "False", "No_Check"), MailFrom: pick(rng, "Fail", "Softfail", "SPF_Not_Pass", "False", "No_Check"),
		PermError: rng.IntN(2) == 0, TempError: rng.IntN(2) == 0, NoMail: rng.IntN(6) == 0, OldCodes: rng.IntN(4) == 0, HideRcpt: rng.IntN(3) == 0,
		VoidLookups: 2, Seconds: 20, Message: "{rejectdefer}: {spf} {url}", Skip: []string{"127.0.0.0/8"},
	}
	truth := map[bool]string{true: "True", false: "False"}
	yes := map[bool]string{true: "No", false: "Yes"}
	conf := fmt.Sprintf("HELO_reject = %s\nMail_From_reject = %s\nPermError_reject = %s\nTempError_Defer = %s\nNo_Mail = %s\nSPF_Enhanced_Status_Codes = %s\nHide_Receiver = %s\nReason_Message = %s\nskip_addresses = 127.0.0.0/8\n",
		s.HELO, s.MailFrom, truth[s.PermError], truth[s.TempError], truth[s.NoMail], yes[s.OldCodes], yes[!s.HideRcpt], s.Message)
	list := func(key, value string, to *[]string) {
		if rng.IntN(5) == 0 {
			*to = strings.Split(value, ",")
			conf += key + " = " + value + "\n"
		}
	}
	list("Whitelist", pick(rng, "192.0.2.0/29", "2001:db8::/32,198.51.100.7"), &s.Allow)
	list("HELO_Whitelist", "mx.pass.test,none.test", &s.AllowHELO)
	list("Domain_Whitelist", "pass.test,fail.test", &s.AllowDomains)
	list("Domain_Whitelist_PTR", "none.test", &s.AllowPTR)
	list("Reject_Not_Pass_Domains", pick(rng, "sub.neutral.test", "neutral.test,soft.test"), &s.NotPass)
	for i, a := range s.Allow {
		if !strings.Contains(a, "/") {
			s.Allow[i] += "/32"
		}
	}
	return s, conf
}

// policydSPF runs Debian's policyd-spf, with its DNS at an address, until the
// test ends, and returns how to ask it.
func policydSPF(t *testing.T, nameserver, conf string) func(request string) (action string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policyd-spf.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(nameserver)
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/policyd-spf.py", host, port, file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run test/install-peers", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	return func(request string) string {
		io.WriteString(in, request)
		for lines.Scan() {
			if action, ok := strings.CutPrefix(lines.Text(), "action="); ok {
				lines.Scan() // an empty line
				return action
			}
		}
		t.Fatal("policyd-spf has ended; run test/install-peers")
		return ""
	}
}
