package envelope

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseForwardPath(t *testing.T) {
	tests := []struct {
		arg    string
		want   Mailbox
		params string
		spell  string // Mailbox.String(), "" when it is local@domain
	}{
		{"<alice@corp.example>", Mailbox{"alice", "corp.example"}, "", ""},
		{" <alice@corp.example> NOTIFY=NEVER ORCPT=rfc822;a", Mailbox{"alice", "corp.example"}, "NOTIFY=NEVER ORCPT=rfc822;a", ""},
		{"<Postmaster>", Mailbox{"Postmaster", ""}, "", "Postmaster"},
		{"postmaster", Mailbox{"postmaster", ""}, "", "postmaster"},
		{"<alice+x@corp.example>", Mailbox{"alice+x", "corp.example"}, "", ""},
		{"<alice@corp.example.>", Mailbox{"alice", "corp.example"}, "", ""},
		{`<"alice"@corp.example>`, Mailbox{"alice", "corp.example"}, "", ""},
		{`<al\ice@corp.example>`, Mailbox{"alice", "corp.example"}, "", ""},
		{"<alice(comment (nested))@corp.example>", Mailbox{"alice", "corp.example"}, "", ""},
		{"<@relay.example,@b.example:alice@corp.example>", Mailbox{"alice", "corp.example"}, "", ""},
		{"< alice @ corp . example >", Mailbox{"alice", "corp.example"}, "", ""},
		{"alice@corp.example", Mailbox{"alice", "corp.example"}, "", ""},
		{"alice@corp.example>", Mailbox{"alice", "corp.example"}, "", ""},
		{"<alice%corp.example@mx>", Mailbox{"alice%corp.example", "mx"}, "", ""},
		{"<corp.example!alice@mx>", Mailbox{"corp.example!alice", "mx"}, "", ""},
		{"<alice@corp.example@mx>", Mailbox{"alice@corp.example", "mx"}, "", `"alice@corp.example"@mx`},
		{"<alice@[192.0.2.1]>", Mailbox{"alice", "[192.0.2.1]"}, "", ""},
		{"<alice@[IPv6:2001:db8::1]>", Mailbox{"alice", "[IPv6:2001:db8::1]"}, "", ""},
		{`<"x> NOTIFY=NEVER"@corp.example>`, Mailbox{"x> NOTIFY=NEVER", "corp.example"}, "", `"x> NOTIFY=NEVER"@corp.example`},
		{`<"a\"b\\c"@d.example>`, Mailbox{`a"b\c`, "d.example"}, "", `"a\"b\\c"@d.example`},
		{`<"a b".c@d.example>`, Mailbox{"a b.c", "d.example"}, "", `"a b.c"@d.example`},
		{"<a..b@d.example>", Mailbox{"a..b", "d.example"}, "", `"a..b"@d.example`},
		{"<jürgen@bücher.example>", Mailbox{"jürgen", "bücher.example"}, "", ""},
		{"<a@host_1.example>", Mailbox{"a", "host_1.example"}, "", ""},
		{"<a:b@d.example>", Mailbox{"a:b", "d.example"}, "", `"a:b"@d.example`},
		{"<@r.example:a:b@d.example>", Mailbox{"a:b", "d.example"}, "", `"a:b"@d.example`},
		{"<a@d.example(comment>", Mailbox{"a", "d.example"}, "", ""},
		{"<a@1.2.3.4x>", Mailbox{"a", "1.2.3.4x"}, "", ""},
		{"<a@192.0.2.1.>", Mailbox{"a", "192.0.2.1"}, "", ""},
		{"<-alice@corp.example>", Mailbox{"-alice", "corp.example"}, "", ""},
	}
	for _, tt := range tests {
		got, params, err := ParseForwardPath(tt.arg)
		if err != nil {
			t.Errorf("%s: %v", tt.arg, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got.Mailbox); diff != "" || params != tt.params {
			t.Errorf("%s: params %q, %s", tt.arg, params, diff)
		}
		spell := tt.spell
		if spell == "" {
			spell = tt.want.Local + "@" + tt.want.Domain
		}
		if got.String() != spell {
			t.Errorf("%s: spelt %s, want %s", tt.arg, got, spell)
		}
	}
}

func TestParsePathRefuses(t *testing.T) {
	for _, arg := range []string{
		"", " ", "<alice@corp.example", "<alice,bob@corp.example>", "<alice;bob@corp.example>", "<alice@corp.example,x>", "<alice bob@corp.example>",
		`<"alice@corp.example>`, "<alice@[192.0.2.1]x>", "<alice@x[192.0.2.1]>", "<al\xffice@corp.example>", `<alice\`, `<"a"b@corp.example>`,
		`<al"ice"@corp.example>`, `<"a""b"@corp.example>`, `<alice@corp.example>"x"`, `<alice@"corp example">`, `<alice@"corp.example>x"@>x>`,
		"<alice@a(b)c>", "<alice@\x01.example>",
	} {
		if got, _, err := ParseForwardPath(arg); err == nil {
			t.Errorf("%q: accepted as %+v", arg, got)
		}
		if got, _, err := ParseReversePath(arg); err == nil {
			t.Errorf("%q: accepted as reverse-path %+v", arg, got)
		}
	}
	if got, _, err := ParseForwardPath("<>"); err == nil {
		t.Errorf("null forward-path accepted as %+v", got)
	}
}

// TestParseOdd has the forms that only a policy can refuse.
func TestParseOdd(t *testing.T) {
	for arg, want := range map[string]Mailbox{
		"alice@": {"alice@", ""}, "<@>": {"@", ""}, "<@corp.example>": {"", "corp.example"}, `<""@corp.example>`: {"", "corp.example"},
		"<%@corp.example>": {"%", "corp.example"}, "<alice@corp..example>": {"alice", "corp..example"}, "<alice@192.0.2>": {"alice", "192.0.2"},
		"<alice@[192.0.2.1>": {"alice", "[192.0.2.1]"}, "<alice@[junk]>": {"alice", "[junk]"}, "<[192.0.2.1]>": {"[192.0.2.1]", ""},
		"<<alice@corp.example>>": {"alice", "corp.example"}, "<alice@corp.example;>": {"alice", "corp.example"}, "<a@x:b@corp.example>": {"a@x:b", "corp.example"},
		`<"alice@corp.example">`: {"alice", "corp.example"}, `<alice@"corp.example">`: {"alice", "corp.example"}, "< @x:a@b.example>": {"@x:a", "b.example"},
		"<a@b.example@>": {"a@b.example@", ""}, "<alice\x01@corp.example>": {"alice\x01", "corp.example"}, "<alice\x7f@corp.example>": {"alice\x7f", "corp.example"},
		"<" + strings.Repeat("(", 20) + strings.Repeat(")", 20) + "a@b.example>": {"a", "b.example"},
		"<" + strings.Repeat("a", 300) + "@corp.example>":                        {strings.Repeat("a", 300), "corp.example"},
	} {
		got, _, err := ParseForwardPath(arg)
		if err != nil || got.Mailbox != want {
			t.Errorf("%q: got %+v, %v", arg, got.Mailbox, err)
		}
		if again, _, err := ParseForwardPath("<" + got.String() + ">"); err != nil || again.Mailbox != want {
			t.Errorf("%q: spelt %q, which reads as %+v, %v", arg, got.String(), again.Mailbox, err)
		}
		if got.Hostile() != strings.ContainsAny(arg, "\x01\x7f") {
			t.Errorf("%q: hostile %v", arg, got.Hostile())
		}
	}
}

func TestLax(t *testing.T) {
	for arg, want := range map[string]bool{
		"<a@b.example>": false, `<"(a"@b.example>`: false, "<>": false, "a@b.example": true, "<a(c)@b.example>": true, "<@b.example>": true,
		"<>x:@b.example>": true, "< a @ b . example >": false, "<Joe <a@b.example>>": true,
	} {
		if Lax(arg) != want {
			t.Errorf("%s: %v", arg, !want)
		}
	}
}

func TestParseReversePathNull(t *testing.T) {
	for _, arg := range []string{"<>", " <> SIZE=1", "< >", "<@a.example:>"} {
		p, _, err := ParseReversePath(arg)
		if err != nil || !p.Null() {
			t.Errorf("%q: %+v, %v; want the null path", arg, p, err)
		}
	}
}

func TestParseMailbox(t *testing.T) {
	m, err := ParseMailbox("alice@corp.example")
	if err != nil || m != (Mailbox{"alice", "corp.example"}) {
		t.Errorf("got %+v, %v", m, err)
	}
	for _, s := range []string{"", "alice", "<alice@corp.example>", "@corp.example", "alice@", "a@b.example c", "a@b.example\n"} {
		if m, err := ParseMailbox(s); err == nil {
			t.Errorf("%q: accepted as %+v", s, m)
		}
	}
}

// FuzzParsePath holds the promises that the commands we send onward hang on:
// a path's spelling reads back as the same mailbox, and it can't end a
// command or start a parameter.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"<a@b.example> SIZE=1", `<"a b"@c.example>`, "<@x:a@b.example>", `<a\@b@c.example>`, "<a@[1.2.3.4]>",
		`"a"@b.example`, "<a(c)@b.example>", `<"a\"b"@c.example>`, "<>", "<ü@ü.example>", "a@b@c", `<"">`,
		"a@b.example.",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		p, _, err := ParseReversePath(arg)
		if err != nil || p.Null() {
			return
		}
		s := p.String()
		for i := range len(s) {
			if s[i] == '\r' || s[i] == '\n' {
				t.Fatalf("%q: spelt with a line end: %q", arg, s)
			}
		}
		again, params, err := ParseReversePath("<" + s + ">")
		p.Dot = false // it is not spelt
		if err != nil || again != p || params != "" {
			t.Fatalf("%q: spelt %q, which reads as %+v, %q, %v", arg, s, again, params, err)
		}
	})
}
