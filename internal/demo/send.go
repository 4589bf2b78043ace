package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Mail is one message as a sender presents it.
type Mail struct {
	XClient string // attributes for XCLIENT, as "ADDR=192.0.2.1 NAME=a.example"; "" for no XCLIENT
	Helo    string // argument of EHLO, default "sender.example"
	From    string // reverse-path without <>
	Params  string // after MAIL FROM:<…>, as "SIZE=100"
	To      []string
	Content []byte // lines end in CRLF, the last one too; not dot-stuffed
}

// Outcome is what the server replied, stage by stage. A stage that was not
// reached has the zero Reply.
type Outcome struct {
	Banner, XClient, Helo, Mail envelope.Reply

	Rcpt        []envelope.Reply // one for each of Mail.To
	Data, Final envelope.Reply
}

// Last returns the reply that settled the matter: the first refusal of a
// stage, of RCPT only if no recipient was accepted, or else the final one.
func (o Outcome) Last() envelope.Reply {
	last := o.Banner
	stages := []envelope.Reply{o.XClient, o.Helo, o.Mail}
	if len(o.Rcpt) > 0 {
		stages = append(stages, bestOf(o.Rcpt))
	}
	for _, r := range append(stages, o.Data, o.Final) {
		if !r.Zero() {
			last = r
		}
	}
	return last
}

func bestOf(replies []envelope.Reply) envelope.Reply {
	for _, r := range replies {
		if r.Positive() {
			return r
		}
	}
	return replies[len(replies)-1]
}

// Accepted returns those of to that the server took the message for.
func (o Outcome) Accepted(to []string) []string {
	var out []string
	for i, r := range o.Rcpt {
		if o.Final.Positive() && r.Positive() {
			out = append(out, to[i])
		}
	}
	return out
}

// Send presents m to the SMTP server at addr over a connection of its own. A
// refusal is no error; a connection that breaks is, and the Outcome has what
// was replied before.
func Send(ctx context.Context, addr string, m Mail) (Outcome, error) {
	var o Outcome
	if !bytes.HasSuffix(m.Content, []byte("\r\n")) {
		return o, errors.New("send: content does not end in CRLF")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return o, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	t := &talk{c: c, r: bufio.NewReader(c)}
	t.send(&o, m)
	if t.err == nil {
		t.command("QUIT")
	}
	return o, t.err
}

// talk is one connection; after the first error it does nothing more.
type talk struct {
	c   net.Conn
	r   *bufio.Reader
	err error
}

func (t *talk) send(o *Outcome, m Mail) {
	if o.Banner = t.reply(); !o.Banner.Positive() {
		return
	}
	helo := m.Helo
	if helo == "" {
		helo = "sender.example"
	}
	if o.Helo = t.command("EHLO %s", helo); !o.Helo.Positive() {
		return
	}
	if m.XClient != "" {
		if o.XClient = t.command("XCLIENT %s", m.XClient); !o.XClient.Positive() {
			return
		}
		if o.Helo = t.command("EHLO %s", helo); !o.Helo.Positive() {
			return
		}
	}
	if o.Mail = t.command("%s", strings.TrimSpace("MAIL FROM:<"+m.From+"> "+m.Params)); !o.Mail.Positive() {
		return
	}
	for _, to := range m.To {
		o.Rcpt = append(o.Rcpt, t.command("RCPT TO:<%s>", to))
	}
	if len(o.Rcpt) == 0 || !bestOf(o.Rcpt).Positive() {
		return
	}
	if o.Data = t.command("DATA"); o.Data.Code != 354 {
		return
	}
	t.content(m.Content)
	o.Final = t.reply()
}

func (t *talk) command(format string, args ...any) envelope.Reply {
	if t.err != nil {
		return envelope.Reply{}
	}
	if _, t.err = fmt.Fprintf(t.c, format+"\r\n", args...); t.err != nil {
		return envelope.Reply{}
	}
	return t.reply()
}

func (t *talk) content(b []byte) {
	if t.err != nil {
		return
	}
	w := bufio.NewWriterSize(t.c, 64<<10) // keeps the first error
	for len(b) > 0 {
		line := b
		if i := bytes.Index(b, []byte("\r\n")); i >= 0 {
			line = b[:i+2]
		}
		if line[0] == '.' {
			w.WriteByte('.')
		}
		w.Write(line)
		b = b[len(line):]
	}
	w.WriteString(".\r\n")
	t.err = w.Flush()
}

func (t *talk) reply() envelope.Reply {
	if t.err != nil {
		return envelope.Reply{}
	}
	var r envelope.Reply
	r, _, t.err = ReadReply(t.r)
	return r
}

const (
	maxReplyLine  = 4096 // bufio's default buffer
	maxReplyLines = 100
)

// ReadReply reads one SMTP reply of at most 100 lines of at most 4,096
// octets. lines has them as they came, without line ends. The error is io.EOF
// only if the connection ended before the reply began.
func ReadReply(br *bufio.Reader) (r envelope.Reply, lines []string, err error) {
	var text []string
	for range maxReplyLines {
		b, err := br.ReadSlice('\n')
		if err != nil {
			if err == io.EOF && (len(lines) > 0 || len(b) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return r, lines, err
		}
		line := strings.TrimRight(string(b), "\r\n")
		lines = append(lines, line)
		code, rest, last, ok := replyLine(line)
		if !ok || r.Code != 0 && r.Code != code {
			return r, lines, fmt.Errorf("malformed reply line %.100q", line)
		}
		r.Code = code
		if enhanced, after, found := strings.Cut(rest, " "); found && isEnhanced(enhanced, code) {
			r.Enhanced, rest = enhanced, after
		}
		text = append(text, rest)
		if last {
			r.Text = strings.Join(text, "\n")
			return r, lines, nil
		}
	}
	return r, lines, fmt.Errorf("reply of more than %d lines", maxReplyLines)
}

// replyLine takes a reply line apart, RFC 5321 §4.2.
func replyLine(line string) (code int, text string, last, ok bool) {
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0, "", false, false
	}
	for i := range 3 {
		if line[i] < '0' || line[i] > '9' {
			return 0, "", false, false
		}
		code = code*10 + int(line[i]-'0')
	}
	if code < 200 || code > 599 {
		return 0, "", false, false
	}
	if len(line) == 3 {
		return code, "", true, true
	}
	return code, line[4:], line[3] == ' ', true
}

// isEnhanced says that s is an RFC 3463 status code of code's class.
func isEnhanced(s string, code int) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != fmt.Sprint(code/100) {
		return false
	}
	for _, p := range parts {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}
