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
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

const offer = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"

// asked is an envelope whose client wants to be asked about.
func asked(helo string) *envelope.Envelope {
	e := mail("a@x.example")
	e.Client = envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Helo: helo, Protocol: "ESMTP", Name: "mail.x.example", NameStatus: envelope.NameOK}
	return &e
}

// inquire asks c about recipients one after another and says what came back.
func inquire(t *testing.T, c *Client, env *envelope.Envelope, size int64, to ...string) (got []string) {
	q := c.Inquire(func(string) string { return dest }, env, size)
	defer q.Close()
	for _, s := range to {
		reply, err := q.Ask(t.Context(), &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(s)}})
		if err != nil {
			got = append(got, "error: "+err.Error())
		} else {
			got = append(got, reply.String())
		}
	}
	return got
}

// TestAsk checks what goes out and what comes back, in one session or more.
func TestAsk(t *testing.T) {
	cmd := "XCLIENT NAME=mail.x.example ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP REVERSE_NAME=[TEMPUNAVAIL] HELO=h.x.example\r\n"
	known := []turn{{cmd, greeting}, {"EHLO h.x.example\r\n", "250-primary.example\r\n250 SIZE\r\n"}}
	from := turn{"MAIL FROM:<a@x.example>\r\n", ok}
	rcpt := func(who, answer string) turn { return turn{"RCPT TO:<" + who + "@y.example>\r\n", answer} }
	end := turn{quit, bye}
	utf8 := asked("h.x.example")
	utf8.UTF8 = true
	script := func(turns ...turn) []turn { return append(append(hello("PIPELINING", offer), known...), turns...) }
	for _, tt := range []struct {
		name    string
		env     *envelope.Envelope
		off     bool
		size    int64
		to      string
		scripts [][]turn
		want    []string // a prefix, or a part of an error
	}{
		{name: "accepted", scripts: [][]turn{script(from, rcpt("b", "250 2.1.5 Ok\r\n"), end)}, want: []string{"250 2.1.5 Ok"}},
		{name: "size", size: 4711, scripts: [][]turn{script(turn{"MAIL FROM:<a@x.example> SIZE=4711\r\n", ok}, rcpt("b", ok), end)}, want: []string{"250"}},
		{name: "one session for all", to: "b c d",
			scripts: [][]turn{script(from, rcpt("b", ok), rcpt("c", "550 5.7.1 go away\r\n"), rcpt("d", "450-4.2.0 wait\r\n450 4.2.0 for it\r\n"), end)},
			want:    []string{"250", "550 5.7.1 go away", "450 4.2.0 wait"}},
		{name: "MAIL refused counts for all", to: "b c", scripts: [][]turn{script(turn{from.want, "554 5.7.1 no\r\n"}, end)}, want: []string{"554 5.7.1 no", "554 5.7.1 no"}},
		{name: "HELO refused", to: "b c", scripts: [][]turn{append(hello(offer), known[0], turn{known[1].want, "501 5.5.2 bad name\r\n"}, turn{"HELO h.x.example\r\n", "501 5.5.2 bad name\r\n"}, end)},
			want: []string{"501 5.5.2", "501 5.5.2"}},
		{name: "client refused", scripts: [][]turn{append(hello(offer), turn{cmd, "554 5.7.1 listed\r\n"}, end)}, want: []string{"554 5.7.1 listed"}},
		{name: "no HELO", env: asked(""), scripts: [][]turn{append(hello(offer), turn{strings.Replace(cmd, "h.x.example", "[UNAVAILABLE]", 1), greeting}, from, rcpt("b", ok), end)}, want: []string{"250"}},

		// What isn't the primary's word on the client.
		{name: "greeting refused", to: "b c", scripts: [][]turn{{{"", "554 5.7.1 you are listed\r\n"}}}, want: []string{"error: next hop answered", "error: next hop answered"}},
		{name: "EHLO refused", scripts: [][]turn{{{"", greeting}, {ehlo, "550 no\r\n"}, {"HELO mx2.example\r\n", "550 no\r\n"}}}, want: []string{"error:"}},
		{name: "no XCLIENT", scripts: [][]turn{hello("PIPELINING")}, want: []string{"error: it would judge us instead"}},
		{name: "XCLIENT without ADDR", scripts: [][]turn{hello("XCLIENT NAME HELO")}, want: []string{"error: it would judge us instead"}},
		{name: "XCLIENT off", off: true, want: []string{"error: it would judge us instead"}},
		{name: "XCLIENT not for us", scripts: [][]turn{append(hello(offer), turn{cmd, "550 5.7.0 insufficient authorization\r\n"})}, want: []string{"error: next hop answered XCLIENT with 550"}},
		{name: "XCLIENT not understood", scripts: [][]turn{append(hello(offer), turn{cmd, "501 5.5.4 Bad ADDR syntax\r\n"})}, want: []string{"error: next hop answered XCLIENT with 501"}},
		{name: "wants TLS", scripts: [][]turn{script(turn{from.want, "530 5.7.0 Must issue a STARTTLS command first\r\n"})}, want: []string{"error: next hop answered MAIL with 530"}},
		{name: "out of order", scripts: [][]turn{script(turn{from.want, "503 5.5.1 polite people say HELO first\r\n"})}, want: []string{"error: next hop answered MAIL with 503"}},
		{name: "400 to RCPT", scripts: [][]turn{script(from, rcpt("b", "400 4.0.0 later\r\n"), end)}, want: []string{"400 4.0.0 later"}},
		{name: "421 to RCPT", to: "b c", scripts: [][]turn{script(from, rcpt("b", "421 4.3.2 bye\r\n"))}, want: []string{"error: next hop answered RCPT with 421", "error: next hop answered RCPT with 421"}},
		{name: "354 to RCPT", scripts: [][]turn{script(from, rcpt("b", goAhead))}, want: []string{"error:"}},
		{name: "hung up at RCPT", scripts: [][]turn{script(from, turn{rcpt("b", "").want, hangUp})}, want: []string{"error: wait for the reply to RCPT: EOF"}},
		{name: "nobody", env: &envelope.Envelope{}, scripts: [][]turn{hello(offer)}, want: []string{"error: the client's address is unknown"}},
		{name: "injection", to: "b\r\nDATA", want: []string{"error: the address can't be put"}},
		{name: "SMTPUTF8 not offered", env: utf8, to: "ü", scripts: [][]turn{script()}, want: []string{"error: the address can't be put"}},
		{name: "outside of ASCII", to: "ü", scripts: [][]turn{script(from, rcpt("ü", "553 5.6.7 no\r\n"), end)}, want: []string{"553 5.6.7 no"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conns := make(chan []turn, len(tt.scripts))
			for _, s := range tt.scripts {
				conns <- s
			}
			played := make(chan error, 10)
			c := newClient(t, Route{XClient: !tt.off}, func(conn net.Conn) {
				select {
				case s := <-conns:
					played <- play(conn, s)
				default:
					played <- fmt.Errorf("one connection too many")
				}
			})
			env := tt.env
			if env == nil {
				env = asked("h.x.example")
			}
			var to []string
			for _, s := range strings.Split(orB(tt.to), " ") {
				to = append(to, s+"@y.example")
			}
			got := inquire(t, c, env, tt.size, to...)
			for range tt.scripts {
				if err := <-played; err != nil {
					t.Error(err)
				}
			}
			for i, g := range got {
				if i >= len(tt.want) || !strings.HasPrefix(g, tt.want[i]) {
					t.Errorf("answers %q, want %q", got, tt.want)
				}
			}
			if n := len(c.routes[dest].asking.seats); n != 0 {
				t.Errorf("%d seats are taken at the end", n)
			}
		})
	}
}

