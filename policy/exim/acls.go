package exim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// stages are the lists that decide about inbound mail, by the option that names each.
var stages = []struct{ option, stage string }{
	{"acl_smtp_connect", "connect"}, {"acl_smtp_helo", "helo"}, {"acl_smtp_mail", "mail"}, {"acl_smtp_rcpt", "rcpt"},
	{"acl_smtp_predata", "predata"}, {"acl_smtp_data", "data"},
}

// stages translates the lists, and those that they call.
func (i *importer) stages() {
	for _, s := range stages {
		name := i.conf.main[s.option]
		if name == "" {
			if s.stage == "rcpt" {
				i.item(s.option, "", fidelity.Exact, "without it Exim refuses every recipient", "")
			}
			continue
		}
		i.acl.Stages[s.stage] = i.stage(s.option, name)
	}
}

// stage translates the lists that a stage's string may name, and returns the string.
// What is no name is a list of its own: "accept".
func (i *importer) stage(option, text string) string {
	i.here = i.conf.where(option)
	got, err := i.str(text)
	if err != nil {
		return i.inline(option, text)
	}
	p, err := expansion.Parse(got)
	if err != nil {
		return i.inline(option, text)
	}
	names, ok := p.Leaves()
	for n, name := range names {
		names[n] = strings.TrimSpace(name)
		ok = ok && (i.aclNamed(names[n]) != nil || verbs[names[n]])
	}
	if !ok {
		return i.inline(option, text)
	}
	for _, name := range names {
		if i.aclNamed(name) == nil {
			i.conf.acls = append(i.conf.acls, aclText{name: name, statements: []statementText{{verb: name}}})
		}
		i.list(name)
	}
	i.item(option, text, fidelity.Exact, "", "")
	return got
}

// inline stands for a list whose name isn't constant, or that is written in place.
func (i *importer) inline(option, value string) string {
	choice := i.choose(option, value, fidelity.Defer, fidelity.Ignore)
	i.item(option, value, fidelity.NotReplicated, i.conf.where(option)+": which list it names isn't constant, or it isn't in this file", choice, fidelity.Defer, fidelity.Ignore)
	verb := "accept"
	if choice == fidelity.Defer {
		verb = "defer"
	}
	i.acl.Lists[option] = []policy.ACLStatement{{Verb: verb, Where: i.conf.where(option)}}
	return option
}

func (i *importer) aclNamed(name string) *aclText {
	at := slices.IndexFunc(i.conf.acls, func(a aclText) bool { return a.name == name })
	if at < 0 {
		return nil
	}
	return &i.conf.acls[at]
}

// list translates a list, once.
func (i *importer) list(name string) {
	a := i.aclNamed(name)
	if _, done := i.acl.Lists[name]; done || a == nil {
		return
	}
	i.acl.Lists[name] = nil // calls of itself end here
	var out []policy.ACLStatement
	for n := range a.statements {
		if s, keep := i.statement(name, &a.statements[n]); keep {
			out = append(out, s)
		}
	}
	i.acl.Lists[name] = out
}

// modifiers decide nothing, or nothing that a sender is told.
var modifiers = []string{"log_message", "logwrite", "delay", "add_header", "remove_header", "continue", "log_reject_target", "queue", "udpsend"}

// controls that decide nothing before a message is delivered.
var controls = []string{
	"allow_auth_unadvertised", "cutthrough_delivery", "debug", "dkim_disable_verify", "dmarc_disable_verify", "dmarc_enable_forensic", "dscp", "enforce_sync", "freeze",
	"no_delay_flush", "no_callout_flush", "no_enforce_sync", "no_mbox_unspool", "no_multiline_responses", "no_pipelining", "queue", "queue_only", "queue_run", "submission", "suppress_local_fixups",
	"utf8_downconvert", "no_rewrite",
}

// taint notes variables that may have another value than on the primary.
func (i *importer) taint(names []string) {
	for _, name := range names {
		if i.tainted[name] == nil {
			i.tainted[name] = errors.New("it is set where something else isn't known")
		}
	}
}

// acts says that an item does something even where its statement decides nothing.
func (it itemText) acts() bool {
	return slices.Contains([]string{"set", "control", "acl"}, strings.TrimPrefix(it.kind, "!"))
}

