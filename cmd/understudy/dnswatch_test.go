package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/metrics"
)

// TestDNSWatch: look-ups that fail in a row are told once, and so is the answer
// that ends them. What a server answers for one name alone tells nothing.
func TestDNSWatch(t *testing.T) {
	var log strings.Builder
	w := dnsWatch{log: slog.New(slog.NewTextHandler(&log, nil)), failing: metrics.New(prometheus.NewRegistry()).DNSFailing, onFailure: "as-primary"}
	for _, tt := range []struct {
		results string
		failing float64
		lines   int
	}{
		{"timeout servfail nxdomain", 0, 0},
		{"servfail timeout ok", 0, 0},
		{"timeout error nodata", 0, 0},
		{"timeout servfail", 0, 0},
		{"error", 1, 1},
		{"timeout timeout timeout timeout timeout", 1, 1},
		{"nxdomain", 0, 2},
		{"ok ok", 0, 2},
	} {
		for r := range strings.FieldsSeq(tt.results) {
			w.note(r)
		}
		if got, lines := testutil.ToFloat64(w.failing), strings.Count(log.String(), "\n"); got != tt.failing || lines != tt.lines {
			t.Errorf("after %s: failing %v, %d lines, want %v, %d", tt.results, got, lines, tt.failing, tt.lines)
		}
	}
	if !strings.Contains(log.String(), "let in") {
		t.Errorf("the log doesn't say what follows:\n%s", log.String())
	}
}
