package milter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// start returns a client of a milter that does what it is told, and why it gave
// up.
func start(t *testing.T, m *testmx.Milter, action string) (*Client, *error) {
	t.Helper()
	addr := testmx.FreeAddr()
	if err := m.Start(addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	var failed error
	c := &Client{
		Settings: Settings{Version: 6, Default: action, Connecting: 5 * time.Second, Command: 300 * time.Millisecond, Content: 300 * time.Millisecond},
		Macro:    func(name string) (string, bool) { return name, name == "i" },
		Failed:   func(err error) { failed = err },
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		},
	}
	t.Cleanup(c.Close)
	return c, &failed
}

// session plays one up to the end of a message, and returns the first answer that
// isn't Continue.
func session(t *testing.T, c *Client, helo, from, to, message string) Answer {
	t.Helper()
	ctx := t.Context()
	for _, say := range []func() Answer{
		func() Answer { return c.Connect(ctx, "unknown", netip.MustParseAddr("192.0.2.9"), 4321) },
		func() Answer { return c.Helo(ctx, helo) },
		func() Answer { return c.Mail(ctx, []string{"<" + from + "@there.test>"}) },
		func() Answer { return c.Rcpt(ctx, []string{"<" + to + "@here.test>"}) },
		func() Answer { return c.Data(ctx) },
		func() Answer {
			a, err := c.Message(ctx, strings.NewReader(message))
			if err != nil {
				t.Fatal(err)
			}
			return a
		},
	} {
		if a := say(); a.Action != Continue {
			return a
		}
	}
	return Answer{}
}

// TestHostile: a milter that hangs, hangs up or lies at any stage counts as
// unavailable within its time, and nothing of what it claims is held in memory.
func TestHostile(t *testing.T) {
	const text = "X-%s: %s\r\nSubject: it\r\n\r\nbody\r\n"
	for _, wrong := range []string{"hang", "close", "short", "zero", "huge", "odd", "data"} {
		for _, at := range []string{"helo", "mail", "rcpt", "data", "header", "eoh", "body", "eom"} {
			t.Run(wrong+" at "+at, func(t *testing.T) {
				t.Parallel()
				c, failed := start(t, &testmx.Milter{Name: "A"}, "reject")
				helo, from, to, message := "c.helo.test", "c", "c", fmt.Sprintf(text, "none", "c")
				switch at {
				case "helo":
					helo = wrong + ".helo.test"
				case "mail":
					from = wrong
				case "rcpt":
					to = wrong
				case "data":
					from = "data-" + wrong
				default:
					message = fmt.Sprintf(text, at, wrong)
				}
				before := memory()
				got := session(t, c, helo, from, to, message)
				if grown := memory() - before; grown > 64<<20 {
					t.Errorf("%d octets more in memory", grown)
				}
				if got.Action != Refuse || got.Reply.String() != "550 5.5.0 Service unavailable" || *failed == nil {
					t.Errorf("got %+v, %v", got, *failed)
				}
				if c.Abort(); at != "header" && at != "eoh" && at != "body" && at != "eom" && c.Mail(t.Context(), []string{"<>"}) != got {
					t.Error("the next transaction is answered otherwise")
				}
			})
		}
	}
}

func memory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestDefaultActions: what stands for a filter that isn't there.
func TestDefaultActions(t *testing.T) {
	for action, want := range map[string]string{
		"accept": "", "tempfail": "451 4.7.1 Service unavailable - try again later", "": "451 4.7.1 Service unavailable - try again later",
		"reject": "550 5.5.0 Service unavailable", "shutdown": "421 4.7.1 Service unavailable - try again later", "quarantine": "hold",
		"nonsense": "451 4.3.5 Server configuration problem - try again later",
	} {
		c := &Client{Settings: Settings{Version: 6, Default: action, Connecting: time.Second, Command: time.Second}, Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("away") }}
		a := c.Connect(t.Context(), "unknown", netip.MustParseAddr("192.0.2.9"), 0)
		got := ""
		switch a.Action {
		case Refuse:
			got = a.Reply.String()
		case Hold:
			got = "hold"
		}
		if got != want || c.Standing() != a {
			t.Errorf("%q: got %q, want %q; later %+v", action, got, want, c.Standing())
		}
	}
}

// TestShutdown ends a wait when the caller is in a hurry.
func TestShutdown(t *testing.T) {
	c, failed := start(t, &testmx.Milter{Name: "A"}, "tempfail")
	c.Command = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	c.Connect(ctx, "unknown", netip.MustParseAddr("192.0.2.9"), 0)
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	if a := c.Helo(ctx, "hang.helo.test"); a.Action != Refuse || *failed == nil || time.Since(began) > time.Minute {
		t.Errorf("got %+v after %v, %v", a, time.Since(began), *failed)
	}
}

