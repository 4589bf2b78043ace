package policy

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

func corpus(f *testing.F, names ...string) {
	files, _ := filepath.Glob("testdata/decisions/*.txtar")
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range ar.Files {
			for _, n := range names {
				if part.Name == n {
					f.Add(string(part.Data))
				}
			}
		}
	}
}

// FuzzJSON: a snapshot that is read has a canonical encoding.
func FuzzJSON(f *testing.F) {
	f.Add(string(small(f).Encode()))
	f.Add(`{"version":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := decode("s", []byte(text))
		if streamed, e := Streamed(text); e == nil && (err != nil || !bytes.Equal(streamed.Encode(), s.Encode()) || streamed.Digest() != s.Digest()) {
			t.Errorf("token by token:\n%s\ndecode: %v", streamed.Encode(), err)
		}
		if err == nil {
			again(t, s)
		} else if strings.Contains(err.Error(), "can't be compiled") {
			t.Error(err)
		}
	})
}

func again(t *testing.T, s *Snapshot) {
	back, err := decode("again", s.Encode())
	if err != nil {
		t.Fatalf("the encoding can't be read: %v\n%s", err, s.Encode())
	}
	if !bytes.Equal(back.Encode(), s.Encode()) {
		t.Errorf("encoding again differs:\n%s\n%s", s.Encode(), back.Encode())
	}
}

func FuzzCodes(f *testing.F) {
	for _, s := range []string{"127.0.0.2", "127.0.0.[2..11;20]", "[0..255].1.[2;3].4", "127.0.0", "[", "1.2.3.4."} {
		f.Add(s, uint32(0x7f000002))
	}
	f.Fuzz(func(t *testing.T, s string, n uint32) {
		c, err := parseCodes(s)
		if err != nil {
			return
		}
		a := [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		got := c.match(a)
		if !strings.Contains(s, "[") && got != (netip.AddrFrom4(a).String() == plainAddr(s)) {
			t.Errorf("%s matches %v: %v", s, a, got)
		}
	})
}

// plainAddr drops leading zeros, which a filter may have.
func plainAddr(s string) string {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		if p = strings.TrimLeft(p, "0"); p == "" {
			p = "0"
		}
		parts[i] = p
	}
	return strings.Join(parts, ".")
}

// FuzzSession: hostile words never panic, never go elsewhere and never break
// out of a reply.
func FuzzSession(f *testing.F) {
	b, err := os.ReadFile("testdata/decisions/postfix.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, "rcpt "); found {
			m, _, _ := envelope.ParseForwardPath(strings.TrimSpace(strings.SplitN(rest, "=>", 2)[0]))
			f.Add("mx.example", "a", "b.example", m.Local, m.Domain, true)
		}
	}
	f.Add("\xff\r\n", "%!@", "[IPv6:::1]", `"\`, "..", false)
	spec := NewSpec()
	if err := strictJSON(specOf(b), spec); err != nil {
		f.Fatal(err)
	}
	snap, err := Compile(spec)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, helo, fl, fd, tl, td string, utf8 bool) {
		s := snap.Session(&testmx.MapResolver{}, client)
		defer s.Close()
		s.Helo(t.Context(), helo)
		s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: fl, Domain: fd}}, MailParams{UTF8: utf8})
		v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: tl, Domain: td}})
		if strings.ContainsAny(v.Reply.Text, "\r\n\x00") || len(v.Reply.Text) > 510 {
			t.Errorf("reply %q", v.Reply.Text)
		}
		if v.Action == Permit && v.Rule.Kind == kindNone && !strings.Contains(td, ".") && !strings.Contains(tl, ".") && td != "" {
			t.Errorf("accepted %q at %q by no rule", tl, td)
		}
	})
}

func specOf(b []byte) []byte {
	for _, f := range txtar.Parse(b).Files {
		if f.Name == "spec.json" {
			return f.Data
		}
	}
	return nil
}
