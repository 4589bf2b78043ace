package expansion

import (
	"slices"
	"strings"
)

// variables are those that a decision about a message knows.
var variables = []string{
	"acl_arg1", "acl_arg2", "acl_arg3", "acl_arg4", "acl_arg5", "acl_arg6", "acl_arg7", "acl_arg8", "acl_arg9", "acl_narg", "acl_verify_message", "address_data", "authenticated_id", "authenticated_fail_id", "body_linecount", "dnslist_domain", "dnslist_matched",
	"dnslist_text", "dnslist_value", "domain", "domain_data", "home", "host_data", "host_lookup_deferred", "host_lookup_failed", "interface_address",
	"interface_port", "local_part", "local_part_data", "local_part_prefix", "local_part_suffix", "local_part_verified", "local_user_uid", "local_user_gid",
	"max_received_linelength", "message_size", "message_body_size", "original_domain", "original_local_part", "parent_domain", "parent_local_part",
	"primary_hostname", "qualify_domain", "qualify_recipient", "rcpt_count", "rcpt_defer_count", "rcpt_fail_count", "received_count",
	"received_ip_address", "received_port", "received_protocol", "recipients", "recipients_count", "return_path", "sender_address", "sender_address_data",
	"sender_address_domain", "sender_address_local_part", "sender_data", "sender_fullhost", "sender_helo_name", "sender_host_address",
	"sender_host_authenticated", "sender_host_name", "sender_host_port", "sender_ident", "sender_rcvhost", "sender_verify_failure",
	"recipient_verify_failure", "recipient_data", "smtp_active_hostname", "smtp_command", "smtp_command_argument", "tls_cipher", "tls_in_cipher", "tls_sni", "tls_in_sni",
	"tls_certificate_verified", "tls_in_certificate_verified", "value", "spool_directory", "version_number", "message_exim_id", "tls_peerdn", "tls_in_peerdn",
	"srs_recipient", "tod_log", "tod_epoch", "tod_full", "pid", "verify_mode", "item",
}

// scanned are variables of what looks at a whole message. Before that they are empty.
var scanned = []string{
	"arc_", "bmi_", "dkim_", "dmarc_", "malware_name", "mime_", "prdr_requested", "regex_match_string", "regex1", "sender_rate", "smtp_notquit_reason", "spam_", "spf_",
}

// Scanned says that a variable is empty until something has looked at the whole message.
func Scanned(name string) bool {
	return slices.ContainsFunc(scanned, func(s string) bool { return strings.HasPrefix(name, s) })
}

// KnownVariable says that a policy has a variable, or that its text decides nothing.
func KnownVariable(name string) bool {
	return strings.HasPrefix(name, "acl_c") || strings.HasPrefix(name, "acl_m") || slices.Contains(variables, name) || Scanned(name)
}

// Visitor is told of what a string refers to.
type Visitor struct {
	Variable func(name string)
	Lookup   func(typ string, file, key *String)
	Test     func(cond string, subject, list *String)
	Branch   func(s *String) // each {yes} and {no}
}

// Walk tells v of everything in the string, whatever branch it is in.
func (s *String) Walk(v *Visitor) {
	if s == nil {
		return
	}
	for _, n := range s.nodes {
		switch n := n.(type) {
		case variable:
			if v.Variable != nil {
				v.Variable(string(n))
			}
		case *operator:
			n.subject.Walk(v)
		case *ifItem:
			walkCondition(n.cond, v)
			n.branch.walk(v)
		case *lookup:
			if v.Lookup != nil {
				v.Lookup(n.typ, n.file, n.key)
			}
			n.key.Walk(v)
			n.file.Walk(&Visitor{Variable: v.Variable, Lookup: v.Lookup, Test: v.Test})
			n.branch.walk(v)
		case *extract:
			walkAll(n.args, v)
			n.branch.walk(v)
		case *listextract:
			walkAll(n.args, v)
			n.branch.walk(v)
		case *substitute:
			walkAll(n.args, v)
		case *sized:
			walkAll(n.args, v)
		}
	}
}

