// Package page is the operator's page: a web page that shows whether the primary
// is up, what waits, and how it drains, and that settles held mail.
//
//	GET  /, /page.css, /page.js     the page, without data
//	GET  /api/events                server-sent events: "history" once, then "now" each second
//	GET  /api/mail                  the oldest messages that wait, and the held ones
//	GET  /api/mail/ID/text          what a message says, as plain text
//	GET  /api/outages/ID/report     the report of an outage, HTML to keep
//	POST /api/mail/ID/release       puts a held one back in line
//	POST /api/mail/ID/remove        deletes a held one
//
// Everything below /api needs the token, or a proxy's header (door.go). There are
// no cookies, and nothing is loaded from other hosts.
//
// Connections and event streams are bounded in number and have deadlines; a
// picture is made once a second for all of them.
package page

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/queue"
)

// The bounds of the page.
const (
	maxConns     = 64
	maxWatchers  = 16 // of /api/events
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second // of all but the events
	eventTimeout = 10 * time.Second // for one event to be taken
	askTimeout   = 5 * time.Second  // for the daemon to say how it is
	lookEvery    = time.Second
)

//go:embed page.html page.css page.js
var files embed.FS

// Desk is what the page asks and tells the daemon: operator.Daemon.
type Desk interface {
	Status(ctx context.Context) (operator.Status, error)
	Outages(ctx context.Context) ([]outage.Outage, error)
	OutageReport(ctx context.Context, id int, format string) ([]byte, error)
	Parity(ctx context.Context, all bool) (meter.Report, error)
	Fleet(ctx context.Context) (fleet.View, error)
	Message(ctx context.Context, id string) (queue.Info, error)
	Body(ctx context.Context, id string) (io.ReadCloser, error)
	Messages(ctx context.Context, fn func(queue.Info) error) error
	Release(ctx context.Context, id string) error
	Return(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
}

// Options say what the page shows, and to whom.
type Options struct {
	Hostname  string // of the secondary
	Version   string
	Desk      Desk
	History   string // file that keeps the chart's day
	Metrics   prometheus.Gatherer
	Token     string
	Header    string   // names whom a proxy has let in; "" for no proxy
	Hosts     []string // by which the page may be called, besides this machine's
	Fleet     bool     // secondaries share a database
	Addresses string   // who sees envelopes and settles held mail: ForToken, ForAll, ForNone
	ShowMail  bool     // to them: what messages say
	Log       *slog.Logger
}

// Who may see envelope addresses.
const (
	ForToken = "token" // who comes with the token
	ForAll   = "all"   // whom a proxy has let in, too
	ForNone  = "none"
)

// Page is the page of one daemon.
type Page struct {
	o        Options
	board    board
	watchers chan struct{} // a place for each
	walking  chan struct{} // one walk over the queue at a time
}

// New makes a page.
func New(o Options) *Page {
	return &Page{o: o, board: newBoard(), watchers: make(chan struct{}, maxWatchers), walking: make(chan struct{}, 1)}
}

// Serve answers at l until ctx ends.
func (p *Page) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &http.Server{
		Handler:           http.MaxBytesHandler(p.Handler(), 1<<10),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(p.o.Log.Handler(), slog.LevelDebug),
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.watch(ctx)
	}()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	err := s.Serve(netutil.LimitListener(l, maxConns))
	ended := ctx.Err() != nil
	stop()
	cancel()
	<-watched
	if ended {
		return nil
	}
	return err
}

// Handler is the page and what it asks for.
func (p *Page) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, f := range map[string]struct{ name, kind string }{
		"/{$}": {"page.html", "text/html; charset=utf-8"}, "/page.css": {"page.css", "text/css; charset=utf-8"},
		"/page.js": {"page.js", "text/javascript; charset=utf-8"},
	} {
		content, err := files.ReadFile(f.name)
		if err != nil {
			panic(err) // it is embedded
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", f.kind)
			_, _ = w.Write(content) // fails only when the reader has gone
		})
	}
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /api/events", p.forKnown(p.events))
	mux.HandleFunc("GET /api/outages/{id}/report", p.forKnown(p.report))
	mux.HandleFunc("GET /api/mail", p.forKnown(p.mail))
	mux.HandleFunc("GET /api/mail/{id}/text", p.forKnown(p.read))
	mux.HandleFunc("POST /api/mail/{id}/{what}", p.forKnown(p.settle))
	return p.guard(mux)
}

// report sends an outage's report, as a file to keep: a document of its own in this
// origin would not have the page's bounds.
func (p *Page) report(w http.ResponseWriter, r *http.Request, _ caller) {
	var report []byte
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id <= 0 {
		err = fmt.Errorf("no outage has the number %q", show(r.PathValue("id")))
	} else {
		report, err = p.o.Desk.OutageReport(r.Context(), id, "html")
	}
	if err != nil {
		control.Fail(w, http.StatusNotFound, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=outage-%d.html", id))
	_, _ = w.Write(report) // fails only when the reader has gone
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only when the asker has gone
}
