package smtpd

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
)

// Line ends, true and false.
var lineEnds = []string{"\n", "\r", "\r\n", "\r\r\n", "\r\n\x00", "\n\r", "\x00\r\n", "", " \r\n", "\x85", "\x0b", "\u2028"}

const (
	smuggled = "MAIL FROM:<evil@evil.example>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nboo\r\n.\r\n"
	prelude  = "EHLO client.example\r\nMAIL FROM:<bob@sender.example>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n"
)

// TestEndOfData sends every pair of line ends around a dot, cut in two at
// every place, in plain text and under TLS. Nothing but CRLF.CRLF may end the
// message, and nothing unclean may be accepted.
func TestEndOfData(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, mode := range []string{"reject", "normalize"} {
			name := "plain " + mode
			if secure {
				name = "TLS " + mode
			}
			t.Run(name, func(t *testing.T) {
				s, spool := newServer(t)
				s.BareNewline = mode
				s.TLS = tlsConfig(t)
				ln := newPipeListener()
				stop := serve(t, s, ln)
				cases := 0
				for _, before := range lineEnds {
					for _, after := range lineEnds {
						seam := before + "." + after
						for cut := range len(seam) + 1 {
							if cut > 0 && testing.Short() && cut != len(seam)/2 {
								continue
							}
							cases++
							endOfData(t, ln, spool, secure, seam, cut)
						}
					}
				}
				stop()
				t.Logf("%d cases", cases)
			})
		}
	}
}

// quickTLS resumes one session: a whole handshake for each case is slow. It is
// of TLS 1.2, whose tickets come in lockstep, as net.Pipe needs it.
var quickTLS = &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, ServerName: "mx.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}

func endOfData(t *testing.T, ln *pipeListener, spool *fakeSpool, secure bool, seam string, cut int) {
	t.Helper()
	var c net.Conn = ln.dial("192.0.2.1")
	defer c.Close()
	if secure {
		c = startTLS(t, c, quickTLS)
	}
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, c) }()
	before := len(spool.accepted())
	for _, part := range []string{prelude, "Subject: x\r\n\r\nhello" + seam[:cut], seam[cut:] + smuggled + "\r\n.\r\nQUIT\r\n"} {
		if _, err := io.WriteString(c, part); err != nil {
			break // refused and hung up
		}
	}
	<-drained
	genuine := strings.Contains("hello"+seam, "\r\n.\r\n")
	got := spool.accepted()[before:]
	if seam == "\r\n.\r\n" && len(got) != 2 { // proves that the test can see smuggling
		t.Errorf("cut at %d: %d messages accepted, want 2", cut, len(got))
	}
	for _, m := range got {
		if !genuine && m.env.From.Local == "evil" {
			t.Errorf("%q cut at %d: smuggled", seam, cut)
		}
		if dirty := unclean(m.body); dirty != "" {
			t.Errorf("%q cut at %d: accepted with %s: %q", seam, cut, dirty, m.body)
		}
	}
}

// unclean names what a message must not hold.
func unclean(s string) string {
	rest := strings.ReplaceAll(s, "\r\n", "")
	switch {
	case strings.Contains(rest, "\n"):
		return "bare LF"
	case strings.Contains(rest, "\r"):
		return "bare CR"
	case strings.Contains(rest, "\x00"):
		return "NUL"
	}
	return ""
}

// slowBody is the body's reading done one octet at a time, the oracle for
// body.consume.
func slowBody(p []byte, normalize bool) (content []byte, used int, done, dirty bool) {
	start, bare := true, false // of a line, behind a bare LF
	for i := 0; i < len(p); i++ {
		if start && p[i] == '.' {
			switch rest := p[i+1:]; {
			case bytes.HasPrefix(rest, []byte("\r\n")) && !bare:
				return content, i + 3, true, dirty
			case bytes.HasPrefix(rest, []byte("\r\n")):
				i += 2
				bare = false
			case bytes.HasPrefix(rest, []byte("\n")):
				i++
				bare, dirty = true, dirty || !normalize
			default:
				start = false
			}
			continue
		}
		start = false
		switch {
		case p[i] == 0:
			dirty = true
		case p[i] == '\r' && i+1 < len(p) && p[i+1] == '\n':
			content = append(content, '\r', '\n')
			start, bare = true, false
			i++
			continue
		case p[i] == '\r':
			dirty = true
		case p[i] == '\n':
			if !normalize {
				dirty = true
			}
			content = append(content, '\r', '\n')
			start, bare = true, true
			continue
		}
		content = append(content, p[i])
	}
	return content, len(p), false, dirty
}

