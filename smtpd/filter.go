package smtpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/policy"
)

// Filter is a mail filter of the operator's that stands for one of the primary's
// milters.
type Filter struct {
	Name string // for logs and metrics
	// For is the endpoint of the primary's milter, as envelope.MilterName has it,
	// or the name of its program.
	For  string
	Dial func(context.Context) (net.Conn, error)

	mu    sync.Mutex // guards the rest
	state FilterStatus
}

// FilterStatus is how a filter is.
type FilterStatus struct {
	Name    string    `json:"name"`
	For     string    `json:"for"`
	Away    bool      `json:"away"`
	Since   time.Time `json:"since,omitzero"` // of being away
	Error   string    `json:"error,omitempty"`
	Asked   uint64    `json:"messages"`
	Refused uint64    `json:"refused"`
	Dropped uint64    `json:"edits_dropped"`
	Unasked uint64    `json:"unavailable"` // times that the default action was its answer
	Idle    bool      `json:"idle"`        // the policy has no milter that it stands for
}

// Status is how the filter is since the start, with the policy in force, if any.
func (f *Filter) Status(p *policy.Snapshot) FilterStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Name, s.For = f.Name, f.For
	if p != nil {
		list, more := p.MilterList()
		s.Idle = !more && !slices.ContainsFunc(list, func(u policy.MilterUse) bool { return f.standsFor(&u) })
	}
	return s
}

