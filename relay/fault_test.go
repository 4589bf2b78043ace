package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// TestCutEverywhere breaks the connection after each octet of a dialogue, seen
// from the primary's side and from ours. Whatever happens, a message is settled
// once, and positively only if the primary took it, whole.
func TestCutEverywhere(t *testing.T) {
	for _, lockStep := range []bool{false, true} {
		for _, ours := range []bool{false, true} {
			t.Run(fmt.Sprintf("lock-step %v, at our end %v", lockStep, ours), func(t *testing.T) {
				cutEverywhere(t, lockStep, ours)
			})
		}
	}
}

func cutEverywhere(t *testing.T, lockStep, ours bool) {
	contents := []string{"", ".\r\n..\r\n", "Subject: 3\r\n\r\nthree\r\n", "four"}
	intact := map[string]bool{}
	for _, s := range contents {
		if s == "four" {
			s += "\r\n"
		}
		intact[s] = true
	}
	for n := 0; ; n++ {
		p := &primary{lockStep: lockStep, rcpt: func(path string) string {
			if strings.Contains(path, "bad") {
				return "550 5.1.1 no such user"
			}
			return "250 2.1.5 Ok"
		}}
		var box outbox
		for i, s := range contents {
			e := mail(fmt.Sprintf("%d@x.example", i), "good@y.example", "bad@y.example")
			if i == 2 {
				e = mail(fmt.Sprintf("%d@x.example", i), "bad@y.example")
			}
			box.add(s, e)
		}
		left, mu := n, new(sync.Mutex)
		var wg sync.WaitGroup
		c := newClient(t, Route{}, nil)
		c.dial = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			if ours {
				here = cutter{here, &left, mu}
			} else {
				there = cutter{there, &left, mu}
			}
			wg.Go(func() {
				defer there.Close()
				p.serve(there)
			})
			return here, nil
		}
		err := c.Relay(context.Background(), dest, box.next)
		wg.Wait()
		box.check(t)
		got := map[string]int{}
		for _, m := range p.accepted {
			if !intact[m.content] {
				t.Fatalf("cut at %d: the primary took %q", n, m.content)
			}
			got[m.from]++
		}
		for i, m := range box.all {
			for j, r := range m.replies {
				if r.Positive() && (j != 0 || i == 2 || got[fmt.Sprintf("FROM:<%d@x.example> SIZE=%d", i, m.Size)] == 0) {
					t.Fatalf("cut at %d: %s is settled with %v, but the primary took %v", n, m.name, m.replies, got)
				}
			}
		}
		if left > 0 {
			if err != nil || len(p.accepted) != 3 {
				t.Fatalf("whole dialogue: %v, %d accepted", err, len(p.accepted))
			}
			return
		}
		if t.Failed() {
			t.Fatalf("cut at %d", n)
		}
	}
}

// TestContentFails breaks off a message whose content can't be read: the
// primary must not take it.
func TestContentFails(t *testing.T) {
	broken := errors.New("disk on fire")
	body := func(r io.Reader) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(r), nil }
	}
	for _, test := range []struct {
		name string
		size int64
		open func() (io.ReadCloser, error)
		want error
		rest bool // whether the message behind is relayed in the same session
	}{
		{"can't be opened", 8, func() (io.ReadCloser, error) { return nil, broken }, broken, true},
		{"fails at once", 8, body(iotest.ErrReader(broken)), broken, false},
		{"fails in the middle", 8, body(io.MultiReader(strings.NewReader("12\r\n"), iotest.ErrReader(broken))), broken, false},
		{"fails at the end", 4, body(io.MultiReader(strings.NewReader("12\r\n"), iotest.ErrReader(broken))), broken, false},
		{"fails after much", 1 << 20, body(io.MultiReader(strings.NewReader(strings.Repeat("a\r\n", 100000)), iotest.ErrReader(broken))), broken, false},
		{"too short", 8, body(strings.NewReader("12\r\n")), errContentSize, false},
		{"an octet too short", 5, body(strings.NewReader("12\r\n")), errContentSize, false},
		{"too long", 3, body(strings.NewReader("12\r\n")), errContentSize, false},
		{"much too long", 3, body(strings.NewReader(strings.Repeat("a\r\n", 100000))), errContentSize, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &primary{}
			var box outbox
			bad := box.add("", mail("a@x.example", "b@y.example"))
			bad.Size, bad.Open = test.size, test.open
			good := box.add("good\r\n", mail("c@x.example", "d@y.example"))
			c := newClient(t, Route{}, p.serve)
			err := c.Relay(context.Background(), dest, box.next)
			box.check(t)
			if !errors.Is(bad.err, test.want) {
				t.Errorf("settled with %v, %v, want %v", bad.replies, bad.err, test.want)
			}
			if want := map[bool]int{true: 1}[test.rest]; good.settled != want || (err == nil) != test.rest {
				t.Errorf("the message behind was settled %d times, Relay returned %v", good.settled, err)
			}
			for _, m := range p.accepted {
				if m.content != "good\r\n" {
					t.Errorf("the primary took %.100q", m.content)
				}
			}
		})
	}
}

