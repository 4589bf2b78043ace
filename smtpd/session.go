package smtpd

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// session is what go-smtp calls for the commands that front let through. Its
// arguments are made up and ignored; front holds the real ones. Its errors
// only tell go-smtp that the command failed: the reply is queued already.
type session struct{ f *front }

var errRefused = errors.New("refused")

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

// Mail judges the transaction that front opened.
func (s *session) Mail(string, *smtp.MailOptions) (err error) {
	f := s.f
	f.ours = true
	defer s.guard(&err)
	tx := f.tx
	v := f.policy.Mail(f.ctx, tx.env.From, policy.MailParams{Size: tx.size, UTF8: tx.env.UTF8})
	f.judged(policy.Mail, v)
	tx.allow(v)
	if refused(v) {
		f.endTransaction()
		f.refuse(v)
		return errRefused
	}
	if err := f.srv.Spool.Ready(tx.size); err != nil {
		f.endTransaction()
		f.failed("ready", err)
		return errRefused
	}
	f.reply(envelope.NewReply(250, "2.1.0", "Ok"))
	return nil
}

// Rcpt judges the recipient that front read.
func (s *session) Rcpt(string, *smtp.RcptOptions) (err error) {
	f := s.f
	f.ours = true
	defer s.guard(&err)
	v := f.asked(f.policy.Rcpt(f.ctx, f.rcpt.Path))
	f.judged(policy.Rcpt, v)
	if refused(v) {
		f.countUnknown(v)
		f.refuse(v)
		return errRefused
	}
	if f.tx.env.From.Hostile() || f.rcpt.Path.Hostile() {
		f.policy.Withdraw()
		f.limit("bad_octets")
		f.reply(envelope.NewReply(501, "5.1.3", "Bad recipient address syntax"))
		return errRefused
	}
	f.tx.allow(v)
	f.rcpt.Rule = v.Rule.String()
	f.tx.env.To = append(f.tx.env.To, f.rcpt)
	f.reply(envelope.NewReply(250, "2.1.5", "Ok"))
	return nil
}

// countUnknown counts who asks for one unknown recipient after the other.
func (f *front) countUnknown(v policy.Verdict) {
	if strings.HasSuffix(v.Rule.Kind, "unlisted_recipient") {
		f.unknown++
	}
}

// data answers DATA: go-smtp has no hook before its 354.
func (f *front) data(arg string) {
	if f.policy.Screened() { // postscreen has no more patience
		defer f.hangUp("refused", envelope.Reply{})
	}
	switch {
	case arg != "" && f.policy.Screened():
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: DATA"))
		return
	case f.tx == nil:
		f.reply(envelope.NewReply(503, "5.5.1", "Error: need RCPT command"))
		return
	case len(f.tx.env.To) == 0:
		f.reply(envelope.NewReply(554, "5.5.1", "Error: no valid recipients"))
		return
	case arg != "":
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: DATA"))
		return
	}
	v := f.policy.Data(f.ctx)
	f.judged(policy.Data, v)
	if refused(v) {
		f.refuse(v)
		return
	}
	tx := f.tx
	tx.allow(v)
	tx.endInquiry()
	f.identify(tx)
	tx.env.Received = time.Now()
	draft, err := f.srv.Spool.Begin(&tx.env)
	if err != nil {
		f.failed("begin", err)
		return
	}
	tx.draft = draft
	f.reply(envelope.NewReply(354, "", "End data with <CR><LF>.<CR><LF>"))
	f.ours, f.feed = true, "DATA\r\n"
}

// Data takes the message, from the front and not from r: there the library
// sees only the message's end.
func (s *session) Data(io.Reader) (err error) {
	f := s.f
	defer func() {
		if f.tx != nil && f.tx.draft != nil {
			f.tx.draft.Abort() // neither committed nor refused: we panicked
		}
		f.feed = ".\r\n"
		f.endTransaction()
	}()
	defer s.guard(&err)
	f.receive()
	return nil
}

// guard turns a panic into a 421.
func (s *session) guard(err *error) {
	if r := recover(); r != nil {
		s.f.panicked(r)
		*err = errRefused
	}
}

// failed answers a spool's error and logs it.
func (f *front) failed(op string, err error) {
	r := envelope.NewReply(451, "4.3.0", "Error: queue file write error")
	var named *envelope.ReplyError
	if errors.As(err, &named) {
		r = named.Reply
	}
	id := ""
	if f.tx != nil {
		id = f.tx.env.ID
	}
	f.srv.Log.LogAttrs(f.ctx, slog.LevelError, "spool", slog.String("op", op), slog.String("id", id), slog.Any("error", err))
	f.reply(r)
	f.errs-- // ours, not the client's
}
