package smtpd

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// bubble runs do against s in a synctest bubble.
func bubble(t *testing.T, change func(*Server), do func(t *testing.T, s *Server, ln *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		change(s)
		ln := newPipeListener()
		stop := serve(t, s, ln)
		do(t, s, ln)
		stop()
		if n := len(s.crowd.all) + len(s.crowd.from); n != 0 {
			t.Errorf("%d connections and clients left", n)
		}
	})
}

func limited(t *testing.T, s *Server, name string, want float64) {
	t.Helper()
	if n := testutil.ToFloat64(s.Metrics.SMTPLimits.WithLabelValues(name)); n != want {
		t.Errorf("limit %s counted %v times, want %v", name, n, want)
	}
}

func TestNetworkLimit(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnectionsPerNetwork = 2 }, func(t *testing.T, s *Server, ln *pipeListener) {
		for _, tt := range []struct{ from, want string }{
			{"192.0.2.1", "220"}, {"192.0.2.2", "220"}, {"192.0.2.3", "421 4.7.0 mx.test Error: too many connections from your network"}, {"192.0.3.1", "220"},
			{"2001:db8:0:1::1", "220"}, {"2001:db8:0:2::1", "220"}, {"2001:db8:0:3::1", "421"}, {"2001:db8:1::1", "220"},
		} {
			c := newClient(t, ln.dial(tt.from))
			defer c.Close()
			c.want(tt.want)
		}
		limited(t, s, "connections_per_network", 2)
	})
}

func TestSessionTime(t *testing.T) {
	bubble(t, func(s *Server) { s.SessionTimeout = 10 * time.Minute }, func(t *testing.T, s *Server, ln *pipeListener) {
		c := newClient(t, ln.dial("192.0.2.1"))
		c.want("220")
		start := time.Now()
		for range 3 {
			time.Sleep(4 * time.Minute)
			if time.Since(start) < 10*time.Minute {
				c.send("NOOP\r\n")
				c.want("250")
			}
		}
		c.want("421 4.7.0 mx.test Error: session too long")
		if d := time.Since(start); d < 10*time.Minute || d > 12*time.Minute {
			t.Errorf("after %v", d)
		}
		c.Close()
		limited(t, s, "session_time", 1)
	})
}

func TestTransactionsLimit(t *testing.T) {
	s, _ := newServer(t)
	s.MaxTransactions = 2
	talk(t, s, "S: 220\nC: MAIL FROM:<>\nS: 250\nC: RSET\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RSET\nS: 250\nC: MAIL FROM:<>\nS: 421 4.7.0 mx.test Error: too many messages\nS: CLOSED\n")
	limited(t, s, "transactions", 1)
}

const openData = "S: 220\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\n"

func TestContentLimits(t *testing.T) {
	trace := "C: Received: from a (b [192.0.2.1])\nC: \tby MX.test with ESMTP\nC: \tid 1; date\n"
	other := "C: Received: from mx.test (mx.test [192.0.2.1])\nC: \tby mx1.example with ESMTP id 1 by-way mx.test with; date\n"
	long := strings.Repeat("x", 98)
	for _, tt := range []struct{ name, content, want, limit string }{
		{"fields", strings.Repeat("C: A: b\n", 5), "250", ""},
		{"one field more", strings.Repeat("C: A: b\n", 6), "552 5.3.4 Error: too many header fields", "header_fields"},
		{"lines that fold are no fields", "C: A: b\n" + strings.Repeat("C:  b\n", 9), "250", ""},
		{"line", "C: \nC: " + long + "\nC: " + long + "\n", "250", ""},
		{"line too long", "C: \nC: x" + long + "\n", "554 5.6.0 Error: line in message too long", "line_length"},
		{"our trace once", trace + "C: \n", "250", ""},
		{"our trace twice", trace + other + trace + "C: \n", "554 5.4.6 Error: mail loop", "loop"},
		{"others' traces", strings.Repeat(other, 3) + "C: \n", "250", ""},
		{"our trace in the text", trace + "C: \n" + trace, "250", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, spool := newServer(t)
			s.MaxHeaderFields, s.MaxLine = 5, 100
			talk(t, s, openData+tt.content+"C: .\nS: "+tt.want+"\nC: NOOP\nS: 250\n")
			if tt.limit != "" {
				limited(t, s, tt.limit, 1)
			}
			if n := len(spool.accepted()); (n == 1) != (tt.limit == "") {
				t.Errorf("%d messages accepted", n)
			}
		})
	}
}

