package smtpd

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
)

func TestConnectionLimits(t *testing.T) {
	s, _ := newServer(t)
	s.MaxConnections, s.MaxConnectionsPerClient = 3, 2
	ln := newPipeListener()
	stop := serve(t, s, ln)
	a := newClient(t, ln.dial("2001:db8::1"))
	a.want("220")
	b := newClient(t, ln.dial("2001:db8::2"))
	b.want("220")
	c := newClient(t, ln.dial("2001:db8::3")) // same /64
	c.want("421 4.7.0")
	c.wantClosed()
	waitFor(t, func() bool { return s.sessions() == 2 }) // the close is seen before the place is free
	d := newClient(t, ln.dial("192.0.2.1"))
	d.want("220")
	e := newClient(t, ln.dial("192.0.2.2"))
	e.want("421 4.7.0")
	e.wantClosed()
	a.send("QUIT\r\n")
	a.want("221")
	a.wantClosed()
	waitFor(t, func() bool { return s.sessions() == 2 })
	f := newClient(t, ln.dial("2001:db8::4"))
	f.want("220")
	for _, c := range []*client{b, d, f} {
		c.Close()
	}
	stop()
	if n := len(s.crowd.all) + len(s.crowd.from); n != 0 {
		t.Errorf("%d connections and clients left", n)
	}
	if n := testutil.ToFloat64(s.Metrics.SessionsOpen); n != 0 {
		t.Errorf("gauge of open sessions: %v", n)
	}
}

func TestUnknownRecipientsCut(t *testing.T) {
	s, _ := newServer(t)
	s.MaxUnknownRecipients = 3
	talk(t, s, "S: 220\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@corp.example>\nS: 550\nC: RCPT TO:<b@corp.example>\nS: 550\nC: RCPT TO:<c@corp.example>\nS: 550\nS: 421 4.7.0\nS: CLOSED\n")
}

func TestTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply string
		after time.Duration
		data  bool
		octet string // sent once a second
	}{
		{"idle", "421 4.4.2", 5 * time.Minute, false, ""},
		{"slow command", "421 4.4.2", 5 * time.Minute, false, "N"},
		{"idle in data", "421 4.4.2", 3 * time.Minute, true, ""},
		{"slow data", "421 4.4.2", 181 * time.Second, true, "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := newServer(t)
				ln := newPipeListener()
				stop := serve(t, s, ln)
				c := newClient(t, ln.dial("192.0.2.1"))
				c.want("220")
				if tt.data {
					data(c)
				}
				start := time.Now()
				dripping := drip(c, tt.octet)
				c.want(tt.reply)
				if d := time.Since(start); d < tt.after-2*time.Second || d > tt.after+2*time.Second {
					t.Errorf("after %v, want %v", d, tt.after)
				}
				c.wantClosed()
				c.Close()
				<-dripping
				stop()
			})
		})
	}
}

func data(c *client) {
	c.send("MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n")
	c.want("250")
	c.want("250")
	c.want("354")
}

// drip writes an octet a second until the server has had enough.
func drip(c *client, octet string) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		for octet != "" {
			if _, err := io.WriteString(c.Conn, octet); err != nil {
				return
			}
			time.Sleep(time.Second) // in a synctest bubble
		}
	}()
	return done
}

// TestSoftErrors makes a client wait for each reply after its tenth error.
func TestSoftErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		ln := newPipeListener()
		stop := serve(t, s, ln)
		c := newClient(t, ln.dial("192.0.2.1"))
		c.want("220")
		start := time.Now()
		want := time.Duration(0)
		for i := range 13 {
			c.send("FOO\r\n")
			c.want("500")
			if i >= 10 {
				want += time.Second
			}
			if d := time.Since(start); d != want {
				t.Errorf("error %d answered after %v", i+1, d)
			}
		}
		c.Close()
		stop()
	})
}

// TestErrorSleep has the primary's limits followed, down to none.
func TestErrorSleep(t *testing.T) {
	for _, tt := range []struct {
		limits policy.Limits
		want   time.Duration // that three errors take
	}{
		{policy.Limits{SoftErrors: 1, ErrorSleep: 3, HardErrors: 20}, 6 * time.Second},
		{policy.Limits{SoftErrors: 1, ErrorSleep: 0, HardErrors: 20}, 0},
		{policy.Limits{SoftErrors: 1, ErrorSleep: 3600, HardErrors: 20}, 2 * maxSlowDown},
		{policy.Limits{SoftErrors: 2, ErrorSleep: 5, HardErrors: 3}, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := newServer(t)
			snap := snapshot(t, func(spec *policy.Spec) { spec.Limits = tt.limits })
			s.Policy = func() *policy.Snapshot { return snap }
			ln := newPipeListener()
			stop := serve(t, s, ln)
			c := newClient(t, ln.dial("192.0.2.1"))
			c.want("220")
			start := time.Now()
			for range 3 {
				c.send("FOO\r\n")
				c.want("500")
			}
			if d := time.Since(start); d != tt.want {
				t.Errorf("%+v: three errors took %v, want %v", tt.limits, d, tt.want)
			}
			if tt.limits.HardErrors == 3 {
				c.want("421 4.7.0")
			}
			c.Close()
			stop()
		})
	}
}

// TestSpokeFirst is about reject_unauth_pipelining and a client that didn't wait
// for the greeting: the flag stays for the session.
func TestSpokeFirst(t *testing.T) {
	for _, minds := range []bool{false, true} {
		s, _ := newServer(t)
		snap := snapshot(t, func(spec *policy.Spec) {
			if minds {
				spec.Restrictions.Recipient = append([]policy.Restriction{{Kind: "reject_unauth_pipelining"}}, spec.Restrictions.Recipient...)
			}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		ln := newPipeListener()
		stop := serve(t, s, ln)
		c := newClient(t, ln.dial("192.0.2.1"))
		sent := make(chan struct{})
		go func() { defer close(sent); c.send("EHLO early.example\r\n") }()
		if minds { // a pipe holds nothing: else the server must greet first
			<-sent
		}
		c.want("220")
		<-sent
		c.want("250")
		c.send("MAIL FROM:<>\r\n")
		c.want("250")
		c.send("RCPT TO:<alice@corp.example>\r\n")
		if minds {
			c.want("503 5.5.0")
		} else {
			c.want("250")
		}
		c.Close()
		stop()
	}
}
