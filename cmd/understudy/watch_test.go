package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
		v := watchView{View: w.View()}
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
	if lines := (watchView{View: operator.View{Status: operator.Status(now)}}).lines(); !wanted(lines[4:]) || len(lines[6]) > 80 {
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

// TestCanvas draws pictures over each other, and has a terminal's rules applied to
// what is sent: it shows each picture. A picture of which only the clock moves, or
// a chart, costs a few octets.
func TestCanvas(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	var past chart
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	view := func(messages int, out float64) watchView {
		v := watchView{View: operator.View{Out: out}}
		v.At, v.Messages, v.Waiting, v.Oldest = at, messages, messages > 0, at.Add(-2*time.Hour)
		v.Routes = []relay.RouteStatus{{Name: "primary", Since: at.Add(-3 * time.Hour), LastError: "dial tcp: 日本"}}
		return v
	}
	var sent bytes.Buffer
	c := canvas{out: &sent}
	term := terminal{}
	step := func(v watchView) int {
		t.Helper()
		past.add(v)
		lines := v.picture("mx2.example.org", &past, 80, 24)
		sent.Reset()
		if err := c.draw(lines); err != nil {
			t.Fatal(err)
		}
		n := sent.Len()
		term.read(t, sent.String())
		for i := range 24 {
			want := ""
			if i < len(lines) {
				want = strings.TrimRight(clip(lines[i], 80), " ")
			}
			if got := strings.TrimRight(string(term[i][:]), " \x00"); got != want {
				t.Fatalf("row %d shows %q, want %q", i, got, want)
			}
		}
		return n
	}
	if len(view(10, 0).picture("mx2.example.org", &past, 80, 24)) > 24 {
		t.Error("the picture is higher than a terminal")
	}
	step(view(10, 0))
	total := 0
	for range 200 {
		at = at.Add(time.Second)
		total += step(view(10, 0))
	}
	if total > 200*20 {
		t.Errorf("%d octets a second for a clock and charts", total/200)
	}
	for i, messages := range []int{9, 1000, 37, 0, 123456, 2} { // anything may change
		at = at.Add(7 * time.Second)
		step(view(messages, float64(i)*3.7))
	}
	c.width = 79 // as if the terminal had become another
	step(view(2, 0))
}

// terminal is a screen that knows what canvas sends.
type terminal [24][80]rune

func (s *terminal) read(t *testing.T, text string) {
	t.Helper()
	row, column := 0, 0
	escape := regexp.MustCompile(`^\x1b\[([\d;]*)([A-Za-z])`)
	for text != "" {
		if m := escape.FindStringSubmatch(text); m != nil {
			text = text[len(m[0]):]
			switch m[2] {
			case "H":
				if _, err := fmt.Sscanf(m[1], "%d;%d", &row, &column); err != nil {
					t.Fatal(err)
				}
				row, column = row-1, column-1
			case "J":
				*s = terminal{}
			case "K":
				clear(s[row][column:])
			case "P":
				copy(s[row][column:], s[row][column+1:])
				s[row][79] = 0
			default:
				t.Fatalf("sent %q", m[0])
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		text = text[n:]
		if column < 80 {
			s[row][column] = r
		}
		column++
	}
}
