package exim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

const headersConfig = `acl_smtp_rcpt = all
acl_smtp_data = check_data
smtp_return_error_details = %t
allow_domain_literals = %t
strip_trailing_dot = %t
strip_excess_angle_brackets = %t
sender_unqualified_hosts = %s
recipient_unqualified_hosts = %s
smtp_enforce_sync = false
smtp_accept_max_per_connection = 0
smtp_accept_max_nonmail = 0
begin acl
all:
  accept
check_data:
  deny   !verify = header_names_ascii
  deny   condition = ${if match{$h_subject:}{special}}
         !verify = header_syntax
         message = said: $acl_verify_message $h_subject:
  require verify = header_syntax
  accept
`

// TestHeaders: a real Exim and we judge the same header fields, in the same words. HEADERS
// sets how many each of four configurations gets.
func TestHeaders(t *testing.T) {
	n := 150
	if s := os.Getenv("HEADERS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for c, conf := range []string{
		fmt.Sprintf(headersConfig, true, false, false, false, ":", ":"),
		fmt.Sprintf(headersConfig, true, true, true, true, "192.0.2.1", ":"),
		fmt.Sprintf(headersConfig, true, true, false, true, ":", "192.0.2.1"),
		fmt.Sprintf(headersConfig, false, false, true, false, ":", ":"),
	} {
		t.Run(strconv.Itoa(c), func(t *testing.T) { sameHeaders(t, conf, n, uint64(c)) })
	}
}

func sameHeaders(t *testing.T, conf string, n int, seed uint64) {
	spec, _, file, err := importText(t, conf)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(16, seed))
	var headers []string
	for range n {
		headers = append(headers, aHeader(r))
	}
	want := eximSays(t, file, headers)
	se := snap.Session(nil, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	defer se.Close()
	different, refused := 0, 0
	for i, h := range headers {
		got := weSay(t, se, h)
		if want[i] != got {
			if different++; different <= 20 {
				t.Errorf("%q:\nExim %q\nwe   %q", h, want[i], got)
			}
		}
		if got != "250" {
			refused++
		}
	}
	t.Logf("%d of %d refused, %d different", refused, n, different)
	if refused < n/5 || refused > n*9/10 {
		t.Errorf("%d of %d are refused: the headers don't tell much", refused, n)
	}
}

// aHeader makes a header of the pieces that addresses are made of.
func aHeader(r *rand.Rand) string {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	space := func() string { return pick("", "", "", " ", "  ", "\t", "\r\n ", " (c)", "(a(b)c)", "(\\))", "(") }
	word := func() string {
		return pick("bob", "Bob", "a.b", "a..b", ".a", "a.", `"q q"`, `"q\"q"`, `"open`, "x y", "J. Smith", `a\@b`, "b\xc3\xbcch", "=?utf-8?q?B?=", "a_b", "a:b", "a;b", "@", "<", ">", ",", "[x]", "", "a\x7f")
	}
	plain := func() string { return pick("bob", "alice", "John Doe", `"J, D"`, "J. D.", "") }
	domain := func() string {
		if r.IntN(3) > 0 {
			return pick("example.org", "mail.example.com", "x")
		}
		return pick("example.org.", "a..b", ".a", "-a.example", "a_b.example", "a-.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[any thing]", "[x@y]", "[1.2.3", "b\xc3\xbc.example", "", "a b", "a (c) . b", strings.Repeat("long.", 60)+"example")
	}
	address := func() string {
		switch r.IntN(12) {
		case 0:
			return word() + "@" + domain()
		case 1:
			return plain()
		case 2:
			return word()
		case 3:
			return plain() + space() + "<" + space() + word() + space() + "@" + domain() + space() + ">" + space()
		case 4:
			return word() + space() + pick("<", "<<", "< <") + "bob@" + domain() + pick(">", ">>", "", "> x", ">;", "> >")
		case 5:
			return pick("", "<", "x <") + "@" + domain() + pick(":", ",@b.example:", "", " :") + "bob" + pick("@"+domain(), "") + pick("", ">")
		case 6:
			return pick("<>", "x <>", "undisclosed-recipients:;", "<bob>", "x <bob>", ";", ":", "a:;b", "bob@example.org@example.com")
		case 7:
			return word() + space() + word() + " <bob@example.org>"
		case 8:
			return space() + word() + space() + "." + space() + word() + "@" + domain()
		}
		return plain() + pick("<", " <") + "bob@" + domain() + ">" + space()
	}
	list := func() string {
		var b strings.Builder
		group := r.IntN(5) == 0
		if group {
			b.WriteString(pick("Friends", `"my, group"`, "a b", word(), "") + pick(":", " :", ":", "::"))
		}
		for n := r.IntN(4); n >= 0; n-- {
			b.WriteString(space() + address())
			if n > 0 {
				b.WriteString(pick(",", ",", ", ", ",,", ",\r\n\t", ";"))
			}
		}
		if group {
			b.WriteString(pick(";", ";", " ;", "; ", "", ";x", ";, bob@example.org", "; G2: a@b;"))
		}
		return b.String()
	}
	name := func() string {
		return pick("From", "To", "Cc", "Bcc", "Reply-To", "Sender", "Resent-To", "Resent-From", "resent-sender", "Resent-Reply-To", "TO", "X-To", "To ", "Resent-Cc")
	}
	var b strings.Builder
	if r.IntN(4) == 0 {
		b.WriteString("Subject: a special one\r\n")
	}
	if r.IntN(30) == 0 {
		b.WriteString(pick("Odd Name: x\r\n", "X\xe4: x\r\n", ": x\r\n", "X\r\n", "X-Y : x\r\n", "\tx: y\r\n"))
	}
	for range 1 + r.IntN(2) {
		value := list()
		if r.IntN(200) == 0 {
			value += strings.Repeat("x", 1200) + "@@"
		}
		b.WriteString(name() + pick(":", ": ", ":\r\n ") + value + pick("", "", "", " ", "\r\n \r\n\t") + "\r\n")
	}
	return b.String()
}

