package exim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// TestSessions keeps ../testdata/exim true: what a real Exim answers there, and the policy and the report that come of its
// configuration. With UPDATE=1 it writes them. Package policy plays the sessions to the policy.
//
// A file is a txtar archive: "exim.conf" and files of others' names, in which @DIR@ is where they are; "choices", the operator's;
// "dns" and "sessions" as in ../testdata/decisions, with "content NAME" for the message "body NAME"; "spec.json", in which the
// directory is /dir; and "report".
func TestSessions(t *testing.T) {
	files, err := filepath.Glob("../testdata/exim/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { sessions(t, file) })
	}
}

func sessions(t *testing.T, file string) {
	had, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ar := txtar.Parse(had)
	parts := map[string]*txtar.File{}
	for i := range ar.Files {
		parts[ar.Files[i].Name] = &ar.Files[i]
	}
	text := func(name string) string {
		if f := parts[name]; f != nil {
			return string(f.Data)
		}
		return ""
	}
	x := newEximWith(t, nameserver(t, text("dns")), text("exim.conf"))
	for name, f := range parts {
		if !strings.Contains(name, "/") {
			continue
		}
		path := filepath.Join(x.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(f.Data), "@DIR@", x.Dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Etc: filepath.Join(x.Dir, "etc"), Rows: Databases, Own: []string{"127.0.0.1"},
		Choices: fidelity.ParseChoices(strings.FieldsFunc(text("choices"), func(r rune) bool { return r == '\n' }))})
	if err != nil {
		t.Fatal(err)
	}
	generated := func(name, text string) {
		if parts[name] == nil {
			ar.Files = append(ar.Files, txtar.File{Name: name})
			parts[name] = &ar.Files[len(ar.Files)-1]
		}
		parts[name].Data = []byte(strings.ReplaceAll(text, x.Dir, "/dir"))
	}
	parts["sessions"].Data = []byte(recorded(t, x, text))
	generated("spec.json", ownFields(t, spec))
	generated("report", items(&report))
	now := txtar.Format(ar)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, now, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(now), string(had)); diff != "" {
		t.Errorf("%s isn't what Exim says or what is imported (-now +file):\n%s", file, diff)
	}
}

