package dnslist

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// Rule says which sick lists are set aside.
type Rule string

// The rules. As the primary: unless the primary's view is the same, for then it
// decides by these answers, too.
const (
	AsPrimary Rule = "as-primary"
	SetAside  Rule = "set-aside"
	Count     Rule = "count" // none
)

// Times and bounds of probes.
const (
	every     = 10 * time.Minute // when a list is well or untested; ± a tenth
	everySick = time.Minute      // … and when it isn't, so that it soon counts again
	glance    = time.Second      // how soon another policy is noticed
	maxLists  = 64               // that are watched
	atOnce    = 4                // lists
	patience  = 30 * time.Second // with one list
	aged      = 24 * time.Hour   // after which the primary's view says nothing any more
)

// Options configure a Watch.
type Options struct {
	Lists    func() []policy.DNSList // of the policy in force
	Resolver Resolver                // should keep no answers, to see what the servers say
	Primary  func() []policysync.ListView
	Rule     Rule
	File     string // keeps what is known, "" for nowhere
	Log      *slog.Logger
	Metrics  *metrics.Metrics

	now func() time.Time
}

// Watch probes the lists of a policy.
type Watch struct {
	o     Options
	aside atomic.Pointer[map[string]State] // what Resolver sets aside; nil: nothing

	mu     sync.Mutex // guards what follows
	known  map[string]*health
	theirs map[string]policysync.ListView
	saved  string // the file's content
}

// health is what is known of a list.
type health struct {
	List    policy.DNSList `json:"list"`
	State   State          `json:"state"`
	Since   time.Time      `json:"since"`
	Checked time.Time      `json:"checked"`
	Alive   bool           `json:"alive"` // its test entry was listed, once
	Probe   Probe          `json:"-"`
	Aside   bool           `json:"-"`
	due     time.Time      // of the next probe
}

// file is what a restart remembers.
type file struct {
	Known  []*health             `json:"known"`
	Theirs []policysync.ListView `json:"primary"`
}

// New makes a Watch. An unreadable file is an error, and the Watch good: it
// learns anew.
func New(o Options) (*Watch, error) {
	o.Rule = cmp.Or(o.Rule, AsPrimary)
	if o.now == nil {
		o.now = time.Now
	}
	w := &Watch{o: o, known: map[string]*health{}, theirs: map[string]policysync.ListView{}}
	for _, s := range States() {
		o.Metrics.DNSLists.WithLabelValues(string(s))
	}
	if o.File == "" {
		return w, nil
	}
	text, err := os.ReadFile(o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	var f file
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil {
		return w, fmt.Errorf("read what is known of DNS lists: %w", err)
	}
	for _, h := range f.Known {
		if h != nil && slices.Contains(States(), h.State) {
			w.known[h.List.Zone] = h
		}
	}
	for _, v := range f.Theirs {
		w.theirs[v.Zone] = v
	}
	w.settle()
	return w, nil
}

// Run probes until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		w.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round probes the lists that are due.
func (w *Watch) round(ctx context.Context) {
	var g sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, h := range w.due() {
		slots <- struct{}{}
		g.Go(func() {
			defer func() { <-slots }()
			w.probe(ctx, h)
		})
	}
	g.Wait()
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o.Primary != nil {
		for _, v := range w.o.Primary() {
			w.theirs[v.Zone] = v
		}
	}
	w.settle()
	w.save()
}

// due takes the lists from the policy and returns those to probe.
func (w *Watch) due() (list []*health) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lists := w.o.Lists()
	lists = lists[:min(len(lists), maxLists)]
	has := map[string]bool{}
	for _, l := range lists {
		has[l.Zone] = true
		h := w.known[l.Zone]
		if h == nil {
			h = &health{State: Untested}
			w.known[l.Zone] = h
		}
		h.List = l
		if !w.o.now().Before(h.due) {
			list = append(list, h)
		}
	}
	for zone := range w.known {
		if !has[zone] {
			delete(w.known, zone)
		}
	}
	return list
}

