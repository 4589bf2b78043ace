package smtpd

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// limitClients has clients limited by l.
func limitClients(t *testing.T, s *Server, l policy.ClientLimits) {
	snap := snapshot(t, func(spec *policy.Spec) { spec.Limits.Client = l })
	s.Policy = func() *policy.Snapshot { return snap }
}

// TestClientLimits plays dialogues of several connections, which stay open
// until the end unless the server or QUIT ends them.
func TestClientLimits(t *testing.T) {
	const mail, alice = "MAIL FROM:<>", "RCPT TO:<alice@corp.example>"
	const tooMany = "421 4.7.0 mx.test Error: too many connections from "
	type step struct {
		from, say, want string // say "" connects; "+90s" waits
	}
	for _, tt := range []struct {
		name   string
		limits policy.ClientLimits
		steps  []step
		metric string
		times  float64
	}{
		{"connections", policy.ClientLimits{Connections: 2}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", "", "220"}, {"192.0.2.1", "", tooMany + "192.0.2.1\r\n"}, {"192.0.2.2", "", "220"},
			{"192.0.2.1", "", tooMany}, {"2001:db8::1", "", "220"}, {"2001:db8::1", "", "220"}, {"2001:db8::1", "", tooMany}, {"2001:db8::2", "", "220"},
		}, "client_connections", 3},
		{"connections end", policy.ClientLimits{Connections: 1}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", "QUIT", "221"}, {"192.0.2.1", "", "220"}, {"192.0.2.1", "", tooMany},
		}, "client_connections", 1},
		{"connection rate", policy.ClientLimits{ConnectionRate: 2}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", "QUIT", "221"}, {"192.0.2.1", "", "220"}, {"192.0.2.1", "QUIT", "221"}, {"192.0.2.1", "", tooMany},
			{"", "+58s", ""}, {"192.0.2.1", "", tooMany}, {"192.0.2.2", "", "220"}, {"", "+3s", ""}, {"192.0.2.1", "", "220"},
		}, "client_connection_rate", 2},
		{"another unit", policy.ClientLimits{ConnectionRate: 1, RateTime: 10}, []step{
			{"192.0.2.1", "", "220"}, {"", "+9s", ""}, {"192.0.2.1", "", tooMany}, {"", "+2s", ""}, {"192.0.2.1", "", "220"},
		}, "client_connection_rate", 1},
		{"messages", policy.ClientLimits{MessageRate: 2}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", mail, "250"}, {"192.0.2.1", mail, "503"}, {"192.0.2.1", "RSET", "250"},
			{"192.0.2.1", "MAIL <>", "501 5.5.4"}, {"192.0.2.1", "MAIL FROM:<@>", "501 5.1.7"}, {"192.0.2.1", mail, "450 4.7.1 Error: too much mail from 192.0.2.1\r\n"},
			{"192.0.2.1", "MAIL FROM:<@>", "450 4.7.1"}, {"192.0.2.2", "", "220"}, {"192.0.2.2", mail, "250"}, {"", "+61s", ""}, {"192.0.2.1", mail, "250"},
		}, "client_messages", 2},
		{"recipients", policy.ClientLimits{RecipientRate: 3}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", alice, "503"}, {"192.0.2.1", mail, "250"}, {"192.0.2.1", alice, "250"}, {"192.0.2.1", "RCPT TO:<nobody@corp.example>", "550"},
			{"192.0.2.1", "VRFY alice@corp.example", "252"}, {"192.0.2.1", alice, "450 4.7.1 Error: too many recipients from 192.0.2.1\r\n"}, {"192.0.2.1", "VRFY", "501"},
			{"192.0.2.1", "VRFY alice@corp.example", "450 4.7.1"}, {"192.0.2.1", "DATA", "354"}, {"192.0.2.1", ".", "250"},
		}, "client_recipients", 2},
		{"networks", policy.ClientLimits{ConnectionRate: 1, IPv4Prefix: 24, IPv6Prefix: 56, Exceptions: []string{"192.0.2.9"}}, []step{
			{"192.0.2.9", "", "220"}, {"192.0.2.9", "", "220"}, {"192.0.2.1", "", "220"}, {"192.0.2.2", "", tooMany + "192.0.2.2"}, {"192.0.3.1", "", "220"},
			{"2001:db8::1", "", "220"}, {"2001:db8:0:ff::1", "", tooMany}, {"2001:db8:0:100::1", "", "220"},
		}, "client_connection_rate", 2},
		{"exceptions", policy.ClientLimits{Connections: 1, ConnectionRate: 1, MessageRate: 1, RecipientRate: 1, Exceptions: []string{"192.0.2.0/24"}}, []step{
			{"192.0.2.1", "", "220"}, {"192.0.2.1", "", "220"}, {"192.0.2.1", mail, "250"}, {"192.0.2.1", alice, "250"}, {"192.0.2.1", alice, "250"},
			{"192.0.2.1", "RSET", "250"}, {"192.0.2.1", mail, "250"},
		}, "client_messages", 0},
		{"XCLIENT", policy.ClientLimits{Connections: 1, MessageRate: 1}, []step{
			{"10.0.0.1", "", "220"}, {"10.0.0.1", mail, "250"}, {"10.0.0.1", "RSET", "250"}, {"10.0.0.1", mail, "250"}, {"10.0.0.1", "RSET", "250"},
			{"10.0.0.1", "XCLIENT ADDR=192.0.2.1", "220"}, {"10.0.0.1", mail, "250"}, {"192.0.2.1", "", tooMany + "192.0.2.1"},
			{"10.0.0.1", "RSET", "250"}, {"10.0.0.1", mail, "450 4.7.1 Error: too much mail from 192.0.2.1"},
			{"10.0.0.1", "", "220"}, {"10.0.0.1", "XCLIENT ADDR=192.0.2.1", tooMany},
		}, "client_connections", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(s *Server) {
				s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
				limitClients(t, s, tt.limits)
			}, func(t *testing.T, s *Server, ln *pipeListener) {
				last := map[string]*client{}
				for _, st := range tt.steps {
					switch {
					case st.from == "":
						d, err := time.ParseDuration(st.say[1:])
						if err != nil {
							t.Fatal(err)
						}
						time.Sleep(d)
					case st.say == "":
						c := newClient(t, ln.dial(st.from))
						defer c.Close()
						if c.want(st.want); st.want == "220" {
							last[st.from] = c
						}
					default:
						last[st.from].send(st.say + "\r\n")
						last[st.from].want(st.want)
					}
					synctest.Wait()
				}
				limited(t, s, tt.metric, tt.times)
			})
		})
	}
}

