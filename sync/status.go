package policysync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// States of a follower's policy by age.
const (
	StateNone  = "none"  // never had one: clients are answered 421
	StateFresh = "fresh" // unknown recipients are answered as the primary does
	StateStale = "stale" // out of contact for too long: they are answered 450
)

// States of a staged mass deletion.
const (
	StagedPending  = "pending"  // the deleted answer 450 until the operator decides
	StagedRejected = "rejected" // the version before it stays in force
)

// Status describes a follower to its operator.
type Status struct {
	State       string    `json:"state"`
	Staged      string    `json:"staged,omitempty"`
	Primary     string    `json:"primary"` // host:port
	Name        string    `json:"name"`    // ours, on the primary
	Fingerprint string    `json:"fingerprint"`
	Epoch       uint64    `json:"epoch"`
	Version     uint64    `json:"version"`
	Digest      string    `json:"digest"` // of the content
	Signed      time.Time `json:"signed"` // when the primary vouched for it last
	Recipients  uint64    `json:"recipients"`
	Domains     int       `json:"domains"`
	Hashed      bool      `json:"hashed"` // recipients are known by their digests alone
	Polled      time.Time `json:"polled"` // last good answer since the start
	Alarm       Alarm     `json:"alarm,omitempty"`
	Error       string    `json:"error,omitempty"`
	Notice      string    `json:"notice,omitempty"` // from the primary, about its sources

	LastChange *LastChange `json:"last_change,omitempty"` // of the version held; nil: not known
	Sources    []Source    `json:"sources,omitempty"`     // of the primary; none: not known since the start
}

// Status returns the follower's status.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{State: f.state(), Staged: f.staged(), Primary: f.pair.Address, Name: f.pair.Name, Polled: f.polled,
		Fingerprint: Fingerprint(f.pair.pins()[0], f.self, f.pair.keys()[0])}
	if f.lastErr != nil {
		s.Alarm, s.Error = alarmOf(f.lastErr, AlarmProtocol), clip(f.lastErr.Error())
	}
	if f.cur != nil {
		h := f.newest
		s.Epoch, s.Version, s.Digest = f.cur.head.Epoch, f.cur.head.Version, digestOf(f.cur.head)
		s.LastChange, s.Sources = f.changes.of(f.cur.head), f.sources
		s.Signed, s.Notice = h.Created, clipText(h.Notice, maxNotice)
		s.Recipients, s.Domains = f.cur.content.recipients, len(acceptedDomains(f.cur.content.spec))
		s.Hashed = f.cur.content.secret != nil
	}
	return s
}

func (f *Follower) state() string {
	h := f.held.Load()
	switch {
	case h == nil:
		return StateNone
	case f.o.now().After(h.staleAt):
		return StateStale
	}
	return StateFresh
}

func (f *Follower) staged() string {
	switch {
	case f.base == nil:
		return ""
	case f.rejected:
		return StagedRejected
	}
	return StagedPending
}

// Counts returns the recipients by domain, of the version last fetched.
func (f *Follower) Counts() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[string]uint64{}
	if f.cur != nil {
		f.cur.content.counts(counts)
	}
	return counts
}

// maxShown bounds a name or address that the operator is shown, in octets.
const maxShown = 320

// counts adds the content's recipients by domain.
func (c *content) counts(by map[string]uint64) {
	l := newListing(c, c.spec)
	for d, n := range c.domains {
		by[clipText(l.name(d), maxShown)] += *n
	}
}

// Pending is a mass deletion that waits for the operator, or was rejected.
type Pending struct {
	Version    uint64   `json:"version"` // to approve or reject
	Since      uint64   `json:"since"`   // the version before the deletion
	State      string   `json:"state"`
	Recipients uint64   `json:"recipients"` // deleted
	Of         uint64   `json:"of"`         // before
	Domains    []string `json:"domains,omitempty"`
	Some       []string `json:"some,omitempty"` // of the deleted, at most 1000
}

