package smtpd

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

const (
	unavailable = "[UNAVAILABLE]"
	tempUnavail = "[TEMPUNAVAIL]"
	unknown     = "unknown"
)

// xclientCommand lets an authorised client state for whom it speaks, as
// Postfix's XCLIENT_README describes. On success the session starts over.
//
// Unlike Postfix, ADDR without NAME makes us look the name up: the name of the
// client that sent XCLIENT says nothing about the address that it stated.
func (s *session) xclientCommand(arg string) {
	switch {
	case s.tx != nil:
		s.reply(envelope.NewReply(503, "5.5.1", "Error: MAIL transaction in progress"))
		return
	case arg == "":
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: XCLIENT attribute=value..."))
		return
	case !s.xclient:
		s.reply(envelope.NewReply(550, "5.7.0", "Error: insufficient authorization"))
		return
	}
	x := xclient{Client: s.client}
	for attr := range strings.FieldsSeq(arg) {
		if bad := x.set(attr); bad != "" {
			s.reply(envelope.NewReply(501, "5.5.4", "%s", bad))
			return
		}
	}
	if !x.helo {
		x.Helo = ""
	}
	if !x.proto {
		x.Protocol = ""
	}
	s.client = x.Client
	// The stated client's rights count from here on.
	s.xclient = contains(s.srv.XClientFrom, s.client.Addr)
	s.began, s.mails = time.Now(), 0
	s.conn.setListed(false)
	s.greet()
	if !s.over && s.client.Helo != "" {
		// As in Postfix, a HELO name that came this way is not answered.
		s.decide(Command{At: policy.Helo, Helo: s.client.Helo})
	}
}

// xclient is a client that is being changed by XCLIENT.
type xclient struct {
	envelope.Client
	helo, proto bool
}

// set takes one attribute=value and returns what is wrong with it.
func (x *xclient) set(attr string) (bad string) {
	name, raw, _ := strings.Cut(attr, "=")
	if raw == "" {
		return "Error: attribute=value expected"
	}
	if len(raw) > 255 {
		return "Error: attribute value too long"
	}
	value := unxtext(raw)
	gone := strings.EqualFold(value, unavailable)
	name = upper(name)
	valid := true
	switch name {
	case "NAME":
		valid = setName(&x.Name, &x.NameStatus, value)
		if x.NameStatus == envelope.NameOK {
			x.ReverseName, x.ReverseStatus = x.Name, x.NameStatus
		}
	case "REVERSE_NAME":
		valid = setName(&x.ReverseName, &x.ReverseStatus, value)
	case "ADDR":
		valid = x.setAddr(value, gone)
	case "PORT":
		var n uint64
		var err error
		if !gone {
			n, err = strconv.ParseUint(value, 10, 16)
		}
		x.Port, valid = uint16(n), err == nil
	case "HELO":
		if x.helo = true; gone {
			value = ""
		}
		x.Helo = clean(value)
	case "PROTO":
		x.Protocol, x.proto = strings.ToUpper(value), true
		valid = x.Protocol == "SMTP" || x.Protocol == "ESMTP"
	case "LOGIN", "DESTADDR", "DESTPORT": // nothing here depends on them
	default:
		return "Bad XCLIENT attribute name: " + clean(name)
	}
	if !valid {
		return "Bad " + name + " syntax: " + clean(value)
	}
	return ""
}

// setName takes a host name or what became of looking it up.
func setName(name *string, status *envelope.NameStatus, value string) bool {
	switch {
	case strings.EqualFold(value, unavailable):
		*name, *status = unknown, envelope.NameNotFound
	case strings.EqualFold(value, tempUnavail):
		*name, *status = unknown, envelope.NameTemp
	case envelope.ValidDomain(value):
		*name, *status = value, envelope.NameOK
	default:
		return false
	}
	return true
}

func (x *xclient) setAddr(value string, gone bool) bool {
	var a netip.Addr
	if !gone {
		const tag = "IPV6:"
		tagged := len(value) > len(tag) && strings.EqualFold(value[:len(tag)], tag)
		if tagged {
			value = value[len(tag):]
		}
		var err error
		a, err = netip.ParseAddr(value)
		if err != nil || a.Zone() != "" || tagged && !a.Is6() {
			return false
		}
		a = a.Unmap()
	}
	x.Addr = a
	return true
}

// unxtext undoes RFC 3461 §4's xtext. What isn't xtext is taken as it is, as
// Postfix before 2.3 sent it.
func unxtext(s string) string {
	if !strings.Contains(s, "+") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return s
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return s
		}
		out = append(out, byte(n))
		i += 2
	}
	return string(out)
}

// clean makes a peer's text fit for a reply, a header field or a log: printable
// ASCII, and none of the characters that delimit text in a header field.
func clean(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c <= 0x20 || c >= 0x7f || strings.IndexByte(`<>()\";@,`, c) >= 0 {
			b[i] = '?'
		}
	}
	return string(b)
}
