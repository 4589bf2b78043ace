package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/metrics"
)

// TestUnanswered: a session is given up while the next hop owes the reply to a message
// and hasn't fetched all of it yet. What is left of that message doesn't arrive later, when
// the queue counts it as not relayed, and the log names the message.
func TestUnanswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type end struct {
		octets []byte
		err    error
	}
	givenUp, ended := make(chan struct{}), make(chan end)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- end{nil, err}
			return
		}
		defer c.Close()
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		r := bufio.NewReaderSize(c, 16)
		for _, reply := range []string{"220 primary", "250 primary", "250 ok", "250 ok", "354 go on"} {
			io.WriteString(c, reply+"\r\n")
			if reply[0] != '3' {
				r.ReadString('\n')
			}
		}
		<-givenUp
		b, err := io.ReadAll(r)
		ended <- end{b, err}
	}()
	var log bytes.Buffer
	c := New(Options{
		Routes: map[string]Route{dest: {Name: "default", Address: l.Addr().String(), TLS: TLSOff,
			Timeouts: Timeouts{DataEnd: 100 * time.Millisecond, Idle: time.Millisecond}}},
		Hostname: "mx2.example", Metrics: metrics.New(prometheus.NewRegistry()), Log: slog.New(slog.NewTextHandler(&log, nil)),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil {
				err = conn.(*net.TCPConn).SetWriteBuffer(200 << 10) // all of the message fits
			}
			return conn, err
		},
	})
	var o outbox
	env := mail("a@example.org", "b@example.com")
	env.ID = "the-message"
	p := o.add(strings.Repeat("a line of the message\r\n", 4000), env)
	if err := c.Relay(t.Context(), dest, o.next); err == nil {
		t.Error("a session without the reply was fine")
	}
	close(givenUp)
	got := <-ended
	if o.check(t); p.err == nil {
		t.Errorf("settled with %v", p.replies)
	}
	if got.err == nil || !strings.Contains(got.err.Error(), syscall.ECONNRESET.Error()) || bytes.HasSuffix(got.octets, []byte("\r\n.\r\n")) {
		t.Errorf("after it was given up %d octets of the message arrived, then %v", len(got.octets), got.err)
	}
	if !strings.Contains(log.String(), "unanswered=the-message") {
		t.Errorf("the log: %s", log.String())
	}
}

// TestHeld: a message that another may relay by now, after its content was read and the next
// one was looked for, gets no final dot.
func TestHeld(t *testing.T) {
	played := make(chan error, 1)
	c := newClient(t, Route{}, func(conn net.Conn) {
		played <- play(conn, []turn{
			{"", greeting}, {ehlo, pipe},
			{"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n", ok + ok + goAhead},
		})
	})
	var o outbox
	first := o.add("Subject: first\r\n", mail("a@example.org", "b@example.com"))
	second := o.add("Subject: second\r\n", mail("a@example.org", "b@example.com"))
	lost := errors.New("lost")
	first.Held = func() error { return lost }
	if err := c.Relay(t.Context(), dest, o.next); !errors.Is(err, lost) {
		t.Errorf("the session: %v", err)
	}
	if err := <-played; err != nil {
		t.Error(err)
	}
	if o.check(t); !errors.Is(first.err, lost) || second.err == nil {
		t.Errorf("settled with %v and %v", first.err, second.err)
	}
}
