package policy

import (
	"fmt"
	"slices"
	"strings"
)

// verifyHeader applies a check to the message's header. Why it fails is told only
// where the primary tells it.
func (r *aclRun) verifyHeader(check func([]headerField) string) outcome {
	why := check(r.aclState.header.fields())
	if why == "" {
		return aclOK
	}
	if r.acl.Details {
		r.user = "Rejected after DATA: " + why
	} else {
		r.verifyMessage = why
	}
	return aclFail
}

// headerNames wants names in ASCII.
func headerNames(fields []headerField) string {
	for _, f := range fields {
		if strings.ContainsFunc(f.name, func(c rune) bool { return c < 33 || c > 126 }) {
			return "Invalid character in header \"" + printable(f.name, false) + "\" found"
		}
	}
	return ""
}

// addressFields are those that must hold addresses.
var addressFields = []string{"bcc", "cc", "from", "reply-to", "sender", "to", "resent-bcc", "resent-cc", "resent-from", "resent-reply-to", "resent-sender", "resent-to"}

// headerSyntax wants addresses where addresses belong.
func headerSyntax(fields []headerField) string {
	for _, f := range fields {
		if !slices.Contains(addressFields, f.name) {
			continue
		}
		if why := addressList(f.value); why != "" {
			return fmt.Sprintf("%s in %q header", why, f.name)
		}
	}
	return ""
}

// addressList says what is wrong with a field's addresses, "" for nothing: RFC 5322
// §3.4, and no address without a domain.
func addressList(s string) string {
	for _, e := range splitAddresses(s) {
		if e = strings.TrimSpace(uncommented(e)); e == "" {
			continue
		}
		if why := addressForm(e); why != "" {
			return why
		}
	}
	return ""
}

// splitAddresses splits at commas, and takes the names of groups off.
func splitAddresses(s string) (all []string) {
	start, depth, angle := 0, 0, false
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		case angle:
		case c == ':':
			start = i + 1 // of a group
		case c == ',' || c == ';':
			all = append(all, s[start:i])
			start = i + 1
		}
	}
	return append(all, s[min(start, len(s)):])
}

// uncommented is s without comments.
func uncommented(s string) string {
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			if i++; depth == 0 {
				b.WriteByte(c)
				b.WriteByte(s[i])
			}
			continue
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
			continue
		case c == ')' && !quoted && depth > 0:
			depth--
			continue
		}
		if depth == 0 {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// addressForm says what is wrong with "phrase <address>" or an address.
func addressForm(e string) string {
	bare := e
	if i := strings.IndexByte(outsideQuotes(e), '<'); i >= 0 {
		j := strings.LastIndexByte(e, '>')
		switch {
		case j < i:
			return "missing or malformed local part"
		case strings.TrimSpace(e[j+1:]) != "":
			return "malformed address"
		}
		bare = strings.TrimSpace(e[i+1 : j])
		if strings.ContainsAny(outsideQuotes(e[:i]), "@,;:[]") {
			return "malformed address"
		}
	}
	at := strings.LastIndexByte(outsideQuotes(bare), '@')
	if bare == "" {
		return "empty address"
	}
	if at < 0 {
		return "unqualified address not permitted"
	}
	local, domain := strings.TrimSpace(bare[:at]), strings.TrimSpace(bare[at+1:])
	if strings.HasPrefix(bare, "@") {
		if _, after, routed := strings.Cut(bare, ":"); routed {
			return addressForm(after)
		}
		return "missing or malformed local part"
	}
	if local == "" || strings.ContainsAny(outsideQuotes(local), " \t@()<>,;:[]\\") || strings.HasPrefix(local, ".") {
		return "missing or malformed local part"
	}
	if !strings.HasPrefix(domain, "[") && !(&acl{ACL: &ACL{}}).validDomain(domain) {
		return "domain missing or malformed"
	}
	return ""
}

// outsideQuotes is s with what is quoted blotted out.
func outsideQuotes(s string) string {
	b := []byte(s)
	quoted := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\' && i+1 < len(b):
			b[i], b[i+1] = '_', '_'
			i++
		case b[i] == '"':
			quoted = !quoted
			b[i] = '_'
		case quoted:
			b[i] = '_'
		}
	}
	return string(b)
}
