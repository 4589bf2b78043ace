package main

import (
	"strings"
	"testing"
	"time"

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
	var w watch
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
	} {
		w.add(tt.now)
		v := w.view()
		if v.In != tt.in || v.Out != tt.out {
			t.Errorf("%s: %v in, %v out, want %v, %v", tt.name, v.In, v.Out, tt.in, tt.out)
		}
		if line := v.line(); !strings.Contains(line, tt.line) {
			t.Errorf("%s: got %q, want %q", tt.name, line, tt.line)
		}
	}
}
