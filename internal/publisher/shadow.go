package publisher

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/maillog"
)

const (
	shadowLook     = 250 * time.Millisecond // between two looks at the log
	shadowRetry    = 5 * time.Second        // before a command that prints the log is run again
	shadowRuns     = 2 * time.Second        // one that hasn't ended by then reads the log
	shadowStale    = 10 * time.Second       // between two looks for tables without a new index, and what an edit may take
	shadowJudge    = 10 * time.Second       // for one verdict, with its DNS answers
	shadowWorkers  = 4
	shadowWaiting  = 1000   // verdicts
	shadowMessages = 10_000 // of which not all lines have come
	shadowRcpts    = 1000   // of one message
)

// Shadow reads the primary's own log and judges everybody whom the primary judged by
// the policy that is published. Nothing of the log is kept but what a meter keeps of
// differences. The log is foreign text: lines are bounded, what can't be read in one
// way only is counted and left out, and when verdicts come faster than they can be
// judged, some are left out, too.
type Shadow struct {
	p        *Publisher
	meter    *meter.Meter
	resolver policy.Resolver
	metrics  *metrics.Metrics
	log      *slog.Logger
	jobs     chan meter.Decision

	// The reader's.
	messages map[string]*message
	order    []string // of messages, the oldest first

	mu     sync.Mutex
	status meter.LogStatus
}

// message is one that a client brought, as far as the log has it.
type message struct {
	client     envelope.Client
	from       envelope.ReversePath
	hasFrom    bool
	submitted  bool
	recipients []string // judged
}

// NewShadow reads the log that the configuration of p names.
func NewShadow(p *Publisher, m *meter.Meter, r policy.Resolver, log *slog.Logger, mx *metrics.Metrics) *Shadow {
	return &Shadow{p: p, meter: m, resolver: r, metrics: mx, log: log, jobs: make(chan meter.Decision, shadowWaiting),
		messages: map[string]*message{}}
}

// Status returns what has come of the log.
func (s *Shadow) Status() meter.LogStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run reads until ctx ends.
func (s *Shadow) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	for range shadowWorkers {
		parts.Go(func() { s.judgeAll(ctx) })
	}
	parts.Go(func() { s.lookForStale(ctx) })
	err := s.read(ctx)
	parts.Wait()
	return err
}

// read follows the log. Another configuration may name another one.
func (s *Shadow) read(ctx context.Context) error {
	t := &tail{}
	defer t.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wait := shadowLook
		at, err := s.where(ctx)
		if err != nil {
			s.note(at.name, err)
			timer.Reset(shadowRetry)
			continue
		}
		if at.argv != nil {
			read := func(b []byte) { s.line(maillog.Line(string(b))) }
			if at.name == journal {
				read = func(b []byte) { s.line(maillog.Journal(b)) }
			}
			runs := time.AfterFunc(shadowRuns, func() { s.note(at.name, nil) })
			err := at.follow(ctx, read)
			runs.Stop()
			s.note(at.name, err)
			timer.Reset(shadowRetry)
			continue
		}
		if t.path != at.file {
			t.close()
			t.path = at.file
		}
		more, err := t.look(func(b []byte) { s.line(maillog.Line(string(b))) })
		s.note(at.name, err)
		if more {
			wait = 0
		}
		timer.Reset(wait)
	}
}

func (s *Shadow) note(at string, err error) {
	text := ""
	if err != nil {
		text = service.Printable(err.Error())
	}
	s.mu.Lock()
	before := s.status
	s.status.Log, s.status.Error = at, text
	s.mu.Unlock()
	switch {
	case before.Log == at && before.Error == text:
	case text != "":
		s.log.Warn("the primary's log can't be read", "log", at, "err", text, "next", "let the publisher's user read it, or name another by log under [publish]")
	default:
		s.log.Info("the primary's log is read", "log", at)
	}
}

// line takes one line of the log.
func (s *Shadow) line(program, text string, ok bool) {
	if !ok {
		return
	}
	names := maillog.Names{SMTPD: "postfix", Postscreen: "postfix"}
	if r := s.p.last.Load(); r != nil && r.Report != nil && r.Report.LogNames[0] != "" {
		names.SMTPD, names.Postscreen = r.Report.LogNames[0], cmp.Or(r.Report.LogNames[1], r.Report.LogNames[0])
	}
	e, err := names.Read(program, text)
	if err != nil {
		s.count("unreadable")
		return
	}
	if e.Kind != maillog.None {
		s.take(&e)
	}
}

func (s *Shadow) count(result string) {
	s.metrics.ShadowEvents.WithLabelValues(result).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch result {
	case "judged":
		s.status.Judged++
	case "undecided":
		s.status.Undecided++
	case "dropped":
		s.status.Dropped++
	case "unreadable":
		s.status.Unreadable++
	}
}

