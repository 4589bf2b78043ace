package smtpd

import (
	"io"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// transaction is a mail transaction, from MAIL to the reply that ends it.
type transaction struct {
	env     envelope.Envelope
	size    int64     // SIZE=, 0 when absent
	discard bool      // the policy wants the message accepted and thrown away
	draft   Draft     // from DATA on
	traced  int       // octets of our Received field
	copy    io.Writer // … what the Decider wants of the message, nil when that is nothing
	inquiry Asker     // from the first recipient that the primary was asked about until DATA
}

// allow notes a verdict that lets the message in but changes what becomes of
// it. It holds for the whole message, whichever recipient it was about.
func (tx *transaction) allow(v policy.Verdict) {
	tx.discard = tx.discard || v.Action == policy.Discard
	if v.Action == policy.Hold && !tx.env.Hold {
		tx.env.Hold, tx.env.HoldRule = true, v.Rule.String()
	}
}

// endInquiry lets go of the primary: there is nobody more to ask about.
func (tx *transaction) endInquiry() {
	if tx.inquiry != nil {
		tx.inquiry.Close()
		tx.inquiry = nil
	}
}

// openTransaction has the MAIL that mail read decided.
func (s *session) openTransaction() bool {
	tx := s.tx
	d := s.decide(Command{At: policy.Mail})
	tx.allow(d.Verdict)
	if refused(d.Verdict) {
		s.endTransaction()
		return s.answer(d, envelope.Reply{})
	}
	if err := s.srv.Keep.Ready(tx.size); err != nil {
		s.failed("ready", err)
		s.endTransaction()
		return false
	}
	return s.answer(d, envelope.NewReply(250, "2.1.0", "Ok"))
}

// addRecipient has the RCPT that recipient read decided.
func (s *session) addRecipient() bool {
	d := s.decide(Command{At: policy.Rcpt, To: &s.rcpt})
	s.countUnknown(d.Verdict)
	if d.Lost {
		s.lost = true
	} else if !refused(d.Verdict) {
		if s.hostile() {
			s.policy.Withdraw()
			s.limit("bad_octets")
			s.reply(envelope.NewReply(501, "5.1.3", "Bad recipient address syntax"))
			return false
		}
		if s.filters != nil && !s.begin() {
			s.policy.Withdraw()
			return false
		}
		s.tx.allow(d.Verdict)
		s.rcpt.Rule = d.Rule.String()
		s.tx.env.To = append(s.tx.env.To, s.rcpt)
	}
	return s.answer(d, envelope.NewReply(250, "2.1.5", "Ok"))
}

// hostile says that a path holds what we pass on to nobody. The policy is asked
// about it all the same: where it refuses, its reply is the primary's.
func (s *session) hostile() bool { return s.tx.env.From.Hostile() || s.rcpt.Path.Hostile() }

// countUnknown counts who asks for one unknown recipient after the other.
func (s *session) countUnknown(v policy.Verdict) {
	if refused(v) && unlisted(v) {
		s.unknown++
	}
}

// unlisted says that a recipient is in no table.
func unlisted(v policy.Verdict) bool { return strings.HasSuffix(v.Rule.Kind, "unlisted_recipient") }

// data answers DATA: go-smtp has no hook before its 354.
func (s *session) data(arg string) {
	if s.policy.Screened() { // postscreen has no more patience
		defer s.hangUp("refused", envelope.Reply{})
	}
	switch {
	case arg != "" && s.policy.Screened():
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: DATA"))
		return
	case s.tx == nil:
		s.reply(envelope.NewReply(503, "5.5.1", "Error: need RCPT command"))
		return
	case len(s.tx.env.To) == 0 && !s.lost:
		s.reply(envelope.NewReply(554, "5.5.1", "Error: no valid recipients"))
		return
	case arg != "":
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: DATA"))
		return
	}
	tx := s.tx
	d := s.decide(Command{At: policy.Data})
	if !s.answer(d, envelope.Reply{}) {
		if s.policy.Over() {
			s.abandon()
		}
		return
	}
	tx.allow(d.Verdict)
	tx.endInquiry()
	if !s.begin() {
		return
	}
	if tx.copy = d.Copy; tx.copy != nil { // who gets the copy will answer for the message, as a rule
		tx.draft.Spare()
	}
	s.reply(envelope.NewReply(354, "", "End data with <CR><LF>.<CR><LF>"))
	s.library.hand("DATA", s.takeMessage)
}

// begin opens the draft, unless that was done for the filters: they are told the
// ID from the first recipient on.
func (s *session) begin() bool {
	tx := s.tx
	tx.env.Client = s.known(s.ctx)
	tx.env.Received = time.Now()
	if tx.draft != nil {
		return true
	}
	draft, err := s.srv.Keep.Begin(&tx.env)
	if err != nil {
		s.failed("begin", err)
		return false
	}
	tx.draft = draft
	return true
}

// takeMessage reads the message that follows 354.
func (s *session) takeMessage() bool {
	defer func() {
		if s.tx.draft != nil {
			s.abort() // neither committed nor refused: we panicked
		}
		s.lost = false
		s.endTransaction()
	}()
	s.receive()
	return true
}
