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
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/postfix"
	policysync "github.com/understudy-mx/understudy/sync"
)

// publishDir holds a publisher's keys, peers and control socket.
func publishDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "publish") }

// publisher is `understudy publish` at work.
type publisher struct {
	cfg      *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics.Metrics
	offer    *policysync.Publisher
	lock     *os.File
	door     net.Listener
	control  net.Listener
	web      net.Listener // nil: no metrics
	started  time.Time    // when the sources were first read
	learned  *postfix.Learned
	saved    []byte           // of learned, as the disk has it
	memo     postfix.Memo     // of the SQL tables
	last     *policy.Snapshot // as read last, nil: nothing yet

	mu      sync.Mutex          // guards all below
	files   []string            // to watch
	polled  bool                // some source has to be asked, or is broken
	broken  string              // what is wrong with the sources, "" when they are well
	told    string              // the last summary of an import that was logged
	wrong   map[string]bool     // tables whose listing was contradicted, which was logged
	sources []policysync.Source // as they were read last
}

// newPublisher opens and listens; then nothing moves yet.
func newPublisher(cfg *config.Config, log *slog.Logger) (_ *publisher, err error) {
	p := &publisher{cfg: cfg, log: log, registry: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.metrics = metrics.New(p.registry)
	if err := foreignState(cfg); err != nil {
		return nil, mistakes{err}
	}
	if p.lock, err = lockDir(publishDir(cfg)); err != nil {
		return nil, err
	}
	if p.learned, err = loadLearned(cfg); err != nil {
		return nil, err
	}
	if p.offer, err = policysync.OpenPublisher(policysync.PublisherOptions{
		Dir: publishDir(cfg), Address: cfg.Publish.Address, Hashed: cfg.Publish.Hashed, Log: log, Metrics: p.metrics,
	}); err != nil {
		return nil, stateError(cfg.StateDir, err)
	}
	if p.door, err = listenTCP(cfg.Publish.Listen); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	if p.control, err = control.Listen(control.SocketPath(publishDir(cfg))); err != nil {
		return nil, err
	}
	if cfg.Metrics.Listen != "" {
		if p.web, err = listenTCP(cfg.Metrics.Listen); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return p, nil
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

// close releases what newPublisher opened.
func (p *publisher) close() {
	for _, l := range []net.Listener{p.door, p.control, p.web} {
		if l != nil {
			l.Close()
		}
	}
	if p.offer != nil {
		p.offer.Close()
	}
	if p.lock != nil {
		p.lock.Close()
	}
}

// run publishes until ctx ends or a part fails.
func (p *publisher) run(ctx context.Context, reload <-chan os.Signal) error {
	defer p.close()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p.started = time.Now()
	p.first(ctx)
	var parts sync.WaitGroup
	start := func(what string, work func(context.Context) error) {
		parts.Go(func() {
			if err := work(ctx); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	start("publish", func(ctx context.Context) error { return p.offer.Serve(ctx, p.door) })
	start("control socket", func(ctx context.Context) error { return control.Serve(ctx, p.control, publishPages(p.offer)) })
	if p.web != nil {
		p.log.Info("listening", "for", "metrics", "addr", p.web.Addr().String())
		start("metrics", func(ctx context.Context) error {
			return serveWeb(ctx, p.log, p.web, metrics.Handler(p.registry, p.ready))
		})
	}
	p.log.Info("listening", "for", "publish", "addr", p.door.Addr().String())
	p.watch(ctx, &parts, reload)
	start("watchdog", func(ctx context.Context) error {
		return feedWatchdog(ctx, p.log, func(context.Context) error { p.offer.Peers(); return nil }) // hangs when the publisher does
	})
	notify(p.log, sd.SdNotifyReady)
	p.log.Info("ready", "version", versionLine(), "address", p.cfg.Publish.Address, "state_dir", p.cfg.StateDir)

	<-ctx.Done()
	notify(p.log, sd.SdNotifyStopping)
	parts.Wait()
	p.log.Info("stopped")
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// watch reads the sources again when a file changes, when reload says so, and
// now and then if they announce no change.
func (p *publisher) watch(ctx context.Context, parts *sync.WaitGroup, reload <-chan os.Signal) {
	w := &watcher{files: p.watched, reload: func() { p.read(ctx) }, force: make(chan chan struct{}), rest: p.cfg.Publish.Debounce, log: p.log}
	parts.Go(func() { _ = w.run(ctx, p.started) })
	parts.Go(func() { p.glance(ctx, w) })
	parts.Go(func() {
		poll := time.NewTicker(p.cfg.Publish.Poll)
		defer poll.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-reload:
				p.log.Info("asked to read the sources again")
				notify(p.log, sd.SdNotifyReloading+"\n"+sd.SdNotifyMonotonicUsec())
				w.now(ctx)
				notify(p.log, sd.SdNotifyReady)
			case <-poll.C:
				if p.polls() {
					w.now(ctx)
				}
			}
		}
	})
}

// glance asks the databases of SQL tables every second or so whether anything
// has changed, where they can tell that cheaply. A glance, with the reading that
// may follow, that takes long is taken less often.
func (p *publisher) glance(ctx context.Context, w *watcher) {
	const often, share = time.Second, 20 // one part in so many of the time
	rest := time.NewTimer(often)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		}
		start := time.Now()
		if p.memo.Changed(ctx, postfix.Databases{}) {
			w.now(ctx)
		}
		rest.Reset(max(often, share*time.Since(start)))
	}
}

func (p *publisher) watched() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

func (p *publisher) polls() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.polled || p.broken != ""
}

// ready says whether a policy is offered, and up to date.
func (p *publisher) ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != "" {
		return errors.New("the policy's sources can't be read; the log says why")
	}
	return nil
}

// first reads everything. If that fails it offers what was published before
// the restart.
func (p *publisher) first(ctx context.Context) {
	if p.read(ctx); p.ready() == nil || ctx.Err() != nil {
		return
	}
	switch err := p.offer.Restore(); {
	case errors.Is(err, policysync.ErrNothing):
		p.log.Warn("nothing was published before: secondaries get no policy until the sources are well")
	case err != nil:
		p.log.Error("the last published policy can't be read back: secondaries get none until the sources are well", "err", err)
	default:
		p.log.Warn("the policy published before the restart is offered until the sources are well")
	}
}

// read reads everything and publishes it, or keeps what is published.
func (p *publisher) read(ctx context.Context) {
	r, err := readSources(ctx, p.cfg, before{p.learned, &p.memo, p.offer.Unsure(), p.last})
	if ctx.Err() != nil {
		return // what failed was ended by us
	}
	p.noteSources(r.sources)
	if err == nil {
		err = p.saveLearned()
	}
	if err == nil {
		p.offer.SetNotice("") // first: who has the version already waits again after Publish
		err = p.offer.Publish(r.snapshot)
	}
	if err == nil {
		p.last = r.snapshot
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.files = merge(p.files, r.files) // those of the last good reading count too
		p.refused(err)
		return
	}
	p.files, p.polled = merge(r.files, nil), r.polled
	p.metrics.PublishImports.WithLabelValues("ok").Inc()
	if p.broken != "" {
		p.log.Info("the policy's sources are well again")
	}
	p.broken = ""
	p.metrics.PublishRead.SetToCurrentTime()
	p.metrics.PublishFailing.Set(0)
	p.contradicted(r)
	p.tell(r)
}

// contradicted notes the tables whose listing the database contradicts, and logs
// when that begins and ends: the key that showed it is another one each time.
// The caller holds mu.
func (p *publisher) contradicted(r *reading) {
	now := map[string]bool{}
	var texts []string
	if r.report != nil {
		for _, c := range r.report.Contradicted {
			now[c.Table] = true
			texts = append(texts, c.Table+": "+c.What)
			if !p.wrong[c.Table] {
				p.log.Error("a listing is contradicted by its database: recipients that it may lack are answered 450", "table", printable(c.Table), "what", printable(c.What))
			}
		}
	}
	for table := range p.wrong {
		if !now[table] {
			p.log.Info("the listing isn't contradicted any more", "table", printable(table))
		}
	}
	p.wrong = now
	p.offer.SetWrong(texts)
}

// noteSources tells secondaries when each source was read last: one that
// failed, or was not asked because of one that did, keeps its time.
func (p *publisher) noteSources(now []policysync.Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range now {
		for _, old := range p.sources {
			if now[i].Read.IsZero() && old.Name == now[i].Name {
				now[i].Read = old.Read
			}
		}
	}
	p.sources = now
	p.offer.SetSources(now)
}

// refused notes a failed reading. The caller holds mu.
func (p *publisher) refused(err error) {
	p.metrics.PublishImports.WithLabelValues("refused").Inc()
	p.metrics.PublishFailing.Set(1)
	text := printable(strings.ReplaceAll(err.Error(), "\n", "; ")) // it may quote a server or a command
	if text != p.broken {
		p.log.Error("sources of the policy refused, the last good policy stays published", "err", text)
	}
	p.broken = text
	p.offer.SetNotice(text)
}

// tell logs what an import can't carry over, once. The caller holds mu.
func (p *publisher) tell(r *reading) {
	told := strings.Join(r.useless, ", ")
	if r.report != nil {
		told = fmt.Sprint(told, r.report.Count("not-replicated"), r.report.Count("approximated"))
	}
	if told == p.told {
		return
	}
	p.told = told
	if r.report != nil {
		p.log.Info("Postfix imported; `understudy publish --check` lists what can't be replicated", "dir", p.cfg.Policy.Postfix, "postfix", r.report.MailVersion,
			"not_replicated", r.report.Count("not-replicated"), "approximated", r.report.Count("approximated"))
	}
	for _, name := range r.useless {
		p.log.Warn("a source adds nobody: the policy lists no recipients in the domains of its addresses", "source", name)
	}
}
