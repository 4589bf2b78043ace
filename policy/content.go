package policy

import (
	"bytes"
	"io"
	"strings"
)

// content applies header_checks(5) and body_checks to one message as it
// streams by. It holds a logical header and a line at most, both bounded by
// the Limits. Its states are those of Postfix's mime_state(3).
type content struct {
	s     *Session
	line  []byte
	cont  bool // the last record ended without a line end
	first bool // nothing but "From " lines so far

	state    mimeState
	header   []byte
	ctype    contentType
	encoding encoding
	stack    []boundary
	offset   int64             // in the body of this part
	faulty   [len(faults)]bool // reasons to refuse the message at its end

	hops    int  // Received fields
	looping bool // too many of them
	off     bool // what follows is no longer checked
	done    bool // nor read
	reason  string
	rule    Rule
	discard bool
	hold    bool
	mark    Rule // of discard or hold
	warn    []Rule
	failed  bool
	fault   *fault // the worst in faulty

	kept []byte // of a record, when octets were taken out of it
}

// Content returns the writer for the message's content, nil when the policy has
// no rule about it (then nothing needs to be written). Ask for it after Data has
// permitted, write every octet of the content as the client sent it, dots
// unstuffed, without the Received field that this server adds, and call
// Message, whose verdict includes what was found. A Write never fails, and a
// Reset drops what was written. The memory is bounded by Limits.HeaderBytes and
// Limits.LineLength.
func (s *Session) Content() io.Writer {
	if s.snap.acl != nil {
		return s.aclContent()
	}
	checks, milters := s.contentChecks(), s.milterReader()
	switch {
	case milters == nil:
		return checks
	case checks == nil:
		return milters
	}
	return io.MultiWriter(checks, milters)
}

func (s *Session) contentChecks() io.Writer {
	if !s.snap.content.any() {
		return nil
	}
	s.content = &content{s: s, first: true}
	if host := s.snap.spec.Content.Hostname; host != "" {
		s.content.received(host)
	} else {
		s.content.hops++
	}
	return s.content
}

// contentChecks are the ContentChecks compiled.
type contentChecks struct {
	header, mime, nested, body []*dict
	reject, strip              *[256]bool // nil: no octet
	nesting                    bool       // a message of too many parts in parts is refused
}

// any says that there is something to check.
func (c *contentChecks) any() bool { return c.nesting || len(c.body) > 0 || c.reject != nil }

func (c *compiler) content() {
	spec, to := &c.s.spec.Content, &c.s.content
	to.header = c.named("content: header_checks", spec.Header)
	to.mime = c.named("content: mime_header_checks", spec.MIMEHeader)
	to.nested = c.named("content: nested_header_checks", spec.NestedHeader)
	to.body = c.named("content: body_checks", spec.Body)
	to.nesting = spec.EnforceNesting || spec.Strict7BitHeader || spec.Strict8BitBody || spec.StrictEncoding ||
		len(to.header)+len(to.mime)+len(to.nested) > 0
	to.reject = c.octets("content: message_reject_characters", spec.RejectOctets)
	to.strip = c.octets("content: message_strip_characters", spec.StripOctets)
	if spec.BodyLimit < 0 || spec.BoundaryLimit < 0 || spec.NestingLimit < 0 {
		c.errorf("content: a limit can't be negative")
	}
}

// octets is the set of what a list names, nil for none.
func (c *compiler) octets(where string, list []int) *[256]bool {
	if len(list) == 0 {
		return nil
	}
	set := new([256]bool)
	for _, o := range list {
		if o < 0 || o > 255 {
			c.errorf("%s: %d is no octet from 0 to 255", where, o)
			continue
		}
		set[o] = true
	}
	return set
}

// received is the field that the primary adds before it checks the header, without
// its ID, the date and the TLS details.
func (c *content) received(host string) {
	cl := &c.s.client
	with := "ESMTP"
	if c.s.utf8 {
		with = "UTF8SMTP"
	}
	if cl.TLS != "" {
		with += "S"
	}
	helo := cl.Helo
	if helo == "" {
		helo = cl.Name
	}
	addr := cl.Addr.String()
	if cl.Addr.Is6() {
		addr = "IPv6:" + addr
	}
	c.record([]byte("Received: from "+helo+" ("+cl.Name+" ["+addr+"])"), false)
	c.record([]byte("\tby "+host+" (Postfix) with "+with), false)
	if c.s.rcptCount == 1 {
		c.record([]byte("\tfor <"+c.s.rcpt.raw+">"), false)
	}
}

// Write cuts the content into lines, and those longer than the limit into
// records.
func (c *content) Write(p []byte) (int, error) {
	n := len(p)
	limit := c.s.snap.spec.Limits.LineLength
	if limit <= 0 {
		limit = 2048
	}
	for len(p) > 0 && !c.done {
		room := p[:min(len(p), limit-len(c.line))]
		end := bytes.IndexByte(room, '\n')
		switch {
		case end >= 0:
			c.line = append(c.line, room[:end]...)
			p = p[end+1:]
			c.text(bytes.TrimRight(c.line, "\r"), false)
			c.line = c.line[:0]
		default:
			c.line = append(c.line, room...)
			if p = p[len(room):]; len(c.line) == limit {
				c.text(c.line, true)
				c.line = c.line[:0]
			}
		}
	}
	return n, nil
}

