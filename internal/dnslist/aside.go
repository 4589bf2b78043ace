package dnslist

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// Through returns r without the answers of lists that are set aside: a look-up in
// one fails for now. What a dead list does list still counts.
func (w *Watch) Through(r policy.Resolver) policy.Resolver { return asided{r, w} }

type asided struct {
	policy.Resolver
	watch *Watch
}

func (a asided) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	state, aside := a.watch.isAside(host)
	if aside && state != Dead {
		return nil, setAside(host)
	}
	addrs, err := a.Resolver.LookupNetIP(ctx, network, host)
	if dns, ok := err.(*net.DNSError); aside && ok && dns.IsNotFound {
		return nil, setAside(host)
	}
	return addrs, err
}

func setAside(host string) error {
	return &net.DNSError{Err: "the DNS list is set aside", Name: host, IsTemporary: true}
}

// isAside says whether a name is below a zone that is set aside.
func (w *Watch) isAside(host string) (State, bool) {
	zones := w.aside.Load()
	if zones == nil {
		return "", false
	}
	for rest, host := "", strings.ToLower(strings.TrimSuffix(host, ".")); ; host = rest {
		var found bool
		if _, rest, found = strings.Cut(host, "."); !found {
			return "", false
		}
		if s, ok := (*zones)[rest]; ok {
			return s, true
		}
	}
}