// TestLineOverBuffers: a line counts as one although it is taken in pieces.
func TestLineOverBuffers(t *testing.T) {
	for limit, want := range map[int]bool{10: true, 11: false} {
		b := body{w: io.Discard, lineStart: true, maxLine: limit}
		for _, p := range []string{"12345", "6789", "\r\n"} {
			b.consume([]byte(p), true)
		}
		if b.lineTooLong != want {
			t.Errorf("11 octets, CRLF included, of %d: too long %v", limit, b.lineTooLong)
		}
	}
}

// TestStress fills a server of ten: at eight the waits shrink for all, and
// those are dropped first whom a connect rule has refused.
func TestStress(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnections = 10 }, func(t *testing.T, s *Server, ln *pipeListener) {
		listed := newClient(t, ln.dial("192.0.2.66"))
		listed.want("220")
		listed.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
		listed.want("250")
		listed.want("554 5.7.1")
		var idle []*client
		for i := range 6 {
			idle = append(idle, newClient(t, ln.dial(fmt.Sprintf("198.51.100.%d", i+1))))
			idle[i].want("220")
		}
		idle[0].send("MAIL FROM:<>\r\nRCPT TO:<nobody@corp.example>\r\n") // which is no rule about the client
		idle[0].want("250")
		idle[0].want("550")
		synctest.Wait()
		if s.crowd.stressed.Load() {
			t.Fatal("under stress with 7 of 10")
		}
		start := time.Now()
		last := newClient(t, ln.dial("203.0.113.1"))
		last.want("220")
		listed.want("421 4.7.0 mx.test Error: too busy")
		listed.wantClosed()
		if d := time.Since(start); d > time.Second {
			t.Errorf("the listed client stayed for %v", d)
		}
		for _, c := range idle {
			c.want("421 4.4.2")
			if d := time.Since(start); d < stressTimeout || d > stressTimeout+time.Second {
				t.Errorf("an idle client stayed for %v, want %v", d, stressTimeout)
			}
			c.Close()
		}
		limited(t, s, "stress", 1)
		last.Close()
		listed.Close()
		synctest.Wait()
		if s.crowd.stressed.Load() {
			t.Error("still under stress when all have gone")
		}
	})
}

// TestStressDuringReply: stress that begins while a session writes a reply is
// noticed when it waits for the next command.
func TestStressDuringReply(t *testing.T) {
	for from, want := range map[string]struct {
		reply string
		stay  time.Duration
	}{
		"192.0.2.1":  {"421 4.4.2", stressTimeout},
		"192.0.2.66": {"421 4.7.0 mx.test Error: too busy", 0},
	} {
		bubble(t, func(s *Server) { s.MaxConnections = 10 }, func(t *testing.T, s *Server, ln *pipeListener) {
			c := newClient(t, ln.dial(from))
			c.want("220")
			c.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
			synctest.Wait() // the server writes to a client that doesn't read
			for i := range 7 {
				other := newClient(t, ln.dial(fmt.Sprintf("198.51.100.%d", i+1)))
				defer other.Close()
				other.want("220")
			}
			start := time.Now()
			c.want("250")
			c.want("")
			c.want(want.reply)
			if d := time.Since(start); d < want.stay || d > want.stay+time.Second {
				t.Errorf("%s stayed for %v, want %v", from, d, want.stay)
			}
			c.Close()
		})
	}
}

// TestStressHangsUp: who is listed, or errs on and on, isn't kept under stress.
func TestStressHangsUp(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnections = 10 }, func(t *testing.T, s *Server, ln *pipeListener) {
		for i := range 7 {
			c := newClient(t, ln.dial(fmt.Sprintf("198.51.100.%d", i+1)))
			defer c.Close()
			c.want("220")
		}
		a, b := newClient(t, ln.dial("192.0.2.66")), newClient(t, ln.dial("192.0.2.1"))
		a.want("220")
		b.want("220")
		a.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
		a.want("250")
		a.want("554 5.7.1")
		a.want("421 4.7.0")
		for range 10 {
			b.send("FOO\r\n")
			b.want("500")
		}
		b.send("FOO\r\n")
		b.want("421 4.7.0")
		a.Close()
		b.Close()
	})
}

