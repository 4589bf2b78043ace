package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/understudy-mx/understudy/internal/asked"
	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/internal/page"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/internal/standin"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/greylist"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
	policysync "github.com/understudy-mx/understudy/sync"
)

// defaultRoute is the next hop of all domains that no [[route]] names.
const defaultRoute = "primary"

// returnVouched is a value of [queue] return.
const returnVouched = "vouched"

// daemon is Understudy at work: the rooms, and the wires between them.
type daemon struct {
	cfg      *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics.Metrics
	loaded   time.Time // when the files were read
	frame    *service.Frame
	file     *inforce.File    // nil: the policy comes from the primary
	primary  *inforce.Primary // nil: from a file
	queue    *queue.Queue
	fleet    *fleet.Fleet // nil: no database is shared
	fallback *fallback    // nil: none
	alone    *alone       // nil: the database was there at the start, or there is none
	outages  *outage.Book
	meter    *meter.Meter
	standIn  *standin.Book
	lists    *dnslist.Watch
	greylist *greylist.Store
	relay    *relay.Client
	smtp     *smtpd.Server
	cert     *smtpd.CertFile // nil: no STARTTLS
	doors    []*service.Door
	web      net.Listener // nil: no metrics
	control  net.Listener
	push     *pushDesk
	asked    *asked.Book
	page     *page.Page // nil: none
	pageAt   net.Listener
	stopping atomic.Bool
}

// newDaemon reads, opens and listens. When it returns nothing moves yet, and
// whatever could be in the way of a start has been; mistakes of the operator's
// are mistakes.
func newDaemon(cfg *config.Config, log *slog.Logger) (_ *daemon, err error) {
	d := &daemon{cfg: cfg, log: log, loaded: time.Now(), frame: service.New(log)}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	d.registry, d.metrics = newMetrics()
	if err := d.readFiles(); err != nil {
		return nil, mistakes{err}
	}
	d.buildRelay()
	d.smtp.Inquire = inquire(d.relay, routeOf(cfg))
	d.openAsked()
	d.whileUp()
	if err := d.openQueue(); err != nil {
		return nil, err
	}
	d.watchLists()
	if d.outages, err = outage.Open(outageFile(cfg.StateDir)); err != nil {
		log.Error("the outages so far are lost", "err", err)
	}
	d.openMeter()
	d.greylist = greylist.Open(greylist.Options{Dir: greylistDir(cfg), Log: log, Metrics: d.metrics})
	d.smtp.Greylist = d.greylist
	d.standIn = standin.Open(filepath.Join(cfg.StateDir, "standin.json"), log, d.standsIn)
	if d.file == nil {
		if d.primary, err = d.follow(); err != nil {
			return nil, err
		}
	}
	d.smtp.Keep = spool{d.queue}
	if d.fallback != nil {
		d.smtp.Keep = d.fallback
	}
	if d.doors, err = service.ListenDoors(cfg.SMTP.Listen); err != nil {
		return nil, err
	}
	if d.control, err = control.Listen(control.SocketPath(cfg.StateDir)); err != nil {
		return nil, err
	}
	if d.web, err = listenWeb(cfg); err != nil {
		return nil, err
	}
	if d.push, err = openPush(cfg, log, d.metrics); err != nil {
		return nil, err
	}
	if err := d.openPage(); err != nil {
		return nil, err
	}
	if !strings.Contains(cfg.Hostname, ".") {
		log.Warn("hostname is not a full one, other servers may refuse mail from it; set it in the configuration", "hostname", cfg.Hostname)
	}
	return d, nil
}

func newMetrics() (*prometheus.Registry, *metrics.Metrics) {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r, metrics.New(r)
}

// listenWeb opens the door of the metrics, nil when there are none.
func listenWeb(cfg *config.Config) (net.Listener, error) {
	if cfg.Metrics.Listen == "" {
		return nil, nil
	}
	l, err := service.Listen(cfg.Metrics.Listen)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return l, nil
}

// spool is the queue as the door sees it.
type spool struct{ *queue.Queue }

