package parity

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
)

// eximLists are the DNS lists of the profiles, and what each says of its n-th client.
var eximLists = []string{"bl.example", "dyn.example", "drop.example", "mask.example", "all.example", "alln.example", "not.example", "text.example", "fails.bl.example", "def.example", "exc.example", "key.example"}

var eximCodes = [][]string{{"127.0.0.2"}, {"127.0.0.3"}, {"127.0.0.4"}, {"127.0.0.9"}, {"127.0.0.2", "127.0.0.3"}, {"127.0.0.2", "127.0.0.4"}, {"192.0.2.1"}, {"127.0.0.12"}}

// eximMaterial is what sessions are made of.
func eximMaterial(t *testing.T, d *demo.DNS, spec *policy.Spec) *parity.Material {
	t.Helper()
	m := plain
	m.Proxied, m.Sober = true, true
	m.Clients, m.Helos, m.Senders = nil, slices.Clone(plain.Helos), slices.Clone(plain.Senders)
	m.Senders = append(m.Senders, "ignored.example", "halfignored.example", "rhs1.example", "relay.example")
	m.Helos = append(m.Helos, "two.bad.example", "seven.good.example", "host.example.org", "example.org", "[198.18.7.1]", "key1.example")
	text := eximText(spec)
	often := eximClients(t, d, &m, text)
	for _, domain := range spec.Addresses.Relay.Domains {
		if err := d.Add(strings.TrimPrefix(domain, ".") + ". 300 IN A 198.18.0.1"); err != nil {
			t.Fatal(err)
		}
	}
	m.Domains = []string{"example.com", "far.example"}
	m.Recipients = []string{"alice@mx.example.org", "bob@mx.example.org", "carol.x@mx.example.org", "root@mx.example.org", "real-alice@mx.example.org", "list-info@mx.example.org",
		"a-owner-alice@mx.example.org", "alice@[192.0.2.25]", "x@closed.example.com", "x@open.example.com", "x@not.wild.example", "x@a.wild.example", "x@sub.example.net",
		"alice@one.example", "bob@one.example", "alice+x@one.example", "devnull@one.example", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@one.example", "full@two.example", "o'brien@example.org", "bob@two.example", "x@a.deep.example", "x@mail.example.com"}
	m.Authors = []string{"spammer@good.example", "boss@a.good.example", "x@a.good.example", "news@good.example", "a-bounces@good.example", "bounce-1@good.example", "lists@good.example",
		"x@six.example", "alice@example.org", "nobody@example.org", "alice@mx.example.org"}
	named := addressesIn(text)
	m.Authors = append(m.Authors, named...)
	out := parity.NewMaterial(spec, m)
	eximRecipients(out, spec)
	slices.SortFunc(out.Clients[1:], func(a, b parity.Client) int { return a.Addr.Compare(b.Addr) })
	for i := range out.Clients {
		out.Clients[i].Name, out.Clients[i].Reverse = "", ""
	}
	for _, list := range []*[]string{&out.Recipients, &out.Helos, &out.Domains, &out.Senders, &out.Authors} {
		*list = slices.DeleteFunc(*list, func(s string) bool { return strings.ContainsAny(s, "\n ") })
	}
	weigh(out, often, named, spec.ACL.Hostname)
	if strings.Contains(text, "h_x-spam-flag") {
		out.Fields = append(slices.Clone(out.Fields), "X-Spam-Flag: YES", "X-Spam-Flag: no")
	}
	out.Data = "*"
	return out
}

// eximClients adds the clients that a policy's text names, those of its DNS lists, and
// what the DNS says of them. It returns the former.
func eximClients(t *testing.T, d *demo.DNS, m *parity.Material, text string) (often []parity.Client) {
	t.Helper()
	client := func(addr string) { m.Clients = append(m.Clients, parity.Client{Addr: netip.MustParseAddr(addr)}) }
	for _, a := range []string{"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4", "198.18.0.6", "2001:db8:2::1", "2001:db8:2::2"} {
		client(a)
	}
	for _, a := range []string{
		"198.18.5.1", "198.18.5.200", "2001:db8:5::1",
		"198.18.6.1", "198.18.6.2", "198.18.6.9", "198.18.7.1", "198.18.7.7", "198.18.7.127", "198.18.7.128", "198.18.8.1", "198.18.8.2", "198.18.8.3", "198.18.8.4",
		"198.18.8.5", "198.18.8.6", "198.18.8.9", "198.18.8.70", "198.18.9.1", "198.18.9.8", "198.18.9.9", "198.18.10.1",
	} {
		near := a[:strings.LastIndexAny(a, ".:")+1]
		if strings.Contains(text, near) || slices.ContainsFunc(eximNames[a], func(n string) bool { return strings.Contains(text, n) }) {
			client(a)
		}
	}
	for _, a := range clientsIn(text) {
		client(a)
	}
	often = slices.Clone(m.Clients[7:])
	add := func(format string, args ...any) {
		if err := d.Add(fmt.Sprintf(format, args...)); err != nil {
			t.Fatal(err)
		}
	}
	for i, zone := range eximLists {
		if !strings.Contains(text, zone) {
			continue
		}
		for j, codes := range eximCodes {
			client(fmt.Sprintf("198.19.%d.%d", i, j))
			for _, code := range codes {
				add("%d.%d.19.198.%s. 300 IN A %s", j, i, zone, code)
			}
			add("%d.%d.19.198.%s. 300 IN TXT \"listed %d\"", j, i, zone, j)
			if zone == "bl.example" {
				add("%d.%d.19.198.text.example. 300 IN A 127.0.0.2", j, i)
				add("%d.%d.19.198.text.example. 300 IN TXT \"another text\"", j, i)
			}
		}
		client(fmt.Sprintf("198.19.%d.250", i))
		d.Behave(fmt.Sprintf("250.%d.19.198.%s", i, zone), demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	add("rhs1.example.rhs.example. 300 IN A 127.0.0.2")
	add("rhs1.example. 300 IN A 198.18.0.1")
	add("key1.example.key.example. 300 IN A 127.0.0.2")
	return often
}

// eximRecipients adds the keys of tables.
func eximRecipients(out *parity.Material, spec *policy.Spec) {
	for name, tab := range spec.Tables {
		if file, ok := strings.CutPrefix(name, "lsearch;"); ok || strings.HasPrefix(name, "sqlite;") || strings.HasPrefix(name, "mysql;") || name == "passwd" {
			for i := range min(tab.Len(), 200) {
				k, _ := tab.Entry(i)
				local, domain, at := strings.Cut(strings.ReplaceAll(strings.TrimSuffix(string(k), "\n."), "\n", "@"), "@")
				if !at {
					domain = filepath.Base(file)
				}
				for _, dom := range []string{domain, "mx.example.org"} {
					if local != "" && strings.Contains(dom, ".") && !strings.Contains(local+dom, "\x01") && strings.Count(string(k), "\n") < 3 { // a capital, a key of three parts
						out.Recipients = append(out.Recipients, local+"@"+dom)
					}
				}
			}
		}
	}
	slices.Sort(out.Recipients)
	out.Recipients = slices.Compact(out.Recipients)
}

// weigh repeats what the policy names, so that it is drawn often.
func weigh(out *parity.Material, clients []parity.Client, authors []string, hostname string) {
	for range 3 {
		out.Clients = append(out.Clients, clients...)
	}
	for _, a := range authors {
		out.Authors = append(out.Authors, a, a, a, a)
	}
	var odd []string
	for _, domain := range out.Domains[:min(len(out.Domains), 8)] {
		for _, local := range oddLocals {
			odd = append(odd, local+"@"+domain)
		}
	}
	for len(odd) > 0 && len(odd) < len(out.Recipients)/4 {
		odd = append(odd, odd...)
	}
	out.Recipients = append(out.Recipients, odd...)
	out.Fields = eximFields
	for range 4 {
		out.Helos = append(out.Helos, "192.0.2.1", "2001:db8::1", "node-192-0-2-1.good.example", hostname)
	}
}

// oddLocals are local-parts that lists restrict.
var oddLocals = []string{"a%b", "a!b", "a|b", "a/b", "/etc/x", "a/../b", ".a", "a&b", "a#b", "a?b", "postmaster", "abuse"}

// eximFields are fields of messages that lists judge.
var eximFields = []string{"From: <bob@", "To: a@b@c", "Cc: x y@example.org", "Subject: VIAGRA", "Subject: viagra now", "X-No: subject", "Sender: (", strings.Repeat("x", 1100)}

// eximNames are parents of the names of clients.
var eximNames = map[string][]string{
	"198.18.6.2": {"bad.example"}, "198.18.8.3": {"bad.example"}, "198.18.8.4": {"trusted.example"}, "198.18.8.6": {"reject.example"}, "198.18.5.1": {"relay.example"},
}

// eximText is all that a policy's lists are made of.
func eximText(spec *policy.Spec) string {
	a := spec.ACL
	var all []string
	for _, list := range a.Lists {
		for _, s := range list {
			for _, it := range s.Items {
				all = append(all, it.Arg)
			}
		}
	}
	for _, lists := range []map[string]string{a.Domains, a.Hosts, a.Addresses, a.LocalParts} {
		all = slices.AppendSeq(all, maps.Values(lists))
	}
	for _, lines := range a.Files {
		all = append(all, lines...)
	}
	for _, addrs := range a.HostsFile {
		all = append(all, addrs...)
	}
	for _, t := range spec.Tables {
		for i := range min(t.Len(), 200) {
			k, _ := t.Entry(i)
			all = append(all, string(k))
		}
	}
	all = append(all, a.HostLookup, a.RejectHosts, a.HeloJunk, a.HeloVerify)
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// addressesIn are the addresses that stand in a text by themselves.
func addressesIn(text string) []string {
	var all []string
	for word := range strings.FieldsSeq(text) {
		if plainPath.MatchString(word) {
			all = append(all, word)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// clientsIn are the addresses and the first ones of networks that stand in a text.
func clientsIn(text string) []string {
	var all []string
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \n!\"{}", r) }) {
		p, err := netip.ParsePrefix(word)
		if err != nil {
			if a, err := netip.ParseAddr(word); err == nil {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if p.IsValid() && !p.Addr().IsLoopback() && p.Bits() >= 16 {
			all = append(all, p.Masked().Addr().String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