// checkBody feeds p in pieces to a body with a buffer of size octets and
// compares with slowBody.
func checkBody(t *testing.T, p []byte, normalize bool, size int, piece func() int) {
	t.Helper()
	want, wantUsed, wantDone, wantDirty := slowBody(p, normalize)
	var out bytes.Buffer
	b := body{w: &out, normalize: normalize, lineStart: true, inHeader: true, maxHeader: 1 << 20, cut: 140}
	var buf []byte
	total, done := 0, false
	for rest := p; !done && len(rest) > 0; {
		n := min(piece(), len(rest), size-len(buf))
		buf = append(buf, rest[:n]...)
		rest = rest[n:]
		var used int
		used, done = b.consume(buf, len(buf) == size)
		total += used
		buf = append([]byte(nil), buf[used:]...)
	}
	if dirt := unclean(out.String()); dirt != "" {
		t.Fatalf("%q: passed on with %s: %q", p, dirt, out.String())
	}
	if done != wantDone || done && total != wantUsed {
		t.Fatalf("%q: ended %v behind %d octets, want %v, %d", p, done, total, wantDone, wantUsed)
	}
	if !done {
		return
	}
	if b.dirty() != wantDirty {
		t.Fatalf("%q: dirty %v, want %v", p, b.dirty(), wantDirty)
	}
	if !wantDirty && (out.String() != string(want) || b.size != int64(len(want))) {
		t.Fatalf("%q: content %q, size %d, want %q", p, out.String(), b.size, want)
	}
	long := int64(0)
	for line := range bytes.SplitSeq(want, []byte("\r\n")) {
		long += policy.LongLine(len(line), b.cut)
	}
	if !wantDirty && b.long != long {
		t.Fatalf("%q: %d octets beyond CRLF, want %d", p, b.long, long)
	}
}

func TestBodyAgainstSlowReader(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	alphabet := []string{"\r\n", "\r\n", "\r\n", ".", ".", "\r", "\n", "\x00", "a", strings.Repeat("l", 125), strings.Repeat("l", 127), "bb", ": ", "\r\n.\r\n"}
	for range 20000 {
		var b strings.Builder
		for range rnd.IntN(12) {
			b.WriteString(alphabet[rnd.IntN(len(alphabet))])
		}
		checkBody(t, []byte(b.String()), rnd.IntN(2) == 0, 4+rnd.IntN(8), func() int { return 1 + rnd.IntN(5) })
	}
}

func FuzzBody(f *testing.F) {
	f.Add([]byte("a: b\r\n\r\n..x\r\n.\r\n"), true, uint8(5), uint8(3))
	f.Add([]byte("\r\n.\n.\r\n\r\n.\r\n"), false, uint8(9), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, normalize bool, size, piece uint8) {
		checkBody(t, p, normalize, 4+int(size), func() int { return 1 + int(piece) })
	})
}

// TestHeader checks what the policy gets to see as the header section.
func TestHeader(t *testing.T) {
	for _, tt := range []struct {
		name, body, header string
		hops               int
	}{
		{"plain", "A: b\r\nC: d\r\n\r\nReceived: body\r\n", "A: b\r\nC: d\r\n", 0},
		{"folded", "A: b\r\n c\r\nReceived: x\r\n\tReceived: y\r\nreceived : z\r\n\r\n", "A: b\r\n c\r\nReceived: x\r\n\tReceived: y\r\nreceived : z\r\n", 2},
		{"none", "\r\nA: b\r\n", "", 0},
		{"text at once", "hello there\r\nA: b\r\n", "", 0},
		{"text behind fields", "A: b\r\nhello there\r\nReceived: b\r\n", "A: b\r\n", 0},
		{"fold at once", " x\r\nA: b\r\n", "", 0},
		{"dots", "..A: b\r\nC: d\r\n\r\n", ".A: b\r\nC: d\r\n", 0},
	} {
		b := body{w: io.Discard, lineStart: true, inHeader: true, maxHeader: 1000}
		b.consume([]byte(tt.body+".\r\n"), false)
		if string(b.header) != tt.header || b.hops != tt.hops {
			t.Errorf("%s: header %q, %d hops, want %q, %d", tt.name, b.header, b.hops, tt.header, tt.hops)
		}
	}
}

func TestHeaderTooBig(t *testing.T) {
	b := body{w: io.Discard, lineStart: true, inHeader: true, maxHeader: 20}
	b.consume([]byte("A: 0123456789\r\n 012345678901\r\n\r\n.\r\n"), false)
	if !b.headerTooBig || len(b.header) > 20 {
		t.Errorf("too big %v, %d octets kept", b.headerTooBig, len(b.header))
	}
}

func BenchmarkBody(b *testing.B) {
	chunk := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", bodyBuffer/78))
	c := body{w: io.Discard, lineStart: true}
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		c.consume(chunk, false)
	}
}
