package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
)

// liveClient is a Client whose route is up and takes live sessions.
func liveClient(t *testing.T, r Route, serve func(net.Conn)) *Client {
	r.XClient, r.Live = true, true
	c := newClient(t, r, serve)
	c.routes[dest].health = up
	return c
}

func (c *Client) live() *Live {
	return c.Live(func(string) string { return dest }, netip.MustParseAddr("192.0.2.1"))
}

// said plays a transaction, a recipient and a message a step, and says what came
// back: a reply or an ending for each.
func said(ctx context.Context, l *Live, env *envelope.Envelope, content string, to ...string) (got []string) {
	note := func(r envelope.Reply, err error) bool {
		var lost *LostError
		switch {
		case errors.As(err, &lost):
			got = append(got, string(lost.Ending))
		case err != nil:
			got = append(got, "error: "+err.Error())
		default:
			got = append(got, r.String())
		}
		return err == nil && r.Code/100 <= 3
	}
	defer l.Reset()
	if !note(l.Mail(ctx, env, 0)) {
		return got
	}
	taken := 0
	for _, s := range to {
		if note(l.Rcpt(ctx, &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(s)}})) {
			taken++
		}
	}
	if taken == 0 || !note(l.Data(ctx)) {
		return got
	}
	io.WriteString(l, content)
	note(l.End(ctx))
	return got
}

