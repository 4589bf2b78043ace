package policy

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestVouched: who may get a report, and who is only claimed to have sent the
// message. The primary has no filters.
func TestVouched(t *testing.T) {
	public, key, _ := ed25519.GenerateKey(nil)
	record := "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	dns := &testmx.MapResolver{TXT: map[string][]string{
		"pass.test": {"v=spf1 ip4:192.0.2.1 -all"}, "soft.test": {"v=spf1 ~all"}, "broken.test": {"v=spf1 all:x"}, "all.test": {"v=spf1 ip4:203.0.113.1 +all"},
		"half.test": {"v=spf1 ip4:0.0.0.0/1 ip4:128.0.0.0/1 -all"}, "wide.test": {"v=spf1 a/0 -all"}, "in.test": {"v=spf1 include:all.test -all"}, "then.test": {"v=spf1 include:soft.test ip4:192.0.2.0/24 -all"},
		"to.test": {"v=spf1 redirect=all.test"}, "six.test": {"v=spf1 ip6:2001:db8::/32 -all"},
		"k._domainkey.box.example.com": {record}, "k._domainkey.example.com": {record}, "k._domainkey.other.test": {record}, "k._domainkey.com": {record}, "k._domainkey.sub.box.example.com": {record},
		"test._domainkey.example.com": {record + "; t=y"},
	}, IP: map[string][]string{"wide.test": {"198.51.100.1"}}, Fail: []string{"silent.test", "silent._domainkey.example.com"}}
	type sign struct{ domain, selector string }
	const a = "From: A <a@box.example.com>\r\nSubject: it\r\n\r\ntext\r\n"
	for _, tt := range []struct {
		name, from string
		client     string
		sign       []sign
		message    string
		change     func(string) string // of the signed message
		want       string              // SPF's result, DKIM's, who vouches
	}{
		{name: "SPF", from: "a@pass.test", want: "pass  spf"},
		{name: "another client", from: "a@pass.test", client: "192.0.2.2", want: "fail  "},
		{name: "mapped", from: "a@pass.test", client: "::ffff:192.0.2.1", want: "pass  spf"},
		{name: "IPv6", from: "a@six.test", client: "2001:db8::1", want: "pass  spf"},
		{name: "softfail", from: "a@soft.test", want: "softfail  "},
		{name: "permerror", from: "a@broken.test", want: "permerror  "},
		{name: "temperror", from: "a@silent.test", want: "temperror  "},
		{name: "none", from: "a@none.test", want: "none  "},
		{name: "everybody", from: "a@all.test", want: "pass  "},
		{name: "everybody in two halves", from: "a@half.test", want: "pass  "},
		{name: "everybody by a mask", from: "a@wide.test", want: "pass  "},
		{name: "everybody included", from: "a@in.test", want: "pass  "},
		{name: "everybody by redirect", from: "a@to.test", want: "pass  "},
		{name: "not by an include that didn't match", from: "a@then.test", want: "pass  spf"},
		{name: "the null sender", from: "", want: "pass  "}, // of HELO
		{name: "DKIM", from: "a@box.example.com", sign: []sign{{"box.example.com", "k"}}, want: "none pass dkim"},
		{name: "by the domain above", from: "a@box.example.com", sign: []sign{{"example.com", "k"}}, want: "none pass dkim"},
		{name: "by a public suffix", from: "a@box.example.com", sign: []sign{{"com", "k"}}, want: "none pass "},
		{name: "by a subdomain", from: "a@box.example.com", sign: []sign{{"sub.box.example.com", "k"}}, want: "none pass "},
		{name: "by another", from: "a@box.example.com", sign: []sign{{"other.test", "k"}}, want: "none pass "},
		{name: "one of two", from: "a@box.example.com", sign: []sign{{"box.example.com", "k"}, {"other.test", "k"}}, want: "none pass,pass dkim"},
		{name: "replayed for another", from: "victim@box.example.com", sign: []sign{{"box.example.com", "k"}}, want: "none pass "},
		{name: "other case", from: "a@BOX.example.com", sign: []sign{{"box.example.com", "k"}}, want: "none pass dkim"},
		{name: "a second author on top", from: "v@box.example.com", sign: []sign{{"box.example.com", "k"}}, change: func(m string) string { return "From: v@box.example.com\r\n" + m }, want: "none pass "},
		{name: "two authors", from: "a@box.example.com", sign: []sign{{"box.example.com", "k"}}, message: strings.Replace(a, "A <", "b@other.test, A <", 1), want: "none pass "},
		{name: "bad", from: "a@box.example.com", sign: []sign{{"box.example.com", "k"}}, change: func(m string) string { return m + "more\r\n" }, want: "none fail "},
		{name: "a part", from: "a@box.example.com", sign: []sign{{"box.example.com", "k"}}, change: func(m string) string { return strings.Replace(m, "v=1;", "v=1; l=0;", 1) }, want: "none fail "},
		{name: "a testing key", from: "a@box.example.com", sign: []sign{{"example.com", "test"}}, want: "none pass "},
		{name: "no key", from: "a@box.example.com", sign: []sign{{"example.com", "gone"}}, want: "none permerror "},
		{name: "no answer", from: "a@box.example.com", sign: []sign{{"example.com", "silent"}}, want: "none temperror "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.message == "" {
				tt.message = a
			}
			for _, by := range tt.sign {
				var b bytes.Buffer
				if err := dkim.Sign(&b, strings.NewReader(tt.message), &dkim.SignOptions{Domain: by.domain, Selector: by.selector, Signer: key, HeaderKeys: []string{"From", "Subject"}}); err != nil {
					t.Fatal(err)
				}
				tt.message = b.String()
			}
			if tt.change != nil {
				tt.message = tt.change(tt.message)
			}
			spec := NewSpec()
			spec.Addresses.Relay = AddressClass{Domains: []string{"here.test"}}
			snap, err := Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			client := netip.MustParseAddr("192.0.2.1")
			if tt.client != "" {
				client = netip.MustParseAddr(tt.client)
			}
			var from envelope.ReversePath
			from.Local, from.Domain, _ = strings.Cut(tt.from, "@")
			for _, vouch := range []bool{true, false} {
				s := snap.Session(dns, envelope.Client{Addr: client, Helo: "pass.test", Name: "client.test", NameStatus: envelope.NameOK})
				if vouch {
					s.Vouch()
				}
				s.Mail(t.Context(), from, MailParams{})
				s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "b", Domain: "here.test"}})
				s.Data(t.Context())
				if w := s.Content(); w != nil {
					w.Write([]byte(tt.message))
				}
				if v := s.Message(t.Context(), Message{Size: int64(len(tt.message))}); v.Action != Permit {
					t.Errorf("it is a verdict: %+v", v)
				}
				got := s.Auth(t.Context(), from)
				s.Close()
				if !vouch {
					if diff := cmp.Diff(envelope.Auth{}, got); diff != "" {
						t.Errorf("nobody wanted to know, and yet: %s", diff)
					}
					continue
				}
				var results []string
				for _, s := range got.DKIM {
					results = append(results, s.Result)
				}
				if said := got.SPF + " " + strings.Join(results, ",") + " " + got.Vouched; !got.Checked || said != tt.want {
					t.Errorf("got %q, want %q: %+v", said, tt.want, got)
				}
			}
		})
	}
}
