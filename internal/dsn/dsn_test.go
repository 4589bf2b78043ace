package dsn

import (
	"bufio"
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func mailbox(address string) envelope.Mailbox {
	at := strings.LastIndexByte(address, '@')
	return envelope.Mailbox{Local: address[:at], Domain: address[at+1:]}
}

func to(address, notify, orcpt string) envelope.Recipient {
	return envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(address)}, Notify: notify, ORcpt: orcpt}
}

func report(from string) *Report {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	return &Report{Hostname: "mx2.example.net", ID: "1m84jpnqcczaqjsv", Now: at.Add(time.Hour),
		Envelope:   &envelope.Envelope{From: envelope.ReversePath{Mailbox: mailbox(from)}, Received: at, EnvID: "QQ314159"},
		Recipients: []Recipient{{Recipient: to("bob@example.com", "", ""), Reply: envelope.NewReply(550, "5.1.1", "no such user"), Last: at.Add(time.Minute)}}}
}

const message = "Received: from a\r\n\tby b\r\nSubject: it\r\nX-Long: " + "word word word word" + "\r\n\r\nthe body\r\n"

func written(t *testing.T, r *Report, original string) string {
	t.Helper()
	if r.Size == 0 {
		r.Size = int64(len(original))
	}
	var b bytes.Buffer
	eightBit, err := r.WriteTo(&b, strings.NewReader(original))
	if err != nil {
		t.Fatal(err)
	}
	if eightBit != strings.Contains(b.String(), "\r\nContent-Transfer-Encoding: 8bit\r\n") || !eightBit && !isASCII(b.String()) {
		t.Errorf("eightBit is %v of:\n%s", eightBit, &b)
	}
	if strings.Count(b.String(), "\n") != strings.Count(b.String(), "\r\n") || strings.Count(b.String(), "\r") != strings.Count(b.String(), "\r\n") {
		t.Errorf("bare line ends: %q", &b)
	}
	for line := range strings.SplitSeq(b.String(), "\r\n") {
		if len(line) > 998 {
			t.Errorf("a line of %d octets", len(line))
		}
	}
	return b.String()
}

// parts takes a DSN apart with Go's own parsers.
func parts(t *testing.T, text string) (header mail.Header, parts []string, kinds []string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("%q %v %v", kind, params, err)
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return m.Header, parts, kinds
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		parts, kinds = append(parts, string(b)), append(kinds, kind)
	}
}

// groups are the fields of a delivery-status part.
func groups(t *testing.T, text string) (all []map[string]string) {
	t.Helper()
	for g := range strings.SplitSeq(strings.TrimRight(text, "\r\n")+"\r\n", "\r\n\r\n") {
		h, err := textproto.NewReader(newReader(g + "\r\n\r\n")).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("%v in %q", err, g)
		}
		fields := map[string]string{}
		for k, v := range h {
			if len(v) != 1 {
				t.Errorf("%s is there %d times", k, len(v))
			}
			fields[k] = v[0]
		}
		all = append(all, fields)
	}
	return all
}