// probe asks one list. What looks like a change for the worse is asked again at
// once: one odd answer sets nothing aside.
func (w *Watch) probe(ctx context.Context, h *health) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w.mu.Lock()
	list, before := h.List, h.State
	w.mu.Unlock()
	p := Ask(ctx, w.o.Resolver, list)
	if p.State.sick() && p.State != before {
		if again := Ask(ctx, w.o.Resolver, list); again.State != p.State {
			p.State = before
		}
	}
	if ctx.Err() != nil {
		p.State = Silent
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.o.now()
	h.Probe, h.Checked = p, now
	h.Alive = h.Alive || p.State == OK
	state := p.State
	if state == Untested && (h.Alive || w.theirs[list.Zone].State == string(OK)) {
		state = Dead
	}
	if state != h.State || h.Since.IsZero() {
		h.State, h.Since = state, now
	}
	wait := every
	if state.sick() || state == Silent {
		wait = everySick
	}
	h.due = now.Add(wait*9/10 + rand.N(wait/5))
}

// sick says that a list's answers can't be right.
func (s State) sick() bool { return s == Dead || s == ListsAll || s == Refuses }

// settle decides which lists are set aside, and tells what has changed. The
// caller holds mu.
func (w *Watch) settle() {
	aside := map[string]State{}
	counts := map[State]int{}
	for zone, h := range w.known {
		counts[h.State]++
		was := h.Aside
		if h.Aside = w.doubt(h); h.Aside {
			aside[strings.ToLower(zone)] = h.State
		}
		switch {
		case h.Aside && !was:
			w.o.Log.Error("a DNS list is set aside: its look-ups count as failed until it is well; `understudy dnsbl` tells more",
				"zone", zone, "state", string(h.State), "primary", cmp.Or(w.theirs[zone].State, "not known"))
		case was && !h.Aside:
			w.o.Log.Info("a DNS list counts again", "zone", zone, "state", string(h.State))
		}
	}
	for _, s := range States() {
		w.o.Metrics.DNSLists.WithLabelValues(string(s)).Set(float64(counts[s]))
	}
	w.o.Metrics.DNSListsAside.Set(float64(len(aside)))
	if len(aside) == 0 {
		w.aside.Store(nil)
		return
	}
	w.aside.Store(&aside)
}

// doubt says that a list's answers are not to be believed.
func (w *Watch) doubt(h *health) bool {
	if !h.State.sick() || w.o.Rule == Count {
		return false
	}
	theirs := w.theirs[h.List.Zone]
	same := theirs.State == string(h.State) && w.o.now().Sub(theirs.Checked) < aged
	return w.o.Rule == SetAside || !same
}

// save writes what a restart has to know. The caller holds mu.
func (w *Watch) save() {
	if w.o.File == "" {
		return
	}
	f := file{Known: []*health{}}
	for _, zone := range slices.Sorted(maps.Keys(w.known)) {
		h := *w.known[zone]
		h.Checked = h.Since // so that nothing is written where nothing has changed
		f.Known = append(f.Known, &h)
	}
	for _, zone := range slices.Sorted(maps.Keys(w.theirs)) {
		if w.known[zone] != nil {
			f.Theirs = append(f.Theirs, w.theirs[zone])
		}
	}
	text, err := json.Marshal(f)
	if err != nil || string(text) == w.saved {
		return
	}
	if err := service.ReplaceFile(w.o.File, text); err != nil {
		w.o.Log.Error("what is known of DNS lists isn't written down", "err", err)
	}
	w.saved = string(text)
}

// View is a list as both sides see it.
type View struct {
	policysync.ListView
	Uses    []string             `json:"uses"`
	Weight  int                  `json:"weight,omitempty"`
	Answers []Answer             `json:"answers"`
	Aside   bool                 `json:"set_aside"`
	Primary *policysync.ListView `json:"primary,omitempty"` // nil: not known
}

// Views returns all lists by name.
func (w *Watch) Views() []View {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := []View{}
	for _, zone := range slices.Sorted(maps.Keys(w.known)) {
		h := w.known[zone]
		if h.Since.IsZero() {
			continue // not asked yet
		}
		v := View{ListView: h.view(), Uses: h.List.Uses, Weight: h.List.Weight, Answers: h.Probe.Answers, Aside: h.Aside}
		if p, ok := w.theirs[zone]; ok {
			v.Primary = &p
		}
		all = append(all, v)
	}
	return all
}

// Report is what the other side is told.
func (w *Watch) Report() (all []policysync.ListView) {
	for _, v := range w.Views() {
		all = append(all, v.ListView)
	}
	return all
}

func (h *health) view() policysync.ListView {
	return policysync.ListView{Zone: h.List.Zone, State: string(h.State), Since: h.Since, Checked: h.Checked, Milliseconds: h.Probe.Took.Milliseconds()}
}