// text passes on a record from the client, as smtpd(8) does.
func (c *content) text(rec []byte, cont bool) {
	if c.first {
		if bytes.HasPrefix(bytes.TrimLeft(rec, ">"), []byte("From ")) {
			c.record(append([]byte("X-Mailbox-Line: "), rec...), cont)
			return
		}
		c.first = false
		if len(rec) > 0 && isBlank(rec[0]) {
			c.record(nil, false)
		}
	}
	c.record(rec, cont)
}

// end is the end of the message.
func (c *content) end() {
	if len(c.line) > 0 {
		c.text(bytes.TrimRight(c.line, "\r"), false)
		c.line = c.line[:0]
	}
	if c.done {
		return
	}
	if c.state != mimeBody {
		c.flushHeader()
		c.checkEncoding()
	}
	for n, is := range c.faulty {
		if is && c.fault == nil {
			c.fault = &faults[n]
		}
	}
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

// octets ends the checks at an octet that no message may have, and removes those
// that the primary removes.
func (c *content) octets(rec []byte) []byte {
	t := &c.s.snap.content
	if c.off {
		return rec
	}
	if t.reject != nil {
		for _, b := range rec {
			if t.reject[b] {
				c.reason, c.rule = "5.7.1 disallowed character", Rule{Stage: EndOfData, Kind: kindOctets}
				c.done = true
				return nil
			}
		}
	}
	if t.strip != nil {
		c.kept = c.kept[:0]
		for _, b := range rec {
			if !t.strip[b] {
				c.kept = append(c.kept, b)
			}
		}
		rec = c.kept
	}
	return rec
}

// act looks up a header or a line of the body, and applies the table's action.
func (c *content) act(kind string, tables []*dict, key []byte) (dropped bool) {
	if end := bytes.IndexByte(key, 0); end >= 0 {
		key = key[:end] // Postfix looks strings up
	}
	if c.off || c.done || len(tables) == 0 || len(key) == 0 {
		return false
	}
	f := &c.s.find
	h := f.lookup(tables, key)
	if f.failed {
		f.failed = false
		c.failed, c.done = true, true
		return false
	}
	if !h.ok() {
		return false
	}
	value := f.value(h)
	i := strings.IndexAny(value+" ", " \t")
	text := strings.TrimLeft(value[min(i, len(value)):], " \t")
	rule := Rule{Stage: EndOfData, Kind: kind, Table: h.t.name, Key: h.key()}
	switch strings.ToUpper(value[:i]) {
	case "REJECT":
		dsn, rest := splitDSN("5.7.1", text)
		if text == "" {
			rest = "message content rejected"
		}
		if dsn[0] == '2' {
			dsn = "4" + dsn[1:]
		}
		c.reason, c.rule, c.done = dsn+" "+rest, rule, true
	case "DISCARD":
		c.discard, c.mark, c.done = true, rule, true
	case "HOLD":
		if !c.hold {
			c.hold, c.mark = true, rule
		}
	case "WARN":
		if len(c.warn) < maxWarnings {
			c.warn = append(c.warn, rule)
		}
	case "PASS":
		c.off = true
	case "REDIRECT":
		c.off = strings.Contains(text, "@")
	case "IGNORE", "STRIP":
		return true
	}
	// All other actions change the message: the primary applies them when the
	// message reaches it.
	return false
}

// maxWarnings bounds what one message's WARN actions can pile up.
const maxWarnings = 20

// contentVerdict applies the findings about the content. As in Postfix, too many
// hops rank below a deferral and above a refusal.
func (e *eval) contentVerdict(st status, m Message) status {
	c := e.content
	if c != nil {
		c.end()
		e.warnings = append(e.warnings, c.warn...)
	}
	switch {
	case st == refused:
		return st
	case c != nil && strings.HasPrefix(c.reason, "4"):
		return e.answerReason(c, 451)
	case c == nil && e.snap.tooFar(m.Hops+1) || c != nil && c.looping:
		return e.answer(Rule{Stage: EndOfData, Kind: kindHops}, 554, "5.4.0", "Error: too many hops")
	case c == nil:
		return st
	case c.reason != "":
		return e.answerReason(c, 550)
	case c.fault != nil && !c.discard:
		return e.answer(Rule{Stage: EndOfData, Kind: c.fault.kind}, 550, "5.6.0", c.fault.text)
	case c.failed:
		return e.answer(Rule{Stage: EndOfData, Kind: kindServerError}, 451, "4.3.0", "Error: queue file write error")
	case c.discard && !e.discard:
		e.discard, e.discardRule = true, c.mark
	case c.hold && !e.hold:
		e.hold, e.holdRule = true, c.mark
	}
	return st
}

func (e *eval) answerReason(c *content, code int) status {
	dsn, text, _ := strings.Cut(c.reason, " ")
	return e.answer(c.rule, code, dsn, text)
}
