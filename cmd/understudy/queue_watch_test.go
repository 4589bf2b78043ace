package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/relay"
)

// TestWatchRates: what came and what left, the time to go, and the picture.
func TestWatchRates(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int, accepted uint64, messages, held int) daemonNow {
		return daemonNow{
			Status: queue.Status{At: start.Add(time.Duration(seconds) * time.Second), Accepted: accepted, Messages: messages,
				Held: held, Deferred: 3, Waiting: messages > held, Oldest: start.Add(-2 * time.Hour),
				Destinations: []queue.DestinationNow{{Name: "primary", Sessions: 2, Allowed: 4}}},
			Routes: []relay.RouteStatus{{Name: "primary", Up: true, Since: start},
				{Name: "other", Since: start, LastError: "connection\nrefused"}},
		}
	}
	damaged := at(24, 5, 5, 5)
	damaged.Damaged = true
	var w operator.Watch
	for _, tt := range []struct {
		name    string
		now     daemonNow
		in, out float64
		line    string
	}{
		{"the first has no rate", at(0, 1000, 1000, 10), 0, 0, "1000 messages, 3 deferred, 10 held, 0 B, oldest 2h0m; 0.0/s in, 0.0/s out, not shrinking"},
		{"it drains", at(10, 1100, 100, 10), 10, 100, "10.0/s in, 100.0/s out, empty in 1s; primary up for 10s, 2 of 4 sessions; other down for 10s, being probed: connection\uFFFDrefused"},
		{"what is older than ten seconds is forgotten", at(21, 1200, 200, 10), 100.0 / 11, 0, "not shrinking"},
		{"another queue", at(22, 5, 5, 0), 0, 0, "not shrinking"},
		{"held mail doesn't wait", at(23, 5, 5, 5), 0, 0, "nothing waits"},
		{"damaged", damaged, 0, 0, "; store damaged: stop understudy when you can, run understudy queue repair"},
	} {
		w.Add(operator.Status(tt.now))
		v := watchView{w.View()}
		if v.In != tt.in || v.Out != tt.out {
			t.Errorf("%s: %v in, %v out, want %v, %v", tt.name, v.In, v.Out, tt.in, tt.out)
		}
		if line := v.line(); !strings.Contains(line, tt.line) {
			t.Errorf("%s: got %q, want %q", tt.name, line, tt.line)
		}
	}
}

// TestTrouble: what is wrong with the queue itself stands in the picture, its
// remedy in the 80 columns of a terminal, below the list, and in the report to
// the primary.
func TestTrouble(t *testing.T) {
	now := daemonNow{Status: queue.Status{Quarantined: 2, Broken: true, Damaged: true}}
	want := []string{"Damaged   2 messages put aside", "Store     being reopened", "Store     damaged: stop understudy when you can, run understudy queue repair"}
	wanted := func(lines []string) bool { return slices.EqualFunc(lines, want, strings.HasPrefix) }
	if lines := (watchView{operator.View{Status: operator.Status(now)}}).lines(); !wanted(lines[4:]) || len(lines[6]) > 80 {
		t.Errorf("watch: %q", lines)
	}

	for want, got := range map[string]string{
		"":             problem(nil, metrics.QueueStats{}),
		"no policy":    problem(errors.New("no policy"), metrics.QueueStats{Damaged: true}),
		"queue repair": problem(nil, metrics.QueueStats{Damaged: true, Held: 2}),
		"2 messages":   problem(nil, metrics.QueueStats{Held: 2}),
	} {
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("the primary is told %q, want %q", got, want)
		}
	}

	dir := serveDir(t, strings.Replace(unitConfig, `"state"`, `"."`, 1))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/queue", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]bool{"end": true})
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(now) })
	l, err := control.Listen(control.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- control.Serve(ctx, l, mux) }()
	defer func() { stop(); <-done }()
	var out bytes.Buffer
	if err := (&queueListCmd{daemonFlag: daemonFlag{Conf: filepath.Join(dir, "understudy.toml")}}).Run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"); !wanted(lines[1:]) {
		t.Errorf("list: %q", lines)
	}
}
