package main

import (
	"net/netip"
	"slices"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

// byClientOf says that a server is told whose mail it gets, and has a session for
// each client.
func byClientOf(p config.Primary) bool { return p.ByXClient() || p.ByProxy() }

// playThrough has the door play clients' sessions to the next hops while they
// are up, where the configuration wants that.
func (d *daemon) playThrough() {
	route := routeOf(d.cfg.Routes)
	d.smtp.IsNextHop = func(domain string, addr netip.Addr) bool { return d.relay.IsNextHop(route(domain), addr) }
	if !slices.ContainsFunc(d.relay.Status(), func(r relay.RouteStatus) bool { return r.Live }) {
		return
	}
	live := &smtpd.Live{
		Play: func(c *smtpd.Command) smtpd.Player { return d.relay.Live(route, c.Peer) },
		Offers: func() (smtpd.Extensions, bool) {
			o, is := d.relay.LiveOffers()
			return smtpd.Extensions(o), is
		},
		Agreement: d.metrics.LiveAgreement,
	}
	d.smtp.Decide = live.PlayThrough
}