// Pending returns the staged deletion, nil when there is none.
func (f *Follower) Pending() *Pending {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.base == nil {
		return nil
	}
	p := &Pending{Version: f.cur.head.Version, Since: f.base.head.Version, State: f.staged(),
		Recipients: f.gone.recipients, Of: f.gone.of}
	for _, d := range f.gone.domains {
		p.Domains = append(p.Domains, clipText(d, maxShown))
	}
	for _, k := range f.gone.keys[:min(1000, len(f.gone.keys))] {
		p.Some = append(p.Some, f.gone.listing.spell(k.key))
	}
	return p
}

// Approve lets the deletion of the version pending take effect: the deleted
// are answered as unknown from now on.
func (f *Follower) Approve(version uint64) error {
	return f.decide(version, func() error {
		if err := f.store.saveGuard(nil); err != nil {
			return err
		}
		f.o.Log.Info("mass deletion approved", "version", version, "recipients", f.gone.recipients, "domains", len(f.gone.domains))
		f.stage(nil, false)
		if err := f.store.saveRemovals(f.removals); err != nil { // it asks again sooner than it need
			f.alarm(err, AlarmStore)
		}
		return nil
	})
}

// Reject refuses the deletion: the version before it is in force until the
// primary publishes one that doesn't delete as much, or Approve is called.
func (f *Follower) Reject(version uint64) error {
	return f.decide(version, func() error {
		f.rejected = true
		if err := f.store.saveGuard(f.guard()); err != nil {
			f.rejected = false
			return err
		}
		f.o.Log.Info("mass deletion rejected", "version", version, "recipients", f.gone.recipients, "domains", len(f.gone.domains))
		return nil
	})
}

// decide carries out a decision about the deletion that is pending now.
func (f *Follower) decide(version uint64, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.base == nil:
		return errors.New("no deletion is pending")
	case f.cur.head.Version != version:
		return fmt.Errorf("version %d is pending by now, not %d: look at it with `understudy policy pending`", f.cur.head.Version, version)
	}
	if err := do(); err != nil {
		return err
	}
	return f.swap()
}

// Change is the difference between two versions, for the operator.
type Change struct {
	From, To       uint64
	Hashed         bool     // recipients are known by their digests: AddedSome and RemovedSome can only tell the domains
	Added, Removed uint64   // recipients
	AddedSome      []string // at most limit of each
	RemovedSome    []string
	Tables         []string // names of the tables that differ
	Entries        []string // of tables that don't list recipients: "-" or "+", table, key and value; at most limit
	Settings       []string // lines of the settings, with "-" or "+" before them
}

// Diff compares two versions that are held: the one in force, the one before,
// and the one before a staged deletion. 0, 0 means the last two.
func (f *Follower) Diff(from, to uint64, limit int) (*Change, error) {
	f.mu.Lock()
	held := []*version{f.cur, f.prev, f.base}
	f.mu.Unlock()
	find := func(n uint64) *version {
		for _, v := range held {
			if v != nil && v.head.Version == n {
				return v
			}
		}
		return nil
	}
	a, b := held[1], held[0]
	if from != 0 || to != 0 {
		a, b = find(from), find(to)
	}
	if a == nil || b == nil {
		return nil, errors.New("only the version in force and the ones before are held; see `understudy policy status`")
	}
	for _, v := range []**version{&a, &b} {
		if (*v).content.spec != nil {
			continue
		}
		c, err := build((*v).head, (*v).content.layout, held[0].content, f.store.get)
		if err != nil {
			return nil, fmt.Errorf("load version %d: %w", (*v).head.Version, err)
		}
		*v = &version{head: (*v).head, content: c}
	}
	return diff(a, b, limit)
}

