package parity

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	milterclient "github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// TestFiltersLikePostfix: a real Postfix with policyd-spf, opendkim and
// opendmarc behind it, and what is imported of all of them, get the same
// sessions: SPF in all results, signatures good, broken, expired and without a
// key, DMARC in all policies.
func TestFiltersLikePostfix(t *testing.T) {
	for _, tt := range []struct {
		name, dkim, dmarc, spf string
	}{
		{"strict", "On-BadSignature reject\nOn-KeyNotFound tempfail\n", "RejectFailures true\nHoldQuarantinedMessages true\nRejectMultiValueFrom true\n", "HELO_reject = Fail\nMail_From_reject = Softfail\n"},
		{"signed only", "Mode v\nOn-Default reject\nOn-KeyNotFound discard\nPeerList 198.51.100.7\n", "RequiredHeaders true\n", "HELO_reject = False\nPermError_reject = True\nMail_From_reject = False\n"},
		{"DMARC alone", "", "RejectFailures true\nRequiredHeaders true\nIgnoreMailFrom reject.example.com\n", "TestOnly = 0\nHeader_Type = AR\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiltered(t, tt.dkim, tt.dmarc, tt.spf)
			local, stop := serve(t, f.spec, f.nameserver, false)
			defer stop()
			rng := mathrand.New(mathrand.NewPCG(13, 1))
			seen := map[string]int{}
			n := 150 // make parity-filters has FILTER_SESSIONS of them
			if more, err := strconv.Atoi(os.Getenv("FILTER_SESSIONS")); err == nil {
				n = more
			}
			hungUp := 0
			for range n {
				m := f.session(rng)
				want, got := m.play(t, f.dial), m.play(t, local)
				if want != got && f.milterFailures() > hungUp && hungUp <= n/1000 {
					hungUp = f.milterFailures() // libmilter does so now and then on a busy machine: Postfix has heard no verdict
					want = m.play(t, f.dial)
				}
				seen[got]++
				if want != got {
					t.Errorf("Postfix %q, we %q:\n%+v", want, got, m)
				}
			}
			if len(seen) < 3 || seen["250 "] > n*9/10 {
				t.Errorf("only %d kinds of answers: %v", len(seen), seen)
			}
		})
	}
}

// filtered is a primary with filters.
type filtered struct {
	*twin
	nameserver string
	keys       map[string]*rsa.PrivateKey
}

