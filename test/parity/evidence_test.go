package parity

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// evidenceFile says which parameters and restrictions matter in which test.
const evidenceFile = "../../policy/postfix/testdata/evidence.txt"

// otherwise are the commands that a secondary answers otherwise than its
// primary, and says so.
var otherwise = map[string]string{
	"content nul": "the door refuses NUL",
	"content received                         ": "a texthash table in header_checks isn't replicated: the report names it",
}

// codes are a reply's code and enhanced code.
func (r reply) codes() string {
	f := strings.Fields(r.text)
	return strings.Join(f[:min(2, len(f))], " ") + " "
}

// matter asserts of each name that evidence.txt gives a decision table: with
// the parameter back at Postfix's default, or the restriction taken away, what
// is imported answers something else. It also asserts that what is imported
// from the table's main.cf answers as the table says.
func (d *decisions) matter(t *testing.T, file, run, service string) {
	name := filepath.Join(run, "main.cf")
	main := readFile(t, name)
	replies := func(text string, judge func(command, verdict string, got reply)) ([]string, error) {
		writeOld(t, name, text)
		spec, _, err := postfix.Import(t.Context(), postfix.Source{ConfigDir: run, Service: service})
		if err != nil {
			return nil, err
		}
		local, stop := serve(t, spec, d.server.Addr(), d.proxy)
		defer stop()
		return d.play(t, local, parallel, judge), nil
	}
	want, err := replies(main, func(command, verdict string, got reply) {
		if !got.is(verdict) && !strings.HasPrefix(verdict, got.codes()) && otherwise[command] == "" {
			t.Errorf("imported: %s: %s, the table %q", command, got, verdict)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	matters := func(what string) bool {
		got, err := replies(testmx.Without(main, what), func(string, string, reply) {})
		return err == nil && !slices.Equal(got, want)
	}
	for _, what := range testmx.Evidence(t, evidenceFile, "decisions/"+file, testmx.Mentioned(d.parts["main.cf"]), matters) {
		if !matters(what) {
			t.Errorf("%s doesn't matter here, though evidence.txt says so", what)
		}
	}
}

// matter asserts of each name that evidence.txt gives the profile: when it is
// changed as in a decision table, one of the sessions differs.
func (r *run) matter(t *testing.T, profile string) {
	name := filepath.Join(r.primary.src.ConfigDir, "main.cf")
	main := readFile(t, name)
	proven := readFile(t, evidenceFile)
	matters := func(what string) bool {
		writeOld(t, name, testmx.Without(main, what))
		spec, _, err := postfix.Import(t.Context(), r.primary.src)
		return err == nil && r.find(t, spec) != nil
	}
	all := slices.DeleteFunc(testmx.Mentioned(main), func(what string) bool { return strings.Contains("\n"+proven, "\n"+what+" decisions/") })
	for _, what := range testmx.Evidence(t, evidenceFile, "profiles/"+profile, all, matters) {
		if !matters(what) {
			t.Errorf("%s doesn't matter here, though evidence.txt says so", what)
		}
	}
}
