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

// allow notes a verdict that lets the message in but changes what becomes of
// it. It holds for the whole message, whichever recipient it was about.
func (tx *transaction) allow(v policy.Verdict) {
	tx.discard = tx.discard || v.Action == policy.Discard
	if v.Action == policy.Hold && !tx.env.Hold {
		tx.env.Hold, tx.env.HoldRule = true, v.Rule.String()
	}
}

// transaction is a mail transaction, from MAIL to the reply that ends it.
type transaction struct {
	env     envelope.Envelope
	size    int64   // SIZE=, 0 when absent
	discard bool    // the policy wants the message accepted and thrown away
	draft   Draft   // from DATA on
	inquiry Inquiry // from the first recipient that the primary was asked about until DATA
}

// mail reads a MAIL command and hands go-smtp one that opens a transaction;
// session.Mail judges it.
func (f *front) mail(arg string) {
	rest, isFrom := cutFold(arg, "FROM:")
	switch {
	case f.client.Helo == "" && f.snap.Spec().HeloRequired: // before all else, as in Postfix
		f.reply(envelope.NewReply(503, "5.5.1", "Error: send HELO/EHLO first"))
		return
	case f.tx != nil:
		f.tx.env.UTF8 = false
		f.policy.Nested()
		f.reply(envelope.NewReply(503, "5.5.1", "Error: nested MAIL command"))
		return
	case !(isFrom && rest != "" || f.policy.Screened() && strings.Contains(arg, ":")):
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: MAIL FROM:<address>"))
		return
	}
	if f.mails >= f.srv.MaxTransactions {
		f.limit("transactions")
		f.hangUp("refused", envelope.NewReply(421, "4.7.0", "%s Error: too many messages in one session", f.srv.Hostname))
		return
	}
	if v := f.pin(); refused(v) {
		f.refuse(v)
		return
	}
	p := f.snap.Protocol()
	if slices.ContainsFunc(f.offered, func(ext string) bool { return !p.Offers(ext) }) {
		// The policy has changed since EHLO, which isn't the client's fault.
		f.hangUp("refused", envelope.NewReply(421, "4.3.2", "%s Service extensions have changed, connect again", f.srv.Hostname))
		return
	}
	if f.policy.Screened() {
		f.tx = &transaction{}
		f.tx.env.From, _, _ = envelope.ParseReversePath(rest) // for the log
		f.mails++
		f.ours, f.feed = false, "MAIL FROM:<>\r\n"
		return
	}
	if f.tooMuchMail() {
		return
	}
	path, params, err := envelope.ParseReversePath(rest)
	utf8 := p.Offers("SMTPUTF8") && wantsUTF8(params)
	if err != nil || f.tooLax(rest) || !path.Null() && !f.policy.Valid(path.Mailbox, path.Dot, utf8) {
		f.reply(envelope.NewReply(501, "5.1.7", "Bad sender address syntax"))
		return
	}
	tx := &transaction{env: envelope.Envelope{From: path, UTF8: utf8}, size: f.size}
	r := f.mailParams(tx, params)
	if f.size = tx.size; !r.Zero() {
		f.reply(r)
		return
	}
	if f.lim.MessageSize > 0 && tx.size > f.lim.MessageSize {
		f.limit("message_size")
		f.reply(envelope.NewReply(552, "5.3.4", "Message size exceeds fixed limit"))
		return
	}
	f.tx = tx
	f.mails++
	f.ours, f.feed = false, "MAIL FROM:<>\r\n"
}

var tooLarge = envelope.NewReply(552, "5.3.4", "Error: message file too big")

// tooLax says that the policy wants paths as RFC 5321 has them, and that this
// one isn't.
func (f *front) tooLax(path string) bool {
	return f.snap.Spec().Protocol.StrictEnvelopes && envelope.Lax(path)
}