func orB(s string) string {
	if s == "" {
		return "b"
	}
	return s
}

// TestAskHostile has a next hop that wants our time, our memory or the client's
// terminal. Nothing takes longer than askTime.
func TestAskHostile(t *testing.T) {
	front := func(conn net.Conn) bool { // up to RCPT, which is read
		buf := make([]byte, 4<<10)
		for i, s := range append(hello(offer), turn{"", greeting}, turn{"", pipe}, turn{"", ok}) {
			if i > 0 {
				if _, err := conn.Read(buf); err != nil {
					return false
				}
			}
			if _, err := io.WriteString(conn, s.answer); err != nil {
				return false
			}
		}
		_, err := conn.Read(buf)
		return err == nil
	}
	silent := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	for _, tt := range []struct {
		name  string
		serve func(net.Conn)
		want  string
	}{
		{"never greets", silent, "error: "},
		{"dead after EHLO", func(c net.Conn) {
			io.WriteString(c, greeting)
			c.Read(make([]byte, 1000))
			io.WriteString(c, "250-primary.example\r\n250 "+offer+"\r\n")
			silent(c)
		}, "error: "},
		{"dead after RCPT", func(c net.Conn) {
			if front(c) {
				silent(c)
			}
		}, "error: "},
		{"half a reply", func(c net.Conn) {
			if front(c) {
				io.WriteString(c, "250-2.1.5 O")
				silent(c)
			}
		}, "error: "},
		{"drips", func(c net.Conn) {
			for front(c) {
				for _, err := io.WriteString(c, "250-x\r\n"); err == nil; _, err = io.WriteString(c, "250-x\r\n") {
					time.Sleep(time.Second)
				}
			}
		}, "error: "},
		{"slow at every step", func(c net.Conn) {
			io.WriteString(c, greeting)
			for buf, answer := make([]byte, 4<<10), "250-primary.example\r\n250 "+offer+"\r\n"; ; answer = greeting {
				if _, err := c.Read(buf); err != nil {
					return
				}
				io.WriteString(c, answer)
				time.Sleep(4 * time.Second)
			}
		}, "error: no answer in time"},
		{"endless reply", func(c net.Conn) {
			for err := error(nil); front(c) && err == nil; {
				for err == nil {
					_, err = io.WriteString(c, "250-x\r\n")
				}
			}
		}, "error: wait for the reply to RCPT: next hop sent a reply that is too long"},
		{"a line of 1 MB", func(c net.Conn) {
			if front(c) {
				io.WriteString(c, "250 "+strings.Repeat("x", 1<<20)+"\r\n")
			}
		}, "error: wait for the reply to RCPT: next hop sent a reply that is too long"},
		{"no SMTP", func(c net.Conn) {
			if front(c) {
				io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			}
		}, "error: wait for the reply to RCPT: next hop sent something"},
		{"control characters", func(c net.Conn) {
			if front(c) {
				io.WriteString(c, "550 5.7.1 \x1b[2J\rgo\x00 away\u009b\r\n")
				silent(c)
			}
		}, "550 5.7.1 ?[2J?go? away?"},
		{"a long text", func(c net.Conn) {
			if front(c) {
				for range 50 {
					io.WriteString(c, "550-5.7.1 "+strings.Repeat("y", 1000)+"\r\n")
				}
				io.WriteString(c, "550 5.7.1 end\r\n")
				silent(c)
			}
		}, "550 5.7.1 " + strings.Repeat("y", maxReplyText)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, Route{XClient: true}, tt.serve)
				start := time.Now()
				got := inquire(t, c, asked("h"), 0, "b@y.example")
				if !strings.HasPrefix(got[0], tt.want) || len(got[0]) > 400 {
					t.Errorf("answer %q, want %q", got[0], tt.want)
				}
				if took := time.Since(start); took > askTime+askQuit {
					t.Errorf("it took %v", took)
				}
				if n := len(c.routes[dest].asking.seats); n != 0 {
					t.Errorf("%d seats are taken at the end", n)
				}
			})
		})
	}
}

