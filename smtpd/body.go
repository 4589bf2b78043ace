package smtpd

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// maxHops is the limit on Received fields when the policy has none: RFC 5321
// §6.3 asks for at least 100.
const maxHops = 100

// receive reads the message, has it judged and committed, and answers.
func (f *front) receive() {
	tx := f.tx
	b := body{
		w: tx.draft, lineStart: true, inHeader: true,
		maxSize: f.lim.MessageSize, maxHeader: f.srv.MaxHeaderBytes, maxFields: f.srv.MaxHeaderFields, maxLine: f.srv.MaxLine,
		cut: f.lim.LineLength,
	}
	b.normalize, b.codeLF = f.bareNewline()
	b.checks = f.policy.Content()
	_, b.err = io.WriteString(tx.draft, received(f.srv.Hostname, &tx.env, f.tls != nil))
	if err := f.readBody(&b); err != nil {
		f.abort()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			f.limit("data_timeout")
			f.hangUp("timeout", timeoutReply(f.srv.Hostname))
		}
		f.over = true
		return
	}
	b.ended = time.Now()
	f.slowDown()
	if f.over {
		f.abort()
		return
	}
	f.conclude(&b)
	if err := f.flush(); err != nil {
		f.over = true
	}
}

// readBody reads up to the end of data.
func (f *front) readBody(b *body) error {
	start := time.Now()
	for read := 0; ; {
		if len(f.in.pending()) > len(f.in.buf)/2 {
			f.in.grow() // not for those who drip
		}
		n, done := b.consume(f.in.pending(), len(f.in.pending()) == len(f.in.buf))
		f.in.r += n
		read += n
		if done {
			return nil
		}
		// A client that drips gains no time by it.
		deadline := time.Now().Add(f.srv.crowd.patience(f.srv.DataTimeout))
		slowest := start.Add(f.srv.DataTimeout + time.Duration(float64(read)/float64(f.srv.MinRate)*float64(time.Second)))
		if slowest.Before(deadline) {
			deadline = slowest
		}
		if err := f.fill(deadline, false); err != nil {
			return err
		}
	}
}

// abort throws the draft away.
func (f *front) abort() {
	f.tx.draft.Abort()
	f.tx.draft = nil
}

// conclude answers a message that has been read to its end.
func (f *front) conclude(b *body) {
	r := f.fault(b)
	switch {
	case !r.Zero():
		f.abort()
		f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "message refused", append(f.who(policy.EndOfData), slog.String("reply", r.String()))...)
		f.reply(r)
		if b.dirty() && (b.nul || b.bareCR || b.codeLF == 0) {
			// What follows may be a message smuggled past someone else.
			f.hangUp("error", envelope.Reply{})
		}
	case b.err != nil:
		f.abort()
		f.failed("write", b.err)
	default:
		f.commit(b)
	}
}

// fault returns the reply to a message that may not pass, or the zero Reply.
func (f *front) fault(b *body) envelope.Reply {
	hops := f.lim.Hops
	if hops == 0 {
		hops = maxHops
	}
	switch {
	case b.nul, b.bareCR:
		f.limit("bad_octets")
		return envelope.NewReply(550, "5.6.0", "Error: bare <CR> or NUL in message")
	case b.bareLF && !b.normalize && b.codeLF != 0:
		f.limit("bare_newline")
		return bareLF(b.codeLF)
	case b.bareLF && !b.normalize:
		f.limit("bare_newline")
		return envelope.NewReply(550, "5.6.0", "Error: bare <LF> in message")
	case b.tooBig():
		f.limit("message_size")
		return tooLarge
	case b.headerTooBig:
		f.limit("header_size")
		return envelope.NewReply(552, "5.3.4", "Error: message header too big")
	case b.tooManyFields():
		f.limit("header_fields")
		return envelope.NewReply(552, "5.3.4", "Error: too many header fields")
	case b.lineTooLong:
		f.limit("line_length")
		return envelope.NewReply(554, "5.6.0", "Error: line in message too long")
	case ownTraces(b.header, f.srv.Hostname) >= 2:
		f.limit("loop")
		return envelope.NewReply(554, "5.4.6", "Error: mail loop: this message was here twice before")
	case b.hops+1 >= hops: // our own counts, as in Postfix
		f.limit("hops")
		return envelope.NewReply(554, "5.4.0", "Error: too many hops")
	}
	return envelope.Reply{}
}