// TestLiveDialogue checks what goes out and what comes back.
func TestLiveDialogue(t *testing.T) {
	const one, two = "Subject: 1\r\n\r\nOne\r\n", "b@y.example"
	cmd := "XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h.x.example\r\n"
	offered := "250-primary.example\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 DSN\r\n"
	known := append(hello("PIPELINING", offer), turn{cmd, greeting}, turn{"EHLO h.x.example\r\n", offered})
	from, data, end := turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"DATA\r\n", goAhead}, turn{quit, bye}
	rcpt := func(who, answer string) turn { return turn{"RCPT TO:<" + who + "@y.example>\r\n", answer} }
	script := func(turns ...turn) []turn { return append(slices.Clone(known), turns...) }
	eight, dsn := asked("h.x.example"), asked("h.x.example")
	eight.UTF8, dsn.EnvID, dsn.EightBit = true, "QQ1", true
	wide, ret, named := asked("h.x.example"), asked("h.x.example"), asked("h.x.example")
	wide.EightBit, ret.Ret, named.EnvID = true, "HDRS", "QQ1"
	there := asked("h.x.example")
	there.To = []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: mailbox("é@y.example")}}}
	bare := append(known[:3:3], turn{"EHLO h.x.example\r\n", "250 primary.example\r\n"}, from, end)
	for _, tt := range []struct {
		name    string
		env     *envelope.Envelope
		content string
		to      string
		script  []turn
		want    []string
	}{
		{name: "accepted", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", "250 2.0.0 Ok: queued as 4711\r\n"}, end),
			want: []string{"250 2.0.0 Ok", "250 2.0.0 Ok", "354", "250 2.0.0 Ok: queued as 4711"}},
		{name: "dots", content: ".\r\n..x\r\n", script: script(from, rcpt("b", ok), data, turn{"..\r\n...x\r\n.\r\n", ok}, end), want: []string{"250", "250", "354", "250"}},
		{name: "parameters", env: dsn, script: script(turn{"MAIL FROM:<a@x.example> BODY=8BITMIME ENVID=QQ1\r\n", "250 2.1.0 Sender ok\r\n"}, rcpt("b", "550 5.1.1 no\r\n"), end),
			want: []string{"250 2.1.0 Sender ok", "550 5.1.1 no"}},
		{name: "each recipient its own", to: "b c d", script: script(from, rcpt("b", "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted\r\n"), rcpt("c", ok), rcpt("d", "550 5.1.1 no\r\n"), data, turn{one + ".\r\n", ok}, end),
			want: []string{"250", "450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted", "250", "550 5.1.1 no", "354", "250"}},
		{name: "MAIL refused", script: script(turn{from.want, "552 5.3.4 Message size exceeds fixed limit\r\n"}, end), want: []string{"552 5.3.4 Message size exceeds fixed limit"}},
		{name: "HELO refused", script: append(known[:3:3], turn{"EHLO h.x.example\r\n", "550 5.7.1 <h.x.example>: Helo command rejected\r\n"}, turn{"HELO h.x.example\r\n", "550 5.7.1 <h.x.example>: Helo command rejected\r\n"}),
			want: []string{"550 5.7.1 <h.x.example>: Helo command rejected"}},
		{name: "client refused", script: append(known[:2:2], turn{cmd, "554 5.7.1 listed\r\n"}), want: []string{"554 5.7.1 listed"}},
		{name: "DATA refused", script: script(from, rcpt("b", ok), turn{"DATA\r\n", "451 4.7.1 not now\r\n"}, end), want: []string{"250", "250", "451 4.7.1 not now"}},
		{name: "DATA deferred with the least code", script: script(from, rcpt("b", ok), turn{"DATA\r\n", "400 4.0.0 not now\r\n"}, end), want: []string{"250", "250", "400 4.0.0 not now"}},
		{name: "message refused", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", "554-5.7.1 Gtube\r\n554-5.7.1 found\r\n554 5.7.1 here\r\n"}, end),
			want: []string{"250", "250", "354", "554 5.7.1 Gtube / found / here"}},
		{name: "message deferred and 421", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", "421 4.3.2 full\r\n"}, turn{"", hangUp}), want: []string{"250", "250", "354", "421 4.3.2 full"}},
		{name: "one status code of many", script: script(from, rcpt("b", "550-5.1.1 no\r\n550-see below\r\n550 5.7.1 never\r\n"), end), want: []string{"250", "550 5.1.1 no / see below / 5.7.1 never"}},

		// What isn't the primary's word on the client, or none.
		{name: "421 to MAIL", script: script(turn{from.want, "421 4.3.2 bye\r\n"}), want: []string{"before_reply"}},
		{name: "TLS wanted", script: script(turn{from.want, must}), want: []string{"before_reply"}},
		{name: "354 to MAIL", script: script(turn{from.want, goAhead}), want: []string{"before_reply"}},
		{name: "421 to RCPT", to: "b c", script: script(from, rcpt("b", "421 4.7.0 bye\r\n")), want: []string{"250", "before_reply", "before_reply"}},
		{name: "250 to DATA", script: script(from, rcpt("b", ok), turn{"DATA\r\n", ok}), want: []string{"250", "250", "before_reply"}},
		{name: "a reply too many", script: script(from, rcpt("b", ok+ok)), want: []string{"250", "250", "before_reply"}},
		{name: "a reply before the dot", script: script(from, rcpt("b", ok), turn{"DATA\r\n", goAhead + ok}), want: []string{"250", "250", "354", "in_message"}},
		{name: "354 to the message", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", goAhead}), want: []string{"250", "250", "354", "after_dot"}},
		{name: "220 to MAIL", script: script(turn{from.want, greeting}), want: []string{"before_reply"}},
		{name: "221 to RCPT", script: script(from, rcpt("b", bye)), want: []string{"250", "before_reply"}},
		{name: "251 to RCPT", script: script(from, rcpt("b", "251 2.1.5 will forward\r\n"), data, turn{one + ".\r\n", ok}, end), want: []string{"250", "251", "354", "250"}},
		{name: "220 to the message", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", greeting}), want: []string{"250", "250", "354", "after_dot"}},
		{name: "hung up after the dot", script: script(from, rcpt("b", ok), data, turn{one + ".\r\n", hangUp}), want: []string{"250", "250", "354", "after_dot"}},
		{name: "hung up at XCLIENT", script: append(known[:2:2], turn{cmd, hangUp}), want: []string{"not_begun"}},
		{name: "recipients aren't MAIL's", env: there, script: append(known[:3:3], turn{"EHLO h.x.example\r\n", "250-primary.example\r\n250 SMTPUTF8\r\n"}, turn{from.want, "550 5.7.1 no\r\n"}, end), want: []string{"550 5.7.1 no"}},
		{name: "no XCLIENT", script: hello("PIPELINING"), want: []string{"not_begun"}},
		{name: "XCLIENT isn't for us", script: append(known[:2:2], turn{cmd, "550 5.7.0 insufficient authorization\r\n"}), want: []string{"not_begun"}},
		{name: "greeting refused", script: []turn{{"", "554 5.7.1 you are listed\r\n"}}, want: []string{"not_begun"}},
		{name: "greeted by ourselves", script: []turn{{"", "220 mx2.example ESMTP\r\n"}}, want: []string{"not_begun"}},
		{name: "the client is unknown", env: &envelope.Envelope{}, script: hello("PIPELINING", offer), want: []string{"not_begun"}},

		// What a client may not have passed on.
		{name: "a path that is too long", to: strings.Repeat("x", maxPath) + "@y.example c", script: script(from, rcpt("c", "550 5.1.1 no\r\n"), end), want: []string{"250", "501 5.1.3 Bad recipient address syntax", "550 5.1.1 no"}},
		{name: "SMTPUTF8 is gone", env: eight, script: script(from, end), want: []string{"451 4.3.0 Service extensions have changed"}},
		{name: "SMTPUTF8 isn't offered to whom it refuses", env: eight, script: script(turn{from.want, "550 5.7.1 no\r\n"}, end), want: []string{"550 5.7.1 no"}},
		{name: "8BITMIME is gone", env: wide, script: bare, want: []string{"451 4.3.0 Service extensions have changed"}},
		{name: "RET's DSN is gone", env: ret, script: bare, want: []string{"451 4.3.0 Service extensions have changed"}},
		{name: "ENVID's DSN is gone", env: named, script: bare, want: []string{"451 4.3.0 Service extensions have changed"}},
		{name: "bare CR", content: "x\ry\r\n", script: script(from, rcpt("b", ok), data), want: []string{"250", "250", "354", "in_message"}},
		{name: "bare LF", content: "x\n.\r\ny\r\n", script: script(from, rcpt("b", ok), data), want: []string{"250", "250", "354", "in_message"}},
		{name: "NUL", content: "x\x00\r\n", script: script(from, rcpt("b", ok), data), want: []string{"250", "250", "354", "in_message"}},
		{name: "CR at the end", content: "x\r\n\r", script: script(from, rcpt("b", ok), data), want: []string{"250", "250", "354", "in_message"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			played := make(chan error, 1)
			c := liveClient(t, Route{}, func(conn net.Conn) { played <- play(conn, tt.script) })
			l := c.live()
			env := tt.env
			if env == nil {
				env = asked("h.x.example")
			}
			content := tt.content
			if content == "" {
				content = one
			}
			var to []string
			for _, s := range strings.Split(orB(tt.to), " ") {
				to = append(to, s+two[1:])
			}
			got := said(t.Context(), l, env, content, to...)
			l.Close()
			if err := <-played; err != nil {
				t.Error(err)
			}
			for i, g := range got {
				if i >= len(tt.want) || !strings.HasPrefix(g, tt.want[i]) || len(got) != len(tt.want) {
					t.Fatalf("answers %q, want %q", got, tt.want)
				}
			}
			if n := len(c.routes[dest].live.seats); n != 0 {
				t.Errorf("%d seats are taken at the end", n)
			}
		})
	}
}

// TestLiveBroken: a connection that breaks at XCLIENT is nobody's word on the client.
func TestLiveBroken(t *testing.T) {
	cmd := "XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n"
	c := liveClient(t, Route{}, func(conn net.Conn) { _ = play(conn, append(hello(offer), turn{cmd, hangUp})) })
	l := c.live()
	defer l.Close()
	_, err := l.Mail(t.Context(), asked("h"), 0)
	var said *refusal
	if err == nil || errors.As(err, &said) {
		t.Errorf("got %v", err)
	}
}

// TestLiveGivenUp: a message that the client breaks off is broken off at the next
// hop too, by nothing but the end of the connection.
func TestLiveGivenUp(t *testing.T) {
	cmd := turn{"XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n", greeting}
	script := append(hello(offer), cmd, turn{"EHLO h\r\n", pipe}, turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead})
	for name, end := range map[string]func(*Live){"RSET": (*Live).Reset, "QUIT": (*Live).Close} {
		played := make(chan error, 1)
		c := liveClient(t, Route{}, func(conn net.Conn) { played <- play(conn, script) })
		l := c.live()
		rcpt := &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}}
		_, err := l.Mail(t.Context(), asked("h"), 0)
		if err == nil {
			rcpt.Notify = "NEVER" // DSN isn't there any more
			if reply, err := l.Rcpt(t.Context(), rcpt); err != nil || reply != extChanged {
				t.Errorf("%s: NOTIFY: %s, %v", name, reply, err)
			}
			rcpt.Notify = ""
			_, err = l.Rcpt(t.Context(), rcpt)
		}
		if err == nil {
			_, err = l.Data(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		io.WriteString(l, "the first line\r\n")
		end(l)
		l.Close()
		if err := <-played; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// deaf reads nothing after DATA.
type deaf struct {
	net.Conn
	data bool
	over chan struct{}
}

func (d *deaf) Read(p []byte) (int, error) {
	if d.data {
		<-d.over
		return 0, io.EOF
	}
	n, err := d.Conn.Read(p)
	d.data = bytes.HasSuffix(p[:n], []byte("DATA\r\n"))
	return n, err
}

// TestLiveStalled: a next hop that takes no more of a message and says nothing is
// given up after the time for a block and a short look for its last word.
func TestLiveStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := turn{"XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n", greeting}
		script := append(hello(offer), cmd, turn{"EHLO h\r\n", pipe}, turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead})
		over := make(chan struct{})
		c := liveClient(t, Route{Timeouts: Timeouts{Block: 3 * time.Second, Quit: 2 * time.Second}}, func(conn net.Conn) {
			if err := play(&deaf{Conn: conn, over: over}, script); err != nil {
				t.Error("played otherwise")
			}
		})
		l := c.live()
		start := time.Now()
		got := said(t.Context(), l, asked("h"), strings.Repeat("a line of many\r\n", 10_000), "b@y.example")
		if took := time.Since(start); got[len(got)-1] != "in_message" || took > 6*time.Second {
			t.Errorf("%q after %v, want in_message after 5 s at most", got, took)
		}
		close(over)
		l.Close()
	})
}

