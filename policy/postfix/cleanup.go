package postfix

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// cleanups are the parameters that smtpd's cleanup(8) goes by, not smtpd.
var cleanups = []string{
	"header_checks", "mime_header_checks", "nested_header_checks", "body_checks", "body_checks_size_limit",
	"mime_boundary_length_limit", "mime_nesting_limit", "disable_mime_input_processing", "message_strip_characters",
	"message_reject_characters", "strict_7bit_headers", "strict_8bitmime", "strict_8bitmime_body", "strict_mime_encoding_domain",
	"header_size_limit", "hopcount_limit",
}

// overrides translates receive_override_options, which switch off some of what
// smtpd does.
func (i *importer) overrides() {
	const parameter = "receive_override_options"
	for _, w := range words(i.set[parameter]) {
		why := ""
		switch strings.ToLower(w) {
		case "no_header_body_checks":
			for _, name := range []string{"header_checks", "mime_header_checks", "nested_header_checks", "body_checks",
				"message_reject_characters", "message_strip_characters"} {
				i.set[name] = ""
			}
			for _, name := range stricts {
				i.set[name] = "no"
			}
			why = "headers and bodies aren't looked at"
		case "no_unknown_recipient_checks":
			i.spec.RejectUnlistedRcpt, i.spec.RejectUnlistedSender, i.everybody = false, false, true
			why = "every address exists"
		case "no_milters":
			i.set["smtpd_milters"] = ""
			why = "no milter decides"
		case "no_address_mappings":
			why = "where accepted mail goes"
		default:
			i.errorf("%s: Postfix knows no %q", parameter, w)
		}
		i.item(parameter, w, fidelity.Exact, why, "")
	}
}

// stricts refuse what breaks the rules of MIME.
var stricts = []string{"strict_7bit_headers", "strict_8bitmime", "strict_8bitmime_body", "strict_mime_encoding_domain"}

const whyReceived = "a rule may match the Received field that the primary adds; its ID, date and TLS remarks aren't imitated"

// checks is one of the lists of header_checks(5).
type checks struct {
	parameter string
	to        *[]string
}

// content translates header_checks(5) and its kin.
func (i *importer) content() {
	c := &i.spec.Content
	c.Hostname = i.set["myhostname"]
	if i.set["smtpd_milters"]+i.set["non_smtpd_milters"] != "" { // KLUDGE_HEADER_LIMIT of cleanup_message.c
		i.spec.Limits.HeaderBytes = min(i.spec.Limits.HeaderBytes, 60000)
	}
	lists := []checks{
		{"header_checks", &c.Header}, {"mime_header_checks", &c.MIMEHeader},
		{"nested_header_checks", &c.NestedHeader}, {"body_checks", &c.Body},
	}
	refuses := slices.ContainsFunc(lists, func(l checks) bool {
		return slices.ContainsFunc(words(i.set[l.parameter]), func(w string) bool {
			name, reason := tableName(w)
			if reason != nil {
				return false
			}
			t, _ := i.table(l.parameter, name)
			return t != nil && t.any(checkRefuses)
		})
	})
	for _, l := range lists {
		for _, w := range words(i.set[l.parameter]) {
			i.contentTable(l, w, refuses)
		}
	}
	c.RejectOctets = i.octets("message_reject_characters", whyRefused, fidelity.Exact)
	c.StripOctets = i.octets("message_strip_characters", whyKept, fidelity.Approximated)
	if c.DisableMIME = i.boolean("disable_mime_input_processing"); !c.DisableMIME {
		i.strict()
		// Also for tables that refuse nothing, or that can't be read.
		c.EnforceNesting = len(c.Header)+len(c.MIMEHeader)+len(c.NestedHeader) == 0 &&
			i.set["header_checks"]+i.set["mime_header_checks"]+i.set["nested_header_checks"] != ""
	}
	if len(c.Header)+len(c.MIMEHeader)+len(c.NestedHeader)+len(c.Body)+len(c.RejectOctets) == 0 &&
		!c.EnforceNesting && !c.Strict7BitHeader && !c.Strict8BitBody && !c.StrictEncoding {
		*c = policy.ContentChecks{Hostname: c.Hostname}
		return
	}
	c.BoundaryLimit = int(i.number("mime_boundary_length_limit", 1))
	c.NestingLimit = int(i.number("mime_nesting_limit", 1))
	if c.BodyLimit = i.number("body_checks_size_limit", 0); c.BodyLimit == 0 {
		c.BodyLimit = math.MaxInt64 // Postfix's 0 is no limit
	}
	for _, name := range []string{"disable_mime_input_processing", "mime_boundary_length_limit", "mime_nesting_limit", "body_checks_size_limit"} {
		i.item(name, i.set[name], fidelity.Exact, "", "")
	}
}

// strict translates the switches, of which strict_8bitmime is two in one.
func (i *importer) strict() {
	c := &i.spec.Content
	on := map[string]bool{}
	for _, name := range stricts {
		if on[name] = i.boolean(name); on[name] {
			i.item(name, "yes", fidelity.Exact, "", "")
		}
	}
	c.Strict7BitHeader = on["strict_7bit_headers"] || on["strict_8bitmime"]
	c.Strict8BitBody = on["strict_8bitmime_body"] || on["strict_8bitmime"]
	c.StrictEncoding = on["strict_mime_encoding_domain"]
}

// What the door does about two octets, whatever the primary's policy is.
const (
	whyRefused = "NUL and a CR inside of a line are refused in any case: 550 5.6.0"
	whyKept    = "NUL and a CR inside of a line are refused (550 5.6.0), not taken out"
)