// ownFields are those of a policy that NewSpec's has otherwise.
func ownFields(t *testing.T, spec *policy.Spec) string {
	t.Helper()
	var fields [2]map[string]json.RawMessage
	for n, s := range []*policy.Spec{policy.NewSpec(), spec} {
		snap, err := policy.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(snap.Encode(), &fields[n]); err != nil {
			t.Fatal(err)
		}
	}
	for name, usual := range fields[0] {
		if bytes.Equal(usual, fields[1][name]) {
			delete(fields[1], name)
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(fields[1]); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// items are a report's that aren't exact, a line each, and how many are.
func items(r *fidelity.Report) string {
	var b strings.Builder
	exact := 0
	for _, it := range r.Items {
		if it.Class == fidelity.Exact && it.Why == "" {
			exact++
			continue
		}
		fmt.Fprintf(&b, "%s | %s | %s | %s | %s\n", it.ID(), it.Class, it.Why, it.Instead, strings.Join(it.Options, " "))
	}
	fmt.Fprintf(&b, "exact: %d\nfiles: %s\npolled: %s\n", exact, strings.Join(r.Files, " "), strings.Join(r.Polled, " "))
	return b.String()
}

// nameserver serves what the part "dns" says, on port 53 of a loopback address that is free.
func nameserver(t *testing.T, text string) string {
	t.Helper()
	var d *demo.DNS
	var err error
	for range 50 {
		if d, err = demo.StartDNSAt(fmt.Sprintf("127.%d.%d.%d:53", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("no loopback address has a free port 53: %v; run the tests as root, as .ci/run does", err)
	}
	t.Cleanup(d.Close)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' {
			continue
		}
		if f[0] == "fail" {
			d.Behave(queryName(f[len(f)-1]), demo.Behaviour{Rcode: dns.RcodeServerFailure, Type: failingType(f[1:])})
			continue
		}
		values := f[2:]
		if f[0] == "txt" {
			values = []string{strings.Join(values, " ")}
		}
		for _, v := range values {
			if err := d.Add(zoneLine(f[0], f[1], v)); err != nil {
				t.Fatalf("dns: %s: %v", line, err)
			}
		}
	}
	return d.Addr()
}

// queryName is what is asked for about an address or a name.
func queryName(s string) string {
	if reverse, err := dns.ReverseAddr(s); err == nil {
		return reverse
	}
	return s
}

func failingType(f []string) uint16 {
	if len(f) == 1 {
		return 0
	}
	return map[string]uint16{"ip4": dns.TypeA, "ip6": dns.TypeAAAA, "mx": dns.TypeMX, "ptr": dns.TypePTR, "txt": dns.TypeTXT, "ns": dns.TypeNS}[f[0]]
}

func zoneLine(kind, name, value string) string {
	switch kind {
	case "a":
		if a, err := netip.ParseAddr(value); err == nil && a.Is6() {
			kind = "aaaa"
		}
	case "mx":
		pref, host, given := strings.Cut(value, ":")
		if !given {
			pref, host = "10", value
		}
		value = pref + " " + dns.Fqdn(host)
	case "txt":
		value = fmt.Sprintf("%q", value)
	default:
		value = dns.Fqdn(value)
	}
	return fmt.Sprintf("%s 300 IN %s %s", dns.Fqdn(queryName(name)), strings.ToUpper(kind), value)
}

// recorded are the sessions with what a real Exim answers.
func recorded(t *testing.T, x *testmx.Exim, part func(string) string) string {
	t.Helper()
	var out []string
	var in strings.Builder
	client, asked, lost := "", []int(nil), []int(nil)
	end := func() {
		if client == "" {
			return
		}
		replies, discarded := played(t, x, client, in.String()+"QUIT\r\n")
		for n, at := range asked {
			switch {
			case n >= len(replies):
				t.Fatalf("%q has no reply: %q", out[at], replies)
			case n == len(replies)-1: // none to QUIT
				replies[n] += " (close)"
			case slices.Contains(discarded, out[at]), slices.Contains(lost, at) && slices.Contains(discarded, ""):
				replies[n] = "discard"
			}
			out[at] += " => " + replies[n]
		}
	}
	for line := range strings.Lines(part("sessions")) {
		line, before, _ := strings.Cut(line, "=>")
		line = strings.TrimSpace(line)
		if out = append(out, line); strings.TrimSpace(before) == "discard" {
			lost = append(lost, len(out)-1)
		}
		verb, arg, _ := strings.Cut(line, " ")
		switch verb {
		case "", "#":
			continue
		case "connect":
			end()
			in.Reset()
			client, asked = arg, nil
		case "helo":
			in.WriteString("EHLO " + arg + "\r\n")
		case "mail":
			in.WriteString("MAIL FROM:" + arg + "\r\n")
		case "rcpt":
			in.WriteString("RCPT TO:" + arg + "\r\n")
		case "data":
			in.WriteString("DATA\r\n")
		case "reset":
			in.WriteString("RSET\r\n")
		case "content":
			in.WriteString(strings.ReplaceAll(part("body "+arg), "\n", "\r\n") + ".\r\n")
		default:
			t.Fatalf("unknown command %q", line)
		}
		asked = append(asked, len(out)-1)
	}
	end()
	return strings.Join(out, "\n") + "\n"
}

// discardedLine is what Exim's log has of a recipient whom it throws away. It has no line of a whole message: one with a
// list that ends so has "=> discard" in the file.
var discardedLine = regexp.MustCompile(`RCPT (<.*>): discarded by|end of ACL "(?:mail|data)": DISCARD`)

// played are Exim's replies in a session, and to its end, and the commands that were discarded.
func played(t *testing.T, x *testmx.Exim, client, in string) (all, discarded []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), x.Program, "-C", x.Config, "-bh", client)
	cmd.Stdin = strings.NewReader(in)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("exim -bh: %v\n%s", err, log.Bytes()[max(0, log.Len()-2000):])
	}
	var text []string
	for _, m := range replyLine.FindAllStringSubmatch(string(out), -1) {
		if text = append(text, m[3]); m[2] == "-" {
			continue // the reply goes on
		}
		verdict := "permit"
		if m[1][0] > '3' {
			verdict = m[1] + " " + strings.Join(text, "|")
		}
		all, text = append(all, verdict), nil
	}
	for _, m := range discardedLine.FindAllStringSubmatch(log.String(), -1) {
		command := ""
		if m[1] != "" {
			command = "rcpt " + m[1]
		}
		discarded = append(discarded, command)
	}
	return all, discarded
}