// TestReservedPlaces keeps the last tenth for clients that brought mail.
func TestReservedPlaces(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnections = 10 }, func(t *testing.T, s *Server, ln *pipeListener) {
		good := newClient(t, ln.dial("192.0.2.1"))
		good.want("220")
		data(good)
		good.send(".\r\nQUIT\r\n")
		good.want("250")
		good.want("221")
		good.Close()
		synctest.Wait()
		for i := range 9 {
			c := newClient(t, ln.dial(fmt.Sprintf("198.51.100.%d", i+1)))
			defer c.Close()
			c.want("220")
		}
		stranger := newClient(t, ln.dial("203.0.113.1"))
		stranger.want("421 4.7.0 mx.test Error: too many connections")
		stranger.wantClosed()
		synctest.Wait() // until its place is free
		again := newClient(t, ln.dial("192.0.2.1"))
		defer again.Close()
		again.want("220")
		limited(t, s, "connections", 1)
	})
}

// TestFarTooMany: beyond the places for reading a refusal there is not even that.
func TestFarTooMany(t *testing.T) {
	bubble(t, func(s *Server) { s.MaxConnections = 1 }, func(t *testing.T, s *Server, ln *pipeListener) {
		for i := range 17 { // none reads its refusal: net.Pipe blocks the server
			c := ln.dial(fmt.Sprintf("198.51.100.%d", i+1))
			defer c.Close()
		}
		newClient(t, ln.dial("203.0.113.1")).wantClosed()
		synctest.Wait()
		limited(t, s, "connections", 17)
	})
}

func TestHistory(t *testing.T) {
	var h history
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range historySize + 5 {
		h.add(alone(at(i)))
		h.add(alone(at(0))) // stays recent
	}
	if len(h.byAddr) != historySize || h.recent.Len() != historySize {
		t.Errorf("%d and %d clients kept", len(h.byAddr), h.recent.Len())
	}
	for i, want := range map[int]bool{0: true, 1: false, 5: false, 6: true, historySize + 4: true, historySize + 5: false} {
		if got := h.has(alone(at(i)), 0); got != want {
			t.Errorf("client %d: %v", i, got)
		}
	}
	h.forget(alone(at(0)))
	h.forget(alone(at(0)))
	h.add(alone(netip.Addr{}))
	if h.has(alone(at(0)), 0) || h.has(alone(netip.Addr{}), 0) {
		t.Error("forgotten client known")
	}
}

func TestGreetWait(t *testing.T) {
	const early = "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n"
	for _, tt := range []struct{ action, says, want string }{
		{"ignore", early, "220 250 250 250"},
		{"enforce", early, "220 250 250 550"},
		{"drop", early, "521"},
		{"drop", "", "220 250 250 250"},
	} {
		t.Run(tt.action, func(t *testing.T) {
			bubble(t, func(s *Server) { s.GreetWait, s.GreetAction = 6*time.Second, tt.action }, func(t *testing.T, s *Server, ln *pipeListener) {
				c := newClient(t, ln.dial("192.0.2.1"))
				defer c.Close()
				if line, err := c.r.ReadString('\n'); line != "220-mx.test ESMTP Understudy\r\n" {
					t.Fatalf("teaser %q, %v", line, err)
				}
				start := time.Now()
				c.send(tt.says)
				codes := strings.Fields(tt.want)
				c.want(codes[0])
				if waited := time.Since(start) >= 6*time.Second; waited != (tt.says == "") {
					t.Errorf("greeted after %v", time.Since(start))
				}
				if tt.says == "" {
					c.send(early)
				}
				for _, code := range codes[1:] {
					c.want(code)
				}
				want := 1.0
				if tt.says == "" {
					want = 0
				}
				limited(t, s, "pregreet", want)
			})
		})
	}
}

