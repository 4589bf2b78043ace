package metrics_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/yaml.v3"

	"github.com/understudy-mx/understudy/metrics"
)

// runbook is where runbook_url of each alert points: a section of docs/RUNBOOK.md.
const runbook = "https://github.com/understudy-mx/understudy/blob/main/docs/RUNBOOK.md"

type alertRule struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func readYAML(t *testing.T, path string, v any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alertRule } }
	readYAML(t, "alerts.yml", &file)
	var all []alertRule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 30 {
		t.Fatalf("%d alerts", len(all))
	}
	return all
}

// TestRunbook wants a section of docs/RUNBOOK.md for each alert, with its four
// parts, and no other.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile("../docs/RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(text), "\n## ")[1:] {
		name, body, _ := strings.Cut(s, "\n")
		sections[name] = body
	}
	parts := regexp.MustCompile(`(?s)^\s*\*\*Means\.\*\* \S.*\n\*\*See\.\*\* \S.*\n\*\*Do\.\*\* \S.*\n\*\*Ends\.\*\* \S`)
	for _, a := range alertRules(t) {
		if body, ok := sections[a.Alert]; !ok {
			t.Errorf("%s has no section in docs/RUNBOOK.md", a.Alert)
		} else if !parts.MatchString(body) {
			t.Errorf("docs/RUNBOOK.md: %s hasn't the parts Means, See, Do and Ends, in this order, each on a line of its own", a.Alert)
		}
		delete(sections, a.Alert)
		if want := runbook + "#" + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
		for _, name := range []string{"summary", "description"} {
			if a.Annotations[name] == "" {
				t.Errorf("%s has no %s", a.Alert, name)
			}
		}
	}
	for name := range sections {
		t.Errorf("docs/RUNBOOK.md: no alert is named %s", name)
	}
}

// alertCase is an entry of testdata/alerts.yml.
type alertCase struct {
	Step   string
	Series map[string]string
	At     struct{ Healthy, Fault, Over string }
	Labels map[string]string
}

// promtool's file of tests, as far as it is needed.
type (
	promCase struct {
		Name     string       `yaml:"name"`
		Interval string       `yaml:"interval"`
		Series   []promSeries `yaml:"input_series"`
		Tests    []promTest   `yaml:"promql_expr_test"`
	}
	promSeries struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	}
	promTest struct {
		Expr   string       `yaml:"expr"`
		At     string       `yaml:"eval_time"`
		Expect []promSample `yaml:"exp_samples,omitempty"`
	}
	promSample struct {
		Labels string  `yaml:"labels"`
		Value  float64 `yaml:"value"`
	}
)

