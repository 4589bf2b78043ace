package doctor

import (
	"fmt"
	"net/netip"
	"strconv"
)

// trust: Exim has no XCLIENT. It takes the client from a PROXY header, from the hosts
// of hosts_proxy.
func (e *Exim) trust(x *exam, a netip.Addr) {
	told, err := e.Proxied(a)
	switch {
	case err != nil:
		x.report(Unknown, "trust-unknown", a.String(), "Whether Exim expects a PROXY header from the secondary isn't known.", err.Error(), "name the secondary's address first: "+e.Set("hosts_proxy", a.String()))
	case !told:
		x.report(Warning, "no-client-identity", a.String(),
			"Exim isn't told whose mail the secondary hands over: blocklists, SPF and HELO checks look at the secondary; where its address may relay, nobody is tested, unknown recipients neither.",
			"it isn't in hosts_proxy", e.Set("hosts_proxy", a.String())+`; on the secondary: identity = "proxy" under [primary]`)
	}
}

func (e *Exim) limits(x *exam, a netip.Addr) {
	n, err := strconv.Atoi(e.PerHost)
	if err != nil || n == 0 || n >= fewConnections { // an expansion may make an exception
		return
	}
	x.report(Warning, "rate-limits", a.String(), "Exim limits the connections of one address, and doesn't exempt the secondary: a long queue empties slowly.", "smtp_accept_max_per_host = "+e.PerHost,
		e.Set("smtp_accept_max_per_host", fmt.Sprintf("${if eq{$sender_host_address}{%s}{0}{%d}}", a, n)))
}
