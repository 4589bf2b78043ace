package doctor_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// mailServer is a mail server whose every answer is written down.
type mailServer struct {
	greeting  []string
	wait      time.Duration
	ehlo      []string
	ehloReply string            // in its place
	unknown   string            // reply to what is no command
	rcpt      map[string]string // recipient, or "" for all others → reply
	starttls  string            // reply, "" for a good one
	cert      *tls.Certificate
	away      bool
}

func (m *mailServer) serve(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	time.Sleep(m.wait)
	r := bufio.NewReader(c)
	say := func(lines ...string) {
		for i, l := range lines {
			sep := "-"
			if i == len(lines)-1 {
				sep = " "
			}
			fmt.Fprintf(c, "%s%s%s\r\n", l[:3], sep, l[4:])
		}
	}
	say(m.greeting...)
	secure := false
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "EHLO":
			if m.ehloReply != "" {
				say(m.ehloReply)
				continue
			}
			if arg == "" {
				say("501 5.5.4 Syntax: EHLO hostname")
				continue
			}
			lines := []string{"250 " + strings.Fields(m.greeting[0])[1]}
			for _, k := range m.ehlo {
				if k != "STARTTLS" || !secure {
					lines = append(lines, "250 "+k)
				}
			}
			say(lines...)
		case "STARTTLS":
			if m.starttls != "" {
				say(m.starttls)
				continue
			}
			say("220 ready")
			t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*m.cert}})
			if t.Handshake() != nil {
				return
			}
			c, r, secure = t, bufio.NewReader(t), true
		case "RCPT":
			to := strings.Trim(strings.TrimPrefix(arg, "TO:"), "<>")
			if reply, ok := m.rcpt[to]; ok {
				say(reply)
			} else {
				say(m.rcpt[""])
			}
		case "QUIT":
			say("221 bye")
			return
		case "MAIL", "RSET":
			say("250 ok")
		default:
			if m.unknown != "" {
				say(m.unknown)
				continue
			}
			say("250 ok")
		}
	}
}

// lab is a set-up: its DNS, its mail servers, its web server.
type lab struct {
	t       *testing.T
	records []string
	behave  map[string]demo.Behaviour
	servers map[string]*mailServer // by address
	sts     map[string]string      // policy by host
	pairs   map[string]tls.Certificate
	exam    doctor.Exam
	mounts  string
}

const (
	primaryAddr, ourAddr, otherAddr = "127.0.1.1", "127.0.1.2", "127.0.1.3"
	pushName                        = "push" // ours, at that port; no host name
	primaryName, ourName            = "mx1.example.org", "mx2.example.org"
)

// healthy is a set-up without a fault.
func healthy(t *testing.T) *lab {
	l := &lab{t: t, behave: map[string]demo.Behaviour{}, sts: map[string]string{}, pairs: map[string]tls.Certificate{}}
	l.exam = doctor.Exam{
		Daemon:   doctor.Daemon{Policy: "fresh"},
		Hostname: ourName, Domains: []string{"example.org"}, Zones: []policy.DNSList{{Zone: "zen.list.example", Addresses: true}, {Zone: "dbl.list.example", Names: true}},
		StateDir: t.TempDir(), MinFree: 1 << 20, Timeout: 5 * time.Second, Roots: x509.NewCertPool(), Now: time.Now(),
	}
	for _, name := range []string{primaryName, ourName} {
		l.pair(name, true, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(90 * 24 * time.Hour) })
	}
	l.pairs[pushName] = l.pairs[ourName]
	l.records = []string{
		". 60 IN NS ns.example.", "example.org. 60 IN MX 10 mx1.example.org.", "example.org. 60 IN MX 20 mx2.example.org.",
		"mx1.example.org. 60 IN A " + primaryAddr, "mx2.example.org. 60 IN A " + ourAddr, "2.1.0.127.in-addr.arpa. 60 IN PTR mx2.example.org.",
		"2.0.0.127.zen.list.example. 60 IN A 127.0.0.2", "test.dbl.list.example. 60 IN A 127.0.1.2",
		"_mta-sts.example.org. 60 IN TXT \"v=STSv1; id=1\"",
		l.tlsa(primaryName), l.tlsa(ourName),
	}
	l.sts["mta-sts.example.org"] = "version: STSv1\r\nmode: enforce\r\nmx: mx1.example.org\r\nmx: mx2.example.org\r\nmax_age: 86400\r\n"
	server := func(name string) *mailServer {
		pair := l.pairs[name]
		return &mailServer{greeting: []string{"220 " + name + " ESMTP"}, ehlo: []string{"PIPELINING", "STARTTLS"}, cert: &pair, rcpt: map[string]string{"": "250 2.1.5 Ok"}}
	}
	l.servers = map[string]*mailServer{primaryAddr: server(primaryName), ourAddr: server(ourName)}
	l.servers[primaryAddr].ehlo = append(l.servers[primaryAddr].ehlo, "XCLIENT NAME ADDR PROTO HELO")
	l.exam.Push = doctor.Push{Listen: ourName, Dir: l.exam.StateDir + "/push", Lists: []doctor.PushedList{{Domain: "example.org", Pushed: time.Now(), Token: true}}}
	l.exam.Primaries = []doctor.Primary{{Address: primaryName, TLS: "opportunistic", XClient: true}}
	l.mounts = "/dev/root / ext4 rw,relatime 0 0\n"
	return l
}

