package pattern

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// patternLine is a line of testdata: a pattern with its flags as in a
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

// toggled applies flags to a Dialect's defaults.
func toggled(d Dialect, flags string) string {
	on := map[byte]bool{'i': true, 's': d == PCRE, 'x': d == ERE}
	for i := range len(flags) {
		on[flags[i]] = !on[flags[i]]
	}
	s := ""
	for _, f := range letters[d] {
		if on[byte(f)] {
			s += string(f)
		}
	}
	return s
}

// exact says whether what the groups of a match hold is what Postfix finds
// there. Where several ways lead to the longest match, POSIX prefers another
// one than our engines do, so that only the match itself is certain.
func (p *Pattern) exact(d Dialect) bool {
	return d == PCRE || p.backtrack == nil && !strings.ContainsAny(p.src, "|*+?{")
}

// TestPatternsAsPostfix asks Postfix's own engines and ours the same.
func TestPatternsAsPostfix(t *testing.T) {
	postmap, err := exec.LookPath("postmap")
	if err != nil {
		if postmap, err = exec.LookPath("/usr/sbin/postmap"); err != nil {
			t.Fatal("postmap is missing: run test/install-peers")
		}
	}
	for d, typ := range map[Dialect]string{ERE: "regexp", PCRE: "pcre"} {
		t.Run(typ, func(t *testing.T) {
			lines := readPatterns(t, filepath.Join("testdata", typ))
			table := filepath.Join(t.TempDir(), "table")
			for _, l := range lines {
				re, err := Compile(d, l.pattern, toggled(d, l.flags))
				value := "yes"
				for i := range 3 {
					if re != nil && i < re.Groups() && re.exact(d) {
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

func answerOf(t *testing.T, re *Pattern, subject, value string) string {
	if re == nil {
		return ""
	}
	var s Subject
	s.Set([]byte(subject))
	found, err := re.Match(&s)
	if err != nil {
		t.Error(err)
	}
	if !found {
		return ""
	}
	groups, err := re.Find(&s)
	if err != nil {
		t.Error(err)
	}
	for i := 1; i < len(groups); i++ {
		value = strings.ReplaceAll(value, fmt.Sprintf("$%d", i), groups[i])
	}
	return value
}

// FuzzPattern: what is taken can be matched, and is taken again as it is spelt.
func FuzzPattern(f *testing.F) {
	for d, typ := range map[Dialect]string{ERE: "regexp", PCRE: "pcre"} {
		for _, l := range readPatterns(f, filepath.Join("testdata", typ)) {
			f.Add(byte(d), l.pattern, toggled(d, l.flags), l.subjects[0])
		}
	}
	f.Fuzz(func(t *testing.T, d byte, src, flags, subject string) {
		p, err := Compile(Dialect(d&1), src, flags)
		if err != nil {
			return
		}
		if p.String() != "/"+src+"/"+flags {
			t.Errorf("spelt %s", p)
		}
		var s Subject
		s.Set([]byte(subject[:min(len(subject), 1000)]))
		found, err := p.Match(&s)
		groups, findErr := p.Find(&s)
		if err == nil && findErr == nil && !found && strings.Join(groups, "") != "" {
			t.Errorf("no match, but groups %q", groups)
		}
	})
}

// BenchmarkPattern matches a name with what sites have in their tables, in the
// linear-time engine and in the backtracking one.
func BenchmarkPattern(b *testing.B) {
	key := []byte("adsl-198-51-100-17.pool.provider.example")
	for _, p := range []struct{ name, src string }{
		{"linear/prefix", `^mail\d*\.`},
		{"linear/dynamic", `(dhcp|dial|ppp|[ax]?dsl).*\d{1,3}[.-]\d{1,3}[.-]\d{1,3}`},
		{"backtrack/dynamic", `(?=.)(dhcp|dial|ppp|[ax]?dsl).*\d{1,3}[.-]\d{1,3}[.-]\d{1,3}`},
		{"backtrack/lookahead", `^(?!.*@example\.org$)`},
		{"backtrack/nested", `(?=.)^(\w+[.-]?)+$`},
	} {
		b.Run(p.name, func(b *testing.B) {
			re, err := Compile(PCRE, p.src, "is")
			if err != nil {
				b.Fatal(err)
			}
			var s Subject
			b.ReportAllocs()
			for b.Loop() {
				s.Set(key)
				re.Match(&s)
			}
		})
	}
}

// TestGiveUp: what would take years ends with an error, in a match and in its
// groups; the pattern is good for others after it.
func TestGiveUp(t *testing.T) {
	p, err := Compile(PCRE, `^(?=(a))(((\1+)+)+)+!`, "is")
	if err != nil {
		t.Fatal(err)
	}
	var s Subject
	s.Set(bytes.Repeat([]byte("a"), 60))
	if found, err := p.Match(&s); found || err == nil {
		t.Errorf("match: %v, %v", found, err)
	}
	if groups, err := p.Find(&s); err == nil {
		t.Errorf("groups: %q", groups)
	}
	s.Set([]byte("aa!"))
	if found, err := p.Match(&s); !found || err != nil {
		t.Errorf("the next: %v, %v", found, err)
	}
}

// TestLength: the longest pattern there may be, and one that is longer.
func TestLength(t *testing.T) {
	for n, want := range map[int]bool{MaxLen: true, MaxLen + 1: false} {
		if _, err := Compile(PCRE, strings.Repeat("a", n), "is"); (err == nil) != want {
			t.Errorf("%d octets: %v", n, err)
		}
	}
}

// TestLongest: POSIX wants the longest alternative, PCRE the first.
func TestLongest(t *testing.T) {
	for d, want := range map[Dialect]string{ERE: "ab", PCRE: "a"} {
		p, err := Compile(d, "^(a|ab)", map[Dialect]string{ERE: "ix", PCRE: "is"}[d])
		if err != nil {
			t.Fatal(err)
		}
		var s Subject
		s.Set([]byte("abc"))
		if groups, err := p.Find(&s); err != nil || groups[1] != want {
			t.Errorf("dialect %d: %q, %v, want %q", d, groups, err, want)
		}
	}
}
