package milter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
)

// headerSize is the longest header field that a filter gets: libmilter's
// packets end at 65535 octets, and Postfix cuts a field here.
const headerSize = 60000

// dropped are the fields that Postfix takes out of a message before a filter
// sees it (message_drop_headers).
var dropped = []string{"bcc", "content-length", "resent-bcc", "return-path"}

// Message sends the filter a message with CRLF line ends, and returns its answer.
// An error of r's is returned as it is; then nothing is known of the filter's.
func (c *Client) Message(ctx context.Context, r io.Reader) (Answer, error) {
	defer c.begin(ctx, c.Content)()
	if c.state != envelopes { // it has said before what it thinks
		return Answer{}, nil
	}
	c.state = message
	// Postfix's cleanup(8), which asks about messages, doesn't know of a
	// quarantine at a command before.
	before := c.standing
	c.standing = nil
	m := sending{c: c, max: c.HeaderSize}
	if m.max <= 0 || m.max > headerSize {
		m.max = headerSize
	}
	err := m.send(r)
	switch c.state {
	case broken: // smtpd(8) notices when it has something to ask
		c.dead = true
		fallthrough
	case message, acceptsMessage:
		c.state, c.standing = envelopes, before
	}
	return m.answer, err
}

// sending is a message on its way to a filter.
type sending struct {
	c      *Client
	max    int
	answer Answer
	field  []byte // of the header, its lines with LF between them
}

// over says that the filter has decided.
func (m *sending) over() bool { return m.c.state != message || m.answer.Action != Continue }

// piece is how much of a line Postfix reads at once (line_length_limit).
const piece = 2048

func (m *sending) send(r io.Reader) error {
	body, err := m.header(bufio.NewReaderSize(r, piece))
	if err != nil {
		return err
	}
	if !m.over() && m.c.mask&noEOH == 0 {
		m.answer = m.c.event(OnEndOfHeader, cmdEOH, noEOH, noReplyEOH, nil)
	}
	if !m.over() && m.c.mask&noBody == 0 {
		err = m.body(body)
	}
	if err == nil && !m.over() {
		m.answer = m.c.event(OnEndOfData, cmdEnd, 0, 0, nil)
	}
	return err
}

func (m *sending) body(r io.Reader) error {
	buf := make([]byte, chunk)
	for !m.over() {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			m.answer = m.c.event(OnEndOfData, cmdBody, noBody, noReplyBody, buf[:n])
		}
		if err != nil {
			return eof(err)
		}
	}
	return nil
}

// eof is nil at the end of the message.
func eof(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// header sends the header section, and returns what follows it. A line that is
// no part of a header field ends it and belongs to the body.
func (m *sending) header(in *bufio.Reader) (body io.Reader, err error) {
	first, inLine := true, false
	for !m.over() {
		line, err := in.ReadSlice('\n')
		full := errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !full && eof(err) != nil {
			return nil, err
		}
		if len(line) == 0 {
			break
		}
		text := line
		if !full {
			text = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		}
		was := inLine
		inLine = full
		switch {
		case was:
			m.add(text)
		case first && bytes.HasPrefix(bytes.TrimLeft(text, ">"), []byte("From ")):
			m.flush() // a line of an mbox file
			m.field = append(append(m.field, "X-Mailbox-Line: "...), text...)
			continue
		case len(text) > 0 && (text[0] == ' ' || text[0] == '\t') && !first:
			m.add([]byte("\n"))
			m.add(text)
		case fieldName(text) > 0:
			m.flush()
			m.field = append(m.field, text...)
		case len(text) == 0:
			m.flush()
			return in, nil
		default:
			m.flush()
			return io.MultiReader(bytes.NewReader(bytes.Clone(line)), in), nil
		}
		first = false
	}
	m.flush()
	return in, nil
}

// add goes on with a field, but for its excess.
func (m *sending) add(text []byte) {
	if len(m.field) < m.max {
		m.field = append(m.field, text...)
	}
}

// fieldName is the length of the field's name with which a line begins, 0 when it
// begins with none.
func fieldName(line []byte) int {
	n := 0
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	if rest := bytes.TrimLeft(line[n:], " \t"); len(rest) == 0 || rest[0] != ':' {
		return 0
	}
	return n
}

// flush sends the field that is complete.
func (m *sending) flush() {
	field := m.field
	m.field = m.field[:0]
	n := fieldName(field)
	if n == 0 || m.over() || m.c.mask&noHeaders != 0 || slices.Contains(dropped, strings.ToLower(string(field[:n]))) {
		return
	}
	value := bytes.TrimLeft(field[n:], " \t")[1:]
	if m.c.mask&leadingSpace == 0 {
		value = bytes.TrimPrefix(value, []byte(" "))
	}
	m.answer = m.c.event(OnEndOfHeader, cmdHeader, noHeaders, noReplyHeader, appendStrings(nil, string(field[:n]), string(value)))
}
