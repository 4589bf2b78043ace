package smtpd

import (
	"bytes"
	"io"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// body takes a message apart as it comes in: it finds the end of data, takes
// the dot-stuffing out, writes the content on, and notes what is wrong with it.
type body struct {
	w         io.Writer
	err       error     // the first of w
	copy      io.Writer // gets what w gets; nil when nobody wants it
	checks    io.Writer // the policy's, of headers and bodies; nil when it has none
	normalize bool      // bare line feeds become CRLF
	codeLF    int       // of the policy's reply to them, 0: we refuse them by our own
	ended     time.Time

	lineStart bool // what comes next is a line's start
	afterLF   bool // … and stands after a bare line feed
	inLine    bool // what comes next goes on with a line that was too long for the buffer
	bareCR    bool
	bareLF    bool
	nul       bool
	size      int64 // octets of content
	maxSize   int64 // 0: none

	inHeader     bool
	header       []byte
	maxHeader    int
	headerTooBig bool
	fields       int
	maxFields    int // 0: none
	hops         int // Received fields

	line        int // octets of the line that inLine goes on with
	maxLine     int // 0: none
	lineTooLong bool
	cut         int   // the primary's line_length_limit; 0: its default
	long        int64 // policy.LongLine of all lines
}

func (b *body) tooBig() bool { return b.maxSize > 0 && b.size > b.maxSize }

func (b *body) tooManyFields() bool { return b.maxFields > 0 && b.fields > b.maxFields }

// dirty says that the message breaks RFC 5321 §2.3.8's rules on line ends.
func (b *body) dirty() bool { return b.nul || b.bareCR || b.bareLF && !b.normalize }

// consume takes as much of p as it can tell the meaning of: whole lines, and
// when full says that p can't grow, an unfinished one. It returns how much
// that was, and whether the end of data was the last of it.
func (b *body) consume(p []byte, full bool) (used int, done bool) {
	pos, run, crlf := 0, 0, 0 // p[run:pos] is content not yet written, with so many CRLF
	for !done {
		i := bytes.IndexByte(p[pos:], '\n')
		if i < 0 {
			break
		}
		line := p[pos : pos+i+1]
		isCRLF := i > 0 && line[i-1] == '\r'
		if b.lineStart && line[0] == '.' {
			b.write(p[run:pos], crlf)
			run, crlf, line = pos+1, 0, line[1:]
			if i == 1 || isCRLF && i == 2 { // it ends the message, or as in Postfix vanishes
				pos += i + 1
				run = pos
				done = isCRLF && !b.afterLF
				b.afterLF, b.bareLF = !isCRLF, b.bareLF || !isCRLF
				continue
			}
		}
		pos += i + 1
		b.headerLine(line)
		b.measure(line)
		if b.line > 128 {
			b.long += policy.LongLine(len(bytes.TrimRight(line, "\r\n"))+b.line-len(line), b.cut)
		}
		b.line = 0
		if isCRLF {
			crlf++
		} else {
			b.bareLF = true
			b.write(p[run:pos-1], crlf)
			b.write([]byte("\r\n"), 1)
			run, crlf = pos, 0
		}
		b.lineStart, b.afterLF, b.inLine = true, !isCRLF, false
	}
	if rest := p[pos:]; full && !done && pos == 0 {
		// The line is longer than the buffer. A CR at the end waits: the
		// next octet may be its LF.
		rest = bytes.TrimSuffix(rest, []byte("\r"))
		if b.lineStart && rest[0] == '.' {
			run, rest = 1, rest[1:]
		}
		b.headerLine(rest)
		b.measure(rest)
		pos = run + len(rest)
		b.lineStart, b.inLine = false, true
	}
	b.write(p[run:pos], crlf)
	return pos, done
}

// write passes content with so many CRLF on, unless it has what must not pass,
// or the message is lost already.
func (b *body) write(p []byte, crlf int) {
	b.size += int64(len(p))
	b.nul = b.nul || bytes.IndexByte(p, 0) >= 0
	b.bareCR = b.bareCR || bytes.Count(p, []byte("\r")) != crlf
	if len(p) == 0 || b.err != nil || b.dirty() || b.tooBig() || b.headerTooBig || b.tooManyFields() || b.lineTooLong {
		return
	}
	if b.checks != nil {
		b.checks.Write(p) // never fails; what it finds is in the verdict
	}
	b.put(p)
}

func (b *body) put(p []byte) {
	_, b.err = b.w.Write(p)
	if b.copy != nil {
		_, _ = b.copy.Write(p) // its Decider knows how that went
	}
}

// measure counts the octets of a line, of which part is what came now.
func (b *body) measure(part []byte) {
	b.line += len(part)
	b.lineTooLong = b.lineTooLong || b.maxLine > 0 && b.line > b.maxLine
}

// headerLine collects the header section, which ends at the first line that
// is no part of a header field.
func (b *body) headerLine(line []byte) {
	if !b.inHeader {
		return
	}
	if !b.inLine {
		folded := line[0] == ' ' || line[0] == '\t'
		name, _, isField := bytes.Cut(line, []byte(":"))
		name = bytes.TrimRight(name, " \t")
		if folded && len(b.header) == 0 || !folded && (!isField || !isFieldName(name)) {
			b.inHeader = false
			return
		}
		if !folded {
			b.fields++
			if bytes.EqualFold(name, []byte("Received")) {
				b.hops++
			}
		}
	}
	if len(b.header)+len(line) > b.maxHeader {
		b.headerTooBig, b.inHeader = true, false
		return
	}
	b.header = append(b.header, line...)
}

// isFieldName says that s is RFC 5322 §3.6.8's field-name.
func isFieldName(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(s) > 0
}
