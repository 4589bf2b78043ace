package mailauth

import "strings"

// Author is who the From field names.
type Author struct {
	User, Domain string
	Domains      []string // of all the addresses, in lower case, each once
	Fields       int      // how many From fields there are
}

func (a Author) known() bool { return a.User != "" && a.Domain != "" }

// author reads the first From field. The domain is in lower case.
func (h *headerReader) author() Author {
	values := h.all("From")
	a := Author{Fields: len(values)}
	if len(values) == 0 {
		return a
	}
	for i, addr := range addresses(values[0]) {
		user, domain := addr, ""
		if at := strings.LastIndexByte(addr, '@'); at >= 0 {
			user, domain = addr[:at], strings.ToLower(strings.TrimSuffix(addr[at+1:], "."))
		}
		if i == 0 {
			a.User, a.Domain = user, domain
		}
		if domain != "" && !contains(a.Domains, domain) {
			a.Domains = append(a.Domains, domain)
		}
	}
	return a
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// addresses is the addr-specs of an address list: what stands in angle
// brackets, or the words themselves; comments and the names before brackets
// don't count.
func addresses(s string) []string {
	var out []string
	var plain, angle strings.Builder
	inAngle, hadAngle := false, false
	flush := func() {
		addr := plain.String()
		if hadAngle {
			addr = angle.String()
		}
		if addr != "" {
			out = append(out, addr)
		}
		plain.Reset()
		angle.Reset()
		inAngle, hadAngle = false, false
	}
	depth := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		b := &plain
		if inAngle {
			b = &angle
		}
		switch {
		case c == '\\' && i+1 < len(s):
			if i++; depth == 0 {
				b.WriteByte(s[i])
			}
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0 || c == ' ' || c == '\t' || c == '\r' || c == '\n':
		case c == '"':
			end := i + 1
			for end < len(s) && s[end] != '"' {
				if s[end] == '\\' {
					end++
				}
				end++
			}
			b.WriteString(s[min(i+1, len(s)):min(end, len(s))])
			i = end
		case c == '<':
			inAngle, hadAngle = true, true
		case c == '>':
			inAngle = false
		case c == ',' || c == ';':
			flush()
		case c == ':' && !inAngle: // the name of a group
			plain.Reset()
		default:
			b.WriteByte(c)
		}
	}
	flush()
	return out
}
