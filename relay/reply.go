package relay

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Bounds on a reply. RFC 5321 §4.5.3.1.5 has lines of 512 octets; real servers
// exceed that. What a line has beyond maxReplyLine is passed over: a session that
// ended there would be tried again for ever.
const (
	maxReplyLine = 2048
	maxReply     = 64 << 10 // all lines together
	maxReplyText = 256
	// What a client gets of the next hop's reply in a live session. Our own door
	// cuts lines at 512 octets.
	maxLiveText  = 8 << 10
	maxLiveLines = 50
)

var (
	errReplyLong   = errors.New("next hop sent a reply that is too long")
	errReplySyntax = errors.New("next hop sent something that is no SMTP reply")
)

// newReplyReader returns a reader for readReply. Its size is what bounds a line.
func newReplyReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxReplyLine) }

// readReply reads one reply, RFC 5321 §4.2: lines of a code, "-" on all but the
// last, and text. A line may end in a bare LF. Codes are 200 to 599 and the
// same on all lines. Text and status code come back clean (see clean), the text
// cut at maxReplyText; each, if not nil, sees the clean text of each line in full.
func readReply(br *bufio.Reader, each func(line string)) (envelope.Reply, error) {
	var r envelope.Reply
	var text strings.Builder
	code, err := readLines(br, func(n, class int, line string) {
		if each != nil {
			each(line)
		}
		enhanced, rest := cutStatus(line, class)
		if enhanced != "" {
			r.Enhanced, line = enhanced, rest
		}
		if n > 0 && text.Len() < maxReplyText {
			text.WriteByte('\n')
		}
		text.WriteString(line[:min(len(line), maxReplyText-text.Len())])
	})
	if err != nil {
		return envelope.Reply{}, err
	}
	r.Code, r.Text = code, text.String()
	return r, nil
}

// readWhole is readReply for a reply that is passed on: all lines, within
// maxLiveText and maxLiveLines. Where the lines don't all begin with the same
// status code, the codes stay in the text.
func readWhole(br *bufio.Reader) (envelope.Reply, error) {
	var all, bare []string
	status, left := "", maxLiveText
	code, err := readLines(br, func(n, class int, line string) {
		if len(all) == maxLiveLines || len(line) > left {
			return
		}
		left -= len(line)
		s, rest := cutStatus(line, class)
		if n == 0 {
			status = s
		} else if s != status {
			status = ""
		}
		all, bare = append(all, line), append(bare, rest)
	})
	if err != nil {
		return envelope.Reply{}, err
	}
	if status == "" {
		bare = all
	}
	return envelope.Reply{Code: code, Enhanced: status, Text: strings.Join(bare, "\n")}, nil
}

// readLines hands the clean text of each line of a reply to each, with the line's
// number and the class of the code.
func readLines(br *bufio.Reader, each func(n, class int, line string)) (code int, err error) {
	left := maxReply
	for n := 0; ; n++ {
		b, err := br.ReadSlice('\n')
		left -= len(b)
		switch {
		case left < 0:
			return 0, errReplyLong
		case err == io.EOF && (n > 0 || len(b) > 0):
			return 0, io.ErrUnexpectedEOF
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return 0, err
		}
		c, more, line, ok := parseLine(b)
		if err := passOver(br, err, &left); err != nil {
			return 0, err
		}
		if !ok || n > 0 && c != code {
			return 0, errReplySyntax
		}
		code = c
		each(n, code/100, line)
		if !more {
			return code, nil
		}
	}
}

// passOver reads to the end of a line that was too long for the buffer.
func passOver(br *bufio.Reader, err error, left *int) error {
	for errors.Is(err, bufio.ErrBufferFull) {
		var b []byte
		b, err = br.ReadSlice('\n')
		if *left -= len(b); *left < 0 {
			return errReplyLong
		}
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseLine takes one line of a reply apart, or the start of a long one.
func parseLine(b []byte) (code int, more bool, text string, ok bool) {
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) < 3 || b[0] < '2' || b[0] > '5' || !isDigit(b[1]) || !isDigit(b[2]) {
		return 0, false, "", false
	}
	code = int(b[0]-'0')*100 + int(b[1]-'0')*10 + int(b[2]-'0')
	if len(b) == 3 {
		return code, false, "", true
	}
	if b[3] != ' ' && b[3] != '-' {
		return 0, false, "", false
	}
	return code, b[3] == '-', clean(b[4:]), true
}

// clean makes a peer's text fit for logs, the operator and other peers: what is
// not printable ASCII becomes "?".
func clean(b []byte) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, string(b))
}

// cutStatus splits RFC 3463's status code off text. Its class must be the
// reply's.
func cutStatus(text string, class int) (status, rest string) {
	status, rest, _ = strings.Cut(text, " ")
	if len(status) > len("5.123.123") || status == "" || int(status[0]-'0') != class {
		return "", text
	}
	parts := strings.Split(status, ".")
	if len(parts) != 3 || len(parts[0]) != 1 || !isNumber(parts[1]) || !isNumber(parts[2]) {
		return "", text
	}
	return status, rest
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// isNumber says that s is one to three digits.
func isNumber(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 3
}

// ofSession says that a reply's code, in answer to MAIL and what follows it, is
// about the session and not about the message: TLS or authentication is wanted, a
// command isn't known or not expected.
func ofSession(code int) bool {
	switch code {
	case 500, 502, 503, 530:
		return true
	}
	return false
}

// refusal is a reply that ends a session.
type refusal struct {
	step  step
	reply envelope.Reply
}

func (e *refusal) Error() string {
	return fmt.Sprintf("next hop answered %s with %s", e.step, e.reply)
}
