package smtpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

const transactionHead = "C: MAIL FROM:<bob@sender.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\n"

// TestEnvelope checks all that a message takes along.
func TestEnvelope(t *testing.T) {
	s, spool := newServer(t)
	s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	talk(t, s, `S: 220
C: XCLIENT NAME=spike.example REVERSE_NAME=ptr.example ADDR=IPV6:2001:db8::1 PORT=4711
S: 220
C: EHLO helo.example
S: 250
C: MAIL FROM:<"b b"@sender.example> BODY=8BITMIME SMTPUTF8 RET=hdrs ENVID=QQ+2B1
S: 250
C: RCPT TO:<alice@corp.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@corp.example
S: 250
C: RCPT TO:<nobody@corp.example>
S: 550
C: RCPT TO:<Carol@corp.example>
S: 250
C: DATA
S: 354
C: Subject: ü
C: 
C: ..dot
C: .
S: 250 2.0.0 Ok: queued as ID1
`)
	got := spool.accepted()
	if len(got) != 1 {
		t.Fatalf("%d messages", len(got))
	}
	want := envelope.Envelope{
		ID: "ID1",
		Client: envelope.Client{
			Addr: netip.MustParseAddr("2001:db8::1"), Port: 4711, Name: "spike.example", ReverseName: "ptr.example",
			NameStatus: envelope.NameOK, ReverseStatus: envelope.NameOK, Helo: "helo.example", Protocol: "ESMTP",
		},
		From:     envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "b b", Domain: "sender.example"}},
		EightBit: true, UTF8: true, Ret: "HDRS", EnvID: "QQ+2B1",
		To: []envelope.Recipient{
			{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "alice", Domain: "corp.example"}}, Notify: "SUCCESS,FAILURE", ORcpt: "rfc822;a+2Bb@corp.example"},
			{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "Carol", Domain: "corp.example"}}},
		},
	}
	env := got[0].env
	if env.Received.IsZero() {
		t.Error("no time of receipt")
	}
	env.Received = time.Time{}
	for i := range env.To {
		env.To[i].Rule = ""
	}
	if diff := cmp.Diff(want, env, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got := got[0].content(); got != "Subject: ü\r\n\r\n.dot\r\n" {
		t.Errorf("content %q", got)
	}
}

func TestReceived(t *testing.T) {
	rcpt := func(a string) envelope.Recipient {
		p, _, err := envelope.ParseForwardPath(a)
		if err != nil {
			t.Fatal(err)
		}
		return envelope.Recipient{Path: p}
	}
	env := envelope.Envelope{
		ID: "42", Received: time.Date(2026, 11, 23, 14, 5, 6, 0, time.UTC),
		Client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: "a.example", Helo: "evil)\r\nX: (", Protocol: "ESMTP", TLS: "TLSv1.3 TLS_AES_128_GCM_SHA256"},
		To:     []envelope.Recipient{rcpt(`<"a b"@corp.example>`)},
	}
	got := received("mx.test", &env, true)
	want := "Received: from evil???X:?? (a.example [192.0.2.1])\r\n" +
		"\t(using TLSv1.3 with cipher TLS_AES_128_GCM_SHA256)\r\n" +
		"\tby mx.test with ESMTPS id 42\r\n\tfor <\"a b\"@corp.example>; Mon, 23 Nov 2026 14:05:06 +0000 (UTC)\r\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	env.To = append(env.To, rcpt("<b@corp.example>"))
	env.Client = envelope.Client{Addr: netip.MustParseAddr("2001:db8::1"), Protocol: "SMTP"}
	got = received("mx.test", &env, false)
	want = "Received: from unknown (unknown [IPv6:2001:db8::1])\r\n\tby mx.test with SMTP id 42; Mon, 23 Nov 2026 14:05:06 +0000 (UTC)\r\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, tt := range []struct {
		proto     string
		utf8, tls bool
		want      string
	}{
		{"SMTP", false, true, "SMTP"}, {"ESMTP", false, false, "ESMTP"}, {"ESMTP", true, false, "UTF8SMTP"}, {"ESMTP", true, true, "UTF8SMTPS"}, {"", false, false, "SMTP"},
	} {
		e := envelope.Envelope{UTF8: tt.utf8, Client: envelope.Client{Protocol: tt.proto}}
		if got := withProtocol(&e, tt.tls); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

func TestSpoolErrors(t *testing.T) {
	full := &envelope.ReplyError{Reply: envelope.NewReply(452, "4.3.1", "Insufficient system storage"), Err: errors.New("secret path")}
	for _, tt := range []struct {
		name   string
		break_ func(*fakeSpool)
		script string
	}{
		{"full at MAIL", func(s *fakeSpool) { s.ready = fmt.Errorf("x: %w", full) }, "C: MAIL FROM:<>\nS: 452 4.3.1 Insufficient system storage\nC: RCPT TO:<alice@corp.example>\nS: 503\n"},
		{"begin", func(s *fakeSpool) { s.begin = errors.New("secret") }, transactionHead + "S: 451 4.3.0 Error: queue file write error\nC: NOOP\nS: 250\n"},
		{"write", func(s *fakeSpool) { s.write = errors.New("secret") }, transactionHead + "S: 354\nC: x\nC: .\nS: 451 4.3.0 Error: queue file write error\nC: NOOP\nS: 250\n"},
		{"commit", func(s *fakeSpool) { s.commit = full }, transactionHead + "S: 354\nC: x\nC: .\nS: 452 4.3.1\nC: MAIL FROM:<>\nS: 250\n"},
		{"panic", func(s *fakeSpool) { s.panics = true }, transactionHead + "S: 354\nC: x\nC: .\nS: 421 4.3.0\nS: CLOSED\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, spool := newServer(t)
			tt.break_(spool)
			talk(t, s, "S: 220\n"+tt.script)
			if n := len(spool.accepted()); n != 0 {
				t.Errorf("%d messages accepted", n)
			}
		})
	}
}

