package metrics_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/metrics"
)

func TestLint(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg)
	m.Queue(func() metrics.QueueStats { return metrics.QueueStats{Messages: 3, Oldest: time.Now().Add(-time.Hour)} })
	m.Follower(func() metrics.FollowerStats { return metrics.FollowerStats{State: "fresh", Staged: "pending"} })
	m.Follower(func() metrics.FollowerStats { return metrics.FollowerStats{State: "stale", Version: 7} }) // paired anew
	m.Publisher(func() metrics.PublisherStats { return metrics.PublisherStats{Version: 1} })
	m.Pushed(func() metrics.PushStats { return metrics.PushStats{} })
	m.Verdicts.WithLabelValues("rcpt", "reject", "reject_unlisted_recipient").Inc()
	m.PrimaryUp.WithLabelValues("default").Set(1)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	want := "# HELP understudy_sync_version Version of the primary's policy that is held.\n# TYPE understudy_sync_version gauge\nunderstudy_sync_version 7\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "understudy_sync_version"); err != nil {
		t.Error(err)
	}
}

func TestHandler(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	m.Queue(func() metrics.QueueStats { return metrics.QueueStats{Messages: 3} })
	var notReady error
	srv := httptest.NewServer(metrics.Handler(reg, func() error { return notReady }))
	defer srv.Close()

	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "understudy_queue_messages 3\n") {
		t.Errorf("/metrics: %d, without the queue's depth:\n%s", code, body)
	}
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("/readyz when ready: %d", code)
	}
	notReady = errors.New("no policy yet")
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no policy yet") {
		t.Errorf("/readyz when not ready: %d %q", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("/healthz must not depend on readiness: %d", code)
	}
}

// TestPromtool lets Prometheus's own linter read a scrape and the alert rules.
func TestPromtool(t *testing.T) {
	if out, err := exec.Command("promtool", "check", "rules", "alerts.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	reg := prometheus.NewRegistry()
	metrics.New(reg).Queue(func() metrics.QueueStats { return metrics.QueueStats{} })
	rec := httptest.NewRecorder()
	metrics.Handler(reg, func() error { return nil }).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = rec.Body
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
