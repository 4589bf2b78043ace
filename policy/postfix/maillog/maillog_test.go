package maillog

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

var names = Names{SMTPD: "postfix", Postscreen: "postfix"}

func (e Event) String() string {
	kinds := [...]string{"none", "connected", "refused", "client", "sender", "recipient", "removed", "stale"}
	s := kinds[e.Kind]
	if e.Queue != "" {
		s += " " + e.Queue
	}
	if e.Client.Addr.IsValid() {
		s += fmt.Sprintf(" %s[%s]", e.Client.Name, e.Client.Addr)
	}
	if e.Kind == Refused {
		s += fmt.Sprintf(" at %s: %s, helo %s", e.At, e.Reply, e.Client.Helo)
	}
	if !e.From.Null() {
		s += " from " + e.From.String()
	}
	if e.HasTo {
		s += " to " + e.To.String()
	}
	for word, is := range map[string]bool{" submitted": e.Submitted, " screened": e.Screened} {
		if is {
			s += word
		}
	}
	return s + e.Text
}

// TestPostfix reads the log of a real Postfix 3.7.11: sessions by XCLIENT, quoted
// addresses, delayed refusals and such that aren't, all stages, postscreen by PROXY,
// ports in client names, names of 255 octets.
func TestPostfix(t *testing.T) {
	f, err := os.Open("testdata/postfix-3.7.11.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got []string
	connected := 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		program, message, ok := Line(sc.Text())
		if !ok {
			t.Errorf("no line: %s", sc.Text())
		}
		switch e, err := names.Read(program, message); {
		case err != nil:
			t.Errorf("%v: %s", err, sc.Text())
		case e.Kind == Connected:
			connected++
		case e.Kind != None:
			got = append(got, e.String())
		}
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("testdata/postfix-3.7.11.events", []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/postfix-3.7.11.events")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(strings.TrimSpace(string(want)), "\n"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if connected != 21 {
		t.Errorf("%d sessions", connected)
	}
}

// TestRead: lines that a sender made up count once or not at all.
func TestRead(t *testing.T) {
	const head, tail = `NOQUEUE: reject: RCPT from h.example[192.0.2.1]: 550 5.1.1 `, `from=<a@x.example> to=<b@y.example> proto=ESMTP helo=<h>`
	for _, tt := range []struct{ name, program, message, want string }{
		{"plain", "postfix/smtpd", head + "no; " + tail, "refused h.example[192.0.2.1] at rcpt: 550 5.1.1 no, helo h from a@x.example to b@y.example"},
		{"another service", "postfix/submission/smtpd", head + "no; " + tail, "none"},
		{"another instance", "postfix-out/smtpd", head + "no; " + tail, "none"},
		{"two ways", "postfix/smtpd", head + "no; " + strings.Replace(tail, "b@y", `"; from=<c@z.example> to=<d@z.example> proto=ESMTP helo=<"@y`, 1), "refused h.example[192.0.2.1] at rcpt: 550 5.1.1 no, helo h from a@x.example to \"; from=<c@z.example> to=<d@z.example> proto=ESMTP helo=<\"@y.example"},
		{"cut off", "postfix/smtpd", head + "no; from=<a@x.example> to=<b@y.exam", "error"},
		{"no client", "postfix/smtpd", "NOQUEUE: reject: RCPT from nobody: 550 no; " + tail, "error"},
		{"a bad address", "postfix/smtpd", strings.Replace(head, "192.0.2.1", "192.0.2.1 ", 1) + "no; " + tail, "error"},
		{"no code", "postfix/smtpd", strings.Replace(head, "550 5.1.1 ", "", 1) + "no; " + tail, "error"},
		{"250", "postfix/smtpd", strings.Replace(head, "550", "250", 1) + "no; " + tail, "error"},
		{"a path of an address literal", "postfix/smtpd", head + "no; " + strings.Replace(tail, "b@y.example", "b@[192.0.2.1]", 1), "refused h.example[192.0.2.1] at rcpt: 550 5.1.1 no, helo h from a@x.example to b@[192.0.2.1]"},
		{"a warning", "postfix/smtpd", strings.Replace(head, "reject:", "reject_warning:", 1) + "no; " + tail, "none"},
		{"a milter", "postfix/smtpd", strings.Replace(head, "reject:", "milter-reject:", 1) + "no; " + tail, "refused h.example[192.0.2.1] at rcpt: 550 5.1.1 no, helo h from a@x.example to b@y.example"},
		{"VRFY", "postfix/smtpd", strings.Replace(head, "RCPT", "VRFY", 1) + "no; " + tail, "none"},
		{"logged in", "postfix/smtpd", "ABCDEF12: client=h.example[192.0.2.1], sasl_method=PLAIN, sasl_username=a", "client ABCDEF12 h.example[192.0.2.1] submitted"},
		{"passed on", "postfix/smtpd", "ABCDEF12: client=localhost[127.0.0.1], orig_queue_id=1, orig_client=h[192.0.2.1]", "client ABCDEF12 localhost[127.0.0.1] submitted"},
		{"a long ID", "postfix/smtpd", "4Xb1Yz0rWxz1z: client=unknown[2001:db8::1]", "client 4Xb1Yz0rWxz1z [2001:db8::1]"},
		{"a stale table", "postfix/smtpd", "warning: database /etc/postfix/users.db is older than source file /etc/postfix/users", "stale/etc/postfix/users.db is older than /etc/postfix/users"},
		{"a probe", "postfix/smtp", "ABCDEF12: to=<b@y.example>, relay=y.example[192.0.2.9]:25, delay=1, delays=0/0/1/0, dsn=2.1.5, status=deliverable (250 2.1.5 Ok)", "recipient ABCDEF12 to b@y.example"},
		{"an odd recipient", "postfix/virtual", `ABCDEF12: to=<"x>, orig_to=<z@z.example>, relay="@y.example>, orig_to=<b@y.example>, relay=virtual, delay=1`, "recipient ABCDEF12 to b@y.example"},
		{"a sender from below", "postfix/qmgr", `ABCDEF12: from=<">, size=1"@x.example>, size=2, nrcpt=1 (queue active)`, "sender ABCDEF12 from \">, size=1\"@x.example"},
		{"expired", "postfix/qmgr", "ABCDEF12: from=<a@x.example>, status=expired, returned to sender", "none"},
		{"empty", "postfix/smtpd", "", "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := names.Read(tt.program, tt.message)
			got := e.String()
			if err != nil {
				got = "error"
			}
			if got != tt.want {
				t.Errorf("%s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

// TestLine: where the program and the message are.
func TestLine(t *testing.T) {
	for line, want := range map[string]string{
		"Nov 29 14:59:46 primary postfix/smtpd[18183]: connect from x[192.0.2.1]": "postfix/smtpd|connect from x[192.0.2.1]",
		"Nov  9 14:59:46 primary postfix/smtpd[1]: a: b":                          "postfix/smtpd|a: b",
		"2026-11-29T14:59:46.123456+00:00 primary postfix/smtpd[18183]: connect":  "postfix/smtpd|connect",
		"Nov 29 14:59:46 primary postfix/smtpd: no pid":                           "",
		"Nov 29 14:59:46 primary postfix/smtpd[x]: no number":                     "",
		"Nov 29": "", "": "", "2026": "", "Nov 29 14:59:46 primary postfix/smtpd[1]:": "",
	} {
		program, message, ok := Line(line)
		got := program + "|" + message
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	for entry, want := range map[string]string{
		`{"SYSLOG_IDENTIFIER":"postfix/smtpd","MESSAGE":"connect","_PID":"1"}`: "postfix/smtpd|connect",
		`{"SYSLOG_IDENTIFIER":"postfix/smtpd","MESSAGE":[98,255,228]}`:         "postfix/smtpd|b\xff\xe4",
		`{"SYSLOG_IDENTIFIER":"postfix/smtpd","MESSAGE":null}`:                 "",
		`{"SYSLOG_IDENTIFIER":"postfix/smtpd"}`:                                "",
		`{"MESSAGE":"connect"}`:                                                "", `{`: "", `[]`: "",
	} {
		program, message, ok := Journal([]byte(entry))
		got := program + "|" + message
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%s: %q, want %q", entry, got, want)
		}
	}
}

// FuzzRead: nothing that a line holds breaks the reader, and what it read is whole.
func FuzzRead(f *testing.F) {
	b, err := os.ReadFile("testdata/postfix-3.7.11.log")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f.Add(strings.TrimSuffix(line, "\n"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		program, message, ok := Line(line)
		if !ok {
			return
		}
		e, err := names.Read(program, message)
		if err != nil {
			return
		}
		if e.Kind == Refused && (e.Reply.Code < 400 || !e.Client.Addr.IsValid()) || e.Kind == Client && !e.Client.Addr.IsValid() {
			t.Errorf("%+v", e)
		}
		if e.Kind == Recipient || e.Kind == Refused && e.HasTo {
			if _, _, err := envelope.ParseForwardPath("<" + e.To.String() + ">"); err != nil && utf8.ValidString(line) {
				t.Errorf("%q is no path: %v", e.To.String(), err)
			}
		}
	})
}
