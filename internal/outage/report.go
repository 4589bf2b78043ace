package outage

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
	policysync "github.com/understudy-mx/understudy/sync"
)

// Fact is one line about an outage.
type Fact struct{ Name, Text string }

// Facts describes an outage at the moment now, with times of a zone.
func Facts(o *Outage, zone *time.Location, now time.Time) []Fact {
	moment := func(t time.Time, none string) string {
		if t.IsZero() {
			return none
		}
		return t.In(zone).Format(time.RFC1123)
	}
	facts := []Fact{
		{"Outage", fmt.Sprintf("%d, of the next hop %s", o.ID, o.Route)},
		{"Began", moment(o.Began, "")},
		{"Noticed by", o.Noticed},
		{"Ended", moment(o.Ended, "not yet")},
		{"Drained", moment(o.Drained, "not yet")},
		{"Lasted", o.Length(now).Round(time.Second).String()},
		{"Accepted", fmt.Sprintf("%d messages, beside %d that waited before", o.Accepted, o.Waited)},
		{"Relayed", fmt.Sprintf("%d recipients", o.Relayed)},
		{"Held", fmt.Sprintf("%d recipients", o.Held)},
		{"Returned", fmt.Sprintf("%d recipients", o.Returned)},
		{"May be there twice", fmt.Sprintf("%d messages that the primary had whole and didn't answer", o.Twice)},
		{"Longest wait", (time.Duration(o.Longest) * time.Second).String()},
		{"Saved", fmt.Sprintf("%d messages: the outage went on for %d hours or more after they came, and a sender that gives up by then would have lost them", o.Saved, Retry)},
		{"Delayed", fmt.Sprintf("%d messages: they would have come late, when their senders tried again", o.Accepted-min(o.Accepted, o.Saved))},
		{"Refused", fmt.Sprintf("%d verdicts", o.Refusals())},
	}
	rules := slices.SortedFunc(maps.Keys(o.Refused), func(a, b string) int {
		if o.Refused[a] != o.Refused[b] {
			return int(o.Refused[b]) - int(o.Refused[a])
		}
		return strings.Compare(a, b)
	})
	for _, r := range rules {
		facts = append(facts, Fact{"  by " + r, fmt.Sprint(o.Refused[r])})
	}
	for i := range facts {
		facts[i].Text = service.Printable(facts[i].Text)
	}
	return facts
}

// Report is an outage to be shown to others.
type Report struct {
	Host   string    `json:"host"` // the secondary
	Made   time.Time `json:"made"`
	Outage Outage    `json:"outage"`
}

// Formats of reports.
const (
	Text = "text"
	JSON = "json"
	HTML = "html"
)

// The signature of a report in text or HTML is its end, and covers every octet before
// it; lines may come to end in CRLF on the way. That of one in JSON covers the value of
// "report" without white space.
//
//	-----BEGIN UNDERSTUDY SIGNATURE-----
//	<the Ed25519 key, base64>
//	<the signature, base64>
//	-----END UNDERSTUDY SIGNATURE-----
const (
	sigBegin  = "-----BEGIN UNDERSTUDY SIGNATURE-----\n"
	sigEnd    = "-----END UNDERSTUDY SIGNATURE-----\n"
	signedDoc = "understudy outage report\n" // what is signed begins with one of these
	signedVal = "understudy outage report, JSON\n"
)

// signed is a report in JSON.
type signed struct {
	Report    json.RawMessage `json:"report"`
	Key       []byte          `json:"key"`
	Signature []byte          `json:"signature"`
}