// yes is a next hop that accepts all recipients, and notes the commands.
func yes(log chan<- string) func(net.Conn) {
	return func(conn net.Conn) {
		buf := make([]byte, 4<<10)
		for answer := greeting; ; {
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
			n, err := conn.Read(buf)
			if err != nil {
				log <- "LOST"
				return
			}
			log <- string(buf[:min(n, 4)])
			switch {
			case strings.HasPrefix(string(buf[:n]), "EHLO mx2"):
				answer = "250-primary.example\r\n250 " + offer + "\r\n"
			case strings.HasPrefix(string(buf[:n]), "XCLIENT"):
				answer = greeting
			default:
				answer = ok
			}
		}
	}
}

// TestAskSeats: few sessions at a time serve many clients, and none can keep a
// seat by doing nothing.
func TestAskSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(chan string, 1000)
		c := newClient(t, Route{XClient: true, MaxAsking: 2}, yes(log))
		to := &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}}
		var all []*Inquiry
		start := time.Now()
		for i := range 5 {
			q := c.Inquire(func(string) string { return dest }, asked("h"), 0)
			all = append(all, q)
			if reply, err := q.Ask(t.Context(), to); err != nil || reply.Code != 250 {
				t.Fatalf("inquiry %d: %v, %v", i, reply, err)
			}
		}
		for i, q := range all { // all but the last two were ousted, and come in again
			if reply, err := q.Ask(t.Context(), to); err != nil || reply.Code != 250 {
				t.Fatalf("inquiry %d, again: %v, %v", i, reply, err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
		if n := len(c.routes[dest].asking.seats); n != 2 {
			t.Errorf("%d sessions are open, want 2", n)
		}
		time.Sleep(seatRest + time.Second)
		if n := len(c.routes[dest].asking.seats); n != 0 {
			t.Errorf("%d sessions are open after a long rest", n)
		}
		for _, q := range all {
			q.Close()
		}
	})
}