func TestReport(t *testing.T) {
	r := report("alice@example.org")
	r.Recipients = append(r.Recipients,
		Recipient{Recipient: to("carol@example.com", "FAILURE", "rfc822;Carol+2BX@Example.com"), Reply: envelope.NewReply(452, "4.2.2", "full\nquite full"), Expired: true},
		Recipient{Recipient: to(`d e@example.com`, "", "")})
	header, all, kinds := parts(t, written(t, r, message))
	for name, want := range map[string]string{"From": "Mail Delivery System <MAILER-DAEMON@mx2.example.net>", "To": "<alice@example.org>", "Auto-Submitted": "auto-replied",
		"Message-Id": "<1m84jpnqcczaqjsv@mx2.example.net>", "Date": "Sun, 29 Nov 2026 13:00:00 +0000", "Mime-Version": "1.0"} {
		if got := header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if diff := cmp.Diff([]string{"text/plain", "message/delivery-status", "text/rfc822-headers"}, kinds); diff != "" {
		t.Error(diff)
	}
	want := []map[string]string{
		{"Reporting-Mta": "dns; mx2.example.net", "Original-Envelope-Id": "QQ314159", "Arrival-Date": "Sun, 29 Nov 2026 12:00:00 +0000"},
		{"Final-Recipient": "rfc822; bob@example.com", "Action": "failed", "Status": "5.1.1", "Diagnostic-Code": "smtp; 550 5.1.1 no such user", "Last-Attempt-Date": "Sun, 29 Nov 2026 12:01:00 +0000"},
		{"Original-Recipient": "rfc822; Carol+X@Example.com", "Final-Recipient": "rfc822; carol@example.com", "Action": "failed", "Status": "4.2.2", "Diagnostic-Code": "smtp; 452 4.2.2 full / quite full"},
		{"Final-Recipient": `rfc822; "d e"@example.com`, "Action": "failed", "Status": "5.0.0"},
	}
	if diff := cmp.Diff(want, groups(t, all[1])); diff != "" {
		t.Error(diff)
	}
	if all[2] != strings.TrimSuffix(message, "\r\nthe body\r\n") {
		t.Errorf("header: %q", all[2])
	}
	for _, want := range []string{"<bob@example.com>", "550 5.1.1 no such user", "put it off until it was too old"} {
		if !strings.Contains(all[0], want) {
			t.Errorf("the text lacks %q: %s", want, all[0])
		}
	}
}

// TestHowMuch: the whole message goes back only where the sender asked for that, and
// where it isn't too large.
func TestHowMuch(t *testing.T) {
	long := message + strings.Repeat("x\r\n", maxFull/3)
	manyFields := strings.Repeat("X-Field: "+strings.Repeat("y", 60)+"\r\n", 3000) + "\r\nbody\r\n"
	for _, tt := range []struct {
		name, ret, message, kind, want string
	}{
		{"no RET", "", message, "text/rfc822-headers", strings.TrimSuffix(message, "\r\nthe body\r\n")},
		{"HDRS", "HDRS", message, "text/rfc822-headers", strings.TrimSuffix(message, "\r\nthe body\r\n")},
		{"FULL", "FULL", message, "message/rfc822", message},
		{"too large", "FULL", long, "text/rfc822-headers", strings.TrimSuffix(message, "\r\nthe body\r\n")},
		{"a long header", "HDRS", manyFields, "text/rfc822-headers", strings.Repeat("X-Field: "+strings.Repeat("y", 60)+"\r\n", maxHeader/71)},
		{"no body", "HDRS", "Subject: it\r\n", "text/rfc822-headers", "Subject: it\r\n"},
		{"no header", "FULL", "\r\nbody", "message/rfc822", "\r\nbody"},
		{"empty", "HDRS", "", "text/rfc822-headers", "\r\n"},
		{"8 bit", "HDRS", "Subject: \xe9\r\n\r\nbody", "text/rfc822-headers", "Subject: \xe9\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := report("alice@example.org")
			r.Envelope.Ret = tt.ret
			_, all, kinds := parts(t, written(t, r, tt.message))
			if kinds[2] != tt.kind || all[2] != tt.want {
				t.Errorf("%s, %d octets; want %s, %d: %.200q", kinds[2], len(all[2]), tt.kind, len(tt.want), all[2])
			}
		})
	}
}

func TestUTF8(t *testing.T) {
	r := report("δοκιμή@παράδειγμα.example")
	r.Envelope.UTF8, r.Envelope.Ret = true, "FULL"
	r.Recipients[0] = Recipient{Recipient: to("用户@例子.example", "", "utf-8;x\\x{7528}@y.example"), Reply: envelope.NewReply(550, "5.1.1", "no \u202e\u0085 user")}
	text := written(t, r, "Subject: ä\r\n\r\nbody\r\n")
	_, all, kinds := parts(t, text)
	if diff := cmp.Diff([]string{"text/plain", "message/global-delivery-status", "message/global"}, kinds); diff != "" {
		t.Error(diff)
	}
	if got := groups(t, all[1])[1]; got["Final-Recipient"] != "utf-8; 用户@例子.example" || got["Original-Recipient"] != `utf-8; x\x{7528}@y.example` {
		t.Errorf("%v", got)
	}
	if !strings.Contains(text, "To: <δοκιμή@παράδειγμα.example>\r\n") {
		t.Error(text)
	}
	r.Envelope.Ret = "HDRS"
	if _, _, kinds := parts(t, written(t, r, "Subject: ä\r\n\r\nbody\r\n")); kinds[2] != "message/global-headers" {
		t.Errorf("%q", kinds)
	}
}

func TestWanted(t *testing.T) {
	for notify, want := range map[string]bool{"": true, "NEVER": false, "FAILURE": true, "success,failure": true, "DELAY": false, "SUCCESS,DELAY": false, "DELAY,FAILURE,SUCCESS": true} {
		if Wanted(notify) != want {
			t.Errorf("%q: %v", notify, !want)
		}
	}
}