var replyLine = regexp.MustCompile(`(?m)^(\d\d\d)([ -])(.*)\r$`)

// eximSays plays a message with each header to "exim -bh", and returns the replies to
// their ends: the class, or a refusal in full.
func eximSays(t *testing.T, file string, headers []string) []string {
	t.Helper()
	var in bytes.Buffer
	in.WriteString("HELO h.example\r\n")
	for _, h := range headers {
		fmt.Fprintf(&in, "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n%s\r\n.\r\n", h)
	}
	in.WriteString("QUIT\r\n")
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(file), "exim"), "-C", file, "-bh", "192.0.2.1")
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("exim -bh: %v\n%.2000s", err, out)
	}
	replies := replies(string(out))
	if len(replies) != 3+4*len(headers) { // greeting, HELO, QUIT
		t.Fatalf("%d replies to %d messages: %.1000q", len(replies), len(headers), replies[max(0, len(replies)-8):])
	}
	var ends []string
	for i := range headers {
		ends = append(ends, replies[2+4*i+3])
	}
	return ends
}

// replies are those of a session, judged.
func replies(out string) (all []string) {
	text := ""
	for _, m := range replyLine.FindAllStringSubmatch(out, -1) {
		text += m[3] + " "
		if m[2] == " " {
			all = append(all, judged(m[1], text))
			text = ""
		}
	}
	return all
}

func judged(code, text string) string {
	if code == "250" {
		return code
	}
	text = strings.Map(func(r rune) rune { // our replies are in ASCII, and lines end after 400 octets
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	return code + " " + text[:min(len(text), 300)]
}

// weSay plays a message to our engine.
func weSay(t *testing.T, se *policy.Session, header string) string {
	t.Helper()
	ctx := t.Context()
	se.Mail(ctx, envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "b.example"}}, policy.MailParams{})
	se.Rcpt(ctx, envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "c", Domain: "d.example"}})
	if v := se.Data(ctx); v.Action != policy.Permit {
		t.Fatalf("DATA: %+v", v)
	}
	if _, err := se.Content().Write([]byte(header + "\r\n")); err != nil {
		t.Fatal(err)
	}
	v := se.Message(ctx, policy.Message{Size: int64(len(header))})
	se.Reset()
	if v.Action == policy.Permit {
		return "250"
	}
	return judged(strconv.Itoa(v.Reply.Code), v.Reply.Text)
}
