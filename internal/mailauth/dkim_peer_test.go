package mailauth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// peerMilter runs a milter of Debian's in the foreground until the test ends;
// its socket is dir/socket.
func peerMilter(t *testing.T, dir string, argv ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run test/install-peers", err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended; log.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", filepath.Join(dir, "socket")); err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("%s has ended: %s", argv[0], text)
		case <-ctx.Done():
			t.Fatalf("%s doesn't listen", argv[0])
		}
	}
}

// ask plays a message to the milter and returns its word: "accept", "discard",
// "quarantine" or a reply.
func ask(t *testing.T, dir, client, sender, message string) string {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	m := milterConn{t, c}
	m.send('O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x10\x00\x00") // version 6, all actions, values with their leading space
	m.read()
	family := "4"
	if strings.Contains(client, ":") {
		family = "6"
		client = "IPv6:" + client
	}
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	type packet struct {
		cmd  byte
		data string
	}
	packets := []packet{{'C', "client.test\x00" + family + "\x00\x19" + client + "\x00"}, {'H', "client.test\x00"}, {'M', "<" + sender + ">\x00"}, {'R', "<to@here.test>\x00"}, {'T', ""}}
	for _, f := range fieldsOf(header) {
		name, value, _ := strings.Cut(strings.ReplaceAll(f, "\r\n", "\n"), ":")
		packets = append(packets, packet{'L', strings.TrimRight(name, " ") + "\x00" + value + "\x00"})
	}
	packets = append(packets, packet{'N', ""})
	if body != "" {
		packets = append(packets, packet{'B', body})
	}
	macros := map[byte]string{'C': "Cj\x00here.test\x00{daemon_name}\x00here.test\x00", 'E': "Ei\x00ABC\x00"}
	for _, p := range append(packets, packet{'E', ""}) {
		if macro := macros[p.cmd]; macro != "" {
			m.send('D', macro)
		}
		m.send(p.cmd, p.data)
		if word := m.word(); word != "" {
			return word
		}
	}
	return "accept"
}

// milterConn speaks Sendmail's milter protocol.
type milterConn struct {
	t *testing.T
	c net.Conn
}

func (m milterConn) send(cmd byte, data string) {
	p := binary.BigEndian.AppendUint32(nil, uint32(len(data)+1))
	if _, err := m.c.Write(append(append(p, cmd), data...)); err != nil {
		m.t.Fatal(err)
	}
}

func (m milterConn) read() (byte, string) {
	var size [4]byte
	if _, err := io.ReadFull(m.c, size[:]); err != nil {
		m.t.Fatal(err)
	}
	p := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(m.c, p); err != nil {
		m.t.Fatal(err)
	}
	return p[0], strings.TrimRight(string(p[1:]), "\x00")
}

// word is what the milter answers, "" to go on.
func (m milterConn) word() string {
	quarantine := false
	for {
		switch cmd, data := m.read(); cmd {
		case 'c', 's', 'a':
			if quarantine {
				return "quarantine"
			}
			if cmd == 'a' {
				return "accept"
			}
			return ""
		case 'd':
			return "discard"
		case 'r':
			return "550 5.7.1"
		case 't':
			return "451 4.7.1"
		case 'y':
			return data
		case 'q':
			quarantine = true
		}
	}
}

// fieldsOf splits a header into its fields, folds kept.
func fieldsOf(header string) (out []string) {
	for line := range strings.SplitSeq(header, "\r\n") {
		if len(out) > 0 && (strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")) {
			out[len(out)-1] += "\r\n" + line
		} else {
			out = append(out, line)
		}
	}
	return out
}

// openDKIM runs Debian's opendkim with settings of its configuration.
func openDKIM(t *testing.T, nameserver string, settings ...string) (dir string) {
	dir = t.TempDir()
	host, port, _ := net.SplitHostPort(nameserver)
	write(t, dir, "unbound.conf", "server:\n do-not-query-localhost: no\n module-config: \"iterator\"\n cache-max-negative-ttl: 0\n cache-max-ttl: 0\n infra-host-ttl: 0\n local-zone: \"test.\" nodefault\n"+
		"forward-zone:\n name: \".\"\n forward-addr: "+host+"@"+port+"\n")
	conf := write(t, dir, "opendkim.conf", "Syslog yes\nLogWhy yes\nBackground no\nMode v\nSocket local:"+dir+"/socket\nResolverConfiguration "+dir+"/unbound.conf\n"+
		strings.Join(settings, "\n")+"\n")
	peerMilter(t, dir, "/usr/sbin/opendkim", "-x", conf, "-f", "-W", "-l")
	return dir
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// signer makes signatures, and whatever looks like one.
type signer struct {
	rsa   map[string]*rsa.PrivateKey // by selector
	ed    ed25519.PrivateKey
	zone  []string
	now   time.Time
	drift time.Duration
}

func newSigner(t *testing.T) *signer {
	s := &signer{rsa: map[string]*rsa.PrivateKey{}, now: time.Now(), drift: 300 * time.Second}
	txt := func(name, text string) {
		var parts []string
		for ; len(text) > 200; text = text[200:] {
			parts = append(parts, fmt.Sprintf("%q", text[:200]))
		}
		s.zone = append(s.zone, name+"._domainkey.sig.test. 60 TXT "+strings.Join(append(parts, fmt.Sprintf("%q", text)), " "))
	}
	for sel, bits := range map[string]int{"one": 2048, "two": 1024} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		der, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
		p := base64.StdEncoding.EncodeToString(der)
		for name, text := range map[string]string{
			sel: "v=DKIM1; k=rsa; p=" + p, sel + "bare": "p=" + p, sel + "sha1": "v=DKIM1; h=sha1; p=" + p, sel + "test": "v=DKIM1; t=y; p=" + p,
			sel + "strict": "v=DKIM1; t=s; p=" + p, sel + "tls": "v=DKIM1; s=tlsrpt; p=" + p, sel + "any": "v=DKIM1; s=*; n=a note; p=" + p, sel + "v2": "v=DKIM2; p=" + p,
			sel + "k": "v=DKIM1; k=dsa; p=" + p, sel + "cut": "v=DKIM1; p=" + p[:100], sel + "junk": "v=DKIM1; p=!!!" + p, sel + "odd": "v=DKIM1 p=" + p,
			sel + "gone": "v=DKIM1; p=", sel + "empty": "v=DKIM1", sel + "256": "v=DKIM1; h=sha256:sha512; p=" + p, sel + "no": "p;",
		} {
			s.rsa[name] = key
			txt(name, text)
		}
		txt(sel+"twice", "v=DKIM1; p="+p)
		txt(sel+"twice", "v=DKIM1; k=rsa; p="+p)
		for _, name := range []string{"twice", "missing", "broken"} {
			s.rsa[sel+name] = key
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.ed = private
	txt("ed", "v=DKIM1; k=ed25519; p="+base64.StdEncoding.EncodeToString(public))
	txt("edrsa", "v=DKIM1; p="+base64.StdEncoding.EncodeToString(public))
	return s
}

// sign puts a signature with these tags, a "b=" among them, on a message.
func (s *signer) sign(t *testing.T, message, tags string) string {
	h := headerReader{}
	body := h.read([]byte("DKIM-Signature: " + tags + "\r\n" + message))
	list, _ := parseTags(h.fields[0].value())
	sig := newSignature(list, 0, DKIM{Now: s.now})
	header, form, _ := strings.Cut(orElse(list, "c", ""), "/")
	sig.relaxedHeader, sig.relaxedBody = header == "relaxed", form == "relaxed"
	algorithm, hash, _ := strings.Cut(list["a"], "-")
	if sig.hash = hashes[hash]; sig.hash == 0 {
		sig.hash = crypto.SHA256
	}
	length := int64(-1)
	fmt.Sscanf(list["l"], "%d", &length)
	b := newBodyHash(sig.hash, sig.relaxedBody, length)
	b.write(body)
	b.close()
	tags = strings.Replace(tags, "bh=", "bh="+base64.StdEncoding.EncodeToString(b.sum.Sum(nil)), 1)
	h = headerReader{}
	h.read([]byte("DKIM-Signature: " + tags + "\r\n" + message))
	digest := sig.hashHeader(h.fields)
	var value []byte
	if algorithm == "ed25519" {
		value = ed25519.Sign(s.ed, digest)
	} else {
		key := s.rsa[list["s"]]
		if key == nil {
			key = s.rsa["one"]
		}
		var err error
		if value, err = rsa.SignPKCS1v15(rand.Reader, key, sig.hash, digest); err != nil {
			t.Fatal(err)
		}
	}
	i := strings.LastIndex(tags, "b=") + 2
	text := base64.StdEncoding.EncodeToString(value)
	return "DKIM-Signature: " + tags[:i] + text[:20] + "\r\n\t" + text[20:] + tags[i:] + "\r\n" + message
}

func (s *signer) tags(rng *mathrand.Rand) string {
	sel := pick(rng, []string{"one", "two"})
	if rng.IntN(3) == 0 {
		sel += pick(rng, []string{"bare", "sha1", "test", "strict", "tls", "any", "v2", "k", "cut", "junk", "odd", "gone", "empty", "256", "no", "twice", "missing", "missing", "missing", "broken", "broken", "broken", "gone", "gone"})
	}
	alg := "rsa-sha256"
	switch rng.IntN(12) {
	case 0:
		alg = "rsa-sha1"
	case 1, 2:
		alg, sel = "ed25519-sha256", pick(rng, []string{"ed", "ed", "ed", "edrsa", "one"})
	case 3:
		alg = pick(rng, []string{"rsa-sha512", "RSA-SHA256", "dsa-sha256", "rsa", "ed25519-sha1"})
	}
	t := []string{pick(rng, []string{"v=1", "v=1", "v=1", "v=1", "v=1", "v=1", "v=2", "v=0.5"}), "a=" + alg, "d=" + pick(rng, []string{"sig.test", "sig.test", "sig.test", "SIG.test"}), "s=" + sel}
	if rng.IntN(2) == 0 {
		t = append(t, "c="+pick(rng, []string{"simple", "relaxed", "simple/simple", "relaxed/relaxed", "relaxed/simple", "simple/relaxed", "relaxed/nofws", "Relaxed/Relaxed", "relaxed/"}))
	}
	t = append(t, "h="+pick(rng, []string{"From:To:Subject", "from : to : subject", "From:From:Subject:Subject", "From", "To:Subject", "From:X-Gone:Date", "From:to:\r\n\tsubject", "Received:From"}))
	now := s.now.Unix()
	extra := func(odds int, list ...string) {
		if rng.IntN(odds) == 0 {
			t = append(t, pick(rng, list))
		}
	}
	extra(5, "l=0", "l=5", "l=100000", "l=20", "l=x", "l=-1", "l=")
	extra(4, fmt.Sprint("t=", now-1000), fmt.Sprint("t=", now+100), fmt.Sprint("t=", now+4000), "t=x", "t=", "t=-1")
	extra(4, fmt.Sprint("x=", now+4000), fmt.Sprint("x=", now-100), fmt.Sprint("x=", now-4000), "x=y", fmt.Sprint("x=", now-1500))
	extra(5, "i=@sig.test", "i=u@sig.test", "i=u@sub.sig.test", "i=@other.test", "i=a=40sig.test", "i=u@SIG.TEST", "i=none")
	extra(8, "q=dns/txt", "q=dns", "q=http", "q=dns/txt:http", "q=DNS/TXT")
	extra(40, "", "=x", "foo", "z=From:a|To:b", "fo o=1", "é=1", "b_d=1")
	t = append(t, "bh=")
	extra(40, "bh=abc")
	rng.Shuffle(len(t)-1, func(i, j int) { t[i], t[j] = t[j], t[i] })
	sep := pick(rng, []string{"; ", ";", ";\r\n\t"})
	return strings.Join(t, sep) + sep + pick(rng, []string{"b=", "b=", "b=;"})
}

// randomMessage has no bare CR or LF: Postfix ends a line at the one, and
// libopendkim's simple form of a body goes wrong at the other.
func randomMessage(rng *mathrand.Rand) string {
	var b strings.Builder
	b.WriteString(pick(rng, []string{"From: A <a@sig.test>\r\n", "From: a@sig.test\r\n", "from:  \"A, B\" <a@sub.sig.test> (c)\r\n", "From : x@other.test\r\n", "From: a@sig.test\r\n", "From: A <a@sig.test>\r\n", "From: b@sig.test\r\n", "From: c@sig.test\r\n", "From: nobody\r\n", "X: y\r\n"}))
	b.WriteString(pick(rng, []string{"To: b@here.test\r\n", "To:\tb@here.test,\r\n  c@here.test \r\n", ""}))
	b.WriteString(pick(rng, []string{"Subject:  a  b \t c\r\n", "SUBJECT: x\r\nSubject: y\r\n", "Subject:\r\n", "Subject: é\r\n"}))
	b.WriteString("\r\n")
	for range rng.IntN(6) {
		b.WriteString(pick(rng, []string{"\r\n", "  \r\n", "text\r\n", " a \t b  \r\n", "\t\r\n", "é\x00\r\n", strings.Repeat("x", 300) + "\r\n"}))
	}
	return b.String()
}

// TestOpenDKIM plays messages with good and odd signatures to Debian's opendkim
// and compares its word with our verdict.
func TestOpenDKIM(t *testing.T) {
	const n = 2500
	rng := mathrand.New(mathrand.NewPCG(6376, 1))
	s := newSigner(t)
	server, err := demo.StartDNS(s.zone...)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, name := range []string{"onebroken", "twobroken"} {
		server.Behave(name+"._domainkey.sig.test.", demo.Behaviour{Rcode: dns.RcodeServerFailure})
	}
	dir := openDKIM(t, server.Addr(), "On-Default reject", "On-DNSError discard", "On-KeyNotFound tempfail", "On-NoSignature tempfail")
	r := resolver.New(resolver.Options{Servers: []string{server.Addr()}})
	seen := map[Status]int{}
	for range n {
		message := randomMessage(rng)
		for range rng.IntN(4) * rng.IntN(4) / 2 {
			message = s.sign(t, message, s.tags(rng))
			if rng.IntN(6) == 0 {
				message = strings.Replace(message, "text", "tExt", 1)
			}
			if rng.IntN(6) == 0 {
				message = strings.Replace(message, "ubject: ", "ubject: x", 1)
			}
		}
		v := DKIM{Resolver: r, Now: time.Now(), MaxSignatures: 3, MaxHeader: 65536, MinKeyBits: 1024, ClockDrift: s.drift}.Verify()
		for p := []byte(message); len(p) > 0; {
			k := min(len(p), 1+rng.IntN(40))
			v.Write(p[:k])
			p = p[k:]
		}
		got := v.Finish(t.Context())
		seen[got.Status]++
		if peer := ask(t, dir, "192.0.2.7", "a@sig.test", message); peer != openDKIMWord(got) && !(got.Status == KeyFailed && peer == "accept") {
			t.Errorf("opendkim %q, we %v %+v\n%s", peer, got.Status, got.Signatures, bytes.ReplaceAll([]byte(message), []byte("\r"), []byte("␍")))
		}
	}
	for _, st := range []Status{NoSignature, Good, BadSignature, NoKey, KeyFailed, Revoked, CantVerify, SyntaxError, NoAuthor} {
		if seen[st] < 5 {
			t.Errorf("%v only %d times: the messages are too tame", st, seen[st])
		}
	}
}

// openDKIMWord is what opendkim says with TestOpenDKIM's actions.
func openDKIMWord(r DKIMResult) string {
	switch r.Status {
	case NoSignature:
		return "451 4.7.0 no DKIM signature data"
	case BadSignature:
		if r.Testing {
			return "accept"
		}
		return "550 5.7.0 bad DKIM signature data"
	case NoKey, KeyFailed: // SERVFAIL makes it accept at first; from then on it remembers that there is no key
		return "451 4.7.5 DKIM key retrieval failed"
	case Revoked:
		return "550 5.7.1"
	case SyntaxError:
		return "550 5.7.0 DKIM signature syntax error"
	}
	return "accept"
}

// FuzzDKIM: a header and a key of anybody's.
func FuzzDKIM(f *testing.F) {
	f.Add("DKIM-Signature: v=1; a=rsa-sha256; d=a.test; s=s; h=from; bh=x; b=y\r\nFrom: a@a.test\r\n\r\nbody\r\n", "v=DKIM1; p=AAAA")
	f.Add("DKIM-Signature: v=1;a=ed25519-sha256;d=a.test;s=s;h=from:from;l=;bh=x;b=y;i=a=40b@a.test\r\nFrom: \"a,\\\"\" (b(c)) <a@a.test>, g:b@b.test;\r\n", "k=ed25519;p=")
	f.Fuzz(func(t *testing.T, message, key string) {
		r := &testmx.MapResolver{TXT: map[string][]string{"s._domainkey.a.test": {key}}}
		d := DKIM{Resolver: r, Now: time.Unix(1e9, 0), MaxHeader: 2000}
		whole, pieces := d.Verify(), d.Verify()
		whole.Write([]byte(message))
		for i := range len(message) {
			pieces.Write([]byte(message[i : i+1]))
		}
		a, b := whole.Finish(t.Context()), pieces.Finish(t.Context())
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("in pieces: %s", diff)
		}
		if a.Status == Good || len(a.Signatures) > MaxSignatures {
			t.Errorf("%+v", a)
		}
	})
}
