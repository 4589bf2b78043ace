package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// turn is one write of ours and the primary's answer to it. "HANG UP" ends the
// connection; a turn that only listens has no answer.
type turn struct{ want, answer string }

const (
	greeting = "220 primary.example ESMTP\r\n"
	ehlo     = "EHLO mx2.example\r\n"
	pipe     = "250-primary.example\r\n250 PIPELINING\r\n"
	quit     = "QUIT\r\n"
	bye      = "221 2.0.0 Bye\r\n"
	ok       = "250 2.0.0 Ok\r\n"
	goAhead  = "354 End data with <CR><LF>.<CR><LF>\r\n"
	hangUp   = "HANG UP"
	must     = "530 5.7.0 Must issue a STARTTLS command first\r\n"
)

// play answers a connection by the script and reports what differs from it. The
// pipe keeps our writes apart, so each turn checks what went out at once.
func play(conn net.Conn, script []turn) error {
	buf := make([]byte, 1<<20)
	for i, s := range script {
		if s.want != "" {
			n, err := conn.Read(buf)
			if err != nil {
				return fmt.Errorf("turn %d: %v instead of %q", i, err, s.want)
			}
			if got := string(buf[:n]); got != s.want {
				return fmt.Errorf("turn %d: got %q, want %q", i, got, s.want)
			}
		}
		if s.answer == hangUp {
			return nil
		}
		if s.answer != "" {
			if _, err := io.WriteString(conn, s.answer); err != nil {
				return fmt.Errorf("turn %d: %v after %q", i, err, s.want)
			}
		}
	}
	if n, err := conn.Read(buf); err != io.EOF {
		return fmt.Errorf("behind the last turn: %q, %v", buf[:n], err)
	}
	return nil
}

func hello(extensions ...string) []turn {
	reply := "250-primary.example\r\n"
	for i, e := range extensions {
		sep := "-"
		if i == len(extensions)-1 {
			sep = " "
		}
		reply += "250" + sep + e + "\r\n"
	}
	if len(extensions) == 0 {
		reply = "250 primary.example\r\n"
	}
	return []turn{{"", greeting}, {ehlo, reply}}
}

