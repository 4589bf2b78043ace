package policy

import (
	"bytes"
	"cmp"
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

// contentType is the type of a part, as far as it matters.
type contentType uint8

const (
	typeOther contentType = iota
	typeMultipart
	typeRFC822  // message/rfc822
	typeGlobal  // message/global
	typePartial // message/partial and message/external-body
)

// encoding is the Content-Transfer-Encoding of a part.
type encoding uint8

const (
	enc7Bit encoding = iota
	enc8Bit
	encBinary
	encBase64
	encQuoted
)

var encodings = []string{enc7Bit: "7bit", enc8Bit: "8bit", encBinary: "binary", encBase64: "base64", encQuoted: "quoted-printable"}

// Faults of a message as such, the worst first.
const (
	faultNesting = iota
	faultHeader8Bit
	faultBody8Bit
	faultEncoding
)

type fault struct{ kind, text string }

var faults = [...]fault{
	faultNesting:    {kindNesting, "MIME nesting exceeds safety limit"},
	faultHeader8Bit: {kindHeader8Bit, "improper use of 8-bit data in message header"},
	faultBody8Bit:   {kindBody8Bit, "improper use of 8-bit data in message body"},
	faultEncoding:   {kindEncoding, "invalid message/* or multipart/* encoding domain"},
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

// record takes a line, or a piece of one that goes on (cont), as
// mime_state_update does.
func (c *content) record(rec []byte, cont bool) {
	if c.done {
		return
	}
	if rec = c.octets(rec); c.done {
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
	if c.s.snap.spec.Content.Strict8BitBody && c.encoding == enc7Bit && !c.faulty[faultBody8Bit] {
		c.faulty[faultBody8Bit] = is8Bit(rec)
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
	if !spec.DisableMIME {
		switch name {
		case "content-type":
			c.contentType(string(h[len(name)+1:]))
		case "content-transfer-encoding":
			c.encodingField(string(h[len(name)+1:]))
		}
	}
	if spec.Strict7BitHeader && is8Bit(h) {
		c.faulty[faultHeader8Bit] = true
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
		if name == "received" && !dropped && !c.discard && c.s.snap.tooFar(c.hops) {
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
	c.checkEncoding()
	was := c.state
	c.state = mimeBody
	if len(rec) > 0 { // no header and no empty line: the body has begun
		if was == mimePrimary {
			c.bodyLine(nil)
		}
		return
	}
	c.offset = 0
	switch c.ctype {
	case typeRFC822, typeGlobal:
		c.enter(mimeNested, typeOther)
	case typeMultipart:
		c.enter(mimeBody, typeOther)
	}
}

// enter begins a header or a body whose encoding is not yet known.
func (c *content) enter(state mimeState, ctype contentType) {
	c.state, c.ctype, c.encoding = state, ctype, enc7Bit
}

// checkEncoding looks at the encoding of what holds parts or a message: these
// are encoded, not the whole.
func (c *content) checkEncoding() {
	if !c.s.snap.spec.Content.StrictEncoding {
		return
	}
	encoded := c.encoding == encBase64 || c.encoding == encQuoted
	switch c.ctype {
	case typePartial:
		c.faulty[faultEncoding] = c.faulty[faultEncoding] || !encoded && c.encoding != enc7Bit
	case typeRFC822, typeMultipart:
		c.faulty[faultEncoding] = c.faulty[faultEncoding] || encoded
	}
}

// boundary checks whether a line of the body ends a part.
func (c *content) boundary(rest []byte) {
	for i := len(c.stack) - 1; i >= 0; i-- {
		b := c.stack[i]
		if !bytes.HasPrefix(rest, []byte(b.text)) {
			continue
		}
		c.stack = c.stack[:i+1]
		if bytes.HasPrefix(rest[len(b.text):], []byte("--")) {
			c.stack = c.stack[:i]
			c.enter(mimeBody, typeOther)
			return
		}
		if c.enter(mimeMultipart, typeOther); b.digest {
			c.ctype = typeRFC822
		}
		return
	}
}

// bodyLine looks at a record of the body.
func (c *content) bodyLine(rec []byte) {
	spec := &c.s.snap.spec.Content
	if c.offset < cmp.Or(spec.BodyLimit, defaultBody) {
		c.act(kindBodyChecks, c.s.snap.content.body, rec)
	}
	c.offset += int64(len(rec)) + 1
}

// contentType reads the value of a Content-Type.
func (c *content) contentType(value string) {
	spec := &c.s.snap.spec.Content
	tok, rest, ok := tokens(value, tspecials)
	if !ok || len(tok) == 0 {
		c.ctype = typeOther
		return
	}
	sub := ""
	if len(tok) >= 3 && tok[1].kind == '/' && tok[2].kind == 't' {
		sub = strings.ToLower(tok[2].text)
	}
	switch { // any other type leaves what was said before
	case tok[0].is("text"):
		c.ctype = typeOther
	case tok[0].is("message"):
		switch c.ctype = typeOther; sub {
		case "rfc822":
			c.ctype = typeRFC822
		case "global":
			c.ctype = typeGlobal
		case "partial", "external-body":
			c.ctype = typePartial
		}
	case tok[0].is("multipart"):
		c.ctype = typeMultipart
		for {
			if tok, rest, ok = tokens(rest, tspecials); !ok {
				return
			}
			if len(tok) < 3 || !tok[0].is("boundary") || tok[1].kind != '=' {
				continue
			}
			if len(c.stack)-1 > cmp.Or(spec.NestingLimit, defaultNesting) {
				c.faulty[faultNesting] = c.faulty[faultNesting] || c.s.snap.content.nesting
				continue
			}
			text := tok[2].text
			text = text[:min(len(text), cmp.Or(spec.BoundaryLimit, defaultBoundary))]
			c.stack = append(c.stack, boundary{text, sub == "digest"})
		}
	}
}

// encodingField reads the value of a Content-Transfer-Encoding; one that is
// unknown says nothing.
func (c *content) encodingField(value string) {
	tok, _, _ := tokens(value, specials)
	for e, name := range encodings {
		if len(tok) > 0 && tok[0].is(name) {
			c.encoding = encoding(e)
		}
	}
}

// is8Bit says that an octet isn't ASCII.
func is8Bit(b []byte) bool {
	for _, o := range b {
		if o >= 0x80 {
			return true
		}
	}
	return false
}

// token is one of RFC 2045 §5.1: kind is 't' for a token, '"' for a quoted
// string, else the special character itself.
type token struct {
	kind byte
	text string
}

func (t token) is(text string) bool { return t.kind == 't' && strings.EqualFold(t.text, text) }

// The characters that stand for themselves: RFC 2045 §5.1, RFC 822 §3.3.
const (
	tspecials = `()<>@,;:\"/[]?=`
	specials  = `()<>@,;:\".[]`
)

// tokens reads up to three tokens before the next ";". ok is false at the end.
func tokens(s, specials string) (toks []token, rest string, ok bool) {
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
		case isSpecial(ch, specials):
			add(token{ch, string(rune(ch))})
		default:
			from := i - 1
			for i < len(s) && s[i] != ' ' && !isSpecial(s[i], specials) {
				i++
			}
			add(token{'t', s[from:i]})
		}
	}
	return toks, "", len(toks) > 0
}

func isSpecial(b byte, specials string) bool {
	return b < ' ' || b == 0x7f || strings.IndexByte(specials, b) >= 0
}

// skipComment returns the index after a comment whose "(" has been read.
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

// quotedString reads up to the closing quote and returns the index after it.
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