// statement translates one. keep is false for one that decides nothing.
func (i *importer) statement(list string, s *statementText) (out policy.ACLStatement, keep bool) {
	if s.verb == "warn" && !slices.ContainsFunc(s.items, itemText.acts) {
		return out, false
	}
	out.Verb = s.verb
	var missing []policy.ACLCondition
	var sets []string
	if len(s.items) > 0 {
		out.Where = s.items[0].where
	}
	items, never := s.items, unreachable(s)
	if never >= 0 {
		i.item(list, elementOf(s.verb, items[never]), fidelity.Exact, "nobody authenticates to a secondary", "")
		items = items[:never]
	}
	for _, it := range items {
		if it.kind == "set" {
			name, _, _ := strings.Cut(it.arg, "=")
			sets = append(sets, strings.TrimSpace(name))
		}
		c, class, why := i.condition(list, it)
		switch {
		case why == nil && c.Kind == "":
			continue
		case why == nil && class == fidelity.NotReplicated: // reported
			out.Items = append(out.Items, c)
			continue
		case why == nil:
			out.Items = append(out.Items, c)
			if class != "" {
				i.item(list, elementOf(s.verb, it), class, "", "")
			}
			continue
		}
		if errors.Is(why, expansion.ErrBrace) {
			i.item(list, elementOf(s.verb, it), fidelity.Exact, it.where+": "+why.Error()+", and Exim answers 451", "")
			out.Items = append(out.Items, policy.ACLCondition{Kind: "condition", Arg: "${if bool{a brace is missing}}"})
			return out, true
		}
		if never >= 0 {
			missing = append(missing, policy.ACLCondition{})
			break // what follows it can't be told, and decides nothing
		}
		choice, dropped := i.missing(list, s.verb, it, why)
		if dropped {
			return onlySets(out)
		}
		if choice != "" {
			missing = append(missing, policy.ACLCondition{Kind: "unknown", Arg: choice})
		}
	}
	if len(missing) > 0 {
		i.taint(sets)
	}
	if never >= 0 {
		return onlySets(out)
	}
	out.Items = append(out.Items, missing...)
	return out, s.verb != "warn" || slices.ContainsFunc(out.Items, func(c policy.ACLCondition) bool { return c.Kind == "set" || c.Kind == "unknown" })
}

// unreachable is the index of a condition that never holds, so that the statement
// decides nothing: nobody authenticates. It is -1 without one.
func unreachable(s *statementText) int {
	if s.verb == "require" {
		return -1
	}
	for n, it := range s.items {
		switch it.kind {
		case "endpass":
			return -1
		case "authenticated":
			return n
		}
	}
	return -1
}

// onlySets is what is left of a statement that decides nothing: the variables that it
// sets before it ends.
func onlySets(s policy.ACLStatement) (policy.ACLStatement, bool) {
	for n := len(s.Items); n > 0; n-- {
		if s.Items[n-1].Kind == "set" {
			s.Verb = "warn"
			s.Items = slices.DeleteFunc(s.Items[:n], func(c policy.ACLCondition) bool { return c.Kind == "message" })
			return s, true
		}
	}
	return s, false
}

// elementOf names a condition in the report.
func elementOf(verb string, it itemText) string {
	if it.arg == "" {
		return verb + " " + it.kind
	}
	return verb + " " + it.kind + " = " + it.arg
}

// scanner is a condition that another program or the whole message decides.
type scanner struct{ what string }

func (s scanner) Error() string { return s.what }

// missing reports a condition that can't be followed, and says what stands for it:
// "" for nothing. dropped: the whole statement is ignored.
func (i *importer) missing(list, verb string, it itemText, why error) (choice string, dropped bool) {
	options := []string{fidelity.Defer, fidelity.Ask, fidelity.Ignore}
	if _, scans := why.(scanner); scans {
		options = []string{fidelity.Ignore, fidelity.Defer, fidelity.Ask}
	}
	element := elementOf(verb, it)
	got := i.choose(list, element, options...)
	i.item(list, element, fidelity.NotReplicated, fmt.Sprintf("%s: %v", it.where, why), got, options...)
	switch got {
	case fidelity.Defer:
		return "defer", false
	case fidelity.Ask:
		return "ask", false
	}
	return "", verb != "require"
}

// condition translates one; the zero condition decides nothing.
func (i *importer) condition(list string, it itemText) (c policy.ACLCondition, class fidelity.Class, why error) {
	i.here = it.where
	kind := strings.TrimPrefix(it.kind, "!")
	if it.kind == "!authenticated" {
		return policy.ACLCondition{}, "", nil // nobody authenticates to a secondary
	}
	c = policy.ACLCondition{Kind: it.kind, Arg: it.arg}
	switch kind {
	case "domains", "sender_domains":
		c.Arg, why = i.listString(it.arg, "domainlist")
	case "local_parts":
		c.Arg, why = i.listString(it.arg, "localpartlist")
	case "senders", "recipients":
		c.Arg, why = i.listString(it.arg, "addresslist")
	case "hosts":
		c.Arg, why = i.listString(it.arg, "hostlist")
		return c, hostClass(it.arg), why
	case "authenticated", "encrypted", "condition", "dnslists":
		c.Arg, why = i.str(it.arg)
		if i.asksDNS || kind == "dnslists" {
			return c, fidelity.GivenDNS, why
		}
	case "set":
		name, value, _ := strings.Cut(it.arg, "=")
		name = strings.TrimSpace(name)
		value, why = i.str(strings.TrimSpace(value))
		if p, err := expansion.Parse(value); why == nil && err == nil && i.ofClients(p) {
			i.clients[name] = true
		}
		if c.Arg = name + "=" + value; why != nil {
			i.tainted[name] = why
		}
	case "message":
		if c.Arg, why = i.str(it.arg); why != nil { // the verdict is the same
			i.item(list, elementOf("", it), fidelity.Approximated, fmt.Sprintf("%s: %v", it.where, why), "Exim's own text")
			return policy.ACLCondition{}, "", nil
		}
		return c, "", nil
	case "endpass":
		return c, "", nil
	case "verify":
		if c, ok := i.callout(list, it); ok {
			return c, fidelity.NotReplicated, nil
		}
		return i.verify(it)
	case "acl":
		return i.call(it)
	case "control":
		return i.control(it)
	case "spam", "malware", "decode", "mime_regex", "regex", "spf", "spf_guess", "dkim_signers", "dkim_status", "dmarc_status", "bmi_optin", "demime", "arc":
		return c, "", scanner{kind + " is decided by what stands beside Exim, when the message is relayed to it"}
	case "ratelimit", "seen":
		return c, "", scanner{kind + " counts what comes to the primary"}
	default:
		if slices.Contains(modifiers, kind) {
			return policy.ACLCondition{}, "", nil
		}
		return c, "", fmt.Errorf("the condition %s isn't known", kind)
	}
	return c, fidelity.Exact, why
}