// TestLiveSession: a client's transactions share a session for as long as it is
// the same client, and a session that ended meanwhile costs nothing.
func TestLiveSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(chan string, 1000)
		c := liveClient(t, Route{}, yes(log))
		l := c.live()
		play := func(helo string) (cmds string) {
			if got := said(t.Context(), l, asked(helo), "x\r\n", "b@y.example"); got[0] != "250 2.0.0 Ok" {
				t.Fatalf("%s: %q", helo, got)
			}
			synctest.Wait()
			for len(log) > 0 {
				cmds += <-log + " "
			}
			return cmds
		}
		// The next hop says 250 to DATA, which ends the session; so RCPT is refused.
		c.routes[dest].Timeouts.Command = time.Minute
		for i, want := range []string{"EHLO XCLI EHLO MAIL RCPT DATA LOST ", "EHLO XCLI EHLO MAIL RCPT DATA LOST "} {
			if got := play("h"); got != want {
				t.Errorf("transaction %d: %q, want %q", i, got, want)
			}
		}
		mail := func(helo string) string {
			if reply, err := l.Mail(t.Context(), asked(helo), 0); err != nil || !reply.Positive() {
				t.Fatalf("%s: %v, %v", helo, reply, err)
			}
			synctest.Wait()
			cmds := ""
			for len(log) > 0 {
				cmds += <-log + " "
			}
			return cmds
		}
		for _, step := range []struct {
			helo string
			wait time.Duration
			want string
		}{
			{"h", 0, "EHLO XCLI EHLO MAIL "},
			{"h", 0, "RSET MAIL "},
			{"h", seatRest - time.Second, "RSET MAIL "}, // a transaction is open: it doesn't rest
			{"i", 0, "EHLO MAIL "},
		} {
			time.Sleep(step.wait)
			if got := strings.ReplaceAll(mail(step.helo), "LOST ", ""); got != step.want {
				t.Errorf("%s after %v: %q, want %q", step.helo, step.wait, got, step.want)
			}
		}
		l.Reset()
		time.Sleep(seatRest + time.Second)
		if n := len(c.routes[dest].live.seats); n != 0 {
			t.Errorf("%d sessions are open after a rest", n)
		}
		if got := strings.ReplaceAll(mail("i"), "LOST ", ""); got != "EHLO XCLI EHLO MAIL " {
			t.Errorf("after a rest: %q", got)
		}
		l.Close()
		if n := testutil.ToFloat64(c.metrics.LiveOpen); n != 0 {
			t.Errorf("%v sessions are counted as open", n)
		}
	})
}

// stubborn is yes, but says no to RSET.
func stubborn(log chan<- string) func(net.Conn) {
	return func(conn net.Conn) {
		near, far := net.Pipe()
		go func() {
			yes(log)(far)
			far.Close()
		}()
		defer near.Close()
		go io.Copy(conn, near)
		commands := bufio.NewReader(conn)
		for {
			line, err := commands.ReadString('\n')
			if err != nil {
				return
			}
			if line == "RSET\r\n" {
				log <- "RSET"
				io.WriteString(conn, "502 5.5.1 never\r\n")
				continue
			}
			io.WriteString(near, line)
		}
	}
}