// TestManyRecipients needs a window: the primary answers each command before it
// reads on, and the pipe buffers nothing.
func TestManyRecipients(t *testing.T) {
	const n = 1000
	var box outbox
	var to []string
	for i := range n {
		to = append(to, fmt.Sprintf("r%d@y.example", i))
	}
	many := box.add("x\r\n", mail("a@x.example", to...))
	box.add("y\r\n", mail("a@x.example", to...))
	count := 0
	p := &primary{eager: true, rcpt: func(string) string {
		if count++; count%n > n/2 {
			return "452 4.5.3 Too many recipients"
		}
		return "250 2.1.5 Ok"
	}}
	c := newClient(t, Route{}, p.serve)
	if err := c.Relay(context.Background(), dest, box.next); err != nil {
		t.Fatal(err)
	}
	box.check(t)
	for i, r := range many.replies {
		if want := map[bool]int{false: 250, true: 452}[i+1 > n/2]; i+1 < n && r.Code != want {
			t.Fatalf("recipient %d: %v, want %d", i, r, want)
		}
	}
	if len(p.accepted) != 2 || len(p.accepted[0].to) != n/2+1 && len(p.accepted[0].to) != n/2 {
		t.Errorf("%d messages, the first for %d", len(p.accepted), len(p.accepted[0].to))
	}
}

// TestHostileReplies puts each hostile reply at each place of a dialogue.
func TestHostileReplies(t *testing.T) {
	hostile := map[string]string{
		"endless line":    "250 " + strings.Repeat("x", 1<<16),
		"endless lines":   strings.Repeat("250-x\r\n", 1<<14),
		"no code":         "hello\r\n",
		"empty line":      "\r\n",
		"code 100":        "100 x\r\n",
		"code 600":        "600 x\r\n",
		"code 25":         "25 x\r\n",
		"no separator":    "2500 x\r\n",
		"codes differ":    "250-x\r\n550 x\r\n",
		"NUL for a code":  "\x00\x00\x00 x\r\n",
		"half a reply":    "250-x\r\n",
		"a line half":     "250 o",
		"nothing":         "",
		"unsuitable code": "399 x\r\n",
	}
	steps := []turn{{"", greeting}, {"x", pipe}, {"x", ok}, {"", ok}, {"", goAhead}, {"x", ok}}
	for name, text := range hostile {
		for at := range steps {
			t.Run(fmt.Sprintf("%s at %d", name, at), func(t *testing.T) {
				var box outbox
				m := box.add("x\r\n", mail("a@x.example", "b@y.example"))
				box.add("x\r\n", mail("c@x.example", "d@y.example"))
				c := newClient(t, Route{}, func(conn net.Conn) {
					buf := make([]byte, 1<<16)
					for i, s := range steps[:at+1] {
						if s.want != "" {
							if _, err := conn.Read(buf); err != nil {
								return
							}
						}
						if i == at {
							s.answer = text
						}
						if _, err := io.WriteString(conn, s.answer); err != nil {
							return
						}
					}
				})
				err := c.Relay(context.Background(), dest, box.next)
				if err == nil {
					t.Error("no error")
				}
				box.check(t)
				for _, r := range m.replies {
					if !r.Zero() {
						t.Errorf("settled with %v", m.replies)
					}
				}
			})
		}
	}
}