// TestClientTLS counts handshakes but those that resume a session.
func TestClientTLS(t *testing.T) {
	s, _ := newServer(t)
	s.TLS = tlsConfig(t)
	limitClients(t, s, policy.ClientLimits{NewTLSRate: 2})
	ln := listen(t)
	serve(t, s, ln)
	resuming := &tls.Config{InsecureSkipVerify: true, ServerName: "mx.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for n, tt := range []struct {
		conf *tls.Config
		want string
	}{{resuming, "250"}, {resuming, "250"}, {nil, "250"}, {nil, "421 4.7.0 mx.test Error: too many new TLS sessions from unknown[127.0.0.1]"}} {
		c := newClient(t, startTLS(t, dial(t, ln), tt.conf))
		if n < 3 {
			c.send("EHLO x\r\n")
		}
		c.want(tt.want)
		c.Close()
	}
	c := newClient(t, dial(t, ln))
	c.want("220")
	c.send("STARTTLS\r\n")
	c.want("454 4.7.0 Error: too many new TLS sessions from unknown[127.0.0.1]")
	c.send("NOOP\r\n")
	c.want("250")
	limited(t, s, "client_tls_sessions", 2)
}

// TestRatesBounded: a crowd makes forgotten who has been away for the longest,
// and nobody who is connected.
func TestRatesBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rates
		who := func(n int) netip.Prefix {
			return alone(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", n>>16, n&0xffff)))
		}
		r.enter(who(0), 60)
		r.count(who(0), newMessage, 1, 60)
		for n := 1; n < 3*ratesSize; n++ {
			r.enter(who(n), 60)
			r.leave(who(n))
		}
		if len(r.clients) != ratesSize || r.idle.Len() != ratesSize-1 {
			t.Errorf("%d clients, %d idle, want %d in all", len(r.clients), r.idle.Len(), ratesSize)
		}
		if n := r.count(who(0), newMessage, 1, 60); n != 2 {
			t.Errorf("the connected client's second message is number %d", n)
		}
		if _, n := r.enter(who(3*ratesSize-1), 60); n != 2 {
			t.Errorf("the latest client's second session is number %d", n)
		}
		r.leave(who(3*ratesSize - 1))
		time.Sleep(time.Minute)
		if r.enter(who(1), 60); len(r.clients) != 2 {
			t.Errorf("%d clients a minute after, want 2", len(r.clients))
		}
	})
}