// TestLiveSessionRefusesRSET: a session that says no to RSET isn't used again.
func TestLiveSessionRefusesRSET(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(chan string, 100)
		l := liveClient(t, Route{}, stubborn(log)).live()
		for range 2 {
			if reply, err := l.Mail(t.Context(), asked("h"), 0); err != nil || !reply.Positive() {
				t.Fatalf("%v, %v", reply, err)
			}
		}
		l.Close()
		synctest.Wait()
		cmds := ""
		for len(log) > 0 {
			cmds += <-log + " "
		}
		if got := strings.ReplaceAll(cmds, "LOST ", ""); got != "EHLO XCLI EHLO MAIL RSET EHLO XCLI EHLO MAIL " && got != "EHLO XCLI EHLO MAIL RSET EHLO XCLI EHLO MAIL QUIT " {
			t.Errorf("%q", got)
		}
	})
}

// TestLiveSeats: the next hop has so many sessions of ours at most, a client its
// part of them; a session that rests makes way for another client.
func TestLiveSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := liveClient(t, Route{MaxLive: 10}, yes(make(chan string, 1000)))
		c.routes[dest].live.perClient = 2
		var all []*Live
		mail := func(addr string) string {
			l := c.live()
			all = append(all, l)
			e := asked("h")
			e.Client.Addr = netip.MustParseAddr(addr)
			reply, err := l.Mail(t.Context(), e, 0)
			if err != nil {
				return err.Error()
			}
			return reply.String()
		}
		full := "live (not_begun): too many sessions at once"
		for i, want := range []string{"250 2.0.0 Ok", "250 2.0.0 Ok", full} {
			if got := mail("192.0.2.9"); got != want {
				t.Errorf("session %d of a client: %q, want %q", i, got, want)
			}
		}
		for i := range 9 {
			want := "250 2.0.0 Ok"
			if i == 8 {
				want = full
			}
			if got := mail(fmt.Sprintf("192.0.2.%d", i+10)); got != want {
				t.Errorf("client %d: %q, want %q", i, got, want)
			}
		}
		all[0].Reset()
		if got := mail("192.0.2.99"); got != "250 2.0.0 Ok" {
			t.Errorf("with a session that rests: %q", got)
		}
		to := &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}}
		ousted := "live (before_reply): " + errOusted.Error()
		for i, want := range []string{1: "250 2.0.0 Ok", 3: ousted, 5: ousted, 6: "250 2.0.0 Ok"} {
			switch {
			case want == "":
				continue
			case i == 3: // who thinks for long makes way
				time.Sleep(seatRest)
				if got := mail("192.0.2.100"); got != "250 2.0.0 Ok" {
					t.Errorf("with a client that thinks: %q", got)
				}
			case i == 5:
				time.Sleep(liveRest - seatRest - time.Second)
				if n := len(c.routes[dest].live.seats); n != 10 {
					t.Errorf("%d sessions are open, want 10", n)
				}
				all[6].Rcpt(t.Context(), to)
				time.Sleep(2 * time.Second)
			}
			reply, err := all[i].Rcpt(t.Context(), to)
			got := reply.String()
			if err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("client %d goes on: %q, want %q", i, got, want)
			}
		}
		for _, l := range all {
			l.Close()
		}
		if n := len(c.routes[dest].live.seats); n != 0 {
			t.Errorf("%d sessions are open at the end", n)
		}
		if n := testutil.ToFloat64(c.metrics.LiveUnused.WithLabelValues("full")); n != 2 {
			t.Errorf("%v are counted, want 2", n)
		}
	})
}

// TestLiveUnwilling: when there is no use in a session, none is opened.
func TestLiveUnwilling(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*route)
		want   error
	}{
		{"down", func(r *route) { r.health = down }, errDown},
		{"unknown", func(r *route) { r.health = unknown }, errDown},
		{"mute", func(r *route) { r.mute = true }, errXClient},
		{"not wanted", func(r *route) { r.Live = false }, errNotLive},
		{"paused", func(r *route) { r.pauseLive(true) }, errSlow},
		{"slow", func(r *route) { r.notePace(liveSlow); r.notePace(liveSlow); r.notePace(liveSlow) }, errSlow},
		{"the client is the next hop", func(r *route) { r.noteHost(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}) }, errLoop},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := liveClient(t, Route{}, func(net.Conn) { t.Error("it was dialled") })
			r := c.routes[dest]
			if _, ok := c.LiveOffers(); ok {
				t.Error("offers are known before anything was offered")
			}
			r.noteOffers(caps{eightBit: true, dsn: true, maxSize: 4711})
			if o, ok := c.LiveOffers(); !ok || o != (Offers{EightBit: true, DSN: true, Size: 4711}) {
				t.Errorf("offers %+v, %v", o, ok)
			}
			tt.change(r)
			if _, err := c.live().Mail(t.Context(), asked("h"), 0); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if _, ok := c.LiveOffers(); ok && tt.want != errLoop {
				t.Error("its offers count")
			}
		})
	}
	r := liveClient(t, Route{}, nil).routes[dest]
	for range 2 * liveSlows {
		r.notePace(liveSlow)
		r.notePace(0)
	}
	if err := r.willing(); err != nil {
		t.Errorf("after a slow reply now and then: %v", err)
	}
}

