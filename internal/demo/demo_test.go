package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startPrimary(t *testing.T, p *Primary) *Primary {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

func send(t *testing.T, p *Primary, m Mail) (Outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return Send(ctx, p.Addr(), m)
}

func TestPrimaryKeepsExactBytes(t *testing.T) {
	p := startPrimary(t, &Primary{Keep: 100})
	small := []byte("Received: from a\r\n\tby b;\r\n\r\n.\r\n..dots\r\nbare \r and \n\xff\r\n")
	large := bytes.Repeat([]byte(strings.Repeat("x", 98)+"\r\n"), 20000)
	for _, c := range [][]byte{small, large} {
		o, err := send(t, p, Mail{From: "a@b.example", To: []string{"c@d.example", "e@f.example"}, Content: c})
		if err != nil || !o.Final.Positive() || len(o.Accepted([]string{"c", "e"})) != 2 {
			t.Fatalf("%+v, %v", o, err)
		}
	}
	want := []Received{
		{From: "a@b.example", To: []string{"c@d.example", "e@f.example"}, Size: int64(len(small)),
			Sum: sha256.Sum256(small), BodySum: sha256.Sum256(small[len("Received: from a\r\n\tby b;\r\n"):]), Content: small},
		{From: "a@b.example", To: []string{"c@d.example", "e@f.example"}, Size: int64(len(large)),
			Sum: sha256.Sum256(large), BodySum: sha256.Sum256(large)},
	}
	if diff := cmp.Diff(want, p.Received()); diff != "" {
		t.Error(diff)
	}
}

func TestPrimaryScripts(t *testing.T) {
	p := startPrimary(t, &Primary{MaxMessages: 2})
	no := envelope.Reply{Code: 550, Enhanced: "5.1.1", Text: "Never"}
	later := envelope.Reply{Code: 450, Enhanced: "4.2.0", Text: "Later"}
	p.Script("never@d.example", no)
	p.Script("later@d.example", later, envelope.Reply{})
	p.ScriptContent("filter@d.example", envelope.Reply{Code: 554, Text: "Not this"})
	m := Mail{To: []string{"Never@d.example", "later@d.example", "ok@d.example"}, Content: []byte("\r\nx\r\n")}
	for round, want := range [][]envelope.Reply{{no, later}, {no, {Code: 250, Enhanced: "2.0.0"}}} {
		o, err := send(t, p, m)
		if err != nil || len(o.Rcpt) != 3 || !o.Final.Positive() {
			t.Fatalf("%+v, %v", o, err)
		}
		want[1].Text, want[1].Code = o.Rcpt[1].Text, o.Rcpt[1].Code
		if o.Rcpt[0] != want[0] || o.Rcpt[1].Positive() != (round == 1) || !o.Rcpt[2].Positive() {
			t.Errorf("round %d: got %v", round, o.Rcpt)
		}
	}
	o, err := send(t, p, Mail{To: []string{"filter@d.example"}, Content: []byte("\r\n")})
	if err != nil || o.Last().Code != 554 || o.Accepted([]string{"x"}) != nil {
		t.Errorf("%+v, %v", o, err)
	}
	if o, _ = send(t, p, m); o.Last().Code != 452 {
		t.Errorf("over MaxMessages: %+v", o)
	}
	if o, _ = send(t, p, Mail{To: []string{"never@d.example"}, Content: []byte("\r\n")}); o.Last() != no {
		t.Errorf("nobody accepted: %+v", o)
	}
	if p.Count() != 2 || p.Sessions() != 5 {
		t.Errorf("%d messages, %d sessions", p.Count(), p.Sessions())
	}
}

func TestPrimaryStopsAndStartsAgain(t *testing.T) {
	p := startPrimary(t, &Primary{Delay: time.Hour})
	addr := p.Addr()
	if err := p.Start(); err == nil {
		t.Error("started twice")
	}
	idle, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if _, _, err := ReadReply(bufio.NewReader(idle)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n\r\n.\r\n")
	r := bufio.NewReader(c)
	for range 5 { // up to 354: the message waits for Delay from here on
		if _, _, err := ReadReply(r); err != nil {
			t.Fatal(err)
		}
	}
	p.Stop()
	p.Stop()
	if _, err := io.ReadAll(idle); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if p.Count() != 0 {
		t.Error("a message that was cut off was taken")
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listening")
	}
	p.Delay = 0
	if err := p.Start(); err != nil || p.Addr() != addr {
		t.Fatalf("%s, %v", p.Addr(), err)
	}
	if o, err := send(t, p, Mail{To: []string{"a@b"}, Content: []byte("\r\n")}); err != nil || !o.Final.Positive() {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestSendRefusesUnfinishedLine(t *testing.T) {
	if _, err := Send(t.Context(), "127.0.0.1:1", Mail{Content: []byte("x")}); err == nil {
		t.Error("no error")
	}
}

func TestReadReply(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want envelope.Reply
		err  string
	}{
		"one line":        {"250 2.1.5 Ok\r\n", envelope.Reply{Code: 250, Enhanced: "2.1.5", Text: "Ok"}, ""},
		"no text":         {"250\r\n", envelope.Reply{Code: 250}, ""},
		"lines":           {"550-5.1.1 No\r\n550 5.1.1 such\r\n", envelope.Reply{Code: 550, Enhanced: "5.1.1", Text: "No\nsuch"}, ""},
		"not enhanced":    {"250 1.2.3 x\r\n", envelope.Reply{Code: 250, Text: "1.2.3 x"}, ""},
		"other code":      {"250-a\r\n251 b\r\n", envelope.Reply{}, "malformed"},
		"no code":         {"hello\r\n", envelope.Reply{}, "malformed"},
		"code too low":    {"199 x\r\n", envelope.Reply{}, "malformed"},
		"long line":       {"250 " + strings.Repeat("x", 5000) + "\r\n", envelope.Reply{}, "buffer full"},
		"too many lines":  {strings.Repeat("250-x\r\n", 101), envelope.Reply{}, "more than 100"},
		"end":             {"", envelope.Reply{}, "EOF"},
		"end in the line": {"250", envelope.Reply{}, "unexpected EOF"},
		"end in between":  {"250-x\r\n", envelope.Reply{}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := ReadReply(bufio.NewReader(strings.NewReader(tt.in)))
			if tt.err == "" && (err != nil || got != tt.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v; want %q", err, tt.err)
			}
		})
	}
}

func TestBodySum(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"none":          {"Subject: x\r\n\r\n", "Subject: x\r\n\r\n"},
		"one":           {"RECEIVED: x\r\nA: b\r\n", "A: b\r\n"},
		"folded":        {"Received: x\r\n y\r\n\tz\r\nReceived: w\r\n", "Received: w\r\n"},
		"similar":       {"Receivedx: x\r\n", "Receivedx: x\r\n"},
		"empty":         {"", ""},
		"begun":         {"Receiv", "Receiv"},
		"nothing after": {"Received: x\r\n", ""},
		"body at once":  {"Received: x\r\n\r\n y", "\r\n y"},
	} {
		t.Run(name, func(t *testing.T) {
			if BodySum([]byte(tt.in)) != sha256.Sum256([]byte(tt.want)) {
				t.Error("in one piece: wrong")
			}
			h := sha256.New()
			s := &skipReceived{w: h}
			if _, err := io.CopyBuffer(struct{ io.Writer }{s}, iotest.OneByteReader(strings.NewReader(tt.in)), make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			s.flush()
			if want := sha256.Sum256([]byte(tt.want)); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("octet by octet: wrong")
			}
		})
	}
}

// The server's answers as a plain client sees them; internal/resolver's tests
// exercise the rest.
func TestDNS(t *testing.T) {
	d, err := StartDNS(
		"test. 60 IN SOA ns.test. root.test. 1 2 3 4 5",
		"deep.er.test. 60 IN A 192.0.2.1",
		"alias.test. 60 IN CNAME Deep.er.test.")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := StartDNS("no record"); err == nil {
		t.Error("took a bad record")
	}
	ask := func(network, name string) *dns.Msg {
		t.Helper()
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		m, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second}).Exchange(q, d.Addr())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, tt := range []struct {
		name           string
		rcode, an, aut int
	}{
		{"deep.er.test.", dns.RcodeSuccess, 1, 0},
		{"ALIAS.test.", dns.RcodeSuccess, 2, 0},
		{"er.test.", dns.RcodeSuccess, 0, 1},
		{"none.test.", dns.RcodeNameError, 0, 1},
		{"elsewhere.", dns.RcodeNameError, 0, 0},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if m := ask(network, tt.name); m.Rcode != tt.rcode || len(m.Answer) != tt.an || len(m.Ns) != tt.aut {
				t.Errorf("%s over %s: got %v", tt.name, network, m)
			}
			if d.Asked(tt.name, network) != 1 {
				t.Errorf("%s over %s: asked %d times", tt.name, network, d.Asked(tt.name, network))
			}
		}
	}
	d.Remove("deep.er.test")
	if m := ask("udp", "deep.er.test."); m.Rcode != dns.RcodeNameError {
		t.Errorf("removed: got %v", m)
	}
}
