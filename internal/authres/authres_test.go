package authres

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io"
	"net/textproto"
	"strings"
	"testing"
	"testing/iotest"

	peer "github.com/emersion/go-msgauth/authres"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

const us = "mx2.example.net"

func envelopeOf(from string, auth envelope.Auth) *envelope.Envelope {
	e := &envelope.Envelope{Auth: auth, Client: envelope.Client{Helo: "helo.example.org"}}
	e.From.Local, e.From.Domain, _ = strings.Cut(from, "@")
	return e
}

// TestField: another implementation reads what we write.
func TestField(t *testing.T) {
	for _, tt := range []struct {
		name, from string
		auth       envelope.Auth
		want       []peer.Result
	}{
		{"nothing is known", "a@example.org", envelope.Auth{}, nil},
		{"SPF", "a@example.org", envelope.Auth{Checked: true, SPF: "softfail"}, []peer.Result{&peer.SPFResult{Value: "softfail", From: "example.org"}}},
		{"the null sender", "", envelope.Auth{Checked: true, SPF: "pass"}, []peer.Result{&peer.SPFResult{Value: "pass", Helo: "helo.example.org"}}},
		{"unsigned", "a@example.org", envelope.Auth{Checked: true}, []peer.Result{&peer.DKIMResult{Value: "none"}}},
		{"both", "a@example.org", envelope.Auth{Checked: true, SPF: "pass", DKIM: []envelope.Signature{{Domain: "example.org", Result: "pass"}, {Domain: "b.example", Result: "fail"}}},
			[]peer.Result{&peer.SPFResult{Value: "pass", From: "example.org"}, &peer.DKIMResult{Value: "pass", Domain: "example.org"}, &peer.DKIMResult{Value: "fail", Domain: "b.example"}}},
	} {
		field := Field(us, envelopeOf(tt.from, tt.auth))
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(field + "\r\n"))).ReadMIMEHeader()
		if err != nil || len(h) != 1 {
			t.Errorf("%s: %v %v in %q", tt.name, h, err, field)
		}
		id, got, err := peer.Parse(h.Get("Authentication-Results"))
		if err != nil || id != us {
			t.Errorf("%s: %q %v in %q", tt.name, id, err, field)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// TestHostileField: what a client chose ends neither its value nor its line.
func TestHostileField(t *testing.T) {
	for _, evil := range []string{"a;dkim=pass header.d=bank.example", "a\r\nBcc: x", `a" ; dmarc=pass`, `a\`, "a(", "", "δοκιμή.example", "[192.0.2.1]", strings.Repeat("x", 5000)} {
		e := envelopeOf("a@"+evil, envelope.Auth{Checked: true, SPF: "pass", DKIM: []envelope.Signature{{Domain: evil, Result: "fail"}}})
		e.Client.Helo = evil
		field := Field(us, e)
		if strings.Count(field, "\n") != 3 || strings.ContainsFunc(field, func(r rune) bool { return r > '~' }) || len(field) > 700 {
			t.Errorf("%q gives %q", evil, field)
		}
		inQuotes, semicolons := false, 0
		for i := 0; i < len(field); i++ {
			switch c := field[i]; {
			case c == '\\':
				i++
			case c == '"':
				inQuotes = !inQuotes
			case c == ';' && !inQuotes:
				semicolons++
			}
		}
		if semicolons != 2 || inQuotes {
			t.Errorf("%q gives %d results: %q", evil, semicolons, field)
		}
	}
}

// field is a claim of that value.
func field(value string) string { return "Authentication-Results:" + value + "\r\n" }

var stripCases = []struct {
	name, field string
	ours        bool
}{
	{"plain", field(" mx2.example.net; spf=pass"), true},
	{"no space", field("mx2.example.net;spf=pass"), true},
	{"case", "AUTHENTICATION-results: MX2.Example.NET; spf=pass\r\n", true},
	{"version", field(" mx2.example.net 1; spf=pass"), true},
	{"version and comments", field(" (a) mx2.example.net (b(c\\)) d) 1 (e); spf=pass"), true},
	{"folded", field("\r\n\t mx2.example.net;\r\n spf=pass\r\n smtp.mailfrom=x"), true},
	{"folded in a comment", field(" (a\r\n b)\r\n mx2.example.net; none"), true},
	{"a comment with a semicolon", field(" (other.example;) mx2.example.net; none"), true},
	{"quoted", field(` "mx2.example.net"; spf=pass`), true},
	{"quoted with backslashes", field(` "mx2\.exa\mple.net"; spf=pass`), true},
	{"a final dot", field(" mx2.example.net.; spf=pass"), true},
	{"space before the colon", "Authentication-Results \t: mx2.example.net; spf=pass\r\n", true},
	{"nothing behind", field(" mx2.example.net"), true},
	{"something else behind", field(" mx2.example.net/x; spf=pass"), true},
	{"vertical tab", field(" \v\fmx2.example.net; spf=pass"), true},
	{"unreadable", field(" ; spf=pass"), true},
	{"empty", field(""), true},
	{"an open comment", field(" (mx2.example.net; spf=pass"), true},
	{"an open quote", field(` "mx2.example.net; spf=pass`), true},
	{"a control character", field(" \x01mx2.example.net; spf=pass"), true},
	{"long", field(" (" + strings.Repeat("x", 100) + strings.Repeat("\r\n "+strings.Repeat("x", 900), 90) + ") mx2.example.net; spf=pass"), true},
	{"long line", field(" (" + strings.Repeat("x", 40_000) + ") mx2.example.net; spf=pass"), true},
	{"another", field(" mx.example.net; spf=pass"), false},
	{"a longer one", field(" mx2.example.net.evil.example; spf=pass"), false},
	{"a shorter one", field(" example.net; spf=pass"), false},
	{"ours in a comment", field(" other.example (mx2.example.net); spf=pass"), false},
	{"ours in a result", field(" other.example; spf=pass smtp.mailfrom=mx2.example.net"), false},
	{"another quoted", field(` "other.example"; spf=pass`), false},
	{"another name", "X-Authentication-Results: mx2.example.net; spf=pass\r\n", false},
	{"ARC", "ARC-Authentication-Results: i=1; mx2.example.net; spf=pass\r\n", false},
	{"another, long", field(" other.example; " + strings.Repeat("\r\n "+strings.Repeat("x", 900), 90)), false},
	{"another, a long line", field(" other.example; " + strings.Repeat("x", 50_000)), false},
	{"a long field before", "X: " + strings.Repeat("y", 70_000) + "\r\n", false},
}

// TestStrip: the fields that claim to be ours vanish, and nothing else changes,
// however the octets come in.
func TestStrip(t *testing.T) {
	const before, after, body = "Received: from x\r\n by y\r\n", "Subject: it\r\n", "\r\nAuthentication-Results: mx2.example.net; in the body\r\n\r\ntext"
	for _, tt := range stripCases {
		message := before + tt.field + tt.field + after + body
		want := message
		if tt.ours {
			want = before + after + body
		}
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "octets": iotest.OneByteReader, "halves": iotest.HalfReader, "with EOF": iotest.DataErrReader} {
			got, err := io.ReadAll(iotest.OneByteReader(Strip(wrap(strings.NewReader(message)), us)))
			if err != nil || string(got) != want {
				t.Errorf("%s, %s: %v %.300q, want %.300q", tt.name, name, err, got, want)
			}
		}
	}
	for name, message := range map[string]string{
		"empty": "", "no body": "Subject: x\r\n", "cut in a field": "Subject: x", "no header": "\r\nbody\r\n", "a line that is no field": "Subject: x\r\nno field\r\nAuthentication-Results: mx2.example.net; x\r\n",
		"folded at first": " x\r\nSubject: y\r\n\r\n", "LF alone": "Subject: x\n\nAuthentication-Results: mx2.example.net; x\n",
	} {
		if got, err := io.ReadAll(Strip(strings.NewReader(message), us)); err != nil || string(got) != message {
			t.Errorf("%s: %v %q", name, err, got)
		}
	}
	for _, end := range []string{"", "\r\n", "\r\n more"} {
		if got, err := io.ReadAll(Strip(strings.NewReader("A: b\r\nAuthentication-Results: mx2.example.net"+end), us)); err != nil || string(got) != "A: b\r\n" {
			t.Errorf("cut: %v %q", err, got)
		}
	}
	broken := errors.New("broken")
	got, err := io.ReadAll(Strip(io.MultiReader(strings.NewReader("Subject: x\r\nA: "), iotest.ErrReader(broken)), us))
	if !errors.Is(err, broken) || string(got) != "Subject: x\r\nA: " {
		t.Errorf("%v %q", err, got)
	}
}

// TestSignatures: a message's signatures hold, but for one over a field that was
// forged in our name.
func TestSignatures(t *testing.T) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const forged, others = "Authentication-Results: mx2.example.net; spf=pass\r\n", "Authentication-Results: mx.other.example; spf=pass\r\n"
	const message = "From: a@example.org\r\nSubject: it\r\n\r\nbody\r\n"
	for _, tt := range []struct {
		name, signed, later string // what the signer has, and what is put on top of it
		keys                []string
		holds               bool
	}{
		{"forged on top", message, forged, nil, true},
		{"another's, signed", others + message, forged, []string{"From", "Authentication-Results"}, true},
		{"forged, unsigned", forged + message, "", []string{"From"}, true},
		{"forged, signed", forged + message, "", []string{"From", "Authentication-Results"}, false},
	} {
		var b bytes.Buffer
		if err := dkim.Sign(&b, strings.NewReader(tt.signed), &dkim.SignOptions{Domain: "example.org", Selector: "s", Signer: key, HeaderKeys: tt.keys}); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.MultiReader(strings.NewReader(Field(us, envelopeOf("a@example.org", envelope.Auth{Checked: true, SPF: "pass"}))), Strip(strings.NewReader(tt.later+b.String()), us)))
		if err != nil || strings.Count(string(got), us) != 1 {
			t.Errorf("%s: %v %q", tt.name, err, got)
		}
		seen, err := dkim.VerifyWithOptions(bytes.NewReader(got), &dkim.VerifyOptions{LookupTXT: func(string) ([]string, error) {
			return []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)}, nil
		}})
		if err != nil || len(seen) != 1 || (seen[0].Err == nil) != tt.holds {
			t.Errorf("%s: %v %+v", tt.name, err, seen)
		}
	}
}

// FuzzStrip: another parser finds no field of ours any more, a second pass changes
// nothing, and without such fields the first changes nothing.
func FuzzStrip(f *testing.F) {
	for _, tt := range stripCases {
		if len(tt.field) < 1000 {
			f.Add(tt.field + "Subject: x\r\n\r\nbody")
		}
	}
	f.Fuzz(func(t *testing.T, message string) {
		got, err := io.ReadAll(Strip(strings.NewReader(message), us))
		if err != nil {
			t.Fatal(err)
		}
		again, err := io.ReadAll(Strip(strings.NewReader(string(got)), us))
		if err != nil || string(again) != string(got) {
			t.Fatalf("%q became %q, and then %q", message, got, again)
		}
		if !strings.Contains(strings.ToLower(message), "authentication-results") && string(got) != message {
			t.Fatalf("%q became %q", message, got)
		}
		h, _ := textproto.NewReader(bufio.NewReader(strings.NewReader(string(got)))).ReadMIMEHeader()
		for _, value := range h["Authentication-Results"] {
			if id, _, err := peer.Parse(value); err == nil && strings.EqualFold(id, us) {
				t.Fatalf("%q is left of %q", value, message)
			}
		}
	})
}
