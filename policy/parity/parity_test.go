package parity

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// scripted is a server that answers by a function.
func scripted(answer func(line string) string) Dialer {
	return func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			io.WriteString(server, "220 ready\r\n")
			for sc := bufio.NewScanner(server); sc.Scan(); {
				a := answer(sc.Text())
				if a == "" {
					return
				}
				io.WriteString(server, a+"\r\n")
			}
		}()
		return client, nil
	}
}

func lenient(line string) string {
	switch {
	case strings.HasPrefix(line, "XCLIENT"):
		return "220 as you say"
	case strings.HasPrefix(line, "EHLO"):
		return "250-first\r\n250 last"
	}
	return "250 2.0.0 Ok"
}

func material() *Material {
	spec := policy.NewSpec()
	spec.MyNetworks = []string{"192.0.2.0/30", "!2001:db8::/32"}
	spec.Addresses.VirtualMailbox.Domains = []string{"example.org", ".wild.example"}
	access, err := table.NewHash(map[string]string{"boss@example.org": "OK", "spam.example": "REJECT", "198.51": "OK", "news@": "OK", "bare": "x"})
	if err != nil {
		panic(err)
	}
	spec.Tables = map[string]*table.Table{"hash:access": access}
	return NewMaterial(spec, Material{
		Clients: []Client{{Addr: netip.MustParseAddr("198.18.0.1"), Name: "mail.example.com", Reverse: "mail.example.com"}},
		Helos:   []string{"mail.example.com"}, Senders: []string{"example.com"},
	})
}

// TestRun counts, and shortens a difference to what makes it.
func TestRun(t *testing.T) {
	strict := func(line string) string {
		if strings.HasPrefix(line, "RCPT TO:<boss@example.org>") {
			return "550 5.1.1 nobody"
		}
		return lenient(line)
	}
	res, err := Run(t.Context(), Options{Primary: scripted(lenient), Local: scripted(strict), Material: material(), Sessions: 300, Seed: 1, Parallel: 3})
	if err != nil {
		t.Fatal(err)
	}
	if res.Sessions != 300 || res.Decisions < 1000 || res.Differences < 10 || len(res.Distinct) != 1 {
		t.Fatalf("got %d sessions, %d decisions, %d differences of %d kinds", res.Sessions, res.Decisions, res.Differences, len(res.Distinct))
	}
	d := res.Distinct[0]
	if len(d.Session.Commands) != 1 || !strings.HasPrefix(d.Session.Commands[0].Line, "RCPT TO:<boss@example.org>") || d.Session.Client.Name != "" {
		t.Errorf("not made short:\n%s", d.String())
	}
	line, primary, local := d.Where()
	if line != d.Session.Commands[0].Line || primary.Code != 250 || local.Enhanced != "5.1.1" {
		t.Errorf("Where: %q, %v, %v", line, primary, local)
	}
	var b strings.Builder
	res.Print(&b)
	for _, want := range []string{"difference 1:", "primary: 250 2.0.0 Ok", "local:   550 5.1.1 nobody", fmt.Sprintf("sessions 300, decisions %d, differences %d\n", res.Decisions, res.Differences)} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("Print lacks %q:\n%s", want, &b)
		}
	}

	explained := Options{Primary: scripted(lenient), Local: scripted(strict), Material: material(), Sessions: 300, Seed: 1,
		Observe: func(_ int, _ Session, d *Difference, _ Transcript) bool { return d != nil }}
	if res, err = Run(t.Context(), explained); err != nil || res.Differences != 0 {
		t.Errorf("explained: %d differences, %v", res.Differences, err)
	}
}

// TestRefused tells a server that can't be asked from one that refuses.
func TestRefused(t *testing.T) {
	s := Session{Client: Client{Addr: netip.MustParseAddr("192.0.2.1")}, Commands: []Command{{Line: "NOOP"}, {Line: "NOOP"}}}
	for _, tt := range []struct {
		name   string
		answer func(string) string
		want   string // transcript's codes, or the error's beginning
	}{
		{"closed", func(string) string { return "" }, "[0]"},
		{"no XCLIENT", func(string) string { return "550 5.7.0 insufficient authorization" }, "XCLIENT is refused"},
		{"unknown XCLIENT", func(string) string { return "500 5.5.2 what" }, "XCLIENT is refused"},
		{"client refused", func(string) string { return "554 5.7.1 go away" }, "[554]"},
		{"no SMTP", func(string) string { return "hello" }, "no SMTP reply"},
		{"421", func(l string) string {
			return map[bool]string{true: "220 x", false: "421 4.7.0 x"}[strings.HasPrefix(l, "XC")]
		}, "[220 421]"},
		{"ok", lenient, "[220 250 250]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, err := scripted(tt.answer).Play(t.Context(), s)
			got := []int{}
			for _, r := range tr {
				got = append(got, r.Code)
			}
			text := fmt.Sprint(got)
			if err != nil {
				text = err.Error()
			}
			if !strings.HasPrefix(text, tt.want) {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}

// TestSameSeed draws the same sessions for the same seed, and no message
// unless one is asked for.
func TestSameSeed(t *testing.T) {
	a, b := material(), material()
	differ := false
	for n := range 500 {
		s := fmt.Sprint(a.Nth(7, n))
		if s != fmt.Sprint(b.Nth(7, n)) {
			t.Fatalf("session %d isn't the same twice", n)
		}
		differ = differ || s != fmt.Sprint(a.Nth(8, n))
		for _, c := range a.Nth(7, n).Commands {
			if c.Message != "" || strings.EqualFold(c.Line, "DATA") {
				t.Fatalf("session %d sends a message", n)
			}
			if strings.ContainsAny(c.Line, "\r\n") {
				t.Fatalf("session %d: %q is more than a line", n, c.Line)
			}
		}
	}
	if !differ {
		t.Error("the seed makes no difference")
	}
	a.Data = "test@example.org"
	sent := 0
	for n := range 500 {
		s := a.Nth(7, n)
		for i, c := range s.Commands {
			if c.Message != "" {
				sent++
				if got := s.Commands[i-1].Line; got != "RCPT TO:<test@example.org>" {
					t.Fatalf("a message goes to %s", got)
				}
			}
		}
	}
	if sent == 0 {
		t.Error("no message was sent")
	}
}

// TestMaterial finds what a policy names, at its borders.
func TestMaterial(t *testing.T) {
	m := material()
	all := fmt.Sprint(m.Clients, m.Helos, m.Senders, m.Authors, m.Recipients, m.Domains)
	for _, want := range []string{"192.0.2.0", "192.0.2.3", "192.0.2.4", "192.0.1.255", "2001:db9::", "boss@example.org", "sub.spam.example", "198.51.7.7",
		"news@", "sub.wild.example", "nobody@example.org"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing probes %s: %s", want, all)
		}
	}
}

func TestExamples(t *testing.T) {
	for pattern, want := range map[string]string{
		`^unknown$`:                 "unknown",
		`/dyn[0-9]+/`:               "dyn",
		`(\.dynamic\.|\bdsl\b)`:     "dsl",
		`^Subject: .*lottery`:       "Subject: ",
		`(?=look)around\.`:          "look",
		`^[a-z]{3}@example\.(com)?`: "@example.",
	} {
		if got := fmt.Sprint(examples(pattern)); !strings.Contains(got, want) {
			t.Errorf("examples(%q) = %s, want %q in it", pattern, got, want)
		}
	}
}