func newFiltered(t *testing.T, dkimConf, dmarcConf, spfConf string) *filtered {
	t.Helper()
	f := &filtered{twin: &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}, keys: map[string]*rsa.PrivateKey{}}
	d := startDNS(t, f.zone(t)...)
	f.nameserver = d.Addr()
	for _, name := range []string{"silent.test", "silent.example.com", "example.net"} {
		d.Behave("_dmarc."+name, demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	dkimAddr, dmarcAddr := testmx.FreeAddr(), testmx.FreeAddr()
	for _, name := range []string{"run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(f.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := func(addr string) string {
		_, port, _ := net.SplitHostPort(addr)
		return "Socket inet:" + port + "@127.0.0.1\nSyslog false\nBackground false\n"
	}
	write := func(name, text string) string {
		name = filepath.Join(f.dir, name)
		writeOld(t, name, text)
		return name
	}
	host, port, _ := net.SplitHostPort(f.nameserver)
	unbound := write("unbound.conf", "server:\n do-not-query-localhost: no\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\nforward-zone:\n name: \".\"\n forward-addr: "+host+"@"+port+"\n")
	milters := []string{"inet:" + dkimAddr, "inet:" + dmarcAddr}
	dkimFile := write("dkim.conf", socket(dkimAddr)+"ResolverConfiguration "+unbound+"\nInternalHosts 203.0.113.200\n"+dkimConf)
	dmarcFile := write("dmarc.conf", socket(dmarcAddr)+"PublicSuffixList /usr/share/publicsuffix/public_suffix_list.dat\n"+dmarcConf)
	spfFile := write("spf.conf", spfConf)
	f.src = postfix.Source{ConfigDir: filepath.Join(f.dir, "run"), Filters: []string{milters[0] + "=opendkim:" + dkimFile, milters[1] + "=opendmarc:" + dmarcFile}}
	write("run/main.cf", "compatibility_level = 3.6\nmyhostname = mx.here.test\nmydestination =\nlocal_recipient_maps =\nrelay_domains = here.test\nrelay_recipient_maps = inline:{user@here.test=x}\nlocal_header_rewrite_clients =\n"+ // else Postfix completes headers, since we are 127.0.0.1
		"smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/spf\nsmtpd_milters = "+strings.Join(milters, ", ")+fmt.Sprintf(testOnly, f.dir))
	write("run/master.cf", fmt.Sprintf(testmx.MasterCF, f.addr)+"spf unix - n n - 0 spawn user=nobody argv=/usr/bin/policyd-spf "+spfFile+"\n")
	var err error
	f.src.Service = f.addr
	if f.spec, f.report, err = postfix.Import(t.Context(), f.src); err != nil {
		t.Fatal(err)
	}
	for _, it := range f.report.Items {
		if it.Class == fidelity.NotReplicated {
			t.Errorf("%s: %s", it.ID(), it.Why)
		}
	}
	write("resolv.conf", "nameserver "+host+"\n")
	for addr, argv := range map[string][]string{
		dkimAddr:  {"/usr/sbin/opendkim", "-x", dkimFile, "-f"},
		dmarcAddr: {"/usr/sbin/opendmarc", "-c", dmarcFile, "-f"},
	} {
		var out bytes.Buffer
		daemon, err := testmx.StartDaemon(addr, &out, append([]string{"unshare", "--mount", "sh", "-ec", `mount --bind "$0/resolv.conf" /etc/resolv.conf; exec "$@"`, f.dir}, argv...)...)
		if err != nil {
			t.Fatalf("%v: %s; run test/install-peers", err, &out)
		}
		t.Cleanup(func() { daemon.Kill() })
		dial := func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
		err = milterclient.Try(t.Context(), dial)
		if err != nil { // it listens before it is ready
			err = milterclient.Try(t.Context(), dial)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", argv[0], err, &out)
		}
	}
	f.start(f.nameserver)
	return f
}

// milterFailures counts the milters that have failed Postfix so far.
func (f *filtered) milterFailures() int {
	b, _ := os.ReadFile(filepath.Join(f.dir, "mail.log"))
	return bytes.Count(b, []byte("warning: milter "))
}

// zone has domains whose names say what becomes of their mail.
func (f *filtered) zone(t *testing.T) []string {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
	zone := []string{`fail.test. 60 TXT "v=spf1 -all"`, `soft.test. 60 TXT "v=spf1 ~all"`, `broken.test. 60 TXT "v=spf1 all:x"`, "mx.pass.test. 60 A 192.0.2.1"}
	for _, d := range []string{"pass.test", "reject.example.com", "quarantine.test", "none.test", "box.reject.example.com", "silent.test", "silent.example.com", "silent.example.net"} {
		zone = append(zone, d+`. 60 TXT "v=spf1 ip4:192.0.2.0/24 ?all"`, fmt.Sprintf("key._domainkey.%s. 60 TXT %q", d, "v=DKIM1; p="+base64.StdEncoding.EncodeToString(der)))
		f.keys[d] = key
	}
	return append(zone, `_dmarc.example.com. 60 TXT "v=DMARC1; p=reject"`, `_dmarc.quarantine.test. 60 TXT "v=DMARC1; p=quarantine; sp=reject"`, `_dmarc.none.test. 60 TXT "v=DMARC1; p=none"`)
}

// message is a session with one message.
type message struct{ client, helo, sender, text string }

func (f *filtered) session(rng *mathrand.Rand) message {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	domains := []string{"pass.test", "reject.example.com", "quarantine.test", "none.test", "box.reject.example.com", "silent.test", "silent.example.com", "silent.example.net"}
	m := message{
		client: pick("192.0.2.1", "192.0.2.2", "198.51.100.7", "203.0.113.5"), helo: pick("mx.pass.test", "fail.test", "nowhere.test"),
		sender: pick("", "a@fail.test", "a@soft.test", "a@broken.test", "a@"+pick(domains...), "a@"+pick(domains...), "a@"+pick(domains...)),
	}
	author := pick(domains...)
	text := "From: A <a@" + author + ">\r\nTo: user@here.test\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@x.test>\r\nSubject: it\r\n\r\nHello\r\n  there \r\n\r\n"
	switch rng.IntN(12) {
	case 0:
		text = strings.Replace(text, "Date:", "X-Date:", 1)
	case 1:
		text = strings.Replace(text, "From: A <a@", "From: <b@other.test>, <a@", 1)
	case 2:
		text = strings.Replace(text, "From:", "X-From:", 1)
	}
	for range rng.IntN(3) {
		signer := pick(append(domains, author, author, author)...)
		o := &dkim.SignOptions{Domain: signer, Selector: pick("key", "key", "key", "gone"), Signer: f.keys[signer], HeaderCanonicalization: dkim.Canonicalization(pick("simple", "relaxed")),
			BodyCanonicalization: dkim.Canonicalization(pick("simple", "relaxed"))}
		if rng.IntN(8) == 0 {
			o.Expiration = time.Now().Add(-time.Hour)
		}
		if strings.HasPrefix(text, "X-From") || strings.Contains(text, "\r\nX-From") {
			o.HeaderKeys = []string{"From", "To"}
		}
		var b bytes.Buffer
		if err := dkim.Sign(&b, strings.NewReader(text), o); err != nil {
			f.t.Fatal(err)
		}
		text = b.String()
		if rng.IntN(4) == 0 {
			text = strings.Replace(text, "Subject: it", "Subject: that", 1)
		}
	}
	m.text = text
	return m
}

// play returns the first reply that isn't 2xx or 3xx, without the queue ID and
// what differs between two hosts; "250 " for a message that is taken.
func (m message) play(t *testing.T, dial func(context.Context) (net.Conn, error)) string {
	t.Helper()
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(c)
	for _, line := range []string{"", "EHLO test\r\n", "XCLIENT ADDR=" + m.client + " NAME=[UNAVAILABLE]\r\n", "EHLO " + m.helo + "\r\n", "MAIL FROM:<" + m.sender + ">\r\n", "RCPT TO:<user@here.test>\r\n", "DATA\r\n", m.text + ".\r\n"} {
		if line != "" {
			io.WriteString(c, line)
		}
		reply := ""
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if reply = l; len(l) < 4 || l[3] != '-' {
				break
			}
		}
		if reply[0] > '3' {
			return strings.TrimSpace(reply)
		}
	}
	return "250 "
}
