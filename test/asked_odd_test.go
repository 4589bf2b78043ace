package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// oracle is an SMTP server that answers RCPT as its script says, by local-part.
type oracle struct {
	net.Listener
	answers map[string]string // "" hangs up
	done    chan struct{}
	conns   sync.WaitGroup

	mu    sync.Mutex
	asked map[string]int // by address
}

func startOracle(t *testing.T, answers map[string]string) *oracle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &oracle{Listener: l, answers: answers, done: make(chan struct{}), asked: map[string]int{}}
	o.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.conns.Go(func() { o.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); close(o.done); o.conns.Wait() })
	return o
}

func (o *oracle) serve(c net.Conn) {
	defer c.Close()
	go func() { <-o.done; c.Close() }()
	in := bufio.NewReader(c)
	say := func(text string) { _, _ = io.WriteString(c, text+"\r\n") }
	for say("220 mx1.example.org ESMTP"); ; {
		line, err := in.ReadString('\n')
		verb, _, _ := strings.Cut(strings.TrimSpace(strings.ToUpper(line)), " ")
		switch {
		case err != nil:
			return
		case verb == "EHLO":
			say("250-mx1.example.org\r\n250 ENHANCEDSTATUSCODES")
		case verb == "QUIT":
			say("221 2.0.0 bye")
			return
		case verb != "RCPT":
			say("250 2.0.0 ok")
		default:
			_, to, _ := strings.Cut(line, "<")
			to, _, _ = strings.Cut(to, ">")
			local, domain, _ := strings.Cut(to, "@")
			o.mu.Lock()
			o.asked[to]++
			answer, known := o.answers[local]
			if local == "fickle" && o.asked[to] > 1 {
				answer = "550 5.1.1 no more"
			}
			o.mu.Unlock()
			switch {
			case domain == "all.example":
				say("250 2.1.5 anybody")
			case !known:
				say("550 5.1.1 unknown")
			case answer == "":
				return
			default:
				say(answer)
			}
		}
	}
}

func (o *oracle) count(to string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[to]
}

// TestOddAnswers asks a primary that hangs up, puts off, contradicts itself or accepts
// everybody; package relay has one that sleeps. Nobody is refused for good but whom it says that it doesn't have.
func TestOddAnswers(t *testing.T) {
	answers := map[string]string{}
	type odd struct {
		name, answer string
		want         int // the reply, to both of two clients
		questions    int
	}
	odds := []odd{
		{"alice", "250 2.1.5 ok", 250, 1},
		{"unknown", "550 5.1.1 no such user", 550, 1},
		{"unknown-lines", "550-5.1.1 no\r\n550 5.1.1 such user", 550, 1},
		{"unknown-plain", "550 no such user", 550, 1},
		{"forwarded", "251 2.1.5 will forward", 250, 1},
		{"cannot-verify", "252 2.1.5 will try", 250, 1},
		{"fickle", "250 2.1.5 ok", 250, 1},
		{"greylisted", "450 4.2.0 come again", 450, 2},
		{"later", "451 4.3.0 try again later", 450, 2},
		{"closing", "421 4.3.2 closing", 450, 2},
		{"full", "452 4.2.2 mailbox full", 450, 2},
		{"full-for-good", "552 5.2.2 mailbox full", 450, 2},
		{"blocked", "550 5.7.1 you are blocked", 450, 2},
		{"no-relay", "554 5.7.1 relay access denied", 450, 2},
		{"syntax", "501 5.5.2 what", 450, 2},
		{"hangs-up", "", 450, 2},
		{"garbage", "hello", 450, 2},
		{"HTTP", "HTTP/1.1 200 OK", 450, 2},
		{"two-codes", "250-2.1.5 ok\r\n550 5.1.1 no", 450, 2},
		{"long", "550 5.1.1 " + strings.Repeat("x", 1<<20), 450, 2},
		{"endless", strings.Repeat("550-5.1.1 no\r\n", 100_000) + "550 5.1.1 no", 450, 2},
	}
	for _, o := range odds {
		answers[o.name] = o.answer
	}
	primary := startOracle(t, answers)
	s := newSecondary(t, primary.Addr().String(), "domains = [\"example.org\", \"all.example\"]\nrecipients_asked = [\"example.org\", \"all.example\"]\n", "")
	s.start()
	var clients atomic.Int32
	ask := func(to string) (code int) {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		in := textproto.NewConn(c)
		client := fmt.Sprintf("XCLIENT ADDR=198.51.100.%d NAME=client.sender.example", clients.Add(1)) // each has questions of its own
		for _, line := range []string{"", "EHLO x.example", client, "EHLO client.sender.example", "MAIL FROM:<bob@sender.example>", "RCPT TO:<" + to + ">"} {
			if line != "" {
				_ = in.PrintfLine("%s", line)
			}
			code, _, err = in.ReadResponse(0)
			if code == 0 {
				t.Errorf("%s: %v", line, err)
				return 0
			}
		}
		return code
	}
	for _, o := range odds {
		to := o.name + "@example.org"
		for i := range 2 {
			if got := ask(to); got != o.want {
				t.Errorf("%s, client %d: %d, want %d", o.name, i, got, o.want)
			}
		}
		if got := primary.count(to); got != o.questions {
			t.Errorf("%s: %d questions, want %d", o.name, got, o.questions)
		}
	}
	if got := ask("anybody@all.example"); got != 250 {
		t.Errorf("where everybody exists: %d", got)
	}
	eventually(t, 20*time.Second, "the primary is known to accept everybody", func() bool {
		return strings.Contains(strings.Join(strings.Fields(s.cli("policy", "status")), " "), "accepts everybody all.example:")
	})
	if got := ask("alice@example.org"); got != 250 {
		t.Errorf("alice in the end: %d", got)
	}
	s.stop()
}