// take joins the lines of a message, and has each verdict judged.
func (s *Shadow) take(e *maillog.Event) {
	s.mu.Lock()
	s.status.Last = time.Now().UTC().Truncate(time.Second)
	if e.Kind == maillog.Connected {
		s.status.Sessions++
	}
	s.mu.Unlock()
	m := s.messages[e.Queue]
	switch e.Kind {
	case maillog.Refused:
		if e.At == policy.EndOfData || e.At == policy.Rcpt && !e.HasTo || e.Screened && strings.Contains(e.Reply.Text, "Protocol error") {
			s.count("undecided") // needs the message, or the client's timing
			return
		}
		s.judge(meter.Decision{At: e.At, Client: e.Client, From: e.From, To: e.To, Primary: e.Reply})
	case maillog.Client:
		s.begin(e)
	case maillog.Sender:
		if m != nil {
			m.from, m.hasFrom = e.From, true
		}
	case maillog.Removed:
		delete(s.messages, e.Queue)
	case maillog.StaleTable:
		s.stale(e.Text)
	case maillog.Recipient:
		to := e.To.String()
		if m == nil || !m.hasFrom || m.submitted || len(m.recipients) >= shadowRcpts || slices.Contains(m.recipients, to) {
			return
		}
		m.recipients = append(m.recipients, to)
		s.judge(meter.Decision{At: policy.Rcpt, Client: m.client, From: m.from, To: e.To, Primary: envelope.NewReply(250, "2.1.5", "Ok")})
	}
}

// begin notes a message. Its queue ID may have been another's.
func (s *Shadow) begin(e *maillog.Event) {
	if s.messages[e.Queue] == nil {
		s.order = append(s.order, e.Queue)
	}
	s.messages[e.Queue] = &message{client: e.Client, submitted: e.Submitted}
	for len(s.order) > shadowMessages {
		delete(s.messages, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *Shadow) judge(d meter.Decision) {
	select {
	case s.jobs <- d:
	default:
		s.count("dropped")
	}
}

func (s *Shadow) judgeAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-s.jobs:
			s.judgeOne(ctx, d)
		}
	}
}

// judgeOne has the policy judge what the primary did. Of an accepted recipient the
// log has no HELO name: the client's own name stands for it, and if a rule about it
// objects nobody knows.
func (s *Shadow) judgeOne(ctx context.Context, d meter.Decision) {
	r := s.p.last.Load()
	if r == nil {
		s.count("dropped")
		return
	}
	d.Snapshot = r.Snapshot
	d.Params.UTF8 = !ascii(d.From.String()) || !ascii(d.To.String())
	unnamed := d.Client.Helo == ""
	if unnamed && d.At > policy.Helo {
		d.Client.Helo = cmp.Or(d.Client.Name, "["+d.Client.Addr.String()+"]")
	}
	ctx, cancel := context.WithTimeout(ctx, shadowJudge)
	defer cancel()
	d.Ours = meter.Judge(ctx, d.Snapshot, s.resolver, d)
	if ctx.Err() != nil || !meter.Agree(d.Ours, d.Primary) && (undecided(&d, unnamed) || unnamed && rewritten(&d, r.Report)) {
		s.count("undecided")
		return
	}
	if unnamed {
		d.Client.Helo = ""
	}
	s.meter.Note(time.Now(), d)
	s.count("judged")
}

// undecided says that a difference may come of what the log doesn't tell: the HELO
// name as it was, and TLS.
func undecided(d *meter.Decision, unnamed bool) bool {
	kind := d.Ours.Rule.Kind
	if (unnamed || strings.Contains(d.Client.Helo, "?")) && (d.Ours.Rule.Stage == policy.Helo || strings.Contains(kind, "helo")) {
		return true
	}
	return strings.Contains(kind, "plaintext") || strings.Contains(kind, "tls") || strings.Contains(d.Client.Helo, "?") && strings.Contains(d.Primary.Text, "Helo command rejected")
}

// rewritten says that a difference may come of what the primary made of the envelope of
// a message that it took: senders and recipients are logged after that.
func rewritten(d *meter.Decision, r *fidelity.Report) bool {
	if r == nil {
		return false
	}
	rule := d.Ours.Rule
	return r.RewritesRecipients || r.AddsRecipients && strings.HasSuffix(rule.Kind, "_unauth_destination") ||
		r.RewritesSenders && (rule.Stage == policy.Mail || strings.Contains(rule.Kind, "sender"))
}

func ascii(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 }) }

// lookForStale finds tables that were edited without postmap: Postfix says so only
// when it opens one.
func (s *Shadow) lookForStale(ctx context.Context) {
	tick := time.NewTicker(shadowStale)
	defer tick.Stop()
	told := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, index := range s.p.watched() {
			source := strings.TrimSuffix(strings.TrimSuffix(index, ".db"), ".lmdb")
			if source == index {
				continue
			}
			i, err1 := os.Stat(index)
			f, err2 := os.Stat(source)
			if err1 != nil || err2 != nil || !f.ModTime().After(i.ModTime()) || time.Since(f.ModTime()) < shadowStale || told[index].Equal(f.ModTime()) {
				continue
			}
			told[index] = f.ModTime()
			s.stale(index + " is older than " + source)
		}
	}
}

func (s *Shadow) stale(text string) { s.meter.Stale(time.Now(), text) }