func TestDialogue(t *testing.T) {
	const one = "Subject: 1\r\n\r\nOne\r\n"
	two := []envelope.Envelope{mail("a@x.example", "b@y.example"), mail("c@x.example", "d@y.example")}
	first, second := "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n", "MAIL FROM:<c@x.example>\r\nRCPT TO:<d@y.example>\r\nDATA\r\n"
	three := []envelope.Envelope{mail("a@x.example", "b@y.example", "c@y.example", "d@y.example")}
	threeGroup := "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nRCPT TO:<c@y.example>\r\nRCPT TO:<d@y.example>\r\nDATA\r\n"
	for _, test := range []struct {
		name    string
		route   Route
		mail    []envelope.Envelope
		content string
		scripts [][]turn
		want    [][]int // codes of each message's recipients
		err     string  // Relay's, and that of each message with a zero code
	}{
		{
			name: "pipelined", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + ok + goAhead},
				turn{one + ".\r\n" + second, "250 2.0.0 queued\r\n" + ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "lock-step", mail: two,
			scripts: [][]turn{append(hello(),
				turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead}, turn{one + ".\r\n", ok},
				turn{"MAIL FROM:<c@x.example>\r\n", ok}, turn{"RCPT TO:<d@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead}, turn{one + ".\r\n", ok},
				turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "HELO", mail: two[:1],
			scripts: [][]turn{{{"", greeting}, {ehlo, "500-PIPELINING\r\n500-SIZE\r\n500 5.5.1 what?\r\n"}, {"HELO mx2.example\r\n", "250 primary.example\r\n"},
				{"MAIL FROM:<a@x.example>\r\n", ok}, {"RCPT TO:<b@y.example>\r\n", ok}, {"DATA\r\n", goAhead}, {one + ".\r\n", ok}, {quit, bye}}},
			want: [][]int{{250}},
		},
		{
			name: "mixed recipients", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{threeGroup, ok + ok + "550 5.1.1 no such user\r\n" + "452 4.5.3 too many\r\n" + goAhead},
				turn{one + ".\r\n", "250 2.0.0 queued\r\n"}, turn{quit, bye})},
			want: [][]int{{250, 550, 452}},
		},
		{
			name: "mixed recipients, message refused", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{threeGroup, ok + ok + "550 5.1.1 no such user\r\n" + ok + goAhead},
				turn{one + ".\r\n", "554 5.7.1 spam\r\n"}, turn{quit, bye})},
			want: [][]int{{554, 550, 554}},
		},
		{
			name: "all recipients refused, DATA taken", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + "550 5.1.1 no\r\n" + goAhead},
				turn{".\r\nRSET\r\n" + second, "554 5.5.1 no valid recipients\r\n" + ok + ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{550}, {250}},
		},
		{
			name: "all recipients refused, DATA taken, nothing behind", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + "550 5.1.1 no\r\n" + goAhead}, turn{".\r\n", "250 2.0.0 took nothing\r\n"}, turn{quit, bye})},
			want: [][]int{{550}},
		},
		{
			name: "all recipients refused, DATA refused", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + "450 4.2.0 greylisted\r\n" + "554 5.5.1 no valid recipients\r\n"},
				turn{"RSET\r\n" + second, ok + ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{450}, {250}},
		},
		{
			name: "all recipients refused in lock-step", mail: two,
			scripts: [][]turn{append(hello(),
				turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", "550 5.1.1 no\r\n"},
				turn{"RSET\r\n", ok},
				turn{"MAIL FROM:<c@x.example>\r\n", "550 5.7.1 not you\r\n"},
				turn{quit, bye})},
			want: [][]int{{550}, {550}},
		},
		{
			name: "MAIL refused", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, "451 4.3.0 later\r\n" + "503 5.5.1 need MAIL\r\n" + "503 5.5.1 need RCPT\r\n"},
				turn{"RSET\r\n" + second, ok + "550 5.7.1 never\r\n" + "503 5.5.1 x\r\n" + "503 5.5.1 x\r\n"},
				turn{quit, bye})},
			want: [][]int{{451}, {550}},
		},
		{
			name: "DATA refused", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{threeGroup, ok + ok + "550 5.1.1 no\r\n" + ok + "451 4.3.0 disk\r\n"}, turn{quit, bye})},
			want: [][]int{{451, 550, 451}},
		},
		{
			name: "dots", mail: two[:1], content: ".\r\n..\r\n.x\r\n\r\n.",
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + ok + goAhead}, turn{"..\r\n...\r\n..x\r\n\r\n..\r\n.\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "parameters",
			mail: []envelope.Envelope{{EightBit: true, UTF8: true, Ret: "HDRS", EnvID: "QQ314159", From: envelope.ReversePath{},
				To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: mailbox("pelé@y.example")}, Notify: "SUCCESS,DELAY", ORcpt: "rfc822;b+40y.example"}}}},
			scripts: [][]turn{append(hello("size 1000", "8bitmime", "SMTPUTF8", "DSN", "PIPELINING", "XYZZY"),
				turn{"MAIL FROM:<> SIZE=19 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ314159\r\n" +
					"RCPT TO:<pelé@y.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+40y.example\r\nDATA\r\n", ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "no extensions",
			mail: []envelope.Envelope{{EightBit: true, Ret: "HDRS", EnvID: "QQ314159", From: envelope.ReversePath{},
				To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: mailbox("postmaster")}, Notify: "NEVER"}}}},
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{"MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n", ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "injection",
			mail: []envelope.Envelope{
				{EnvID: "x\r\nRSET", From: envelope.ReversePath{Mailbox: mailbox("x> NOTIFY=NEVER@x.example")},
					To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}, Notify: "NEVER SIZE=1", ORcpt: strings.Repeat("x", 501)}}},
				mail("a@x.example\r\nRSET", "b@y.example"), mail("a\r\nRSET@x.example", "b@y.example"), mail("a@x.example", "b@y.example> SIZE=0"),
				mail("a@x.example", strings.Repeat("b", 2000)+"@y.example"),
			},
			scripts: [][]turn{append(hello("PIPELINING", "DSN"),
				turn{"MAIL FROM:<\"x> NOTIFY=NEVER\"@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n", ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {554}, {554}, {554}, {554}},
		},
		{
			name:    "SMTPUTF8 not offered",
			mail:    []envelope.Envelope{{UTF8: true, To: two[0].To}, two[0]},
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want:    [][]int{{553}, {250}},
		},
		{
			name: "a local-part outside of ASCII as it came",
			mail: []envelope.Envelope{mail("a@x.example", "pelé@y.example", "b@y.example")},
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{"MAIL FROM:<a@x.example>\r\nRCPT TO:<pelé@y.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n", ok + "501 5.1.3 no\r\n" + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{501, 250}},
		},
		{
			name: "a local-part outside of ASCII by SMTPUTF8",
			mail: []envelope.Envelope{mail("a@x.example", "pelé@y.example")},
			scripts: [][]turn{append(hello("PIPELINING", "SMTPUTF8"),
				turn{"MAIL FROM:<a@x.example> SMTPUTF8\r\nRCPT TO:<pelé@y.example>\r\nDATA\r\n", ok + ok + goAhead},
				turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "our name in a later line", mail: two[:1],
			scripts: [][]turn{{{"", "220-primary.example ESMTP\r\n220 mx2.example is welcome\r\n"}, {ehlo, "250 primary.example\r\n"},
				{"MAIL FROM:<a@x.example>\r\n", ok}, {"RCPT TO:<b@y.example>\r\n", ok}, {"DATA\r\n", goAhead}, {one + ".\r\n", ok}, {quit, bye}}},
			want: [][]int{{250}},
		},
		{name: "greeting refused", mail: two, scripts: [][]turn{{{"", "554 5.3.2 go away\r\n"}}}, err: "554"},
		{name: "EHLO refused", mail: two, scripts: [][]turn{{{"", greeting}, {ehlo, "550 no\r\n"}, {"HELO mx2.example\r\n", "550 no\r\n"}}}, err: "550 no"},
		{name: "EHLO 421", mail: two, scripts: [][]turn{{{"", greeting}, {ehlo, "421 4.3.2 no\r\n"}}}, err: "421 4.3.2 no"},
		{name: "greeted by ourselves", mail: two, scripts: [][]turn{{{"", "220 MX2.example. ESMTP\r\n"}}}, err: "loop"},
		{name: "EHLO by ourselves", mail: two, scripts: [][]turn{{{"", greeting}, {ehlo, "250 mx2.example\r\n"}}}, err: "loop"},
		{
			name: "421 to the first MAIL", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, "421 4.3.2 not now\r\n"})},
			want:    [][]int{{421}}, err: "421",
		},
		{
			name: "421 to a later MAIL: another session", mail: two,
			scripts: [][]turn{
				append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, ok + "421 4.3.2 enough\r\n"}),
				append(hello("PIPELINING"), turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "hung up between messages: another session", mail: two,
			scripts: [][]turn{
				append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, ok}, turn{"", hangUp}),
				append(hello("PIPELINING"), turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "421 to RCPT", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"), turn{threeGroup, ok + "550 5.1.1 no\r\n" + "421 4.7.0 too many errors\r\n"})},
			want:    [][]int{{550, 421, 0}}, err: "421",
		},
		{
			name: "421 to the message", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, "421 4.3.0 disk\r\n"}),
				append(hello("PIPELINING"), turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{421}, {250}},
		},
		{
			name: "reply to the message lost", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, hangUp})},
			want:    [][]int{{0}, {0}}, err: "EOF",
		},
		{
			name: "reply to the second message lost", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead},
				turn{one + ".\r\n" + second, ok + ok + ok + goAhead}, turn{one + ".\r\n", hangUp})},
			want: [][]int{{250}, {0}}, err: "EOF",
		},
		{
			name: "a reply too many", mail: two,
			scripts: [][]turn{append(hello(),
				turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead}, turn{one + ".\r\n", ok + ok})},
			want: [][]int{{250}, {0}}, err: "out of turn",
		},
		{
			name: "refused recipient counts though the reply is lost", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"), turn{threeGroup, ok + ok + "550 5.1.1 no\r\n" + ok + goAhead}, turn{one + ".\r\n", hangUp})},
			want:    [][]int{{0, 550, 0}}, err: "EOF",
		},
		{
			name: "reply before the dot", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead + ok})},
			want:    [][]int{{0}}, err: "out of turn",
		},
		{
			name: "250 to DATA", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + ok})},
			want:    [][]int{{0}}, err: "DATA with 250",
		},
		{
			name: "354 to MAIL", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, goAhead})},
			want:    [][]int{{0}}, err: "MAIL with 354",
		},
		{
			name: "354 to the message", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n", goAhead})},
			want:    [][]int{{0}}, err: "message with 354",
		},
		{
			name: "MAIL before STARTTLS", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, must + must + must}, turn{"RSET\r\n", must})},
			want:    [][]int{{0}}, err: "MAIL with 530",
		},
		{
			name: "MAIL before STARTTLS, in lock-step", mail: two,
			scripts: [][]turn{append(hello(), turn{"MAIL FROM:<a@x.example>\r\n", must}, turn{"RSET\r\n", ok}, turn{"MAIL FROM:<>\r\n", must})},
			want:    [][]int{{0}}, err: "MAIL with 530",
		},
		{
			name: "421 when asked again", mail: two,
			scripts: [][]turn{append(hello(), turn{"MAIL FROM:<a@x.example>\r\n", must}, turn{"RSET\r\n", ok}, turn{"MAIL FROM:<>\r\n", "421 4.3.2 not now\r\n"})},
			want:    [][]int{{0}}, err: "MAIL with 530",
		},
		{
			name: "hung up when asked again", mail: two,
			scripts: [][]turn{append(hello(), turn{"MAIL FROM:<a@x.example>\r\n", "502 5.5.1 what?\r\n"}, turn{"RSET\r\n", ok}, turn{"MAIL FROM:<>\r\n", hangUp})},
			want:    [][]int{{0}}, err: "EOF",
		},
		{
			name: "one MAIL not understood", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, "500 5.5.2 bad UTF-8\r\n" + "503 5.5.1 need MAIL\r\n" + "503 5.5.1 need RCPT\r\n"}, turn{"RSET\r\n", ok}, turn{"MAIL FROM:<>\r\n", ok},
				turn{"RSET\r\n" + second, ok + ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{450}, {250}},
		},
		{
			name: "a later MAIL out of order: another session", mail: two,
			scripts: [][]turn{
				append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, ok + "503 5.5.1 nested MAIL\r\n"}),
				append(hello("PIPELINING"), turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "RCPT, DATA and the message answered about the session", mail: three,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{threeGroup, ok + must + ok + "550 5.1.1 no\r\n" + goAhead}, turn{one + ".\r\n", "503 5.5.1 what?\r\n"}, turn{quit, bye})},
			want: [][]int{{450, 450, 550}},
		},
		{
			name: "DATA not implemented", mail: two[:1],
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + "502 5.5.1 what?\r\n"}, turn{quit, bye})},
			want:    [][]int{{450}},
		},
		{
			name: "RSET refused", mail: two,
			scripts: [][]turn{append(hello("PIPELINING"),
				turn{first, ok + "550 5.1.1 no\r\n" + "503 5.5.1 no\r\n"}, turn{"RSET\r\n" + second, "500 5.5.1 what?\r\n"})},
			want: [][]int{{550}, {0}}, err: "RSET with 500",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := test.content
			if content == "" {
				content = one
			}
			var box outbox
			for _, e := range test.mail {
				box.add(content, e)
			}
			checkScripts(t, &box, test.route, test.scripts, test.want, test.err)
		})
	}
}

