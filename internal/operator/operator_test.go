package operator

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/store/storetest"
	policysync "github.com/understudy-mx/understudy/sync"
)

// desk is a daemon's, with one message and an outage.
func desk(t *testing.T) (d Desk, id string, log *bytes.Buffer) {
	t.Helper()
	log = new(bytes.Buffer)
	q, err := queue.Open(queue.Options{Store: storetest.New(), Route: func(string) string { return "primary" }, Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	m, err := envelope.ParseMailbox("alice@example.org")
	if err != nil {
		t.Fatal(err)
	}
	draft, err := q.Begin(&envelope.Envelope{To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: m}}}})
	if err == nil {
		if _, err = io.WriteString(draft, "Subject: x\r\n\r\nx\r\n"); err == nil {
			err = draft.Commit(t.Context())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	book, err := outage.Open(filepath.Join(t.TempDir(), "outages.json"))
	if err != nil {
		t.Fatal(err)
	}
	d = Desk{Queue: q, Outages: book, Log: slog.New(slog.NewTextHandler(log, nil)),
		Sign: func(outage.Outage, string) ([]byte, error) { return nil, errors.New("no key") }}
	return d, draft.ID(), log
}

// TestRefusals: each handler refuses what it must, with a status and words of its own.
func TestRefusals(t *testing.T) {
	d, id, _ := desk(t)
	h := ServeDaemon(d)
	for _, tt := range []struct {
		method, target string
		code           int
		text           string
	}{
		{"DELETE", "/v1/queue", 405, ""},
		{"POST", "/v1/status", 405, ""},
		{"GET", "/v1/flush", 405, ""},
		{"PUT", "/v1/queue/" + id, 405, ""},
		{"GET", "/v1/queue/" + id + "/hold", 405, ""},
		{"GET", "/v2/status", 404, ""},
		{"GET", "/v1/queue/none", 404, `message \"none\"`},
		{"GET", "/v1/queue/none/body", 404, `message \"none\"`},
		{"POST", "/v1/queue/none/hold", 404, `message \"none\"`},
		{"POST", "/v1/queue/none/release", 404, `message \"none\"`},
		{"POST", "/v1/queue/none/return", 404, `message \"none\"`},
		{"DELETE", "/v1/queue/none", 404, `message \"none\"`},
		{"POST", "/v1/queue/" + id + "/return", 409, "not returned"},
		{"GET", "/v1/quarantine/x/body", 404, `message \"x\"`},
		{"GET", "/v1/quarantine/1/body", 404, `message \"1\"`},
		{"GET", "/v1/quarantine/1/other", 404, `message \"1\"`},
		{"GET", "/v1/outages/9/report", 404, "no such outage"},
		{"GET", "/v1/outages/x/report", 404, "no such outage"},
		{"GET", "/v1/sync/status", 409, "policy.file"},
		{"GET", "/v1/sync/snapshot", 409, "no policy"},
		{"POST", "/v1/sync/approve/1", 409, "policy.file"},
		{"POST", "/v1/sync/reject/x", 409, "policy.file"},
		{"POST", "/v1/sync/rotate", 409, "policy.file"},
		{"POST", "/v1/sync/join?token=x", 409, "without [sync]"},
		{"GET", "/v1/sync/join", 405, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.text) {
			t.Errorf("%s %s: got %d %s, want %d %s", tt.method, tt.target, w.Code, w.Body, tt.code, tt.text)
		}
	}
	if got := d.Queue.Status(); got.Messages != 1 || got.Held != 0 {
		t.Errorf("a refused request did something: %+v", got)
	}
}

// TestPublisherRefusals is the same for a publisher's.
func TestPublisherRefusals(t *testing.T) {
	p, err := policysync.OpenPublisher(policysync.PublisherOptions{Dir: t.TempDir(), Address: "192.0.2.1:9626", Metrics: metrics.New(prometheus.NewRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	h := ServePublisher(p, nil, nil, nil)
	for _, tt := range []struct {
		method, target string
		code           int
		text           string
	}{
		{"GET", "/v1/invite", 405, ""},
		{"POST", "/v1/peers", 405, ""},
		{"DELETE", "/v1/peers/mx9", 409, "nobody is called"},
		{"POST", "/v1/invite?name=" + strings.Repeat("a", 64), 409, "use 1 to 63"},
		{"POST", "/v1/invite?name=..%2F..", 409, "use 1 to 63"},
		{"POST", "/v1/rotate/finish", 409, ""},
		{"GET", "/v1/rotate", 405, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.text) {
			t.Errorf("%s %s: got %d %s, want %d %s", tt.method, tt.target, w.Code, w.Body, tt.code, tt.text)
		}
	}
}

// TestSocket goes by the socket: who reads a message is in the log by the kernel's
// word, a body is bounded, and the client passes on why it was refused.
func TestSocket(t *testing.T) {
	d, id, log := desk(t)
	path := control.SocketPath(t.TempDir())
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, ServeDaemon(d)) }()
	c := Daemon{control.Dial(path)}
	body, err := c.Body(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	body.Close()
	if err != nil || string(text) != "Subject: x\r\n\r\nx\r\n" {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := c.Body(t.Context(), "none"); err == nil || !strings.Contains(err.Error(), `message "none"`) {
		t.Errorf("no such message: %v", err)
	}
	if _, err := c.OutageReport(t.Context(), 1, "text"); err == nil || !strings.Contains(err.Error(), "no such outage") {
		t.Errorf("no such outage: %v", err)
	}
	c.Close()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	want := "id=" + id + ` by="uid ` + strconv.Itoa(os.Getuid()) + ", pid " + strconv.Itoa(os.Getpid()) + `"`
	if !strings.Contains(log.String(), want) || strings.Count(log.String(), "read by") != 1 {
		t.Errorf("the log says\n%swant %s, once", log, want)
	}
}

// TestLists: a list that is cut short is no list.
func TestLists(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"whole":     {"{\"id\":\"a\"}\n{\"end\":true}\n", ""},
		"cut":       {"{\"id\":\"a\"}\n", "cut short"},
		"an error":  {"{\"id\":\"a\"}\n{\"error\":\"disk\"}\n", "disk"},
		"no object": {"<html>", "cut short"},
	} {
		n := 0
		err := readList(io.NopCloser(strings.NewReader(tt.text)), func(message) error { n++; return nil })
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v after %d items", name, err, n)
		}
	}
	broken := httptest.NewRecorder()
	serveList(broken, func(fn func(message) error) error { return errors.New("disk") })
	if got := broken.Body.String(); broken.Code != http.StatusOK || !strings.Contains(got, `"error":"disk"`) || strings.Contains(got, `"end"`) {
		t.Errorf("a walk that fails is answered %q", got)
	}
}