// TestHostile: nothing that a peer wrote makes a line of its own.
func TestHostile(t *testing.T) {
	r := report("alice@example.org")
	r.Envelope.EnvID = "a+0D+0ATo:+20<b@example.org>"
	evil := "x\r\n\r\n--=_\r\nTo: <b@example.org>\x00\x1b[2J\u0085\xff" + strings.Repeat("y", 5000)
	r.Envelope.From.Local = evil
	for _, orcpt := range []string{"rfc822;a+0D+0ABcc:+20b@example.org", "rfc822;a+0", "rfc822;a+zz", "rf c;x", ";x", "rfc822", "x\r\nBcc: y;z", "rfc822;+E2+80+AE", "rfc822;" + strings.Repeat("a", 5000)} {
		r.Recipients = append(r.Recipients, Recipient{Recipient: to("b@example.com", "", orcpt), Reply: envelope.Reply{Code: 550, Enhanced: "5.1.1\r\nBcc: x", Text: evil}})
	}
	r.Recipients = append(r.Recipients, Recipient{Recipient: envelope.Recipient{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: evil, Domain: evil}}}})
	for range 2 {
		header, all, _ := parts(t, written(t, r, message))
		if len(all) != 3 || len(header["To"]) != 1 || header.Get("Bcc") != "" {
			t.Errorf("%d parts, %v", len(all), header)
		}
		g := groups(t, all[1])
		if len(g) != 1+len(r.Recipients) || g[0]["Original-Envelope-Id"] != "" {
			t.Errorf("%d groups, %v", len(g), g[0])
		}
		for _, fields := range g {
			if fields["Bcc"] != "" || fields["To"] != "" || fields["Original-Recipient"] != "" {
				t.Errorf("%v", fields)
			}
		}
		r.Envelope.UTF8 = true
	}
}

// TestManyRecipients: people are told of some, programs of all.
func TestManyRecipients(t *testing.T) {
	r := report("alice@example.org")
	for range 999 {
		r.Recipients = append(r.Recipients, r.Recipients[0])
	}
	_, all, _ := parts(t, written(t, r, message))
	if n := len(groups(t, all[1])); n != 1001 || !strings.Contains(all[0], "and 950 more.") {
		t.Errorf("%d groups; %s", n, all[0][len(all[0])-100:])
	}
}

// python checks a DSN with another MIME implementation.
const python = `
import sys, email, email.policy
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default.clone(utf8=True))
assert m.get_content_type() == "multipart/report" and m.get_param("report-type") == "delivery-status"
found = []
def look(part):
    assert not part.defects, (part.get_content_type(), part.defects)
    for name, value in part.items():
        assert not getattr(value, "defects", ()) or name == "Subject", (name, value, value.defects)
    if part.get_content_type() in ("message/rfc822", "message/global", "text/rfc822-headers"):
        return
    if part.is_multipart():
        for p in part.iter_parts() if part.get_content_maintype() == "multipart" else part.get_payload():
            look(p)
look(m)
text, status, returned = m.iter_parts()
first, *rest = status.get_payload()
assert first["Reporting-MTA"] == "dns; mx2.example.net", first.items()
for r in rest:
    print(r["Action"], r["Status"], r["Final-Recipient"])
`

// TestPython: Python's email reads a DSN without a complaint.
func TestPython(t *testing.T) {
	r := report("alice@example.org")
	r.Envelope.Ret = "FULL"
	r.Recipients = append(r.Recipients, Recipient{Recipient: to("carol@example.com", "", "rfc822;c@example.com"), Expired: true,
		Reply: envelope.NewReply(451, "4.7.1", "%s", strings.Repeat("try again later, please ", 10))})
	for _, ret := range []string{"HDRS", "FULL"} {
		r.Envelope.Ret = ret
		cmd := exec.Command("python3", "-c", python)
		cmd.Stdin = strings.NewReader(written(t, r, message))
		out, err := cmd.CombinedOutput()
		if want := "failed 5.1.1 rfc822; bob@example.com\nfailed 4.7.1 rfc822; carol@example.com\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v %s", ret, err, out)
		}
	}
}

// FuzzReport: whatever is in the message and its envelope, the DSN has three
// parts and as many groups as recipients, or there is none.
func FuzzReport(f *testing.F) {
	f.Add("alice", "example.org", "QQ+2B1", "rfc822;b@example.com", "no such user", message, true)
	f.Add("a\r\nb", "x\r\ny", "+0D+0A", "utf-8;\xff", "\r\n.\r\n", "Content-Type: multipart/report\r\n\r\n", false)
	f.Fuzz(func(t *testing.T, local, domain, envid, orcpt, reply, original string, utf8 bool) {
		if strings.ContainsAny(strings.ReplaceAll(original, "\r\n", ""), "\r\n\x00") { // the door takes none
			return
		}
		r := report("alice@example.org")
		r.Envelope.From.Mailbox, r.Envelope.EnvID, r.Envelope.UTF8 = envelope.Mailbox{Local: local, Domain: domain}, envid, utf8
		r.Recipients = append(r.Recipients, Recipient{Recipient: envelope.Recipient{ORcpt: orcpt, Path: envelope.ForwardPath{Mailbox: r.Envelope.From.Mailbox}}, Reply: envelope.Reply{Code: 550, Text: reply, Enhanced: reply}})
		var b bytes.Buffer
		if _, err := r.WriteTo(&b, strings.NewReader(original)); err == ErrAutomatic {
			if b.Len() > 0 {
				t.Fatal("something was written")
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
		_, all, _ := parts(t, b.String())
		if len(all) != 3 || len(groups(t, all[1])) != 3 {
			t.Fatalf("%d parts of\n%q", len(all), b.String())
		}
	})
}

func newReader(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }
