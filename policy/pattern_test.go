package policy

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// patternLine is a line of testdata/patterns: a pattern with its flags as in a
// Postfix table (toggling its defaults), and subjects, separated by tabs.
type patternLine struct {
	pattern, flags string
	subjects       []string
	where          string
}

func readPatterns(t testing.TB, file string) (lines []patternLine) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(f) < 2 || strings.HasPrefix(line, "#") {
			continue
		}
		end := strings.LastIndex(f[0], "/")
		lines = append(lines, patternLine{f[0][1:end], f[0][end+1:], f[1:], fmt.Sprintf("%s:%d", file, n)})
	}
	return lines
}

// toggled applies flags to a dialect's defaults.
func toggled(d dialect, flags string) string {
	on := map[byte]bool{'i': true, 's': d == dialectPCRE, 'x': d == dialectERE}
	for i := range len(flags) {
		on[flags[i]] = !on[flags[i]]
	}
	s := ""
	for _, f := range patternFlags[d] {
		if on[byte(f)] {
			s += string(f)
		}
	}
	return s
}

// exact says whether what the groups of a match hold is what Postfix finds
// there. Where several ways lead to the longest match, POSIX prefers another
// one than our engines do, so that only the match itself is certain.
func (p *pattern) exact(d dialect) bool {
	return d == dialectPCRE || p.backtrack == nil && !strings.ContainsAny(p.src, "|*+?{")
}

