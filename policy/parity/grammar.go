package parity

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// draw makes one session.
type draw struct {
	*rand.Rand
	m     *Material
	focus focus
}

// focus is what is out of the ordinary in a session. Half of them mix all; the
// others leave all but one thing as it should be, so that each rule is reached.
type focus int

const (
	mixed focus = iota
	onClient
	onHelo
	onSender
	onRecipient
)

// plain says that something is to be as it should.
func (d draw) plain(what focus) bool { return d.focus != mixed && d.focus != what }

func (m *Material) session(r *rand.Rand) Session {
	d := draw{Rand: r, m: m}
	if d.oneIn(2) {
		d.focus = focus(1 + d.IntN(4))
	}
	s := Session{Client: d.client(), Proxied: m.Proxied}
	add := func(line string) { s.Commands = append(s.Commands, Command{Line: line}) }
	if !d.oneIn(40) {
		add(d.helo())
	}
	for n := 1 + d.IntN(3); n > 0; n-- {
		if m.Data != "" && d.oneIn(m.every()) {
			s.Commands = append(s.Commands, d.transaction()...)
			continue
		}
		if !d.oneIn(40) {
			add(d.mail())
		}
		many := d.IntN(5)
		if m.Sober && d.oneIn(16) {
			many += 12
		}
		for range many {
			add(d.rcpt())
		}
		switch {
		case d.oneIn(12):
			add(d.helo())
		case d.m.Sober:
		case d.oneIn(40):
			add(d.pick([]string{"NOOP", "RSET now", "NOOP x", "DATA now", "FOO bar", "HELP", "HELP MAIL", "EXPN bob", "TURN", "XFORWARD NAME=x", "AUTH PLAIN", "QUERY x", "BDAT", "BDAT x LAST"}))
		case d.oneIn(20):
			add("VRFY " + strings.Trim(d.pick([]string{d.pick(d.m.Recipients), d.recipient(), "bob", "", "<>", "bob@" + d.often(d.m.Senders), d.pick(d.m.Strings)}), " "))
		case d.oneIn(100):
			add("ETRN " + d.pick([]string{d.pick(d.m.Domains), "far.example", "", "#x", "@" + d.pick(d.m.Domains), "-bad-", "[192.0.2.1]"}))
		}
		if n > 1 && !d.oneIn(20) {
			add("RSET")
		}
	}
	return s
}

// every is in how many transactions there is one with a message.
func (m *Material) every() int {
	if m.Sober {
		return 3
	}
	return 8
}

func (d draw) oneIn(n int) bool { return d.IntN(n) == 0 }

func (d draw) pick(list []string) string {
	if len(list) == 0 {
		return "x"
	}
	return list[d.IntN(len(list))]
}

// often is the first of the list half of the time.
func (d draw) often(list []string) string {
	if d.oneIn(2) && len(list) > 0 {
		return list[0]
	}
	return d.pick(list)
}

func (d draw) client() Client {
	if len(d.m.Clients) == 0 || d.plain(onClient) || d.focus == mixed && d.oneIn(2) {
		return d.m.plainClient()
	}
	return d.m.Clients[d.IntN(len(d.m.Clients))]
}

