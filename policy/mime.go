package policy

import (
	"bytes"
	"strings"
)

// mimeState is where in a message a record stands.
type mimeState uint8

const (
	mimePrimary   mimeState = iota // the message's header
	mimeMultipart                  // the header of a part
	mimeNested                     // the header of an attached message
	mimeBody
)

// contentType is what a Content-Type says of a part, as far as it matters.
type contentType struct {
	text, multipart, message bool
	nested                   bool // message/rfc822 or message/global: a header follows
}

// boundary separates the parts of a multipart.
type boundary struct {
	text   string
	digest bool // the parts are messages unless they say otherwise
}

const (
	defaultBoundary = 2048
	defaultNesting  = 100
	defaultBody     = 51200
)

func orDefault[T int | int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// record takes a line, or a piece of one that goes on (cont), as
// mime_state_update does.
func (c *content) record(rec []byte, cont bool) {
	if !c.done {
		rec = c.octets(rec)
	}
	if c.done {
		return
	}
	prev := c.cont
	c.cont = cont
	if c.state != mimeBody {
		if len(c.header) > 0 {
			if prev || len(rec) > 0 && isBlank(rec[0]) {
				c.continueHeader(rec, !prev)
				return
			}
			c.flushHeader()
		}
		if n := headerName(rec); n > 0 {
			c.header = append(c.header[:0], rec[:n]...)
			c.header = append(c.header, bytes.TrimLeft(rec[n:], " \t")...)
			return
		}
		c.endHeader(rec)
	}
	if len(c.stack) > 0 && !prev && len(rec) > 2 && rec[0] == '-' && rec[1] == '-' {
		c.boundary(rec[2:])
	}
	c.bodyLine(rec)
}

// continueHeader appends to the header under way, up to the limit.
func (c *content) continueHeader(rec []byte, fold bool) {
	limit := c.s.snap.spec.Limits.HeaderBytes
	if limit > 0 && len(c.header) >= limit {
		return
	}
	if fold {
		c.header = append(c.header, '\n')
	}
	c.header = append(c.header, rec...)
}

// headerName is the length of the field name that a line starts with, 0 when
// it is no header.
func headerName(line []byte) int {
	n := bytes.IndexByte(line, ':')
	if n <= 0 {
		return 0
	}
	name := bytes.TrimRight(line[:n], " \t")
	for _, b := range name {
		if b <= ' ' || b >= 0x7f {
			return 0
		}
	}
	return len(name)
}

// flushHeader looks at a whole header.
func (c *content) flushHeader() {
	h := c.header
	if len(h) == 0 {
		return
	}
	c.header = h[:0]
	spec, tables := &c.s.snap.spec.Content, &c.s.snap.content
	name := strings.ToLower(string(h[:bytes.IndexByte(h, ':')]))
	if name == "content-type" && !spec.DisableMIME {
		c.contentType(string(h[len(name)+1:]))
	}
	state := c.state
	switch name {
	case "content-description", "content-disposition", "content-id", "content-transfer-encoding", "content-type", "mime-version":
		state = mimeMultipart
	}
	if name == "received" {
		c.hops++
	}
	switch state {
	case mimePrimary:
		dropped := c.act(kindHeaderChecks, tables.header, h)
		if limit := c.s.snap.spec.Limits.Hops; name == "received" && !dropped && limit > 0 && c.hops >= limit && !c.discard {
			c.done, c.looping = true, true
		}
	case mimeMultipart:
		c.act(kindMIMEChecks, tables.mime, h)
	case mimeNested:
		c.act(kindNestedChecks, tables.nested, h)
	}
}

// endHeader takes the line that ends a header.
func (c *content) endHeader(rec []byte) {
	was := c.state
	c.state = mimeBody
	if len(rec) > 0 { // no header and no empty line: the body has begun
		if was == mimePrimary {
			c.bodyLine(nil)
		}
		return
	}
	c.offset = 0
	switch {
	case c.ctype.nested:
		c.state, c.ctype = mimeNested, contentType{text: true}
	case c.ctype.multipart:
		c.ctype = contentType{}
	}
}

// boundary looks whether a line of the body ends a part.
func (c *content) boundary(rest []byte) {
	for i := len(c.stack) - 1; i >= 0; i-- {
		b := c.stack[i]
		if !bytes.HasPrefix(rest, []byte(b.text)) {
			continue
		}
		c.stack = c.stack[:i+1]
		if bytes.HasPrefix(rest[len(b.text):], []byte("--")) {
			c.stack = c.stack[:i]
			c.state, c.ctype = mimeBody, contentType{}
			return
		}
		c.state, c.ctype = mimeMultipart, contentType{text: !b.digest, message: b.digest, nested: b.digest}
		return
	}
}

// bodyLine looks at a record of the body.
func (c *content) bodyLine(rec []byte) {
	spec := &c.s.snap.spec.Content
	if c.offset < orDefault(spec.BodyLimit, defaultBody) {
		c.act(kindBodyChecks, c.s.snap.content.body, rec)
	}
	c.offset += int64(len(rec)) + 1
}

// contentType reads the value of a Content-Type.
func (c *content) contentType(value string) {
	spec := &c.s.snap.spec.Content
	is := func(tok []token, i int, text string) bool {
		return i < len(tok) && tok[i].kind == 't' && strings.EqualFold(tok[i].text, text)
	}
	tok, rest, ok := tokens(value)
	if !ok || len(tok) == 0 {
		c.ctype = contentType{}
		return
	}
	sub := len(tok) >= 3 && tok[1].kind == '/'
	switch {
	case is(tok, 0, "text"):
		c.ctype = contentType{text: true}
	case is(tok, 0, "message"):
		c.ctype = contentType{message: true, nested: sub && (is(tok, 2, "rfc822") || is(tok, 2, "global"))}
	case is(tok, 0, "multipart"):
		c.ctype = contentType{multipart: true}
		digest := sub && is(tok, 2, "digest")
		for {
			if tok, rest, ok = tokens(rest); !ok {
				return
			}
			if len(tok) < 3 || !is(tok, 0, "boundary") || tok[1].kind != '=' {
				continue
			}
			if len(c.stack)-1 > int(orDefault(spec.NestingLimit, defaultNesting)) {
				c.tooNested = c.tooNested || c.s.snap.content.headers()
				continue
			}
			text := tok[2].text
			text = text[:min(len(text), int(orDefault(spec.BoundaryLimit, defaultBoundary)))]
			c.stack = append(c.stack, boundary{text, digest})
		}
	}
}

// headers says that any table is about headers.
func (c *contentChecks) headers() bool { return len(c.header)+len(c.mime)+len(c.nested) > 0 }

// token is one of RFC 2045 §5.1: kind is 't' for a token, '"' for a quoted
// string, else the special character itself.
type token struct {
	kind byte
	text string
}

// tokens reads up to three tokens before the next ";". ok is false at the end.
func tokens(s string) (toks []token, rest string, ok bool) {
	add := func(t token) {
		if len(toks) < 3 {
			toks = append(toks, t)
		}
	}
	i := 0
	for i < len(s) {
		ch := s[i]
		i++
		switch {
		case strings.IndexByte(" \t\r\n", ch) >= 0:
		case ch == ';':
			return toks, s[i:], true
		case ch == '(':
			i = skipComment(s, i)
		case ch == '"':
			var text string
			text, i = quotedString(s, i)
			add(token{'"', text})
		case isTSpecial(ch):
			add(token{ch, string(rune(ch))})
		default:
			from := i - 1
			for i < len(s) && s[i] != ' ' && !isTSpecial(s[i]) {
				i++
			}
			add(token{'t', s[from:i]})
		}
	}
	return toks, "", len(toks) > 0
}

func isTSpecial(b byte) bool {
	return b < ' ' || b == 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=`, b) >= 0
}

// skipComment returns the index behind a comment, whose "(" is behind us.
func skipComment(s string, i int) int {
	for depth := 1; i < len(s) && depth > 0; i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		case '\\':
			i++
		}
	}
	return min(i, len(s))
}

// quotedString reads up to the closing quote and returns the index behind it.
func quotedString(s string, i int) (string, int) {
	var b []byte
	for ; i < len(s); i++ {
		switch ch := s[i]; ch {
		case '"':
			return string(b), i + 1
		case '\n': // unfold
			b = bytes.TrimRight(b, " \t\r\n")
			continue
		case '\\':
			if i++; i == len(s) {
				return string(b), i
			}
		}
		b = append(b, s[i])
	}
	return string(b), i
}
