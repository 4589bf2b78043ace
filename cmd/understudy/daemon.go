package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

// defaultRoute is the next hop of all domains that no [[route]] names.
const defaultRoute = "primary"

// daemon is Understudy at work: the rooms, and the wires between them.
type daemon struct {
	cfg      *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics.Metrics
	loaded   time.Time   // when the files were read
	policy   *policyFile // nil: the policy comes from the primary
	sync     *following  // nil: from a file
	queue    *queue.Queue
	relay    *relay.Client
	smtp     *smtpd.Server
	cert     *smtpd.CertFile // nil: no STARTTLS
	doors    []*door
	web      net.Listener // nil: no metrics
	control  net.Listener
	webPages http.Handler
	stopping atomic.Bool
}

// newDaemon reads, opens and listens. When it returns nothing moves yet, and
// whatever could be in the way of a start has been; mistakes of the operator's
// are mistakes.
func newDaemon(cfg *config.Config, log *slog.Logger) (_ *daemon, err error) {
	d := &daemon{cfg: cfg, log: log, registry: prometheus.NewRegistry(), loaded: time.Now()}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	d.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.metrics = metrics.New(d.registry)
	if err := d.readFiles(); err != nil {
		return nil, mistakes{err}
	}
	d.buildRelay()
	d.smtp.Inquire = inquire(d.relay, routeOf(cfg.Routes))
	if err := d.openQueue(); err != nil {
		return nil, err
	}
	if d.policy == nil {
		if d.sync, err = d.follow(); err != nil {
			return nil, err
		}
	}
	d.smtp.Keep = spool{d.queue}
	if d.doors, err = listenSMTP(cfg.SMTP.Listen); err != nil {
		return nil, err
	}
	if d.control, err = control.Listen(control.SocketPath(cfg.StateDir)); err != nil {
		return nil, err
	}
	if cfg.Metrics.Listen != "" {
		if d.web, err = listenTCP(cfg.Metrics.Listen); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	d.webPages = metrics.Handler(d.registry, d.ready)
	if !strings.Contains(cfg.Hostname, ".") {
		log.Warn("hostname is not a full one, other servers may refuse mail from it; set it in the configuration", "hostname", cfg.Hostname)
	}
	return d, nil
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
	if d.sync != nil {
		d.sync.close()
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
		d.policy, err = loadPolicy(d.cfg.Policy.File, d.log, d.metrics)
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
		Log:                      d.log,
		Metrics:                  d.metrics,
	}
	if c.TLSCert == "" {
		return nil
	}
	cert, err := smtpd.OpenCertFile(c.TLSCert, c.TLSKey, d.log, d.metrics)
	if err != nil {
		return certMistake(d.cfg, err)
	}
	d.cert, d.smtp.TLS = cert, cert.Config()
	return nil
}

// current is the policy in force, nil before the first.
func (d *daemon) current() *policy.Snapshot {
	if d.policy != nil {
		return d.policy.now.Load()
	}
	return d.sync.current()
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
	add := func(name string, p config.Primary) {
		routes[name] = relay.Route{Name: name, Address: p.Address, TLS: p.TLS, TLSName: p.TLSName,
			TLSCA: p.TLSCA, XClient: p.XClient, MaxAsking: p.MaxConnections, ProbeInterval: p.ProbeInterval}
	}
	add(defaultRoute, d.cfg.Primary)
	for _, r := range d.cfg.Routes {
		add(r.Name, r.Primary)
	}
	d.relay = relay.New(relay.Options{Routes: routes, Hostname: d.cfg.Hostname, Log: d.log, Metrics: d.metrics,
		OnUp: func(dest string) { d.queue.Wake(dest) }, Asks: d.asks})
}

// asks says that the policy in force has the primary asked.
func (d *daemon) asks() bool {
	snap := d.current()
	return snap != nil && snap.Asks()
}

// inquire has the door ask the next hop of each recipient's domain.
func inquire(c *relay.Client, route func(domain string) string) func(*envelope.Envelope, int64) smtpd.Inquiry {
	return func(env *envelope.Envelope, size int64) smtpd.Inquiry { return c.Inquire(route, env, size) }
}

// routeOf returns the function from a recipient's domain to the next hop: the
// route that names the domain, or else the nearest domain above it with a dot
// in front, or else [primary].
func routeOf(routes []config.Route) func(domain string) string {
	dest := map[string]string{}
	for _, r := range routes {
		for _, domain := range r.Domains {
			dest[domain] = r.Name
		}
	}
	return func(domain string) string {
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
	limit := map[string]int{defaultRoute: d.cfg.Primary.MaxConnections}
	rate := map[string]int{defaultRoute: d.cfg.Primary.MaxRate}
	byClient := map[string]bool{defaultRoute: d.cfg.Primary.XClient}
	for _, r := range d.cfg.Routes {
		limit[r.Name], rate[r.Name], byClient[r.Name] = r.MaxConnections, r.MaxRate, r.XClient
	}
	q, err := queue.Open(queue.Options{
		Dir:            filepath.Join(d.cfg.StateDir, "queue"),
		Route:          routeOf(d.cfg.Routes),
		Relayer:        d.relay,
		MaxAge:         d.cfg.Queue.MaxAge,
		MinFree:        uint64(d.cfg.Queue.MinFree),
		MinFreeInodes:  uint64(d.cfg.Queue.MinFreeInodes),
		MaxConnections: func(dest string) int { return limit[dest] },
		MaxRate:        func(dest string) int { return rate[dest] },
		ByClient:       func(dest string) bool { return byClient[dest] },
		Log:            d.log,
		Metrics:        d.metrics,
	})
	if err != nil {
		return stateError(d.cfg.StateDir, err)
	}
	d.queue = q
	d.metrics.Queue(q.Stats)
	return nil
}

// run works until ctx ends or a part fails; then it stops in an order that
// loses nothing: no new connections; transactions finish, within their
// deadline; no more relaying; the queue is closed last. Each value of reload
// makes it read its files again; reload may be nil.
func (d *daemon) run(ctx context.Context, reload <-chan os.Signal) error {
	defer d.close()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	var front, back sync.WaitGroup
	start := func(group *sync.WaitGroup, ctx context.Context, what string, work func(context.Context) error) {
		group.Go(func() {
			err := work(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("ended unasked")
			}
			if err != nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	start(&back, behind, "queue", d.queue.Run)
	start(&back, behind, "relay", func(ctx context.Context) error { d.relay.Run(ctx); return nil })
	if d.sync != nil {
		start(&back, behind, "policy sync", d.sync.run)
	}
	start(&back, behind, "control socket", func(ctx context.Context) error {
		return control.Serve(ctx, d.control, d.pages())
	})
	if d.web != nil {
		d.log.Info("listening", "for", "metrics", "addr", d.web.Addr().String())
		start(&back, behind, "metrics", d.serveWeb)
	}
	for _, l := range d.doors {
		d.log.Info("listening", "for", "smtp", "addr", l.Addr().String())
		start(&front, ctx, "smtp", func(ctx context.Context) error { return d.smtp.Serve(ctx, l) })
	}
	d.watchFiles(ctx, &front, reload)
	start(&front, ctx, "watchdog", d.feedWatchdog)
	d.notify(sd.SdNotifyReady)
	d.log.Info("ready", "version", versionLine(), "hostname", d.cfg.Hostname, "state_dir", d.cfg.StateDir)

	<-ctx.Done()
	d.stopping.Store(true)
	d.notify(sd.SdNotifyStopping)
	d.log.Info("stopping")
	front.Wait()
	stopBehind()
	back.Wait()
	d.log.Info("stopped")
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// watchFiles has the policy and the certificate read again when they change,
// or when reload says so.
func (d *daemon) watchFiles(ctx context.Context, group *sync.WaitGroup, reload <-chan os.Signal) {
	var watchers []*watcher
	if d.policy != nil {
		watchers = append(watchers, &watcher{files: d.policy.watched, reload: d.policy.reload})
	}
	if d.cert != nil {
		watchers = append(watchers, &watcher{files: d.certFiles, reload: d.reloadCert})
	}
	for _, w := range watchers {
		w.force, w.log, w.rest = make(chan chan struct{}), d.log, restFor
		group.Go(func() { w.run(ctx, d.loaded) })
	}
	group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-reload:
				d.log.Info("asked to read the policy and the certificate again")
				d.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
				for _, w := range watchers {
					w.now(ctx)
				}
				d.notify(sd.SdNotifyReady)
			}
		}
	})
}

func (d *daemon) certFiles() []string { return []string{d.cfg.SMTP.TLSCert, d.cfg.SMTP.TLSKey} }

func (d *daemon) reloadCert() {
	if err := d.cert.Reload(); err != nil {
		d.log.Error("certificate refused, the last good one stays in use", "err", err)
	}
}

func (d *daemon) serveWeb(ctx context.Context) error {
	return serveWeb(ctx, d.log, d.web, d.webPages)
}

// serveWeb serves the metrics until ctx ends.
func serveWeb(ctx context.Context, log *slog.Logger, l net.Listener, pages http.Handler) error {
	s := &http.Server{
		Handler:           pages,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}
