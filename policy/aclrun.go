package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// outcome is what a condition, a statement or a list comes to: Exim's return codes.
type outcome uint8

const (
	aclOK outcome = iota
	aclFail
	aclDrop
	aclDefer
	aclError
	aclDiscard
	aclUnknown // of a condition: callout says what then
	aclSkip    // of a statement: it decides nothing
)

// aclSession is what a session knows beside the rest of Session.
type aclSession struct {
	vars         map[string]string // acl_c… and acl_m…
	helo         string            // as accepted
	shown        string            // the last one of a good form, as $sender_fullhost has it
	looked       bool              // the client's name is known
	nameShown    bool              // … in $sender_fullhost, too
	heloSeen     bool
	heloChecked  bool
	heloVerified bool
	sender       string // with its domain; "" is nobody
	size         int64  // of the message, as MAIL states it
	verified     map[string]*aclAddress
	told         map[string]bool // sender failures whose details went out
	rcpts        int             // RCPT commands
	fails        int
	defers       int
	accepted     int
	gone         bool // MAIL's list discarded the message
	tooMany      bool // recipients were refused as too many
	header       *headerBox
}

// aclRun is one evaluation of a stage's list.
type aclRun struct {
	*Session
	acl   *acl
	ctx   context.Context
	stage Stage
	level int
	args  []string // of the list in hand: $acl_arg1 …

	local, domain         string    // of the recipient: $local_part, as given
	dnslist               [4]string // $dnslist_domain, _value, _text, _matched
	domainData, localData string
	hostData, addressData string
	senderData            string
	verifyMessage         string
	failed                *aclAddress // a sender that failed, to be told
	callout               string      // what the operator chose in place of a callout
	details               bool        // temporary errors say why
	route                 *routing    // while an address is verified
	message               Message

	user string // what the client is told
	ask  Rule
	rule Rule
	find finder
}

func (s *Session) aclRun(ctx context.Context, st Stage) *aclRun {
	if s.aclState.vars == nil {
		s.aclState = aclSession{vars: map[string]string{}, verified: map[string]*aclAddress{}, told: map[string]bool{}}
	}
	r := &aclRun{Session: s, acl: s.snap.acl, ctx: ctx, stage: st}
	r.find.snap = s.snap
	return r
}

// judge evaluates the list of a stage.
func (r *aclRun) judge(stage string) (Verdict, outcome) {
	name, given := r.acl.Stages[stage]
	rc := aclOK
	switch {
	case given:
		rc = r.stageList(name)
	case stage == "rcpt":
		rc = aclFail
		r.rule = Rule{Stage: r.stage, Kind: kindACLEnd, Table: "acl_smtp_rcpt"}
	}
	return r.verdict(rc), rc
}

// stageList evaluates the list that a stage's string names.
func (r *aclRun) stageList(text string) outcome {
	name, err := r.expand(text)
	switch {
	case errors.Is(err, expansion.ErrForced):
		return aclOK
	case err != nil:
		return failure(err)
	}
	return r.list(strings.TrimSpace(name))
}

// list evaluates a list until a statement decides.
func (r *aclRun) list(name string) outcome {
	statements, ok := r.acl.lists[name]
	if !ok {
		return aclError
	}
	if r.level++; r.level > 20 {
		return aclError
	}
	defer func() { r.level-- }()
	for i := range statements {
		s := &statements[i]
		endpass := false
		r.details = false
		rc := r.statement(s, &endpass)
		if rc == aclDefer && r.acl.Details {
			r.details = true
		}
		if st, decided := decides(s.Verb, rc, endpass); decided {
			r.rule = Rule{Stage: r.stage, Kind: "acl_" + s.Verb, Table: name, Key: s.Where}
			if s.Verb == "defer" && st == aclDefer && rc == aclOK {
				r.details = true
			}
			return st
		}
		if s.Verb == "warn" {
			r.user = ""
		}
	}
	r.rule = Rule{Stage: r.stage, Kind: kindACLEnd, Table: name}
	return aclFail
}

// decides says whether a statement whose conditions came to rc ends its list, and
// with what.
func decides(verb string, rc outcome, endpass bool) (outcome, bool) {
	switch rc {
	case aclDefer:
		return rc, verb != "warn"
	case aclError:
		return rc, true
	case aclSkip:
		return rc, false
	}
	switch verb {
	case "accept":
		return rc, rc == aclOK || rc == aclDiscard || endpass
	case "discard":
		if rc == aclOK || rc == aclDiscard {
			return aclDiscard, true
		}
		return rc, endpass
	case "deny":
		return aclFail, rc == aclOK
	case "defer":
		return aclDefer, rc == aclOK
	case "drop":
		return aclDrop, rc == aclOK
	case "require":
		return rc, rc != aclOK
	}
	return rc, false
}

// messageAt says for which outcome a verb's message is.
func messageAt(verb string, rc outcome, endpass bool) bool {
	switch verb {
	case "accept", "discard":
		return rc == aclOK && !endpass || endpass && (rc == aclFail || rc == aclDrop)
	case "require":
		return rc == aclFail || rc == aclDrop
	}
	return rc == aclOK
}