// TestPin changes the policy in the middle of a transaction.
func TestPin(t *testing.T) {
	s, _ := newServer(t)
	open := s.Policy()
	shut := snapshot(t, func(spec *policy.Spec) {
		spec.Restrictions.Client = []policy.Restriction{{Kind: "reject"}}
	})
	var now atomic.Pointer[policy.Snapshot]
	now.Store(open)
	s.Policy = now.Load
	ln := listen(t)
	stop := serve(t, s, ln)
	c := newClient(t, dial(t, ln))
	c.want("220 ")
	c.send("EHLO x\r\nMAIL FROM:<>\r\n")
	c.want("250 ")
	c.want("250 2.1.0")
	now.Store(shut)
	c.send("RCPT TO:<alice@corp.example>\r\n")
	c.want("250 2.1.5")
	c.send("DATA\r\n.\r\n")
	c.want("354")
	c.want("250 2.0.0")
	c.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
	c.want("250 2.1.0")
	c.want("554 5.7.1")
	now.Store(open)
	c.send("RSET\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
	c.want("250")
	c.want("250 2.1.0")
	c.want("250 2.1.5")
	c.Close()
	stop()
}

// TestShutdown ends the server under an idle client, one in a transaction, one
// in its data and one whose commit takes long.
func TestShutdown(t *testing.T) {
	s, spool := newServer(t)
	spool.hold = make(chan struct{})
	s.ShutdownTimeout = time.Minute
	ln := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	idle, rcpt, inData, commit := newClient(t, dial(t, ln)), newClient(t, dial(t, ln)), newClient(t, dial(t, ln)), newClient(t, dial(t, ln))
	for _, c := range []*client{idle, rcpt, inData, commit} {
		c.want("220")
	}
	rcpt.send("MAIL FROM:<>\r\n")
	rcpt.want("250")
	data(inData)
	inData.send("half\r\n")
	data(commit)
	commit.send("x\r\n.\r\n")

	cancel()
	idle.want("421 4.3.2")
	idle.wantClosed()
	rcpt.want("421 4.3.2")
	rcpt.wantClosed()
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("still listening")
	}
	for told := false; !told; time.Sleep(time.Millisecond) { // one after the other is
		told = true
		s.crowd.each(nil, func(c *connection) {
			c.mu.Lock()
			defer c.mu.Unlock()
			told = told && c.draining
		})
	}
	inData.send("done\r\n.\r\nNOOP\r\n")
	close(spool.hold)
	inData.want("250 2.0.0")
	inData.want("421 4.3.2")
	inData.wantClosed()
	commit.want("250 2.0.0")
	commit.want("421 4.3.2")
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if n := len(spool.accepted()); n != 2 {
		t.Errorf("%d messages accepted", n)
	}
}

// TestHardShutdown leaves a client in its data and a commit that never ends.
func TestHardShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, spool := newServer(t)
		spool.hold = make(chan struct{})
		s.ShutdownTimeout = 10 * time.Second
		ln := newPipeListener()
		stop := serve(t, s, ln)
		a, b := newClient(t, ln.dial("192.0.2.1")), newClient(t, ln.dial("192.0.2.2"))
		a.want("220")
		b.want("220")
		data(a)
		data(b)
		b.send("x\r\n.\r\n")
		start := time.Now()
		stop()
		if d := time.Since(start); d != s.ShutdownTimeout {
			t.Errorf("took %v, want %v", d, s.ShutdownTimeout)
		}
		if n := len(spool.accepted()); n != 0 {
			t.Errorf("%d messages accepted", n)
		}
		a.Close()
		b.Close()
	})
}

