// Package letter shows a message as text that does no harm in a terminal or a pager.
//
//	From: Bob <bob@sender.example>
//	Subject: Füße
//
//	The text part, decoded.
//
//	[attachment: invoice.pdf, application/pdf, 48213 octets]
//
// Everything in a message is a stranger's. Control octets, escape sequences and the
// characters that turn or hide writing become U+FFFD; HTML isn't shown, only named.
// What is read is bounded in depth, parts and octets. RFCs: 2045, 2047, 2183, 5322.
package letter

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"strings"

	"golang.org/x/text/encoding/htmlindex"

	"github.com/understudy-mx/understudy/internal/service"
)

// Bounds of what is shown.
const (
	maxText   = 1 << 20 // octets of all text parts
	maxParts  = 100
	maxDepth  = 8
	maxField  = 2000 // octets of a header field
	maxHeader = 256 << 10
)

// fields are shown, in this order.
var fields = []string{"From", "Sender", "Reply-To", "To", "Cc", "Date", "Subject", "Message-Id"}

// reader shows one message.
type reader struct {
	w     *bufio.Writer
	left  int64 // of maxText
	parts int
	text  bool // a text part was shown
}

// Write shows a message.
func Write(w io.Writer, message io.Reader) error {
	r := &reader{w: bufio.NewWriter(w), left: maxText}
	m, err := mail.ReadMessage(&headed{r: message, left: maxHeader})
	if err != nil {
		fmt.Fprintln(r.w, "[the header can't be read]")
		return r.w.Flush()
	}
	for _, name := range fields {
		for _, v := range m.Header[name] {
			fmt.Fprintf(r.w, "%s: %s\n", name, field(v))
		}
	}
	fmt.Fprintln(r.w)
	r.part(textproto.MIMEHeader(m.Header), m.Body, 0)
	if !r.text {
		fmt.Fprintln(r.w, "[no text part]")
	}
	return r.w.Flush()
}

// headed bounds what is read until the body is asked for: net/mail has no bound.
// A longer header is an error to it.
type headed struct {
	r    io.Reader
	left int64
	body bool // the empty line has been read
	last string
}

func (h *headed) Read(p []byte) (int, error) {
	if h.body {
		return h.r.Read(p)
	}
	if h.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := h.r.Read(p[:min(int64(len(p)), h.left)])
	h.left -= int64(n)
	seen := h.last + string(p[:n])
	h.body = strings.Contains(seen, "\r\n\r\n") || strings.Contains(seen, "\n\n") || strings.HasPrefix(seen, "\r\n") && h.last == ""
	h.last = seen[max(0, len(seen)-3):]
	return n, err
}

// field is a header field's value, decoded, on one line.
func field(v string) string {
	d := mime.WordDecoder{CharsetReader: decode}
	if s, err := d.DecodeHeader(v); err == nil {
		v = s
	}
	if len(v) > maxField {
		v = strings.ToValidUTF8(v[:maxField], "") + "…"
	}
	return service.Printable(v)
}

func decode(charset string, in io.Reader) (io.Reader, error) {
	e, err := htmlindex.Get(charset)
	if err != nil {
		return nil, err
	}
	return e.NewDecoder().Reader(in), nil
}

// part shows a part, or names it.
func (r *reader) part(h textproto.MIMEHeader, body io.Reader, depth int) {
	if r.parts++; r.parts > maxParts {
		if r.parts == maxParts+1 {
			fmt.Fprintln(r.w, "[more parts, not shown]")
		}
		return
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind == "" {
		kind, params = "text/plain", nil // RFC 2045 §5.2
	}
	disposition, named, _ := mime.ParseMediaType(h.Get("Content-Disposition"))
	if strings.HasPrefix(kind, "multipart/") && params["boundary"] != "" && depth < maxDepth {
		parts := multipart.NewReader(body, params["boundary"])
		for r.parts <= maxParts {
			p, err := parts.NextRawPart()
			if err != nil {
				if err != io.EOF {
					fmt.Fprintln(r.w, "[the rest of the message is broken]")
				}
				return
			}
			r.part(p.Header, p, depth+1)
		}
		return
	}
	switch strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding"))) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	if kind == "text/plain" && disposition != "attachment" {
		r.show(body, params["charset"])
		return
	}
	size, err := io.Copy(io.Discard, body)
	broken := ""
	if err != nil {
		broken = ", broken"
	}
	name := named["filename"]
	if name == "" {
		name = params["name"]
	}
	if name != "" {
		name = field(name) + ", "
	}
	fmt.Fprintf(r.w, "[attachment: %s%s, %d octets%s]\n", name, field(kind), size, broken)
}

// show writes a text part, line by line.
func (r *reader) show(body io.Reader, charset string) {
	r.text = true
	limited := &io.LimitedReader{R: body, N: r.left + 1}
	in := io.Reader(limited)
	if charset != "" {
		if d, err := decode(charset, in); err == nil {
			in = d
		} else {
			fmt.Fprintf(r.w, "[unknown character set %s]\n", field(charset))
		}
	}
	text, err := io.ReadAll(in)
	cut := limited.N == 0
	r.left = max(0, limited.N-1)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		fmt.Fprintln(r.w, service.Printable(strings.ReplaceAll(line, "\t", "    ")))
	}
	switch {
	case cut:
		fmt.Fprintf(r.w, "[cut: more than %d octets of text]\n", maxText)
	case err != nil:
		fmt.Fprintln(r.w, "[the rest of this part is broken]")
	}
}