// commit has a well-formed message judged, and accepts it.
func (f *front) commit(b *body) {
	tx := f.tx
	v := f.policy.Message(f.ctx, policy.Message{Size: b.size, Long: b.long, Header: b.header})
	f.judged(policy.EndOfData, v)
	if refused(v) {
		f.abort()
		f.refuse(v)
		return
	}
	queued := envelope.NewReply(250, "2.0.0", "Ok: queued as %s", tx.env.ID)
	tx.allow(v)
	if tx.discard {
		f.errs, f.junk = 0, 0
		f.abort()
		f.srv.Log.LogAttrs(f.ctx, slog.LevelWarn, "discarded", f.who(policy.EndOfData)...)
		f.reply(queued)
		return
	}
	draft := tx.draft
	tx.draft = nil
	if err := draft.Commit(f.ctx); err != nil {
		f.failed("commit", err)
		return
	}
	m := f.srv.Metrics
	m.AcceptDuration.Observe(time.Since(b.ended).Seconds())
	m.Accepted.Inc()
	m.AcceptedBytes.Add(float64(b.size))
	m.AcceptedRcpts.Add(float64(len(tx.env.To)))
	f.errs, f.junk = 0, 0
	f.srv.crowd.good.add(group(f.client.Addr))
	f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "accepted", append(f.who(policy.EndOfData),
		slog.Int("recipients", len(tx.env.To)), slog.Int64("size", b.size), peer("name", tx.env.Client.Name),
		slog.String("tls", tx.env.Client.TLS))...)
	f.reply(queued)
}

// body takes a message apart as it comes in: it finds the end of data, takes
// the dot-stuffing out, writes the content on, and notes what is wrong with it.
type body struct {
	w         io.Writer
	err       error     // the first of w
	checks    io.Writer // the policy's, of headers and bodies; nil when it has none
	normalize bool      // bare line feeds become CRLF
	codeLF    int       // of the policy's reply to them, 0: we refuse them by our own
	ended     time.Time

	lineStart bool // what comes next is a line's start
	afterLF   bool // … and stands behind a bare line feed
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
	pos, run := 0, 0 // p[run:pos] is content not yet written
	crlf := 0
	for !done {
		i := bytes.IndexByte(p[pos:], '\n')
		if i < 0 {
			break
		}
		line := p[pos : pos+i+1]
		isCRLF := i > 0 && line[i-1] == '\r'
		if isCRLF {
			crlf++
		}
		if b.lineStart && line[0] == '.' {
			b.write(p[run:pos])
			run, line = pos+1, line[1:]
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
		if !isCRLF {
			b.bareLF = true
			b.write(p[run : pos-1])
			b.write([]byte("\r\n"))
			run = pos
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
	b.write(p[run:pos])
	b.nul = b.nul || bytes.IndexByte(p[:pos], 0) >= 0
	b.bareCR = b.bareCR || bytes.Count(p[:pos], []byte("\r")) != crlf
	return pos, done
}

// write passes content on, unless the message is lost already.
func (b *body) write(p []byte) {
	b.size += int64(len(p))
	if len(p) == 0 || b.err != nil || b.dirty() || b.tooBig() || b.headerTooBig || b.tooManyFields() || b.lineTooLong {
		return
	}
	if b.checks != nil {
		b.checks.Write(p) // never fails; what it finds is in the verdict
	}
	_, b.err = b.w.Write(p)
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