// octets reads a set of octets. It says why of one that holds any that the door
// refuses, which then is of the class door.
func (i *importer) octets(parameter, why string, door fidelity.Class) []int {
	var list []int
	class, note := fidelity.Exact, ""
	for _, b := range unescape(i.set[parameter]) {
		list = append(list, int(b))
		switch {
		case b >= ' ' && b < 0x7f:
			class, note = fidelity.Approximated, "the Received field that the primary adds holds such characters; its ID, date and TLS remarks aren't imitated"
		case (b == 0 || b == '\r') && class == fidelity.Exact:
			class, note = door, why
		}
	}
	slices.Sort(list)
	if list = slices.Compact(list); len(list) > 0 {
		i.item(parameter, i.set[parameter], class, note, "")
	}
	return list
}

// unescape reads Postfix's (and C's) notation for octets.
func unescape(s string) []byte {
	var b []byte
	for n := 0; n < len(s); n++ {
		if s[n] != '\\' {
			b = append(b, s[n])
			continue
		}
		if n++; n == len(s) {
			break
		}
		if at := strings.IndexByte("abfnrtv", s[n]); at >= 0 {
			b = append(b, "\a\b\f\n\r\t\v"[at])
			continue
		}
		end := n
		for end < len(s) && end < n+3 && s[end] >= '0' && s[end] <= '7' {
			end++
		}
		if end == n {
			b = append(b, s[n])
			continue
		}
		o, _ := strconv.ParseUint(s[n:end], 8, 16)
		b = append(b, byte(o))
		n = end - 1
	}
	return b
}

// contentTable translates one table. Once any table refuses, all are needed:
// the first that matches decides, even if it is to do nothing.
func (i *importer) contentTable(l checks, w string, refuses bool) {
	name, reason := tableName(w)
	var t *Table
	if reason == nil {
		if t, reason = i.table(l.parameter, name); t == nil && reason == nil {
			return // the import has failed
		}
	}
	if reason == nil {
		i.noteFilters(t)
	}
	if reason == nil && refuses && (t.Kind == Indexed || t.Kind == Networks) {
		reason = fmt.Errorf("tables of type %s hold whole headers and lines only; use regexp or pcre", t.Type)
	}
	if reason == nil && refuses && !i.keep(l.to, name, t, true) {
		_, reason = t.spec(true)
	}
	switch {
	case reason != nil:
		i.item(l.parameter, name, fidelity.NotReplicated, reason.Error(), fidelity.Later)
	case !t.any(checkRefuses):
		i.item(l.parameter, name, fidelity.Exact, "nothing in it refuses", "")
	case l.parameter == "header_checks" && !t.skipsReceived():
		i.item(l.parameter, name, fidelity.Approximated, whyReceived, "")
	default:
		i.item(l.parameter, name, fidelity.Exact, "", "")
	}
}

// checkRefuses says that an action of header_checks(5) changes what becomes of
// the message.
func checkRefuses(value string) bool {
	word := strings.TrimLeft(value, spaces)
	word = word[:strings.IndexAny(word+" ", spaces)]
	switch strings.ToUpper(word) {
	case "REJECT", "DISCARD", "HOLD":
		return true
	}
	return strings.Contains(word, "$")
}

// skipsReceived says that no rule which refuses can match a Received field.
func (t *Table) skipsReceived() bool {
	guards, inside := 0, []bool{}
	for n := range t.Rules {
		r := &t.Rules[n]
		other := r.startsOtherwise("received:")
		switch {
		case r.Op == If:
			if inside = append(inside, other); other {
				guards++
			}
		case r.Op == Endif && len(inside) > 0:
			if inside[len(inside)-1] {
				guards--
			}
			inside = inside[:len(inside)-1]
		case r.Op == Match && checkRefuses(r.Value) && guards == 0 && !other:
			return false
		}
	}
	return t.Kind == Patterns
}

// startsOtherwise says that the pattern is anchored at literals that text, in
// lower case, doesn't start with: "^Subject:" or "^(To|Cc):". False is also
// what it says in doubt.
func (r *Rule) startsOtherwise(text string) bool {
	p, anchored := strings.CutPrefix(r.Pattern, "^")
	if r.Not || !anchored || strings.Contains(r.Flags, "m") || strings.Contains(outsideGroups(p), "|") {
		return false
	}
	heads := []string{p}
	if group, ok := strings.CutPrefix(p, "("); ok {
		group, _, closed := strings.Cut(strings.TrimPrefix(group, "?:"), ")")
		if !closed || strings.ContainsAny(group, "([\\") {
			return false
		}
		heads = strings.Split(group, "|")
	}
	return !slices.ContainsFunc(heads, func(h string) bool {
		n := 0
		for n < len(h) && (isAlnum(h[n]) || h[n] == '-' || h[n] == ':') {
			n++
		}
		if n > 0 && n < len(h) && strings.IndexByte("?*{", h[n]) >= 0 {
			n--
		}
		return n == 0 || strings.HasPrefix(text, strings.ToLower(h[:n]))
	})
}

// outsideGroups leaves out what stands in parentheses.
func outsideGroups(p string) string {
	var b strings.Builder
	depth := 0
	for n := 0; n < len(p); n++ {
		switch p[n] {
		case '\\':
			n++
		case '(':
			depth++
		case ')':
			depth--
		default:
			if depth <= 0 {
				b.WriteByte(p[n])
			}
		}
	}
	return b.String()
}
