package testmx

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Evidence returns what a file says that matters in a test: the names of its
// lines "name test". With UPDATE=1 in the environment it first replaces the
// test's lines by those of all that matters returns true for and that have no
// line of another test.
func Evidence(t *testing.T, file, test string, all []string, matters func(name string) bool) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var names, lines []string
	for line := range strings.Lines(string(b)) {
		if name, of, _ := strings.Cut(strings.TrimSpace(line), " "); of == test {
			names = append(names, name)
		} else {
			lines = append(lines, line)
		}
	}
	if os.Getenv("UPDATE") == "" {
		return names
	}
	names = slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		known := slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, name+" ") })
		return known || !matters(name)
	})
	for _, name := range names {
		lines = append(lines, name+" "+test+"\n")
	}
	slices.Sort(lines)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	return names
}

var (
	setting = regexp.MustCompile(`(?m)^(\w+)\s*=`)
	word    = regexp.MustCompile(`\b[a-z][a-z_]*_[a-z_]+\b|\bpermit\b|\breject\b|\bdefer\b|\bsleep\b`)
	silent  = regexp.MustCompile(`^(?:sleep|permit_sasl_authenticated|check_(?:sasl|etrn)_access|reject_authenticated_sender_login_mismatch)$`)
	takes   = regexp.MustCompile(`^sleep$|^check_\w+_(access|service)$|_rbl_|_rhsbl_|_dnswl_|_rhswl_|^reject_rbl$`)
)

// Mentioned returns the parameters that a main.cf sets, and other words of it
// that may be restrictions.
func Mentioned(main string) []string {
	names := word.FindAllString(main, -1)
	for _, m := range setting.FindAllStringSubmatch(main, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Without returns a main.cf in which a parameter has Postfix's default or, if
// it sets no parameter of that name, a restriction does nothing. One that says
// nothing to anybody who comes speaks instead: it refuses, or permits.
func Without(main, name string) string {
	if param := parameter(name); param.MatchString(main) {
		return param.ReplaceAllString(main, "")
	}
	arg, instead := "", "sleep 0"
	if silent.MatchString(name) {
		if instead = "reject"; strings.HasPrefix(name, "permit_") {
			instead = "permit"
		}
	}
	if takes.MatchString(name) {
		arg = `\s+(?:\w+:)?(?:\{[^}]*\}|[^\s,]+)`
	}
	return regexp.MustCompile(`\b`+name+`\b`+arg).ReplaceAllString(main, instead)
}

// parameter finds the lines of a main.cf that set a parameter.
func parameter(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + name + `\s*=.*\n(?:[ \t].*\n)*`)
}

// Override returns a main.cf and what it is to have beside it or instead; of
// lines that set the same the last counts. Postfix warns of a line that another
// overrides, in each process, postlogd too: it waits for itself to read that as
// soon as ten lines of log wait.
func Override(main, own string) string {
	text := main + own
	for _, m := range setting.FindAllStringSubmatch(own, -1) {
		lines := parameter(m[1]).FindAllStringIndex(text, -1)
		for _, at := range slices.Backward(lines[:len(lines)-1]) {
			text = text[:at[0]] + text[at[1]:]
		}
	}
	return text
}
