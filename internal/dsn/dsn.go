// Package dsn writes delivery status notifications: a message to the sender of
// another one, which says that it didn't arrive.
//
//	From: Mail Delivery System <MAILER-DAEMON@mx2.example.net>
//	To: <alice@example.org>
//	Auto-Submitted: auto-replied
//	Content-Type: multipart/report; report-type=delivery-status; boundary="…"
//
//	--…                                 for people
//	--…                                 for programs
//	Reporting-MTA: dns; mx2.example.net
//
//	Final-Recipient: rfc822; bob@example.com
//	Action: failed
//	Status: 5.1.1
//	Diagnostic-Code: smtp; 550 5.1.1 no such user
//	--…                                 the header of the message, or all of it
//
// A DSN to a forged sender is an attack on whoever has that address. This package
// doesn't know who is vouched for: that is its user's business. It makes no DSN
// about a DSN (Answerable, ErrAutomatic), so that none can go round in circles.
//
// Everything in a message and its envelope was written by somebody else. None of
// it can end a line or a part of the DSN, and all of it is bounded.
//
// RFC 3461, 3462, 3464, 6522, 6533 (SMTPUTF8), 3834 (Auto-Submitted).
package dsn

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Report is what a DSN says.
type Report struct {
	Hostname   string // ours
	ID         string // of the DSN: its Message-ID
	Now        time.Time
	Envelope   *envelope.Envelope // of the message that is returned
	Size       int64              // of its content
	Recipients []Recipient        // who didn't get it
}

// Recipient is one who didn't get the message.
type Recipient struct {
	envelope.Recipient
	Reply   envelope.Reply // the next hop's last one; zero when it gave none
	Expired bool           // it was put off until it was too old
	Last    time.Time      // of the last attempt; zero without one
}

// Bounds.
const (
	maxFull   = 1 << 20   // a larger message is never returned whole
	maxHeader = 64 << 10  // of a header that is returned
	readAhead = 512 << 10 // of the message, to find the end of its header; the door takes no longer one
	maxNamed  = 50        // recipients named to people
	maxField  = 900       // octets of what somebody else wrote, in a line
)

// ErrAutomatic says that a message was written by a machine that answers mail: a
// DSN or its like.
var ErrAutomatic = errors.New("it is a report or an automatic answer itself")

// Answerable says that a reverse-path may get a DSN at all.
func Answerable(from envelope.ReversePath) bool {
	return from.Local != "" && from.Domain != "" && !from.Hostile() && !strings.EqualFold(from.Local, "mailer-daemon")
}

// Wanted says that RFC 3461's NOTIFY permits a report on a failure.
func Wanted(notify string) bool {
	if notify == "" {
		return true
	}
	for word := range strings.SplitSeq(notify, ",") {
		if strings.EqualFold(word, "FAILURE") {
			return true
		}
	}
	return false
}

// UTF8 says that the DSN has to go by SMTPUTF8.
func (r *Report) UTF8() bool {
	e := r.Envelope
	utf8 := e.UTF8 || !isASCII(e.From.String())
	for i := range r.Recipients {
		utf8 = utf8 || !isASCII(r.Recipients[i].Path.String())
	}
	return utf8
}