func diff(a, b *version, limit int) (*Change, error) {
	c := &Change{From: a.head.Version, To: b.head.Version}
	x, y, ok := alike(a.content, b.content)
	if !ok {
		return nil, errors.New("the two versions were hashed for different pairings; nothing in them can be compared")
	}
	l := newListing(y, x.spec)
	c.Hashed = l.secret != nil
	some := func(list *[]string, n *uint64) func(*table.Table, []byte) {
		return func(_ *table.Table, key []byte) {
			if *n++; len(*list) < limit {
				*list = append(*list, l.spell(string(key)))
			}
		}
	}
	listed := slices.Concat(recipientTables(x.spec), recipientTables(y.spec))
	slices.Sort(listed)
	listed = slices.Compact(listed)
	for _, n := range listed {
		diffTables(x.spec.Tables[n], y.spec.Tables[n], some(&c.RemovedSome, &c.Removed), some(&c.AddedSome, &c.Added))
	}
	x, y = a.content, b.content
	var names []string
	for _, l := range []layout{x.layout[1:], y.layout[1:]} {
		for _, s := range l {
			names = append(names, s.name)
		}
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		s, t := x.layout.section(n), y.layout.section(n)
		if s == nil || t == nil || s.kind != t.kind || !slices.Equal(s.chunks, t.chunks) {
			c.Tables = append(c.Tables, n)
		}
	}
	for _, n := range c.Tables {
		if _, rcpts := slices.BinarySearch(listed, n); !rcpts {
			c.Entries = diffEntries(c.Entries, n, x.spec.Tables[n], y.spec.Tables[n], limit)
		}
	}
	for i := range c.Tables {
		c.Tables[i] = clipText(c.Tables[i], maxShown)
	}
	var err error
	c.Settings, err = diffSettings(x.spec, y.spec)
	for i := range c.Settings {
		c.Settings[i] = clipText(c.Settings[i], settingsPiece)
	}
	return c, err
}

// maxEntries is how long a table may be for its entries to be compared.
const maxEntries = 100_000

// diffEntries appends the entries that only one of two tables (either may be
// nil) has, until there are limit.
func diffEntries(out []string, name string, a, b *table.Table, limit int) []string {
	if len(out) >= limit || a != nil && a.Len() > maxEntries || b != nil && b.Len() > maxEntries {
		return out
	}
	entries := func(t *table.Table) map[string]bool {
		set := map[string]bool{}
		if t == nil {
			return set
		}
		for key, value := range t.Entries(0, t.Len()) {
			k := string(key)
			if t.Secret() != nil {
				k = hiddenName
			}
			set[clipText(name+": "+strings.TrimSpace(k+" "+value), 300)] = true
		}
		return set
	}
	old, now := entries(a), entries(b)
	for e := range now {
		if old[e] {
			delete(now, e)
			delete(old, e)
		}
	}
	for _, side := range []struct {
		sign string
		set  map[string]bool
	}{{"- ", old}, {"+ ", now}} {
		for _, e := range slices.Sorted(maps.Keys(side.set)) {
			if len(out) < limit {
				out = append(out, side.sign+e)
			}
		}
	}
	return out
}

// diffSettings shows the lines that only one of the two has.
func diffSettings(a, b *policy.Spec) ([]string, error) {
	count := map[string]int{}
	var out []string
	for _, side := range []struct {
		spec *policy.Spec
		n    int
	}{{a, -1}, {b, 1}} {
		pieces, err := settings(side.spec)
		if err != nil {
			return nil, err
		}
		for _, p := range pieces {
			count[strings.TrimRight(string(p), ",\n")] += side.n
		}
	}
	for line, n := range count {
		sign := "+"
		if n < 0 {
			sign, n = "-", -n
		}
		for range n {
			out = append(out, sign+line)
		}
	}
	slices.SortFunc(out, func(x, y string) int { return strings.Compare(x[1:]+x[:1], y[1:]+y[:1]) })
	return out, nil
}