// Sign writes the report in a format, signed.
func (r *Report) Sign(format string, key ed25519.PrivateKey) ([]byte, error) {
	public := key.Public().(ed25519.PublicKey)
	var b bytes.Buffer
	switch format {
	case JSON:
		value, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("write report: %w", err)
		}
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		err = e.Encode(signed{value, public, ed25519.Sign(key, append([]byte(signedVal), value...))})
		return b.Bytes(), err
	case Text:
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, f := range r.facts(public) {
			fmt.Fprintf(w, "%s\t%s\n", f.Name, f.Text)
		}
		w.Flush()
		b.WriteString("\n")
	case HTML:
		if err := page.Execute(&b, r.facts(public)); err != nil {
			return nil, fmt.Errorf("write report: %w", err)
		}
		b.WriteString("<!--\n")
	default:
		return nil, fmt.Errorf("a report has no format %q", format)
	}
	sum := ed25519.Sign(key, append([]byte(signedDoc), b.Bytes()...))
	fmt.Fprintf(&b, "%s%s\n%s\n%s", sigBegin, base64.StdEncoding.EncodeToString(public), base64.StdEncoding.EncodeToString(sum), sigEnd)
	if format == HTML {
		b.WriteString("-->\n")
	}
	return b.Bytes(), nil
}

func (r *Report) facts(key ed25519.PublicKey) []Fact {
	return append([]Fact{{"Reported by", service.Printable(r.Host) + ", at " + r.Made.UTC().Format(time.RFC1123)}, {"Its key", policysync.PinOf(key).String()}},
		Facts(&r.Outage, time.UTC, r.Made)...)
}

// ErrAltered says that a signature isn't that of the document.
var ErrAltered = errors.New("the report isn't what was signed")

// Verify returns the key that signed a report. Whose key that is the caller has to
// know.
func Verify(doc []byte) (ed25519.PublicKey, error) {
	doc = bytes.ReplaceAll(doc, []byte("\r\n"), []byte("\n"))
	if bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) {
		return verifyJSON(doc)
	}
	end := bytes.TrimSuffix(bytes.TrimRight(doc, "\n"), []byte("\n-->"))
	at := bytes.LastIndex(end, []byte(sigBegin))
	if at < 0 {
		return nil, errors.New("the file has no signature of a report at its end")
	}
	lines := strings.Split(string(end[at+len(sigBegin):]), "\n")
	if len(lines) != 3 || lines[2]+"\n" != sigEnd {
		return nil, errors.New("the signature at the file's end is cut short, or something follows it")
	}
	key, err1 := base64.StdEncoding.Strict().DecodeString(lines[0])
	sum, err2 := base64.StdEncoding.Strict().DecodeString(lines[1])
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("read the signature: %w", err)
	}
	return check(key, append([]byte(signedDoc), doc[:at]...), sum)
}

func verifyJSON(doc []byte) (ed25519.PublicKey, error) {
	var s signed
	if err := json.Unmarshal(doc, &s); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var whole, value bytes.Buffer
	again, err := json.Marshal(s)
	if err == nil {
		err = errors.Join(json.Compact(&whole, doc), json.Compact(&value, s.Report))
	}
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if !bytes.Equal(whole.Bytes(), again) { // more than one value of a name, or other names
		return nil, fmt.Errorf("%w: it has more in it", ErrAltered)
	}
	return check(s.Key, append([]byte(signedVal), value.Bytes()...), s.Signature)
}

func check(key, message, sum []byte) (ed25519.PublicKey, error) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, message, sum) {
		return nil, ErrAltered
	}
	return key, nil
}

var page = template.Must(template.New("outage").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Outage</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
th { text-align: left; font-weight: 600; padding-right: 2rem; vertical-align: top; white-space: pre }
td { overflow-wrap: anywhere }
td, th { border-bottom: 1px solid #8884; padding-top: .3rem; padding-bottom: .3rem }
table { border-collapse: collapse; width: 100% }
</style>
<h1>An outage of the primary mail server</h1>
<table>
{{range .}}<tr><th scope="row">{{.Name}}</th><td>{{.Text}}</td></tr>
{{end}}</table>
<p>The end of this file is its signature. <code>understudy outage verify FILE</code> checks it.</p>
</html>
`))
