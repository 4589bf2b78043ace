package parity

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
)

// plain is the material that the DNS below knows.
var plain = parity.Material{
	Clients: []parity.Client{
		client("198.18.0.1", "mail.good.example", "mail.good.example"),
		client("198.18.0.2", "", ""),
		client("198.18.0.3", parity.Temporary, parity.Temporary),
		client("198.18.0.4", "", "mail.good.example"),
		client("198.18.0.5", parity.Temporary, "mail.good.example"),
		client("198.18.0.6", "unknown.good.example", "unknown.good.example"),
		client("2001:db8:2::1", "mail6.good.example", "mail6.good.example"),
		client("2001:db8:2::2", "", ""),
		client("127.0.0.1", "localhost", "localhost"),
	},
	Helos: []string{
		"mail.good.example", "good.example", "a.good.example", "missing.example", "fails.example", "nullmx.example", "text.example",
		"six.example", "deadmx.example", "loop.example",
	},
	Senders: []string{
		"good.example", "a.good.example", "six.example", "missing.example", "sub.missing.example", "nullmx.example", "fails.example",
		"deadmx.example", "failmx.example", "text.example", "alias.good.example", "loop.example", "mail.good.example", "b\xc3\xbccher.example",
		"xn--bcher-kva.example", "nodot", "under_score.example", "[198.18.0.1]", "[IPv6:2001:db8::1]", "nons.example",
	},
}

func client(addr, name, reverse string) parity.Client {
	return parity.Client{Addr: netip.MustParseAddr(addr), Name: name, Reverse: reverse}
}

var records = []string{
	"good.example. 300 IN SOA ns.good.example. h.good.example. 1 2 3 4 300",
	"example. 300 IN SOA ns.good.example. h.good.example. 1 2 3 4 300",
	"good.example. 300 IN MX 10 mail.good.example.",
	"good.example. 300 IN NS ns.good.example.",
	"ns.good.example. 300 IN A 198.18.0.53",
	"mail.good.example. 300 IN A 198.18.0.1",
	"mail6.good.example. 300 IN AAAA 2001:db8:2::1",
	"a.good.example. 300 IN A 198.18.0.1",
	"unknown.good.example. 300 IN A 198.18.0.6",
	"alias.good.example. 300 IN CNAME a.good.example.",
	"six.example. 300 IN AAAA 2001:db8:2::1",
	"nullmx.example. 300 IN MX 0 .",
	"deadmx.example. 300 IN MX 0 nowhere.example.",
	"failmx.example. 300 IN MX 0 fails.example.",
	"text.example. 300 IN TXT only",
	"loop.example. 300 IN MX 0 localhost.example.",
	"localhost.example. 300 IN A 127.0.0.1",
	"xn--bcher-kva.example. 300 IN MX 0 mail.good.example.",
	"under_score.example. 300 IN A 198.18.0.1",
	"nons.example. 300 IN A 198.18.0.1",
}

