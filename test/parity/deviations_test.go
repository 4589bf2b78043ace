package parity

import (
	"regexp"
	"strings"

	"github.com/understudy-mx/understudy/policy/parity"
)

// deviation is a form of address that our reader takes otherwise than
// Postfix's: one of the two answers 501 and the other judges it. Nobody writes
// these but who tests. Listed here, they don't count; see docs/PARITY.md.
type deviation struct {
	form *regexp.Regexp
	why  string
	any  bool // whatever the two answers are
}

var deviations = []deviation{
	{form: regexp.MustCompile(`:\s*<<`), why: "brackets inside of brackets are refused"},
	{form: regexp.MustCompile(`\[[^\]]*>`), why: "an address literal must be closed"},
	{form: regexp.MustCompile(`\]\s*\.+\s*>|\][^>]*@|%\s*\[|\[[^\]]*\]\s*[!%]`), why: "an address literal stands at the end and is not routed"},
	{form: regexp.MustCompile(`[<@:,()]\s*@|<(""|%|!)|@\s*@|[%!]\s*@|""`), why: "a local-part or a hop of a route must not be empty"},
	{form: regexp.MustCompile(`<\s*[%!]`), why: "a routed address without a local-part belongs to nobody", any: true},
	{form: regexp.MustCompile(`<[^@>"]*;`), why: "a semicolon ends a group of addresses"},
	{form: regexp.MustCompile(`"[^"]*@[^"]*"`), why: "a quoted @ is not followed"},
	{form: regexp.MustCompile(`<\s*@[^>]*,`), why: "source routes are cut off unread"},
	{form: regexp.MustCompile(`(?i)FROM:\s+[A-Z]+=`), why: "a path that is missing"},
	{form: regexp.MustCompile(`:[^<]*>?$|:[^<]* [A-Z]`), why: "a path without its opening bracket"},
}

// explained says by which deviation a session differs.
func explained(d *parity.Difference) (why string, ok bool) {
	line, primary, local := d.Where()
	verb := strings.ToUpper(line[:min(4, len(line))])
	if strings.HasPrefix(line, "(message") && primary.Code == 250 && local.Enhanced == "5.4.0" {
		return "Received fields that header_checks drop, or of a message that is discarded, count as hops", true
	}
	if verb != "MAIL" && verb != "RCPT" {
		return "", false
	}
	for _, dev := range deviations {
		if dev.form.MatchString(line) && (dev.any || isSyntax(primary) != isSyntax(local)) {
			return dev.why, true
		}
	}
	return "", false
}

func isSyntax(r parity.Reply) bool {
	return r.Code == 501 && (r.Enhanced == "5.1.7" || r.Enhanced == "5.1.3")
}