func (b *branch) walk(v *Visitor) {
	if v.Branch != nil {
		for _, s := range []*String{b.yes, b.no} {
			if s != nil {
				v.Branch(s)
			}
		}
	}
	b.yes.Walk(v)
	b.no.Walk(v)
}

func walkAll(all []*String, v *Visitor) {
	for _, s := range all {
		s.Walk(v)
	}
}

func walkCondition(c condition, v *Visitor) {
	switch c := c.(type) {
	case not:
		walkCondition(c.c, v)
	case all:
		for _, c := range c.cs {
			walkCondition(c, v)
		}
	case defined:
		if v.Variable != nil {
			v.Variable(string(c))
		}
	case *compare:
		if v.Test != nil && (c.name == "exists" || strings.HasPrefix(c.name, "match_")) {
			var list *String
			if len(c.args) > 1 {
				list = c.args[1]
			}
			v.Test(c.name, c.args[0], list)
		}
		walkAll(c.args, &Visitor{Variable: v.Variable, Lookup: v.Lookup, Test: v.Test})
	}
}

// Pattern spells the string with "*" for all that isn't constant: files that it may
// name. ok: only variables stand there.
func (s *String) Pattern() (glob string, ok bool) {
	var b strings.Builder
	ok = true
	for _, n := range s.nodes {
		switch n := n.(type) {
		case text:
			b.WriteString(string(n))
		case variable:
			b.WriteByte('*')
		case *operator:
			b.WriteByte('*')
			inner := n.subject
			if _, simple := inner.Pattern(); !simple {
				ok = false
			}
		default:
			ok = false
		}
	}
	return b.String(), ok
}

// maxShapes bounds the shapes of one string.
const maxShapes = 1000

// Values lists what a look-up may answer; ok is false where that isn't known.
type Values func(typ string, file *String) (all []string, ok bool)

// Shapes spells what the string may come to, with "*" for what no list bounds: a
// variable, for one, or a name that is looked up in a directory. ok is false where that
// is too much, or isn't known.
//
//	/etc/virtual/${lookup{$domain}dsearch{/etc/virtual}}/aliases
//	/etc/virtual/*/aliases
func (s *String) Shapes(values Values) (all []string, ok bool) {
	all = []string{""}
	for _, n := range s.nodes {
		next, ok := shapes(n, values)
		if !ok || len(all)*len(next) > maxShapes {
			return nil, false
		}
		var joined []string
		for _, a := range all {
			for _, b := range next {
				joined = append(joined, a+b)
			}
		}
		slices.Sort(joined)
		all = slices.Compact(joined)
	}
	return all, true
}

func shapes(n node, values Values) ([]string, bool) {
	switch n := n.(type) {
	case text:
		return []string{string(n)}, true
	case variable:
		return []string{"*"}, true
	case *operator:
		all, ok := n.subject.Shapes(values)
		if !ok || len(all) > 1 || !strings.Contains(all[0], "*") {
			return nil, false
		}
		return []string{"*"}, true
	case *substitute:
		all, ok := n.args[0].Shapes(values)
		return []string{"*"}, ok && len(all) == 1
	case *ifItem:
		return n.branch.shapes([]string{"true"}, values)
	case *lookup:
		all := []string{"*"}
		var ok bool
		switch {
		case BaseType(n.typ) != "dsearch":
			if all, ok = values(n.typ, n.file); !ok {
				return nil, false
			}
		case strings.Contains(n.typ, ",ret=full"):
			dirs, ok := n.file.Shapes(values)
			if !ok {
				return nil, false
			}
			all = nil
			for _, dir := range dirs {
				all = append(all, strings.TrimSpace(dir)+"/*")
			}
		}
		return n.branch.shapes(all, values)
	case *extract:
		all, ok := n.args[len(n.args)-1].Shapes(values)
		if !ok {
			return nil, false
		}
		var fields []string
		for _, s := range all {
			v, found := "", false
			if key, constant := n.args[0].Constant(); !constant || strings.Contains(s, "*") {
				return nil, false
			} else if len(n.args) == 3 {
				seps, constant := n.args[1].Constant()
				if !constant {
					return nil, false
				}
				v, found = field(strings.TrimSpace(key), seps, s)
			} else {
				v, found = named(strings.TrimSpace(key), s)
			}
			if found {
				fields = append(fields, v)
			}
		}
		return n.branch.shapes(fields, values)
	}
	return nil, false
}

