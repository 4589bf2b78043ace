package smtpd

import (
	"iter"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// mail reads a MAIL command; openTransaction has it decided.
func (s *session) mail(arg string) {
	rest, isFrom := cutFold(arg, "FROM:")
	if r := s.mailTurn(isFrom && rest != "", arg); !r.Zero() {
		s.reply(r)
		return
	}
	if s.mails >= s.srv.MaxTransactions {
		s.dismiss("refused", "transactions", "4.7.0", "Error: too many messages in one session")
		return
	}
	if v := s.pin(); refused(v) {
		s.answer(Decision{Verdict: v}, envelope.Reply{})
		return
	}
	p := s.snap.Protocol()
	if slices.ContainsFunc(s.offered, func(ext string) bool { return !p.Offers(ext) }) {
		// The policy has changed since EHLO, which isn't the client's fault.
		s.dismiss("refused", "", "4.3.2", "Service extensions have changed, connect again")
		return
	}
	if s.policy.Screened() {
		s.tx = &transaction{}
		s.tx.env.From, _, _ = envelope.ParseReversePath(rest) // for the log
		s.mails++
		s.library.hand("MAIL FROM:<>", s.openTransaction)
		return
	}
	if s.tooMuchMail() {
		return
	}
	path, params, err := envelope.ParseReversePath(rest)
	utf8 := s.offers("SMTPUTF8") && wantsUTF8(params)
	if err != nil || s.tooLax(rest) || !path.Null() && !s.policy.Valid(path.Mailbox, path.Dot, utf8) {
		s.reply(envelope.NewReply(501, "5.1.7", "Bad sender address syntax"))
		return
	}
	if s.tooPlain(params) {
		return
	}
	tx := &transaction{env: envelope.Envelope{From: path, UTF8: utf8}, size: s.size}
	r := s.mailParams(tx, params)
	if s.size = tx.size; !r.Zero() {
		s.reply(r)
		return
	}
	if limit := s.maxSize(); limit > 0 && tx.size > limit {
		s.limit("message_size")
		s.reply(envelope.NewReply(552, "5.3.4", "Message size exceeds fixed limit"))
		return
	}
	s.tx = tx
	s.args = slices.Collect(words(rest))
	s.mails++
	s.library.hand("MAIL FROM:<>", s.openTransaction)
}

// mailTurn refuses a MAIL command that is out of turn or lacks its address.
func (s *session) mailTurn(isFrom bool, arg string) envelope.Reply {
	switch {
	case s.client.Helo == "" && s.snap.Spec().HeloRequired: // before all else, as in Postfix
		return envelope.NewReply(503, "5.5.1", "Error: send HELO/EHLO first")
	case s.tx != nil:
		s.tx.env.UTF8 = false
		s.policy.Nested()
		return envelope.NewReply(503, "5.5.1", "Error: nested MAIL command")
	case !(isFrom || s.policy.Screened() && strings.Contains(arg, ":")):
		return envelope.NewReply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
	}
	return envelope.Reply{}
}

var tooLarge = envelope.NewReply(552, "5.3.4", "Error: message file too big")

// tooPlain refuses parameters of who hasn't said EHLO, as Exim does.
func (s *session) tooPlain(params string) bool {
	if s.snap.Spec().ACL == nil {
		return false
	}
	s.size = 0 // Exim forgets it with its MAIL
	if s.esmtp || strings.TrimSpace(params) == "" {
		return false
	}
	s.reply(envelope.NewReply(501, "5.5.4", "Parameters need EHLO"))
	return true
}

// tooLax says that the policy wants paths as RFC 5321 has them, and that this
// one isn't.
func (s *session) tooLax(path string) bool {
	return s.snap.Spec().Protocol.StrictEnvelopes && envelope.Lax(path)
}

// words are the parameters after a path. In brackets or quotes they may hold
// white space.
func words(list string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for list != "" {
			var word string
			if word, list, _ = envelope.CutToken(list); word != "" && !yield(word) {
				return
			}
		}
	}
}