// checkScripts relays box to a primary that follows scripts, one a connection.
func checkScripts(t *testing.T, box *outbox, route Route, scripts [][]turn, want [][]int, wantErr string) {
	t.Helper()
	conns := make(chan []turn, len(scripts))
	for _, s := range scripts {
		conns <- s
	}
	played := make(chan error, 100)
	c := newClient(t, route, func(conn net.Conn) {
		select {
		case s := <-conns:
			played <- play(conn, s)
		default:
			played <- fmt.Errorf("one connection too many")
		}
	})
	err := c.Relay(context.Background(), dest, box.next)
	for range scripts {
		if err := <-played; err != nil {
			t.Error(err)
		}
	}
	box.check(t)
	if got := fmt.Sprint(err); wantErr == "" && err != nil || !strings.Contains(got, wantErr) {
		t.Errorf("Relay returned %v, want %q", err, wantErr)
	}
	for i, p := range box.all {
		if i >= len(want) {
			if p.settled != 0 {
				t.Errorf("%s: was taken", p.name)
			}
			continue
		}
		if diff := cmp.Diff(want[i], codes(p.replies)); diff != "" {
			t.Errorf("%s: replies (-want +got):\n%s", p.name, diff)
		}
		if zero := want[i] == nil || slices.Contains(want[i], 0); zero != (p.err != nil) {
			t.Errorf("%s: settled with error %v", p.name, p.err)
		}
	}
}