// TestTimeouts has the primary fall silent at each step.
func TestTimeouts(t *testing.T) {
	limits := Timeouts{Connect: 1 * time.Second, Greeting: 2 * time.Second, Command: 3 * time.Second, DataInit: 4 * time.Second,
		Block: 5 * time.Second, DataEnd: 6 * time.Second, Quit: 7 * time.Second, Idle: time.Second}
	for _, test := range []struct {
		name   string
		script []turn
		want   time.Duration
		err    bool
	}{
		{"greeting", nil, 2 * time.Second, true},
		{"EHLO", []turn{{"", greeting}, {"x", ""}}, 3 * time.Second, true},
		{"MAIL", []turn{{"", greeting}, {"x", pipe}, {"x", ""}}, 3 * time.Second, true},
		{"RCPT", []turn{{"", greeting}, {"x", pipe}, {"x", ok}}, 3 * time.Second, true},
		{"DATA", []turn{{"", greeting}, {"x", pipe}, {"x", ok + ok}}, 4 * time.Second, true},
		{"content", []turn{{"", greeting}, {"x", pipe}, {"x", ok + ok + goAhead}}, 12 * time.Second, true}, // and a look for the last word
		{"final reply", []turn{{"", greeting}, {"x", pipe}, {"x", ok + ok + goAhead}, {"x", ""}}, 6 * time.Second, true},
		{"QUIT", []turn{{"", greeting}, {"x", pipe}, {"x", ok + ok + goAhead}, {"x", ok}, {"x", ""}}, 7 * time.Second, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var box outbox
				box.add("x\r\n", mail("a@x.example", "b@y.example"))
				ctx, cancel := context.WithCancel(context.Background())
				c := newClient(t, Route{Timeouts: limits}, func(conn net.Conn) {
					buf := make([]byte, 1<<16)
					for _, s := range test.script {
						if s.want != "" {
							conn.Read(buf)
						}
						io.WriteString(conn, s.answer)
					}
					<-ctx.Done()
				})
				began := time.Now()
				err := c.Relay(ctx, dest, box.next)
				cancel()
				if took := time.Since(began); took != test.want {
					t.Errorf("took %v, want %v", took, test.want)
				}
				if (err != nil) != test.err {
					t.Errorf("Relay returned %v", err)
				}
				box.check(t)
			})
		})
	}
}

// TestDripTimeout has a deadline for the reply, not for each of its octets.
func TestDripTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Route{Timeouts: Timeouts{Greeting: time.Minute}}, func(conn net.Conn) {
			for {
				if _, err := io.WriteString(conn, "2"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		began := time.Now()
		if err := c.Relay(context.Background(), dest, new(outbox).next); err == nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestShutdown lets the transaction under way end, takes no other, and breaks
// off a session that does not.
func TestShutdown(t *testing.T) {
	for _, test := range []struct {
		name    string
		delay   time.Duration // of the final reply
		settled bool
		want    time.Duration
	}{
		{"in time", 5 * time.Second, true, 5 * time.Second},
		{"too slow", time.Hour, false, shutdownGrace},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var box outbox
				m := box.add("x\r\n", mail("a@x.example", "b@y.example"))
				behind := box.add("y\r\n", mail("c@x.example", "d@y.example"))
				ctx, cancel := context.WithCancel(context.Background())
				c := newClient(t, Route{}, func(conn net.Conn) {
					buf := make([]byte, 1<<16)
					io.WriteString(conn, greeting)
					conn.Read(buf)
					io.WriteString(conn, pipe)
					conn.Read(buf)
					cancel()
					io.WriteString(conn, ok+ok+goAhead)
					conn.Read(buf)
					time.Sleep(test.delay)
					io.WriteString(conn, ok)
					conn.Read(buf)
					io.WriteString(conn, bye)
				})
				began := time.Now()
				err := c.Relay(ctx, dest, box.next)
				if took := time.Since(began); took != test.want {
					t.Errorf("took %v, want %v", took, test.want)
				}
				if (err == nil) != test.settled || (m.err == nil) != test.settled || m.settled != 1 || behind.settled != 0 {
					t.Errorf("Relay returned %v, settled %d times with %v, %v", err, m.settled, m.replies, m.err)
				}
				box.check(t)
				synctest.Wait()
			})
		})
	}
}