// WriteTo writes the DSN about the message that original reads: its lines end in
// CRLF. eightBit says that it holds octets above 127. With ErrAutomatic nothing
// was written.
func (r *Report) WriteTo(w io.Writer, original io.Reader) (eightBit bool, err error) {
	in := bufio.NewReaderSize(original, 32<<10)
	header, err := readHeader(in)
	if err != nil {
		return false, err
	}
	if automatic(header) {
		return false, ErrAutomatic
	}
	full := strings.EqualFold(r.Envelope.Ret, "FULL") && r.Size <= maxFull
	utf8 := r.UTF8()
	eightBit = full || utf8 || !isASCII(string(header))
	out := bufio.NewWriter(w)
	boundary := "=_" + rand.Text()
	r.writeHeader(out, boundary, eightBit)
	fmt.Fprintf(out, "\r\n--%s\r\n", boundary)
	r.writeText(out, utf8)
	fmt.Fprintf(out, "\r\n--%s\r\n", boundary)
	r.writeStatus(out, utf8)
	fmt.Fprintf(out, "\r\n--%s\r\n", boundary)
	kind := map[[2]bool]string{{false, false}: "text/rfc822-headers", {true, false}: "message/rfc822",
		{false, true}: "message/global-headers", {true, true}: "message/global"}[[2]bool{full, utf8}]
	fmt.Fprintf(out, "Content-Description: %s\r\nContent-Type: %s\r\n%s\r\n", map[bool]string{true: "Your message", false: "Header of your message"}[full], kind, encoding(eightBit))
	if full {
		out.Write(header)
		if _, err := io.Copy(out, in); err != nil {
			return false, fmt.Errorf("read the message: %w", err)
		}
	} else {
		out.Write(shorten(header))
		if _, err := io.Copy(io.Discard, in); err != nil { // its end tells whether it is whole
			return false, fmt.Errorf("read the message: %w", err)
		}
	}
	fmt.Fprintf(out, "\r\n--%s--\r\n", boundary)
	return eightBit, out.Flush() // which has the first error of all writes
}

func encoding(eightBit bool) string {
	if eightBit {
		return "Content-Transfer-Encoding: 8bit\r\n"
	}
	return ""
}

func (r *Report) writeHeader(w *bufio.Writer, boundary string, eightBit bool) {
	fmt.Fprintf(w, "From: Mail Delivery System <MAILER-DAEMON@%s>\r\n", r.Hostname)
	fmt.Fprintf(w, "To: <%s>\r\n", clean(r.Envelope.From.String(), true))
	fmt.Fprintf(w, "Date: %s\r\n", r.Now.Format(rfc5322))
	fmt.Fprintf(w, "Message-ID: <%s@%s>\r\n", r.ID, r.Hostname)
	w.WriteString("Subject: Undelivered Mail Returned to Sender\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n")
	fmt.Fprintf(w, "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"%s\"\r\n%s", boundary, encoding(eightBit))
	w.WriteString("\r\nThis is a MIME-encapsulated message.\r\n")
}

const rfc5322 = "Mon, 2 Jan 2006 15:04:05 -0700"

// writeText is the part for people.
func (r *Report) writeText(w *bufio.Writer, utf8 bool) {
	charset := "us-ascii"
	if utf8 {
		charset = "utf-8"
	}
	fmt.Fprintf(w, "Content-Description: Notification\r\nContent-Type: text/plain; charset=%s\r\n%s\r\n", charset, encoding(utf8))
	fmt.Fprintf(w, "This is the backup mail server %s.\r\n\r\n", r.Hostname)
	fmt.Fprintf(w, "It took your message of %s\r\nwhile the server of the recipients below was away, and couldn't hand it over.\r\nThe message wasn't delivered to:\r\n", r.Envelope.Received.Format(rfc5322))
	for i := range r.Recipients {
		if i == maxNamed {
			fmt.Fprintf(w, "\r\nand %d more.\r\n", len(r.Recipients)-i)
			break
		}
		c := &r.Recipients[i]
		fmt.Fprintf(w, "\r\n<%s>\r\n", clean(c.Path.String(), utf8))
		if c.Expired {
			w.WriteString("    Their server put it off until it was too old.\r\n")
		}
		if !c.Reply.Zero() {
			fmt.Fprintf(w, "    Their server said: %s\r\n", fold(clean(c.Reply.String(), utf8), "\r\n    "))
		}
	}
}

