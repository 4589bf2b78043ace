// Package publisher runs on the primary and makes the policy for its secondaries: it
// reads the primary's configuration through an Importer, adds the recipients of the
// configured sources, and hands the result to the sync channel. It does so again
// when a file or a database's row changes, and periodically for sources that don't
// announce changes.
//
// Only a complete reading without a mistake is published; otherwise the last good
// policy stays, and the log, a metric and the secondaries report it.
package publisher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	policysync "github.com/understudy-mx/understudy/sync"
)

// Dir holds a publisher's keys, peers and control socket.
func Dir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "publish") }

// Publisher reads and publishes.
type Publisher struct {
	cfg      *config.Config
	log      *slog.Logger
	metrics  *metrics.Metrics
	offer    *policysync.Publisher
	importer Importer
	watcher  *service.Watcher
	started  time.Time // when the sources were first read

	last atomic.Pointer[Reading] // that was published; nil before the first

	mu      sync.Mutex          // guards all below
	files   []string            // to watch
	lists   []policy.DNSList    // of the policy that was read last
	polled  bool                // some source has to be asked, or is broken
	broken  string              // what is wrong with the sources, "" when they are well
	told    string              // the last summary of an import that was logged
	wrong   map[string]bool     // tables whose listing was contradicted, which was logged
	sources []policysync.Source // as they were read last
}

// New makes a publisher of what cfg names, by way of offer. It reads nothing yet.
func New(cfg *config.Config, offer *policysync.Publisher, log *slog.Logger, m *metrics.Metrics) (*Publisher, error) {
	p := &Publisher{cfg: cfg, log: log, metrics: m, offer: offer}
	p.watcher = service.Watch(p.watched, p.Read, cfg.Publish.Debounce, log)
	var err error
	p.importer, err = importers[cfg.Policy.Kind()](cfg, true)
	return p, err
}

// Run reads the sources again when a file changes, and when something else has
// changed or may have, until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { p.poll(ctx) })
	parts.Go(func() { p.glance(ctx) })
	return p.watcher.Run(ctx, p.started)
}

// Reload reads the sources again, now.
func (p *Publisher) Reload(ctx context.Context) { p.watcher.Now(ctx) }

// poll reads sources that don't announce changes, periodically.
func (p *Publisher) poll(ctx context.Context) {
	poll := time.NewTicker(p.cfg.Publish.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
			if p.polls() {
				p.watcher.Now(ctx)
			}
		}
	}
}

// glance checks every second or so for changes, where that is cheap.
func (p *Publisher) glance(ctx context.Context) {
	rest := time.NewTimer(glanceEvery)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		}
		start := time.Now()
		if p.importer.Changed(ctx) {
			p.watcher.Now(ctx)
		}
		rest.Reset(restAfter(time.Since(start)))
	}
}

const glanceEvery = time.Second

// restAfter is how long to leave a database alone after a check, with any reading
// after it, of duration took: checks may use a twentieth of the time, or up to a
// fifth before a change waits for more than five seconds.
func restAfter(took time.Duration) time.Duration {
	return max(glanceEvery, min(20*took, max(5*time.Second, 4*took)))
}

func (p *Publisher) watched() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

func (p *Publisher) polls() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.polled || p.broken != ""
}

// Current is the policy that was read and published last, nil before the first.
func (p *Publisher) Current() *policy.Snapshot {
	if r := p.last.Load(); r != nil {
		return r.Snapshot
	}
	return nil
}

// Ready says whether a policy is offered, and up to date.
func (p *Publisher) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != "" {
		return errors.New("the policy's sources can't be read; the log says why")
	}
	return nil
}

// First reads everything. If that fails it offers what was published before
// the restart.
func (p *Publisher) First(ctx context.Context) {
	p.started = time.Now()
	if p.Read(ctx); p.Ready() == nil || ctx.Err() != nil {
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

// Read reads everything and publishes it, or keeps what is published.
func (p *Publisher) Read(ctx context.Context) {
	r, err := read(ctx, p.cfg, p.importer, p.offer.Unsure())
	if ctx.Err() != nil {
		return // what failed was ended by us
	}
	p.noteSources(r.sources)
	if err == nil {
		p.offer.SetNotice("") // first: who has the version already waits again after Publish
		if err = p.offer.Publish(r.Snapshot); err == nil {
			p.last.Store(r)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.files = sorted(p.files, r.Files) // those of the last good reading count too
		p.refused(err)
		return
	}
	p.files, p.polled, p.lists = sorted(r.Files), r.Polled, r.Snapshot.DNSLists()
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

// DNSLists are those of the policy that was read last.
func (p *Publisher) DNSLists() []policy.DNSList {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lists
}

// contradicted notes the tables whose listing the database contradicts, and logs
// when that begins and ends: the key that showed it is another one each time.
// The caller holds mu.
func (p *Publisher) contradicted(r *Reading) {
	now := map[string]bool{}
	var texts []string
	if r.Report != nil {
		for _, c := range r.Report.Contradicted {
			now[c.Table] = true
			texts = append(texts, c.Table+": "+c.What)
			if !p.wrong[c.Table] {
				p.log.Error("a listing is contradicted by its database: recipients that it may lack are answered 450", "table", service.Printable(c.Table), "what", service.Printable(c.What))
			}
		}
	}
	for table := range p.wrong {
		if !now[table] {
			p.log.Info("the listing isn't contradicted any more", "table", service.Printable(table))
		}
	}
	p.wrong = now
	p.offer.SetWrong(texts)
}

// noteSources tells secondaries when each source was read last: one that
// failed, or was not asked because of one that did, keeps its time.
func (p *Publisher) noteSources(now []policysync.Source) {
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
func (p *Publisher) refused(err error) {
	p.metrics.PublishImports.WithLabelValues("refused").Inc()
	p.metrics.PublishFailing.Set(1)
	text := service.Printable(strings.ReplaceAll(err.Error(), "\n", "; ")) // it may quote a server or a command
	if text != p.broken {
		p.log.Error("sources of the policy refused, the last good policy stays published", "err", text)
	}
	p.broken = text
	p.offer.SetNotice(text)
}

// tell logs once what an import can't replicate. The caller holds mu.
func (p *Publisher) tell(r *Reading) {
	told := strings.Join(r.Useless, ", ")
	if r.Report != nil {
		told = fmt.Sprint(told, r.Report.Count(fidelity.NotReplicated), r.Report.Count(fidelity.Approximated))
	}
	if told == p.told {
		return
	}
	p.told = told
	if r.Report != nil {
		p.log.Info(r.Report.Server+" imported; `understudy publish --check` lists what can't be replicated", "version", r.Report.MailVersion,
			"not_replicated", r.Report.Count(fidelity.NotReplicated), "approximated", r.Report.Count(fidelity.Approximated))
	}
	for _, name := range r.Useless {
		p.log.Warn("a source adds nobody: the policy lists no recipients in the domains of its addresses", "source", name)
	}
}

func sorted(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
