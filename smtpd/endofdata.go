package smtpd

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// receive reads the message, has it judged and committed, and answers.
func (s *session) receive() {
	tx := s.tx
	b := body{
		w: tx.draft, copy: tx.copy, lineStart: true, inHeader: true,
		maxSize: s.maxSize(), maxHeader: s.srv.MaxHeaderBytes, maxFields: s.srv.MaxHeaderFields, maxLine: s.srv.MaxLine,
		cut: s.lim.LineLength,
	}
	b.normalize, b.codeLF = s.bareNewline()
	b.checks = s.policy.Content()
	trace := received(s.srv.Hostname, &tx.env, s.tls != nil)
	tx.traced = len(trace)
	b.put([]byte(trace))
	if err := s.readBody(&b); err != nil {
		s.abort()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.dismiss("timeout", "data_timeout", "4.4.2", "Error: timeout exceeded")
		}
		s.over = true
		return
	}
	b.ended = time.Now()
	s.slowDown()
	if s.over {
		s.abort()
		return
	}
	s.conclude(&b)
	_ = s.conn.flush() // whatever else the client said already; if it has gone, the next read tells
}

// readBody reads up to the end of data.
func (s *session) readBody(b *body) error {
	start := time.Now()
	for read := 0; ; {
		full := s.conn.in.full()
		if full {
			s.conn.in.grow()
		}
		n, done := b.consume(s.conn.in.pending(), len(s.conn.in.pending()) == len(s.conn.in.buf))
		s.conn.in.r += n
		read += n
		if done {
			return nil
		}
		if !full { // who waits for a client holds a small buffer
			s.conn.in.shrink()
		}
		// A client that drips gains no time by it.
		slowest := start.Add(s.srv.DataTimeout + time.Duration(float64(read)/float64(s.srv.MinRate)*float64(time.Second)))
		s.conn.await(s.srv.DataTimeout, slowest)
		if err := s.conn.fill(false); err != nil {
			return err
		}
	}
}

// abort throws the draft away.
func (s *session) abort() {
	s.tx.draft.Abort()
	s.tx.draft = nil
}

// conclude answers a message that has been read to its end.
func (s *session) conclude(b *body) {
	limit, r := s.fault(b)
	switch {
	case !r.Zero():
		s.limit(limit)
		s.abort()
		s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "message refused", append(s.who(policy.EndOfData), slog.String("reply", r.String()))...)
		s.reply(r)
		if b.dirty() && (b.nul || b.bareCR || b.codeLF == 0) {
			// What follows may be a message smuggled past someone else.
			s.hangUp("error", envelope.Reply{})
		}
	case b.err != nil:
		s.abort()
		s.failed("write", b.err)
	default:
		s.commit(b)
	}
}

// fault returns the reply to a message that may not pass, and the limit that it
// exceeds; the zero Reply if there is none.
func (s *session) fault(b *body) (limit string, r envelope.Reply) {
	switch {
	case b.nul, b.bareCR:
		return "bad_octets", envelope.NewReply(550, "5.6.0", "Error: bare <CR> or NUL in message")
	case b.bareLF && !b.normalize && b.codeLF != 0:
		return "bare_newline", bareLF(b.codeLF)
	case b.bareLF && !b.normalize:
		return "bare_newline", envelope.NewReply(550, "5.6.0", "Error: bare <LF> in message")
	case b.tooBig():
		return "message_size", tooLarge
	case b.headerTooBig:
		return "header_size", envelope.NewReply(552, "5.3.4", "Error: message header too big")
	case b.tooManyFields():
		return "header_fields", envelope.NewReply(552, "5.3.4", "Error: too many header fields")
	case b.lineTooLong:
		return "line_length", envelope.NewReply(554, "5.6.0", "Error: line in message too long")
	case ownTraces(b.header, s.srv.Hostname) >= 2:
		return "loop", envelope.NewReply(554, "5.4.6", "Error: mail loop: this message was here twice before")
	case s.comesBack() && ownTraces(b.header, s.srv.Hostname) >= 1:
		return "loop", envelope.NewReply(554, "5.4.6", "Error: mail loop: this message was sent to you from here")
	}
	return "", envelope.Reply{}
}

// comesBack says that the client is the server to which a recipient's mail goes.
func (s *session) comesBack() bool {
	return s.srv.IsNextHop != nil && slices.ContainsFunc(s.tx.env.To, func(to envelope.Recipient) bool {
		return s.srv.IsNextHop(to.Path.Domain, s.client.Addr)
	})
}

// commit has a well-formed message judged, and accepts it.
func (s *session) commit(b *body) {
	tx := s.tx
	d := s.decide(Command{At: policy.EndOfData, Message: policy.Message{Size: b.size, Long: b.long, Hops: b.hops}})
	if refused(d.Verdict) {
		s.abort()
		s.answer(d, envelope.Reply{})
		return
	}
	tx.allow(d.Verdict)
	switch {
	case tx.discard || len(tx.env.To) == 0:
		s.abort()
		s.srv.Log.LogAttrs(s.ctx, slog.LevelWarn, "discarded", s.who(policy.EndOfData)...)
	case d.Elsewhere:
		s.abort()
		s.srv.crowd.good.add(group(s.client.Addr))
		s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "passed on", append(s.who(policy.EndOfData),
			slog.Int("recipients", len(tx.env.To)), slog.Int64("size", b.size), peer("reply", d.Reply.String()))...)
	default:
		tx.env.Auth = s.policy.Auth(s.ctx, tx.env.From)
		draft := tx.draft
		tx.draft = nil
		if err := draft.Commit(s.ctx); err != nil {
			s.failed("commit", err)
			return
		}
		s.accepted(b)
	}
	s.errs, s.junk = 0, 0
	s.answer(d, envelope.NewReply(250, "2.0.0", "Ok: queued as %s", tx.env.ID))
}

// accepted counts and logs a message that is kept.
func (s *session) accepted(b *body) {
	tx, m := s.tx, s.srv.Metrics
	m.AcceptDuration.Observe(time.Since(b.ended).Seconds())
	m.Accepted.Inc()
	m.AcceptedBytes.Add(float64(b.size))
	m.AcceptedRcpts.Add(float64(len(tx.env.To)))
	s.srv.crowd.good.add(group(s.client.Addr))
	if tx.env.MayHaveArrived {
		s.srv.Log.LogAttrs(s.ctx, slog.LevelWarn, "may arrive twice: the primary didn't answer to the message",
			append(s.who(policy.EndOfData), peer("message_id", headerField(b.header, "Message-ID")))...)
	}
	s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "accepted", append(s.who(policy.EndOfData),
		slog.Int("recipients", len(tx.env.To)), slog.Int64("size", b.size), peer("name", tx.env.Client.Name),
		slog.String("tls", tx.env.Client.TLS))...)
}

// failed answers an error of the queue, and logs it: while that can't keep mail, once a minute.
func (s *session) failed(op string, err error) {
	r := envelope.NewReply(451, "4.3.0", "Error: queue file write error")
	var named *envelope.ReplyError
	if errors.As(err, &named) {
		r = named.Reply
	}
	s.srv.often.Error(s.srv.Log, op, "message not kept", "op", op, "err", err)
	s.reply(r)
	s.errs-- // ours, not the client's
}