// startWorld starts a DNS server with the records above.
func startWorld(t *testing.T) *demo.DNS {
	t.Helper()
	d := startDNS(t, records...)
	d.Behave("fails.example", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	return d
}

// startDNS starts a DNS server on port 53 of a loopback address that is free.
func startDNS(t *testing.T, records ...string) *demo.DNS {
	t.Helper()
	var err error
	for range 50 {
		var d *demo.DNS
		addr := fmt.Sprintf("127.%d.%d.%d:53", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
		if d, err = demo.StartDNSAt(addr, records...); err == nil {
			t.Cleanup(d.Close)
			return d
		}
	}
	t.Fatalf("no loopback address has a free port 53: %v; run the tests as root, as .ci/run does", err)
	return nil
}

// world adds to the DNS what a policy asks it, and returns the material.
func world(t *testing.T, d *demo.DNS, spec *policy.Spec) *parity.Material {
	t.Helper()
	m := plain
	m.Clients, m.Helos, m.Senders = slices.Clone(plain.Clients), slices.Clone(plain.Helos), slices.Clone(plain.Senders)
	add := func(format string, args ...any) {
		if err := d.Add(fmt.Sprintf(format, args...)); err != nil {
			t.Fatal(err)
		}
	}
	for i, z := range zones(spec) {
		suffix, filter, _ := strings.Cut(z, "=")
		codes := append(answers(filter), "127.0.0.2", "127.0.1.9", "127.0.0.99", "127.0.3.1")
		for j, code := range slices.Compact(codes) {
			addr := netip.AddrFrom4([4]byte{198, 19, byte(i), byte(j)})
			m.Clients = append(m.Clients, parity.Client{Addr: addr, Name: "mail.good.example", Reverse: "mail.good.example"})
			add("%d.%d.19.198.%s. 300 IN A %s", j, i, suffix, code)
			add("%d.%d.19.198.%s. 300 IN TXT \"listed as %s\"", j, i, suffix, code)
			name := fmt.Sprintf("l%d-%d.listed.example", i, j)
			add("%s. 300 IN A 198.18.0.1", name)
			add("%s.%s. 300 IN A %s", name, suffix, code)
			m.Helos, m.Senders = append(m.Helos, name), append(m.Senders, name)
			m.Recipients = append(m.Recipients, "bob@"+name)
			m.Clients = append(m.Clients, client("198.18.0.1", name, name), client("198.18.0.4", "", name))
			for k := range zones(spec) { // listed here by its address, there by its name
				if other := fmt.Sprintf("l%d-0.listed.example", k); allows(spec, z) && k != i {
					m.Clients = append(m.Clients, parity.Client{Addr: addr, Name: other, Reverse: other})
				}
			}
		}
		failing := netip.AddrFrom4([4]byte{198, 19, byte(i), 250})
		m.Clients = append(m.Clients, parity.Client{Addr: failing, Name: "mail.good.example", Reverse: "mail.good.example"})
		d.Behave(fmt.Sprintf("250.%d.19.198.%s", i, suffix), demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	for _, n := range spec.MyNetworks { // who is trusted and listed passes all the same
		p, err := netip.ParsePrefix(strings.TrimPrefix(n, "!"))
		if a := p.Masked().Addr(); err == nil && a.Is4() {
			b := a.As4()
			for _, z := range zones(spec) {
				suffix, filter, _ := strings.Cut(z, "=")
				add("%d.%d.%d.%d.%s. 300 IN A %s", b[3], b[2], b[1], b[0], suffix, append(answers(filter), "127.0.0.2")[0])
			}
		}
	}
	for _, domain := range spec.Addresses.Relay.Domains {
		add("%s. 300 IN A 198.18.0.1", strings.TrimPrefix(domain, "."))
	}
	servers(spec, &m, add)
	out := parity.NewMaterial(spec, m)
	out.Data = "*"
	return out
}

// servers gives the tables that look at the servers of a name something to
// find.
func servers(spec *policy.Spec, m *parity.Material, add func(string, ...any)) {
	n := 0
	for _, r := range restrictions(spec) {
		t := spec.Tables[r.Arg]
		if t == nil || !strings.HasSuffix(r.Kind, "_mx_access") && !strings.HasSuffix(r.Kind, "_ns_access") && !strings.HasSuffix(r.Kind, "_a_access") {
			continue
		}
		for i := range min(t.Len(), 100) {
			key, _ := t.Entry(i)
			n++
			name, host := fmt.Sprintf("s%d.served.example", n), fmt.Sprintf("h%d.served.example", n)
			if a, err := netip.ParseAddr(strings.TrimSuffix(string(key), "/8")); err == nil {
				add("%s. 300 IN %s %s", host, recordType(a), a)
				add("%s. 300 IN %s %s", name, recordType(a), a)
			} else if p, err := netip.ParsePrefix(string(key)); err == nil {
				add("%s. 300 IN %s %s", host, recordType(p.Addr()), p.Addr())
				add("%s. 300 IN %s %s", name, recordType(p.Addr()), p.Addr())
			} else {
				host = strings.TrimPrefix(string(key), ".")
				add("%s. 300 IN A 198.18.0.1", host)
			}
			add("%s. 300 IN MX 10 %s.", name, host)
			add("%s. 300 IN NS %s.", name, host)
			m.Senders, m.Helos = append(m.Senders, name), append(m.Helos, name)
			m.Recipients = append(m.Recipients, "bob@"+name)
			m.Clients = append(m.Clients, client("198.18.0.1", name, name), client("198.18.0.4", "", name))
		}
	}
}

func recordType(a netip.Addr) string {
	if a.Is6() {
		return "AAAA"
	}
	return "A"
}

// restrictions are all of a policy: of its lists, classes and tables.
func restrictions(spec *policy.Spec) []policy.Restriction {
	l := &spec.Restrictions
	all := slices.Concat(l.Client, l.Helo, l.Sender, l.Relay, l.Recipient, l.Data, l.EndOfData)
	for _, c := range spec.Classes {
		all = append(all, c...)
	}
	slices.SortFunc(all, func(a, b policy.Restriction) int { return strings.Compare(a.Kind+" "+a.Arg, b.Kind+" "+b.Arg) })
	return slices.Compact(all)
}

// zones are the DNS lists of a policy, each with its filter.
func zones(spec *policy.Spec) []string {
	var zs []string
	for _, r := range restrictions(spec) {
		if strings.Contains(r.Kind, "_rbl") || strings.Contains(r.Kind, "_rhsbl") || strings.Contains(r.Kind, "_dnswl") || strings.Contains(r.Kind, "_rhswl") {
			zs = append(zs, r.Arg)
		}
	}
	for _, s := range spec.DNSBL.Sites {
		zs = append(zs, s.Zone)
	}
	slices.Sort(zs)
	return slices.Compact(zs)
}

// allows says that a DNS list is one of those that let in.
func allows(spec *policy.Spec, zone string) bool {
	return slices.ContainsFunc(restrictions(spec), func(r policy.Restriction) bool {
		return r.Arg == zone && strings.HasPrefix(r.Kind, "permit_")
	})
}

// answers are an address inside of a filter, and its borders.
func answers(filter string) []string {
	if filter == "" {
		return nil
	}
	out := []string{"", ""}
	for i, rest := 0, filter; i < 4; i++ {
		field := ""
		if inside, ok := strings.CutPrefix(rest, "["); ok {
			field, rest, _ = strings.Cut(inside, "]")
			rest = strings.TrimPrefix(rest, ".")
		} else {
			field, rest, _ = strings.Cut(rest, ".")
		}
		lo, _, _ := strings.Cut(strings.Split(field, ";")[0], "..")
		_, hi, ranged := strings.Cut(strings.Split(field, ";")[0], "..")
		if !ranged {
			hi = lo
		}
		out[0] += "." + lo
		out[1] += "." + hi
	}
	return []string{out[0][1:], out[1][1:]}
}
