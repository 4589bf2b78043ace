package policysync

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/policy/table"
)

// parallel is how many chunks are on their way at once.
const parallel = 16

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter keeps followers from coming back all at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// poll waits for the next head and acts on it. If the primary goes over to
// another version while chunks are fetched, there is another head already.
func (f *Follower) poll(ctx context.Context) error {
	const tries = 5
	for range tries {
		if err := f.pollOnce(ctx); !errors.Is(err, errGone) {
			return err
		}
	}
	return alarm(AlarmContent, "%d heads in a row name chunks that the primary doesn't have", tries)
}

func (f *Follower) pollOnce(ctx context.Context) error {
	f.mu.Lock()
	newest, cur, self, http := f.newest, f.cur, f.self, f.http
	f.mu.Unlock()
	after := uint64(0)
	secrets := f.pair.Secrets[:min(1, len(f.pair.Secrets))] // the older one is only for versions on the disk
	if cur != nil && (cur.head.secret == nil || sameSecret(cur.head.secret, secrets[0])) {
		after = cur.head.Version
	}
	raw, err := http.head(ctx, after)
	if err == nil {
		err = f.take(ctx, newest, cur, self, secrets, raw)
	}
	switch a := alarmOf(err, ""); {
	case a == AlarmUnreachable, a == AlarmPin, a == AlarmRefused, errors.Is(err, errGone):
		return err
	}
	told := f.report(ctx, err)
	if told == nil {
		f.exchangeLists(ctx)
		f.tellPassed(ctx)
	}
	if err == nil {
		err = told
	}
	return err
}

// take verifies a head and acts on it. The error may concern a version that is in
// force.
func (f *Follower) take(ctx context.Context, newest *Head, cur *version, self Pin, secrets []*table.Secret, raw []byte) error {
	h, err := openHead(raw, f.pair.keys())
	switch {
	case errors.Is(err, errSignature):
		return &AlarmError{AlarmSignature, err}
	case err != nil:
		return &AlarmError{AlarmHead, err}
	}
	if err := h.unlock(secrets); err != nil {
		return err
	}
	if err := judge(newest, h, f.pair.Stream, self, f.o.now()); err != nil {
		return err
	}
	if cur != nil && h.identity == cur.head.identity {
		err = f.renew(h, raw)
	} else {
		err = f.install(ctx, cur, h, raw)
	}
	if err == nil {
		err = f.trust(h)
	}
	if err == nil {
		err = f.foreign()
	}
	return err
}

// foreign returns an alarm while the version held accepts mail for domains that
// aren't on our list. It is in force without them: Snapshot.Confine.
func (f *Follower) foreign() error {
	f.mu.Lock()
	h, list := f.cur.head, f.cur.foreign
	f.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	const most = 3
	var names strings.Builder
	for i, d := range list[:min(len(list), most)] {
		if i > 0 {
			names.WriteString(", ")
		}
		fmt.Fprintf(&names, "%.40q", d)
	}
	if n := len(list) - most; n > 0 {
		fmt.Fprintf(&names, " and %d more", n)
	}
	return alarm(AlarmDomain, "version %d.%d accepts mail for %s: not in [sync] domains of the secondary, so it answers 450; list it there or remove it on the primary",
		h.Epoch, h.Version, names.String())
}

