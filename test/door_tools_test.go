package test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// tool runs a program that must be installed and succeed.
func tool(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (test/install-peers installs it)\n%s", name, err, tail(out, 3000))
	}
	return string(out)
}

// port is the port of an address.
func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestNmap lets nmap's scripts try to relay, to list users and to find known
// holes.
func TestNmap(t *testing.T) {
	t.Parallel()
	secondary := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	secondary.start()
	out := tool(t, 2*time.Minute, "nmap", "-Pn", "-n", "-p", port(secondary.addr), "--script",
		"+smtp-commands,+smtp-open-relay,+smtp-enum-users,+smtp-strangeport,+smtp-vuln-cve2010-4344,+smtp-vuln-cve2011-1720,+smtp-vuln-cve2011-1764",
		"--script-args", "smtp-open-relay.domain=evil.example,smtp-open-relay.to=victim@evil.example,smtp-enum-users.methods={VRFY,EXPN,RCPT}", "127.0.0.1")
	if !strings.Contains(out, "Server doesn't seem to be an open relay, all tests failed") {
		t.Errorf("nmap can't say that this is no open relay:\n%s", out)
	}
	for _, bad := range []string{"Server is an open relay", "State: VULNERABLE", "LIKELY VULNERABLE", "ERROR: Script execution failed"} {
		if strings.Contains(out, bad) {
			t.Errorf("%s:\n%s", bad, out)
		}
	}
	if !strings.Contains(out, "smtp-commands: "+hostname+", PIPELINING, SIZE") {
		t.Errorf("no commands shown:\n%s", out)
	}
	if queued := secondary.queue(); len(queued) > 0 {
		t.Errorf("nmap got mail in: %v", queued)
	}
	secondary.stop()
}

// TestSwaks plays a sender's ways of sending: under TLS, pipelined, through a
// proxy.
func TestSwaks(t *testing.T) {
	secondary := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	secondary.certificate(t)
	secondary.start()
	plain := []string{"--from", "bob@sender.example", "--to", "alice@example.org"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"TLS", []string{"--tls"}, "TLS started with cipher TLSv1.3"},
		{"TLS 1.2", []string{"--tls", "--tls-protocol", "tlsv1_2"}, "TLS started with cipher TLSv1.2"},
		{"pipelining", []string{"--pipeline"}, "250 2.0.0 Ok: queued as"},
		{"pipelining under TLS", []string{"--pipeline", "--tls"}, "250 2.0.0 Ok: queued as"},
		{"HELO", []string{"--protocol", "SMTP"}, "250 2.0.0 Ok: queued as"},
		{"XCLIENT", []string{"--xclient-addr", "192.0.2.9", "--xclient-name", "mail.sender.example"}, "250 2.0.0 Ok: queued as"},
	} {
		if out, code := swaks(t, secondary.addr, append(tt.args, plain...)...); code != 0 || !strings.Contains(out, tt.want) {
			t.Errorf("%s: exit %d\n%s", tt.name, code, out)
		}
	}
	if out, code := swaks(t, secondary.addr, "--tls", "--tls-protocol", "tlsv1_1", "--quit-after", "TLS"); code == 0 {
		t.Errorf("TLS 1.1 was taken:\n%s", out)
	}
	if out, code := swaks(t, secondary.addr, "--pipeline", "--from", "bob@sender.example", "--to", "alice@example.org,nobody@example.org"); code != 0 || !strings.Contains(out, "550 5.1.1") {
		t.Errorf("pipelining with a refusal: exit %d\n%s", code, out)
	}
	if n := len(secondary.queue()); n != 7 {
		t.Errorf("%d mails queued, want 7", n)
	}
	secondary.stop()
}

func TestSwaksThroughProxy(t *testing.T) {
	secondary := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	secondary.set("smtp", `proxy_from = ["127.0.0.0/8"]`)
	secondary.start()
	args := []string{"--from", "bob@sender.example", "--to", "alice@example.org"}
	if out, code := swaks(t, secondary.addr, args...); code == 0 {
		t.Errorf("a listed proxy sent no header and was served:\n%s", out)
	}
	for _, version := range []string{"1", "2"} {
		family, transport := "TCP4", "STREAM"
		header := []string{"--proxy-version", version, "--proxy-source", "203.0.113." + version, "--proxy-source-port", "4000", "--proxy-dest", "192.0.2.8", "--proxy-dest-port", "25"}
		if version == "2" {
			family = "AF_INET"
			header = append(header, "--proxy-protocol", transport, "--proxy-command", "PROXY")
		}
		if out, code := swaks(t, secondary.addr, append(append(header, "--proxy-family", family), args...)...); code != 0 {
			t.Errorf("PROXY version %s: exit %d\n%s", version, code, out)
		}
		eventually(t, 5*time.Second, "the log names the client", func() bool {
			return strings.Contains(readFile(t, secondary.path("log")), `"client":"203.0.113.`+version+`"`)
		})
	}
	secondary.stop()
}

// TestThousandSessions lets smtp-source hold 1,000 sessions at a time.
func TestThousandSessions(t *testing.T) {
	const n = 1000
	secondary := newSecondary(t, testmx.FreeAddr(), policyFor(numbered("%dload@example.org", n+firstNumber)...), "")
	secondary.set("smtp", "max_connections = 2000")
	secondary.start()
	file := filepath.Join(secondary.dir, "message")
	write(t, file, "Subject: load\n\nhello\n")
	if err := smtpSource(t, secondary.addr, file, "load@example.org", n, n); err != nil {
		t.Fatal(err)
	}
	if got := secondary.metric("understudy_queue_messages"); got != n {
		t.Errorf("%v messages queued, want %d", got, n)
	}
	eventually(t, 20*time.Second, "all sessions have ended", func() bool { return secondary.metric("understudy_smtp_sessions_open") == 0 })
	if got := secondary.metric(`understudy_smtp_sessions_total{result="completed"}`); got < n {
		t.Errorf("%v sessions completed, want %d", got, n)
	}
	secondary.stop()
}

// certificate gives the secondary a certificate for localhost from a CA of the
// test's own, whose file it returns.
func (s *secondary) certificate(t *testing.T) (ca string) {
	t.Helper()
	ca = s.path("ca.pem")
	openssl := func(args ...string) { tool(t, time.Minute, "openssl", args...) }
	openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "150", "-subj", "/O=Understudy test/CN=test CA",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", s.path("ca.key"), "-out", ca)
	openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-keyout", s.path("tls.key"), "-out", s.path("tls.csr"))
	write(t, s.path("tls.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nkeyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:false\n")
	openssl("x509", "-req", "-in", s.path("tls.csr"), "-CA", ca, "-CAkey", s.path("ca.key"), "-CAcreateserial", "-days", "120", "-extfile", s.path("tls.ext"), "-out", s.path("tls.pem"))
	s.set("smtp", fmt.Sprintf("tls_cert = %q\ntls_key = %q", s.path("tls.pem"), s.path("tls.key")))
	return ca
}