func (s spool) Begin(env *envelope.Envelope) (smtpd.Draft, error) {
	d, err := s.Queue.Begin(env)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// close releases what newDaemon opened; run does it by itself.
func (d *daemon) close() {
	for _, l := range d.doors {
		l.Close()
	}
	if d.control != nil {
		d.control.Close()
	}
	if d.web != nil {
		d.web.Close()
	}
	if d.pageAt != nil {
		d.pageAt.Close()
	}
	d.push.close()
	if d.primary != nil {
		d.primary.Close()
	}
	if d.greylist != nil {
		if err := d.greylist.Close(); err != nil {
			d.log.Warn("close the greylist", "err", err)
		}
	}
	if d.queue != nil {
		if err := d.queue.Close(); err != nil && !errors.Is(err, queue.ErrClosed) {
			d.log.Error("close queue", "err", err)
		}
	}
}

// readFiles reads what the configuration names. Its error joins all that is
// wrong with that.
func (d *daemon) readFiles() (err error) {
	errs := []error{foreignState(d.cfg)}
	if len(d.cfg.Sync.Domains) == 0 {
		d.file, err = inforce.OpenFile(d.cfg.Policy.File, d.log, d.metrics)
		errs = append(errs, policyMistake(d.cfg, err))
	}
	return errors.Join(append(errs, d.buildSMTP())...)
}

func (d *daemon) buildSMTP() error {
	c := d.cfg.SMTP
	d.smtp = &smtpd.Server{
		Hostname:                 d.cfg.Hostname,
		Policy:                   d.current,
		Resolver:                 d.resolver(),
		DeferUnanswered:          d.cfg.DNS.OnFailure == onFailureDefer,
		XClientFrom:              c.XClientFrom,
		ProxyFrom:                c.ProxyFrom,
		MaxConnections:           c.MaxConnections,
		MaxConnectionsPerClient:  c.MaxConnectionsPerClient,
		MaxConnectionsPerNetwork: c.MaxConnectionsPerNetwork,
		GreetWait:                c.GreetWait,
		GreetAction:              c.GreetAction,
		CommandTimeout:           c.CommandTimeout,
		DataTimeout:              c.DataTimeout,
		ShutdownTimeout:          c.ShutdownTimeout,
		BareNewline:              c.BareNewline,
		Unsure:                   d.unsure,
		Vouch:                    d.cfg.Queue.Return == returnVouched || d.cfg.Relay.AuthenticationResults,
		Log:                      d.log,
		Metrics:                  d.metrics,
	}
	var err error
	if d.smtp.Filters, err = buildFilters(d.cfg); err != nil {
		return err
	}
	if c.TLSCert == "" {
		return nil
	}
	cert, err := smtpd.OpenCertFile(c.TLSCert, c.TLSKey, d.log, d.metrics)
	if err != nil {
		return certMistake(d.cfg, "smtp", d.cfg.SMTP.TLSCert, d.cfg.SMTP.TLSKey, err)
	}
	d.cert, d.smtp.TLS = cert, cert.Config()
	return nil
}

// current is the policy in force, nil before the first.
func (d *daemon) current() *policy.Snapshot {
	if d.file != nil {
		return d.file.Current()
	}
	return d.primary.Current()
}

// greylistDir holds what greylisting remembers.
func greylistDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "greylist") }

// syncDir holds the pairing with the primary, and its policy.
func syncDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "sync") }

func (d *daemon) follow() (*inforce.Primary, error) {
	return inforce.Follow(policysync.FollowerOptions{
		Dir: syncDir(d.cfg), Domains: d.cfg.Sync.Domains, StaleAfter: d.cfg.Sync.StaleAfter, MaxOctets: int64(d.cfg.Sync.MaxSize),
		Report: d.health, Lists: d.lists.Report, Learnt: learnt{d.greylist}, Log: d.log, Metrics: d.metrics,
	})
}

// unsure notes a recipient whom the primary has to be asked about. A policy
// from a file has nobody to ask.
func (d *daemon) unsure(recipient string) {
	if d.primary != nil {
		d.primary.Unsure(recipient)
	}
}

