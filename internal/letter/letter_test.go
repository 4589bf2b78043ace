package letter

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func shown(t testing.TB, message string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, strings.NewReader(strings.ReplaceAll(message, "\n", "\r\n"))); err != nil {
		t.Fatal(err)
	}
	if bad := strings.IndexFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); bad >= 0 {
		t.Errorf("octet %d is no text: %q", bad, out.String()[max(0, bad-20):bad+1])
	}
	return out.String()
}

func TestWrite(t *testing.T) {
	for name, tt := range map[string]struct{ message, want string }{
		"plain": {"From: bob@sender.example\nReceived: from x\nSubject: hi\n\nHello,\n\n-- \nBob\n", "From: bob@sender.example\nSubject: hi\n\nHello,\n\n-- \nBob\n"},
		"encoded": {"Subject: =?iso-8859-1?Q?F=FC=DFe?= =?utf-8?B?4oKs?=\nContent-Type: text/plain; charset=windows-1252\nContent-Transfer-Encoding: quoted-printable\n\nF=FC=DFe =\n=80\n",
			"Subject: Füße€\n\nFüße €\n"},
		"base64, folded": {"Subject: a\n b\nContent-Transfer-Encoding: BASE64\n\nSGVs\nbG8=\n", "Subject: a b\n\nHello\n"},
		"alternatives": {"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/alternative; boundary=i\n\n--i\n\nText\n--i\nContent-Type: text/html\n\n<script>alert(1)</script>\n--i--\n--o\n" +
			"Content-Type: application/pdf; name=x\nContent-Disposition: attachment; filename*=utf-8''in%1Bvoice.pdf\nContent-Transfer-Encoding: base64\n\nAAAA\n--o--\n",
			"\nText\n[attachment: text/html, 25 octets]\n[attachment: in\ufffdvoice.pdf, application/pdf, 3 octets]\n"},
		"HTML alone":     {"Content-Type: text/html\n\n<b>x</b>\n", "\n[attachment: text/html, 10 octets]\n[no text part]\n"},
		"controls":       {"Subject: \x1b]0;owned\a\n\n\x1b[2Jx\b\x00\tz\u202egnp.exe\u200b\u009b31m\n", "Subject: \ufffd]0;owned\ufffd\n\n\ufffd[2Jx\ufffd\ufffd    z\ufffdgnp.exe\ufffd\ufffd31m\n"},
		"encoded escape": {"Subject: =?utf-8?B?G1sySng=?=\n\nx\n", "Subject: \ufffd[2Jx\n\nx\n"},
		"unknown set":    {"Content-Type: text/plain; charset=x-klingon\n\nx\xff\n", "\n[unknown character set x-klingon]\nx\ufffd\n"},
		"no header":      {"\nbody\n", "\nbody\n"},
		"no message":     {"no header at all", "[the header can't be read]\n"},
		"broken parts":   {"Content-Type: multipart/mixed; boundary=o\n\n--o\n\nText", "\nText\n[the rest of this part is broken]\n[the rest of the message is broken]\n"},
	} {
		if got := shown(t, tt.message); got != tt.want {
			t.Errorf("%s: got\n%q, want\n%q", name, got, tt.want)
		}
	}
}

// TestBounds: neither depth nor number nor length of anything is the sender's choice.
func TestBounds(t *testing.T) {
	deep, end := "", ""
	for i := range 50 {
		b := strings.Repeat("b", i+1)
		deep += "Content-Type: multipart/mixed; boundary=" + b + "\n\n--" + b + "\n"
		end = "--" + b + "--\n" + end
	}
	for name, message := range map[string]string{
		"deep":           deep + "\nx\n" + end,
		"many parts":     "Content-Type: multipart/mixed; boundary=o\n\n" + strings.Repeat("--o\n\nx\n", 5000) + "--o--\n",
		"long text":      "\n" + strings.Repeat("x\n", 3<<20),
		"long line":      "\n" + strings.Repeat("x", 3<<20),
		"long subject":   "Subject: " + strings.Repeat("x", 100_000) + "\n\nx\n",
		"endless header": "Subject: x\n" + strings.Repeat("X: y\n", 1<<20) + "\nx\n",
	} {
		if got := shown(t, message); len(got) > maxText+10_000 {
			t.Errorf("%s: %d octets are shown", name, len(got))
		}
	}
	if got := shown(t, "\n"+strings.Repeat("x\n", 3<<20)); !strings.Contains(got, "[cut: more than 1048576 octets") {
		t.Error("a cut isn't told")
	}
}

func FuzzWrite(f *testing.F) {
	f.Add("Subject: =?utf-8?Q?=1b?=\nContent-Type: multipart/mixed; boundary=o\n\n--o\n\nx\n--o--\n")
	f.Fuzz(func(t *testing.T, message string) { shown(t, message) })
}