// renew stores the new signature of the version held.
func (f *Follower) renew(h *Head, raw []byte) error {
	if err := f.store.saveHead(h, raw); err != nil {
		return &AlarmError{AlarmStore, err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur = &version{head: h, raw: raw, content: f.cur.content, foreign: f.cur.foreign}
	f.renewed(h)
	return nil
}

// install fetches, verifies and stores a version, and takes it into force.
func (f *Follower) install(ctx context.Context, cur *version, h *Head, raw []byte) error {
	start := time.Now()
	l, err := f.fetch(ctx, h)
	if err != nil {
		return err
	}
	var old *content
	if cur != nil {
		old = cur.content
	}
	c, err := build(h, l, old, f.store.get)
	if err != nil {
		return err
	}
	if _, err := compile(c.spec); err != nil {
		return err
	}
	if err := f.commit(f.newVersion(h, raw, c)); err != nil {
		return err
	}
	f.mu.Lock()
	keep := f.keep()
	f.mu.Unlock()
	f.store.collect(keep.cur, keep.prev, keep.base)
	f.o.Metrics.SyncApplied.Inc()
	f.o.Log.Info("policy applied", "epoch", h.Epoch, "version", h.Version, "recipients", h.Recipients,
		"domains", h.Domains, "staged", f.Status().Staged, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// commit makes v durable and then current. A crash before saveHead returns
// leaves the version before, with a guard that has nothing to guard.
func (f *Follower) commit(v *version) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := *f.keep()
	base := f.base
	if base == nil {
		base, f.removals = f.cur, f.removals.since(f.o.now())
	}
	f.changes = f.changes.after(f.cur, v, f.o.now())
	before := f.cur
	f.prev, f.cur = f.cur.outline(), v
	if v.content.secret != nil && f.prev != nil && f.prev.content.secret == nil {
		f.prev = nil // it would keep plain recipients on the disk
	}
	f.stage(base, f.rejected)
	if old.base != nil {
		f.between(before, old.fleeting)
	}
	err := f.veil(v.content.secret)
	if err == nil {
		err = f.save(v, &old)
	}
	if err != nil {
		f.restore(&old)
		return err
	}
	f.newest = v.head
	if err := f.swap(); err != nil {
		f.restore(&old)
		return err
	}
	if f.gone != nil && old.base == nil {
		f.alarm(alarm(AlarmDeletion, "version %d.%d removes %d of %d recipients and %d domains: they answer 450 until `understudy policy approve %d`, or `reject`",
			v.head.Epoch, v.head.Version, f.gone.recipients, f.gone.of, len(f.gone.domains), v.head.Version), AlarmDeletion)
	}
	return nil
}

func (f *Follower) save(v *version, old *kept) error {
	var err error
	if f.base != nil && (f.base != old.base || f.fleeting != old.fleeting) {
		err = f.store.saveGuard(f.guard())
	}
	if err == nil && f.removals != old.removals {
		err = f.store.saveRemovals(f.removals)
	}
	if err == nil {
		err = f.store.saveChanges(f.changes)
	}
	if err == nil {
		err = f.store.saveHead(v.head, v.raw)
	}
	if err == nil && f.base == nil { // there may be one of a version that was not saved
		err = f.store.saveGuard(nil)
	}
	if err != nil {
		return &AlarmError{AlarmStore, err}
	}
	return nil
}

// guard returns what a restart must know of the staged deletion.
func (f *Follower) guard() *guardFile {
	g := &guardFile{Baseline: headName(f.base.head), Fleeting: f.fleeting}
	if f.base.veiled {
		g.Veiled = f.base.raw
	}
	if f.rejected {
		g.Rejected = hex.EncodeToString(f.cur.head.identity[:])
	}
	return g
}

// veil replaces the plain version with which a staged deletion is compared by its
// hashed form: once the primary hashes, no address may stay on this disk. The
// primary hasn't signed that form, so the guard keeps its head. A crash before that
// leaves the plain version.
func (f *Follower) veil(s *table.Secret) error {
	if s == nil || f.base == nil || f.base.content.secret != nil {
		return nil
	}
	spec, h := f.base.content.spec, *f.base.head
	pieces, err := settings(spec)
	if err != nil {
		return err
	}
	src, err := hashSource(&source{content: content{spec: spec}, pieces: pieces}, s, nil, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(f.store.keep(src), f.store.sync()); err != nil {
		return &AlarmError{AlarmStore, err}
	}
	h.SecretID, h.secret, h.Prev = secretID(s), s, hash{} // Prev is a plain version's identity
	src.fill(&h)
	f.base = &version{head: &h, raw: h.encode(), content: &src.content, veiled: true, foreign: f.base.foreign}
	return nil
}

// kept holds what a commit changes.
type kept struct {
	newest          *Head
	cur, prev, base *version
	rejected        bool
	gone            *deletion
	fleeting        fleeting
	removals        *removals
	changes         changes
}

func (f *Follower) keep() *kept {
	return &kept{f.newest, f.cur, f.prev, f.base, f.rejected, f.gone, f.fleeting, f.removals, f.changes}
}

func (f *Follower) restore(k *kept) {
	f.newest, f.cur, f.prev, f.base, f.rejected, f.gone = k.newest, k.cur, k.prev, k.base, k.rejected, k.gone
	f.fleeting, f.removals, f.changes = k.fleeting, k.removals, k.changes
}

// fetch gets the chunks that the store lacks, the index first. Each is stored
// as it comes, so that a transfer that was cut goes on where it ended.
func (f *Follower) fetch(ctx context.Context, h *Head) (layout, error) {
	if h.Octets > uint64(f.o.MaxOctets) || h.Chunks > maxChunks {
		return nil, alarm(AlarmSize, "version %d.%d takes %d octets in %d chunks; at most %d are taken", h.Epoch, h.Version, h.Octets, h.Chunks, f.o.MaxOctets)
	}
	if err := f.fetchAll(ctx, h.index); err != nil {
		return nil, err
	}
	l, err := f.store.layout(h)
	if err != nil {
		return nil, err
	}
	if records, octets, chunks := l.totals(); records != h.Records || octets != h.Octets || chunks != h.Chunks {
		return nil, alarm(AlarmContent, "the index has %d records in %d chunks of %d octets, the head promised %d in %d of %d",
			records, chunks, octets, h.Records, h.Chunks, h.Octets)
	}
	for i := range l {
		if err := f.fetchAll(ctx, l[i].chunks); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (f *Follower) fetchAll(ctx context.Context, refs []ref) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	asked := map[hash]bool{}
	for _, r := range refs {
		if asked[r.hash] || f.store.has(r.hash) {
			continue
		}
		asked[r.hash] = true
		g.Go(func() error { return f.fetchChunk(ctx, r) })
	}
	return g.Wait()
}

func (f *Follower) fetchChunk(ctx context.Context, r ref) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	frame, err := f.remote().chunk(ctx, r.hash)
	if err != nil {
		return err
	}
	b, err := f.codec.unpack(frame, int(r.size))
	if err == nil {
		err = r.verify(b)
	}
	if err != nil {
		return &AlarmError{AlarmContent, err}
	}
	if err := f.store.put(r.hash, frame); err != nil {
		return &AlarmError{AlarmStore, err}
	}
	f.o.Metrics.SyncChunks.Inc()
	f.o.Metrics.SyncBytes.Add(float64(len(frame)))
	return nil
}

// trust takes over the keys that the head announces: they were signed with a
// key that is trusted already.
func (f *Follower) trust(h *Head) error {
	if f.pair.same(h) {
		return nil
	}
	if err := f.pair.renew(f.o.fs, f.o.Dir, h); err != nil {
		return &AlarmError{AlarmStore, fmt.Errorf("store the primary's new keys: %w", err)}
	}
	f.o.Log.Info("the primary's keys changed", "server_keys", len(h.ServerPins), "policy_keys", len(h.PolicyKeys))
	return nil
}