// TestAskWaits: who waits for a seat gets it as soon as the question before it
// is answered.
func TestAskWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := make(chan string, 1000)
		c := newClient(t, Route{XClient: true, MaxAsking: 1}, func(conn net.Conn) { time.Sleep(time.Second); yes(log)(conn) })
		to := &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}}
		first := c.Inquire(func(string) string { return dest }, asked("h"), 0)
		answered := make(chan error)
		go func() {
			_, err := first.Ask(t.Context(), to)
			answered <- err
		}()
		synctest.Wait()
		start := time.Now()
		if got := inquire(t, c, asked("h"), 0, "b@y.example"); got[0] != "250 2.0.0 Ok" || time.Since(start) > 3*time.Second {
			t.Errorf("%q after %v", got, time.Since(start))
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
		first.Close()
	})
}

// TestAskFull: who finds no seat in time isn't asked about.
func TestAskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Route{XClient: true, MaxAsking: 1}, func(conn net.Conn) { io.Copy(io.Discard, conn) })
		first := make(chan []string)
		go func() { first <- inquire(t, c, asked("h"), 0, "b@y.example") }()
		synctest.Wait()
		time.Sleep(time.Second)
		c.routes[dest].asking.seats <- struct{}{} // as soon as the first is through, somebody else is quicker
		got := inquire(t, c, asked("h"), 0, "b@y.example")
		<-first
		if diff := cmp.Diff([]string{"error: too many sessions at once"}, got); diff != "" {
			t.Error(diff)
		}
		<-c.routes[dest].asking.seats
	})
}

// TestAskRoutes: each recipient's own next hop is asked.
func TestAskRoutes(t *testing.T) {
	log := make(chan string, 1000)
	c := newClient(t, Route{XClient: true}, yes(log))
	c.routes["other"] = newRoute("other", Route{Name: "other", Address: "other.example:25", TLS: TLSOff, XClient: true}, c.metrics)
	var dialled []string
	dial := c.dial
	c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		return dial(ctx, network, address)
	}
	q := c.Inquire(func(domain string) string { return map[string]string{"y.example": dest, "z.example": "other"}[domain] }, asked("h"), 0)
	defer q.Close()
	for to, want := range map[string]bool{"b@y.example": true, "c@y.example": true, "b@z.example": true, "b@nowhere.example": false} {
		reply, err := q.Ask(t.Context(), &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(to)}})
		if reply.Positive() != want || (err == nil) != want {
			t.Errorf("%s: %v, %v", to, reply, err)
		}
	}
	slices.Sort(dialled)
	if diff := cmp.Diff([]string{"other.example:25", "primary.example:25"}, dialled); diff != "" {
		t.Error(diff)
	}
}

// TestAskDown: a next hop that is known to be down costs no time.
func TestAskDown(t *testing.T) {
	c := newClient(t, Route{XClient: true}, func(net.Conn) { t.Error("it was dialled") })
	c.routes[dest].health = down
	if got := inquire(t, c, asked("h"), 0, "b@y.example"); got[0] != "error: next hop is down" {
		t.Errorf("answer %q", got)
	}
}
