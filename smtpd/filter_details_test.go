package smtpd

import (
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/policy"
)

const toFilter = "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\n"

// TestFilterAccounts: what a filter hears of two messages, once each, with the
// macros that Postfix has by default, and what is counted of its answers.
func TestFilterAccounts(t *testing.T) {
	s, _ := newServer(t)
	m := withFilter(t, s, nil)
	talk(t, s, toFilter+"C: x\nC: .\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\nC: X-eom: 550 5.7.1 Spam\nC:\nC: x\nC: .\nS: 550\nC: QUIT\nS: 221\n")
	heard := "\n" + strings.Join(m.Heard(1), "")
	for event, n := range map[string]int{"C": 1, "H": 1, "M": 2, "R": 2, "T": 2, "E": 2} {
		if got := strings.Count(heard, "\n"+event+" "); got != n {
			t.Errorf("event %s comes %d times, not %d:\n%s", event, got, n, heard)
		}
	}
	for _, macros := range []string{"  C j=", "{daemon_addr}=", "{mail_addr}=", "{rcpt_addr}=", "  T i="} {
		if !strings.Contains(heard, macros) {
			t.Errorf("no macro %q:\n%s", macros, heard)
		}
	}
	if st := s.Filters[0].Status(s.Policy()); st.Asked != 2 || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	if n := verdicts(s, "connect", "permit", "milter"); n != 0 {
		t.Errorf("%v verdicts of a filter that let the client pass", n)
	}
}

// TestFilterEndsTheSession: 421 to a command that nobody knows does.
func TestFilterEndsTheSession(t *testing.T) {
	s, _ := newServer(t)
	withFilter(t, s, nil)
	talk(t, s, "S: 220\nC: EHLO mail.x.example\nS: 250\nC: XX-4\nS: 421 4.7.0\nS: CLOSED\n")
	if n := testutil.ToFloat64(s.Metrics.Sessions.WithLabelValues("refused")); n != 1 {
		t.Errorf("%v sessions refused", n)
	}
}

// TestFilterBeforeLive: a filter that refused the session while the primary
// couldn't decide has no word once it does.
func TestFilterBeforeLive(t *testing.T) {
	a := &actor{answers: map[string]string{"MAIL": "gone"}}
	s, _ := liveServer(t, a)
	withFilter(t, s, nil)
	ln := newPipeListener()
	stop := serve(t, s, ln)
	defer stop()
	c := newClient(t, ln.dial("192.0.2.1"))
	defer c.Close()
	c.want("220")
	c.send("EHLO 550_5.7.1_no.helo.test\r\n")
	c.want("250")
	c.send("MAIL FROM:<b@x.example>\r\n")
	c.want("550 5.7.1")
	c.send("VRFY alice@corp.example\r\n")
	c.want("550 5.7.1")
	a.answers["MAIL"] = ""
	c.send("MAIL FROM:<b@x.example>\r\n")
	c.want("250")
	c.send("VRFY alice@corp.example\r\n")
	c.want("252")
}

// TestCommandMacros are those of TLS.
func TestCommandMacros(t *testing.T) {
	f := &filtering{s: &session{}}
	for tls, want := range map[string][3]string{
		"":                                 {},
		"TLSv1.3 TLS_AES_256_GCM_SHA384":   {"TLSv1.3", "TLS_AES_256_GCM_SHA384", "256"},
		"TLSv1.2 ECDHE-RSA-AES128-GCM-256": {"TLSv1.2", "ECDHE-RSA-AES128-GCM-256", "128"},
	} {
		f.s.client.TLS = tls
		for n, name := range []string{"tls_version", "cipher", "cipher_bits"} {
			if got, is := f.commandMacro(name); got != want[n] || is != (tls != "") {
				t.Errorf("%q: %s is %q, %v", tls, name, got, is)
			}
		}
	}
}

// TestDefaultVerdict: what the primary hasn't said anything to yet counts as
// "default".
func TestDefaultVerdict(t *testing.T) {
	s, _ := liveServer(t, &actor{answers: map[string]string{"MAIL": "later"}})
	talk(t, s, "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: QUIT\nS: 221\n")
	if n := verdicts(s, "mail", "permit", "default"); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// TestPinRefuses: a policy that comes into force in the middle of a session and
// refuses the client isn't outdone by what it says of its name.
func TestPinRefuses(t *testing.T) {
	s, _ := newServer(t)
	snap := s.Policy()
	s.Policy = func() *policy.Snapshot { return snap }
	ln := newPipeListener()
	stop := serve(t, s, ln)
	defer stop()
	c := newClient(t, ln.dial("192.0.2.1"))
	defer c.Close()
	c.want("220")
	c.send("EHLO mail.x.example\r\n")
	c.want("250")
	snap = snapshot(t, func(spec *policy.Spec) {
		spec.DelayReject = false
		spec.Restrictions.Client = []policy.Restriction{{Kind: "reject"}}
		spec.Restrictions.Helo = []policy.Restriction{{Kind: "permit"}}
	})
	c.send("MAIL FROM:<b@x.example>\r\n")
	c.want("554 5.7.1")
}

// TestNoProxyHeader: a listed proxy that doesn't say for whom it comes counts as
// an error, and as nothing else.
func TestNoProxyHeader(t *testing.T) {
	s, _ := newServer(t)
	s.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	ln := newPipeListener()
	stop := serve(t, s, ln)
	c := newClient(t, ln.dial("192.0.2.1"))
	_, _ = io.WriteString(c, "EHLO x\r\n")
	c.wantClosed()
	stop()
	if n := testutil.ToFloat64(s.Metrics.Sessions.WithLabelValues("error")); n != 1 || testutil.CollectAndCount(s.Metrics.Sessions) != 1 {
		t.Errorf("%v sessions ended in an error, of %d kinds", n, testutil.CollectAndCount(s.Metrics.Sessions))
	}
}
