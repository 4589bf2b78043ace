package smtpd

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// Decider decides the commands of one client: whether it may go on, and if not,
// with what reply. The session has read the command, found it well-formed and in
// order, and asks before it answers. One that is not asked at a command (bad
// syntax, our own limits, RSET, VRFY) has no say in it.
//
// The session's own Decider judges by the policy's snapshot. Server.Decide may
// put another one around it, such as Live.PlayThrough.
type Decider interface {
	// Decide is called from Connect to EndOfData, in order; the next call may
	// be an earlier stage. It must end when ctx does, and it bounds its wait
	// by itself: the client waits as long. One that wraps another calls that
	// one's Decide once in each of its own, so that the snapshot's memory of
	// the session stays whole.
	Decide(ctx context.Context, c *Command) Decision
	// Reset ends the mail transaction, however that came. It may be called
	// when there is none.
	Reset()
	// Close ends the session. XCLIENT starts another, with a Decider of its own.
	Close()
}

// Command is what is to be decided. It and what it points to are the session's:
// a Decider reads them, and keeps nothing but Env beyond its call.
type Command struct {
	At       policy.Stage
	Helo     string              // at Helo: the name that the client gives now
	Keywords []string            // at Helo: what EHLO would offer; nil for HELO
	Env      *envelope.Envelope  // from Mail on; its Client is filled in at Data
	Size     int64               // from Mail on: SIZE=, 0 when absent
	To       *envelope.Recipient // at Rcpt
	Message  policy.Message      // at EndOfData
	Peer     netip.Addr          // the other end of the connection, whomever it speaks for
	Screened bool                // the policy's postscreen refuses the client: it comes no further
	// Client returns the client with all that is known of it. That may ask the
	// DNS for its name.
	Client func(context.Context) envelope.Client
}

// Decision is a verdict and, for a Decider that asks elsewhere, what follows.
type Decision struct {
	policy.Verdict // a Reply beside Permit, Hold or Discard goes out in place of our 250 to MAIL, RCPT or the message
	// Keywords are what EHLO offers, at Helo: some of the Command's, SIZE
	// perhaps with a lower limit. nil means all.
	Keywords []string
	// Copy, at Data, gets the message as it arrives and as the Draft gets it. Its
	// errors don't matter to the client. It may slow the client down, but must
	// not block for long. nil: the message is kept and nothing more.
	Copy io.Writer
	// Elsewhere, at EndOfData, says that somebody else has answered for the
	// message: it is not kept here.
	Elsewhere bool
	// Overruled, at Rcpt, says that the snapshot would have let the recipient in.
	Overruled bool
	// Ours says that a refusal is no error of the client's.
	Ours bool
	// Live says that the primary decided, or at Connect and Helo, that it may
	// decide what follows.
	Live bool
	// Bare, at Helo, says that EHLO offers next to nothing: the client gets
	// nowhere.
	Bare bool
}

// judge is the session's own Decider, which judges by the snapshot.
type judge struct{ s *session }

func (d judge) Decide(ctx context.Context, c *Command) Decision {
	p := d.s.policy
	var v policy.Verdict
	switch c.At {
	case policy.Connect:
		v = p.Connect(ctx)
	case policy.Helo:
		v = p.Helo(ctx, c.Helo)
	case policy.Mail:
		v = p.Mail(ctx, c.Env.From, policy.MailParams{Size: c.Size, UTF8: c.Env.UTF8})
	case policy.Rcpt:
		v = p.Rcpt(ctx, c.To.Path)
	case policy.Data:
		v = p.Data(ctx)
	case policy.EndOfData:
		v = p.Message(ctx, c.Message)
	}
	return Decision{Verdict: v}
}

func (d judge) Reset() { d.s.policy.Reset() }
func (d judge) Close() {}

// decide has the command in hand decided, then counts and logs that.
func (s *session) decide(c Command) Decision {
	s.command = c
	s.command.Client = s.known
	s.command.Peer, s.command.Screened = addrOf(s.conn.raw.RemoteAddr()).Addr(), s.policy.Screened()
	if s.tx != nil {
		s.command.Env, s.command.Size = &s.tx.env, s.tx.size
	}
	by := s.decider
	if c.At == policy.Mail && s.tx.env.From.Hostile() || c.At == policy.Rcpt && s.hostile() {
		by = judge{s} // the reply is ours: it goes to nobody else
	}
	d := by.Decide(s.ctx, &s.command)
	switch {
	case refused(d.Verdict) || d.Reply.Zero():
	case !d.Reply.Positive(): // a bug of the Decider's: 451
		d.Action, d.Reply = policy.Defer, envelope.Reply{}
	case c.At == policy.Connect, c.At == policy.Helo, c.At == policy.Data:
		d.Reply = envelope.Reply{} // 220, EHLO's 250 and 354 are about us
	}
	if d.Overruled {
		s.policy.Withdraw()
	}
	if c.At == policy.Rcpt && d.Rule == primaryRule(c.At) && !refused(d.Verdict) {
		s.policy.LetIn()
	}
	if d.Ask.Kind != "" {
		s.ask(&d)
	}
	s.judged(c.At, d.Verdict)
	return d
}

