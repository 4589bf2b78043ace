package relay

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/understudy-mx/understudy/internal/authres"
	"github.com/understudy-mx/understudy/internal/envelope"
)

// chunk is how much of a message's content is in memory at a time.
const chunk = 32 << 10

// commandBuffer holds commands, and in a live session a small message.
const commandBuffer = 8 << 10

// contentError says that a message's own content could not be read. The next
// hop is not to blame, but the session is over: nothing but closing the
// connection says "forget it" after a 354.
type contentError struct{ err error }

func (e *contentError) Error() string { return "read content: " + e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

var errContentSize = errors.New("content has not the length that the envelope states")

// sized fails unless its content has the length that was stated.
type sized struct {
	io.Reader
	left int64
}

func (s *sized) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	switch s.left -= int64(n); {
	case s.left < 0:
		err = errContentSize
	case err == io.EOF && s.left > 0:
		err = fmt.Errorf("%w: %d octets are missing", errContentSize, s.left)
	}
	return n, err
}

// content is what goes out of a body that is closed at the end.
type content struct {
	io.Reader
	io.Closer
}

// content returns a message as this next hop gets it: as it is, or with our
// Authentication-Results.
func (s *session) content(t *envelope.Transfer, body io.ReadCloser) content {
	whole := &sized{body, t.Size}
	if field := s.authResults(t); field != "" {
		return content{io.MultiReader(strings.NewReader(field), authres.Strip(whole, s.c.hostname)), body}
	}
	return content{whole, body}
}

// authResults is the field that goes before a message, "" for none.
func (s *session) authResults(t *envelope.Transfer) string {
	if !s.r.AuthResults || t.Envelope.Report {
		return ""
	}
	return authres.Field(s.c.hostname, t.Envelope)
}

// writeContent copies body to w, dot-stuffed, and ends it with CRLF.CRLF, of which
// the first CRLF is the content's own if it has one. It writes the final dot only
// after body ended well. buf is its scratch space. Errors of body are contentErrors.
func writeContent(w *bufio.Writer, body io.Reader, buf []byte) error {
	d := stuffer{w: w, last: [2]byte{'\r', '\n'}}
	for {
		n, err := body.Read(buf)
		if err == errContentSize { // it is too long: what is too much stays here
			return &contentError{err}
		}
		if werr := d.write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return &contentError{err}
		}
	}
	return d.end()
}

// stuffer does RFC 5321 §4.5.2's dot-stuffing. It also stuffs after a bare LF,
// which our own door lets nobody send: a next hop that takes a bare LF for a
// line's end removes that dot, and one that does not is spared a smuggled end
// of data.
type stuffer struct {
	w    *bufio.Writer
	last [2]byte // the last two octets written; CRLF before the first
}

func (d *stuffer) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	bol := d.last[1] == '\n'
	if len(p) == 1 {
		d.last = [2]byte{d.last[1], p[0]}
	} else {
		d.last = [2]byte(p[len(p)-2:])
	}
	for {
		if bol && p[0] == '.' {
			if err := d.w.WriteByte('.'); err != nil {
				return err
			}
		}
		i := bytes.Index(p, []byte("\n."))
		if i < 0 {
			_, err := d.w.Write(p)
			return err
		}
		if _, err := d.w.Write(p[:i+1]); err != nil {
			return err
		}
		p, bol = p[i+1:], true
	}
}

func (d *stuffer) end() error {
	end := "\r\n.\r\n"
	if d.last == [2]byte{'\r', '\n'} {
		end = ".\r\n"
	}
	_, err := d.w.WriteString(end)
	return err
}
