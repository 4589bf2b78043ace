// Package meter measures how well a policy's snapshot agrees with the primary. It is
// told both verdicts on the same client, sender and recipient, from live sessions
// or from the primary's log, and answers how often they were the same, what kinds
// of difference there are, and what to do about each:
//
//	rcpt  unlisted_recipient  recipient_new  ours 550 5.1.1, primary 250
//
// A recipient who is new at the primary is unknown here until the next policy
// arrives. So a difference of exact rules waits for a moment: if a policy comes
// that agrees with the primary, the difference was late, and is counted as that.
//
// The last 1,000 differences are kept in a file, and of each kind the count and the
// last one, so that a flood of one kind hides no other. What peers said is cut at
// 256 octets. Where recipients are hashed, no address is written or shown. A damaged file is put
// aside; it stops nothing.
package meter

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

const (
	maxDifferences = 1000             // that are kept
	maxKinds       = 500              // likewise; those beyond are counted by stage only
	maxText        = 256              // octets of what a peer said
	graceFor       = 30 * time.Second // in which another policy may make a difference a late one
	lookEvery      = time.Second
	saveEvery      = 10 * time.Second
	rejudgeFor     = 5 * time.Second
)

// Decision is one decision of both sides. The primary's reply is its word on the
// whole stage; From and To are as far as the session had come.
type Decision struct {
	At       policy.Stage
	Client   envelope.Client
	From     envelope.ReversePath
	Params   policy.MailParams
	To       envelope.ForwardPath
	Snapshot *policy.Snapshot // by which Ours was made
	Ours     policy.Verdict
	Primary  envelope.Reply
}

// Agree says that a verdict and a reply are of one class: accept, defer or refuse.
func Agree(v policy.Verdict, primary envelope.Reply) bool {
	switch {
	case primary.Permanent():
		return v.Action == policy.Reject
	case primary.Temporary():
		return v.Action == policy.Defer
	}
	return v.Action != policy.Reject && v.Action != policy.Defer
}

// Options are Open's.
type Options struct {
	File        string                 // of what is kept
	Agreement   *prometheus.CounterVec // counts decisions, by stage, rule kind and "same" or "other"
	Differences *prometheus.CounterVec // counts differences by class, once the class is certain
	Log         *slog.Logger
	Hashed      bool // nothing is written or shown of whom a difference is about; else the snapshot tells
}

// Meter counts. Its methods may be called at once.
type Meter struct {
	o Options

	mu     sync.Mutex // guards what follows
	since  time.Time
	stages [policy.EndOfData + 1]count
	kinds  map[kindKey]*Kind
	ring   []*entry // the oldest first
	fresh  []*entry // of these, exact ones within graceFor
	of     facts
	dirty  bool
}

type count struct{ Same, Different uint64 }

type kindKey struct{ stage, rule, cause string }

// entry is a difference and, in memory only, what it takes to judge anew.
type entry struct {
	Difference
	d Decision
}

// facts are what matters of a snapshot beside its verdicts.
type facts struct {
	snap   *policy.Snapshot
	hashed bool
	lacks  []string
}

func factsOf(s *policy.Snapshot) facts {
	f := facts{snap: s}
	if s == nil {
		return f
	}
	f.lacks = s.Spec().NotReplicated
	for _, t := range s.Spec().Tables {
		f.hashed = f.hashed || strings.HasPrefix(t.Type(), "hashed_")
	}
	return f
}

// Note takes one decision of both sides.
func (m *Meter) Note(now time.Time, d Decision) {
	same, result := Agree(d.Ours, d.Primary), "same"
	if !same {
		result = "other"
	}
	rule := cmp.Or(d.Ours.Rule.Kind, "default")
	m.o.Agreement.WithLabelValues(d.At.String(), rule, result).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty = true
	if same {
		m.stages[d.At].Same++
		return
	}
	m.stages[d.At].Different++
	m.learn(d.Snapshot)
	e := &entry{d: d, Difference: Difference{
		At: now.UTC(), Stage: d.At.String(), Kind: rule, Rule: cut(d.Ours.Rule.String()), Ours: said(d.Ours), Primary: cut(d.Primary.String()),
		Client: client(d.Client), Helo: cut(d.Client.Helo),
	}}
	e.Class, e.Cause, e.Item = explain(&d, m.of.lacks)
	if d.At >= policy.Mail {
		e.Sender = cut("<" + d.From.String() + ">")
	}
	if d.At == policy.Rcpt {
		e.Recipient = cut("<" + d.To.String() + ">")
	}
	if m.of.hashed || m.o.Hashed {
		e.scrub()
	}
	m.keep(e)
}

// Stale notes a table at the primary whose source was edited and whose index wasn't
// made anew: no verdict shows that yet.
func (m *Meter) Stale(now time.Time, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty = true
	m.keep(&entry{d: Decision{At: policy.EndOfData}, Difference: Difference{
		At: now.UTC(), Stage: "table", Class: Exact, Cause: "stale_table", Kind: "stale_table", Rule: cut(text), Ours: "-", Primary: "-"}})
}