// wantsUTF8 says that MAIL's parameters hold SMTPUTF8, by which addresses are
// read.
func wantsUTF8(list string) bool {
	for param := range words(list) {
		if upper(param) == "SMTPUTF8" {
			return true
		}
	}
	return false
}

// mailParams reads MAIL's parameters, but for SMTPUTF8 as the policy has them.
func (s *session) mailParams(tx *transaction, list string) envelope.Reply {
	for param := range words(list) {
		key, value, assigned := strings.Cut(param, "=")
		valid := true
		if slices.Contains([]string{"RET", "ENVID"}, upper(key)) && assigned && !s.offers("DSN") {
			return noDSN
		}
		switch key = upper(key); {
		case key == "SMTPUTF8" && !assigned && tx.env.UTF8: // RFC 6531
		case !assigned:
			return unsupported(param)
		case key == "SIZE": // RFC 1870 §4
			if value == "" || strings.Trim(value, "0123456789") != "" {
				return envelope.NewReply(501, "5.5.4", "Bad message size syntax")
			}
			var err error
			if tx.size, err = strconv.ParseInt(value, 10, 64); err != nil {
				tx.size = 0
				return envelope.NewReply(552, "5.3.4", "Message size exceeds file system imposed limit")
			}
		case key == "BODY" && !slices.Contains(s.cut, "8BITMIME"): // RFC 6152
			tx.env.EightBit = strings.EqualFold(value, "8BITMIME")
			if !tx.env.EightBit && !strings.EqualFold(value, "7BIT") {
				return unsupported(param)
			}
		case key == "AUTH": // RFC 4954 §5, for who may log in elsewhere
			if s.author {
				return envelope.NewReply(503, "5.5.4", "Error: multiple AUTH= options")
			}
			s.author = value != "<>"
		case key == "RET": // RFC 3461 §4.3
			valid = tx.env.Ret == "" && (strings.EqualFold(value, "FULL") || strings.EqualFold(value, "HDRS"))
			tx.env.Ret = strings.ToUpper(value)
		case key == "ENVID": // RFC 3461 §4.4
			valid = tx.env.EnvID == "" && isXtext(value, true)
			tx.env.EnvID = value
		default:
			return unsupported(param)
		}
		if !valid {
			return envelope.NewReply(501, "5.5.4", "Bad %s parameter syntax", key)
		}
	}
	return envelope.Reply{}
}

var noDSN = envelope.NewReply(501, "5.7.1", "DSN support is disabled")

func unsupported(param string) envelope.Reply {
	return envelope.NewReply(555, "5.5.4", "Unsupported option: %s", param)
}

// recipient reads a RCPT command; addRecipient has it decided.
func (s *session) recipient(arg string) {
	rest, isTo := cutFold(arg, "TO:")
	switch {
	case s.tx == nil:
		s.reply(envelope.NewReply(503, "5.5.1", "Error: need MAIL command"))
		return
	case !(isTo && rest != "" || s.policy.Screened() && strings.Contains(arg, ":")):
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: RCPT TO:<address>"))
		return
	}
	path, params, err := envelope.ParseForwardPath(rest)
	if s.policy.Screened() {
		s.rcpt = envelope.Recipient{Path: path}
		s.library.hand("RCPT TO:<r@x>", s.addRecipient)
		return
	}
	if s.tooManyRecipients() {
		return
	}
	if err != nil || s.tooLax(rest) || !path.Postmaster() && !s.policy.Valid(path.Mailbox, path.Dot, s.tx.env.UTF8) {
		s.reply(envelope.NewReply(501, "5.1.3", "Bad recipient address syntax"))
		return
	}
	if s.tooPlain(params) {
		return
	}
	rcpt := envelope.Recipient{Path: path}
	if r := rcptParams(&rcpt, params, s.offers("DSN")); !r.Zero() {
		s.reply(r)
		return
	}
	if s.pregreeted {
		s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "refused for speaking before the greeting",
			append(s.who(policy.Mail), peer("to", path.String()))...)
		s.reply(envelope.NewReply(550, "5.5.1", "Protocol error"))
		return
	}
	if s.lim.Recipients > 0 && len(s.tx.env.To) >= s.lim.Recipients {
		s.limit("recipients")
		s.reply(envelope.NewReply(452, "4.5.3", "Error: too many recipients"))
		if s.overshoot++; s.overshoot <= s.lim.RcptOvershoot {
			s.errs-- // not the client's fault: it can't know until now
		}
		return
	}
	s.rcpt, s.args = rcpt, slices.Collect(words(rest))
	s.library.hand("RCPT TO:<r@x>", s.addRecipient)
}