// refused says that v is answered with its own reply, not with our 250.
func refused(v policy.Verdict) bool { return v.Action == policy.Defer || v.Action == policy.Reject }

// judged counts a verdict, and logs it unless it is a plain permit.
func (s *session) judged(at policy.Stage, v policy.Verdict) {
	kind := v.Rule.Kind
	if kind == "" {
		kind = "default"
	}
	s.srv.Metrics.Verdicts.WithLabelValues(at.String(), v.Action.String(), kind).Inc()
	if v.Unsure != "" && s.srv.Unsure != nil {
		s.srv.Unsure(v.Unsure)
	}
	if v.Action == policy.Reject && v.Rule.Stage == policy.Connect {
		s.conn.setListed(true)
		s.srv.crowd.good.forget(group(s.client.Addr))
	}
	if v.Action == policy.Permit && len(v.Warnings) == 0 {
		return
	}
	attrs := []slog.Attr{
		slog.String("stage", at.String()),
		slog.String("action", v.Action.String()),
		peer("rule", v.Rule.String()),
		peer("reply", v.Reply.String()),
	}
	for _, w := range v.Warnings {
		attrs = append(attrs, peer("would_refuse", w.String()))
	}
	s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "verdict", append(attrs, s.who(at)...)...)
}

// answer sends the reply that a decision chooses, ok if it chooses none, and
// says whether the client may go on.
func (s *session) answer(d Decision, ok envelope.Reply) (passed bool) {
	passed = !refused(d.Verdict)
	if !passed || !d.Reply.Zero() {
		ok = d.Reply
	}
	if !passed || !ok.Zero() {
		s.reply(ok)
	}
	if d.Ours {
		s.errs--
	}
	if d.Close {
		s.hangUp("refused", envelope.Reply{})
	}
	return passed
}

// reply queues a reply to the command in hand. All replies come through here;
// they leave together, when the client has nothing more to say for now.
func (s *session) reply(r envelope.Reply) {
	if r.Code < 200 || r.Code > 599 {
		r = envelope.NewReply(451, "4.3.5", "Server configuration error")
	}
	if s.snap != nil && s.snap.Spec().SoftBounce {
		r = r.Softened()
	}
	s.srv.Metrics.Commands.WithLabelValues(s.verb, class(r.Code)).Inc()
	s.conn.out = appendReply(s.conn.out, r)
	if r.Code >= 400 {
		s.errs++
	}
	if r.Code == 421 || r.Code == 521 {
		s.over, s.result = true, "refused"
	}
}

func class(code int) string {
	return [...]string{"2xx", "3xx", "4xx", "5xx"}[code/100-2]
}

// hangUp answers and ends the session. A zero reply is not sent.
func (s *session) hangUp(result string, r envelope.Reply) {
	if s.over {
		return
	}
	if !r.Zero() {
		s.reply(r)
	}
	s.result, s.over = result, true
}

// dismiss ends the session with 421. Where the client ran into a limit of that
// name, it is counted; "" is none.
func (s *session) dismiss(result, limit, status, text string) {
	if limit != "" {
		s.limit(limit)
	}
	s.hangUp(result, envelope.NewReply(421, status, "%s %s", s.srv.Hostname, text))
}

// appendReply writes r on the wire: every line with both codes (RFC 2034 §4),
// nothing in it that could end a line early, no line above 512 octets.
func appendReply(b []byte, r envelope.Reply) []byte {
	line, rest, more := strings.Cut(r.Text, "\n")
	for more {
		b = appendLine(b, r.Code, '-', r.Enhanced, line)
		line, rest, more = strings.Cut(rest, "\n")
	}
	return appendLine(b, r.Code, ' ', r.Enhanced, line)
}

func appendLine(b []byte, code int, sep byte, enhanced, line string) []byte {
	b = append(strconv.AppendInt(b, int64(code), 10), sep)
	if enhanced != "" {
		b = append(append(b, enhanced...), ' ')
	}
	line = line[:min(len(line), 510-len("550 5.7.1 "))]
	for len(line) > 0 {
		r, n := utf8.DecodeRuneInString(line)
		switch {
		case unicode.IsControl(r), r == utf8.RuneError && n == 1:
			b = append(b, '?')
		default:
			b = append(b, line[:n]...)
		}
		line = line[n:]
	}
	return append(b, "\r\n"...)
}

// who describes the session to the log, as far as it has come at stage at.
func (s *session) who(at policy.Stage) []slog.Attr {
	attrs := []slog.Attr{slog.String("client", s.client.Addr.String()), peer("helo", s.client.Helo)}
	if s.tx == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("id", s.tx.env.ID), peer("from", s.tx.env.From.String()))
	if at == policy.Rcpt {
		attrs = append(attrs, peer("to", s.rcpt.Path.String()))
	}
	return attrs
}

// peer is a log attribute whose value a peer chose.
func peer(key, value string) slog.Attr {
	return slog.String(key, strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, value[:min(len(value), 256)]))
}
