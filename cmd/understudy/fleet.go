package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
	policysync "github.com/understudy-mx/understudy/sync"
)

type fleetCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As a JSON object."`
}

func (fleetCmd) Help() string {
	return `Lists the secondaries that share the database, as this one sees them: when each was heard of last, its policy, its sessions with clients and with next hops, how much of all mail waits in its spool, how fast that leaves, and how many messages since its start the primary may have twice. A policy that differs is marked with "!".`
}

func (c *fleetCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(d operator.Daemon) error {
		v, err := d.Fleet(ctx)
		return render(out, c.JSON, v, err, printFleet)
	})
}

func printFleet(out io.Writer, v fleet.View) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSEEN\tPOLICY\tDIGEST\tCLIENTS\tRELAYING\tMESSAGES\tHELD\tSHARE\tOUT\tTWICE\tPROBLEM")
	for _, m := range v.Members {
		seen, version := "never", "-"
		if m.Seen >= 0 {
			seen = age(time.Duration(m.Seen*float64(time.Second))) + " ago"
		}
		if m.Version > 0 {
			version = fmt.Sprint(m.Version)
		}
		if m.Differs {
			version += "!"
		}
		problem := m.Problem
		if m.Holder != "" {
			problem = "its spool is held by " + m.Holder
		}
		if problem == "" {
			problem = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%.0f %%\t%.1f/s\t%d\t%s\n", printable(m.Name), seen, version, printable(shortDigest(m.Digest)),
			m.Sessions, m.Relaying, m.Messages, m.Held, 100*m.Share, m.Out, m.Twice, printable(problem))
	}
	if v.Error != "" {
		since := "the start"
		if !v.At.IsZero() {
			since = v.At.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "\nThe database can't be asked since %s: %s\n", since, printable(v.Error))
	}
	if v.Adopts != "" {
		fmt.Fprintf(w, "\nThe mail of %s is being moved here.\n", printable(v.Adopts))
	}
	return w.Flush()
}

// joinFleet tells the others that this one lives, before its spool is opened: one that
// adopts its mail lets go then.
func (d *daemon) joinFleet() error {
	if d.cfg.Queue.Store != storePostgres {
		return nil
	}
	own, err := spoolOf(d.cfg, d.cfg.Hostname, d.log)
	if err != nil {
		return err
	}
	d.fleet, err = fleet.New(fleet.Options{
		Spool: func(member string) postgres.Opener {
			o := own
			o.Spool = member
			return o
		},
		Self: d.cfg.Hostname, Route: routeOf(d.cfg), Says: d.says, Limits: d.limits, Changed: d.limited,
		File: filepath.Join(d.cfg.StateDir, "fleet.json"), AdoptAfter: d.cfg.Queue.AdoptAfter, Log: d.log, Metrics: d.metrics,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	d.fleet.Beat(ctx)
	return nil
}

// Limits that the members share, each followed by the name of a next hop.
const (
	limitSessions = "s "
	limitRate     = "r "
	limitAsking   = "a "
	limitLive     = "l "
)

// limits lists what the members share.
func (d *daemon) limits() (all []fleet.Limit) {
	demands := map[string]queue.Demand{}
	if d.queue != nil {
		demands = d.queue.Demands()
	}
	if d.fallback != nil {
		d.fallback.demands(demands)
	}
	for dest, p := range primaries(d.cfg) {
		now := demands[dest]
		all = append(all, fleet.Limit{Key: limitSessions + dest, Most: p.MaxConnections, Used: now.Sessions, Want: now.Mail})
		if p.MaxRate > 0 {
			all = append(all, fleet.Limit{Key: limitRate + dest, Most: p.MaxRate, Want: now.Mail})
		}
	}
	for _, p := range d.relay.Places() {
		key := limitAsking
		if p.Live {
			key = limitLive
		}
		all = append(all, fleet.Limit{Key: key + p.Dest, Most: p.All, Used: p.Used, Want: p.Want, Steady: true})
	}
	return all
}

// primaries has the next hops by their names.
func primaries(cfg *config.Config) map[string]config.Primary {
	all := map[string]config.Primary{defaultRoute: cfg.Primary}
	for _, r := range cfg.Routes {
		all[r.Name] = r.Primary
	}
	return all
}

// limited has the limits' parts kept to.
func (d *daemon) limited() {
	d.relay.Limit(func(dest string, live bool, all int) int {
		if live {
			return d.fleet.Part(limitLive+dest, all)
		}
		return d.fleet.Part(limitAsking+dest, all)
	})
	if d.queue != nil {
		d.queue.Reconsider()
	}
	if d.fallback != nil {
		d.fallback.reconsider()
	}
}

// maxConnections is this secondary's part of a next hop's limit.
func (d *daemon) maxConnections(dest string, limit int) int {
	if d.fleet == nil {
		return limit
	}
	return d.fleet.Part(limitSessions+dest, limit)
}

// maxRate is this secondary's part of a rate; -1 is none, as 0 is any rate.
func (d *daemon) maxRate(dest string, rate int) int {
	if d.fleet == nil || rate == 0 {
		return rate
	}
	if part := d.fleet.Part(limitRate+dest, rate); part > 0 {
		return part
	}
	return -1
}

func (d *daemon) elsewhere(dest string) (up, known bool) {
	if d.fleet == nil {
		return false, false
	}
	return d.fleet.Elsewhere(dest)
}

// wake has all mail for a next hop relayed that is up again.
func (d *daemon) wake(dest string) {
	d.queue.Wake(dest)
	if d.fallback != nil {
		d.fallback.wake(dest)
	}
}

func (d *daemon) fleetView() (fleet.View, error) {
	if d.fleet == nil {
		return fleet.View{}, errNoFleet
	}
	return d.fleet.View(), nil
}

var errNoFleet = fmt.Errorf(`no database is shared: store is "leveldb" under [queue]`)

// maxRoutesSaid bounds what a member says of its next hops.
const maxRoutesSaid = 50

// says is what the other members hear of this one.
func (d *daemon) says() fleet.Says {
	s := fleet.Says{Software: versionLine(), Up: map[string]bool{}}
	for i, r := range d.relay.Status() {
		if i < maxRoutesSaid {
			s.Up[r.Name] = r.Up
		}
	}
	switch {
	case d.file != nil && d.file.Current() != nil:
		s.Digest = inforce.Digest(d.file.Current())
	case d.primary != nil:
		_ = d.primary.Use(func(f *policysync.Follower) error { // not paired: nothing to say
			st := f.Status()
			if s.Epoch, s.Version, s.Staged = st.Epoch, st.Version, st.Staged; !st.Hashed { // by a key of each pairing's own
				s.Digest = st.Digest
			}
			return nil
		})
	}
	s.Digest = d.push.digest(s.Digest)
	if d.queue == nil {
		return s
	}
	s.Sessions = d.smtp.Sessions()
	status := d.queue.Status()
	s.Twice = status.Twice
	for _, dest := range status.Destinations {
		s.Relaying += dest.Sessions
	}
	s.Problem = d.health().Problem
	s.Problem = s.Problem[:min(len(s.Problem), 200)]
	return s
}