// shapes are those of both branches. found are the values that the first stands for.
func (b *branch) shapes(found []string, values Values) ([]string, bool) {
	all := []string{""}
	if b.noForced {
		all = nil
	}
	if b.no != nil {
		var ok bool
		if all, ok = b.no.Shapes(values); !ok {
			return nil, false
		}
	}
	switch {
	case b.yesForced:
		return all, true
	case b.yes == nil:
		return append(all, found...), true
	}
	yes, ok := b.yes.Shapes(values)
	if !ok {
		return nil, false
	}
	if len(b.yes.nodes) == 1 && b.yes.nodes[0] == node(variable("value")) {
		yes = found
	}
	return append(all, yes...), true
}

// Leaves are the constants that the string may come to, if these are all.
func (s *String) Leaves() (all []string, ok bool) {
	all, ok = s.Shapes(func(string, *String) ([]string, bool) { return nil, false })
	return all, ok && !slices.ContainsFunc(all, func(a string) bool { return strings.Contains(a, "*") })
}

// Quote spells s so that it expands to itself.
func Quote(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch s[i] {
		case '\\', '$', '{', '}':
			b.WriteByte('\\')
			b.WriteByte(s[i])
		case '\n':
			b.WriteString(`\n`)
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// Parts are the string's pieces in order: constants, and expressions.
func (s *String) Parts() (parts []Part) {
	for i, n := range s.nodes {
		if t, ok := n.(text); ok {
			parts = append(parts, Part{Text: string(t)})
			continue
		}
		p := Part{Expr: &String{src: s.spelled[i], nodes: []node{n}}}
		if v, ok := n.(variable); ok && !strings.Contains(string(v), "h_") {
			p.Expr.src = "$" + string(v)
		}
		if op, ok := n.(*operator); ok && op.name == "quote" {
			p.Quoted, p.Expr = op.arg, op.subject
		}
		parts = append(parts, p)
	}
	return parts
}

// Part is a constant, or an expression. Quoted is TYPE where ${quote_TYPE:…} is
// around it.
type Part struct {
	Text   string
	Expr   *String
	Quoted string
}

// Source spells the string as it was written.
func (s *String) Source() string { return s.src }

// clients are variables whose values clients choose. $domain_data and its like, and what
// look-ups answer, are the configuration's own.
var clients = []string{
	"domain", "local_part", "local_part_prefix", "local_part_suffix", "original_domain", "original_local_part", "parent_domain", "parent_local_part",
	"sender_address", "sender_address_domain", "sender_address_local_part", "sender_helo_name", "sender_host_name", "sender_ident", "tls_sni", "tls_in_sni",
}

// Tainted says that a client chooses a part of the string: Exim 4.94 and later opens no
// file of such a name. also says so of further variables.
func (s *String) Tainted(also func(variable string) bool) bool {
	if s == nil {
		return false
	}
	branches := func(b *branch) bool { return b.yes.Tainted(also) || b.no.Tainted(also) }
	return slices.ContainsFunc(s.nodes, func(n node) bool {
		switch n := n.(type) {
		case variable:
			return slices.Contains(clients, string(n)) || strings.Contains(string(n), "h_") && !strings.HasPrefix(string(n), "acl_") || also(string(n))
		case *operator:
			return n.subject.Tainted(also)
		case *ifItem:
			return branches(&n.branch)
		case *lookup:
			return branches(&n.branch)
		case *extract:
			return n.yes == nil && n.args[len(n.args)-1].Tainted(also) || branches(&n.branch)
		case *listextract:
			return n.yes == nil && n.args[1].Tainted(also) || branches(&n.branch)
		case *substitute:
			return n.args[0].Tainted(also) || n.args[2].Tainted(also)
		case *sized:
			return n.args[len(n.args)-1].Tainted(also)
		}
		return false
	})
}
