package milter

import (
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Action is what a filter wants done.
type Action uint8

const (
	Continue Action = iota
	Refuse          // with Answer.Reply
	Discard         // accept, and throw away
	Hold            // accept, and keep for the operator
)

// Answer is a filter's answer to an event.
type Answer struct {
	Action Action
	Reply  envelope.Reply // of Refuse
	Reason string         // of Hold: the filter's own words, cleaned, "" when it gave none
}

// Postfix's replies where a filter gives none of its own.
var (
	rejected   = envelope.Reply{Code: 550, Enhanced: "5.7.1", Text: "Command rejected"}
	tempfailed = envelope.Reply{Code: 451, Enhanced: "4.7.1", Text: "Service unavailable - try again later"}
	shutdown   = envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "Server closing connection"}
)

func refuse(r envelope.Reply) Answer { return Answer{Action: Refuse, Reply: r} }

// byDefault is the answer of a filter that is unavailable, as
// milter_default_action has it; of one that breaks the rules of the protocol's
// data when misused.
func byDefault(action string, misused bool) Answer {
	text := "Service unavailable - try again later"
	soft := envelope.Reply{Code: 451, Enhanced: "4.7.1", Text: text}
	if misused {
		text = "Server configuration problem - try again later"
		soft = envelope.Reply{Code: 451, Enhanced: "4.3.5", Text: text}
	}
	switch strings.ToLower(action) {
	case "accept":
		return Answer{}
	case "quarantine":
		return Answer{Action: Hold, Reason: "default_action"}
	case "shutdown": // Postfix 3.11's default
		return refuse(envelope.Reply{Code: 421, Enhanced: soft.Enhanced, Text: text})
	case "reject":
		if !misused {
			return refuse(envelope.Reply{Code: 550, Enhanced: "5.5.0", Text: "Service unavailable"})
		}
	case "tempfail", "":
	default:
		soft = envelope.Reply{Code: 451, Enhanced: "4.3.5", Text: "Server configuration problem - try again later"}
	}
	return refuse(soft)
}

// maxLines is how many lines of a filter's reply are passed on. libmilter lets a
// filter give 32.
const maxLines = 64

// parseReply reads a reply as a filter gives it: codes on each line, lines with
// CRLF between them, "%" doubled as for a format string.
func parseReply(data []byte) (r envelope.Reply, ok bool) {
	text, _, _ := strings.Cut(string(data), "\x00")
	at := func(i int) byte {
		if i < len(text) {
			return text[i]
		}
		return 0
	}
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	if at(0) != '4' && at(0) != '5' || !digit(at(1)) || !digit(at(2)) || at(3) != ' ' && at(3) != '-' || digit(at(4)) && at(4) != at(0) {
		return r, false
	}
	code := text[:3]
	r.Code = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	lines := strings.Split(strings.TrimSuffix(unpercent(text), "\r\n"), "\r\n")
	lines = lines[:min(len(lines), maxLines)]
	enhanced := ""
	for i, l := range lines {
		if len(l) >= 4 && l[:3] == code && (l[3] == ' ' || l[3] == '-') {
			l = l[4:]
		} else if l == code {
			l = ""
		}
		word, _, _ := strings.Cut(l, " ")
		if !isStatus(word, code[0]) {
			word = ""
		}
		if i == 0 {
			enhanced = word
		}
		if word != enhanced || l == word { // not the same on each line, or nothing after it
			enhanced = ""
		}
		lines[i] = l
	}
	if r.Enhanced = enhanced; enhanced != "" {
		for i, l := range lines {
			lines[i] = strings.TrimPrefix(strings.TrimPrefix(l, enhanced), " ")
		}
	}
	for i, l := range lines { // what is left of line ends must not make more lines
		lines[i] = strings.ReplaceAll(l, "\n", " ")
	}
	r.Text = strings.Join(lines, "\n")
	return r, true
}

// unpercent turns "%%" into "%", and drops a single one.
func unpercent(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			if i++; i == len(s) {
				break
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// isStatus says that s is a status code of RFC 3463 §2, of that class.
func isStatus(s string, class byte) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != string(class) {
		return false
	}
	for _, p := range parts[1:] {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// printable makes a filter's text fit for a log or the operator's screen.
func printable(b []byte) string {
	s, _, _ := strings.Cut(string(b[:min(len(b), 256)]), "\x00")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s))
}
