package policy

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// everyList is a policy with each kind of list and n recipients.
func everyList(b *testing.B, n int) *Snapshot {
	access := func(keys ...string) *table.Table {
		entries := map[string]string{}
		for _, k := range keys {
			entries[k] = "REJECT"
		}
		t, err := table.NewHash(entries)
		if err != nil {
			b.Fatal(err)
		}
		return t
	}
	networks, err := table.NewCIDR([][2]string{{"203.0.113.0/24", "OK"}, {"198.51.100.0/24", "REJECT"}})
	if err != nil {
		b.Fatal(err)
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("user%07d@example.org", i)
	}
	recipients, err := table.NewSet(keys)
	if err != nil {
		b.Fatal(err)
	}
	spec := NewSpec()
	spec.RelayBeforeRecipient = true
	spec.Tables = map[string]*table.Table{
		"networks": networks, "names": access("partner.example", "dialup.example"), "recipients": recipients,
		"helo": access("localhost", "blocked.example"), "sender": access("spam.example", "eve@example.com"),
	}
	spec.Addresses.RecipientDelimiter = "+-"
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"recipients"}}
	r := &spec.Restrictions
	r.Client = []Restriction{
		{"check_client_access", "networks"}, {"check_client_access", "names"}, {"reject_rbl_client", "a.example=127.0.0.[2..11]"},
		{"reject_rbl_client", "b.example"}, {"reject_rbl_client", "c.example"}, {"reject_unknown_client_hostname", ""},
	}
	r.Helo = []Restriction{
		{"check_client_access", "networks"}, {"check_client_access", "names"}, {"check_helo_access", "helo"},
		{"reject_invalid_helo_hostname", ""}, {"reject_non_fqdn_helo_hostname", ""}, {"reject_unknown_helo_hostname", ""},
	}
	r.Sender = []Restriction{{"check_sender_access", "sender"}, {"reject_non_fqdn_sender", ""}, {"reject_unknown_sender_domain", ""}}
	r.Relay = []Restriction{{"reject_unauth_destination", ""}}
	snap, err := Compile(spec)
	if err != nil {
		b.Fatal(err)
	}
	return snap
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

// BenchmarkStore looks up one of a million recipients, and none, plain and
// hashed.
func BenchmarkStore(b *testing.B) {
	plain := everyList(b, 1_000_000)
	hashed, err := Compile(hashedSpec(b, plain.Spec(), &table.Secret{1}))
	if err != nil {
		b.Fatal(err)
	}
	for name, snap := range map[string]*Snapshot{"plain": plain, "hashed": hashed} {
		f := finder{snap: snap}
		tables := snap.recipients[classVirtualMailbox]
		for _, local := range []string{"user0654321", "nobody"} {
			a := snap.resolve(&f, envelope.Mailbox{Local: local, Domain: "example.org"}, false)
			b.Run(name+"/"+local, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f.recipient(tables, &a)
				}
			})
		}
	}
}

// everyKind is a policy with every kind of list that Postfix has: a million
// recipients, 100,000 networks, 1,000 patterns, content checks aside.
func everyKind(b *testing.B, recipients, networks, patterns int) *Snapshot {
	spec := NewSpec()
	keys := make([]string, recipients)
	for i := range keys {
		keys[i] = fmt.Sprintf("user%07d@example.org", i)
	}
	nets := make([][2]string, networks)
	for i := range nets {
		nets[i] = [2]string{fmt.Sprintf("10.%d.%d.%d/31", i>>15, i>>7&255, i<<1&255), "REJECT"}
	}
	rules := make([][2]string, patterns)
	for i := range rules {
		rules[i] = [2]string{fmt.Sprintf(`/^(dyn|pool)%d[-.]\d+\.isp%d\.example$/is`, i, i), "REJECT dynamic $1"}
	}
	set, err := table.NewSet(keys)
	if err != nil {
		b.Fatal(err)
	}
	cidr, err := table.NewCIDR(nets)
	if err != nil {
		b.Fatal(err)
	}
	spec.Tables = map[string]*table.Table{"rcpt": set, "nets": cidr}
	r := &spec.Restrictions
	r.Client = []Restriction{{"permit_mynetworks", ""}, {"check_client_access", "nets"}, {"reject_unknown_client_hostname", ""}, {"reject_rbl_client", "a.example=127.0.0.[2..11]"}}
	r.Helo = []Restriction{{"reject_invalid_helo_hostname", ""}, {"reject_non_fqdn_helo_hostname", ""}, {"reject_unknown_helo_hostname", ""}}
	r.Sender = []Restriction{{"reject_non_fqdn_sender", ""}, {"reject_unknown_sender_domain", ""}, {"reject_rhsbl_sender", "d.example"}, {"check_sender_mx_access", "nets"}}
	r.Relay = []Restriction{{"permit_mynetworks", ""}, {"reject_unauth_destination", ""}}
	r.Recipient = []Restriction{{"reject_rbl_client", "b.example"}, {"reject_unlisted_recipient", ""}}
	if patterns > 0 {
		pcre, err := table.NewPCRE(rules)
		if err != nil {
			b.Fatal(err)
		}
		spec.Tables["names"] = pcre
		r.Client = append(r.Client, Restriction{"check_client_access", "names"})
	}
	spec.MyNetworks = []string{"127.0.0.0/8"}
	spec.Addresses.RecipientDelimiter = "+"
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"rcpt"}}
	snap, err := Compile(spec)
	if err != nil {
		b.Fatal(err)
	}
	return snap
}

// BenchmarkEveryKind is a full decision at RCPT with the answers of the DNS
// known, and the memory that the policy takes.
func BenchmarkEveryKind(b *testing.B) {
	for _, size := range [][3]int{{10_000, 1_000, 0}, {10_000, 1_000, 10}, {1_000_000, 100_000, 0}, {1_000_000, 100_000, 1_000}} {
		b.Run(fmt.Sprintf("recipients=%d/networks=%d/patterns=%d", size[0], size[1], size[2]), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			snap := everyKind(b, size[0], size[1], size[2])
			runtime.GC()
			runtime.ReadMemStats(&after)
			s := snap.Session(benchResolver, client)
			defer s.Close()
			s.Connect(b.Context())
			s.Helo(b.Context(), "mx.sender.example")
			s.Mail(b.Context(), from, MailParams{})
			to := envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "user0004711", Domain: "example.org"}}
			b.ReportAllocs()
			start := cpuTime(b)
			for b.Loop() {
				s.rcptCount = 0
				if v := s.Rcpt(b.Context(), to); v.Action != Permit {
					b.Fatal(v)
				}
			}
			b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		})
	}
}

// cpuTime is what this process has computed for, in nanoseconds: unlike the
// clock it doesn't count what a busy machine did meanwhile.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
