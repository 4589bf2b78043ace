package policysync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// FollowerOptions configure a Follower. Dir and Domains must be given.
type FollowerOptions struct {
	Dir        string            // of keys, pairing and store; Join made it
	Domains    []string          // the only domains for which the primary may have us accept mail; ".example.org" allows its subdomains
	StaleAfter time.Duration     // out of contact for longer, unknown recipients are answered 450; default 24 h
	MaxOctets  int64             // bound on a snapshot, uncompressed; default 1 GiB
	Report     func() Health     // our state for the primary's operator; nil: only the policy's
	Lists      func() []ListView // how we see the policy's DNS lists; nil: the primary's view isn't asked for, either
	Learnt     Learnt            // what greylisting learns; nil: nothing is told
	Log        *slog.Logger      // default: none
	Metrics    *metrics.Metrics  // must be given
	OnChange   func()            // called when Current has changed; must neither block nor call the Follower; may be nil

	now func() time.Time
	fs  fileSystem
}

// version is one version of the policy, verified and stored.
type version struct {
	head    *Head
	raw     []byte
	content *content
	veiled  bool     // hashed here, of a plain version: no file has raw but the guard
	foreign []string // domains that it accepts mail for and we don't
}

func (f *Follower) newVersion(h *Head, raw []byte, c *content) *version {
	return &version{head: h, raw: raw, content: c, foreign: foreignDomains(c.spec, f.o.Domains)}
}

// outline is v without its tables, which take all the memory. They are on the
// disk.
func (v *version) outline() *version {
	if v == nil {
		return nil
	}
	return &version{head: v.head, content: &content{layout: v.content.layout, secret: v.content.secret}}
}

// held is the part that sessions see.
type held struct {
	fresh, stale *policy.Snapshot
	staleAt      time.Time
}

// remote is the primary, as a follower sees it.
type remote interface {
	head(ctx context.Context, after uint64) ([]byte, error)
	chunk(ctx context.Context, h hash) ([]byte, error)
	post(ctx context.Context, target string, v any, limit int) ([]byte, error)
	close()
}

// Follower keeps a secondary's policy that of its primary. One goroutine, in
// Run, changes the version; the operator's decisions come from others.
type Follower struct {
	o     FollowerOptions
	store *store
	codec *codec
	pair  *pairing

	held   atomic.Pointer[held]
	unsure unsure // what the next reports ask about

	mu       sync.Mutex // guards all below; never held while the network is waited for
	http     remote
	self     Pin        // of our key
	newest   *Head      // the last that was verified and stored; no head may be older
	cur      *version   // the newest whose content is held
	prev     *version   // the one before, without its tables; nil at first
	base     *version   // set while a deletion is staged: the version before it
	rejected bool       // the operator refused the staged deletion
	gone     *deletion  // from base to cur
	fleeting fleeting   // since base
	removals *removals  // what was deleted without asking; it rests while a deletion is staged
	changes  changes    // of cur, and of what a crash may bring back
	sources  []Source   // of the primary, as last reported
	lists    []ListView // likewise
	lastErr  error      // of the last poll, nil when it went well
	polled   time.Time  // the last poll that went well
}

