package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
)

// ACL is the policy of a primary that decides by access control lists, as Exim
// does. Where a Spec has it, it decides in place of Restrictions and of the tables
// in Addresses, whose domains are then what statistics and guards know of it.
//
// Lists and strings are Exim's, expanded for each decision. What they read is in
// Spec.Tables, under "TYPE;FILE" (lsearch;/etc/aliases), and in Files.
type ACL struct {
	// Stages name the list that judges each: connect, helo, mail, rcpt, predata
	// and data. A name is expanded. Without one, rcpt refuses everybody and the
	// others nobody.
	Stages map[string]string         `json:"stages,omitempty"`
	Lists  map[string][]ACLStatement `json:"lists,omitempty"`

	Domains    map[string]string `json:"domainlists,omitempty"`
	Hosts      map[string]string `json:"hostlists,omitempty"`
	Addresses  map[string]string `json:"addresslists,omitempty"`
	LocalParts map[string]string `json:"localpartlists,omitempty"`

	// Files are the lines of the files that lists name. Under "wildlsearch;FILE" and
	// "nwildlsearch;FILE" they are patterns with their data, in turn.
	Files map[string][]string `json:"files,omitempty"`
	Exist []string            `json:"exist,omitempty"`         // of the files that are asked for, those that are there; sorted
	Users string              `json:"users,omitempty"`         // a table: login names, with "uid gid home"
	Own   []string            `json:"own_addresses,omitempty"` // of the primary's interfaces

	Interfaces []string `json:"interface_addresses,omitempty"` // of the primary's, those that mail comes to

	// HostsFile has the addresses of the names in the primary's /etc/hosts, which go before
	// the DNS for a name in a host list.
	HostsFile map[string][]string `json:"hosts_file,omitempty"`

	Routers []ACLRouter `json:"routers,omitempty"`

	Hostname         string `json:"primary_hostname"`
	ActiveHostname   string `json:"smtp_active_hostname,omitempty"`
	QualifyDomain    string `json:"qualify_domain,omitempty"`
	QualifyRecipient string `json:"qualify_recipient,omitempty"`

	HostLookup           string `json:"host_lookup,omitempty"` // host lists, each
	RejectHosts          string `json:"host_reject_connection,omitempty"`
	HeloVerify           string `json:"helo_verify_hosts,omitempty"`
	HeloTryVerify        string `json:"helo_try_verify_hosts,omitempty"`
	HeloJunk             string `json:"helo_accept_junk_hosts,omitempty"`
	RequireHelo          string `json:"hosts_require_helo,omitempty"`
	UnqualifiedSender    string `json:"sender_unqualified_hosts,omitempty"`
	UnqualifiedRecipient string `json:"recipient_unqualified_hosts,omitempty"`

	HeloChars      string `json:"helo_allow_chars,omitempty"`
	DomainLiterals bool   `json:"allow_domain_literals,omitempty"`
	DisableIPv6    bool   `json:"disable_ipv6,omitempty"` // no AAAA records are looked up
	TrailingDot    bool   `json:"strip_trailing_dot,omitempty"`
	UTF8Domains    bool   `json:"allow_utf8_domains,omitempty"`
	ExcessBrackets bool   `json:"strip_excess_angle_brackets,omitempty"` // in headers
	MaxRecipients  int    `json:"recipients_max,omitempty"`
	MaxReject      bool   `json:"recipients_max_reject,omitempty"`
	Details        bool   `json:"smtp_return_error_details,omitempty"`
}

// ACLStatement is a verb with its conditions and modifiers, in order: Exim's words.
type ACLStatement struct {
	Verb  string         `json:"verb"`
	Where string         `json:"where,omitempty"` // in the primary's files, for the operator
	Items []ACLCondition `json:"items,omitempty"`
}

// ACLCondition is a condition or a modifier: "!domains", "+local_domains". Of ours are
// "unknown" with "defer", "ask" or "ask_else_ignore" for an argument: what the
// operator chose in place of something that can't be followed.
type ACLCondition struct {
	Kind string `json:"kind"` // a leading "!" turns a condition around
	Arg  string `json:"arg,omitempty"`
}

// ACLRouter is one of the routers that verify addresses, with Exim's options.
type ACLRouter struct {
	Name    string            `json:"name"`
	Driver  string            `json:"driver"`
	Options map[string]string `json:"options,omitempty"` // a flag is "true" or "false"
}

// aclStages are the keys of ACL.Stages.
var aclStages = []string{"connect", "helo", "mail", "rcpt", "predata", "data"}

// routerDrivers are those whose outcome is known.
var routerDrivers = []string{"accept", "redirect", "dnslookup", "manualroute", "ipliteral", "unknown"}

// acl is an ACL compiled.
type acl struct {
	*ACL
	lists   map[string][]aclStatement
	strings map[string]*expansion.String // every string of it, by its text
	items   map[string][]listItem        // lists that are constant, by kind and text
	exist   map[string]bool
	tables  map[string]*dict
	users   *dict
	routers []aclRouter
	usesLen bool // content is measured
}