func (d *daemon) resolver() policy.Resolver {
	watch := dnsWatch{log: d.log, failing: d.metrics.DNSFailing, onFailure: d.cfg.DNS.OnFailure}
	return newResolver(d.cfg, func(qtype, result string, took time.Duration) {
		d.metrics.DNSLookups.WithLabelValues(qtype, result).Inc()
		if result != "cached" {
			d.metrics.DNSDuration.Observe(took.Seconds())
			watch.note(result)
		}
	})
}

func newResolver(cfg *config.Config, observe func(string, string, time.Duration)) *resolver.Resolver {
	return resolver.New(resolver.Options{Servers: cfg.DNS.Servers, Timeout: cfg.DNS.Timeout, Observe: observe})
}

func (d *daemon) buildRelay() {
	routes := map[string]relay.Route{}
	add := func(name string, p config.Primary, live bool) {
		routes[name] = relay.Route{Name: name, Address: p.Address, TLS: p.TLS, TLSName: p.TLSName,
			TLSCA: p.TLSCA, XClient: p.ByXClient(), Proxy: p.ByProxy(), AuthResults: d.cfg.Relay.AuthenticationResults && !byClientOf(p), MaxAsking: p.MaxConnections, ProbeInterval: p.ProbeInterval,
			Live: live && p.WhileUp == "live" && byClientOf(p), MaxLive: p.MaxLive}
	}
	add(defaultRoute, d.cfg.Primary, true)
	for _, r := range d.cfg.Routes {
		add(r.Name, r.Primary, len(r.Domains) > 0)
	}
	d.relay = relay.New(relay.Options{Routes: routes, Hostname: d.cfg.Hostname, Log: d.log, Metrics: d.metrics,
		OnUp: d.wake, Asks: d.asks, Elsewhere: d.elsewhere})
}

// asks says that the policy in force has the primary asked.
func (d *daemon) asks() bool {
	snap := d.current()
	return snap != nil && snap.Asks()
}

// inquire has the door ask the next hop of each recipient's domain.
func inquire(c *relay.Client, route func(domain string) string) func(*envelope.Envelope, int64) smtpd.Asker {
	return func(env *envelope.Envelope, size int64) smtpd.Asker { return c.Inquire(route, env, size) }
}

// routeOf returns the function from a recipient's domain to the next hop: the
// route that names the domain, or else the nearest domain above it with a dot
// in front, or else [primary]. DSNs of our own have one by themselves.
func routeOf(cfg *config.Config) func(domain string) string {
	dest := map[string]string{}
	for _, r := range cfg.Routes {
		for _, domain := range r.Domains {
			dest[domain] = r.Name
		}
	}
	return func(domain string) string {
		if domain == store.Returns {
			return cfg.Queue.ReturnThrough
		}
		domain = strings.ToLower(strings.TrimSuffix(domain, "."))
		if name, ok := dest[domain]; ok {
			return name
		}
		for i := strings.IndexByte(domain, '.'); i >= 0; i = strings.IndexByte(domain, '.') {
			if name, ok := dest[domain[i:]]; ok {
				return name
			}
			domain = domain[i+1:]
		}
		return defaultRoute
	}
}

func (d *daemon) openQueue() error {
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return stateError(d.cfg.StateDir, err)
	}
	hops := primaries(d.cfg)
	opener, err := queueStore(d.cfg, d.log)
	if err != nil {
		return err
	}
	if err := d.joinFleet(); err != nil {
		return err
	}
	o := queue.Options{
		Store:          opener,
		Route:          routeOf(d.cfg),
		Relayer:        d.relay,
		MaxAge:         d.cfg.Queue.MaxAge,
		MinFree:        uint64(d.cfg.Queue.MinFree),
		MinFreeInodes:  uint64(d.cfg.Queue.MinFreeInodes),
		MaxConnections: func(dest string) int { return d.maxConnections(dest, hops[dest].MaxConnections) },
		MaxRate:        func(dest string) int { return d.maxRate(dest, hops[dest].MaxRate) },
		Return:         d.cfg.Queue.Return == returnVouched,
		Hostname:       d.cfg.Hostname,
		ByClient:       func(dest string) bool { return byClientOf(hops[dest]) },
		Log:            d.log,
		Metrics:        d.metrics,
	}
	q, err := queue.Open(o)
	if err != nil && d.cfg.Queue.Fallback == "leveldb" && postgres.Away(err) {
		return d.openAlone(o, err)
	}
	if err != nil {
		return storeError(d.cfg, err)
	}
	d.queue = q
	d.metrics.Queue(q.Stats)
	return d.openFallback(o)
}

