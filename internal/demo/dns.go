package demo

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is an authoritative and seemingly recursive DNS server on the loopback,
// over UDP and TCP, which can be told to misbehave name by name. A name that
// it holds nothing at or below does not exist; a negative answer carries the
// closest SOA record that it holds.
type DNS struct {
	addr    string
	servers []*dns.Server
	stop    chan struct{} // closed by Close; ends delays
	ended   sync.WaitGroup

	mu        sync.Mutex // guards what follows
	zone      map[dnsKey][]dns.RR
	names     map[string]bool // names that exist, empty non-terminals included
	behaviour map[string]Behaviour
	counts    map[dnsCount]int
}

type dnsKey struct {
	name  string
	qtype uint16
}

type dnsCount struct{ name, network string }

// Behaviour is how DNS treats questions for one name. The zero value is to answer.
type Behaviour struct {
	Rcode    int           // answer with this code and nothing else, if not 0
	Type     uint16        // which questions Rcode is for; 0: all
	Drop     bool          // don't answer
	DropNext int           // don't answer this many questions, then do
	Truncate bool          // over UDP, send an empty answer with TC
	Forge    bool          // over UDP, send forged answers before the true one
	Delay    time.Duration // before the answer
}

// Forged is the address that forged answers give.
const Forged = "127.0.0.66"

// maxCounts bounds the names whose questions are counted.
const maxCounts = 10000

// StartDNS serves records, each a line of a zone file, from an address that
// Addr tells. A relative name is relative to the root.
func StartDNS(records ...string) (*DNS, error) { return StartDNSAt("127.0.0.1:0", records...) }

// StartDNSAt is StartDNS at an address of the loopback, "address:port", for
// peers that ask at port 53 and nowhere else.
func StartDNSAt(addr string, records ...string) (*DNS, error) {
	d := &DNS{
		stop:      make(chan struct{}),
		zone:      make(map[dnsKey][]dns.RR),
		names:     make(map[string]bool),
		behaviour: make(map[string]Behaviour),
		counts:    make(map[dnsCount]int),
	}
	if err := d.Add(records...); err != nil {
		return nil, err
	}
	pc, l, err := listenBoth(addr)
	if err != nil {
		return nil, err
	}
	d.addr = pc.LocalAddr().String()
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		network := "udp"
		if s.Listener != nil {
			network = "tcp"
		}
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { d.serve(network, w, q) })
		d.servers = append(d.servers, s)
		d.ended.Go(func() { s.ActivateAndServe() })
		<-started
	}
	return d, nil
}

// listenBoth listens for UDP and TCP; for port 0 it finds one that is free for
// both.
func listenBoth(addr string) (net.PacketConn, net.Listener, error) {
	var err error
	for range 20 {
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", addr); err != nil {
			break
		}
		var l net.Listener
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			return pc, l, nil
		}
		pc.Close()
	}
	return nil, nil, fmt.Errorf("listen for DNS on the loopback: %w", err)
}

// Addr returns "address:port".
func (d *DNS) Addr() string { return d.addr }

// Close ends the server and waits for it.
func (d *DNS) Close() {
	close(d.stop)
	for _, s := range d.servers {
		s.Shutdown() // fails only for a server that isn't running
	}
	d.ended.Wait()
}

// Add adds records, each a line of a zone file.
func (d *DNS) Add(records ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			return fmt.Errorf("record %q: %w", r, err)
		}
		if rr == nil {
			continue
		}
		k := dnsKey{strings.ToLower(rr.Header().Name), rr.Header().Rrtype}
		d.zone[k] = append(d.zone[k], rr)
		for name, ok := k.name, true; ok; name, ok = parent(name) {
			d.names[name] = true
		}
	}
	return nil
}

// Remove deletes name's records of every type. The name itself ceases to exist.
func (d *DNS) Remove(name string) {
	name = strings.ToLower(dns.Fqdn(name))
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.zone {
		if k.name == name {
			delete(d.zone, k)
		}
	}
	delete(d.names, name)
}

// Behave sets how questions for name are treated from now on.
func (d *DNS) Behave(name string, b Behaviour) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.behaviour[strings.ToLower(dns.Fqdn(name))] = b
}

// Asked returns how many questions for name came over network, "udp" or "tcp".
func (d *DNS) Asked(name, network string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[dnsCount{strings.ToLower(dns.Fqdn(name)), network}]
}

// parent returns the name without its first label; it is false for the root.
func parent(name string) (string, bool) {
	i, end := dns.NextLabel(name, 0)
	if end {
		return ".", name != "."
	}
	return name[i:], true
}

func (d *DNS) serve(network string, w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0] // the library lets no other number in
	name := strings.ToLower(q.Name)
	b := d.note(name, network)
	if b.Delay > 0 {
		select {
		case <-time.After(b.Delay):
		case <-d.stop:
			return
		}
	}
	udp := network == "udp"
	if b.Forge && udp {
		forge(w, query)
	}
	if b.Drop || b.DropNext > 0 {
		return
	}
	m := new(dns.Msg)
	m.SetReply(query)
	m.Authoritative, m.RecursionAvailable = true, true
	switch {
	case b.Rcode != 0 && (b.Type == 0 || b.Type == q.Qtype):
		m.Rcode = b.Rcode
	case b.Truncate && udp:
		m.Truncated = true
	default:
		d.answer(m, name, q.Qtype)
	}
	if udp {
		size := dns.MinMsgSize
		if o := query.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	w.WriteMsg(m) // a client that went away is no matter
}

// note counts a question and says how to treat it.
func (d *DNS) note(name, network string) Behaviour {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := dnsCount{name, network}
	if _, known := d.counts[k]; known || len(d.counts) < maxCounts {
		d.counts[k]++
	}
	b := d.behaviour[name]
	if b.DropNext > 0 {
		left := b
		left.DropNext--
		d.behaviour[name] = left
	}
	return b
}

// answer fills m from the zone, following CNAMEs within it.
func (d *DNS) answer(m *dns.Msg, name string, qtype uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range 32 {
		if rrs := d.zone[dnsKey{name, qtype}]; len(rrs) > 0 {
			m.Answer = append(m.Answer, rrs...)
			return
		}
		cname := d.zone[dnsKey{name, dns.TypeCNAME}]
		if len(cname) == 0 {
			break
		}
		m.Answer = append(m.Answer, cname[0])
		name = strings.ToLower(cname[0].(*dns.CNAME).Target)
	}
	if !d.names[name] {
		m.Rcode = dns.RcodeNameError
	}
	for up, ok := name, true; ok; up, ok = parent(up) {
		if soa := d.zone[dnsKey{up, dns.TypeSOA}]; len(soa) > 0 {
			m.Ns = append(m.Ns, soa...)
			return
		}
	}
}

// forge sends what someone might who can't see the query, and some noise.
func forge(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	lie := func(change func(*dns.Msg)) {
		m := new(dns.Msg)
		m.SetReply(query)
		m.RecursionAvailable = true
		change(m)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
			A:   net.ParseIP(Forged),
		}}
		w.WriteMsg(m)
	}
	lie(func(m *dns.Msg) {
		m.Question = []dns.Question{{Name: "forged.test.", Qtype: q.Qtype, Qclass: q.Qclass}}
	})
	lie(func(m *dns.Msg) { m.Question = []dns.Question{{Name: q.Name, Qtype: dns.TypeNULL, Qclass: q.Qclass}} })
	lie(func(m *dns.Msg) { m.Id ^= 1 })
	lie(func(m *dns.Msg) { m.Response = false })
	w.Write([]byte("no DNS message"))
}