// TestLiveRoutes: with more than one next hop, the first recipient tells whose
// word counts; others are for another transaction.
func TestLiveRoutes(t *testing.T) {
	from := turn{"MAIL FROM:<a@x.example>\r\n", ok}
	cmd := turn{"XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n", greeting}
	start := append(hello(offer), cmd, turn{"EHLO h\r\n", pipe})
	for _, tt := range []struct {
		name   string
		script []turn
		to     string
		want   []string
	}{
		{"one way", append(start[:4:4], from, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"RCPT TO:<c@y.example>\r\n", "550 5.1.1 no\r\n"}, turn{"DATA\r\n", goAhead}, turn{"x\r\n.\r\n", ok}, turn{quit, bye}),
			"b@y.example c@y.example", []string{"0", "250", "550", "354", "250"}},
		{"two ways", append(start[:4:4], from, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead}, turn{"x\r\n.\r\n", ok}, turn{quit, bye}),
			"b@y.example c@z.example", []string{"0", "250", "452", "354", "250"}},
		{"MAIL refused", append(start[:4:4], turn{from.want, "554 5.7.1 no\r\n"}, turn{quit, bye}), "b@y.example c@y.example", []string{"0", "554", "554"}},
		{"the other isn't live", []turn{{"", hangUp}}, "b@z.example c@y.example", []string{"0", "not_begun", "not_begun"}},
		{"no route", []turn{{"", hangUp}}, "b@nowhere.example", []string{"0", "not_begun"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			played := make(chan error, 1)
			c := liveClient(t, Route{}, func(conn net.Conn) { played <- play(conn, tt.script) })
			c.routes["other"] = newRoute("other", Route{Name: "other", Address: "other.example:25", TLS: TLSOff, XClient: true}, c.metrics)
			c.routes[dest].noteOffers(caps{})
			l := c.Live(func(domain string) string { return map[string]string{"y.example": dest, "z.example": "other"}[domain] }, netip.Addr{})
			reply, err := l.Mail(t.Context(), asked("h"), 0)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{fmt.Sprint(reply.Code)}
			taken := 0
			for _, to := range strings.Fields(tt.to) {
				reply, err := l.Rcpt(t.Context(), &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(to)}})
				var lost *LostError
				if errors.As(err, &lost) {
					got = append(got, string(lost.Ending))
					continue
				}
				got = append(got, fmt.Sprint(reply.Code))
				if reply.Positive() {
					taken++
				}
			}
			if taken > 0 {
				reply, _ := l.Data(t.Context())
				io.WriteString(l, "x\r\n")
				last, _ := l.End(t.Context())
				got = append(got, fmt.Sprint(reply.Code), fmt.Sprint(last.Code))
			}
			l.Close()
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.want[1] != "not_begun" {
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// liveFault is where a next hop goes wrong in a live session, and how.
type liveFault struct {
	step  string // a command, "message 0" to "message 9", or "dot"
	after bool   // … has been read, in place of the reply to it
	kind  string // "die", "reset", "hang", or what it says
	goOn  bool   // and then it goes on as if nothing had been
}

// faulty is a next hop with a fault.
type faulty struct {
	liveFault
	at    chan struct{} // closed when the fault is there, or the session over
	shown sync.Once
	over  chan struct{} // closed when the test is
	whole bool          // it has had the message, and the dot
	stray string        // what came without being asked for
}

const tenth = 64 << 10

// fault does what is wrong, at its place, and says whether the session is over.
func (p *faulty) fault(conn net.Conn, step string, after bool) (over bool) {
	if step != p.step || after != p.after {
		return false
	}
	defer p.shown.Do(func() { close(p.at) })
	switch p.kind {
	case "die":
		conn.Close()
		return true
	case "reset":
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
		return true
	case "hang":
		return false
	}
	io.WriteString(conn, p.kind)
	return !p.goOn
}

func (p *faulty) serve(conn net.Conn) {
	defer p.shown.Do(func() { close(p.at) })
	defer conn.Close()
	br := bufio.NewReaderSize(conn, 1<<10)
	step := func(name, want, reply string) bool {
		if p.fault(conn, name, false) || p.hangs(name, false) {
			return false
		}
		if want != "" {
			line, err := br.ReadString('\n')
			if err != nil {
				return false
			}
			if !strings.HasPrefix(line, want) {
				p.stray = line
				return false
			}
		}
		if p.fault(conn, name, true) || p.hangs(name, true) {
			return false
		}
		_, err := io.WriteString(conn, reply)
		return err == nil
	}
	if !step("connect", "", greeting) || !step("EHLO", "EHLO mx2", "250-primary.example\r\n250 "+offer+"\r\n") || !step("XCLIENT", "XCLIENT ", greeting) ||
		!step("EHLO again", "EHLO h", pipe) || !step("MAIL", "MAIL ", ok) || !step("RCPT", "RCPT ", ok) || !step("RCPT again", "RCPT ", ok) || !step("DATA", "DATA", goAhead) {
		return
	}
	for i := range 10 {
		name := fmt.Sprint("message ", i)
		if p.fault(conn, name, false) || p.hangs(name, false) {
			return
		}
		if _, err := io.CopyN(io.Discard, br, tenth-chunk); err != nil { // the rest may be in a buffer of ours
			return
		}
		if i < 9 {
			continue
		}
		rest, err := readData(br)
		if !err || len(rest) != 10*chunk {
			return
		}
	}
	p.whole = true
	if p.fault(conn, "dot", true) || p.hangs("dot", true) {
		return
	}
	io.WriteString(conn, ok)
	br.ReadString('\n')
}

// hangs waits for the test's end, where that is the fault.
func (p *faulty) hangs(step string, after bool) bool {
	if p.kind != "hang" || step != p.step || after != p.after {
		return false
	}
	<-p.over
	return true
}

// TestLiveFaults has a next hop on loopback go wrong before and after each
// command, and at each tenth of the message. Whatever happens: what it accepted
// it has, and if it has the message, we know that it may.
func TestLiveFaults(t *testing.T) {
	steps := []string{"connect", "EHLO", "XCLIENT", "EHLO again", "MAIL", "RCPT", "RCPT again", "DATA"}
	for i := range 10 {
		steps = append(steps, fmt.Sprint("message ", i))
	}
	steps = append(steps, "dot")
	var faults []liveFault
	for _, step := range steps {
		for _, after := range []bool{false, true} {
			if after && (step == "connect" || strings.HasPrefix(step, "message")) || !after && step == "dot" { // it is with the last tenth
				continue
			}
			for _, kind := range []string{"die", "reset", "hang", "HTTP/1.1 400 Bad Request\r\n", "250 2.0.0 Ok: queued\r\n", "421 4.3.2 bye\r\n", "354 go\r\n", "250-2.0.0 O", "\x00\xff\r\n"} {
				faults = append(faults, liveFault{step, after, kind, false})
				if len(kind) > 5 {
					faults = append(faults, liveFault{step, after, kind, true})
				}
			}
		}
	}
	endings := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	places := make(chan struct{}, 40) // those who hang need time, not work
	for _, f := range faults {
		places <- struct{}{}
		wg.Go(func() {
			ending := playFaulty(t, f)
			mu.Lock()
			endings[ending]++
			mu.Unlock()
			<-places
		})
	}
	wg.Wait()
	for _, e := range []Ending{NotBegun, BeforeReply, InMessage, AfterDot, Late} {
		if endings[string(e)] == 0 {
			t.Errorf("no run ended %s: %v", e, endings)
		}
	}
}

// playFaulty plays a transaction to a next hop with a fault, and returns its
// ending.
func playFaulty(t *testing.T, f liveFault) string {
	name := fmt.Sprintf("%s, after: %v, %q, goes on: %v", f.step, f.after, f.kind, f.goOn)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return ""
	}
	defer ln.Close()
	p := &faulty{liveFault: f, at: make(chan struct{}), over: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if conn, err := ln.Accept(); err == nil {
			conn.(*net.TCPConn).SetReadBuffer(64 << 10)
			p.serve(conn)
		}
	})
	wait := 2 * time.Second
	c := New(Options{Hostname: "mx2.example", Metrics: metrics.New(prometheus.NewRegistry()), Routes: map[string]Route{dest: {Name: "p", Address: ln.Addr().String(), TLS: TLSOff, XClient: true, Live: true,
		Timeouts: Timeouts{Greeting: wait, Command: wait, DataInit: wait, Block: wait, LiveEnd: wait, Quit: wait}}}})
	c.routes[dest].health = up
	l := c.live()
	ending := playTenths(t, l, p)
	l.Close()
	close(p.over)
	wg.Wait()
	if p.stray != "" {
		t.Errorf("%s: it got %.100q", name, p.stray)
	}
	if ending == "accepted" && !p.whole {
		t.Errorf("%s: accepted, and it hasn't got the message", name)
	}
	if p.whole && ending != "accepted" && ending != "421" && !(&LostError{Ending: Ending(ending)}).MayHaveArrived() {
		t.Errorf("%s: it has the message, and the ending is %s", name, ending)
	}
	var want []string
	switch {
	case f.goOn && f.after && strings.HasPrefix(f.kind, "250 ") && f.step != "DATA" && f.step != "dot":
		return ending // a reply as good as any; the one too many shows later
	case f.goOn && f.after && strings.HasPrefix(f.kind, "250-") && f.step[0] == 'E':
		want = []string{"accepted"} // the reply has a line more
	case f.step == "DATA" && f.after && strings.HasPrefix(f.kind, "354"):
		want = []string{"in_message", "after_dot"}
	case slices.Contains([]string{"connect", "EHLO", "XCLIENT", "EHLO again"}, f.step):
		want = []string{"not_begun", "before_reply"}
	case f.step == "dot" && strings.HasPrefix(f.kind, "250 "):
		want = []string{"accepted"}
	case f.step == "dot" && strings.HasPrefix(f.kind, "421"):
		want = []string{"421"}
	case f.step == "dot":
		want = []string{"after_dot", "late"}
	case f.step[0] == 'm':
		want = []string{"in_message"}
		if f.kind == "hang" || f.kind == "die" || f.kind == "reset" {
			want = []string{"in_message", "after_dot", "late"} // the end may fit into buffers
		}
	case f.step == "MAIL" && !f.after:
		want = []string{"not_begun", "before_reply"}
	default:
		want = []string{"before_reply"}
		if f.after && strings.HasPrefix(f.kind, "250 ") { // it was a reply to that command
			want = append(want, "accepted")
		}
	}
	if !slices.Contains(want, ending) {
		t.Errorf("%s: ended %s, want one of %v", name, ending, want)
	}
	return ending
}