// TestCancelWhileConnecting gives up at once, and does not blame the primary.
func TestCancelWhileConnecting(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := newClient(t, Route{}, func(conn net.Conn) {
		cancel()
		conn.Read(make([]byte, 1))
	})
	if err := c.Relay(ctx, dest, func(time.Duration) *envelope.Transfer { t.Error("took mail"); return nil }); err == nil {
		t.Error("no error")
	}
	if s := c.Status()[0]; s.LastError != "" {
		t.Errorf("status %+v", s)
	}
}

// TestEarlyRefusal heeds a refusal that comes amid the content, when the primary
// takes no more of it: without that the message would be tried for ever.
func TestEarlyRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var box outbox
		m := box.add(strings.Repeat("a line of some length\r\n", 1<<13), mail("a@x.example", "b@y.example", "c@y.example"))
		c := newClient(t, Route{}, func(conn net.Conn) {
			buf := make([]byte, 1<<10)
			io.WriteString(conn, greeting)
			conn.Read(buf)
			io.WriteString(conn, pipe)
			conn.Read(buf)
			io.WriteString(conn, ok+ok+"550 5.1.1 no\r\n"+goAhead)
			conn.Read(buf)
			io.WriteString(conn, "552 5.3.4 too big\r\n")
		})
		if err := c.Relay(context.Background(), dest, box.next); err == nil {
			t.Error("no error")
		}
		box.check(t)
		if got := fmt.Sprint(codes(m.replies)); got != "[552 550]" || m.err != nil {
			t.Errorf("settled with %v, %v", m.replies, m.err)
		}
	})
}

// TestEarlyWords: what comes amid the content and refuses nothing, before the
// primary hangs up, settles nobody, least of all a reply that would accept.
func TestEarlyWords(t *testing.T) {
	for _, words := range []string{"", "250 2.0.0 taken\r\n", "354 go on\r\n", "what?\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			var box outbox
			m := box.add(strings.Repeat("a line of some length\r\n", 1<<13), mail("a@x.example", "b@y.example"))
			c := newClient(t, Route{}, func(conn net.Conn) {
				buf := make([]byte, 1<<10)
				io.WriteString(conn, greeting)
				conn.Read(buf)
				io.WriteString(conn, pipe)
				conn.Read(buf)
				io.WriteString(conn, ok+ok+goAhead)
				conn.Read(buf)
				io.WriteString(conn, words)
			})
			err := c.Relay(context.Background(), dest, box.next)
			box.check(t)
			if n := testutil.ToFloat64(c.metrics.RelaySessions.WithLabelValues("failed")); n != 1 {
				t.Errorf("%q: %v failed sessions", words, n)
			}
			if err == nil || m.err == nil || strings.Contains(err.Error(), "taken") {
				t.Errorf("%q: settled with %v, %v; Relay returned %v", words, m.replies, m.err, err)
			}
		})
	}
}

// TestHeloHangsUp: a next hop that refuses EHLO and hangs up at HELO is a broken
// session, not a refusal.
func TestHeloHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var box outbox
		box.add("", mail("a@x.example", "b@y.example"))
		c := newClient(t, Route{}, func(conn net.Conn) {
			buf := make([]byte, 1<<10)
			io.WriteString(conn, greeting)
			conn.Read(buf)
			io.WriteString(conn, "502 5.5.1 no\r\n")
			conn.Read(buf)
		})
		err := c.Relay(context.Background(), dest, box.next)
		box.check(t)
		var said *refusal
		if err == nil || errors.As(err, &said) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNeedsUTF8(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		utf8     bool
		want     bool
	}{
		{"a@x.example", "b@y.example", false, false},
		{"a@x.example", "b@y.example", true, true},
		{"ä@x.example", "b@y.example", false, true},
		{"a@ä.example", "b@y.example", false, true},
		{"a@x.example", "ö@y.example", false, true},
		{"a@x.example", "b@ö.example", false, true},
	} {
		e := mail(tt.from, "c@z.example", tt.to)
		e.UTF8 = tt.utf8
		if got := needsUTF8(&e); got != tt.want {
			t.Errorf("%s to %s, %v: %v", tt.from, tt.to, tt.utf8, got)
		}
	}
}