// note changes the status.
func (f *Filter) note(change func(*FilterStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}

// standsFor says that the filter stands for a milter.
func (f *Filter) standsFor(u *policy.MilterUse) bool {
	return f.For == u.Name || f.For == u.Program && u.Program != ""
}

// filterFor is the filter that stands for a milter, nil when none does.
func (s *Server) filterFor(u *policy.MilterUse) *Filter {
	for _, f := range s.Filters {
		if f.standsFor(u) {
			return f
		}
	}
	return nil
}

// filtering asks the filters that stand for the primary's milters, as the
// primary's smtpd(8) asks those: after the restrictions, in order, and the first
// that doesn't let pass decides. While the primary decides they hear nothing; when
// the snapshot decides instead, they are told first what was said so far.
type filtering struct {
	Decider
	s       *session
	clients map[string]*filterClient // by the milter's name
	content bool                     // a message is being asked about

	live  bool // the primary decides, or may yet
	helos int
	helo  string
	// Of the mail transaction.
	mail     []string // MAIL's address and parameters, nil before it
	rcpts    []filterRcpt
	data     bool
	discard  bool        // whatever follows isn't asked about
	current  *filterRcpt // that the filters hear of
	refusing bool        // the restrictions refuse it
}

type filterRcpt struct {
	args    []string
	to      envelope.Mailbox
	refused envelope.Reply // by the restrictions, zero when it wasn't
}

func newFiltering(s *session, d Decider) *filtering {
	return &filtering{Decider: d, s: s, clients: map[string]*filterClient{}}
}

// Decide implements Decider.
func (f *filtering) Decide(ctx context.Context, c *Command) Decision {
	if c.At == policy.EndOfData {
		c.Message.Ask = f.ask
	}
	d := f.Decider.Decide(ctx, c)
	f.live = d.Live
	switch c.At {
	case policy.Helo:
		if refused(d.Verdict) {
			return d
		}
		if !f.discard {
			f.helos++
			f.helo = c.Helo
		}
	case policy.Mail:
		if f.reset(); refused(d.Verdict) {
			return d
		}
		f.mail = f.s.args
	case policy.Rcpt:
		r := filterRcpt{args: f.s.args, to: c.To.Path.Mailbox}
		if refused(d.Verdict) {
			r.refused, f.refusing = d.Reply, !d.Live
			defer func() { f.refusing = false }()
		}
		f.rcpts = append(f.rcpts, r)
	case policy.Data:
		if refused(d.Verdict) {
			return d
		}
		f.data = true
	default:
		return d
	}
	f.discard = f.discard || d.Action == policy.Discard
	if f.live {
		return d
	}
	a, by := f.play(ctx)
	return f.apply(c.At, d, a, by)
}

// apply makes the filters' answer the decision.
func (f *filtering) apply(at policy.Stage, d Decision, a milter.Answer, by string) Decision {
	v := f.verdictOf(at, a, by)
	switch {
	case refused(d.Verdict) || a.Action == milter.Continue:
		return d
	case at == policy.Helo && a.Action != milter.Refuse:
		return d
	case at == policy.Helo && a.Reply.Code != 421: // it holds from MAIL on
		d.Bare = a.Reply.Permanent()
		return d
	case a.Action == milter.Refuse:
		if at == policy.Data {
			f.again()
		}
		v.Warnings = d.Warnings
		d.Overruled = d.Overruled || at == policy.Rcpt
		d.Verdict = v
	case a.Action == milter.Discard:
		f.discard = true
		d.Action, d.Rule = v.Action, v.Rule
	case d.Action != policy.Discard:
		d.Action, d.Rule = v.Action, v.Rule
	}
	return d
}

// again lets the filters hear of another DATA.
func (f *filtering) again() {
	f.data = false
	for _, c := range f.clients {
		c.data = false
	}
}

// verdictOf is a filter's answer as a verdict.
func (f *filtering) verdictOf(at policy.Stage, a milter.Answer, by string) policy.Verdict {
	v := policy.Verdict{Rule: policy.Rule{Stage: at, Kind: "milter", Table: by}}
	switch a.Action {
	case milter.Refuse:
		v.Reply, v.Action = a.Reply, policy.Defer
		if a.Reply.Permanent() {
			v.Action = policy.Reject
		}
		v.Close = a.Reply.Code == 421 || a.Reply.Code == 521
	case milter.Discard:
		v.Action = policy.Discard
	case milter.Hold:
		v.Action, v.Rule.Key = policy.Hold, a.Reason
	}
	return v
}

// greeting is what the client is greeted with: ok, unless a filter refuses it.
func (f *filtering) greeting(ok envelope.Reply) envelope.Reply {
	if f == nil || f.live {
		return ok
	}
	a, by := f.play(f.s.ctx)
	if a.Action != milter.Refuse {
		return ok
	}
	f.s.judged(policy.Connect, f.verdictOf(policy.Connect, a, by))
	switch {
	case a.Reply.Permanent():
		return envelope.NewReply(554, "", "%s ESMTP not accepting connections", f.s.srv.Hostname)
	case a.Reply.Code == 421:
		return envelope.NewReply(421, "", "%s Service unavailable - try again later", f.s.srv.Hostname)
	}
	return ok
}

// standing is a filter's refusal of the whole session; zero when there is none.
// It holds for commands that the filters don't hear of.
func (f *filtering) standing() envelope.Reply {
	if f == nil || f.live {
		return envelope.Reply{}
	}
	for _, c := range f.list(f.s.ctx) {
		if a := c.Standing(); a.Action != milter.Continue {
			return a.Reply
		}
	}
	return envelope.Reply{}
}

// unknown is what the filters say to a command that nobody knows.
func (f *filtering) unknown(verb string) envelope.Reply {
	if f == nil || f.live {
		return envelope.Reply{}
	}
	for _, c := range f.list(f.s.ctx) {
		if !f.discard {
			f.tell(f.s.ctx, c)
		}
		if c.out {
			break
		}
		if a := c.Unknown(f.s.ctx, verb); a.Action != milter.Continue {
			return a.Reply
		}
	}
	return envelope.Reply{}
}

// list are the filters for the milters of the policy in force, in their order.
func (f *filtering) list(ctx context.Context) (all []*filterClient) {
	uses := f.s.policy.Milters(ctx)
	for i := range uses {
		if c := f.client(&uses[i]); c != nil {
			all = append(all, c)
		}
	}
	return all
}

// client is the filter that stands for a milter, nil when none does.
func (f *filtering) client(u *policy.MilterUse) *filterClient {
	if c := f.clients[u.Name]; c != nil {
		return c
	}
	filter := f.s.srv.filterFor(u)
	if filter == nil {
		return nil
	}
	settings := f.s.snap.MilterSettings()
	c := &filterClient{filter: filter, Client: &milter.Client{
		Settings: milter.Settings{
			Version: u.Version, NoHeaderReply: u.NoHeaderReply, Default: u.DefaultAction,
			Connecting: u.Connect, Command: u.Command, Content: u.Content,
			HeaderSize: settings.HeaderSize, Macros: macroNames(settings),
		},
		Dial: filter.Dial, Macro: f.macro, Failed: func(err error) { f.failed(filter, err) }, Dropped: func() {
			filter.note(func(s *FilterStatus) { s.Dropped++ })
			f.s.srv.Metrics.FilterAnswers.WithLabelValues(filter.Name, "edit_dropped").Inc()
		},
	}}
	f.clients[u.Name] = c
	return c
}

// failed counts and logs that the default action stands for a filter.
func (f *filtering) failed(filter *Filter, err error) {
	f.s.srv.Metrics.FilterAnswers.WithLabelValues(filter.Name, "away").Inc()
	f.s.srv.Metrics.FilterUp.WithLabelValues(filter.Name).Set(0)
	if f.s.ctx.Err() != nil {
		return // we are shutting down
	}
	filter.note(func(s *FilterStatus) {
		s.Unasked++
		if s.Error = err.Error(); !s.Away {
			s.Away, s.Since = true, time.Now()
			f.s.srv.Log.Error("filter unavailable, the primary's milter_default_action stands for it", "filter", filter.Name, "err", err)
		}
	})
}

// answers notes that a filter answers.
func (f *filtering) answers(filter *Filter, a milter.Answer, message bool) {
	result := map[milter.Action]string{milter.Continue: "passed", milter.Refuse: "refused", milter.Discard: "discarded", milter.Hold: "held"}[a.Action]
	if message || a.Action != milter.Continue {
		f.s.srv.Metrics.FilterAnswers.WithLabelValues(filter.Name, result).Inc()
	}
	f.s.srv.Metrics.FilterUp.WithLabelValues(filter.Name).Set(1)
	filter.note(func(s *FilterStatus) {
		if message {
			s.Asked++
		}
		if a.Action == milter.Refuse {
			s.Refused++
		}
		if s.Away {
			f.s.srv.Log.Info("filter is back", "filter", filter.Name, "away", time.Since(s.Since).Round(time.Second))
			s.Away, s.Since, s.Error = false, time.Time{}, ""
		}
	})
}

// play tells the filters what they haven't heard, in order, up to the first that
// doesn't let pass. It returns the answer to the last of it, and whose it is.
func (f *filtering) play(ctx context.Context) (milter.Answer, string) {
	all := f.list(ctx)
	for i, c := range all {
		if f.discard {
			break
		}
		if f.refusing && !c.WantsRejected() {
			c.rcpts = len(f.rcpts)
			continue
		}
		a := f.tell(ctx, c)
		if !c.Broken() {
			f.answers(c.filter, a, false)
		}
		if a.Action != milter.Continue {
			for _, later := range all[i+1:] {
				later.miss(f)
			}
			return a, c.filter.Name
		}
	}
	return milter.Answer{}, ""
}

// ask is policy.Message's Ask: a filter reads the message as it is stored, and
// judges it.
func (f *filtering) ask(ctx context.Context, i int) policy.Verdict {
	uses := f.s.policy.Milters(ctx)
	c := f.client(&uses[i])
	if c == nil || c.out || f.discard {
		return policy.Verdict{}
	}
	var a milter.Answer // what it refused before, and one before it hid, cleanup(8) doesn't hear of either
	if !c.knows(f) {
		a = f.tell(ctx, c)
	}
	if a.Action == milter.Continue || a.Action == milter.Hold {
		f.content = true
		defer func() { f.content = false }()
		body, err := f.message()
		if err == nil {
			f.s.tx.allow(f.verdictOf(policy.EndOfData, a, c.filter.Name))
			a, err = c.Message(ctx, body)
			_ = body.Close()
		}
		if err != nil {
			f.s.srv.Log.Error("message can't be read for a filter", "filter", c.filter.Name, "id", f.s.tx.env.ID, "err", err)
			return policy.Verdict{Action: policy.Defer, Reply: envelope.NewReply(451, "4.3.0", "Queue file write error"), Rule: policy.Rule{Stage: policy.EndOfData, Kind: "milter", Table: c.filter.Name}}
		}
	}
	if !c.Broken() {
		f.answers(c.filter, a, true)
	}
	return f.verdictOf(policy.EndOfData, a, c.filter.Name)
}

// message reads the stored message without our Received field.
func (f *filtering) message() (io.ReadCloser, error) {
	draft, err := f.s.tx.draft.Open()
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(draft)
	if _, err := in.Discard(f.s.tx.traced); err != nil {
		_ = draft.Close()
		return nil, fmt.Errorf("skip the trace field: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{in, draft}, nil
}

// Reset ends the mail transaction.
func (f *filtering) Reset() {
	f.Decider.Reset()
	f.reset()
}

func (f *filtering) reset() {
	for _, c := range f.clients {
		if c.mailed {
			c.Abort()
		}
		c.mailed, c.rcpts, c.data, c.decided = false, 0, false, milter.Answer{}
	}
	f.mail, f.rcpts, f.data, f.discard = nil, nil, false, false
}

// Close ends the session.
func (f *filtering) Close() {
	f.Decider.Close()
	for _, c := range f.clients {
		c.Client.Close()
	}
}
