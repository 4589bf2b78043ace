// Package resolver is a DNS stub resolver with the look-up methods, and the
// errors, of *net.Resolver. It asks recursive servers and keeps what they say
// for as long as they allow.
//
// Unlike *net.Resolver it caches by TTL, negative answers included; counts a closed
// set of outcomes; asks the configured servers, whatever the system's are; and
// bounds sockets, responses, chains and memory.
//
// It does no recursion, search lists, /etc/hosts, DNSSEC validation (the server's
// job) or internationalised names (callers pass A-labels).
//
// Invariants:
//   - IsNotFound means that a server said so: NXDOMAIN or NODATA, or that the
//     name can't exist. Everything else that is not an answer (SERVFAIL, REFUSED,
//     a denial by a server that is neither recursive nor authoritative, a
//     timeout, nonsense, the end of ctx) is IsTemporary. A caller that turns
//     only IsNotFound into something permanent never does so by accident.
//   - A response counts only if it came from the server asked, to the port that
//     asked, with the query's ID and question (RFC 5452 §9.1). Others are
//     passed over until the deadline. Each query has a socket of its own, so
//     the port is as random as the kernel makes it.
//   - No look-up's goroutine outlives its last caller.
//
// RFCs: 1035, 2181 §8 (TTL), 2308 (negative caching), 5452 (forgery
// resilience), 6891 (EDNS0), 7505 (null MX), 7766 (TCP), 9520 (caching failures).
package resolver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	defaultTimeout   = 2 * time.Second
	defaultCacheSize = 4096
	maxServers       = 8
	maxFlights       = 512 // look-ups asking servers at once, hence sockets; more of them wait
)

// Options configures a Resolver. The zero value is a good one.
type Options struct {
	// Servers are asked in this order, as "address:port" or an address; the
	// server that answered last is asked first. None means those of
	// /etc/resolv.conf, or the local host if that names none either.
	Servers []string
	// Timeout is how long one try waits, default 2 s. Each server is tried twice.
	Timeout time.Duration
	// CacheSize bounds the cached answers, default 4096. An entry takes at most about 4 KiB.
	CacheSize int
	// Observe, if not nil, is called for every look-up: qtype is A, AAAA, MX, PTR,
	// TXT or NS; result is ok, nxdomain, nodata, servfail, timeout, cached (no
	// server was asked for this caller) or error.
	Observe func(qtype, result string, d time.Duration)
}

// Resolver asks DNS servers. Its methods may be called concurrently.
type Resolver struct {
	servers []string
	timeout time.Duration
	observe func(qtype, result string, d time.Duration)
	now     func() time.Time
	first   atomic.Uint32 // index of the server that answered last
	slots   chan struct{} // holds one token for each look-up that is asking

	mu      sync.Mutex // guards what follows
	cache   cache
	flights map[question]*flight
}

// question is a cache key: a name as canonical returns it, and a type.
type question struct {
	name  string
	qtype uint16
}

// New returns a Resolver. It opens nothing until it is asked.
func New(o Options) *Resolver {
	r := &Resolver{
		servers: Servers(o.Servers),
		timeout: o.Timeout,
		observe: o.Observe,
		now:     time.Now,
		slots:   make(chan struct{}, maxFlights),
		flights: make(map[question]*flight),
	}
	if r.timeout <= 0 {
		r.timeout = defaultTimeout
	}
	if o.CacheSize <= 0 {
		o.CacheSize = defaultCacheSize
	}
	if r.observe == nil {
		r.observe = func(string, string, time.Duration) {}
	}
	r.cache = newCache(o.CacheSize)
	return r
}

// serverAddresses adds the port where it is missing.
// Servers are the servers that a Resolver asks, ip:port: those configured, else
// those of /etc/resolv.conf.
func Servers(configured []string) []string {
	servers := serverAddresses(configured)
	if len(servers) == 0 {
		if c, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
			servers = serverAddresses(c.Servers)
		}
	}
	if len(servers) == 0 { // as resolv.conf(5) has it
		servers = []string{"127.0.0.1:53", "[::1]:53"}
	}
	return servers
}

func serverAddresses(servers []string) []string {
	var out []string
	for _, s := range servers[:min(len(servers), maxServers)] {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(strings.Trim(s, "[]"), "53")
		}
		out = append(out, s)
	}
	return out
}

// LookupNetIP returns the addresses of host; network is "ip", "ip4" or "ip6".
// An address literal is its own answer. With "ip", the answer of one family
// is enough: ask for the family alone where its temporary failure matters.
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" || network == "ip4" && !a.Is4() || network == "ip6" && a.Is4() {
			return nil, notFound(host)
		}
		return []netip.Addr{a}, nil
	}
	switch network {
	case "ip4":
		a, err := r.lookup(ctx, host, dns.TypeA)
		return slices.Clone(a.addrs), err
	case "ip6":
		a, err := r.lookup(ctx, host, dns.TypeAAAA)
		return slices.Clone(a.addrs), err
	case "ip":
		return r.lookupBoth(ctx, host)
	}
	return nil, &net.DNSError{Err: "unknown network", Name: host, IsTemporary: true}
}

func (r *Resolver) lookupBoth(ctx context.Context, host string) ([]netip.Addr, error) {
	var (
		v6   answer
		err6 error
		wg   sync.WaitGroup
	)
	wg.Go(func() { v6, err6 = r.lookup(ctx, host, dns.TypeAAAA) })
	v4, err4 := r.lookup(ctx, host, dns.TypeA)
	wg.Wait()
	if addrs := slices.Concat(v4.addrs, v6.addrs); len(addrs) > 0 {
		return addrs, nil
	}
	if err4 != nil && !isNotFound(err4) { // a temporary failure outweighs a "no"
		return nil, err4
	}
	return nil, err6
}

// LookupMX returns name's MX records, best preference first. A null MX
// (RFC 7505) is one record with Host ".".
func (r *Resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	a, err := r.lookup(ctx, name, dns.TypeMX)
	var mxs []*net.MX
	for _, h := range a.hosts {
		mxs = append(mxs, &net.MX{Host: h.name, Pref: h.pref})
	}
	return mxs, err
}

// LookupAddr returns the names that addr maps to, each with a final dot.
func (r *Resolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	arpa, err := dns.ReverseAddr(addr)
	if err != nil {
		return nil, notFound(addr)
	}
	a, err := r.lookup(ctx, arpa, dns.TypePTR)
	var names []string
	for _, h := range a.hosts {
		names = append(names, h.name)
	}
	return names, err
}

// LookupTXT returns name's TXT records, the strings of each one joined. They
// hold any octets.
func (r *Resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a, err := r.lookup(ctx, name, dns.TypeTXT)
	return slices.Clone(a.txts), err
}

// LookupNS returns name's NS records.
func (r *Resolver) LookupNS(ctx context.Context, name string) ([]*net.NS, error) {
	a, err := r.lookup(ctx, name, dns.TypeNS)
	var nss []*net.NS
	for _, h := range a.hosts {
		nss = append(nss, &net.NS{Host: h.name})
	}
	return nss, err
}

func notFound(name string) *net.DNSError {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func isNotFound(err error) bool {
	e, ok := err.(*net.DNSError)
	return ok && e.IsNotFound
}
