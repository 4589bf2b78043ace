package smtpd

import (
	"bytes"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// FuzzSession plays arbitrary octets as a client. Nothing may panic or leak,
// the server always ends the session, and it accepts no more messages than
// there are CRLF.CRLF, and none that is unclean.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"), false)
	f.Add([]byte("XCLIENT ADDR=192.0.2.1 NAME=[TEMPUNAVAIL]\r\nMAIL FROM:<>\r\n"), true)
	f.Add([]byte("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n\n.\n\r.\r\r\n.\r\r\n"), true)
	f.Add([]byte("STARTTLS\r\nRSET\r\nNOOP\r\n\x00\xff\r\n"), false)
	f.Add([]byte(prelude+"a\n\r\n.\r\n"+smuggled), false)
	s, spool := newServer(f)
	s.TLS = tlsConfig(f)
	s.BareNewline = "normalize"
	snap := snapshot(f, func(spec *policy.Spec) { spec.Limits.SoftErrors = 0 }) // it makes clients wait
	s.Policy = func() *policy.Snapshot { return snap }
	s.CommandTimeout = time.Second
	s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	ln := newPipeListener()
	serve(f, s, ln)
	f.Fuzz(func(t *testing.T, p []byte, xclient bool) {
		from := "192.0.2.1"
		if xclient {
			from = "203.0.113.1"
		}
		p = append(p, "\r\n.\r\nQUIT\r\n"...)
		c := ln.dial(from)
		defer c.Close()
		drained := make(chan struct{})
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, c) }()
		_, _ = c.Write(p)
		<-drained
		ends := 0
		for i := range p {
			if bytes.HasPrefix(p[i:], []byte("\r\n.\r\n")) {
				ends++
			}
		}
		spool.mu.Lock()
		defer spool.mu.Unlock()
		if len(spool.messages) > ends {
			t.Errorf("%d messages accepted, but data ended at most %d times", len(spool.messages), ends)
		}
		for _, m := range spool.messages {
			if dirty := unclean(m.body); dirty != "" {
				t.Errorf("accepted with %s: %q", dirty, m.body)
			}
		}
		spool.messages = nil
	})
}