// oddHelos are names that servers judge by their form.
var oddHelos = []string{
	"localhost", "mail", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[2001:db8::1]", "[]", "[1.2.3.4", "[1.2.3]", "[mail.example.com]",
	"192.0.2.1", "2001:db8::1", "1.2.3", "-bad.example.com", "bad-.example.com", "bad_name.example.com", "bad..example.com", "example.com.", ".",
	".example.com", "two words", "<mail.example.com>", "mail.example.com;x", "b\xc3\xbccher.example", "xn--bcher-kva.example", "\xff.example",
	"127.0.0.1", "[127.0.0.1]", "x." + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + ".example.com", "1.2.3.4.example.com", "example.123", "a@b.example", "",
}

func (d draw) helo() string {
	verb := "EHLO "
	if d.oneIn(5) {
		verb = d.pick([]string{"HELO ", "HELO ", "ehlo ", "Helo "})
	}
	switch {
	case d.plain(onHelo):
		return "EHLO " + d.m.first(d.m.Helos)
	case d.oneIn(5):
		return verb + d.pick(oddHelos)
	case d.oneIn(20) && len(d.m.Strings) > 0:
		return verb + d.pick(d.m.Strings)
	case d.oneIn(12):
		return verb + d.pick(d.m.Senders)
	case d.oneIn(20):
		return verb + strings.ToUpper(d.pick(d.m.Helos))
	}
	return verb + d.often(d.m.Helos)
}

func (d draw) mail() string {
	verb := "MAIL FROM:"
	if d.plain(onSender) {
		return verb + "<bob@" + d.m.first(d.m.Senders) + ">"
	}
	if !d.m.Sober && d.oneIn(20) {
		verb = d.pick([]string{"mail from:", "MAIL FROM: ", "MAIL  FROM:", "MAIL TO:", "MAIL ", "Mail From:"})
	}
	return verb + d.sender() + d.mailParams()
}

func (d draw) sender() string {
	switch d.IntN(20) {
	case 0, 1:
		return "<>"
	case 2, 3, 4:
		return d.path(d.pick(d.m.Authors))
	case 5, 6:
		return d.path(d.pick(d.m.Recipients))
	case 7:
		return d.path(d.pick(d.m.Strings) + "@" + d.often(d.m.Senders))
	case 8:
		return d.path("bob@" + d.pick(d.m.Domains))
	}
	return d.path(d.pick([]string{"bob", "bob", "news", "Bob.Smith"}) + "@" + d.often(d.m.Senders))
}

func (d draw) mailParams() string {
	var b strings.Builder
	if d.m.Sober {
		if d.oneIn(6) {
			return " SIZE=" + fmt.Sprint(d.m.Size+int64(d.IntN(3))-1)
		}
		return ""
	}
	for d.oneIn(6) {
		size := d.m.Size
		b.WriteString(" " + d.pick([]string{
			"SIZE=1000", "SIZE=0", "SIZE=", "SIZE=abc", "SIZE=-1", "SIZE=99999999999999999999",
			fmt.Sprint("SIZE=", size), fmt.Sprint("SIZE=", size+1), fmt.Sprint("SIZE=", max(0, size-1)), "size=1000",
			"BODY=8BITMIME", "BODY=7BIT", "BODY=BINARYMIME", "body=8bitmime", "SMTPUTF8", "SMTPUTF8", "SMTPUTF8", "SMTPUTF8=x",
			"RET=FULL", "RET=HDRS", "RET=x", "ENVID=abc+2Bd", "ENVID=a=b", "FOO=bar", "FOO", "RET=FULL RET=HDRS", "RET=", "ENVID=", "ENVID=+zz",
			"AUTH=<>", "AUTH=", "AUTH=a@b.example", "AUTH=a+20b", "AUTH=<> AUTH=x", "BY=120;R", "BY=", "MT-PRIORITY=3", "REQUIRETLS",
			"SIZE=10000000000000", "SIZE=9223372036854775807", "SIZE=9223372036854775808", "SIZE=000000000000000000001", "SIZE=1 SIZE=2", "SIZE=+1",
			"NOTIFY=NEVER", "ORCPT=rfc822;a@b.example", "BODY=", "BODY=7BIT BODY=8BITMIME", "XVERP", "=x", "SIZE=1=2",
		}))
	}
	return b.String()
}

func (d draw) rcpt() string {
	verb := "RCPT TO:"
	if d.plain(onRecipient) {
		return verb + d.path(d.pick(d.m.Recipients))
	}
	if !d.m.Sober && d.oneIn(25) {
		verb = d.pick([]string{"rcpt to:", "RCPT TO: ", "RCPT  TO:", "RCPT FROM:", "RCPT ", "Rcpt To:"})
	}
	return verb + d.recipient() + d.rcptParams()
}

func (d draw) recipient() string {
	switch d.IntN(24) {
	case 0:
		if d.m.Sober {
			return d.pick([]string{"<postmaster>", "<Postmaster>", "<abuse>", "<root>"})
		}
		return d.pick([]string{"<postmaster>", "<Postmaster>", "<>", "<abuse>", "<mailer-daemon>", "<double-bounce>", "<root>", `<"postmaster">`, "postmaster"})
	case 1:
		return d.path("bob@" + d.often(d.m.Senders))
	case 2, 3:
		return d.path(d.pick([]string{"nobody", "info", "admin", "webmaster", "bob", "postmaster", "abuse", "root", "mailer-daemon", "double-bounce", "owner-x", "x-request"}) + "@" + d.pick(d.m.Domains))
	case 4:
		return d.path(d.pick(d.m.Strings) + "@" + d.pick(d.m.Domains))
	case 5:
		local, _, _ := strings.Cut(d.pick(d.m.Recipients), "@")
		return d.path(local + "@" + d.pick(d.m.Domains))
	}
	return d.path(d.pick(d.m.Recipients))
}

func (d draw) rcptParams() string {
	if d.m.Sober || !d.oneIn(15) {
		return ""
	}
	return " " + d.pick([]string{
		"NOTIFY=NEVER", "NOTIFY=SUCCESS,DELAY", "NOTIFY=x", "NOTIFY=NEVER,DELAY", "notify=failure", "NOTIFY=",
		"ORCPT=rfc822;a@b.example", "ORCPT=rfc822", "ORCPT=;x", "FOO=bar", "FOO", "ORCPT=rfc822;", "ORCPT=", "ORCPT=rfc822;a+3D+2Bb", "ORCPT=rfc822;a+zz",
		"ORCPT=utf-8;b\\x{FC}@b.example", "ORCPT=x;y;z", "ORCPT=rfc822;a ORCPT=rfc822;b", "NOTIFY=NEVER NOTIFY=DELAY", "NOTIFY=NEVER,NEVER",
		"NOTIFY=SUCCESS ORCPT=rfc822;<a@b.example>", "NOTIFY=success,Failure,DELAY", "RET=FULL", "SIZE=1", "AUTH=<>", "BY=1;N", "SMTPUTF8",
	})
}