// rcptParams reads RCPT's parameters.
func rcptParams(rcpt *envelope.Recipient, list string, dsn bool) envelope.Reply {
	for param := range words(list) {
		key, value, assigned := strings.Cut(param, "=")
		if key = upper(key); !assigned || key != "NOTIFY" && key != "ORCPT" {
			return unsupported(param)
		}
		if !dsn {
			return noDSN
		}
		switch key {
		case "NOTIFY": // RFC 3461 §4.1
			notify := parseNotify(value)
			if rcpt.Notify != "" || notify == "" {
				return envelope.NewReply(501, "5.5.4", "Error: Bad NOTIFY parameter syntax")
			}
			rcpt.Notify = notify
		case "ORCPT": // RFC 3461 §4.2
			if rcpt.ORcpt != "" || !validORcpt(value) {
				return envelope.NewReply(501, "5.5.4", "Error: Bad ORCPT parameter syntax")
			}
			rcpt.ORcpt = value
		}
	}
	return envelope.Reply{}
}

// parseNotify reads NEVER, or a list of other events. As in Postfix an event may
// be there twice, and a comma without one. What it returns has neither; it is
// empty when s makes no sense.
func parseNotify(s string) string {
	var events []string
	for event := range strings.SplitSeq(strings.ToUpper(s), ",") {
		if event != "" && !slices.Contains(events, event) {
			events = append(events, event)
		}
		if !slices.Contains([]string{"", "NEVER", "SUCCESS", "FAILURE", "DELAY"}, event) {
			return ""
		}
	}
	if len(events) > 1 && slices.Contains(events, "NEVER") {
		return ""
	}
	return strings.Join(events, ",")
}

// validORcpt says that s is an address type and an address in xtext, or in one
// of the encodings of RFC 6533 §3 when the type is utf-8. As in Postfix the
// address may be empty, and the type anything.
func validORcpt(s string) bool {
	kind, addr, found := strings.Cut(s, ";")
	if !found || kind == "" {
		return false
	}
	if !strings.EqualFold(kind, "utf-8") {
		return addr == "" || isXtext(addr, false)
	}
	for {
		_, rest, found := strings.Cut(addr, `\x{`)
		if !found {
			return true
		}
		point, after, closed := strings.Cut(rest, "}")
		if n, err := strconv.ParseUint("0"+point, 16, 64); !closed || err != nil || n > unicode.MaxRune {
			return false
		}
		addr = after
	}
}

// isXtext says that s is xtext, RFC 3461 §4, and not empty. As in Postfix, any
// character may stand for itself, unless all must be printable ones.
func isXtext(s string, printable bool) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '+' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			c = byte(n)
			if i += 2; c == 0 {
				return false
			}
		}
		if printable && (c < ' ' || c > '~') {
			return false
		}
	}
	return s != ""
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f' }

// neutered is a HELO name as Postfix keeps it: without what could matter in a
// header.
func neutered(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || strings.ContainsRune(" <>()\\\";@", r) {
			return '?'
		}
		return r
	}, s)
}

// masked has "?" for each octet that isn't ASCII, as Postfix has in a HELO name
// without smtputf8_enable.
func masked(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 0x80 {
			b[i] = '?'
		}
	}
	return string(b)
}

// upper is ASCII's strings.ToUpper: Unicode's takes "ı" for "I" and "ſ" for "S".
func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// cutFold cuts prefix off s, whatever its case.
func cutFold(s, prefix string) (rest string, found bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return strings.Trim(s[len(prefix):], space), true
}