// keep adds a difference. The caller holds mu.
func (m *Meter) keep(e *entry) {
	if len(m.ring) == maxDifferences {
		m.ring = slices.Delete(m.ring, 0, 1)
	}
	m.ring = append(m.ring, e)
	key := kindKey{e.Stage, e.Kind, e.Cause}
	k := m.kinds[key]
	if k == nil && len(m.kinds) < maxKinds {
		k = &Kind{Stage: e.Stage, Rule: e.Kind, Cause: e.Cause, Class: e.Class, Advice: advice[e.Cause]}
		m.kinds[key] = k
	}
	if k != nil {
		k.Count++
		k.Last = e.Difference
	}
	if e.Class == Exact && e.d.At <= policy.Rcpt && len(m.fresh) < maxDifferences {
		m.fresh = append(m.fresh, e)
		return
	}
	m.certain(e)
}

// certain counts a difference whose class won't change.
func (m *Meter) certain(e *entry) {
	m.o.Differences.WithLabelValues(e.Class).Inc()
	e.d = Decision{}
}

// learn takes over what matters of the snapshot in force. The caller holds mu.
func (m *Meter) learn(s *policy.Snapshot) {
	if s == nil || s == m.of.snap {
		return
	}
	was := m.of.hashed
	if m.of = factsOf(s); !m.of.hashed || was {
		return
	}
	m.scrub()
}

// scrub takes out of all that is kept whom it is about.
func (m *Meter) scrub() {
	for _, e := range m.ring {
		e.scrub()
	}
	for _, k := range m.kinds {
		k.Last.scrub()
	}
	m.dirty = true
}

// Run holds fresh differences against each new policy, and writes down what is
// kept, until ctx ends.
func (m *Meter) Run(ctx context.Context, current func() *policy.Snapshot, r policy.Resolver) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	saved := time.Now()
	for {
		m.reconsider(ctx, time.Now(), current(), r)
		if now := time.Now(); now.Sub(saved) >= saveEvery || ctx.Err() != nil {
			if err := m.Save(); err != nil {
				m.o.Log.Error("differences from the primary aren't written down", "err", err)
			}
			saved = now
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done(): // once more, to save
		case <-tick.C:
		}
	}
}

// reconsider judges the fresh differences by s, if they weren't already, and lets
// go those that are fresh no more.
func (m *Meter) reconsider(ctx context.Context, now time.Time, s *policy.Snapshot, r policy.Resolver) {
	m.mu.Lock()
	m.learn(s)
	all := slices.Clone(m.fresh)
	m.mu.Unlock()
	for _, e := range all {
		late := false
		if s != nil && e.d.Snapshot != s && ctx.Err() == nil {
			one, cancel := context.WithTimeout(ctx, rejudgeFor)
			late = Agree(Judge(one, s, r, e.d), e.d.Primary)
			cancel()
		}
		m.mu.Lock()
		e.d.Snapshot = s
		switch {
		case late:
			m.late(e, now)
		case now.Sub(e.At) >= graceFor:
			m.settle(e)
		}
		m.mu.Unlock()
	}
}

func (m *Meter) late(e *entry, now time.Time) {
	after := now.Sub(e.At).Seconds()
	e.Class, e.SettledAfter = Late, &after
	if k := m.kinds[kindKey{e.Stage, e.Kind, e.Cause}]; k != nil {
		k.Late++
		if k.Last.At.Equal(e.At) {
			k.Last = e.Difference
		}
	}
	m.settle(e)
}

func (m *Meter) settle(e *entry) {
	if i := slices.Index(m.fresh, e); i >= 0 {
		m.fresh = slices.Delete(m.fresh, i, i+1)
	}
	m.dirty = true
	m.certain(e)
}

// Judge has a snapshot judge what d is about, up to d's stage: the first refusal on
// the way, or else the verdict at that stage. It sees no message.
func Judge(ctx context.Context, snap *policy.Snapshot, r policy.Resolver, d Decision) (v policy.Verdict) {
	c := d.Client
	helo := c.Helo
	c.Helo = ""
	s := snap.Session(r, c)
	defer s.Close()
	for at := policy.Connect; at <= min(d.At, policy.Data); at++ {
		switch at {
		case policy.Connect:
			v = s.Connect(ctx)
		case policy.Helo:
			if helo == "" {
				continue
			}
			v = s.Helo(ctx, helo)
		case policy.Mail:
			v = s.Mail(ctx, d.From, d.Params)
		case policy.Rcpt:
			v = s.Rcpt(ctx, d.To)
		case policy.Data:
			v = s.Data(ctx)
		}
		if v.Action == policy.Defer || v.Action == policy.Reject {
			return v
		}
	}
	return v
}

func said(v policy.Verdict) string {
	if v.Reply.Zero() {
		return v.Action.String()
	}
	return cut(v.Reply.String())
}

func client(c envelope.Client) string {
	return cut(fmt.Sprintf("%s[%s]", cmp.Or(c.Name, "unknown"), c.Addr))
}

// cut bounds what a peer said, and leaves no control characters in it.
func cut(s string) string {
	s = s[:min(len(s), maxText)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