type aclStatement struct {
	*ACLStatement
	n     int
	items []aclItem
}

// aclItem is a condition.
type aclItem struct {
	kind    string
	name    string // of a variable to set
	negated bool
	arg     string
	words   []string // of a list to evaluate: its name and arguments
}

// aclKinds are the conditions and modifiers that are known.
var aclKinds = []string{
	"acl", "authenticated", "condition", "dnslists", "domains", "encrypted", "hosts", "local_parts", "recipients", "sender_domains", "senders", "verify",
	"message", "log_message", "endpass", "set", "unknown",
}

// CheckACLString says why a string of an ACL can't be followed.
func CheckACLString(s string) error {
	_, err := expansion.Parse(s)
	return err
}

func (c *compiler) acl() {
	spec := c.s.spec.ACL
	if spec == nil {
		return
	}
	a := &acl{ACL: spec, lists: map[string][]aclStatement{}, strings: map[string]*expansion.String{}, items: map[string][]listItem{},
		exist: map[string]bool{}, tables: c.tables}
	for stage, list := range spec.Stages {
		if !slices.Contains(aclStages, stage) {
			c.errorf("acl.stages: no stage is called %q", stage)
		}
		if _, ok := spec.Lists[list]; !ok && !strings.Contains(list, "$") {
			c.errorf("acl.stages.%s: no list is called %q", stage, list)
		}
		c.parse(a, "acl.stages."+stage, list)
	}
	for _, f := range spec.Exist {
		a.exist[f] = true
	}
	if spec.Users != "" {
		if list := c.named("acl.users", []string{spec.Users}); len(list) == 1 {
			a.users = list[0]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Lists)) {
		for i := range spec.Lists[name] {
			a.lists[name] = append(a.lists[name], c.statement(a, name, i, &spec.Lists[name][i]))
		}
	}
	for kind, lists := range map[string]map[string]string{"domainlists": spec.Domains, "hostlists": spec.Hosts, "addresslists": spec.Addresses, "localpartlists": spec.LocalParts} {
		for name, text := range lists {
			c.parse(a, "acl."+kind+"."+name, text)
		}
	}
	for name, text := range map[string]string{
		"host_lookup": spec.HostLookup, "host_reject_connection": spec.RejectHosts, "helo_verify_hosts": spec.HeloVerify, "helo_try_verify_hosts": spec.HeloTryVerify,
		"helo_accept_junk_hosts": spec.HeloJunk, "hosts_require_helo": spec.RequireHelo, "sender_unqualified_hosts": spec.UnqualifiedSender,
		"recipient_unqualified_hosts": spec.UnqualifiedRecipient, "smtp_active_hostname": spec.ActiveHostname,
	} {
		c.parse(a, "acl."+name, text)
	}
	for name, lines := range spec.Files {
		for i := 0; strings.HasPrefix(name, "wildlsearch;") && i < len(lines); i += 2 {
			c.parse(a, "acl.files."+name, lines[i])
		}
	}
	for i := range spec.Routers {
		a.routers = append(a.routers, c.router(a, &spec.Routers[i]))
	}
	c.s.acl = a
}

func (c *compiler) parse(a *acl, where, s string) {
	if a.strings[s] != nil {
		return
	}
	p, err := expansion.Parse(s)
	if err != nil {
		c.errorf("%s: %q: %w", where, s, err)
		return
	}
	a.strings[s] = p
	if strings.Contains(s, "message_size") || strings.Contains(s, "max_received_linelength") || strings.Contains(s, "h_") || strings.Contains(s, "header_") {
		a.usesLen = true
	}
}

func (c *compiler) statement(a *acl, list string, n int, s *ACLStatement) aclStatement {
	where := fmt.Sprintf("acl.lists.%s.%d", list, n)
	out := aclStatement{ACLStatement: s, n: n}
	if !slices.Contains([]string{"accept", "defer", "deny", "discard", "drop", "require", "warn"}, s.Verb) {
		c.errorf("%s: unknown verb %q", where, s.Verb)
	}
	c.s.stats.Rules++
	for _, it := range s.Items {
		kind, negated := strings.CutPrefix(it.Kind, "!")
		i := aclItem{kind: kind, negated: negated, arg: it.Arg}
		switch {
		case !slices.Contains(aclKinds, kind):
			c.errorf("%s: unknown condition %q", where, it.Kind)
			continue
		case kind == "unknown":
			switch it.Arg {
			case "defer":
			case "ask", "ask_else_ignore":
				c.s.asks = true
			default:
				c.errorf("%s: unknown: %q is none of defer, ask and ask_else_ignore", where, it.Arg)
			}
		case kind == "set":
			name, value, ok := strings.Cut(it.Arg, "=")
			i.name, i.arg = strings.TrimSpace(name), strings.TrimSpace(value)
			if !ok || !strings.HasPrefix(i.name, "acl_m") && !strings.HasPrefix(i.name, "acl_c") {
				c.errorf("%s: set: %q sets no variable acl_m… or acl_c…", where, it.Arg)
			}
		case kind == "verify":
			if err := CheckACLVerify(it.Arg); err != nil {
				c.errorf("%s: %w", where, err)
			}
			if strings.HasPrefix(it.Arg, "header_syntax") || strings.HasPrefix(it.Arg, "not_blind") || strings.HasPrefix(it.Arg, "header_names_ascii") {
				a.usesLen = true
			}
		case kind == "dnslists":
			c.dnslists(where, i.arg)
		case kind == "acl":
			for _, w := range ACLWords(i.arg) {
				i.words = append(i.words, w)
				c.parse(a, where+": acl", w)
			}
			out.items = append(out.items, i)
			continue
		}
		c.parse(a, where+": "+kind, i.arg)
		out.items = append(out.items, i)
	}
	return out
}

