package policy

import (
	"fmt"
	"strings"
)

// ReplyTemplate makes a template for DNSBL.Replies from an operator's reply, which
// may lack the code.
func ReplyTemplate(reply string) (template string, err error) {
	template = reply
	if code, _, _ := strings.Cut(reply, " "); !isReplyCode(code) && code != "$rbl_code" {
		if len(code) == 3 && allDigits(code) {
			return "", fmt.Errorf("reply code %s refuses nothing; use 4xx or 5xx", code)
		}
		template = "$rbl_code " + reply
	}
	if _, ok := expand(template, func(string) string { return "" }); !ok || !validText(template) {
		return "", fmt.Errorf("reply %q can't be read; write text on one line, with names such as $rbl_domain, $rbl_reason, $client_address, and $$ for a dollar sign", reply)
	}
	return template, nil
}

// expand fills in a template of postconf(5)'s rbl_reply_maps: $name, ${name},
// ${name?text} and ${name:text}, also with the text in braces. ok is false for
// a template that can't be read. Unknown names expand to nothing.
func expand(template string, value func(name string) string) (text string, ok bool) {
	var b strings.Builder
	for template != "" {
		before, rest, found := strings.Cut(template, "$")
		b.WriteString(before)
		if !found {
			return b.String(), true
		}
		if rest, found = strings.CutPrefix(rest, "$"); found {
			b.WriteByte('$')
			template = rest
			continue
		}
		body, braced := rest, strings.HasPrefix(rest, "{")
		if braced {
			end := closing(rest)
			if end < 0 {
				return "", false
			}
			body, template = rest[1:end], rest[end+1:]
		}
		n := 0
		for n < len(body) && (isNameByte(body[n])) {
			n++
		}
		name, after := body[:n], body[n:]
		if name == "" {
			return "", false
		}
		if !braced {
			b.WriteString(value(name))
			template = after
			continue
		}
		part, fine := conditional(after, value(name))
		if !fine {
			return "", false
		}
		part, fine = expand(part, value)
		if !fine {
			return "", false
		}
		if after == "" {
			part = value(name)
		}
		b.WriteString(part)
	}
	return b.String(), true
}

// conditional chooses the text after a name: "?yes", ":no", "?{yes}:{no}". s stood
// between braces.
func conditional(s, value string) (string, bool) {
	if s == "" {
		return "", true
	}
	op, text := s[0], s[1:]
	if op != '?' && op != ':' {
		return "", false
	}
	no := ""
	if strings.HasPrefix(text, "{") {
		end := closing(text) // there is one: braces are paired in s
		rest := text[end+1:]
		text = text[1:end]
		if rest != "" {
			if !strings.HasPrefix(rest, ":{") || closing(rest[1:]) != len(rest)-2 {
				return "", false
			}
			no = rest[2 : len(rest)-1]
		}
	}
	if (op == '?') == (value != "") {
		return text, true
	}
	return no, true
}

// closing is the index of the brace that closes the one s starts with.
func closing(s string) int {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func isNameByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// expand fills in a template from vars and the session.
func (e *eval) expand(template string, vars map[string]string) string {
	value := func(name string) string {
		v, found := vars[name]
		if !found {
			v = e.attribute(name)
		}
		return filtered(v)
	}
	text, ok := expand(template, value)
	if !ok {
		text, _ = expand(defaultRBLReply, value)
	}
	return text
}

func (e *eval) attribute(name string) string {
	switch name {
	case "client":
		return e.namaddr()
	case "client_address":
		return e.client.Addr.String()
	case "client_name":
		return e.client.Name
	case "reverse_client_name":
		return e.client.ReverseName
	case "helo_name":
		return e.client.Helo
	case "sender", "sender_name", "sender_domain":
		return part(e.sender.raw, strings.TrimPrefix(name, "sender"), e.hasSender)
	case "recipient", "recipient_name", "recipient_domain":
		return part(e.rcpt.raw, strings.TrimPrefix(name, "recipient"), e.hasRcpt)
	}
	return ""
}

func part(addr, suffix string, has bool) string {
	i := strings.LastIndexByte(addr, '@')
	switch {
	case !has:
		return ""
	case suffix == "_domain" && i < 0:
		return ""
	case suffix == "_domain":
		return addr[i+1:]
	case addr == "":
		return "<>"
	case suffix == "_name" && i >= 0:
		return addr[:i]
	}
	return addr
}

// filtered reduces a peer's text to printable ASCII, as Postfix's
// smtpd_expand_filter does.
func filtered(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x20 && r < 0x7f || r == '\t' {
			return r
		}
		return '_'
	}, s)
}