// TestPostscreen does what the policy's postscreen wants.
func TestPostscreen(t *testing.T) {
	for _, tt := range []struct {
		action, early, want string
		wait                time.Duration
	}{
		{"enforce", "EHLO x\r\n", "220 250 250 550", 0},
		{"drop", "EHLO x\r\n", "521", 0},
		{"ignore", "EHLO x\r\n", "220 250 250 250", 4 * time.Second},
		{"drop", "", "220 250 250 250", 4 * time.Second},
	} {
		t.Run(tt.action, func(t *testing.T) {
			snap := snapshot(t, func(spec *policy.Spec) {
				spec.Postscreen = &policy.Postscreen{GreetAction: tt.action, GreetWait: 4, GreetBanner: "wait a moment"}
			})
			bubble(t, func(s *Server) { s.Policy = func() *policy.Snapshot { return snap } }, func(t *testing.T, s *Server, ln *pipeListener) {
				start := time.Now()
				c := newClient(t, ln.dial("192.0.2.1"))
				defer c.Close()
				if line, err := c.r.ReadString('\n'); line != "220-wait a moment\r\n" {
					t.Fatalf("teaser %q, %v", line, err)
				}
				c.send(tt.early)
				codes := strings.Fields(tt.want)
				c.want(codes[0])
				if d := time.Since(start); d != tt.wait {
					t.Errorf("greeted after %v, want %v", d, tt.wait)
				}
				if tt.early == "" {
					c.send("EHLO x\r\n")
				}
				if len(codes) > 1 {
					c.want(codes[1])
					c.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\n")
					c.want(codes[2])
					c.want(codes[3])
				}
				if tt.action == "enforce" { // the reply is DATA's, and there is no other
					c.send("DATA\r\n")
					c.want("554 5.5.1 Error: no valid recipients")
					c.wantClosed()
				}
			})
		})
	}
}

// TestPostscreenSpares: the policy's postscreen watches each client until it has
// passed, for as long as that holds. Mail that another way in brought is no
// reason not to, nor is a neighbour's patience.
func TestPostscreenSpares(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name, first, second string // clients
		ttl                 int
		pause               time.Duration
		waits               bool
	}{
		{"passed", "192.0.2.1", "192.0.2.1", 86400, day - time.Minute, false},
		{"passed too long ago", "192.0.2.1", "192.0.2.1", 86400, day, true},
		{"nothing is remembered", "192.0.2.1", "192.0.2.1", 0, time.Second, true},
		{"a neighbour", "2001:db8::1", "2001:db8::2", 86400, time.Second, true},
		{"mail through XCLIENT", "10.0.0.1", "192.0.2.1", 86400, time.Second, true},
		{"mail by permission", "198.51.100.1", "198.51.100.1", 86400, time.Second, false},
		{"passed at the primary", "192.0.2.1", "203.0.113.1", 86400, 3*time.Hour - time.Minute, false},
		{"passed at the primary too long ago", "192.0.2.1", "203.0.113.1", 86400, 3 * time.Hour, true},
		{"the primary's word can't be read", "192.0.2.1", "203.0.113.2", 86400, time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap := snapshot(t, func(spec *policy.Spec) {
				spec.Tables["screen"], _ = table.NewHash(map[string]string{"198.51.100.1": "permit"})
				until := time.Date(2000, 1, 1, 3, 0, 0, 0, time.UTC).Unix() / policy.GreetUnit // a bubble's clock begins at 0:00
				spec.Tables["cache"], _ = table.NewHash(map[string]string{"203.0.113.1": fmt.Sprint(until), "203.0.113.2": "nonsense"})
				spec.Postscreen = &policy.Postscreen{GreetAction: "enforce", GreetWait: 4, GreetTTL: tt.ttl, Access: []string{"table:screen"}, GreetPassed: []string{"cache"}}
			})
			bubble(t, func(s *Server) {
				s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
				s.Policy = func() *policy.Snapshot { return snap }
			}, func(t *testing.T, s *Server, ln *pipeListener) {
				c := newClient(t, ln.dial(tt.first))
				if tt.first == "10.0.0.1" {
					c.want("220")
					c.send("XCLIENT ADDR=192.0.2.1\r\n")
				}
				c.want("220")
				data(c)
				c.send(".\r\nQUIT\r\n")
				c.want("250")
				c.want("221")
				c.Close()
				time.Sleep(tt.pause)
				start := time.Now()
				c = newClient(t, ln.dial(tt.second))
				defer c.Close()
				c.want("220")
				if waited := time.Since(start) > 0; waited != tt.waits {
					t.Errorf("waits %v, want %v", waited, tt.waits)
				}
			})
		})
	}
}

