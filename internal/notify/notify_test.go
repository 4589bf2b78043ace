package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/metrics"
)

// hook is a webhook that fails as often as it is told to.
type hook struct {
	mu    sync.Mutex
	fails int
	got   []event
	at    []time.Time
}

func (h *hook) RoundTrip(r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = append(h.at, time.Now())
	if h.fails > 0 {
		h.fails--
		if h.fails%2 == 0 {
			return nil, errors.New("connection refused")
		}
		return &http.Response{StatusCode: 503, Body: io.NopCloser(strings.NewReader("later"))}, nil
	}
	var e event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.Header.Get("Content-Type") != "application/json" {
		return nil, err
	}
	h.got = append(h.got, e)
	return &http.Response{StatusCode: 204, Body: http.NoBody}, nil
}

func (h *hook) events() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.got {
		all = append(all, e.Event)
	}
	return all
}

type bench struct {
	n    Notifier
	log  bytes.Buffer
	hook hook
	mail []string
}

func newBench(t *testing.T, file string) *bench {
	t.Helper()
	book, err := outage.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{}
	b.n = Notifier{Host: "mx2.example.org", After: time.Minute, Webhook: "https://hooks.example/secret", Client: &http.Client{Transport: &b.hook},
		Book: book, Log: slog.New(slog.NewTextHandler(&b.log, nil)), Metrics: metrics.New(prometheus.NewRegistry()),
		Mail: func(_ context.Context, subject, _ string) error { b.mail = append(b.mail, subject); return nil }}
	return b
}

// primary notes how the primary is for a while.
func (b *bench) primary(up bool, for_ time.Duration) {
	since := time.Now()
	for end := since.Add(for_); time.Now().Before(end); time.Sleep(2 * time.Second) {
		b.n.Book.Observe(time.Now(), outage.Sample{Routes: []outage.Route{{Name: "primary", Up: up, Since: since, Error: "connection refused"}}})
	}
}

// run lets the notifier work while do does.
func (b *bench) run(t *testing.T, do func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { _ = b.n.Run(ctx) })
	do()
	stop()
	g.Wait()
}

func TestTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, filepath.Join(t.TempDir(), "outages.json"))
		b.run(t, func() {
			b.primary(true, time.Minute)
			b.primary(false, 30*time.Second) // too short for anybody to be told
			b.primary(true, 3*time.Minute)
			if got := b.hook.events(); len(got) > 0 {
				t.Errorf("told of an outage of 30 s: %v", got)
			}
			b.primary(false, 5*time.Minute)
			if got := b.hook.events(); len(got) != 1 || got[0] != "outage_began" {
				t.Errorf("amid the outage: %v", got)
			}
			b.primary(true, time.Minute)
		})
		if got := b.hook.events(); len(got) != 2 || got[1] != "outage_ended" || b.hook.got[1].Seconds < 290 || b.hook.got[1].Host != "mx2.example.org" {
			t.Errorf("after the outage: %+v", b.hook.got)
		}
		if len(b.mail) != 2 || !strings.Contains(b.mail[0], "doesn't answer") || !strings.Contains(b.mail[1], "is back after 5m") {
			t.Errorf("mail: %q", b.mail)
		}
	})
}

// TestFails: a webhook that fails is tried again, ever more seldom, doesn't keep the
// mail, is logged once, and without its address; a restart goes on.
func TestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "outages.json")
		b := newBench(t, file)
		b.hook.fails = 5
		b.run(t, func() { b.primary(false, 30*time.Minute) })
		if got := b.hook.events(); len(got) != 1 || len(b.hook.at) != 6 || len(b.mail) != 1 {
			t.Fatalf("%d tries, told %v, mail %q", len(b.hook.at), got, b.mail)
		}
		for i := 2; i < len(b.hook.at); i++ {
			if before, now := b.hook.at[i-1].Sub(b.hook.at[i-2]), b.hook.at[i].Sub(b.hook.at[i-1]); now < before {
				t.Errorf("try %d comes after %v, the one before after %v", i, now, before)
			}
		}
		if log := b.log.String(); strings.Count(log, "can't be told") != 1 || strings.Contains(log, "secret") {
			t.Errorf("log:\n%s", log)
		}
		if got := testutil.ToFloat64(b.n.Metrics.Notices.WithLabelValues("webhook", "failed")); got != 5 {
			t.Errorf("metric: %v failures", got)
		}
		if err := b.n.Book.Save(); err != nil {
			t.Fatal(err)
		}
		b = newBench(t, file)
		b.run(t, func() { b.primary(false, 10*time.Minute); b.primary(true, time.Minute) })
		if got := b.hook.events(); len(got) != 1 || got[0] != "outage_ended" || len(b.mail) != 1 {
			t.Errorf("after a restart: told %v, mail %q", got, b.mail)
		}
	})
}

// TestHook: over the net, a redirect isn't followed, an endless answer isn't read,
// and an error doesn't show the address.
func TestHook(t *testing.T) {
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/endless":
			for _, err := w.Write(make([]byte, 1<<16)); err == nil; _, err = w.Write(make([]byte, 1<<16)) {
			}
		}
	}))
	defer s.Close()
	client := s.Client()
	client.CheckRedirect = NoRedirect
	n := Notifier{Client: client}
	o := outage.Outage{ID: 1, Route: "primary", Noticed: "dial tcp 192.0.2.1:25: refused", Began: time.Now()}
	for path, want := range map[string]string{"/ok": "", "/endless": "", "/redirect": "answers 307"} {
		n.Webhook = s.URL + path
		if err := n.post(t.Context(), &o, began); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if elsewhere > 0 {
		t.Error("a redirect was followed")
	}
	n.Client = &http.Client{}
	n.Webhook = s.URL + "/secret"
	if err := n.post(t.Context(), &o, began); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a certificate that nobody knows: %v", err)
	}
}