// hostClass says whether a host list asks the DNS.
func hostClass(list string) fidelity.Class {
	for _, e := range expansion.List(list) {
		e = strings.TrimPrefix(e, "!")
		if strings.ContainsAny(e, "abcdefghijklmnopqrstuvwxyz") && !strings.ContainsAny(e, "+:/$") {
			return fidelity.GivenDNS
		}
	}
	return fidelity.Exact
}

func (i *importer) verify(it itemText) (policy.ACLCondition, fidelity.Class, error) {
	c := policy.ACLCondition{Kind: it.kind, Arg: it.arg}
	if err := policy.CheckACLVerify(it.arg); err != nil {
		what, _, _ := strings.Cut(it.arg, "/")
		switch {
		case strings.Contains(it.arg, "callout"):
			return c, "", scanner{"callouts ask other servers"}
		case slices.Contains([]string{"header_sender", "certificate", "csa", "arc"}, strings.TrimSpace(what)):
			return c, "", scanner{"verify = " + strings.TrimSpace(what) + " isn't followed; the primary decides when the message is relayed to it"}
		}
		return c, "", err
	}
	switch what, _, _ := strings.Cut(it.arg, "/"); strings.ToLower(strings.TrimSpace(what)) {
	case "helo", "reverse_host_lookup", "sender":
		return c, fidelity.GivenDNS, nil
	case "not_blind":
		return c, "", scanner{"not_blind is about the whole message; the primary decides when it is relayed to it"}
	}
	return c, fidelity.Exact, nil
}

// callout translates "verify = recipient/callout": Exim asks another server about
// addresses that it relays there, and about no others.
func (i *importer) callout(list string, it itemText) (policy.ACLCondition, bool) {
	c := policy.ACLCondition{Kind: it.kind}
	var rest []string
	asks := false
	for o := range strings.SplitSeq(it.arg, "/") {
		if o = strings.TrimSpace(o); o == "callout" || strings.HasPrefix(o, "callout=") {
			asks = true
			continue
		}
		rest = append(rest, o)
	}
	c.Arg = strings.Join(rest, "/")
	if !asks || !strings.EqualFold(rest[0], "recipient") || policy.CheckACLVerify(c.Arg) != nil {
		return c, false
	}
	options := []string{fidelity.Ignore, fidelity.Defer, fidelity.Ask}
	element := elementOf("", it)
	choice := i.choose(list, element, options...)
	i.item(list, element, fidelity.NotReplicated, it.where+": callouts ask other servers; recipients that the primary doesn't relay to one are decided as there", choice, options...)
	c.Arg += "/callout=" + choice
	return c, true
}

// call translates a condition that evaluates another list.
func (i *importer) call(it itemText) (policy.ACLCondition, fidelity.Class, error) {
	c := policy.ACLCondition{Kind: it.kind, Arg: it.arg}
	words := policy.ACLWords(it.arg)
	if len(words) == 0 {
		return c, "", fmt.Errorf("no list is named")
	}
	p, err := expansion.Parse(words[0])
	if err != nil {
		return c, "", err
	}
	name, constant := p.Constant()
	switch {
	case !constant:
		return c, "", fmt.Errorf("a list whose name isn't constant isn't followed")
	case i.aclNamed(name) == nil:
		return c, "", fmt.Errorf("no list is called %q", name)
	}
	for _, w := range words[1:] {
		got, err := i.str(w)
		if err == nil && got != w {
			err = fmt.Errorf("an argument with a query in it isn't followed")
		}
		if err != nil {
			return c, "", err
		}
	}
	i.list(name)
	return c, fidelity.Exact, nil
}

func (i *importer) control(it itemText) (policy.ACLCondition, fidelity.Class, error) {
	c := policy.ACLCondition{Kind: it.kind, Arg: it.arg}
	name, _, _ := strings.Cut(it.arg, "/")
	name, _, _ = strings.Cut(strings.TrimSpace(name), "=")
	if slices.Contains(controls, strings.TrimSpace(name)) {
		return policy.ACLCondition{}, "", nil
	}
	return c, "", fmt.Errorf("control = %s changes how Exim goes on", it.arg)
}