// TestReplies: lines, codes, percent signs, and what could make more lines.
func TestReplies(t *testing.T) {
	for in, want := range map[string]string{
		"550 5.7.1 No\x00":                   "550 5.7.1 No",
		"550-5.7.1 One\r\n550 5.7.1 two\x00": "550 5.7.1 One / two",
		"550-5.7.1 One\r\n550 two\x00":       "550 5.7.1 One / two",
		"451 all 100%% sure, 5%d\x00":        "451 all 100% sure, 5d",
		"554 no status":                      "554 no status",
		"550 5.7.1 a\nb\r\n250 2.0.0 Ok\x00": "550 5.7.1 a b / 250 2.0.0 Ok",
		"421 4.7.0 Bye\x00\r\n250 Ok":        "421 4.7.0 Bye",
		"250 2.0.0 Ok\x00":                   "",
		"550 4.7.1 other class\x00":          "",
		"55":                                 "", "": "", "5501": "",
	} {
		got := ""
		if r, ok := parseReply([]byte(in)); ok {
			got = r.String()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestPieces: a large message comes in pieces, a header field in one packet that
// libmilter takes, and neither is held whole.
func TestPieces(t *testing.T) {
	m := &testmx.Milter{Name: "A"}
	c, _ := start(t, m, "tempfail")
	c.Settings.Command, c.Settings.Content = time.Minute, time.Minute
	const size = 5 << 20
	message := io.MultiReader(strings.NewReader("Subject: "+strings.Repeat("x", 200<<10)+"\r\n\r\n"), io.LimitReader(zeros{}, size))
	for _, a := range []Answer{c.Connect(t.Context(), "x.test", netip.MustParseAddr("2001:db8::1"), 1), c.Mail(t.Context(), []string{"<>"}), c.Rcpt(t.Context(), []string{"<c@here.test>"})} {
		if a.Action != Continue {
			t.Fatal(a)
		}
	}
	if a, err := c.Message(t.Context(), message); err != nil || a.Action != Continue {
		t.Errorf("got %+v, %v", a, err)
	}
	c.Close()
	heard := strings.Join(m.Heard(1), "")
	if n := strings.Count(heard, "\nB 65535 octets"); n != size/chunk {
		t.Errorf("%d whole pieces, want %d", n, size/chunk)
	}
	for line := range strings.Lines(heard) {
		if strings.HasPrefix(line, "L ") && len(line) > headerSize+piece+100 {
			t.Errorf("a field of %d octets", len(line))
		}
	}
}

// TestStreams: what a message takes in memory doesn't grow with it.
func TestStreams(t *testing.T) {
	answers := []byte("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x00\x00")
	c, w := onWire(append(answers, bytes.Repeat([]byte("\x00\x00\x00\x01c"), 2000)...))
	w.deaf = true
	c.Connect(t.Context(), "x.test", netip.MustParseAddr("192.0.2.1"), 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if a, err := c.Message(t.Context(), io.LimitReader(zeros{}, 64<<20)); err != nil || a.Action != Continue {
		t.Errorf("got %+v, %v", a, err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
		t.Errorf("64 MiB of message took %d octets", took)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

// wire is a connection on which a milter has said all that it will say.
type wire struct {
	net.Conn
	in   *bytes.Reader
	out  bytes.Buffer
	deaf bool
}

func (w *wire) Read(b []byte) (int, error) { return w.in.Read(b) }
func (w *wire) Write(b []byte) (int, error) {
	if w.deaf {
		return len(b), nil
	}
	return w.out.Write(b)
}
func (w *wire) SetDeadline(time.Time) error { return nil }
func (w *wire) Close() error                { return nil }

func onWire(answers []byte) (*Client, *wire) {
	w := &wire{in: bytes.NewReader(answers)}
	return &Client{
		Settings: Settings{Version: 6, Default: "tempfail", Connecting: time.Minute, Command: time.Minute, Content: time.Minute},
		Dial:     func(context.Context) (net.Conn, error) { return w, nil },
		Macro:    func(name string) (string, bool) { return "value", true },
	}, w
}

// FuzzAnswers plays a session to a milter that says anything.
func FuzzAnswers(f *testing.F) {
	hello := []byte("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x00\x00")
	f.Add(append(bytes.Clone(hello), "\x00\x00\x00\x01c\x00\x00\x00\x01c\x00\x00\x00\x0ay550 5.7.1 \x00"...))
	f.Add([]byte("\x00\x00\x00\x13O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x0f\xff\x80\x00\x00\x00\x05i\x00\x00\x00\x00\x03bccq"))
	f.Add(append(bytes.Clone(hello), "\x7f\xff\xff\xffy"...))
	f.Fuzz(func(t *testing.T, answers []byte) {
		c, w := onWire(answers)
		a := session(t, c, "x.test", "a", "b", "From: a\r\nTo: b\r\n\r\nbody\r\n")
		switch {
		case a.Action == Refuse && (a.Reply.Code < 400 || a.Reply.Code > 599):
			t.Errorf("refused with %v", a.Reply)
		case a.Action > Hold:
			t.Errorf("action %d", a.Action)
		}
		c.Close()
		wellFormed(t, w.out.Bytes())
	})
}

// FuzzEvents plays any session to a milter that continues: each packet to it is
// whole, and no string holds a NUL of a client's.
func FuzzEvents(f *testing.F) {
	f.Add("mail.test", "a", "b", "From: a\r\n folded\r\n\r\nbody\r\n")
	f.Add("\x00", "a\x00b", "", "no header\r\n")
	f.Add("", "", "", "From x\r\n")
	f.Fuzz(func(t *testing.T, helo, from, to, message string) {
		answers := []byte("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x00\x00")
		answers = append(answers, bytes.Repeat([]byte("\x00\x00\x00\x01c"), 2000)...)
		c, w := onWire(answers)
		session(t, c, helo, from, to, message)
		c.Close()
		wellFormed(t, w.out.Bytes())
	})
}

func wellFormed(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 5 {
			t.Fatalf("%d octets are left", len(b))
		}
		n := int(binary.BigEndian.Uint32(b))
		if n < 1 || n > len(b)-4 || n > chunk+5000 {
			t.Fatalf("packet of %d octets, of %d", n, len(b)-4)
		}
		letter, data := b[4], b[5:4+n]
		strs := map[byte]int{'H': 1, 'M': 1, 'R': 1, 'L': 2}[letter]
		if strs > 0 && bytes.Count(data, []byte{0}) != strs {
			t.Fatalf("packet %q holds %q", letter, data)
		}
		b = b[4+n:]
	}
}