// statement evaluates the conditions of one.
func (r *aclRun) statement(s *aclStatement, endpass *bool) outcome {
	rc := aclOK
	message := ""
	for i := range s.items {
		it := &s.items[i]
		switch it.kind {
		case "message":
			message = it.arg
			continue
		case "log_message":
			continue
		case "endpass":
			*endpass = true
			continue
		}
		if rc = r.condition(s, it); rc == aclUnknown {
			switch {
			case r.callout != "ignore":
				rc = r.unknown(s, r.callout)
			case s.Verb == "require":
				rc = aclOK
			default:
				return aclSkip
			}
		} else if it.negated && rc == aclOK {
			rc = aclFail
		} else if it.negated && (rc == aclFail || rc == aclDrop) {
			rc = aclOK
		}
		if rc != aclOK {
			break
		}
	}
	if messageAt(s.Verb, rc, *endpass) {
		r.verifyMessage = r.user
		if s.Verb == "warn" || rc == aclOK && (s.Verb == "accept" || s.Verb == "discard") {
			r.user = ""
		}
		if message != "" {
			if text, err := r.expand(message); err == nil && text != "" {
				r.user = text
			}
		}
	}
	r.verifyMessage = ""
	return rc
}

// expand expands a string of the policy.
func (r *aclRun) expand(s string) (string, error) {
	p := r.acl.strings[s]
	if p == nil {
		return "", fmt.Errorf("%q isn't one of the policy's strings", s)
	}
	return p.Expand(r)
}

// failure is the outcome of an expansion that failed.
func failure(err error) outcome {
	if errors.Is(err, expansion.ErrDefer) {
		return aclDefer
	}
	return aclError
}

// belongs says that a stage knows what a condition asks about. Where it doesn't, Exim
// answers 451.
func (r *aclRun) belongs(it *aclItem) bool {
	kind := it.kind
	if kind == "verify" {
		what, _, _ := strings.Cut(it.arg, "/")
		kind += " " + strings.ToLower(strings.TrimSpace(what))
	}
	switch kind {
	case "domains", "local_parts", "recipients", "verify recipient":
		return r.stage == Rcpt
	case "encrypted":
		return r.stage != Helo
	case "authenticated", "senders", "sender_domains", "verify sender":
		return r.stage != Connect && r.stage != Helo
	case "verify header_syntax", "verify header_names_ascii", "verify not_blind":
		return r.stage == EndOfData
	}
	return true
}

// condition evaluates one.
func (r *aclRun) condition(s *aclStatement, it *aclItem) outcome {
	if !r.belongs(it) {
		return aclError
	}
	switch it.kind {
	case "domains":
		return r.matches(listDomain, r.domain, it.arg, &r.domainData)
	case "local_parts":
		return r.matches(listLocal, r.local, it.arg, &r.localData)
	case "recipients":
		return r.matches(listAddress, r.local+"@"+r.domain, it.arg, nil)
	case "senders":
		return r.matches(listAddress, r.aclState.sender, it.arg, &r.senderData)
	case "sender_domains":
		return r.matches(listDomain, domainOf(r.aclState.sender), it.arg, nil)
	case "hosts":
		return r.matches(listHost, r.client.Addr.String(), it.arg, &r.hostData)
	case "authenticated":
		return aclFail // nobody authenticates to a secondary
	case "encrypted":
		if r.client.TLS == "" {
			return aclFail
		}
		return r.matches(listString, cipher(r.client.TLS), it.arg, nil)
	}
	if it.kind == "acl" {
		return r.nested(s, it.words)
	}
	arg, err := r.expand(it.arg)
	if errors.Is(err, expansion.ErrForced) {
		return aclOK // the condition doesn't count
	}
	if err != nil {
		return failure(err)
	}
	switch it.kind {
	case "condition":
		return holds(arg)
	case "dnslists":
		return r.dnslists(arg)
	case "set":
		r.aclState.vars[it.name] = arg
	case "verify":
		rc := r.verify(arg)
		if r.user != "" {
			r.verifyMessage = r.user
		}
		if s.Verb == "warn" {
			r.user = ""
		}
		return rc
	case "unknown":
		return r.unknown(s, it.arg)
	}
	return aclOK
}

// holds is the condition called condition.
func holds(arg string) outcome {
	ok, err := expansion.Bool(arg, false)
	switch {
	case err != nil:
		return aclDefer
	case !ok:
		return aclFail
	}
	return aclOK
}

// nested evaluates another list, by its name and arguments.
func (r *aclRun) nested(s *aclStatement, words []string) outcome {
	var values []string
	for _, w := range words {
		v, err := r.expand(w)
		if err != nil {
			return failure(err)
		}
		values = append(values, v)
	}
	if len(values) == 0 {
		return aclError
	}
	saved := r.args
	r.args = values[1:]
	rc := r.list(values[0])
	r.args = saved
	if rc == aclDiscard && s.Verb != "accept" && s.Verb != "discard" {
		return aclError
	}
	return rc
}

// unknown stands for what can't be followed: it would decide between the outcomes
// of its statement.
func (r *aclRun) unknown(s *aclStatement, choice string) outcome {
	rule := Rule{Stage: r.stage, Kind: kindAsk, Table: s.Where}
	switch {
	case choice == "defer", r.stage != Rcpt && choice == "ask":
		return aclDefer
	case choice == "ask_else_ignore":
		rule.Kind = kindAskElseIgnore
	}
	if r.ask.Kind != kindAsk {
		r.ask = rule
	}
	if s.Verb == "require" {
		return aclOK
	}
	return aclFail
}

// cipher is the part of a client's TLS that Exim calls so.
func cipher(tls string) string {
	_, c, _ := strings.Cut(tls, " ")
	return c
}

func domainOf(address string) string {
	return address[strings.LastIndexByte(address, '@')+1:]
}
