package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// listsFile keeps what is known of DNS lists, in a state directory.
const listsFile = "dnsbl.json"

// probing is a resolver that keeps nothing: a probe has to hear what the servers
// say now.
func probing(cfg *config.Config) *resolver.Resolver {
	return resolver.New(resolver.Options{Servers: cfg.DNS.Servers, Timeout: cfg.DNS.Timeout, CacheSize: 1})
}

// watchLists has the DNS lists probed, and the door's look-ups go by the result.
func (d *daemon) watchLists() {
	var err error
	d.lists, err = dnslist.New(dnslist.Options{
		Lists: func() []policy.DNSList {
			if s := d.current(); s != nil {
				return s.DNSLists()
			}
			return nil
		},
		Primary: func() (list []policysync.ListView) {
			if d.primary != nil {
				_ = d.primary.Use(func(f *policysync.Follower) error { list = f.Lists(); return nil }) // not paired: not known
			}
			return list
		},
		Resolver: probing(d.cfg), Rule: dnslist.Rule(d.cfg.DNS.SickLists), File: filepath.Join(d.cfg.StateDir, listsFile), Log: d.log, Metrics: d.metrics,
	})
	if err != nil {
		d.log.Error("what was known of DNS lists is lost", "err", err)
	}
	d.smtp.Resolver = d.lists.Through(d.smtp.Resolver)
}

// watchLists has the primary's view of the DNS lists kept for the secondaries. It
// sets nothing aside: Postfix doesn't, either.
func (p *publication) watchLists(log *slog.Logger, m *metrics.Metrics) {
	var err error
	p.lists, err = dnslist.New(dnslist.Options{
		Lists: p.publisher.DNSLists, Resolver: probing(p.cfg), Rule: dnslist.Count,
		File: filepath.Join(publisher.Dir(p.cfg), listsFile), Log: log, Metrics: m,
	})
	if err != nil {
		log.Error("what was known of DNS lists is lost", "err", err)
	}
}

type dnsblCmd struct {
	confFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (dnsblCmd) Help() string {
	return `Shows every DNS list of the policy in force: what asks it, its weight, what its test entries say, how long it took to answer, since when it is in that state, and how the primary sees it; and whether it is set aside, so that its look-ups count as failed. See sick_lists in understudy.conf(5).

States: ok; untested: it has never listed a test entry, as a private list may; dead: it did, and lists nobody now; lists_all: it lists what no list may list; refuses: it answers 127.255.255.x or the like; silent: no answer.

On the primary, with the publisher's configuration, it shows the primary's view, and those of the secondaries.

Examples:

    understudy dnsbl
    understudy dnsbl -c ` + publishConfig
}

// listViews is what a publisher shows.
type listViews struct {
	Lists       []dnslist.View                   `json:"lists"`
	Secondaries map[string][]policysync.ListView `json:"secondaries"`
}

func (c *dnsblCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.IsPublisher {
		return publishFlag{c.Conf}.ask(func(p operator.Publisher) error {
			v, err := viewsOf(ctx, p)
			return render(out, c.JSON, v, err, printListViews)
		})
	}
	return daemonFlag{c.Conf}.ask(func(d operator.Daemon) error {
		all, err := d.Lists(ctx)
		return render(out, c.JSON, all, err, printLists)
	})
}

func viewsOf(ctx context.Context, p operator.Publisher) (v listViews, err error) {
	if v.Lists, err = p.Lists(ctx); err != nil {
		return v, err
	}
	peers, err := p.Peers(ctx)
	v.Secondaries = map[string][]policysync.ListView{}
	for _, q := range peers {
		v.Secondaries[q.Name] = q.Lists
	}
	return v, err
}

func printLists(out io.Writer, all []dnslist.View) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "The policy in force asks no DNS list, or none has been asked yet.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ZONE\tSTATE\tSINCE\tTOOK\tPRIMARY\tCOUNTS\tWEIGHT\tUSED BY")
	for _, v := range all {
		primary, counts, weight := "not known", "yes", "-"
		if v.Primary != nil {
			primary = printable(v.Primary.State)
		}
		if v.Aside {
			counts = "set aside"
		}
		if v.Weight != 0 {
			weight = fmt.Sprint(v.Weight)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d ms\t%s\t%s\t%s\t%s\n", printable(v.Zone), v.State, age(time.Since(v.Since)), v.Milliseconds, primary, counts, weight, strings.Join(v.Uses, " "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, v := range all {
		var answers []string
		for _, a := range v.Answers {
			answers = append(answers, a.Asked+": "+printable(a.Got))
		}
		if _, err := fmt.Fprintf(out, "%s: %s\n", printable(v.Zone), strings.Join(answers, "; ")); err != nil {
			return err
		}
	}
	return nil
}

func printListViews(out io.Writer, v listViews) error {
	if err := printLists(out, v.Lists); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSECONDARY\tZONE\tSTATE\tSINCE")
	for _, name := range slices.Sorted(maps.Keys(v.Secondaries)) {
		for _, l := range v.Secondaries[name] {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(name), printable(l.Zone), cmp.Or(printable(l.State), "-"), age(time.Since(l.Since)))
		}
	}
	return w.Flush()
}
