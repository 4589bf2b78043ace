// Package testmx is the test kit: a resolver made of a map, a ledger that
// proves that no accepted message went missing, and a runner of scripted SMTP
// dialogues. Only tests and benchmarks import it. The toy primary, the DNS server
// and the SMTP sender are in internal/demo, because the demo needs them, too.
package testmx

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// MapResolver is a resolver for tests that asks nobody: policy.Resolver's
// methods over maps. Names in the keys are in lower case without a final dot.
// What is in no map does not exist. The zero value knows nothing. The maps
// must not change while it is in use.
type MapResolver struct {
	IP  map[string][]string // name to addresses of both families
	MX  map[string][]net.MX
	PTR map[string][]string // address to names
	TXT map[string][]string
	NS  map[string][]string

	// Fail has the look-ups that fail temporarily: "name" for every type, or
	// "type name", the type one of ip4, ip6, mx, ptr, txt, ns. A PTR
	// look-up's name is the address.
	Fail []string
	// Block, if not nil, holds every look-up up until it is closed or the
	// look-up's context ends.
	Block chan struct{}

	mu    sync.Mutex
	asked map[string]int // guarded by mu
}

// Asked returns how often "type name" was asked, spelt as in Fail.
func (r *MapResolver) Asked(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[what]
}

// ask counts the look-up, waits for Block and says whether to fail. It
// remembers nothing: under a ctx that has ended it fails, and counts nothing.
func (r *MapResolver) ask(ctx context.Context, kind, name string) (string, error) {
	key := strings.ToLower(strings.TrimSuffix(name, "."))
	if ctx.Err() != nil {
		return key, ended(ctx, name)
	}
	r.mu.Lock()
	if r.asked == nil {
		r.asked = make(map[string]int)
	}
	r.asked[kind+" "+key]++
	r.mu.Unlock()
	if r.Block != nil {
		select {
		case <-r.Block:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return key, ended(ctx, name)
	}
	if slices.Contains(r.Fail, key) || slices.Contains(r.Fail, kind+" "+key) {
		return key, &net.DNSError{Err: "server failure", Name: name, IsTemporary: true}
	}
	return key, nil
}

func ended(ctx context.Context, name string) error {
	return &net.DNSError{UnwrapErr: ctx.Err(), Err: ctx.Err().Error(), Name: name, IsTimeout: true, IsTemporary: true}
}

func found(n int, name string) error {
	if n > 0 {
		return nil
	}
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// LookupNetIP is as in *net.Resolver.
func (r *MapResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if network == "ip" {
		v4, err4 := r.LookupNetIP(ctx, "ip4", host)
		v6, err6 := r.LookupNetIP(ctx, "ip6", host)
		if all := slices.Concat(v4, v6); len(all) > 0 {
			return all, nil
		}
		if e, ok := err4.(*net.DNSError); ok && e.IsTemporary {
			return nil, err4
		}
		return nil, err6
	}
	key, err := r.ask(ctx, network, host)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, s := range r.IP[key] {
		if a := netip.MustParseAddr(s); a.Is4() == (network == "ip4") {
			addrs = append(addrs, a)
		}
	}
	return addrs, found(len(addrs), host)
}

// LookupMX is as in *net.Resolver.
func (r *MapResolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	key, err := r.ask(ctx, "mx", name)
	if err != nil {
		return nil, err
	}
	var mxs []*net.MX
	for _, mx := range r.MX[key] {
		mxs = append(mxs, &net.MX{Host: dns.Fqdn(mx.Host), Pref: mx.Pref})
	}
	return mxs, found(len(mxs), name)
}

// LookupAddr is as in *net.Resolver.
func (r *MapResolver) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	key, err := r.ask(ctx, "ptr", addr)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range r.PTR[key] {
		names = append(names, dns.Fqdn(n))
	}
	return names, found(len(names), addr)
}

// LookupTXT is as in *net.Resolver.
func (r *MapResolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	key, err := r.ask(ctx, "txt", name)
	if err != nil {
		return nil, err
	}
	return slices.Clone(r.TXT[key]), found(len(r.TXT[key]), name)
}

// LookupNS is as in *net.Resolver.
func (r *MapResolver) LookupNS(ctx context.Context, name string) ([]*net.NS, error) {
	key, err := r.ask(ctx, "ns", name)
	if err != nil {
		return nil, err
	}
	var nss []*net.NS
	for _, n := range r.NS[key] {
		nss = append(nss, &net.NS{Host: dns.Fqdn(n)})
	}
	return nss, found(len(nss), name)
}
