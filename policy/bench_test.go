package policy

import (
	"fmt"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// everyList is a policy with each kind of list and n recipients.
func everyList(b *testing.B, n int) *Snapshot {
	text := `domains = ["example.org"]
recipients_file = "r"
recipient_delimiter = "+-"
[client]
allow = ["203.0.113.0/24", "partner.example"]
block = ["198.51.100.0/24", "dialup.example"]
[helo]
block = ["localhost", "blocked.example"]
[sender]
block = ["spam.example", "eve@example.com"]
[checks]
reject_unknown_client_hostname = true
reject_invalid_helo_hostname = true
reject_non_fqdn_helo_hostname = true
reject_unknown_helo_hostname = true
reject_non_fqdn_sender = true
reject_unknown_sender_domain = true
[[dnsbl]]
zone = "a.example"
codes = "127.0.0.[2..11]"
[[dnsbl]]
zone = "b.example"
[[dnsbl]]
zone = "c.example"
`
	var list []byte
	for i := range n {
		list = fmt.Appendf(list, "user%07d@example.org\n", i)
	}
	s, err := Parse("p", []byte(text), func(string) ([]byte, error) { return list, nil })
	if err != nil {
		b.Fatal(err)
	}
	return s
}

var benchResolver = &testmx.MapResolver{
	PTR: map[string][]string{"192.0.2.1": {"mx.sender.example"}},
	IP:  map[string][]string{"mx.sender.example": {"192.0.2.1"}, "sender.example": {"192.0.2.1"}},
}

// BenchmarkRcpt is a full decision at RCPT with every answer of the DNS known.
func BenchmarkRcpt(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		snap := everyList(b, n)
		b.Run(fmt.Sprintf("recipients=%d", n), func(b *testing.B) {
			s := snap.Session(benchResolver, client)
			defer s.Close()
			s.Connect(b.Context())
			s.Helo(b.Context(), "mx.sender.example")
			s.Mail(b.Context(), from, MailParams{})
			to := envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "user0004711", Domain: "example.org"}}
			b.ReportAllocs()
			for b.Loop() {
				s.rcptCount = 0
				if v := s.Rcpt(b.Context(), to); v.Action != Permit {
					b.Fatal(v)
				}
			}
		})
	}
}

// BenchmarkSession is a whole session of one message, DNS from a map.
func BenchmarkSession(b *testing.B) {
	snap := everyList(b, 10_000)
	to := envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "user0004711", Domain: "example.org"}}
	b.ReportAllocs()
	for b.Loop() {
		s := snap.Session(benchResolver, client)
		s.Connect(b.Context())
		s.Helo(b.Context(), "mx.sender.example")
		s.Mail(b.Context(), from, MailParams{})
		s.Rcpt(b.Context(), to)
		s.Data(b.Context())
		s.Message(b.Context(), Message{})
		s.Close()
	}
}

// BenchmarkStore looks up one of a million recipients, and none.
func BenchmarkStore(b *testing.B) {
	snap := everyList(b, 1_000_000)
	f := finder{snap: snap}
	tables := snap.recipients[classVirtualMailbox]
	for _, local := range []string{"user0654321", "nobody"} {
		a := snap.resolve(&f, envelope.Mailbox{Local: local, Domain: "example.org"}, false)
		b.Run(local, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.recipient(tables, &a)
			}
		})
	}
}

// BenchmarkPattern matches a name with what sites have in their tables, in the
// linear-time engine and in the backtracking one.
func BenchmarkPattern(b *testing.B) {
	key := []byte("adsl-198-51-100-17.pool.provider.example")
	for _, p := range []struct{ name, src string }{
		{"linear/prefix", `^mail\d*\.`},
		{"linear/dynamic", `(dhcp|dial|ppp|[ax]?dsl).*\d{1,3}[.-]\d{1,3}[.-]\d{1,3}`},
		{"backtrack/dynamic", `(?=.)(dhcp|dial|ppp|[ax]?dsl).*\d{1,3}[.-]\d{1,3}[.-]\d{1,3}`},
		{"backtrack/lookahead", `^(?!.*@example\.org$)`},
		{"backtrack/nested", `(?=.)^(\w+[.-]?)+$`},
	} {
		b.Run(p.name, func(b *testing.B) {
			re, err := compilePattern(dialectPCRE, p.src, "is")
			if err != nil {
				b.Fatal(err)
			}
			var s scratch
			b.ReportAllocs()
			for b.Loop() {
				re.match(&s, key, s.subject(key))
			}
		})
	}
}