// TestListenerFails ends Serve when nobody asked for it.
func TestListenerFails(t *testing.T) {
	s, _ := newServer(t)
	ln := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	c := newClient(t, dial(t, ln))
	c.want("220")
	ln.Close()
	c.want("421 4.3.2")
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestProxy(t *testing.T) {
	v2 := func() string {
		h := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.ParseIP("2001:db8::7"), Port: 77}, &net.TCPAddr{IP: net.ParseIP("2001:db8::8"), Port: 25})
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}()
	for _, tt := range []struct {
		name, header, from string
		want               string // client's address, "" when refused
	}{
		{"v1", "PROXY TCP4 203.0.113.9 192.0.2.8 4000 25\r\n", "192.0.2.1", "203.0.113.9"},
		{"v2", v2, "192.0.2.1", "2001:db8::7"},
		{"none", "", "192.0.2.1", ""},
		{"broken", "PROXY TCP9 x\r\n", "192.0.2.1", ""},
		{"unlisted", "", "198.51.100.1", "198.51.100.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, spool := newServer(t)
			s.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			ln := newPipeListener()
			stop := serve(t, s, ln)
			c := newClient(t, ln.dial(tt.from))
			if tt.want == "" {
				_, _ = io.WriteString(c, tt.header+"EHLO x\r\n")
				c.wantClosed()
				stop()
				return
			}
			c.send(tt.header)
			c.want("220")
			data(c)
			c.send(".\r\n")
			c.want("250")
			c.Close()
			stop()
			if got := spool.accepted()[0].env.Client.Addr.String(); got != tt.want {
				t.Errorf("client %s, want %s", got, tt.want)
			}
		})
	}
}

// TestProxyFromAnyone: who isn't listed can't say who it is.
func TestProxyFromAnyone(t *testing.T) {
	s, _ := newServer(t)
	talk(t, s, "S: 220\nC: PROXY TCP4 203.0.113.9 192.0.2.8 4000 25\nS: 500\n")
}

// TestOneWrite counts the writes that answer a pipelined group.
func TestOneWrite(t *testing.T) {
	s, _ := newServer(t)
	ln := newPipeListener()
	stop := serve(t, s, ln)
	c := ln.dial("192.0.2.1")
	b := make([]byte, 4096)
	if _, err := c.Read(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n"); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b[:n]); !regexp.MustCompile(`(?s)^250-mx.test\r\n.*250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 .*\r\n$`).MatchString(got) {
		t.Errorf("first write: %q", got)
	}
	c.Close()
	stop()
}

// TestNotKept: while the queue keeps nothing each message is put off and counted, and the log
// says so once.
func TestNotKept(t *testing.T) {
	s, spool := newServer(t)
	spool.commit = errors.New("away")
	var log bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	s.Metrics = metrics.New(prometheus.NewRegistry())
	const n = 20
	talk(t, s, "S: 220\nC: EHLO client.sender.example\nS: 250\n"+strings.Repeat(`C: MAIL FROM:<s@sender.example>
S: 250
C: RCPT TO:<alice@corp.example>
S: 250
C: DATA
S: 354
C: x
C: .
S: 451
`, n))
	if lines := strings.Count(log.String(), "message not kept"); lines != 1 {
		t.Errorf("%d lines", lines)
	}
	if counted := testutil.ToFloat64(s.Metrics.Commands.WithLabelValues("DATA", "4xx")); counted != n {
		t.Errorf("%v counted, want %d", counted, n)
	}
}

// TestHostileText sends text that would forge log lines and metric series.
func TestHostileText(t *testing.T) {
	s, _ := newServer(t)
	var log bytes.Buffer
	s.Log = slog.New(slog.NewJSONHandler(&log, nil))
	reg := prometheus.NewRegistry()
	s.Metrics = metrics.New(reg)
	long := strings.Repeat("y", 300)
	talk(t, s, `S: 220
C: EHLO "x" level=ERROR `+long+`
S: 250
C: FROB`+long+`
S: 500
C: MAIL FROM:<"\"},{\"msg\":\"accepted\"`+long[:200]+`"@sender.example>
S: 250
C: RCPT TO:<"nobody\\n `+long[:200]+`"@corp.example>
S: 550
C: RCPT TO:<alice@corp.example>
S: 250
C: DATA
S: 354
C: .
S: 250
`)
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		for k, v := range fields {
			if s, is := v.(string); is && len(s) > 256 {
				t.Errorf("%s has %d octets", k, len(s))
			}
		}
	}
	if n := strings.Count(log.String(), `"msg":"accepted"`); n != 1 {
		t.Errorf("%d acceptances logged:\n%s", n, log.String())
	}
	series, err := testutil.GatherAndCount(reg, "understudy_smtp_commands_total")
	if err != nil || series > 12 {
		t.Errorf("%d series of commands, %v", series, err)
	}
}

// A Serve whose context ended before it began returns, however far go-smtp's
// own Serve has got by then.
func TestServeAfterEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		srv, _ := newServer(t)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- srv.Serve(ctx, ln) }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("Serve does not return")
		}
	}
}

func TestUnxtext(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "plain": "plain", "a+20b": "a b", "+2B+3D": "+=", "a+2b": "a+", "a+": "a+", "a+2": "a+2", "a+GZb": "a+GZb", "+20+": "+20+",
	} {
		if got := unxtext(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