func (f *Follower) stats() metrics.FollowerStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := metrics.FollowerStats{State: f.state(), Staged: f.staged(), SourcesRead: oldestRead(f.sources)}
	if f.cur != nil {
		if c := f.changes.of(f.cur.head); c != nil {
			s.Changed = c.At
		}
		s.Failing = f.newest.Notice != ""
		s.Version, s.Signed, s.Recipients = f.cur.head.Version, f.newest.Created, f.cur.content.recipients
	}
	if f.gone != nil {
		s.Withdrawn = f.gone.recipients
	}
	return s
}

// Health is a secondary's report about itself for its primary's operator.
type Health struct {
	Software      string `json:"software"`
	QueueMessages int    `json:"queue_messages"`
	QueueOldest   int64  `json:"queue_oldest_seconds"`
	Problem       string `json:"problem,omitempty"`
}

// Report is what a follower posts after each poll. A publisher that is older
// refuses fields that it doesn't know: what is new comes in the target.
type Report struct {
	Epoch   uint64 `json:"epoch"`
	Version uint64 `json:"version"`
	Digest  string `json:"digest"`
	Signed  int64  `json:"signed"` // Unix time of the head's signature
	State   string `json:"state"`
	Staged  string `json:"staged"`
	Health  Health `json:"health"`
	// Unsure are recipients that the policy knows too little about; the
	// publisher asks the primary's tables.
	Unsure []string `json:"unsure,omitempty"`
	// Alarm is the one in effect, from the target; Health.Problem explains it.
	Alarm Alarm `json:"alarm,omitempty"`
}

// clip bounds what a follower wrote.
func (r *Report) clip() {
	for _, s := range []*string{&r.Digest, &r.State, &r.Staged, &r.Health.Software} {
		*s = clipText(*s, 64)
	}
	r.Health.Problem = clipText(r.Health.Problem, 256)
}

// clipText cuts s to valid, printable text of at most n octets.
func clipText(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) { // neither a control nor what turns the direction of writing
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	for len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// report sends the primary our version, and what is wrong with its offer.
func (f *Follower) report(ctx context.Context, trouble error) error {
	s := f.Status()
	r := Report{Epoch: s.Epoch, Version: s.Version, Digest: s.Digest, Signed: s.Signed.Unix(), State: s.State, Staged: s.Staged}
	if f.o.Report != nil {
		r.Health = f.o.Report()
	}
	target := "/v1/report?sources"
	if trouble != nil {
		target += "&alarm=" + string(alarmOf(trouble, AlarmProtocol))
		r.Health.Problem = strings.TrimSuffix(trouble.Error()+"; "+r.Health.Problem, "; ")
	}
	r.clip()
	r.Unsure = f.unsure.take(maxUnsureReport)
	b, err := f.remote().post(ctx, target, r, maxSourcesJSON)
	if err != nil {
		for _, u := range r.Unsure {
			f.Unsure(u)
		}
		return err
	}
	list, err := parseSources(b)
	f.mu.Lock()
	f.sources = list
	f.mu.Unlock()
	return err
}

// RotateKey makes a new key for this follower, tells the primary, and uses it.
// The primary takes the old key until the new one is used.
func (f *Follower) RotateKey(ctx context.Context) error {
	next := path.Join(f.o.Dir, "client.next.key")
	key, err := loadKey(f.o.fs, next, true)
	if err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	req := struct {
		Pin Pin `json:"pin"`
	}{PinOf(publicOf(key))}
	if _, err := f.remote().post(ctx, "/v1/key", req, 1024); err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	if err := f.o.fs.Rename(next, path.Join(f.o.Dir, clientKeyFile)); err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	if err := f.o.fs.SyncDir(f.o.Dir); err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	c, err := newClient(f.o.fs, f.o.Dir, f.pair)
	if err != nil {
		return fmt.Errorf("rotate key: %w", err)
	}
	f.mu.Lock()
	old := f.http
	f.http, f.self = c, c.self
	f.mu.Unlock()
	old.close()
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a follower that has gone asks again
}
