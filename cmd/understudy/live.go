package main

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

// byClientOf says that a server is told whose mail it gets, and has a session for
// each client.
func byClientOf(p config.Primary) bool { return p.ByXClient() || p.ByProxy() }

// whileUp has the door do with mail what the configuration says while its next
// hop is up.
func (d *daemon) whileUp() {
	route := routeOf(d.cfg)
	d.smtp.IsNextHop = func(domain string, addr netip.Addr) bool { return d.relay.IsNextHop(route(domain), addr) }
	live := slices.ContainsFunc(d.relay.Status(), func(r relay.RouteStatus) bool { return r.Live })
	defers := map[string]bool{defaultRoute: d.cfg.Primary.WhileUp == "defer"}
	for _, r := range d.cfg.Routes {
		defers[r.Name] = r.WhileUp == "defer"
	}
	off := &smtpd.PutOff{
		Up:         func(domain string) bool { dest := route(domain); return defers[dest] && d.relay.Up(dest) },
		Back:       func(domain string) time.Time { return d.relay.Back(route(domain)) },
		Recipients: d.metrics.PutOff,
	}
	through := &smtpd.Live{
		Play: func(c *smtpd.Command) smtpd.Player { return d.relay.Live(route, c.Peer) },
		Offers: func() (smtpd.Extensions, bool) {
			o, is := d.relay.LiveOffers()
			return smtpd.Extensions(o), is
		},
		Compare: d.compare,
	}
	putsOff := slices.Contains(slices.Collect(maps.Values(defers)), true)
	d.smtp.Decide = func(decider smtpd.Decider) smtpd.Decider {
		if putsOff {
			decider = off.Around(decider)
		}
		if live {
			decider = through.PlayThrough(decider)
		}
		return decider
	}
}

// openMeter goes on measuring how the snapshot agrees with the primary.
func (d *daemon) openMeter() {
	by := prometheus.Labels{"by": "live"}
	d.meter = meter.Open(meter.Options{File: filepath.Join(d.cfg.StateDir, "parity.json"), Log: d.log,
		Agreement: d.metrics.LiveAgreement, Differences: d.metrics.Differences.MustCurryWith(by)}, time.Now())
}

// compare takes the snapshot's word and the primary's on a command of a live session.
func (d *daemon) compare(c *smtpd.Command, v policy.Verdict, primary envelope.Reply) {
	if relay.OurReply(primary) {
		return
	}
	at := meter.Decision{At: c.At, Client: c.Env.Client, From: c.Env.From, Params: policy.MailParams{Size: c.Size, UTF8: c.Env.UTF8},
		Snapshot: d.current(), Ours: v, Primary: primary}
	if c.At == policy.Rcpt {
		at.To = c.To.Path
		if v.MustVerify() { // no list vouches for him
			d.asked.Heard(c.To.Path.Mailbox, primary)
		} else {
			d.smtp.Compare("live", v, primary)
		}
	}
	d.meter.Note(time.Now(), at)
}