// TestAlerts lets Prometheus play each alert's case: it is silent while all is
// well, fires on its fault, and is silent again after it. With the healthy
// beginnings of all cases together none fires.
func TestAlerts(t *testing.T) {
	cases := map[string]alertCase{}
	readYAML(t, "testdata/alerts.yml", &cases)
	rules, err := filepath.Abs("alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	healthy := map[string]string{}
	start := regexp.MustCompile(`x\d+( .*)?$`)
	bySteps := map[string][]promCase{} // a file of tests has one interval between evaluations
	for _, a := range alertRules(t) {
		c, ok := cases[a.Alert]
		if !ok || len(c.Series) == 0 || c.At.Healthy == "" || c.At.Fault == "" || c.At.Over == "" {
			t.Errorf("%s needs a case in testdata/alerts.yml, with series and the times healthy, fault and over", a.Alert)
			continue
		}
		delete(cases, a.Alert)
		step := cmp.Or(c.Step, "1m")
		bySteps[step] = append(bySteps[step], c.promtool(a, step))
		for series, values := range c.Series {
			if step == "1m" {
				healthy[series] = start.ReplaceAllString(values, "x120")
			}
		}
		for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(fmt.Sprint(a.Annotations), -1) {
			if _, ok := c.Labels[m[1]]; !ok {
				t.Errorf("%s: its text names the label %s, which it hasn't while it fires", a.Alert, m[1])
			}
		}
	}
	for name := range cases {
		t.Errorf("testdata/alerts.yml: no alert is named %s", name)
	}
	bySteps["1m"] = append(bySteps["1m"], promCase{Name: "healthy", Interval: "1m", Series: seriesOf(healthy), Tests: []promTest{
		{Expr: `ALERTS{alertstate="firing"}`, At: "30m"}, {Expr: `ALERTS{alertstate="firing"}`, At: "120m"},
	}})
	for step, all := range bySteps {
		text, err := yaml.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": step, "tests": all})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "tests.yml")
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput(); err != nil {
			t.Errorf("promtool test rules: %v\n%s", err, out)
		}
	}
}

func (c alertCase) promtool(a alertRule, step string) promCase {
	firing := fmt.Sprintf(`ALERTS{alertname=%q,alertstate="firing"`, a.Alert)
	labels := maps.Clone(c.Labels)
	maps.Copy(labels, a.Labels)
	all := firing
	for name, value := range labels {
		all += fmt.Sprintf(",%s=%q", name, value)
	}
	return promCase{Name: a.Alert, Interval: step, Series: seriesOf(c.Series), Tests: []promTest{
		{Expr: firing + "}", At: c.At.Healthy},
		{Expr: firing + "}", At: c.At.Fault, Expect: []promSample{{all + "}", 1}}},
		{Expr: firing + "}", At: c.At.Over},
	}}
}

func seriesOf(all map[string]string) []promSeries {
	var list []promSeries
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, promSeries{name, all[name]})
	}
	return list
}

// TestAlertSeries: every series of the cases is one that the program exports. A
// counter whose increase is watched is there from the start, with each value of
// the label that the alert names: Prometheus sees no increase in a series that
// begins with 1.
func TestAlertSeries(t *testing.T) {
	cases := map[string]alertCase{}
	readYAML(t, "testdata/alerts.yml", &cases)
	labels := map[string][]string{"up": {"job"}}
	for _, d := range described(t) {
		labels[d.name] = d.labels
	}
	for name, c := range cases {
		for series := range c.Series {
			metric, rest, _ := strings.Cut(series, "{")
			var got []string
			for _, m := range regexp.MustCompile(`(\w+)="[^"]*"`).FindAllStringSubmatch(rest, -1) {
				if m[1] != "instance" {
					got = append(got, m[1])
				}
			}
			want, ok := labels[metric]
			if !ok || !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
				t.Errorf("%s: the program exports no series like %s", name, series)
			}
		}
	}
	fresh := exported(t)
	for _, a := range alertRules(t) {
		for _, m := range regexp.MustCompile(`increase\((\w+)(?:\{(\w+)=~?"([^"]*)"\})?`).FindAllStringSubmatch(a.Expr, -1) {
			if len(fresh[m[1]]) == 0 {
				t.Errorf("%s: %s isn't exported from the start", a.Alert, m[1])
			}
			for _, value := range strings.FieldsFunc(m[3], func(r rune) bool { return r == '|' }) {
				if !slices.ContainsFunc(fresh[m[1]], func(have map[string]string) bool { return have[m[2]] == value }) {
					t.Errorf("%s: %s{%s=%q} isn't exported from the start", a.Alert, m[1], m[2], value)
				}
			}
		}
	}
}

// exported are the series of a secondary and of a publisher that have just
// started, by metric: the labels of each.
func exported(t *testing.T) map[string][]map[string]string {
	t.Helper()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	rules, err := os.ReadFile("../sync/alarm.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range regexp.MustCompile(`Alarm = "(\w+)"`).FindAllStringSubmatch(string(rules), -1) { // as NewFollower does
		m.SyncAlarms.WithLabelValues(a[1])
	}
	m.Queue(func() metrics.QueueStats { return metrics.QueueStats{} })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]map[string]string{}
	for _, f := range families {
		for _, series := range f.Metric {
			labels := map[string]string{}
			for _, l := range series.Label {
				labels[l.GetName()] = l.GetValue()
			}
			all[f.GetName()] = append(all[f.GetName()], labels)
		}
	}
	return all
}
