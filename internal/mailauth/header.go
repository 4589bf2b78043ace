package mailauth

import (
	"bytes"
	"strings"
)

// field is a header field as it came, without the CRLF that ends it.
type field struct {
	name  string
	raw   []byte
	colon int
}

func (f field) value() string { return string(f.raw[f.colon+1:]) }

// headerReader collects header fields until the empty line.
type headerReader struct {
	limit    int // octets; 0: none
	fields   []field
	tooLarge bool
	done     bool

	size    int
	line    []byte // not ended yet
	pending []byte // the field before it
}

// read takes octets and returns those that belong to the body.
func (h *headerReader) read(p []byte) []byte {
	for len(p) > 0 && !h.done {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i+1]
		}
		p = p[len(part):]
		if h.size += len(part); h.limit > 0 && h.size > h.limit {
			h.tooLarge = true
		}
		if !h.tooLarge || len(h.line) < 2 {
			h.line = append(h.line, part...)
		}
		if i >= 0 {
			h.endLine()
		}
	}
	return p
}

func (h *headerReader) endLine() {
	line := h.line
	h.line = nil
	switch {
	case string(line) == "\r\n" || string(line) == "\n":
		h.end()
	case h.tooLarge:
	case line[0] == ' ' || line[0] == '\t':
		h.pending = append(h.pending, line...)
	default:
		h.flush()
		h.pending = line
	}
}

// end is the end of the header.
func (h *headerReader) end() {
	h.flush()
	h.done, h.line = true, nil
}

// flush keeps the pending field, if it is one. As in opendkim a name with a
// semicolon in it is none, and white space after the name is gone: Postfix
// doesn't show it to a milter.
func (h *headerReader) flush() {
	raw := bytes.TrimSuffix(bytes.TrimSuffix(h.pending, []byte("\n")), []byte("\r"))
	h.pending = nil
	colon := bytes.IndexByte(raw, ':')
	if colon <= 0 || bytes.IndexByte(raw[:colon], ';') >= 0 {
		return
	}
	name := bytes.TrimRight(raw[:colon], " \t")
	raw = append(name, raw[colon:]...)
	h.fields = append(h.fields, field{name: string(name), raw: raw, colon: len(name)})
}

// all is the values of the fields of a name.
func (h *headerReader) all(name string) []string {
	var out []string
	for _, f := range h.fields {
		if strings.EqualFold(f.name, name) {
			out = append(out, f.value())
		}
	}
	return out
}

// WellFormed says that the fields are there that RFC 5322 §3.6 demands, and that
// none is there twice of those that opendmarc looks at.
func (v *Verifier) WellFormed() bool {
	for name, least := range map[string]int{"From": 1, "Date": 1, "Reply-To": 0, "To": 0, "Cc": 0, "Bcc": 0, "Message-Id": 0, "In-Reply-To": 0, "References": 0, "Subject": 0} {
		if n := len(v.header.all(name)); n < least || n > 1 {
			return false
		}
	}
	return true
}
