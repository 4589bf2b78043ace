package test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// newFiltered is a secondary with the policy of a Postfix, and filters of its own.
func newFiltered(t *testing.T, p *postfix, filters string) *secondary {
	t.Helper()
	s := newSecondary(t, p.addr, "", "while_up = \"accept\"\n"+filters)
	write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "policy.toml", "policy.json", 1))
	if out, err := exec.Command(s.binary, "policy", "import", "postfix", "--config-dir", filepath.Join(p.dir, "conf"), "--service", p.addr, "-o", s.path("policy.json")).CombinedOutput(); err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	s.start()
	return s
}

// filteredMail are messages, and what the reply to each begins with.
var filteredMail = []struct{ name, subject, body, want string }{
	{"clean", "letter", "hello", "250 "},
	{"GTUBE", "letter", testmx.GTUBE, "554 5.7.1"},
	{"a symbol that rejects", "forbidden", "hello", "554 5.7.1"},
	{"a soft reject", "later", "hello", "451 4.7.1"},
	{"a virus", "letter", "first\r\n" + testmx.Virus, "550 5.7.1"},
	{"a virus that rspamd rejects first", "forbidden", testmx.Virus, "554 5.7.1"},
}

// TestFilters: Debian's rspamd and clamav-milter stand for the primary's. While the
// primary is gone, the secondary replies what the primary did. A filter that goes away
// defers as there, is counted and logged, and is asked again when it is back.
func TestFilters(t *testing.T) {
	rspamd, clam := testmx.FreeAddr(), testmx.FreeAddr()
	testmx.StartRspamd(t, rspamd)
	clamav := testmx.StartClamAV(t, clam)
	primary := newPostfix(t, "smtpd_milters = inet:"+rspamd+", inet:"+clam, "milter_default_action = tempfail", "smtpd_authorized_xclient_hosts = 127.0.0.0/8",
		"smtpd_peername_lookup = no", "local_recipient_maps = inline:{root=x}")
	var books testmx.Ledger
	number := 0
	replies := func(addr string, accepted bool) (all []string) {
		for _, m := range filteredMail {
			number++
			content := fmt.Sprintf("From: <bob@sender.example>\r\nSubject: %s\r\nMessage-ID: <%d@sender.example>\r\n\r\n%s\r\n", m.subject, number, m.body)
			o := testmx.Send(t, addr, demo.Mail{XClient: "ADDR=192.0.2.7 NAME=mail.sender.example", From: "bob@sender.example", To: []string{"alice@example.org"}, Content: []byte(content)})
			reply := o.Last().String()
			if o.Final.Positive() {
				if accepted {
					books.Accepted("", "alice@example.org", sum(content))
				}
				reply = reply[:4] // the rest is the server's own
			}
			all = append(all, reply)
		}
		return all
	}
	primary.start()
	whole := replies(primary.addr, false)
	if err := clamav.Kill(); err != nil {
		t.Fatal(err)
	}
	without := replies(primary.addr, false)
	clamav.Restart()
	primary.settle()
	primary.kill()
	if err := os.RemoveAll(filepath.Join(primary.dir, "mail/all")); err != nil { // what didn't come by the secondary
		t.Fatal(err)
	}

	s := newFiltered(t, primary, fmt.Sprintf("[[filter]]\nname = \"rspamd\"\nmilter = \"inet:%s\"\naddress = \"inet:%s\"\n[[filter]]\nname = \"clamav\"\nmilter = \"inet:%s\"\naddress = \"inet:%s\"\n", rspamd, rspamd, clam, clam))
	compare := func(when string, want []string) {
		t.Helper()
		for i, got := range replies(s.addr, true) {
			if got != want[i] {
				t.Errorf("%s, %s: %s\nwant %s", when, filteredMail[i].name, got, want[i])
			}
		}
	}
	for i, m := range filteredMail {
		if !strings.HasPrefix(whole[i], m.want) {
			t.Errorf("the primary about %s: %s, want %s", m.name, whole[i], m.want)
		}
	}
	compare("with both", whole)
	if err := clamav.Kill(); err != nil {
		t.Fatal(err)
	}
	compare("without ClamAV", without)
	if up, away := s.metric(`understudy_filter_up{filter="clamav"}`), s.metric(`understudy_filter_answers_total{filter="clamav",result="away"}`); up != 0 || away == 0 {
		t.Errorf("clamav is away: up %v, counted %v", up, away)
	}
	if log := readFile(t, s.path("log")); !strings.Contains(log, `"msg":"filter unavailable, the primary's milter_default_action stands for it","filter":"clamav"`) {
		t.Error("the log says nothing of the filter that is away")
	}
	if out := s.cli("watch", "--once"); !strings.Contains(out, "clamav doesn't answer since") {
		t.Errorf("watch:\n%s", out)
	}
	clamav.Restart()
	compare("with both again", whole)
	if up := s.metric(`understudy_filter_up{filter="clamav"}`); up != 1 {
		t.Errorf("clamav is back: up %v", up)
	}
	if log := readFile(t, s.path("log")); !strings.Contains(log, `"msg":"filter is back","filter":"clamav"`) {
		t.Error("the log says nothing of the filter that is back")
	}
	primary.start()
	eventually(t, time.Minute, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// tlsListener carries what comes by TLS to a milter, as stunnel does. Without a
// configuration it doesn't speak TLS.
func tlsListener(t *testing.T, conf *tls.Config, to string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				m, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer m.Close()
				go func() {
					_, _ = io.Copy(c, m)
					_ = c.Close()
				}()
				_, _ = io.Copy(m, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// TestFilterByTLS: a filter on another machine, by TLS. It decides where its certificate
// is good; otherwise the default action of the milter does, and it is counted.
func TestFilterByTLS(t *testing.T) {
	milter := &testmx.Milter{}
	behind := testmx.FreeAddr()
	if err := milter.Start(behind); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(milter.Close)
	dir := tempDir(t)
	listener := func(name, certified string, change func(*x509.Certificate), more func(*tls.Config)) (keys string) {
		cert, key := testmx.Certificate(certified, change)
		write(t, filepath.Join(dir, name+".pem"), string(cert))
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		conf := &tls.Config{Certificates: []tls.Certificate{pair}}
		if more != nil {
			more(conf)
		}
		return fmt.Sprintf("[[filter]]\nname = %q\nmilter = %q\naddress = %q\ntls = true\ntls_name = \"filter.example.org\"\ntls_ca = %q\n",
			name, "unix:"+name, "inet:"+tlsListener(t, conf, behind), filepath.Join(dir, name+".pem"))
	}
	ours, ourKey := testmx.Certificate("mx2.example.org", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	write(t, filepath.Join(dir, "ours.pem"), string(ours))
	write(t, filepath.Join(dir, "ours.key"), string(ourKey))
	asks := func(c *tls.Config) {
		c.ClientCAs = x509.NewCertPool()
		c.ClientCAs.AppendCertsFromPEM(ours)
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	const name = "filter.example.org"
	filters := listener("good", name, nil, nil) + listener("wrong", "other.example.org", nil, nil) +
		listener("expired", name, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil) +
		listener("asks", name, nil, asks) + fmt.Sprintf("tls_cert = %q\ntls_key = %q\n", filepath.Join(dir, "ours.pem"), filepath.Join(dir, "ours.key")) +
		listener("asks-in-vain", name, nil, asks) +
		listener("foreign", name, nil, nil) +
		fmt.Sprintf("[[filter]]\nname = \"plain\"\nmilter = \"unix:plain\"\naddress = %q\ntls = true\n", "inet:"+tlsListener(t, nil, behind)) +
		fmt.Sprintf("[[filter]]\nname = \"gone\"\nmilter = \"unix:gone\"\naddress = %q\ntls = true\n", "inet:"+testmx.FreeAddr())
	unrelated, _ := testmx.Certificate(name, nil)
	write(t, filepath.Join(dir, "foreign.pem"), string(unrelated)) // not that of the one who answers

	tests := []struct{ filter, want, log string }{
		{"good", "550 5.7.1 as told", ""},
		{"wrong", "451 4.7.1 Service unavailable - try again later", "certificate is valid for other.example.org"},
		{"expired", "451 4.7.1 Service unavailable - try again later", "certificate has expired"},
		{"asks", "550 5.7.1 as told", ""},
		{"asks-in-vain", "451 4.7.1 Service unavailable - try again later", "certificate required"},
		{"foreign", "451 4.7.1 Service unavailable - try again later", "unknown authority"},
		{"plain", "451 4.7.1 Service unavailable - try again later", "connect by TLS: "},
		{"gone", "451 4.7.1 Service unavailable - try again later", "connection refused"},
	}
	maps := ""
	for i, tt := range tests {
		maps += fmt.Sprintf("{192.0.2.%d unix:%s} ", i+1, tt.filter)
	}
	primary := newPostfix(t, "smtpd_milter_maps = cidr:{"+maps+"}", "milter_command_timeout = 2s", "local_recipient_maps = inline:{root=x}")
	s := newFiltered(t, primary, filters)
	for i, tt := range tests {
		o := testmx.Send(t, s.addr, demo.Mail{XClient: fmt.Sprintf("ADDR=192.0.2.%d NAME=[UNAVAILABLE]", i+1), From: `"550 5.7.1 as told"@sender.example`, To: []string{"alice@example.org"}, Content: []byte("Subject: x\r\n\r\nx\r\n")})
		if got := o.Last().String(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.filter, got, tt.want)
		}
		up := 0.0
		if tt.log == "" {
			up = 1
		}
		if got := s.metric(`understudy_filter_up{filter="` + tt.filter + `"}`); got != up {
			t.Errorf("%s: up %v, want %v", tt.filter, got, up)
		}
		if tt.log == "" {
			continue
		}
		if n := s.metric(`understudy_filter_answers_total{filter="` + tt.filter + `",result="away"}`); n != 1 {
			t.Errorf("%s: counted %v times", tt.filter, n)
		}
		said := false
		for line := range strings.Lines(readFile(t, s.path("log"))) {
			said = said || strings.Contains(line, `"filter":"`+tt.filter+`"`) && strings.Contains(line, tt.log)
		}
		if !said {
			t.Errorf("%s: the log doesn't say %q", tt.filter, tt.log)
		}
	}
	s.stop()
}
