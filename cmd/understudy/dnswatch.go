package main

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// onFailureDefer is the value of [dns] on_failure that isn't its default.
const onFailureDefer = "defer"

// dnsFailures is how many look-ups have to fail in a row before the DNS counts
// as failing: one alone says more about the name that was asked for.
const dnsFailures = 3

// dnsWatch tells the operator, once, that the DNS fails, and that it is back.
type dnsWatch struct {
	log       *slog.Logger
	failing   prometheus.Gauge
	onFailure string

	mu  sync.Mutex // guards row
	row int        // look-ups that failed, one after another
}

// note takes the result of a look-up for which servers were asked.
func (w *dnsWatch) note(result string) {
	failed := result != "ok" && result != "nxdomain" && result != "nodata"
	w.mu.Lock()
	was := w.row
	if w.row++; !failed {
		w.row = 0
	}
	now := w.row
	w.mu.Unlock()
	switch {
	case now == dnsFailures:
		w.failing.Set(1)
		consequence := "clients that a blocklist holds are let in, as they are at the primary; [dns] on_failure = \"defer\" would put them off"
		if w.onFailure == onFailureDefer {
			consequence = "what a blocklist has to be asked about is put off"
		}
		w.log.Error("DNS fails: look at the servers of [dns]", "last", result, "until_then", consequence)
	case now == 0 && was >= dnsFailures:
		w.failing.Set(0)
		w.log.Info("DNS answers again")
	}
}
