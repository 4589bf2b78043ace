// Package authres writes and removes Authentication-Results fields, RFC 8601.
//
//	Authentication-Results: mx2.example.net;
//		spf=pass smtp.mailfrom=example.org;
//		dkim=pass header.d=example.org
//
// The first word says who checked. Whoever reads such fields believes those that
// name a server of its own, so that server removes what arrives under its name
// (§5): anybody can write one.
//
// It changes nothing else. A field that names another server stays, and so does a
// DKIM signature over it; a signature over a field that was removed breaks, as it
// should: nobody but us may have written that field.
package authres

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Field is the field for a message, its CRLF included. id names us.
func Field(id string, e *envelope.Envelope) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Authentication-Results: %s", id)
	none := true
	if a := &e.Auth; a.SPF != "" {
		property, value := "mailfrom", e.From.Domain
		if e.From.Null() {
			property, value = "helo", e.Client.Helo
		}
		fmt.Fprintf(&b, ";\r\n\tspf=%s smtp.%s=%s", a.SPF, property, quoted(value))
		none = false
	}
	for _, s := range e.Auth.DKIM {
		fmt.Fprintf(&b, ";\r\n\tdkim=%s header.d=%s", s.Result, quoted(s.Domain))
		none = false
	}
	switch {
	case none && e.Auth.Checked:
		b.WriteString(";\r\n\tdkim=none")
	case none:
		b.WriteString("; none")
	}
	return b.String() + "\r\n"
}

// maxValue bounds a value that a client chose.
const maxValue = 255

// quoted is a value of RFC 8601 §2.2: a token of RFC 2045, or a quoted string.
func quoted(s string) string {
	s = s[:min(len(s), maxValue)]
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`()<>@,;:\"/[]?=`, r) }) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r > '~':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// Strip reads a message without the fields that claim to be from the server of
// that name. It holds no more than the beginning of one field.
func Strip(message io.Reader, id string) io.Reader {
	return &stripper{in: bufio.NewReaderSize(message, maxLine), id: strings.TrimSuffix(id, ".")}
}

const (
	maxLine = 32 << 10 // of which the first part tells what a line is
	// maxClaim is the part of a field within which it says whom it is from. One
	// that doesn't is removed: it is no field that anybody writes in earnest.
	maxClaim = 64 << 10
)

// stripper is a state machine over lines.
type stripper struct {
	in  *bufio.Reader
	id  string
	out []byte // to be read
	err error  // … and then this

	begun   bool // there was a line
	body    bool
	inLine  bool   // the line before was longer than the buffer
	keep    bool   // what becomes of the rest of the field
	claim   []byte // a field of that name, while it isn't known whose it is
	pending bool   // … there is one
}

func (s *stripper) Read(p []byte) (int, error) {
	for len(s.out) == 0 {
		switch {
		case s.err != nil:
			return 0, s.err
		case s.body:
			return s.in.Read(p)
		}
		s.step()
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

// step takes one line of the header, or a part of a long one.
func (s *stripper) step() {
	line, err := s.in.ReadSlice('\n')
	goesOn := s.inLine
	s.inLine = errors.Is(err, bufio.ErrBufferFull)
	if err != nil && !s.inLine {
		s.err = err
	}
	switch {
	case len(line) == 0:
	case goesOn, s.begun && (line[0] == ' ' || line[0] == '\t'):
		s.more(line)
	default:
		s.begun = true
		s.decide()
		name, _, isField := bytes.Cut(line, []byte(":"))
		name = bytes.TrimRight(name, " \t")
		s.keep = true
		s.body = !isField || !isName(name) // the line that ends the header, empty or not
		if s.pending = !s.body && bytes.EqualFold(name, []byte("Authentication-Results")); s.pending {
			s.claim = append(s.claim[:0], line...)
		} else {
			s.out = append(s.out, line...)
		}
	}
	if s.err != nil {
		s.decide()
	}
}

// more takes a further part of a field.
func (s *stripper) more(line []byte) {
	if s.pending && len(s.claim)+len(line) <= maxClaim {
		s.claim = append(s.claim, line...)
		return
	}
	s.decide()
	if s.keep {
		s.out = append(s.out, line...)
	}
}

// decide looks whose the pending field is, if there is one.
func (s *stripper) decide() {
	if !s.pending {
		return
	}
	s.pending = false
	_, value, _ := strings.Cut(string(s.claim), ":")
	server, ok := serverOf(value)
	if s.keep = ok && !strings.EqualFold(strings.TrimSuffix(server, "."), s.id); s.keep {
		s.out = append(s.out, s.claim...)
	}
}

// serverOf is the authserv-id, with which a field's value begins; false where there
// is none that can be read.
func serverOf(value string) (string, bool) {
	for value != "" {
		switch c := value[0]; {
		case strings.IndexByte(" \t\r\n\v\f", c) >= 0:
			value = value[1:]
		case c == '(':
			n := envelope.CommentLen(value)
			if n == 0 {
				return "", false
			}
			value = value[n:]
		case c == '"':
			return unquote(value[1:])
		default:
			end := strings.IndexAny(value, " \t\r\n\v\f()<>@,;:\\\"/[]?=")
			if end < 0 {
				end = len(value)
			}
			server := value[:end]
			return server, server != "" && !strings.ContainsFunc(server, func(r rune) bool { return r < ' ' || r == 0x7f })
		}
	}
	return "", false
}

// unquote reads a quoted string, without the quote that opens it.
func unquote(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\r', '\n': // folding
		case '"':
			return strings.TrimSpace(b.String()), true
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// isName says that s is RFC 5322 §3.6.8's field-name.
func isName(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(s) > 0
}