// words are the parameters behind a path. In brackets or quotes they may hold
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
func (f *front) mailParams(tx *transaction, list string) envelope.Reply {
	p := f.snap.Protocol()
	for param := range words(list) {
		key, value, assigned := strings.Cut(param, "=")
		valid := true
		if slices.Contains([]string{"RET", "ENVID"}, upper(key)) && assigned && !p.Offers("DSN") {
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
		case key == "BODY": // RFC 6152
			tx.env.EightBit = strings.EqualFold(value, "8BITMIME")
			if !tx.env.EightBit && !strings.EqualFold(value, "7BIT") {
				return unsupported(param)
			}
		case key == "AUTH": // RFC 4954 §5, for who may log in elsewhere
			if f.author {
				return envelope.NewReply(503, "5.5.4", "Error: multiple AUTH= options")
			}
			f.author = value != "<>"
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

// recipient reads a RCPT command; session.Rcpt judges it.
func (f *front) recipient(arg string) {
	rest, isTo := cutFold(arg, "TO:")
	switch {
	case f.tx == nil:
		f.reply(envelope.NewReply(503, "5.5.1", "Error: need MAIL command"))
		return
	case !(isTo && rest != "" || f.policy.Screened() && strings.Contains(arg, ":")):
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: RCPT TO:<address>"))
		return
	}
	path, params, err := envelope.ParseForwardPath(rest)
	if f.policy.Screened() {
		f.rcpt = envelope.Recipient{Path: path}
		f.ours, f.feed = false, "RCPT TO:<r@x>\r\n"
		return
	}
	if f.tooManyRecipients() {
		return
	}
	if err != nil || f.tooLax(rest) || !path.Postmaster() && !f.policy.Valid(path.Mailbox, path.Dot, f.tx.env.UTF8) {
		f.reply(envelope.NewReply(501, "5.1.3", "Bad recipient address syntax"))
		return
	}
	rcpt := envelope.Recipient{Path: path}
	if r := rcptParams(&rcpt, params, f.snap.Protocol()); !r.Zero() {
		f.reply(r)
		return
	}
	if f.pregreeted {
		f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "refused for speaking before the greeting",
			append(f.who(policy.Mail), peer("to", path.String()))...)
		f.reply(envelope.NewReply(550, "5.5.1", "Protocol error"))
		return
	}
	if f.lim.Recipients > 0 && len(f.tx.env.To) >= f.lim.Recipients {
		f.limit("recipients")
		f.reply(envelope.NewReply(452, "4.5.3", "Error: too many recipients"))
		if f.overshoot++; f.overshoot <= f.lim.RcptOvershoot {
			f.errs-- // not the client's fault: it can't know until now
		}
		return
	}
	f.rcpt = rcpt
	f.ours, f.feed = false, "RCPT TO:<r@x>\r\n"
}

// rcptParams reads RCPT's parameters. They are kept as the client wrote them.
func rcptParams(rcpt *envelope.Recipient, list string, p *policy.Protocol) envelope.Reply {
	for param := range words(list) {
		key, value, assigned := strings.Cut(param, "=")
		if key = upper(key); !assigned || key != "NOTIFY" && key != "ORCPT" {
			return unsupported(param)
		}
		if !p.Offers("DSN") {
			return noDSN
		}
		switch key {
		case "NOTIFY": // RFC 3461 §4.1
			if rcpt.Notify != "" || !validNotify(value) {
				return envelope.NewReply(501, "5.5.4", "Error: Bad NOTIFY parameter syntax")
			}
			rcpt.Notify = strings.ToUpper(value)
		case "ORCPT": // RFC 3461 §4.2
			if rcpt.ORcpt != "" || !validORcpt(value) {
				return envelope.NewReply(501, "5.5.4", "Error: Bad ORCPT parameter syntax")
			}
			rcpt.ORcpt = value
		}
	}
	return envelope.Reply{}
}

// validNotify says that s is NEVER alone, or a list of other events.
func validNotify(s string) bool {
	if strings.EqualFold(s, "NEVER") {
		return true
	}
	for event := range strings.SplitSeq(strings.ToUpper(s), ",") {
		if event != "SUCCESS" && event != "FAILURE" && event != "DELAY" {
			return false
		}
	}
	return len(s) <= len("SUCCESS,FAILURE,DELAY")
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
