package policy

import "strings"

// Subjects of a reply, in Postfix's words.
const (
	classClient    = "Client host"
	classRevClient = "Unverified Client host"
	classHelo      = "Helo command"
	classSender    = "Sender address"
	classRcpt      = "Recipient address"
	classData      = "Data command"
	classEOD       = "End-of-data"
)

// validDSN says that s is a status code of RFC 3463 §2.
func validDSN(s string) bool {
	class, rest, _ := strings.Cut(s, ".")
	subject, detail, _ := strings.Cut(rest, ".")
	return (class == "2" || class == "4" || class == "5") &&
		allDigits(subject) && len(subject) <= 3 && allDigits(detail) && len(detail) <= 3
}

// splitDSN cuts a status code off the start of an operator's text.
func splitDSN(def, text string) (dsn, rest string) {
	text = strings.TrimLeft(text, blank)
	if word, rest := cutWord(text); validDSN(word) {
		return word, rest
	}
	return def, text
}

// fixDSN keeps a status code about an address from describing the wrong one:
// a recipient's code in a sender's refusal becomes the sender's counterpart.
func fixDSN(dsn, class string) string {
	prefix, detail := dsn[:1], strings.TrimPrefix(dsn[1:], ".1.")
	if detail == dsn[1:] {
		return dsn
	}
	var sender, rcpt string
	switch detail {
	case "1", "4", "6":
		sender, rcpt = ".1.7", ".1."+detail
	case "2", "8":
		sender, rcpt = ".1.8", ".1.2"
	case "3", "7":
		sender, rcpt = ".1.7", ".1.3"
	case "5":
		sender, rcpt = ".1.0", ".1.5"
	default:
		sender, rcpt = ".1.0", ".1.0"
	}
	switch class {
	case classSender:
		return prefix + sender
	case classRcpt:
		return prefix + rcpt
	}
	return prefix + ".0.0"
}