// TestGreetWaitSpares: who brought mail before isn't made to wait again, and
// a shutdown waits for nobody.
func TestGreetWaitSpares(t *testing.T) {
	bubble(t, func(s *Server) { s.GreetWait = 6 * time.Second }, func(t *testing.T, s *Server, ln *pipeListener) {
		c := newClient(t, ln.dial("192.0.2.1"))
		c.want("220 ")
		data(c)
		c.send(".\r\nQUIT\r\n")
		c.want("250")
		c.want("221")
		c.Close()
		start := time.Now()
		again := newClient(t, ln.dial("192.0.2.1"))
		again.want("220 ")
		again.Close()
		if d := time.Since(start); d > 0 {
			t.Errorf("waited %v again", d)
		}
		gone := ln.dial("192.0.2.2")
		if _, err := gone.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		gone.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		s.GreetWait = time.Minute
		ln := newPipeListener()
		stop := serve(t, s, ln)
		c := newClient(t, ln.dial("192.0.2.1"))
		if _, err := c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		go stop()
		c.want("421 4.3.2")
		if d := time.Since(start); d > time.Second {
			t.Errorf("shut down after %v", d)
		}
		c.Close()
		stop()
	})
}

// TestHold: what the policy holds is accepted and marked for the spool.
func TestHold(t *testing.T) {
	for _, stage := range []string{"mail", "rcpt", "data"} {
		s, spool := newServer(t)
		hold := []policy.Restriction{{Kind: "check_client_access", Arg: "held"}}
		snap := snapshot(t, func(spec *policy.Spec) {
			table, err := table.NewHash(map[string]string{"127.0.0.1": "HOLD"})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables["held"] = table
			switch stage {
			case "mail":
				spec.DelayReject, spec.Restrictions.Sender = false, hold
			case "rcpt":
				spec.Restrictions.Client = hold
			default:
				spec.Restrictions.Data = hold
			}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		talk(t, s, openData+"C: .\nS: 250 2.0.0 Ok: queued as ID1\n")
		if got := spool.accepted(); len(got) != 1 || !got[0].env.Hold || !strings.Contains(got[0].env.HoldRule, "check_") {
			t.Errorf("%s: not marked for hold: %+v", stage, got)
		}
	}
	s, spool := newServer(t)
	talk(t, s, openData+"C: .\nS: 250 2.0.0 Ok: queued as ID1\n")
	if spool.accepted()[0].env.Hold {
		t.Error("held without a rule")
	}
}

// TestEarlyTalkers has 600 clients at once speak in the middle of the wait, each
// second of whom has brought mail before: none gets a recipient through.
func TestEarlyTalkers(t *testing.T) {
	const n, wait = 600, 4 * time.Second
	s, _ := newServer(t)
	s.MaxConnectionsPerNetwork = n
	snap := snapshot(t, func(spec *policy.Spec) {
		spec.Postscreen = &policy.Postscreen{GreetAction: "enforce", GreetWait: int(wait / time.Second)}
	})
	s.Policy = func() *policy.Snapshot { return snap }
	ln := listen(t)
	serve(t, s, ln)
	var early, through atomic.Int32
	var g errgroup.Group
	for i := range n {
		from := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		if i%2 == 0 {
			s.crowd.good.add(group(from))
		}
		g.Go(func() error {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
			start := time.Now()
			c, err := d.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			<-time.After(wait / 2)
			if _, err := io.WriteString(c, "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nQUIT\r\n"); err != nil {
				return err
			}
			if time.Since(start) > wait*9/10 {
				return nil // on a busy machine it wasn't early
			}
			early.Add(1)
			said, err := io.ReadAll(c)
			if !strings.Contains(string(said), "\r\n550 5.5.1 Protocol error\r\n") {
				through.Add(1)
				t.Logf("client %d: %q", i, said)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if early.Load() < n/2 || through.Load() > 0 {
		t.Errorf("%d of %d early talkers got through", through.Load(), early.Load())
	}
}
