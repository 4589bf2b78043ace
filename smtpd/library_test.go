package smtpd

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/understudy-mx/understudy/policy"
)

// hearing notes what go-smtp's parser makes of a command.
type hearing struct{ heard string }

func (h *hearing) Reset()               { h.heard = "" }
func (h *hearing) Logout() error        { return nil }
func (h *hearing) Data(io.Reader) error { return errors.New("one\ntwo") }

func (h *hearing) Mail(from string, o *smtp.MailOptions) error {
	h.heard = fmt.Sprintf("%s %d %s", from, o.Size, o.EnvelopeID)
	return nil
}

func (h *hearing) Rcpt(to string, o *smtp.RcptOptions) error {
	h.heard = fmt.Sprintf("%s %s", to, o.OriginalRecipient)
	return nil
}

// TestLibraryParser is the evidence of docs/decisions/0011-go-smtp.md: commands
// that Postfix takes, and we do, and that go-smtp by itself refuses or changes.
func TestLibraryParser(t *testing.T) {
	const mail, rcpt = "MAIL FROM:<a@x.example>", "RCPT TO:<alice@corp.example>"
	for _, tt := range []struct{ line, reply, heard string }{
		{`MAIL FROM:<"a b"@x.example>`, "250", "a b@x.example 0 "}, // the quotes are gone
		{`MAIL FROM:<a>`, "501", ""},
		{mail + " SIZE=5000000000", "501", ""},
		{mail + " ENVID=a=b", "501", ""},
		{mail + " ENVID=a+3Db", "250", "a@x.example 0 a=b"}, // no longer what goes to the next hop
		{"RCPT TO:<postmaster>", "501", ""},
		{rcpt + " ORCPT=rfc822;", "501", ""},
		{rcpt + " ORCPT=x400;alice", "501", ""},
		{rcpt + " ORCPT=rfc822;a+40b", "250", "alice@corp.example a@b"},
	} {
		h := new(hearing)
		lib := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return h, nil }))
		lib.EnableDSN, lib.EnableSMTPUTF8, lib.ErrorLog = true, true, log.New(io.Discard, "", 0)
		ln := newPipeListener()
		served := make(chan error, 1)
		go func() { served <- lib.Serve(ln) }()
		c := newClient(t, ln.dial("192.0.2.1"))
		c.want("220")
		c.send("EHLO a\r\n")
		c.want("250")
		if strings.HasPrefix(tt.line, "RCPT") {
			c.send("MAIL FROM:<>\r\n")
			c.want("250")
			h.heard = ""
		}
		c.send(tt.line + "\r\n")
		c.want(tt.reply)
		if h.heard != tt.heard {
			t.Errorf("%s: go-smtp hears %q, the note says %q", tt.line, h.heard, tt.heard)
		}
		c.Close()
		lib.Close()
		<-served

		s, _ := newServer(t)
		own := "S: 220\nC: EHLO a\nS: 250\n"
		if strings.HasPrefix(tt.line, "RCPT") {
			own += "C: MAIL FROM:<>\nS: 250\n"
		}
		snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.MessageSize = 0 })
		s.Policy = func() *policy.Snapshot { return snap }
		talk(t, s, own+"C: "+tt.line+"\nS: 250\n")
	}
}

// TestLibraryOutOfStep: a command that go-smtp refuses, though our session let
// it pass, ends the session.
func TestLibraryOutOfStep(t *testing.T) {
	s, _ := newServer(t)
	s.once.Do(s.init)
	ours, theirs := net.Pipe()
	se := newSession(openConnection(&listener{srv: s, ctx: t.Context()}, theirs))
	se.began = time.Now()
	se.library.hand("RCPT TO:<r@x>", func() bool { t.Error("RCPT without MAIL"); return true })
	lib := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return se.library, nil }))
	ln := newPipeListener()
	served := make(chan error, 1)
	go func() { served <- lib.Serve(ln) }()
	ln.conns <- se.library
	c := newClient(t, ours)
	c.want("421 4.3.0 mx.test Error: internal error")
	c.wantClosed()
	lib.Close()
	<-served
}
