package parity

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/parity"
)

// deviation is a form of address that our reader takes otherwise than
// Postfix's: one of the two answers 501 and the other judges it. Nobody writes
// these but who tests. Listed here, they don't count, and
// docs/PARITY-ADDRESSES.md has them.
type deviation struct {
	form    *regexp.Regexp
	example string // a path of this form
	refused bool   // by us; Postfix judges it. Otherwise it is the reverse.
	why     string
	late    bool // the policy refuses it, not the reader
}

var deviations = []deviation{
	{form: oddDomain, example: "<!<>@from:[127.0.0.1]>", refused: true, why: "a domain must be one that can stand in a command"},
	{form: regexp.MustCompile("[\x01-\x1f\x7f]"), example: "<bob\x01@example.org>", refused: true, late: true, why: "control characters are judged as by Postfix, but never let in: 501 at RCPT where it says 250"},
	{form: regexp.MustCompile("\ufffd"), example: "<b\xfccher@example.org>", refused: true, why: "an address must be UTF-8, with `smtputf8_enable = no`, too"},
}

// fits says that the two answers to a path are the deviation's.
func (d *deviation) fits(line string, primary, local parity.Reply) bool {
	return d.form.MatchString(line) && isSyntax(local) == d.refused && isSyntax(primary) != d.refused
}

// explained says by which deviation a session differs.
func explained(d *parity.Difference) (why string, ok bool) {
	line, primary, local := d.Where()
	verb := strings.ToUpper(line[:min(4, len(line))])
	if strings.HasPrefix(line, "(message") && primary.Code == 250 && local.Enhanced == "5.4.0" {
		return "Received fields that header_checks drop, or of a message that is discarded, count as hops", true
	}
	// Restrictions have enhanced codes, ETRN's own errors have none.
	if syntax := primary.Code/100 == 5 && primary.Enhanced == ""; verb == "ETRN" && local.Code == 459 && !syntax {
		return "the secondary starts no queue, whoever asks for it", true
	}
	if verb == "AUTH" && local.Code == 503 && primary.Code != 503 {
		return "nobody authenticates to the secondary", true
	}
	if verb != "MAIL" && verb != "RCPT" && verb != "VRFY" {
		return "", false
	}
	for _, dev := range deviations {
		if dev.fits(line, primary, local) {
			return dev.why, true
		}
	}
	return "", false
}

func isSyntax(r parity.Reply) bool {
	return r.Code == 501 && (r.Enhanced == "5.1.7" || r.Enhanced == "5.1.3") || r.Code == 401 && (r.Enhanced == "4.1.7" || r.Enhanced == "4.1.3") // soft_bounce
}

// TestAddressesDoc keeps docs/PARITY-ADDRESSES.md equal to the deviations, and
// these to what our reader does; with UPDATE=1 it writes the file.
func TestAddressesDoc(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Paths that are read otherwise than by Postfix

The forms of paths in MAIL and RCPT that one of the two answers with 501 and the other judges, with what ` + "`test/parity`" + `
lets pass for them. All others that it plays get the same codes from both.

| path, for example | Postfix | Understudy | because |
| --- | --- | --- | --- |
`)
	for _, d := range deviations {
		_, _, err := envelope.ParseReversePath(d.example)
		if !d.form.MatchString("MAIL FROM:"+d.example) || (err != nil) != (d.refused && !d.late) {
			t.Errorf("%s: %s: %v", d.why, d.example, err)
		}
		theirs, ours := "501", "judged"
		if d.refused {
			theirs, ours = "judged", "501"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", strings.Trim(strconv.QuoteToASCII(d.example), `"`), theirs, ours, d.why)
	}
	const path = "../../docs/PARITY-ADDRESSES.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := readFile(t, path); got != b.String() {
		t.Errorf("%s is stale, run 'UPDATE=1 go test -run TestAddressesDoc ./test/parity'; want:\n%s", path, &b)
	}
}