// dnslists notes the zones of a list, as far as they are constant.
func (c *compiler) dnslists(where, list string) {
	for _, item := range expansion.List(list) {
		if strings.HasPrefix(item, "+") || strings.Contains(item, "${") {
			continue
		}
		d := parseDNSList(item)
		for _, z := range []string{d.zone, d.textZone} {
			if err := CheckZone(z); err == nil && !strings.Contains(z, "$") {
				l := c.listOf(strings.TrimSuffix(z, "."))
				if !slices.Contains(l.Uses, "dnslists") {
					l.Uses = append(l.Uses, "dnslists")
				}
				l.Addresses = l.Addresses || d.keys == ""
				l.Names = l.Names || d.keys != ""
			}
		}
	}
}

// ACLWords are the name and the arguments, at most nine, of a list that a condition
// evaluates.
func ACLWords(s string) (words []string) {
	for s = strings.TrimLeft(s, cSpace); s != "" && len(words) < 10; s = strings.TrimLeft(s, cSpace) {
		end := strings.IndexAny(s, cSpace)
		if s[0] == '"' {
			end = quotedEnd(s, 0)
		} else if end < 0 {
			end = len(s)
		}
		word := s[:end]
		if s = s[end:]; word[0] == '"' {
			word = Unquote(word)
		}
		words = append(words, word)
	}
	return words
}

// Unquote takes the quotes off a string of a configuration, with its escapes.
func Unquote(s string) string {
	if len(s) < 2 || s[0] != '"' {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s) && s[i] != '"'; i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		c, n := unescape(s[i:])
		b.WriteByte(c)
		i += n - 1
	}
	return b.String()
}

// unescape reads what follows a backslash, and says how long it is.
func unescape(s string) (c byte, n int) {
	if i := strings.IndexByte("bfnrtv", s[0]); i >= 0 {
		return "\b\f\n\r\t\v"[i], 1
	}
	digits, base, most := s, 8, 3
	if s[0] == 'x' {
		digits, base, most = s[1:], 16, 2
	}
	for n < most && n < len(digits) {
		v, err := strconv.ParseUint(digits[:n+1], base, 16)
		if err != nil {
			break
		}
		c, n = byte(v), n+1
	}
	switch {
	case base == 16:
		return c, n + 1
	case n == 0:
		return s[0], 1
	}
	return c, n
}

// CheckDomain says that s is the name of a domain.
func CheckDomain(s string) bool { return envelope.ValidDomain(s) }

// aclVerifies are the verifications that are known, and whether they take options.
var aclVerifies = map[string]bool{
	"helo": false, "reverse_host_lookup": true, "sender": true, "recipient": true, "header_syntax": false, "header_names_ascii": false, "not_blind": true,
	"certificate": false,
}

// calloutOption is ours: what to do where the primary would ask another server.
const calloutOption = "callout="

// CheckACLVerify says what of a verify condition can't be followed.
func CheckACLVerify(arg string) error {
	what, options, has := strings.Cut(arg, "/")
	what = strings.ToLower(strings.TrimSpace(what))
	takes, known := aclVerifies[what]
	if !known || has && !takes {
		return fmt.Errorf("verify = %s isn't known", arg)
	}
	for o := range strings.SplitSeq(options, "/") {
		switch o = strings.ToLower(strings.TrimSpace(o)); {
		case strings.HasPrefix(o, calloutOption) && what == "recipient" && slices.Contains([]string{"defer", "ask", "ask_else_ignore", "ignore"}, o[len(calloutOption):]):
		case o == "", o == "defer_ok", o == "no_details", o == "success_on_redirect", o == "case_insensitive" && what == "not_blind":
		default:
			return fmt.Errorf("verify = %s: %q asks other servers, or isn't known", arg, o)
		}
	}
	return nil
}