// TestPatternsAsPostfix asks Postfix's own engines and ours the same.
func TestPatternsAsPostfix(t *testing.T) {
	postmap, err := exec.LookPath("postmap")
	if err != nil {
		if postmap, err = exec.LookPath("/usr/sbin/postmap"); err != nil {
			t.Fatal("postmap is missing: run test/install-peers")
		}
	}
	for d, typ := range map[dialect]string{dialectERE: "regexp", dialectPCRE: "pcre"} {
		t.Run(typ, func(t *testing.T) {
			lines := readPatterns(t, filepath.Join("testdata", "patterns", typ))
			table := filepath.Join(t.TempDir(), "table")
			for _, l := range lines {
				re, err := compilePattern(d, l.pattern, toggled(d, l.flags))
				value := "yes"
				for i := range 3 {
					if re != nil && i < re.groups && re.exact(d) {
						value += fmt.Sprintf(" [$%d]", i+1)
					}
				}
				rule := "/" + l.pattern + "/" + l.flags + " " + value + "\n"
				if err := os.WriteFile(table, []byte(rule), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, subject := range l.subjects {
					want, warned := ask(t, postmap, typ+":"+table, subject)
					got := answerOf(t, re, subject, value)
					switch {
					case warned && err == nil && re != nil:
						t.Errorf("%s: /%s/ is taken, but Postfix says %s", l.where, l.pattern, want)
					case err != nil && strings.Contains(err.Error(), "not supported"):
						// reported, and a rule that can't be imported
					case !warned && err != nil:
						t.Errorf("%s: /%s/: %v, but Postfix takes it", l.where, l.pattern, err)
					case !warned && got != want:
						t.Errorf("%s: /%s/ with %q: got %q, Postfix %q", l.where, l.pattern, subject, got, want)
					}
				}
			}
		})
	}
}

func ask(t *testing.T, postmap, table, key string) (answer string, warned bool) {
	cmd := exec.Command(postmap, "-q", "-", table)
	cmd.Stdin = strings.NewReader(key + "\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Run() // fails when nothing is found
	for sc := bufio.NewScanner(&errs); sc.Scan(); {
		if strings.Contains(sc.Text(), "line 1") {
			return sc.Text(), true
		}
	}
	_, answer, _ = strings.Cut(strings.TrimSuffix(out.String(), "\n"), "\t")
	return answer, false
}

func answerOf(t *testing.T, re *pattern, subject, value string) string {
	if re == nil {
		return ""
	}
	var s scratch
	key := []byte(subject)
	subj := s.subject(key)
	found, err := re.match(&s, key, subj)
	if err != nil {
		t.Error(err)
	}
	if !found {
		return ""
	}
	groups, err := re.find(key, subj)
	if err != nil {
		t.Error(err)
	}
	for i := 1; i < len(groups); i++ {
		value = strings.ReplaceAll(value, fmt.Sprintf("$%d", i), groups[i])
	}
	return value
}

// TestPatternTakesTooLong: a pattern that would take years is answered later.
func TestPatternTakesTooLong(t *testing.T) {
	spec := NewSpec()
	table, err := NewPCRE([][2]string{{`/^(?=a)(a+)+$/s`, "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*Table{"evil": table}
	spec.Restrictions.Sender = []Restriction{{"check_sender_access", "evil"}}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	evil := envelope.ReversePath{Mailbox: envelope.Mailbox{Local: strings.Repeat("a", 60), Domain: "x.example"}}
	s.Mail(t.Context(), evil, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Reply.Code != 451 || v.Reply.Enhanced != "4.3.0" {
		t.Errorf("got %v", v.Reply)
	}
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Action != Permit {
		t.Errorf("got %v, the failure outlived its look-up", v.Reply)
	}
}

// FuzzPattern: what is taken can be matched, and comes back from its rule.
func FuzzPattern(f *testing.F) {
	for d, typ := range map[dialect]string{dialectERE: "regexp", dialectPCRE: "pcre"} {
		for _, l := range readPatterns(f, filepath.Join("testdata", "patterns", typ)) {
			f.Add(byte(d), l.pattern, toggled(d, l.flags), l.subjects[0])
		}
	}
	f.Fuzz(func(t *testing.T, d byte, src, flags, subject string) {
		typ := []string{typeRegexp, typePCRE}[d&1]
		rules, err := newRules(typ, [][2]string{{"/" + src + "/" + flags, "yes $$"}})
		if err != nil {
			return
		}
		key, value := rules.Entry(0)
		if again, err := newRules(typ, [][2]string{{string(key), value}}); err != nil || again.rules[0].key() != string(key) {
			t.Errorf("%s doesn't come back: %v", key, err)
		}
		f := finder{}
		h := f.one([]*table{newTable("t", rules)}, subject[:min(len(subject), 1000)], "", netip.Addr{}, true)
		if h.ok() && f.value(h) != "yes $" {
			t.Errorf("value %q", f.value(h))
		}
	})
}

// TestRulesTravel takes every table of the decisions apart and puts it together
// again, entry by entry.
func TestRulesTravel(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/decisions/tables.txtar")
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, f := range ar.Files {
		parts[f.Name] = f.Data
	}
	seen := map[string]bool{}
	for name, table := range loadParts(t, parts).Spec().Tables {
		seen[table.Type()] = true
		b, err := NewTableBuilder(table.Type(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range table.Len() {
			key, value := table.Entry(i)
			if err := b.Add(key, []byte(value)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		again, err := b.Table()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, _ := table.MarshalJSON()
		got, _ := again.MarshalJSON()
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	for _, typ := range []string{typeCIDR, typeRegexp, typePCRE, typeUnion, typePipe} {
		if !seen[typ] {
			t.Errorf("no table of type %s", typ)
		}
	}
}

// TestBadTables: what can't be honoured is refused by name.
func TestBadTables(t *testing.T) {
	for _, test := range []struct{ name, table, want string }{
		{"endif", `{"type":"cidr","rules":[["endif",""]]}`, "an endif without its if"},
		{"recursion", `{"type":"pcre","rules":[["/(?R)/is","x"]]}`, `rule "/(?R)/is": (?R is not supported`},
		{"basic", `{"type":"regexp","rules":[["/a/i","x"]]}`, "basic regular expressions"},
		{"group", `{"type":"pcre","rules":[["/(a)/is","REJECT $2"]]}`, "$2 is no group"},
		{"negated group", `{"type":"pcre","rules":[["!/(a)/is","REJECT $1"]]}`, "$1 is no group"},
		{"value", `{"type":"pcre","rules":[["if /a/is","x"]]}`, "has a value"},
		{"flag", `{"type":"pcre","rules":[["/a/q","x"]]}`, "flag 'q'"},
		{"itself", `{"type":"union","tables":["t"]}`, "contains itself"},
		{"unknown", `{"type":"pipe","tables":["nobody"]}`, `no table is called "nobody"`},
		{"empty", `{"type":"union"}`, "names no table"},
	} {
		spec := NewSpec()
		err := strictJSON([]byte(`{"tables":{"t":`+test.table+`}}`), spec)
		if err == nil {
			_, err = Compile(spec)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}
