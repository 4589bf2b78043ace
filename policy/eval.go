package policy

import (
	"context"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// status is a restriction's result.
type status uint8

const (
	dunno   status = iota // no opinion, ask the next
	ok                    // ends this list
	refused               // ends everything; eval.reply and eval.rule say why
)

// maxRecursion bounds restriction lists inside of access tables.
const maxRecursion = 100

// eval is one evaluation at one command: the session and the results of this
// command. Postfix's order is followed exactly; see docs/PARITY.md.
type eval struct {
	*Session
	ctx   context.Context
	stage Stage  // of the list under evaluation
	what  string // the subject of generic restrictions, as replies name it
	class string // and its class

	atRcpt        bool // the command is RCPT
	inTransaction bool
	warnIfReject  int // depth of the list that warn_if_reject stands in, 0 when off
	depth         int

	askFilter func(context.Context, int) Verdict // Message.Ask

	reply    envelope.Reply
	rule     Rule   // what decided
	listed   Rule   // the entry that says that the recipient exists
	unsure   string // Verdict.Unsure
	warnings []Rule
}

// deferral is a postponed refusal: Postfix's defer_if_permit and defer_if_reject.
type deferral struct {
	active bool
	rule   Rule
	reply  envelope.Reply
}

// check is a restriction, compiled.
type check struct {
	*kind
	table *dict
	zone  *zone
	note  string
	spf   *spfService
	grey  *greylist
	list  *[]check // restriction class
}

// list evaluates restrictions in order until one is decisive.
func (e *eval) list(checks []check) status {
	saved := e.depth
	e.depth++
	st := dunno
	if e.depth > maxRecursion {
		return e.serverError(Rule{Stage: e.stage, Kind: kindServerError})
	}
	for i := range checks {
		if e.discard {
			break
		}
		c := &checks[i]
		if c.fn == nil { // warn_if_reject
			if e.warnIfReject == 0 {
				e.warnIfReject = e.depth
			}
			continue
		}
		st = c.fn(e, c)
		if e.find.failed {
			st = e.lookupFailed(c.kind.name)
		}
		if e.warnIfReject >= e.depth {
			e.warnIfReject = 0
		}
		if st != dunno || e.deferPermit.active && e.deferReject.active {
			break
		}
	}
	e.depth = saved
	if e.warnIfReject >= e.depth {
		e.warnIfReject = 0
	}
	return st
}

// begin resets the state for each stage's list.
func (e *eval) begin(stage Stage, what, class string) {
	e.stage, e.what, e.class = stage, what, class
	e.depth, e.warnIfReject = 0, 0
	e.deferReject.active = false
	if stage <= Rcpt {
		e.ask[stage] = Rule{}
	}
}

// askPrimary has no opinion, but has the primary asked if nothing else refuses. At
// DATA the primary can't be asked: no message is sent for that.
func askPrimary(e *eval, c *check) status {
	rule := e.ruleKey(c, c.note)
	switch {
	case e.warnIfReject != 0: // then no answer counts
	case e.stage <= Rcpt:
		if e.ask[e.stage].Kind != kindAsk {
			e.ask[e.stage] = rule
		}
	case c.kind.name == kindAsk:
		return e.deferIfPermit(rule, 450, "4.7.0", e.whatRejected("the primary can't be asked about it"))
	}
	return dunno
}

// verifyRecipient has no opinion, but has it verified that the primary has the
// recipient, if nothing else refuses.
func verifyRecipient(e *eval, c *check) status {
	if e.warnIfReject == 0 && e.stage == Rcpt && e.ask[e.stage].Kind == "" {
		e.ask[e.stage] = e.ruleOf(c)
	}
	return dunno
}

// asked returns the rule for which to ask the primary: a mandatory one, or else
// the first.
func (e *eval) asked() (rule Rule) {
	for _, r := range e.ask {
		if r.Kind != "" && (rule.Kind == "" || r.Kind == kindAsk && rule.Kind != kindAsk) {
			rule = r
		}
	}
	return rule
}

// rejectNow refuses, whatever warn_if_reject says.
func (e *eval) rejectNow(rule Rule, code int, dsn, text string) status {
	if code < 400 || code > 599 || !validDSN(dsn) {
		code, dsn, text = 450, "4.7.1", "Service unavailable"
	}
	if e.deferReject.active && code/100 == 5 {
		e.warnIfReject, e.deferReject.active = 0, false
		e.reply, e.rule = e.deferReject.reply, e.deferReject.rule
		return refused
	}
	e.reply, e.rule = newReply(code, dsn, text), rule
	return refused
}

// answer refuses at the protocol's level, outside of all lists.
func (e *eval) answer(rule Rule, code int, dsn, text string) status {
	e.reply, e.rule = newReply(code, dsn, text), rule
	return refused
}

// reject refuses, unless warn_if_reject makes a warning of it.
func (e *eval) reject(rule Rule, code int, dsn, text string) status {
	if e.warnIfReject != 0 {
		e.warnings = append(e.warnings, rule)
		return dunno
	}
	return e.rejectNow(rule, code, dsn, text)
}

// serverError is Postfix's answer to its own misconfiguration.
func (e *eval) serverError(rule Rule) status {
	return e.rejectNow(rule, 451, "4.3.5", "Server configuration error")
}

// lookupFailed defers when a pattern took too long.
func (e *eval) lookupFailed(kind string) status {
	e.find.failed = false
	return e.rejectNow(Rule{Stage: e.stage, Kind: kind}, 451, "4.3.0", "<"+e.what+">: Temporary lookup failure")
}

func (e *eval) permit(rule Rule) status {
	e.rule = rule
	return ok
}

func (e *eval) deferIfPermit(rule Rule, code int, dsn, text string) status {
	if e.warnIfReject != 0 {
		return e.reject(rule, code, dsn, text)
	}
	e.deferPermit.set(rule, code, dsn, text)
	return dunno
}

func (e *eval) deferIfReject(rule Rule, code int, dsn, text string) status {
	e.deferReject.set(rule, code, dsn, text)
	return dunno
}

// tempfail is the result of a restriction when the DNS fails.
func (e *eval) tempfail(action string, rule Rule, code int, dsn, text string) status {
	if action == actionDefer {
		return e.reject(rule, code, dsn, text)
	}
	return e.deferIfPermit(rule, code, dsn, text)
}

// set keeps the first reason.
func (d *deferral) set(rule Rule, code int, dsn, text string) {
	if !d.active {
		*d = deferral{true, rule, newReply(code, dsn, text)}
	}
}

// checkClient, checkHelo and checkMail evaluate their list as Postfix does, each
// from the state that the previous stage left.
func (e *eval) checkClient() status {
	e.deferPermit.active = false
	e.begin(Connect, e.namaddr(), classClient)
	st := e.list(e.snap.client)
	e.deferPermitClient = e.deferPermit.active
	return st
}

func (e *eval) checkHelo() status {
	if !e.heloGiven {
		return dunno
	}
	e.deferPermit.active = e.deferPermitClient
	e.begin(Helo, e.client.Helo, classHelo)
	st := e.list(e.snap.helo)
	e.deferPermitHelo = e.deferPermit.active
	return st
}

func (e *eval) checkMail() status {
	if !e.hasSender { // at VRFY
		return dunno
	}
	e.deferPermit.active = e.deferPermitClient || e.deferPermitHelo
	e.senderChecked = false
	e.begin(Mail, e.sender.raw, classSender)
	st := e.list(e.snap.sender)
	e.deferPermitSender = e.deferPermit.active
	if e.snap.spec.RejectUnlistedSender && st != refused && !e.senderChecked && !e.discard && e.sender.raw != "" {
		st = e.unlisted(&e.sender, classSender, kindUnlistedSender)
	}
	return st
}

// checkRcpt evaluates all checks of a forward-path.
func (e *eval) checkRcpt() status {
	e.rcptChecked = false
	if e.snap.spec.DelayReject {
		if e.checkClient() == refused || e.checkHelo() == refused || e.checkMail() == refused {
			return refused
		}
	}
	e.deferPermit.active = e.deferPermitSender
	e.begin(Rcpt, e.rcpt.raw, classRcpt)
	lists := [2][]check{e.snap.recipient, e.snap.relay}
	if e.snap.spec.RelayBeforeRecipient {
		lists[0], lists[1] = lists[1], lists[0]
	}
	st := dunno
	for _, l := range lists {
		if st = e.list(l); st == refused {
			return refused
		}
	}
	if e.deferPermit.active {
		return e.fireDeferral()
	}
	if e.snap.spec.RejectUnlistedRcpt && !e.rcptChecked && !e.discard {
		st = e.unlisted(&e.rcpt, classRcpt, kindUnlistedRcpt)
	}
	return st
}

// checkData evaluates the list of DATA or of the end of data. The recipient
// is visible when there is exactly one.
func (e *eval) checkData(stage Stage, checks []check, what, class string) status {
	saved := e.rcpt
	if e.rcptCount > 1 {
		e.rcpt, e.hasRcpt = address{}, false
	}
	e.deferPermit.active = false
	e.begin(stage, what, class)
	st := e.list(checks)
	if st != refused && e.deferPermit.active {
		st = e.fireDeferral()
	}
	e.rcpt, e.hasRcpt = saved, e.rcptCount > 0
	return st
}

// fireDeferral refuses with the remembered temporary error.
func (e *eval) fireDeferral() status {
	e.reply, e.rule = e.deferPermit.reply, e.deferPermit.rule
	return refused
}

// verdict turns the outcome into a Verdict.
func (e *eval) verdict(stage Stage, st status) Verdict {
	v := Verdict{Rule: e.rule, Warnings: e.warnings}
	switch {
	case st == refused:
		v.Reply, v.Unsure = e.reply, e.unsure
		if e.snap.spec.Protocol.NoUTF8 {
			v.Reply.Text = printable(v.Reply.Text, false)
		}
		if e.snap.spec.SoftBounce {
			v.Reply = v.Reply.Softened()
		}
		v.Action = Defer
		if v.Reply.Permanent() {
			v.Action = Reject
		}
		v.Close = v.Reply.Code == 421 || v.Reply.Code == 521
		return v
	case e.atRcpt:
		v.Ask, v.Listed = e.asked(), e.listed
	}
	switch {
	case e.discard:
		v.Action, v.Rule = Discard, e.discardRule
	case e.hold:
		v.Action, v.Rule = Hold, e.holdRule
	case v.Ask.Kind != "":
		v.Rule = v.Ask
	case e.listed.Kind != "":
		v.Rule = e.listed
	case st != ok:
		v.Rule = Rule{Stage: stage, Kind: kindNone}
	}
	return v
}

// newReply keeps to one line of RFC 5321 §4.5.3.1.5. Postfix intends to, but sends
// all of a longer text.
func newReply(code int, dsn, text string) envelope.Reply {
	const room = 510 - len("550 ")
	dsn = string(rune('0'+code/100)) + dsn[1:]
	text = printable(text, true)
	if n := room - len(dsn) - 1; len(text) > n {
		for !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n]
	}
	return envelope.Reply{Code: code, Enhanced: dsn, Text: text}
}

// printable replaces each octet that a reply can't contain by a space, as Postfix
// does: control characters, invalid UTF-8, and without smtputf8_enable all that
// isn't ASCII.
func printable(s string, withUTF8 bool) string {
	b := []byte(s)
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r < 0x20 || r == 0x7f || r > 0x7f && !withUTF8 || r == utf8.RuneError && n == 1 {
			for j := range n {
				b[i+j] = ' '
			}
		}
		i += n
	}
	return string(b)
}