func TestXClient(t *testing.T) {
	const one = "Subject: 1\r\n\r\nOne\r\n"
	client := func(e envelope.Envelope, addr, helo string) envelope.Envelope {
		e.Client = envelope.Client{Addr: netip.MustParseAddr(addr), Port: 4711, Helo: helo, Protocol: "ESMTP",
			Name: "mail.x.example", NameStatus: envelope.NameOK, ReverseName: "mail.x.example", ReverseStatus: envelope.NameOK}
		return e
	}
	a, b := mail("a@x.example", "b@y.example"), mail("c@x.example", "d@y.example")
	first, second := "MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n", "MAIL FROM:<c@x.example>\r\nRCPT TO:<d@y.example>\r\nDATA\r\n"
	offer := "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
	cmd := func(addr, helo string) string {
		return "XCLIENT NAME=mail.x.example ADDR=" + addr + " PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=mail.x.example HELO=" + helo + "\r\n"
	}
	type session struct {
		name    string
		off     bool
		mail    []envelope.Envelope
		scripts [][]turn
		want    [][]int
		err     string
	}
	var again []session // XCLIENT is offered twice, and taken once
	for _, no := range []string{"500 5.5.1 no", "503 5.5.1 no", "504 5.5.1 no", "250 2.0.0 what?"} {
		again = append(again, session{
			name: "other client, " + no, mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "192.0.2.2", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.1", "h"), greeting}, turn{"EHLO h\r\n", "250-primary.example\r\n250-PIPELINING\r\n250 " + offer + "\r\n"},
					turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{cmd("192.0.2.2", "h"), no + "\r\n"}, turn{quit, bye}),
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.2", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		})
	}
	for _, test := range append(again, []session{
		{
			name: "same client", mail: []envelope.Envelope{client(a, "192.0.2.1", "h.x.example"), client(b, "192.0.2.1", "h.x.example")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("192.0.2.1", "h.x.example"), greeting}, turn{"EHLO h.x.example\r\n", pipe},
				turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, ok + ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "other client: another session", mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "2001:db8::1", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.1", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye}),
				append(hello("PIPELINING", offer),
					turn{cmd("IPV6:2001:db8::1", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "other client, XCLIENT still offered, transaction open", mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "192.0.2.2", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.1", "h"), greeting}, turn{"EHLO h\r\n", "250-primary.example\r\n250-PIPELINING\r\n250 " + offer + "\r\n"},
					turn{first, ok + "550 5.1.1 no\r\n" + "503 5.5.1 no\r\n"}, turn{"RSET\r\n", ok},
					turn{cmd("192.0.2.2", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{550}, {250}},
		},
		{
			name: "not offered", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING"), turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want:    [][]int{{250}},
		},
		{
			name: "off", off: true, mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer), turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want:    [][]int{{250}},
		},
		{
			name: "not understood", mail: []envelope.Envelope{client(a, "2001:db8::1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("IPV6:2001:db8::1", "h"), "501 5.5.4 Bad ADDR syntax\r\n"}, turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "not for us", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("192.0.2.1", "h"), "550 5.7.0 insufficient authorization\r\n"}, turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "a parameter not taken", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("192.0.2.1", "h"), "504 5.5.4 no\r\n"}, turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
		{
			name: "answered as if it were NOOP", mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "192.0.2.2", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("192.0.2.1", "h"), ok}, turn{ehlo, "250-primary.example\r\n250-PIPELINING\r\n250 " + offer + "\r\n"},
				turn{first, ok + ok + goAhead}, turn{one + ".\r\n" + second, ok + ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "not understood the second time: another session", mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "192.0.2.2", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.1", "h"), greeting}, turn{"EHLO h\r\n", "250-primary.example\r\n250-PIPELINING\r\n250 " + offer + "\r\n"},
					turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{cmd("192.0.2.2", "h"), "503 5.5.1 once is enough\r\n"}, turn{quit, bye}),
				append(hello("PIPELINING", offer),
					turn{cmd("192.0.2.2", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}, {250}},
		},
		{
			name: "354 to XCLIENT", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer), turn{cmd("192.0.2.1", "h"), goAhead})},
			want:    [][]int{nil}, err: "XCLIENT with 354",
		},
		{
			name: "client refused", mail: []envelope.Envelope{client(a, "192.0.2.1", "h"), client(b, "192.0.2.2", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer), turn{cmd("192.0.2.1", "h"), "554 5.7.1 listed\r\n"}, turn{quit, bye}),
				append(hello("PIPELINING", offer), turn{cmd("192.0.2.2", "h"), greeting}, turn{"EHLO h\r\n", pipe}, turn{second, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{450}, {250}},
		},
		{
			name: "client's EHLO refused", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{
				append(hello("PIPELINING", offer), turn{cmd("192.0.2.1", "h"), greeting}, turn{"EHLO h\r\n", "504 5.5.2 need fully-qualified hostname\r\n"},
					turn{"HELO h\r\n", "504 5.5.2 need fully-qualified hostname\r\n"}, turn{quit, bye}),
				append(hello(), turn{quit, bye})},
			want: [][]int{{450}},
		},
		{
			name: "hung up at XCLIENT", mail: []envelope.Envelope{client(a, "192.0.2.1", "h")},
			scripts: [][]turn{append(hello("PIPELINING", offer), turn{cmd("192.0.2.1", "h"), hangUp})},
			want:    [][]int{nil}, err: "EOF",
		},
		{
			name: "hostile HELO", mail: []envelope.Envelope{client(a, "192.0.2.1", "h ADDR=127.0.0.1\r\nQUIT")},
			scripts: [][]turn{append(hello("PIPELINING", offer),
				turn{cmd("192.0.2.1", "h+20ADDR+3D127.0.0.1+0D+0AQUIT"), greeting}, turn{"EHLO h?ADDR=127.0.0.1??QUIT\r\n", pipe},
				turn{first, ok + ok + goAhead}, turn{one + ".\r\n", ok}, turn{quit, bye})},
			want: [][]int{{250}},
		},
	}...) {
		t.Run(test.name, func(t *testing.T) {
			var box outbox
			for _, e := range test.mail {
				box.add(one, e)
			}
			checkScripts(t, &box, Route{XClient: !test.off}, test.scripts, test.want, test.err)
		})
	}
}

func TestXClientCommand(t *testing.T) {
	const all = " NAME ADDR PROTO HELO REVERSE_NAME PORT "
	long := strings.Repeat("a.", 100) + "example"
	addr := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		name, offered string
		client        envelope.Client
		want          string
	}{
		{"nobody", all, envelope.Client{}, ""},
		{"nothing offered that we have", " LOGIN ", envelope.Client{Addr: addr}, ""},
		{"mapped", " ADDR ", envelope.Client{Addr: netip.MustParseAddr("::ffff:192.0.2.1")}, "XCLIENT ADDR=192.0.2.1"},
		{"zone", " ADDR ", envelope.Client{Addr: netip.MustParseAddr("fe80::1%eth0")}, "XCLIENT ADDR=IPV6:fe80::1"},
		{"unasked", " NAME ADDR ", envelope.Client{Addr: addr}, "XCLIENT NAME=[TEMPUNAVAIL] ADDR=192.0.2.1"},
		{"forged", " NAME ADDR REVERSE_NAME ",
			envelope.Client{Addr: addr, Name: "unknown", NameStatus: envelope.NameForged, ReverseName: "p.example", ReverseStatus: envelope.NameOK},
			"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.1 REVERSE_NAME=p.example"},
		{"DNS failure", " NAME ", envelope.Client{Addr: addr, Name: "unknown", NameStatus: envelope.NameTemp}, "XCLIENT NAME=[TEMPUNAVAIL]"},
		{"no host name", " NAME ", envelope.Client{Addr: addr, Name: "a b.example", NameStatus: envelope.NameOK}, "XCLIENT NAME=[UNAVAILABLE]"},
		{"numeric name", " NAME ", envelope.Client{Addr: addr, Name: "1.2.3.4", NameStatus: envelope.NameOK}, "XCLIENT NAME=[UNAVAILABLE]"},
		{"SMTP", " PROTO HELO ", envelope.Client{Addr: addr, Protocol: "SMTP", Helo: "[192.0.2.1]"}, "XCLIENT PROTO=SMTP HELO=[192.0.2.1]"},
		{"hyphen and underscore", " NAME ", envelope.Client{Addr: addr, Name: "a-b_c.example", NameStatus: envelope.NameOK}, "XCLIENT NAME=a-b_c.example"},
		{"longest HELO", " HELO ", envelope.Client{Addr: addr, Helo: strings.Repeat("a", 255)}, "XCLIENT HELO=" + strings.Repeat("a", 255)},
		{"HELO too long", " HELO ", envelope.Client{Addr: addr, Helo: strings.Repeat("a", 256)}, "XCLIENT HELO=[UNAVAILABLE]"},
		{"longest name", " NAME ", envelope.Client{Addr: addr, Name: strings.Repeat("a.", 127) + "b", NameStatus: envelope.NameOK}, "XCLIENT NAME=" + strings.Repeat("a.", 127) + "b"},
		{"name too long", " NAME ", envelope.Client{Addr: addr, Name: strings.Repeat("a.", 127) + "bb", NameStatus: envelope.NameOK}, "XCLIENT NAME=[UNAVAILABLE]"},
		{"too long", all,
			envelope.Client{Addr: addr, Name: long, NameStatus: envelope.NameOK, ReverseName: long, ReverseStatus: envelope.NameOK, Helo: long},
			"XCLIENT NAME=" + long + " ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=" + long},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := xclient(test.client, test.offered)
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if len(got) > maxCommand {
				t.Errorf("%d octets", len(got))
			}
		})
	}
}

func TestHeloName(t *testing.T) {
	for helo, want := range map[string]string{
		"mail.x.example": "mail.x.example", "[192.0.2.1]": "[192.0.2.1]", "!~": "!~", "a b": "a?b", "a\x7fb": "a?b", "a@b": "a?b", "": "",
		strings.Repeat("a", 256): strings.Repeat("a", 255),
	} {
		if got := heloName(helo); got != want {
			t.Errorf("%q: %q, want %q", helo, got, want)
		}
	}
}

func TestXtext(t *testing.T) {
	for s, want := range map[string]string{"!a~": "!a~", "a b": "a+20b", "+=": "+2B+3D", "\x7f\x00": "+7F+00", "": ""} {
		if got := xtext(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestIsHostname(t *testing.T) {
	long := strings.Repeat("x", 63)
	for name, want := range map[string]bool{
		"a": true, "a.b.": true, "a-b_c.9": true, "A.example": true, long + ".example": true,
		"": false, ".": false, "a..b": false, ".a": false, "-a.b": false, "a-.b": false, "a.b-": false, long + "x.example": false,
		"192.0.2.1": false, "a b": false, "a/b": false, "é.example": false, "[192.0.2.1]": false,
		strings.Repeat("a.", 127) + "a": true, strings.Repeat("a.", 127) + "aa": false,
	} {
		if got := isHostname(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// No address is no next hop's.
func TestIsNextHopNobody(t *testing.T) {
	c := newClient(t, Route{}, func(net.Conn) {})
	if c.IsNextHop(dest, netip.Addr{}) {
		t.Error("it is the next hop's")
	}
	c.routes[dest].noteHost(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)})
	if addr := netip.MustParseAddr("192.0.2.1"); !c.IsNextHop(dest, addr) || c.IsNextHop("elsewhere", addr) || c.IsNextHop(dest, addr.Next()) {
		t.Error("the next hop isn't told from others")
	}
}
