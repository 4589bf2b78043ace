package postfix

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// evidence is what the tests set and use, each text by its test's name as
// docs/PARITY.md has it.
type evidence struct {
	proven map[string][]string // tests in which a name matters, by name
	names  []string            // best first
	texts  map[string]string
}

// liveTests are Go files whose configurations belong to one test.
var liveTests = map[string]string{
	"live_test.go": "TestLikePostfix", "live_content_test.go": "TestContentLikePostfix", "live_postscreen_test.go": "TestPostscreenLikePostfix",
	"import_cases_test.go": "TestOlderNames",
}

func readEvidence(t *testing.T) *evidence {
	t.Helper()
	e := &evidence{texts: map[string]string{}, proven: map[string][]string{}}
	b, err := os.ReadFile("testdata/evidence.txt") // test/parity checks each line
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, test, _ := strings.Cut(strings.TrimSpace(line), " ")
		e.proven[name] = append(e.proven[name], test)
	}
	read := func(name, file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(e.names, name) {
			e.names = append(e.names, name)
		}
		e.texts[name] += string(b)
	}
	for _, file := range glob(t, "../testdata/decisions/*.txtar") {
		read("decisions/"+filepath.Base(file), file)
	}
	for _, file := range sortedKeys(liveTests) {
		read(liveTests[file], file)
		text := strings.ReplaceAll(e.texts[liveTests[file]], `\n`, "\n")
		if _, own, found := strings.Cut(text, "func "+liveTests[file]+"("); !found {
			t.Errorf("%s has no %s", file, liveTests[file])
		} else if file == "import_cases_test.go" { // others there set what is refused
			text, _, _ = strings.Cut(own, "\n}\n")
		}
		e.texts[liveTests[file]] = text
	}
	for _, file := range glob(t, "testdata/profiles/*/ma*.cf") {
		read("profiles/"+filepath.Base(filepath.Dir(file)), file)
	}
	return e
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return files
}

// parameter matches where a parameter is set: in main.cf, in an override, or
// by its name in a Spec.
func (e *evidence) parameter(name string) *regexp.Regexp {
	return regexp.MustCompile("(?m)(?:^|[\"`]|-o *\\{? *)" + name + `\s*=|"` + name + `": `)
}

// restriction matches where a restriction is used.
func (e *evidence) restriction(name string) *regexp.Regexp {
	return regexp.MustCompile(`\b` + name + `\b`)
}

// of names up to three tests in which something matters, else those that set
// it, which is enough for what is only approximated.
func (e *evidence) of(t *testing.T, name string, c fidelity.Class, find func(string) *regexp.Regexp) string {
	t.Helper()
	if c == fidelity.NoDecision || c == fidelity.NotReplicated {
		return ""
	}
	if at := e.proven[name]; len(at) > 0 {
		return strings.Join(at[:min(3, len(at))], ", ")
	}
	if c != fidelity.Approximated {
		t.Errorf("%s is called %s, and no test shows that its verdicts hang on it", name, c)
	}
	var found []string
	re := find(name)
	for _, test := range e.names {
		if re.MatchString(e.texts[test]) {
			found = append(found, test)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return "set in " + strings.Join(found[:min(3, len(found))], ", ")
}