// playTenths plays the transaction; a fault has shown before what follows it.
func playTenths(t *testing.T, l *Live, p *faulty) string {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lost := func(err error) string {
		var e *LostError
		if !errors.As(err, &e) {
			t.Error(err)
			return ""
		}
		return string(e.Ending)
	}
	shows := func(step string) {
		if p.step == step && !p.after {
			<-p.at
		}
	}
	_, err := l.Mail(ctx, asked("h"), 0)
	for _, step := range []string{"RCPT", "RCPT again", "DATA"} {
		if err != nil {
			return lost(err)
		}
		shows(step)
		if step == "DATA" {
			_, err = l.Data(ctx)
		} else {
			_, err = l.Rcpt(ctx, &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}})
		}
	}
	if err != nil {
		return lost(err)
	}
	line := append(bytes.Repeat([]byte("x"), 1022), "\r\n"...)
	content := bytes.Repeat(line, tenth/1024)
	for i := range 10 {
		shows(fmt.Sprint("message ", i))
		l.Write(content)
	}
	reply, err := l.End(ctx)
	if err != nil {
		return lost(err)
	}
	if reply.Positive() {
		return "accepted"
	}
	return fmt.Sprint(reply.Code)
}

// TestReadWhole: what a client gets of a reply is whole, clean and bounded.
func TestReadWhole(t *testing.T) {
	many := strings.Repeat("550-5.1.1 x\r\n", 200) + "550 5.1.1 end\r\n"
	long := strings.Repeat("550-5.1.1 "+strings.Repeat("y", 1500)+"\r\n", 20) + "550 5.1.1 end\r\n"
	for _, tt := range []struct{ name, in, want, status string }{
		{"lines", "550-5.1.1 a\r\n550-5.1.1  b \r\n550 5.1.1 \r\n", "a\n b \n", "5.1.1"},
		{"no status", "550-a\r\n550 b\r\n", "a\nb", ""},
		{"another class", "450 5.1.1 a\r\n", "5.1.1 a", ""},
		{"different ones", "550-5.1.1 a\r\n550 5.7.1 b\r\n", "5.1.1 a\n5.7.1 b", ""},
		{"in one line alone", "550-5.1.1 a\r\n550 b\r\n", "5.1.1 a\nb", ""},
		{"control characters", "550 5.1.1 a\x1b[2J\rb\x00c\x9b\tü\r\n", "a?[2J?b?c? ?", "5.1.1"},
		{"a bare LF ends a line", "550-5.1.1 a\n550 5.1.1 b\n", "a\nb", "5.1.1"},
		{"nothing", "250\r\n", "", ""},
		{"many lines", many, strings.Repeat("x\n", maxLiveLines-1) + "x", "5.1.1"},
		{"long lines", long, strings.TrimSuffix(strings.Repeat(strings.Repeat("y", 1500)+"\n", 5), "\n") + "\nend", "5.1.1"},
	} {
		r, err := readWhole(newReplyReader(strings.NewReader(tt.in)))
		if err != nil || r.Text != tt.want || r.Enhanced != tt.status {
			t.Errorf("%s: %d %q %.200q, %v; want %q %.200q", tt.name, r.Code, r.Enhanced, r.Text, err, tt.status, tt.want)
		}
	}
	for _, in := range []string{"", "250-a\r\n", "25\r\n", "250-a\r\n550 b\r\n", "999 x\r\n", "\r\n", "250-x", strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", 100)} {
		if r, err := readWhole(newReplyReader(strings.NewReader(in))); err == nil {
			t.Errorf("%.40q is taken for %v", in, r)
		}
	}
}

