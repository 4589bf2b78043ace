package expansion

import (
	"slices"
	"strings"
)

// variables are those that a decision about a message knows.
var variables = []string{
	"acl_verify_message", "address_data", "authenticated_id", "authenticated_fail_id", "body_linecount", "dnslist_domain", "dnslist_matched",
	"dnslist_text", "dnslist_value", "domain", "domain_data", "home", "host_data", "host_lookup_deferred", "host_lookup_failed", "interface_address",
	"interface_port", "local_part", "local_part_data", "local_part_prefix", "local_part_suffix", "local_part_verified", "local_user_uid", "local_user_gid",
	"max_received_linelength", "message_size", "message_body_size", "original_domain", "original_local_part", "parent_domain", "parent_local_part",
	"primary_hostname", "qualify_domain", "qualify_recipient", "rcpt_count", "rcpt_defer_count", "rcpt_fail_count", "received_count",
	"received_ip_address", "received_port", "received_protocol", "recipients", "recipients_count", "return_path", "sender_address", "sender_address_data",
	"sender_address_domain", "sender_address_local_part", "sender_data", "sender_fullhost", "sender_helo_name", "sender_host_address",
	"sender_host_authenticated", "sender_host_name", "sender_host_port", "sender_ident", "sender_rcvhost", "sender_verify_failure",
	"recipient_verify_failure", "recipient_data", "smtp_active_hostname", "smtp_command", "smtp_command_argument", "tls_cipher", "tls_in_cipher", "tls_sni", "tls_in_sni",
	"tls_certificate_verified", "tls_in_certificate_verified", "value", "spool_directory", "version_number", "message_exim_id", "tls_peerdn", "tls_in_peerdn",
	"tod_log", "tod_epoch", "tod_full", "pid", "verify_mode", "item",
}

// KnownVariable says that a policy has a variable, or that its text decides nothing.
func KnownVariable(name string) bool {
	return strings.HasPrefix(name, "acl_c") || strings.HasPrefix(name, "acl_m") || slices.Contains(variables, name)
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

// Parts are the string's pieces in order: constants, and expressions.
func (s *String) Parts() (parts []Part) {
	for _, n := range s.nodes {
		if t, ok := n.(text); ok {
			parts = append(parts, Part{Text: string(t)})
			continue
		}
		p := Part{Expr: &String{nodes: []node{n}}}
		if v, ok := n.(variable); ok {
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
