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
		"", " ", "alice@", "<alice@>", "<@corp.example>", "<alice@corp.example", "<alice@corp.example>x",
		"<alice@192.0.2.1.1>", "<alice@192.0.2>", "<alice@2130706433>", "<alice,bob@corp.example>",
		"<alice;bob@corp.example>", "<alice@corp.example,x>", "<alice bob@corp.example>", `<"alice@corp.example>`,
		`<""@corp.example>`, "<alice@corp..example>", "<alice@-corp.example>", "<alice@corp-.example>",
		"<alice@.corp.example>", "<alice@[192.0.2.1>", "<alice@[192.0.2.1]x>", "<alice@[2001:db8::1]>",
		"<alice@[IPv6:192.0.2.1]>", "<alice@[IPv6:fe80::1%eth0]>", "<alice@[junk]>", "<[192.0.2.1]>", "<alice@x[192.0.2.1]>",
		"<alice\x00@corp.example>", "<\"alice\x01\"@corp.example>", "<alice\r@corp.example>", "<alice\x7f@corp.example>",
		"<al\xffice@corp.example>", "<(alice@corp.example>", `<alice\`, `<alice@"corp.example">`, `<alice@\corp.example>`,
		"<" + strings.Repeat("a", 257) + "@corp.example>", "<a@" + strings.Repeat("a.", 128) + "example>",
		"<a@" + strings.Repeat("a", 64) + ".example>", "<" + strings.Repeat("(", 20) + strings.Repeat(")", 20) + "a@b.example>",
		"<a@x:b@corp.example>", `<"a"b@corp.example>`, `<"a""b"@corp.example>`, "<<alice@corp.example>>", `<alice@corp.example>"x"`,
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
			if isControl(s[i]) {
				t.Fatalf("%q: spelt with a control character: %q", arg, s)
			}
		}
		again, params, err := ParseReversePath("<" + s + ">")
		p.Dot = false // it is not spelt
		if err != nil || again != p || params != "" {
			t.Fatalf("%q: spelt %q, which reads as %+v, %q, %v", arg, s, again, params, err)
		}
	})
}
