package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/greylist"
	policysync "github.com/understudy-mx/understudy/sync"
)

// publication is `understudy publish` at work: the rooms, and the wires between
// them.
type publication struct {
	cfg       *config.Config
	registry  *prometheus.Registry
	frame     *service.Frame
	publisher *publisher.Publisher
	shadow    *publisher.Shadow // nil: the primary's log isn't read
	meter     *meter.Meter      // of the shadow
	resolver  policy.Resolver   // likewise
	offer     *policysync.Publisher
	lists     *dnslist.Watch
	learned   *greylist.Learned
	lock      *os.File
	door      net.Listener
	control   net.Listener
	web       net.Listener // nil: no metrics
	push      *pushDesk
}

// newPublication opens and listens; then nothing moves yet.
func newPublication(cfg *config.Config, log *slog.Logger) (_ *publication, err error) {
	p := &publication{cfg: cfg, frame: service.New(log)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var m *metrics.Metrics
	p.registry, m = newMetrics()
	if err := foreignState(cfg); err != nil {
		return nil, mistakes{err}
	}
	dir := publisher.Dir(cfg)
	if p.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if p.offer, err = policysync.OpenPublisher(policysync.PublisherOptions{
		Dir: dir, Address: cfg.Publish.Address, Hashed: cfg.Publish.Hashed, Log: log, Metrics: m,
		Lists: func() []policysync.ListView { return p.lists.Report() }, Passed: p.learn(dir, log),
	}); err != nil {
		return nil, stateError(cfg.StateDir, err)
	}
	if p.publisher, err = publisher.New(cfg, p.offer, log, m); err != nil {
		return nil, err
	}
	p.watchLists(log, m)
	if cfg.Publish.Log != "" {
		p.openShadow(m, log)
	}
	if p.door, err = service.Listen(cfg.Publish.Listen); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	if p.control, err = control.Listen(control.SocketPath(dir)); err != nil {
		return nil, err
	}
	if p.web, err = listenWeb(cfg); err != nil {
		return nil, err
	}
	if p.push, err = openPush(cfg, log, m); err != nil {
		return nil, err
	}
	p.frame.Reload = reloading(cfg, p.push, log, p.publisher.Reload)
	return p, nil
}

// openShadow has the primary's log held against the policy.
func (p *publication) openShadow(m *metrics.Metrics, log *slog.Logger) {
	p.resolver = newResolver(p.cfg, nil)
	p.meter = meter.Open(meter.Options{File: filepath.Join(publisher.Dir(p.cfg), "parity.json"), Log: log, Hashed: p.cfg.Publish.Hashed,
		Agreement: m.ShadowAgreement, Differences: m.Differences.MustCurryWith(prometheus.Labels{"by": "shadow"})}, time.Now())
	p.shadow = publisher.NewShadow(p.publisher, p.meter, p.resolver, log, m)
}

// lockDir makes dir and keeps other publishers out of it for as long as the
// file is open.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stateError(dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, stateError(dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use by another understudy publish; only one may use it at a time", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// close releases what newPublication opened.
func (p *publication) close() {
	for _, l := range []net.Listener{p.door, p.control, p.web} {
		if l != nil {
			l.Close()
		}
	}
	p.push.close()
	if p.offer != nil {
		p.offer.Close()
	}
	if p.lock != nil {
		p.lock.Close()
	}
}

// run publishes until ctx ends or a part fails.
func (p *publication) run(ctx context.Context) error {
	defer p.close()
	p.publisher.First(ctx)
	f := p.frame
	f.Alive = func(context.Context) error { p.offer.Peers(); return nil } // hangs when the publisher does
	f.Listening("publish", p.door)
	f.Front("publish", func(ctx context.Context) error { return p.offer.Serve(ctx, p.door) })
	f.Front("sources", p.publisher.Run)
	f.Front("DNS lists", p.lists.Run)
	var shadow func(all bool) operator.Shadow
	if p.shadow != nil {
		shadow = func(all bool) operator.Shadow {
			return operator.Shadow{Report: p.meter.Report(all), LogStatus: p.shadow.Status()}
		}
		f.Front("primary's log", p.shadow.Run)
		f.Front("parity meter", func(ctx context.Context) error { return p.meter.Run(ctx, p.publisher.Current, p.resolver) })
	}
	f.Front("control socket", func(ctx context.Context) error {
		return control.Serve(ctx, p.control, operator.WithPush(operator.ServePublisher(p.offer, p.lists, p.learned, shadow), p.push.lists()))
	})
	p.push.join(f)
	f.Web(p.web, metrics.Handler(p.registry, p.publisher.Ready))
	return f.Run(ctx, "version", versionLine(), "address", p.cfg.Publish.Address, "state_dir", p.cfg.StateDir)
}
