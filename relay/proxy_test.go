package relay

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// behindProxy is a next hop that reads a PROXY header, and notes whom it names
// and what they say.
type behindProxy struct {
	greeting map[string]string // by client, in place of a good one
	mu       sync.Mutex
	log      []string
}

func (p *behindProxy) serve(conn net.Conn) {
	br := bufio.NewReaderSize(conn, 4<<10)
	header, err := proxyproto.Read(br)
	if err != nil {
		p.note("no header: " + err.Error())
		return
	}
	who := "ourselves"
	if header.Command.IsProxy() {
		who = header.SourceAddr.String()
	}
	first := greeting
	if g := p.greeting[who]; g != "" {
		first = g
	}
	p.note(who)
	io.WriteString(conn, first)
	inData := false
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		answer := ok
		switch {
		case inData && line != ".":
			continue
		case inData:
			inData = false
		case strings.HasPrefix(line, "EHLO"):
			p.note(line)
			answer = "250-primary.example\r\n250 " + offer + "\r\n" // XCLIENT is offered, and isn't for us
		case line == "DATA":
			inData, answer = true, goAhead
		case line == "QUIT":
			io.WriteString(conn, bye)
			return
		default:
			p.note(line)
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func (p *behindProxy) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, s)
}

// check compares what was noted since the last check.
func (p *behindProxy) check(t *testing.T, what string, want ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if diff := cmp.Diff(want, p.log); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	p.log = nil
}

func fromClient(addr, helo string) envelope.Envelope {
	e := mail("a@x.example", "b@y.example")
	e.Client = envelope.Client{Helo: helo, Port: 4711}
	if addr != "" {
		e.Client.Addr = netip.MustParseAddr(addr)
	}
	return e
}

// TestProxy: each client has a connection of its own that names it, for mail,
// questions and live sessions; probes name nobody.
func TestProxy(t *testing.T) {
	p := &behindProxy{greeting: map[string]string{"192.0.2.66:4711": "554 5.7.1 listed\r\n", "192.0.2.67:4711": "421 4.7.0 too many\r\n"}}
	c := newClient(t, Route{Proxy: true, Live: true}, p.serve)
	c.routes[dest].health = up
	const transaction = "MAIL FROM:<a@x.example>"

	c.probe(t.Context(), c.routes[dest])
	p.check(t, "a probe", "ourselves", "EHLO mx2.example")

	var box outbox
	for _, e := range []envelope.Envelope{fromClient("192.0.2.1", "one.example"), fromClient("192.0.2.1", "one.example"), fromClient("192.0.2.66", "listed.example"),
		fromClient("2001:db8::1", "six.example"), fromClient("::ffff:192.0.2.2", ""), fromClient("", "")} {
		box.add("Subject: x\r\n\r\nx\r\n", e)
	}
	if err := c.Relay(t.Context(), dest, box.next); err != nil {
		t.Fatal(err)
	}
	box.check(t)
	const to = "RCPT TO:<b@y.example>"
	p.check(t, "mail", "192.0.2.1:4711", "EHLO one.example", transaction, to, transaction, to, "192.0.2.66:4711",
		"[2001:db8::1]:4711", "EHLO six.example", transaction, to, "192.0.2.2:4711", "EHLO mx2.example", transaction, to, "ourselves", "EHLO mx2.example", transaction, to)
	for i, want := range []int{250, 250, 450, 250, 250, 250} {
		if got := codes(box.all[i].replies); len(got) != 1 || got[0] != want {
			t.Errorf("message %d: %v, want %d", i, got, want)
		}
	}
	if !c.Up(dest) {
		t.Error("a client that it refuses makes it count as down")
	}

	env := fromClient("192.0.2.1", "one.example")
	env.To = nil
	if got := inquire(t, c, &env, 0, "b@y.example"); got[0] != "250 2.0.0 Ok" {
		t.Errorf("asked: %q", got)
	}
	p.check(t, "a question", "192.0.2.1:4711", "EHLO one.example", transaction, to)
	listed := fromClient("192.0.2.66", "listed.example")
	if got := inquire(t, c, &listed, 0, "b@y.example"); got[0] != "554 5.7.1 listed" {
		t.Errorf("asked: %q", got)
	}
	p.check(t, "a question about a listed client", "192.0.2.66:4711")

	l := c.live()
	if got := said(t.Context(), l, &env, "x\r\n", "b@y.example"); got[3] != "250 2.0.0 Ok" {
		t.Errorf("live: %q", got)
	}
	if got := said(t.Context(), l, &listed, "x\r\n", "b@y.example"); got[0] != "554 5.7.1 listed" {
		t.Errorf("live: %q", got)
	}
	busy, nobody := fromClient("192.0.2.67", "busy.example"), fromClient("", "")
	for _, e := range []envelope.Envelope{busy, nobody} {
		if got := said(t.Context(), l, &e, "x\r\n", "b@y.example"); got[0] != "not_begun" {
			t.Errorf("live, %s: %q", e.Client.Helo, got)
		}
	}
	l.Close()
	p.check(t, "live", "192.0.2.1:4711", "EHLO one.example", transaction, to, "192.0.2.66:4711", "192.0.2.67:4711")
	for name, pool := range map[string]*pool{"asking": c.routes[dest].asking, "live": c.routes[dest].live} {
		if n := len(pool.seats); n != 0 {
			t.Errorf("%s: %d seats are taken at the end", name, n)
		}
	}

	var refused outbox
	m := refused.add("x\r\n", fromClient("192.0.2.67", "busy.example"))
	if err := c.Relay(t.Context(), dest, refused.next); err == nil || m.settled != 1 || len(m.replies) != 1 || m.replies[0].Code != 450 || !c.Up(dest) {
		t.Errorf("421 to mail: %v; %+v", err, m)
	}
}