// OpenFollower loads the paired primary and the last good snapshot from Dir.
// It needs no network: Current answers before Run begins.
func OpenFollower(o FollowerOptions) (*Follower, error) {
	if o.fs == nil {
		o.fs = osFS{}
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.StaleAfter <= 0 {
		o.StaleAfter = 24 * time.Hour
	}
	if o.MaxOctets <= 0 {
		o.MaxOctets = 1 << 30
	}
	if len(o.Domains) == 0 {
		return nil, errors.New("open follower: no domain is configured; list the domains that the primary may fill with recipients")
	}
	pair, err := loadPairing(o.fs, o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open follower: %s holds no pairing; run `understudy invite` on the primary and paste its line here: %w", o.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open follower: %w", err)
	}
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	f := &Follower{o: o, codec: c, pair: pair}
	if f.store, err = openStore(o.fs, path.Join(o.Dir, "store"), c); err != nil {
		return nil, err
	}
	cl, err := newClient(o.fs, o.Dir, pair)
	if err != nil {
		return nil, err
	}
	f.http, f.self = cl, cl.self
	f.changes = f.store.loadChanges()
	if f.removals, err = f.store.loadRemovals(pair.Secrets); err != nil {
		f.alarm(err, AlarmStore)
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	for _, a := range Alarms() {
		o.Metrics.SyncAlarms.WithLabelValues(string(a)) // Prometheus sees no increase in what begins with 1
	}
	o.Metrics.Follower(f.stats)
	return f, nil
}

// load takes the newest version that the disk holds undamaged into force.
func (f *Follower) load() error {
	names, err := f.store.heads()
	if err != nil {
		return fmt.Errorf("load policy: %w", err)
	}
	for _, name := range names {
		raw, h, err := f.loadHead(name)
		if err != nil || h.Stream != f.pair.Stream {
			f.alarm(fmt.Errorf("load policy %s: not of the paired primary: %w", name, err), AlarmStore)
			continue
		}
		if f.newest == nil {
			f.newest = h
		}
		if f.cur != nil {
			l, err := f.store.layout(h)
			if err != nil || f.cur.head.hashed() && !h.hashed() {
				continue // it matters to Diff alone
			}
			f.prev = &version{head: h, content: &content{layout: l, secret: h.secret}}
			break
		}
		if f.cur, err = f.loadVersion(h, raw); err != nil {
			f.alarm(fmt.Errorf("load policy %s: %w", name, err), AlarmStore)
		}
	}
	if f.cur == nil {
		return nil
	}
	guarded, err := f.loadGuard()
	if err != nil {
		return err
	}
	if guarded && names[0] == headName(f.cur.head) { // nothing is damaged
		f.store.collect(f.cur, f.prev, f.base) // what a crash left
	}
	return f.swap()
}

// loadHead reads a stored head.
func (f *Follower) loadHead(name string) (raw []byte, h *Head, err error) {
	if raw, err = f.store.head(name); err == nil {
		h, err = openHead(raw, f.pair.keys())
	}
	if err == nil {
		err = h.unlock(f.pair.Secrets)
	}
	return raw, h, err
}

func (f *Follower) loadVersion(h *Head, raw []byte) (*version, error) {
	l, err := f.store.layout(h)
	if err != nil {
		return nil, err
	}
	var old *content // the version loaded before shares most chunks
	if f.cur != nil {
		old = f.cur.content
	}
	c, err := build(h, l, old, f.store.get)
	if err != nil {
		return nil, err
	}
	return f.newVersion(h, raw, c), nil
}

// loadGuard restores the deletion staged before the restart. It returns false
// when the version before that deletion can't be read.
func (f *Follower) loadGuard() (whole bool, err error) {
	g, err := f.store.loadGuard()
	if err != nil || g == nil || g.Baseline == headName(f.cur.head) {
		return err == nil, err
	}
	raw, h := g.Veiled, (*Head)(nil)
	if raw == nil {
		raw, h, err = f.loadHead(g.Baseline)
	} else if h, err = decodeHead(raw); err == nil {
		err = h.unlock(f.pair.Secrets)
	}
	var v *version
	if err == nil {
		v, err = f.loadVersion(h, raw)
	}
	if err != nil {
		f.alarm(fmt.Errorf("load the version before the staged deletion: %w", err), AlarmStore)
		return false, nil
	}
	v.veiled = g.Veiled != nil
	if f.stage(v, g.Rejected != ""); f.base != nil {
		f.fleeting = g.Fleeting
	}
	return true, nil
}

// stage compares cur with base. A deletion that is no longer a mass deletion is
// forgotten, or counted with the small ones.
func (f *Follower) stage(base *version, rejected bool) {
	f.base, f.rejected, f.gone, f.fleeting = nil, false, nil, fleeting{}
	if base == nil {
		f.removals = nil
		return
	}
	d := deleted(base.content, f.cur.content, base.foreign)
	f.removals = f.removals.under(d.listing.secret)
	switch {
	case d.mass(f.removals.lost(d)):
		f.base, f.rejected, f.gone = base, rejected, d
	case d.recipients > 0:
		f.removals = f.removals.with(d, f.o.now())
	}
}

// swap puts cur into force, as the guard has it. The caller holds mu.
func (f *Follower) swap() error {
	spec := f.cur.content.spec
	var err error
	switch {
	case f.rejected:
		spec = milder(f.base.content.spec)
	case f.base != nil:
		if spec, err = f.gone.withdraw(f.fleeting.milder(spec)); err != nil {
			return fmt.Errorf("withdraw the deleted: %w", err)
		}
	}
	h, err := compile(spec)
	if err != nil {
		return err
	}
	h.fresh, h.stale = h.fresh.Confine(f.o.Domains), h.stale.Confine(f.o.Domains)
	h.staleAt = f.newest.Created.Add(f.o.StaleAfter)
	f.held.Store(h)
	if f.o.OnChange != nil {
		f.o.OnChange()
	}
	return nil
}

func compile(spec *policy.Spec) (*held, error) {
	fresh, err := policy.Compile(spec)
	var stale *policy.Snapshot
	if err == nil {
		stale, err = policy.Compile(milder(spec))
	}
	if err != nil {
		return nil, &AlarmError{AlarmPolicy, err}
	}
	return &held{fresh: fresh, stale: stale}, nil
}

// renewed notes that the primary vouched for cur once more.
func (f *Follower) renewed(h *Head) {
	f.newest = h
	if old := f.held.Load(); old != nil {
		f.held.Store(&held{old.fresh, old.stale, h.Created.Add(f.o.StaleAfter)})
	}
}

// Current returns the policy in force, nil when there never was one. It is the
// milder form when the primary has been silent for too long.
func (f *Follower) Current() *policy.Snapshot {
	h := f.held.Load()
	switch {
	case h == nil:
		return nil
	case f.o.now().After(h.staleAt):
		return h.stale
	}
	return h.fresh
}

// alarm logs and counts a failure once, where it is known.
func (f *Follower) alarm(err error, def Alarm) {
	a := alarmOf(err, def)
	f.o.Metrics.SyncAlarms.WithLabelValues(string(a)).Inc()
	f.o.Log.Error("policy sync alarm", "alarm", string(a), "err", clip(err.Error()))
}

// clip bounds a text that may quote a peer, and makes it printable.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return clipText(s[:most], most) + "…"
	}
	return clipText(s, most)
}

// Run follows the primary until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	defer func() { f.remote().close() }()
	const first, most = time.Second, time.Minute
	wait := first
	for {
		err := f.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.mu.Lock()
		before := f.lastErr
		f.lastErr = err
		followed := err == nil || alarmOf(err, AlarmProtocol) == AlarmDomain // its version is in force
		if followed {
			f.polled = f.o.now()
		}
		f.mu.Unlock()
		switch {
		case err == nil:
		case before == nil || alarmOf(before, AlarmProtocol) != alarmOf(err, AlarmProtocol):
			f.alarm(err, AlarmProtocol)
		default:
			f.o.Metrics.SyncAlarms.WithLabelValues(string(alarmOf(err, AlarmProtocol))).Inc()
		}
		if followed {
			wait = first
			continue
		}
		if !sleep(ctx, jitter(wait)) {
			return nil
		}
		wait = min(2*wait, most)
	}
}

func (f *Follower) remote() remote {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.http
}

// Close releases what Run doesn't.
func (f *Follower) Close() { f.codec.close() }
