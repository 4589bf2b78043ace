package metrics_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/metrics"
)

//go:generate env UPDATE=1 go test -run ^TestMetricsDoc$ .

var descPattern = regexp.MustCompile(`fqName: "(\w+)", help: "((?:[^"\\]|\\.)*)", .*variableLabels: \{([^}]*)\}`)

// description is what a metric says of itself.
type description struct {
	name, help string
	labels     []string
}

// described are all metrics of a secondary and of a publisher.
func described(t *testing.T) []description {
	t.Helper()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	m.Queue(func() metrics.QueueStats { return metrics.QueueStats{} })
	m.Follower(func() metrics.FollowerStats { return metrics.FollowerStats{} })
	m.Greylist(func() (int, int64) { return 0, 0 })
	m.Publisher(func() metrics.PublisherStats { return metrics.PublisherStats{} })
	m.Pushed(func() metrics.PushStats { return metrics.PushStats{} })
	descs := make(chan *prometheus.Desc, 1000)
	reg.Describe(descs)
	close(descs)
	var all []description
	for d := range descs {
		m := descPattern.FindStringSubmatch(strings.ReplaceAll(d.String(), `\"`, "”"))
		if m == nil {
			t.Fatalf("no name and help in %s", d)
		}
		all = append(all, description{m[1], strings.ReplaceAll(m[2], "”", "`"), strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' })})
	}
	return all
}

// TestMetricsDoc keeps docs/METRICS.md equal to what is registered; with
// UPDATE=1 it writes the file.
func TestMetricsDoc(t *testing.T) {
	var rows []string
	for _, d := range described(t) {
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", d.name, strings.Join(d.labels, ", "), d.help))
	}
	slices.Sort(rows)
	want := "# Metrics\n\nGenerated from the code by `make generate`. Names ending in `_total` are counters, `_duration_seconds`\nare histograms (classic and native), the others gauges. Alert rules: `metrics/alerts.yml`, explained in\n[RUNBOOK.md](RUNBOOK.md); a dashboard for Grafana: `metrics/grafana.json`.\n\n" +
		"| metric | labels | meaning |\n| --- | --- | --- |\n" + strings.Join(rows, "")

	const path = "../docs/METRICS.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/METRICS.md is stale, run 'make generate' (-code +file):\n%s", diff)
	}
}
