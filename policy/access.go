package policy

import (
	"errors"
	"fmt"
	"strings"
)

// access is a value of an access(5) table, read once.
type access struct {
	op    accessOp
	code  int    // opCode
	dsn   string // status code given in the text, or the default
	text  string // text given, "" for the default
	value string
	list  []check // opList
}

type accessOp uint8

const (
	opOK accessOp = iota
	opDunno
	opReject
	opDefer
	opCode
	opDeferIfPermit
	opDeferIfReject
	opDiscard
	opHold
	opWarn
	opList
	opBad      // a value that Postfix answers with 451 4.3.5
	opTemplate // a value with $1, to be read when the key is known
)

var accessOps = map[string]accessOp{
	"OK": opOK, "RELAY": opOK, "DUNNO": opDunno, "REJECT": opReject, "DEFER": opDefer,
	"DEFER_IF_PERMIT": opDeferIfPermit, "DEFER_IF_REJECT": opDeferIfReject,
	"DISCARD": opDiscard, "HOLD": opHold, "WARN": opWarn,
	// These affect an accepted message, or the log. The primary applies them
	// when the message reaches it.
	"INFO": opDunno, "FILTER": opDunno, "REDIRECT": opDunno, "BCC": opDunno, "PREPEND": opDunno,
}

const blank = " \t"

// cutWord splits at the first white space.
func cutWord(s string) (word, rest string) {
	n := strings.IndexAny(s+" ", blank)
	return s[:n], strings.Trim(s[n:], blank)
}

// parseAccess reads a value. A value that is no action is a list of
// restrictions; it comes back as opList without its list.
func parseAccess(value string) access {
	a := access{value: value, dsn: "5.7.1"}
	word, text := cutWord(strings.TrimLeft(value, blank))
	op, known := accessOps[strings.ToUpper(word)]
	switch {
	case strings.TrimSpace(value) == "" || allDigits(value):
		a.op = opOK
		return a
	case known:
		a.op = op
		if op == opDefer || op == opDeferIfPermit || op == opDeferIfReject {
			a.dsn = "4.7.1"
		}
	case isReplyCode(word) && text != "":
		a.op = opCode
		a.code = int(word[0]-'0')*100 + int(word[1]-'0')*10 + int(word[2]-'0')
		a.dsn = word[:1] + ".7.1"
	case strings.Contains(value, ":"):
		a.op = opBad
	default:
		a.op = opList
	}
	a.dsn, a.text = splitDSN(a.dsn, text)
	return a
}

// parseRestrictions reads a list of restrictions as an access table's value
// holds it.
func parseRestrictions(value string) ([]Restriction, error) {
	words := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
	var list []Restriction
	for i := 0; i < len(words); i++ {
		k := findKind(words[i])
		r := Restriction{Kind: words[i]}
		if k != nil {
			r.Kind = k.name
		}
		if k != nil && k.arg != argNone {
			if i++; i == len(words) {
				return list, fmt.Errorf("restriction %s lacks its argument", r.Kind)
			}
			r.Arg = words[i]
		}
		list = append(list, r)
	}
	return list, nil
}

func isReplyCode(s string) bool {
	return len(s) == 3 && (s[0] == '4' || s[0] == '5') && allDigits(s)
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// BlockAction is the access(5) action that refuses with an operator's reply: a
// code with text, text, or nothing.
func BlockAction(reply string) (string, error) {
	code, text, _ := strings.Cut(reply, " ")
	switch {
	case reply == "":
		return "REJECT", nil
	case !validText(reply):
		return "", errors.New("reply must be one line of at most 400 characters, without control characters")
	case isReplyCode(code) && strings.TrimSpace(text) != "":
		return reply, nil
	case len(code) == 3 && allDigits(code):
		return "", fmt.Errorf("reply %q needs a code from 400 to 599 and a text; write \"550 5.7.1 Go away\" or only the text", reply)
	}
	return "REJECT " + reply, nil
}

func validText(s string) bool { return len(s) <= 400 && printable(s, true) == s }

// access applies the action of a table's entry.
func (e *eval) access(c *check, h hit, what, class string) status {
	a := h.access()
	rule := Rule{Stage: e.stage, Kind: c.kind.name, Table: h.t.name, Key: h.key()}
	if a == nil {
		late := e.snap.late(e.find.value(h))
		a = &late
	}
	return e.act(a, rule, what, class)
}

// act carries an action out.
func (e *eval) act(a *access, rule Rule, what, class string) status {
	text := func(def string) string {
		if a.text != "" {
			def = a.text
		}
		return fmt.Sprintf("<%s>: %s rejected: %s", what, class, def)
	}
	codes := &e.snap.spec.Codes
	switch a.op {
	case opDunno:
		return dunno
	case opOK:
		return e.permit(rule)
	case opReject:
		return e.reject(rule, codes.AccessMapReject, fixDSN(a.dsn, class), text("Access denied"))
	case opDefer:
		return e.reject(rule, codes.AccessMapDefer, fixDSN(a.dsn, class), text("Access denied"))
	case opCode:
		return e.reject(rule, a.code, fixDSN(a.dsn, class), text("Access denied"))
	case opDeferIfPermit:
		return e.deferIfPermit(rule, codes.AccessMapDefer, fixDSN(a.dsn, class), text("Service unavailable"))
	case opDeferIfReject:
		return e.deferIfReject(rule, codes.AccessMapDefer, fixDSN(a.dsn, class), text("Service unavailable"))
	case opWarn:
		e.warnings = append(e.warnings, rule)
		return dunno
	case opHold, opDiscard:
		return e.delegate(a.op, rule)
	case opList:
		return e.list(a.list)
	}
	return e.serverError(rule)
}

// delegate notes what to do with the message. Outside of a mail transaction there
// is none, and Postfix skips the action.
func (e *eval) delegate(op accessOp, rule Rule) status {
	if !e.inTransaction {
		return dunno
	}
	if op == opHold {
		if !e.hold {
			e.hold, e.holdRule = true, rule
		}
		return dunno
	}
	e.discard, e.discardRule = true, rule
	return e.permit(rule)
}
