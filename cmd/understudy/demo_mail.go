package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/internal/demo"
)

// The demo's world. Names and addresses are those reserved for documentation
// (RFC 2606, RFC 5737): none can be anybody's.
const (
	demoDomain  = "example.org"         // what the primary receives mail for
	demoBlocked = "offers.example.com"  // a sender domain on the blocklist
	demoZone    = "bl.example.net"      // a DNS blocklist
	demoGone    = "leaver@example.org"  // the primary refuses it, though the policy lists it
	goodNet     = "192.0.2."            // clients with nothing against them
	listedNet   = "198.51.100."         // clients on the DNS blocklist
	spareNet    = "203.0.113."          // other clients
	demoReason  = "Sends spam, as seen" // the blocklist's TXT record
)

// demoPeople are the recipients besides demoGone.
var demoPeople = []string{"alice", "bob", "carol", "dave", "erin", "frank", "postmaster", "sales"}

// demoMail is one message on its way in, and what must become of it.
type demoMail struct {
	demo.Mail
	kind *demoKind
}

// demoKind is a sort of mail.
type demoKind struct {
	name string
	good bool
	code int // of the reply that must settle it
	make func(r *rand.Rand, i int) demo.Mail
}

// demoKinds returns the good kind and the bad ones.
func demoKinds() (good *demoKind, spam []*demoKind) {
	good = &demoKind{name: "good mail", good: true, code: 250, make: func(r *rand.Rand, i int) demo.Mail {
		m := from(goodNet, i, fmt.Sprintf("friend%d@example.com", i))
		m.To = []string{person(r)}
		if i%7 == 0 {
			m.To = append(m.To, person(r))
			if m.To[0] == m.To[1] {
				m.To = m.To[:1]
			}
		}
		return m
	}}
	spam = []*demoKind{
		{name: "unknown recipient", code: 550, make: func(r *rand.Rand, i int) demo.Mail {
			m := from(spareNet, i, fmt.Sprintf("harvester%d@example.com", i))
			m.To = []string{fmt.Sprintf("%s.%d@%s", demoPeople[r.IntN(len(demoPeople))], r.IntN(1000), demoDomain)}
			return m
		}},
		{name: "client on a DNS blocklist", code: 554, make: func(r *rand.Rand, i int) demo.Mail {
			m := from(listedNet, i, fmt.Sprintf("zombie%d@example.com", i))
			m.To = []string{person(r)}
			return m
		}},
		{name: "relaying to a foreign domain", code: 554, make: func(_ *rand.Rand, i int) demo.Mail {
			m := from(spareNet, i, fmt.Sprintf("relayer%d@example.com", i))
			m.To = []string{"victim@example.net"}
			return m
		}},
		{name: "sender on our own blocklist", code: 554, make: func(r *rand.Rand, i int) demo.Mail {
			m := from(spareNet, i, fmt.Sprintf("deal%d@%s", i, demoBlocked))
			m.To = []string{person(r)}
			return m
		}},
	}
	return good, spam
}

// from is a mail of the i-th client of a network of 254.
func from(network string, i int, sender string) demo.Mail {
	host := i%254 + 1
	addr := fmt.Sprint(network, host)
	name := fmt.Sprintf("mx%d.example.com", host)
	return demo.Mail{XClient: "ADDR=" + addr + " NAME=" + name, Helo: name, From: sender}
}

func person(r *rand.Rand) string { return demoPeople[r.IntN(len(demoPeople))] + "@" + demoDomain }

// demoMessage makes the i-th of n messages, the same one each time. Two in
// three are good, and one of those is for demoGone.
func demoMessage(i, n int) demoMail {
	r := rand.New(rand.NewPCG(5321, uint64(i)))
	k, spam := demoKinds()
	if i%3 == 1 {
		k = spam[i/3%len(spam)]
	}
	m := k.make(r, i)
	if i == n/2/3*3 {
		m.To = []string{demoGone}
	}
	m.Content = demoContent(r, i, m, k)
	return demoMail{m, k}
}

// demoContent makes a message of a plausible size: mostly a few kilobytes, now
// and then a large one. No two are equal.
func demoContent(r *rand.Rand, i int, m demo.Mail, k *demoKind) []byte {
	size := 500 + r.IntN(12<<10)
	switch {
	case !k.good:
	case i%60 == 0:
		size = 1 << 20
	case i%20 == 0:
		size = 100 << 10
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: <%s>\r\nTo: <%s>\r\nSubject: %s, number %d\r\nMessage-ID: <%d@example.com>\r\n\r\n",
		m.From, strings.Join(m.To, ">, <"), k.name, i, i)
	for b.Len() < size {
		fmt.Fprintf(&b, ".%s\r\n", strings.Repeat(string(rune('a'+r.IntN(26))), 20+r.IntN(50)))
	}
	return b.Bytes()
}

// demoRecords is the DNS as the demo has it: listedNet is on the blocklist.
func demoRecords() []string {
	records := []string{
		demoZone + ". 300 IN SOA ns." + demoZone + ". root." + demoZone + ". 1 3600 600 86400 300",
		"2.0.0.127." + demoZone + ". 300 IN A 127.0.0.2",
	}
	for host := 1; host <= 254; host++ {
		b := netip.MustParseAddr(fmt.Sprint(listedNet, host)).As4()
		name := fmt.Sprintf("%d.%d.%d.%d.%s.", b[3], b[2], b[1], b[0], demoZone)
		records = append(records, name+" 300 IN A 127.0.0.2", name+` 300 IN TXT "`+demoReason+`"`)
	}
	return records
}
