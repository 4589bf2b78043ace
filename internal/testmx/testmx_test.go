package testmx

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/demo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeT records failures.
type fakeT struct{ errs []string }

func (f *fakeT) Helper()                   {}
func (f *fakeT) Logf(string, ...any)       {}
func (f *fakeT) Errorf(s string, a ...any) { f.errs = append(f.errs, fmt.Sprintf(s, a...)) }

func TestLedger(t *testing.T) {
	one, two := Sum([]byte("one")), Sum([]byte("two"))
	const a, b = "a@x.example", "b@x.example"
	for name, tt := range map[string]struct {
		events func(l *Ledger)
		errs   int
		totals Totals
	}{
		"nothing":          {func(l *Ledger) {}, 0, Totals{}},
		"relayed":          {func(l *Ledger) { l.Accepted("1", a, one); l.Relayed(a, one) }, 0, Totals{Accepted: 1, Relayed: 1}},
		"case":             {func(l *Ledger) { l.Accepted("1", a, one); l.Relayed("A@X.example", one) }, 0, Totals{Accepted: 1, Relayed: 1}},
		"held":             {func(l *Ledger) { l.Accepted("1", a, one); l.Held("1", a) }, 0, Totals{Accepted: 1, Held: 1}},
		"returned":         {func(l *Ledger) { l.Accepted("1", a, one); l.Returned("1", a) }, 0, Totals{Accepted: 1, Returned: 1}},
		"lost":             {func(l *Ledger) { l.Accepted("1", a, one) }, 1, Totals{Accepted: 1}},
		"one rcpt lost":    {func(l *Ledger) { l.Accepted("1", a, one); l.Accepted("1", b, one); l.Relayed(a, one) }, 1, Totals{Accepted: 2, Relayed: 1}},
		"altered":          {func(l *Ledger) { l.Accepted("1", a, one); l.Relayed(a, two) }, 2, Totals{Accepted: 1, Relayed: 1}},
		"wrong rcpt":       {func(l *Ledger) { l.Accepted("1", a, one); l.Relayed(b, one) }, 2, Totals{Accepted: 1, Relayed: 1}},
		"one of two equal": {func(l *Ledger) { l.Accepted("1", a, one); l.Accepted("2", a, one); l.Relayed(a, one) }, 1, Totals{Accepted: 2, Relayed: 1}},
		"duplicate":        {func(l *Ledger) { l.Accepted("1", a, one); l.Relayed(a, one); l.Relayed(a, one) }, 0, Totals{Accepted: 1, Relayed: 2, Duplicates: 1}},
		"unanswered, lost": {func(l *Ledger) { l.Unanswered(a, one) }, 0, Totals{}},
		"unanswered":       {func(l *Ledger) { l.Unanswered(a, one); l.Relayed(a, one) }, 0, Totals{Relayed: 1}},
		"held, not ours":   {func(l *Ledger) { l.Held("1", a) }, 1, Totals{}},
		"held, no id":      {func(l *Ledger) { l.Accepted("", a, one); l.Relayed(a, one); l.Held("", a) }, 1, Totals{Accepted: 1, Relayed: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var l Ledger
			var f fakeT
			tt.events(&l)
			l.Close(&f)
			if len(f.errs) != tt.errs {
				t.Errorf("got %d errors: %q; want %d", len(f.errs), f.errs, tt.errs)
			}
			if diff := cmp.Diff(tt.totals, l.Totals()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSumIgnoresReceived(t *testing.T) {
	if Sum([]byte("Received: x\r\n\ty\r\nA: b\r\n")) != Sum([]byte("A: b\r\n")) {
		t.Error("differs")
	}
}

// A message goes to the toy primary by script and by Send, and the ledger
// finds both there.
func TestDialogueAndSend(t *testing.T) {
	var p demo.Primary
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	var l Ledger
	defer l.Close(t)

	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	DialogueFile(t, c, "testdata/hello.txt", "$RCPT", "a@b.example")
	l.Accepted("", "a@b.example", Sum([]byte("Subject: x\r\n\r\nhello\r\n.dot\r\n")))

	m := demo.Mail{From: "x@y.example", To: []string{"c@d.example"}, Content: []byte("\r\nsent\r\n")}
	for _, to := range Send(t, p.Addr(), m).Accepted(m.To) {
		l.Accepted("", to, Sum(m.Content))
	}
	l.RelayedTo(&p)
	if got := l.Totals(); got != (Totals{Accepted: 2, Relayed: 2}) {
		t.Errorf("got %+v", got)
	}
}

func TestDialogueFails(t *testing.T) {
	for script, want := range map[string]string{
		"S: 220\nS: 250":                    "", // nothing more comes, and the server hangs up
		"S: 220\n\n# x\nC: HELO\nS: 550":    "5: S: 550: got",
		"S: /^2.0 \\d+$/":                   "1: S:",
		"S: /(/":                            "1: S: /(/: error parsing",
		"hello":                             "1: hello: neither",
		"C! x":                              "1: C! x: invalid syntax",
		"S: 220\nC: HELO x\nS: CLOSED":      "3: S: CLOSED: got",
		"S: 220\nC! \"HELO\\r\\n\"\nS: 250": "",
	} {
		server, client := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer server.Close()
			server.Write([]byte("220 x\r\n"))
			if _, err := server.Read(make([]byte, 100)); err == nil {
				server.Write([]byte("250 y\r\n"))
			}
		}()
		if script == "S: 220\nS: 250" {
			server.Close()
			want = "1: S: 220"
		}
		err := play(client, script)
		client.Close()
		<-ended
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%q: got %q; want %q", script, got, want)
		}
	}
}

func TestMapResolver(t *testing.T) {
	r := &MapResolver{
		IP:   map[string][]string{"a.example": {"192.0.2.1", "2001:db8::1"}, "b.example": {"192.0.2.2"}},
		MX:   map[string][]net.MX{"a.example": {{Host: "mx.example", Pref: 10}}, "null.example": {{Host: "."}}},
		PTR:  map[string][]string{"192.0.2.1": {"a.example"}},
		TXT:  map[string][]string{"a.example": {"x"}},
		NS:   map[string][]string{"a.example": {"ns.example"}},
		Fail: []string{"bad.example", "mx b.example", "ip6 b.example"},
	}
	ctx := t.Context()
	kind := func(err error) string {
		if err == nil {
			return "ok"
		}
		e := err.(*net.DNSError)
		return map[bool]string{true: "temporary", false: "permanent"}[e.IsTemporary] + map[bool]string{true: " not found"}[e.IsNotFound]
	}
	for _, tt := range []struct {
		what string
		look func() (any, error)
		want string
	}{
		{"ip", func() (any, error) { return r.LookupNetIP(ctx, "ip", "A.example.") }, "[192.0.2.1 2001:db8::1] ok"},
		{"ip4", func() (any, error) { return r.LookupNetIP(ctx, "ip4", "a.example") }, "[192.0.2.1] ok"},
		{"one family fails", func() (any, error) { return r.LookupNetIP(ctx, "ip", "b.example") }, "[192.0.2.2] ok"},
		{"none", func() (any, error) { return r.LookupNetIP(ctx, "ip", "c.example") }, "[] permanent not found"},
		{"fails", func() (any, error) { return r.LookupNetIP(ctx, "ip", "bad.example") }, "[] temporary"},
		{"type fails", func() (any, error) { return r.LookupMX(ctx, "b.example") }, "[] temporary"},
		{"ptr", func() (any, error) { return r.LookupAddr(ctx, "192.0.2.1") }, "[a.example.] ok"},
		{"txt", func() (any, error) { return r.LookupTXT(ctx, "a.example") }, "[x] ok"},
		{"no txt", func() (any, error) { return r.LookupTXT(ctx, "b.example") }, "[] permanent not found"},
	} {
		v, err := tt.look()
		if got := fmt.Sprint(v, " ", kind(err)); got != tt.want {
			t.Errorf("%s: got %s; want %s", tt.what, got, tt.want)
		}
	}
	if mx, err := r.LookupMX(ctx, "null.example"); err != nil || mx[0].Host != "." {
		t.Errorf("null MX: %v, %v", mx, err)
	}
	if ns, err := r.LookupNS(ctx, "a.example"); err != nil || ns[0].Host != "ns.example." {
		t.Errorf("NS: %v, %v", ns, err)
	}
	if r.Asked("txt a.example") != 1 || r.Asked("ip4 a.example") != 2 {
		t.Error("counts")
	}
	r.Block = make(chan struct{})
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.LookupTXT(gone, "a.example"); kind(err) != "temporary" {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFreeAddr: what one process was given, no other is.
func TestFreeAddr(t *testing.T) {
	addr := FreeAddr()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := reserve(addr); err == nil {
		t.Errorf("%s is reserved twice", addr)
	}
}

// TestCheckPostfix: a Postfix that would hang in its own log isn't started.
func TestCheckPostfix(t *testing.T) {
	dir := t.TempDir()
	main := "compatibility_level = 3.6\nqueue_directory = " + dir + "/queue\ndata_directory = " + dir + "/data\n"
	for text, want := range map[string]bool{
		main: true, main + "mynetworks = 192.0.2.1\nmynetworks = 192.0.2.2\n": false, main + "nothing\n": false,
		Override(main+"mynetworks = 192.0.2.1\n 192.0.2.3\n", "mynetworks = 192.0.2.2\nmynetworks = 192.0.2.4\n"): true,
	} {
		for name, text := range map[string]string{"main.cf": text, "master.cf": fmt.Sprintf(MasterCF, FreeAddr())} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []string{"queue", "data"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := CheckPostfix(dir, dir); (err == nil) != want {
			t.Errorf("%v for\n%s", err, text)
		}
	}
}
