package relay

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// slowHop takes its time for each reply, by the command; "" is the greeting.
func slowHop(wait map[string]time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		time.Sleep(wait[""])
		reply, r := greeting, bufio.NewReader(c)
		for {
			if _, err := c.Write([]byte(reply)); err != nil {
				return
			}
			line, err := r.ReadString('\n')
			verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			for reply == goAhead && err == nil && line != ".\r\n" {
				line, err = r.ReadString('\n')
			}
			if err != nil {
				return
			}
			switch time.Sleep(wait[verb]); {
			case reply == goAhead:
				reply = ok
			case verb == "EHLO":
				reply = "250-primary.example\r\n250-PIPELINING\r\n250 " + offer + "\r\n"
			case verb == "XCLIENT":
				reply = greeting
			case verb == "DATA":
				reply = goAhead
			default:
				reply = ok
			}
		}
	}
}

// TestLiveTimes: how long a client waits with us at most for a next hop that says
// something now and then, or nothing.
func TestLiveTimes(t *testing.T) {
	const forever = 24 * time.Hour
	for _, tt := range []struct {
		name string
		wait map[string]time.Duration
		got  string // the last that the client hears
		took time.Duration
	}{
		{"a session opens slowly", map[string]time.Duration{"": 7 * time.Second, "EHLO": 7 * time.Second, "XCLIENT": 7 * time.Second}, "not_begun", 15 * time.Second},
		{"no greeting", map[string]time.Duration{"": forever}, "not_begun", 15 * time.Second},
		{"no reply to MAIL", map[string]time.Duration{"MAIL": forever}, "before_reply", 20 * time.Second},
		{"no reply to RCPT", map[string]time.Duration{"RCPT": forever}, "before_reply", 20 * time.Second},
		{"no reply to DATA", map[string]time.Duration{"DATA": forever}, "before_reply", 20 * time.Second},
		{"all just in time", map[string]time.Duration{"MAIL": 19 * time.Second, "RCPT": 19 * time.Second, "DATA": 19 * time.Second}, "250 2.0.0 Ok", 57 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := liveClient(t, Route{}, slowHop(tt.wait))
				l := c.live()
				start := time.Now()
				got := said(t.Context(), l, asked("h"), "x\r\n", "b@y.example")
				if took := time.Since(start).Round(100 * time.Millisecond); got[len(got)-1] != tt.got || took != tt.took {
					t.Errorf("%q after %v, want %q after %v", got, took, tt.got, tt.took)
				}
				l.Close()
				time.Sleep(2 * forever)
			})
		})
	}
}

// TestLiveDrips: a message that comes in drips isn't passed on for longer than
// ten minutes.
func TestLiveDrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := liveClient(t, Route{}, slowHop(nil))
		l := c.live()
		defer l.Close()
		for n, want := range map[int]Ending{59: "", 62: InMessage} {
			if _, err := l.Mail(t.Context(), asked("h"), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Rcpt(t.Context(), &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox("b@y.example")}}); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Data(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range n {
				time.Sleep(10 * time.Second)
				l.Write([]byte("a line\r\n"))
			}
			_, err := l.End(t.Context())
			var lost *LostError
			if errors.As(err, &lost) != (want != "") || lost != nil && lost.Ending != want {
				t.Errorf("%d drips: %v, want %q", n, err, want)
			}
			l.Reset()
		}
	})
}

// TestLivePaused: a next hop that didn't answer in time, or can't be reached in
// time, is left alone for half a minute; and it is three slow replies in a row
// that do it.
func TestLivePaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := liveClient(t, Route{}, nil)
		r := c.routes[dest]
		c.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
		}
		start := time.Now()
		if _, err := c.live().Mail(t.Context(), asked("h"), 0); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := r.willing(); err != errSlow {
			t.Errorf("after it couldn't be reached in time: %v", err)
		}
		time.Sleep(time.Minute)
		for wait, want := range map[time.Duration]error{29 * time.Second: errSlow, 31 * time.Second: nil} {
			r.pauseLive(true)
			time.Sleep(wait)
			if err := r.willing(); err != want {
				t.Errorf("after %v: %v, want %v", wait, err, want)
			}
			time.Sleep(time.Minute)
		}
		for _, took := range []time.Duration{liveSlow, liveSlow, 0, liveSlow, liveSlow} {
			r.notePace(took)
		}
		if err := r.willing(); err != nil {
			t.Errorf("two slow replies after a quick one: %v", err)
		}
		if r.notePace(liveSlow); r.willing() != errSlow {
			t.Error("a third one costs nothing")
		}
	})
}
