package smtpd

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/policy"
)

// milterEvents are the names of the lists of macros in a policy.
var milterEvents = map[milter.Event]string{
	milter.OnConnect: "connect", milter.OnHelo: "helo", milter.OnMail: "mail", milter.OnRcpt: "rcpt", milter.OnData: "data",
	milter.OnEndOfHeader: "end_of_header", milter.OnEndOfData: "end_of_data", milter.OnUnknown: "unknown_command",
}

// usualMacros are Postfix's defaults.
var usualMacros = map[string][]string{
	"connect": {"j", "{daemon_name}", "{daemon_addr}", "v", "_"},
	"helo":    {"{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"},
	"mail":    {"i", "{auth_type}", "{auth_authen}", "{auth_author}", "{mail_addr}", "{mail_host}", "{mail_mailer}"},
	"rcpt":    {"i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"},
	"data":    {"i"}, "end_of_header": {"i"}, "end_of_data": {"i"},
}

func macroNames(s *policy.MilterSettings) *milter.Macros {
	names := s.Macros
	if names == nil {
		names = usualMacros
	}
	var m milter.Macros
	for on, name := range milterEvents {
		m[on] = names[name]
	}
	return &m
}

// macro is the value of a macro, or its default.
func (f *filtering) macro(name string) (string, bool) {
	settings := f.s.snap.MilterSettings()
	v, known := settings.Values[name]
	if !known {
		v, known = f.clientMacro(name)
	}
	if !known && !f.content {
		v, known = f.commandMacro(name)
	}
	if !known && name == "i" && f.s.tx != nil && f.s.tx.env.ID != "" {
		return f.s.tx.env.ID, true
	}
	if !known {
		v, known = settings.Defaults[name]
	}
	return v, known
}

// clientMacro is one about the client and the connection.
func (f *filtering) clientMacro(name string) (v string, known bool) {
	c := f.s.known(f.s.ctx)
	at := addrOf(f.s.conn.raw.LocalAddr())
	about, known := strings.CutPrefix(name, "client_")
	if known {
		return f.aboutClient(about, &c)
	}
	switch name {
	case "j":
		v = cmp.Or(f.s.snap.MilterSettings().Hostname, f.s.srv.Hostname)
	case "_":
		if v = c.ReverseName + " [" + c.Addr.String() + "]"; !strings.EqualFold(c.Name, c.ReverseName) {
			v += " (may be forged)"
		}
	case "daemon_addr":
		v = at.Addr().String()
	case "daemon_port":
		v = strconv.Itoa(int(at.Port()))
	default:
		return "", false
	}
	return v, true
}

func (f *filtering) aboutClient(what string, c *envelope.Client) (v string, known bool) {
	switch {
	case what == "addr":
		if v = c.Addr.String(); c.Addr.Is6() && !f.content {
			v = "IPv6:" + v
		}
	case what == "port":
		v = strconv.Itoa(int(c.Port))
	case what == "name":
		v = c.Name
	case what == "ptr":
		v = c.ReverseName
	case what == "resolve" && !f.content:
		v = "FAIL"
		switch c.NameStatus {
		case envelope.NameOK:
			v = "OK"
		case envelope.NameForged:
			v = "FORGED"
		case envelope.NameTemp:
			v = "TEMP"
		}
	default:
		return "", false
	}
	return v, true
}

// commandMacro is one that Postfix has during commands only.
func (f *filtering) commandMacro(name string) (string, bool) {
	version, cipher, encrypted := strings.Cut(f.s.client.TLS, " ")
	switch {
	case name == "tls_version" && encrypted:
		return version, true
	case name == "cipher" && encrypted:
		return cipher, true
	case name == "cipher_bits" && encrypted:
		if strings.Contains(cipher, "_256") {
			return strconv.Itoa(256), true
		}
		return strconv.Itoa(128), true
	case strings.HasPrefix(name, "mail_") && f.mail != nil && f.s.tx != nil:
		return f.addressMacro(strings.TrimPrefix(name, "mail_"), f.s.tx.env.From.Mailbox)
	case strings.HasPrefix(name, "rcpt_") && f.current != nil && !f.current.refused.Zero():
		return refusedMacro(name, f.current.refused)
	case strings.HasPrefix(name, "rcpt_") && f.current != nil:
		return f.addressMacro(strings.TrimPrefix(name, "rcpt_"), f.current.to)
	}
	return "", false
}

func (f *filtering) addressMacro(part string, m envelope.Mailbox) (string, bool) {
	addr, host, mailer := f.s.policy.Mailer(m)
	switch part {
	case "addr":
		return addr, true
	case "host":
		return host, true
	case "mailer":
		return mailer, true
	}
	return "", false
}

// refusedMacro describes a recipient that the restrictions refuse.
func refusedMacro(name string, r envelope.Reply) (v string, known bool) {
	_, text, _ := strings.Cut(r.Text, " ") // without the address
	v, known = map[string]string{"rcpt_mailer": "error", "rcpt_host": r.Enhanced, "rcpt_addr": text}[name]
	return v, known
}