// pair makes a certificate for a host, trusted or not.
func (l *lab) pair(name string, trusted bool, change func(*x509.Certificate)) *tls.Certificate {
	cert, key := testmx.Certificate(name, change)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		l.t.Fatal(err)
	}
	if trusted {
		l.exam.Roots.AppendCertsFromPEM(cert)
	}
	l.pairs[name] = pair
	return &pair
}

// tlsa is the TLSA record of a host's certificate.
func (l *lab) tlsa(name string) string {
	r := &dns.TLSA{Hdr: dns.RR_Header{Name: "_25._tcp." + name + ".", Rrtype: dns.TypeTLSA, Class: dns.ClassINET, Ttl: 60}}
	leaf, err := x509.ParseCertificate(l.pairs[name].Certificate[0])
	if err == nil {
		err = r.Sign(3, 1, 1, leaf)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return r.String()
}

// without takes the records of a name away.
func (l *lab) without(name string) {
	var kept []string
	for _, r := range l.records {
		if !strings.HasPrefix(r, name+". ") && !strings.HasPrefix(r, name+".\t") {
			kept = append(kept, r)
		}
	}
	if len(kept) == len(l.records) {
		l.t.Fatalf("the lab has no record of %s", name)
	}
	l.records = kept
}

// replace puts other records in the place of a name's.
func (l *lab) replace(name string, records ...string) {
	l.without(name)
	l.records = append(l.records, records...)
}

// examine runs the lab and the examination.
func (l *lab) examine() []doctor.Finding {
	t := l.t
	d, err := demo.StartDNS(l.records...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	for name, b := range l.behave {
		d.Behave(name, b)
	}
	if l.exam.DNS == nil {
		l.exam.DNS = []string{d.Addr()}
	}
	l.exam.Port = l.listen()
	for i, p := range l.exam.Primaries {
		if !strings.Contains(p.Address, ":") {
			l.exam.Primaries[i].Address = p.Address + ":" + l.exam.Port
		}
	}
	for i, addr := range l.exam.Behind {
		l.exam.Behind[i] = addr + ":" + l.exam.Port
	}
	if l.exam.Doors == nil {
		l.exam.Doors = []string{ourAddr + ":" + l.exam.Port}
	}
	if l.exam.Push.Listen == ourName {
		l.exam.Push.Listen = l.pushServer()
	}
	l.exam.HTTP = l.web()
	l.exam.Mounts = filepath.Join(t.TempDir(), "mounts")
	if err := os.WriteFile(l.exam.Mounts, []byte(l.mounts), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return l.exam.Run(ctx, nil)
}

// listen opens all mail servers at one port.
func (l *lab) listen() string {
	port := "0"
	var all []net.Listener
	var sessions sync.WaitGroup
	l.t.Cleanup(func() {
		for _, ln := range all {
			ln.Close()
		}
		sessions.Wait()
	})
	for addr, m := range l.servers {
		if m.away {
			continue
		}
		ln, err := net.Listen("tcp", addr+":"+port)
		if err != nil {
			l.t.Fatal(err)
		}
		all = append(all, ln)
		_, port, _ = net.SplitHostPort(ln.Addr().String())
		sessions.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				sessions.Go(func() { m.serve(c) })
			}
		})
	}
	return port
}

// web is a client for which every host is the lab's web server.
func (l *lab) web() *http.Client {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := l.sts[r.Host]
		if !ok || r.URL.Path != "/.well-known/mta-sts.txt" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, p)
	}))
	l.t.Cleanup(s.Close)
	c := s.Client()
	transport := c.Transport.(*http.Transport)
	transport.TLSClientConfig.ServerName = "example.com" // the certificate's
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}
	return c
}

// pushServer takes lists, by TLS if the lab has a certificate for it.
func (l *lab) pushServer() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	if pair, ok := l.pairs[pushName]; ok {
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
		go s.ServeTLS(ln, "", "")
	} else {
		go s.Serve(ln)
	}
	l.t.Cleanup(func() { s.Close() })
	return ln.Addr().String()
}