// TestLiveTLS: a live session through TLS, whose own records come between, is no
// other; nor are the many of it that come one after another.
func TestLiveTLS(t *testing.T) {
	config, _ := certificate(t, "primary.example")
	p := &primary{config: config, xclient: true}
	c := liveClient(t, Route{}, nil)
	c.routes[dest].TLS = TLSOpportunistic
	c.dial = overTCP(t, p.serve)
	l := c.live()
	content := strings.Repeat("Grüße\r\n.\r\n", 10_000)
	for range 3 {
		if got := said(t.Context(), l, asked("h"), content, "b@y.example", "c@y.example"); got[len(got)-1] != "250 2.0.0 queued" {
			t.Errorf("%q", got)
		}
	}
	l.Close()
	if p.secure != 1 || len(p.accepted) != 3 || p.accepted[2].content != content || len(p.accepted[2].to) != 2 {
		t.Errorf("%d sessions in TLS, %d messages", p.secure, len(p.accepted))
	}
}

// TestLiveNextMessage: a client's next message goes by the same session without a
// word in between, after RSET where a transaction is open; and by another session
// if that one has ended, or says that it is the wrong moment for MAIL.
func TestLiveNextMessage(t *testing.T) {
	cmd := "XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n"
	mail, rcpt, data := turn{"MAIL FROM:<a@x.example>\r\n", ok}, turn{"RCPT TO:<b@y.example>\r\n", ok}, turn{"DATA\r\n", goAhead}
	first := append(hello(offer), turn{cmd, greeting}, turn{"EHLO h\r\n", pipe}, mail, rcpt, data)
	message := []turn{mail, rcpt, data, {"x\r\n.\r\n", ok}, {quit, bye}}
	dot := func(answer string) []turn { return append(first[:len(first):len(first)], turn{"x\r\n.\r\n", answer}) }
	for _, tt := range []struct {
		name   string
		script []turn
		fresh  bool
		want   string
	}{
		{"taken", append(dot(ok), message...), false, "250"},
		{"refused", append(dot("550 5.7.1 no\r\n"), message...), false, "550"},
		{"DATA refused", append(first[:len(first)-1:len(first)-1], append([]turn{{"DATA\r\n", "451 4.7.1 no\r\n"}, {"RSET\r\nMAIL FROM:<a@x.example>\r\n", ok + ok}}, message[1:]...)...), false, "451"},
		{"RSET refused", append(first[:len(first)-1:len(first)-1], turn{"DATA\r\n", "451 4.7.1 no\r\n"}, turn{"RSET\r\nMAIL FROM:<a@x.example>\r\n", "502 5.5.1 no\r\n" + ok}, turn{"", hangUp}), true, "451"},
		{"hung up meanwhile", append(dot(ok), turn{"", hangUp}), true, "250"},
		{"421 meanwhile", append(dot(ok+"421 4.4.2 bye\r\n"), turn{"", hangUp}), true, "250"},
		{"421 to MAIL", append(dot(ok), turn{mail.want, "421 4.7.0 enough\r\n"}, turn{"", hangUp}), true, "250"},
		{"nested MAIL", append(dot(ok), turn{mail.want, "503 5.5.1 nested MAIL command\r\n"}, turn{"", hangUp}), true, "250"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			scripts := [][]turn{tt.script, append(first[:4:4], message...)}
			played := make(chan error, 2)
			n := 0
			c := liveClient(t, Route{}, func(conn net.Conn) {
				n++
				played <- play(conn, scripts[n-1])
			})
			l := c.live()
			got := said(t.Context(), l, asked("h"), "x\r\n", "b@y.example")
			if last := got[len(got)-1]; !strings.HasPrefix(last, tt.want) {
				t.Errorf("first message: %q", got)
			}
			meanwhile := strings.HasSuffix(tt.name, "meanwhile")
			if meanwhile {
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
			got = said(t.Context(), l, asked("h"), "x\r\n", "b@y.example")
			if last := got[len(got)-1]; last != "250 2.0.0 Ok" {
				t.Errorf("second message: %q", got)
			}
			l.Close()
			if !meanwhile {
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
			if tt.fresh {
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestCleanLines compares with the definition, for all short texts of the octets
// that matter, cut anywhere.
func TestCleanLines(t *testing.T) {
	const octets = "\r\n\x00x"
	var all func(p []byte, left int)
	all = func(p []byte, left int) {
		for cut := range len(p) + 1 {
			want := true
			for i, c := range p[:max(len(p)-1, 0)] {
				want = want && (c == '\r') == (p[i+1] == '\n')
			}
			want = want && (len(p) == 0 || p[0] != '\n') && !bytes.Contains(p, []byte{0})
			got := cleanLines(p[:cut], false) && cleanLines(p[cut:], cut > 0 && p[cut-1] == '\r')
			if got != want {
				t.Fatalf("%q cut at %d: %v, want %v", p, cut, got, want)
			}
		}
		if left == 0 {
			return
		}
		for i := range len(octets) {
			all(append(p[:len(p):len(p)], octets[i]), left-1)
		}
	}
	all(nil, 6)
}

// TestRest: a next hop that is left alone is probed and nothing more, until it isn't;
// the transaction under way is played to its end.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &primary{xclient: true}
		woken := 0
		c := liveClient(t, Route{}, p.serve)
		c.onUp = func(string) { woken++ }
		l := c.live()
		env := asked("h")
		if reply, err := l.Mail(t.Context(), env, 0); err != nil || !reply.Positive() {
			t.Fatal(reply, err)
		}
		c.Rest(true)
		if c.Up(dest) || !c.Status()[0].Up {
			t.Errorf("up %v, in the status %v", c.Up(dest), c.Status()[0].Up)
		}
		if got := said(t.Context(), l, env, "x\r\n", "a@corp.example"); len(got) == 0 || strings.HasPrefix(got[0], "250") {
			t.Errorf("another transaction: %q", got)
		}
		if n := testutil.ToFloat64(c.metrics.LiveUnused.WithLabelValues("stand_in")); n != 1 {
			t.Errorf("counted %v times", n)
		}
		if _, live := c.LiveOffers(); live {
			t.Error("clients are offered what the next hop has")
		}
		q := c.Inquire(func(string) string { return dest }, env, 0)
		if reply, err := q.Ask(t.Context(), &envelope.Recipient{}); !errors.Is(err, errResting) {
			t.Errorf("asked: %v, %v", reply, err)
		}
		q.Close()
		c.note(c.routes[dest], errors.New("gone"))
		c.note(c.routes[dest], nil)
		if woken != 0 {
			t.Error("the queue is woken")
		}
		c.Rest(false)
		c.Rest(false)
		if !c.Up(dest) || woken != 1 {
			t.Errorf("over: up %v, woken %d times", c.Up(dest), woken)
		}
		if got := said(t.Context(), l, env, "x\r\n", "a@corp.example"); len(got) == 0 || !strings.HasPrefix(got[0], "250") {
			t.Errorf("over: %q", got)
		}
		l.Close()
	})
}

// TestLiveOffersToOthers: a client that the next hop refuses is offered little
// there; others are offered what we are.
func TestLiveOffersToOthers(t *testing.T) {
	cmd := turn{"XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h\r\n", greeting}
	script := append(hello("8BITMIME", "DSN", offer), cmd, turn{"EHLO h\r\n", "250 primary.example\r\n"}, turn{"MAIL FROM:<a@x.example>\r\n", "550 5.7.1 no\r\n"}, turn{quit, bye})
	played := make(chan error, 1)
	c := liveClient(t, Route{}, func(conn net.Conn) { played <- play(conn, script) })
	l := c.live()
	if reply, err := l.Mail(t.Context(), asked("h"), 0); err != nil || reply.Code != 550 {
		t.Errorf("%v, %v", reply, err)
	}
	l.Close()
	if err := <-played; err != nil {
		t.Error(err)
	}
	if o, live := c.LiveOffers(); !live || !o.EightBit || !o.DSN || o.UTF8 {
		t.Errorf("offers %+v, %v", o, live)
	}
}

// TestSeatsOfOneClient: a client takes no more places than it may, 1 as any other
// number, and 0 is no bound.
func TestSeatsOfOneClient(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for most, want := range []int{3, 1, 2, 3} {
		p, n := newPool(4, most, nil), 0
		for range 3 {
			if p.sitNow(one) == nil {
				n++
			}
		}
		if n != want {
			t.Errorf("of %d places a client takes %d", most, n)
		}
		if err := p.sitNow(other); err != nil {
			t.Errorf("another client: %v", err)
		}
	}
}

// TestLivePace: the replies of a live session are those whose pace counts: a quick
// one ends a row of slow ones.
func TestLivePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := liveClient(t, Route{}, yes(make(chan string, 1000)))
		r := c.routes[dest]
		for range liveSlows - 1 {
			r.notePace(liveSlow)
		}
		l := c.live()
		defer l.Close()
		if _, err := l.Mail(t.Context(), asked("h"), 0); err != nil {
			t.Fatal(err)
		}
		r.notePace(liveSlow)
		if err := r.willing(); err != nil {
			t.Errorf("after a quick reply: %v", err)
		}
	})
}

// TestUnusedReason: each reason for no live session has a label of its own, by which
// an operator tells a primary that is down from one that is full.
func TestUnusedReason(t *testing.T) {
	for want, errs := range map[string][]error{
		"route": {errNotLive}, "stand_in": {errResting}, "down": {errDown}, "full": {errNoSeat}, "slow": {errSlow}, "loop": {errLoop},
		"unnamed": {errXClient, errNoName}, "failed": {io.EOF},
	} {
		for _, err := range errs {
			if got := unusedReason(fmt.Errorf("live: %w", err)); got != want {
				t.Errorf("%v is %q, want %q", err, got, want)
			}
		}
	}
}