// writeStatus is the part for programs, RFC 3464 §2.
func (r *Report) writeStatus(w *bufio.Writer, utf8 bool) {
	kind := "message/delivery-status"
	if utf8 {
		kind = "message/global-delivery-status"
	}
	fmt.Fprintf(w, "Content-Description: Delivery report\r\nContent-Type: %s\r\n%s\r\nReporting-MTA: dns; %s\r\n", kind, encoding(utf8), r.Hostname)
	if id, ok := decodeXtext(r.Envelope.EnvID); ok {
		fmt.Fprintf(w, "Original-Envelope-Id: %s\r\n", id)
	}
	fmt.Fprintf(w, "Arrival-Date: %s\r\n", r.Envelope.Received.Format(rfc5322))
	for i := range r.Recipients {
		c := &r.Recipients[i]
		w.WriteString("\r\n")
		if kind, address, ok := strings.Cut(c.ORcpt, ";"); ok && isAtom(kind) {
			if address, ok := decodeXtext(address); ok {
				fmt.Fprintf(w, "Original-Recipient: %s; %s\r\n", kind, address)
			}
		}
		to, kind := c.Path.String(), "rfc822"
		if !isASCII(to) {
			kind = "utf-8"
		}
		fmt.Fprintf(w, "Final-Recipient: %s; %s\r\nAction: failed\r\nStatus: %s\r\n", kind, clean(to, utf8), c.status())
		if !c.Reply.Zero() {
			fmt.Fprintf(w, "Diagnostic-Code: smtp; %s\r\n", fold(clean(c.Reply.String(), utf8), "\r\n "))
		}
		if !c.Last.IsZero() {
			fmt.Fprintf(w, "Last-Attempt-Date: %s\r\n", c.Last.Format(rfc5322))
		}
	}
}

// status is the recipient's RFC 3463 code.
func (c *Recipient) status() string {
	switch {
	case isStatus(c.Reply.Enhanced):
		return c.Reply.Enhanced
	case c.Expired || c.Reply.Temporary():
		return "4.4.7"
	}
	return "5.0.0"
}

func isStatus(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != "4" && parts[0] != "5" {
		return false
	}
	for _, p := range parts {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// clean makes one bounded line of a text; utf8 says that it may hold more than
// ASCII.
func clean(s string, utf8 bool) string {
	if len(s) > maxField {
		s = strings.ToValidUTF8(s[:maxField], "")
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && (!utf8 || r < 0xa0 || r == '\ufffd') {
			return '?'
		}
		return r
	}, s)
}

// fold breaks a long text between words.
func fold(s, with string) string {
	var b strings.Builder
	n := 0
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
		case n+len(word) > 60:
			b.WriteString(with)
			n = 0
		default:
			b.WriteByte(' ')
		}
		b.WriteString(word)
		n += len(word) + 1
	}
	return b.String()
}

// decodeXtext reads RFC 3461 §4's xtext. What would hold anything but printable
// ASCII isn't taken: it could end the line that it is written into.
func decodeXtext(s string) (string, bool) {
	if s == "" || len(s) > maxField {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '+' {
			if i+2 >= len(s) {
				return "", false
			}
			high, low := strings.IndexByte(hex, s[i+1]), strings.IndexByte(hex, s[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			c, i = byte(high<<4|low), i+2
		}
		if c < ' ' || c > '~' {
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

const hex = "0123456789ABCDEF"

func isAtom(s string) bool { return envelope.IsDotString(s) && isASCII(s) && !strings.Contains(s, ".") }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// readHeader reads the header section, the line that ends it included.
func readHeader(in *bufio.Reader) ([]byte, error) {
	var header []byte
	for len(header) < readAhead {
		line, err := in.ReadSlice('\n')
		header = append(header, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF:
			return header, nil
		case err != nil:
			return nil, fmt.Errorf("read the message: %w", err)
		case len(bytes.TrimRight(line, "\r\n")) == 0:
			return header, nil
		}
	}
	return header, nil
}

// shorten is a header of at most maxHeader octets, whole lines, without the one
// that ends it.
func shorten(header []byte) []byte {
	if len(header) > maxHeader {
		header = header[:bytes.LastIndexByte(header[:maxHeader], '\n')+1]
	}
	return append(bytes.TrimRight(header, "\r\n"), "\r\n"...)
}

// automatic says that a header is a report's, or that of a machine's answer.
func automatic(header []byte) bool {
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(string(header))
	for line := range strings.SplitSeq(unfolded, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.ToLower(strings.TrimLeft(value, " \t"))
		word := value[:cmp.Or(strings.IndexAny(value+";", "; \t("), 0)]
		switch strings.ToLower(strings.TrimRight(name, " \t")) {
		case "content-type":
			switch word {
			case "multipart/report", "message/delivery-status", "message/global-delivery-status", "message/disposition-notification":
				return true
			}
		case "auto-submitted":
			if word == "auto-replied" {
				return true
			}
		}
	}
	return false
}