// run works until ctx ends or a part fails; then it stops in an order that
// loses nothing: no new connections; transactions finish, within their
// deadline; no more relaying; the queue is closed last.
func (d *daemon) run(ctx context.Context) error {
	defer d.close()
	f := d.frame
	f.Alive, f.Stopping = d.alive, func() { d.stopping.Store(true) }
	f.Back("queue", d.queue.Run)
	if d.alone != nil {
		f.Back("database", d.alone.await)
	} else if d.fleet != nil {
		f.Back("fleet", func(ctx context.Context) error { return d.fleet.Run(ctx, d.queue) })
	}
	if d.fallback != nil {
		f.Back("fallback", d.fallback.run)
	}
	f.Back("relay", func(ctx context.Context) error { d.relay.Run(ctx); return nil })
	f.Back("outages", d.keepOutages)
	f.Back("DNS lists", d.lists.Run)
	if n := d.notifier(); n != nil {
		f.Back("notices", n.Run)
	}
	f.Back("stand-in", d.standIn.Run)
	f.Back("recipients asked about", d.asked.Run)
	f.Back("parity meter", func(ctx context.Context) error { return d.meter.Run(ctx, d.current, d.smtp.Resolver) })
	if d.primary != nil {
		f.Back("policy sync", d.primary.Run)
	}
	f.Back("control socket", func(ctx context.Context) error {
		return control.Serve(ctx, d.control, operator.WithPush(operator.ServeDaemon(operator.Desk{Filters: d.filterStatus, Queue: d.queue, Relay: d.relay, Policy: d.primary, Outages: d.outages, Meter: d.meter, StandIn: d.standIn, Lists: d.lists, Sign: d.signOutage, Greylist: d.greylist, Log: d.log, Fleet: d.fleetView, Asked: d.asked}), d.push.lists()))
	})
	f.Web(d.web, metrics.Handler(d.registry, d.ready))
	if d.page != nil {
		f.Listening("page", d.pageAt)
		f.Front("page", func(ctx context.Context) error { return d.page.Serve(ctx, d.pageAt) })
	}
	for _, l := range d.doors {
		f.Listening("smtp", l)
		f.Front("smtp", func(ctx context.Context) error { return d.smtp.Serve(ctx, l) })
	}
	d.push.join(f)
	d.watchFiles()
	return f.Run(ctx, "version", versionLine(), "hostname", d.cfg.Hostname, "state_dir", d.cfg.StateDir)
}

// watchFiles has the policy and the certificate read again when they change,
// or when the operator says so.
func (d *daemon) watchFiles() {
	var watchers []*service.Watcher
	if d.file != nil {
		watchers = append(watchers, service.Watch(d.file.Files, d.file.Reload, service.RestFor, d.log))
	}
	if d.cert != nil {
		watchers = append(watchers, service.Watch(d.certFiles, d.reloadCert, service.RestFor, d.log))
	}
	for _, w := range watchers {
		d.frame.Front("files", func(ctx context.Context) error { return w.Run(ctx, d.loaded) })
	}
	d.frame.Reload = reloading(d.cfg, d.push, d.log, func(ctx context.Context) {
		for _, w := range watchers {
			w.Now(ctx)
		}
	})
}

func (d *daemon) certFiles() []string { return []string{d.cfg.SMTP.TLSCert, d.cfg.SMTP.TLSKey} }

func (d *daemon) reloadCert(context.Context) {
	if err := d.cert.Reload(); err != nil {
		d.log.Error("certificate refused, the last good one stays in use", "err", err)
	}
}
