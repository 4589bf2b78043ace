package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/understudy-mx/understudy/internal/asked"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/internal/standin"
	"github.com/understudy-mx/understudy/policy/greylist"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/relay"
)

// Status is what a daemon answers to one who watches.
type Status struct {
	queue.Status
	Routes  []relay.RouteStatus `json:"routes"`
	StandIn *standin.Window     `json:"stand_in,omitempty"` // the planned window that is open
	Filters []Filter            `json:"filters,omitempty"`
}

// The lines of lists.
type (
	message struct {
		queue.Info
		ending
	}
	quarantined struct {
		queue.Quarantine
		ending
	}
)

// Desk is what a daemon has for its operator.
type Desk struct {
	Queue    *queue.Queue
	Relay    *relay.Client
	Policy   *inforce.Primary // nil when it comes from a file
	Outages  *outage.Book
	Meter    *meter.Meter
	Lists    *dnslist.Watch
	Sign     func(o outage.Outage, format string) ([]byte, error) // writes the report of an outage
	Greylist *greylist.Store
	StandIn  *standin.Book
	Log      *slog.Logger    // of what the operator reads
	Filters  func() []Filter // that stand for milters of the primary
	Fleet    func() (fleet.View, error)
	Asked    *asked.Book
}

// ServeDaemon is what a daemon answers.
func ServeDaemon(d Desk) http.Handler {
	mux, q := http.NewServeMux(), d.Queue
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Status{q.Status(), d.Relay.Status(), d.StandIn.Now(), d.Filters()}, nil)
	})
	mux.HandleFunc("GET /v1/fleet", func(w http.ResponseWriter, _ *http.Request) {
		v, err := d.Fleet()
		answer(w, v, err)
	})
	mux.HandleFunc("GET /v1/outages", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Outages.List(), nil) })
	mux.HandleFunc("GET /v1/outages/{id}/report", d.serveReport)
	mux.HandleFunc("GET /v1/parity/live", func(w http.ResponseWriter, r *http.Request) {
		answer(w, d.Meter.Report(r.URL.Query().Has("all")), nil)
	})
	serveAsked(mux, d.Asked)
	mux.HandleFunc("GET /v1/lists", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Lists.Views(), nil) })
	mux.HandleFunc("GET /v1/greylist", func(w http.ResponseWriter, _ *http.Request) { serveList(w, d.Greylist.Walk) })
	mux.HandleFunc("POST /v1/stand-in", func(w http.ResponseWriter, r *http.Request) {
		length, err := time.ParseDuration(r.URL.Query().Get("for"))
		var open standin.Window
		if err == nil {
			open, err = d.StandIn.Begin(time.Now(), length, r.URL.Query().Get("reason"))
		}
		answer(w, open, err)
	})
	mux.HandleFunc("DELETE /v1/stand-in", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, d.StandIn.End()) })
	mux.Handle("/v1/sync/", servePolicy(d.Policy))
	serveQueue(mux, d)
	return mux
}

// serveQueue serves messages and quarantined records, and what is done with them by hand.
func serveQueue(mux *http.ServeMux, d Desk) {
	q := d.Queue
	mux.HandleFunc("GET /v1/queue", func(w http.ResponseWriter, r *http.Request) {
		serveList(w, func(fn func(queue.Info) error) error { return q.Walk(r.Context(), fn) })
	})
	mux.HandleFunc("GET /v1/queue/{id}", func(w http.ResponseWriter, r *http.Request) {
		info, err := q.Get(r.PathValue("id"))
		if err != nil {
			refuse(w, r, err)
			return
		}
		answer(w, info, nil)
	})
	mux.HandleFunc("GET /v1/queue/{id}/body", func(w http.ResponseWriter, r *http.Request) {
		body, err := q.Body(r.PathValue("id"))
		if err == nil {
			d.Log.Info("message read by the operator", "id", r.PathValue("id"), "by", control.Asker(r))
		}
		serveBody(w, r, "message/rfc822", body, err)
	})
	settle := func(do func(id string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.PathValue("id")); err != nil {
				refuse(w, r, err)
			}
		}
	}
	mux.HandleFunc("POST /v1/queue/{id}/hold", settle(q.Hold))
	mux.HandleFunc("POST /v1/queue/{id}/release", settle(q.Release))
	mux.HandleFunc("POST /v1/queue/{id}/return", settle(q.Return))
	mux.HandleFunc("DELETE /v1/queue/{id}", settle(q.Remove))
	mux.HandleFunc("POST /v1/flush", func(http.ResponseWriter, *http.Request) { q.Flush() })
	mux.HandleFunc("GET /v1/quarantine", func(w http.ResponseWriter, r *http.Request) {
		serveList(w, func(fn func(queue.Quarantine) error) error { return q.WalkQuarantine(r.Context(), fn) })
	})
	mux.HandleFunc("GET /v1/quarantine/{id}/{part}", func(w http.ResponseWriter, r *http.Request) {
		seq, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		if err != nil {
			refuse(w, r, queue.ErrNotFound)
			return
		}
		body, err := QuarantinePart(q, seq, r.PathValue("part"))
		serveBody(w, r, "application/octet-stream", body, err)
	})
}

// serveReport writes the report of an outage.
func (d Desk) serveReport(w http.ResponseWriter, r *http.Request) {
	all, id := d.Outages.List(), r.PathValue("id")
	at := slices.IndexFunc(all, func(o outage.Outage) bool { return fmt.Sprint(o.ID) == id })
	if at < 0 {
		control.Fail(w, http.StatusNotFound, errors.New("there is no such outage"))
		return
	}
	report, err := d.Sign(all[at], r.URL.Query().Get("format"))
	if err != nil {
		control.Fail(w, http.StatusConflict, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(report) // fails only when the asker has gone
}

func refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, queue.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, queue.ErrBusy), errors.As(err, new(queue.NotReturned)):
		status = http.StatusConflict
	}
	control.Fail(w, status, fmt.Errorf("message %q: %w", r.PathValue("id"), err))
}

// QuarantinePart reads the record or the body of what a Queue or a View has put
// aside.
func QuarantinePart(q interface {
	QuarantineRecord(seq uint64) ([]byte, error)
	QuarantineBody(seq uint64) (io.ReadCloser, error)
}, seq uint64, part string) (io.ReadCloser, error) {
	switch part {
	case "body":
		return q.QuarantineBody(seq)
	case "record":
		raw, err := q.QuarantineRecord(seq)
		return io.NopCloser(bytes.NewReader(raw)), err
	}
	return nil, fmt.Errorf("part %q: %w", part, queue.ErrNotFound)
}

// Daemon asks a daemon.
type Daemon struct{ *control.Client }

// Status returns what waits, and how the next hops are.
func (d Daemon) Status(ctx context.Context) (s Status, err error) {
	err = d.Call(ctx, "GET", "/v1/status", &s)
	return s, err
}

// Lists returns the policy's DNS lists as both sides see them.
func (d Daemon) Lists(ctx context.Context) (all []dnslist.View, err error) {
	err = d.Call(ctx, "GET", "/v1/lists", &all)
	return all, err
}

// Outages lists the primary's outages, the first one first.
func (d Daemon) Outages(ctx context.Context) (all []outage.Outage, err error) {
	err = d.Call(ctx, "GET", "/v1/outages", &all)
	return all, err
}

// OutageReport returns an outage's report, signed.
func (d Daemon) OutageReport(ctx context.Context, id int, format string) ([]byte, error) {
	body, err := d.Stream(ctx, "GET", fmt.Sprintf("/v1/outages/%d/report?format=%s", id, url.QueryEscape(format)))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// Fleet returns the secondaries that share the database.
func (d Daemon) Fleet(ctx context.Context) (v fleet.View, err error) {
	err = d.Call(ctx, "GET", "/v1/fleet", &v)
	return v, err
}

// StandIn opens a planned window, or gives the open one another end and reason.
func (d Daemon) StandIn(ctx context.Context, length time.Duration, reason string) (w standin.Window, err error) {
	err = d.Call(ctx, "POST", "/v1/stand-in?"+url.Values{"for": {length.String()}, "reason": {reason}}.Encode(), &w)
	return w, err
}

// EndStandIn closes the window.
func (d Daemon) EndStandIn(ctx context.Context) error {
	return d.Call(ctx, "DELETE", "/v1/stand-in", nil)
}

// Parity returns how the snapshot agrees with the primary in live sessions, with
// every difference that is kept if wanted.
func (d Daemon) Parity(ctx context.Context, all bool) (r meter.Report, err error) {
	err = d.Call(ctx, "GET", parityTarget("live", all), &r)
	return r, err
}

func parityTarget(by string, all bool) string {
	if all {
		by += "?all"
	}
	return "/v1/parity/" + by
}

// Messages calls fn for each message, oldest first.
func (d Daemon) Messages(ctx context.Context, fn func(queue.Info) error) error {
	list, err := d.Stream(ctx, "GET", "/v1/queue")
	if err != nil {
		return err
	}
	return readList(list, func(m message) error { return fn(m.Info) })
}

// Message returns one message.
func (d Daemon) Message(ctx context.Context, id string) (info queue.Info, err error) {
	err = d.Call(ctx, "GET", target(id), &info)
	return info, err
}

// Body returns a message's content, which the caller closes.
func (d Daemon) Body(ctx context.Context, id string) (io.ReadCloser, error) {
	return d.Stream(ctx, "GET", target(id)+"/body")
}

// Hold keeps a message back until it is released.
func (d Daemon) Hold(ctx context.Context, id string) error {
	return d.Call(ctx, "POST", target(id)+"/hold", nil)
}

// Release puts a held message back in line.
func (d Daemon) Release(ctx context.Context, id string) error {
	return d.Call(ctx, "POST", target(id)+"/release", nil)
}

// Return sends a held message back to its sender, if that was vouched for.
func (d Daemon) Return(ctx context.Context, id string) error {
	return d.Call(ctx, "POST", target(id)+"/return", nil)
}

// Remove deletes a message for good.
func (d Daemon) Remove(ctx context.Context, id string) error {
	return d.Call(ctx, "DELETE", target(id), nil)
}

func target(id string) string { return "/v1/queue/" + url.PathEscape(id) }

// Flush makes everything deferred due now.
func (d Daemon) Flush(ctx context.Context) error { return d.Call(ctx, "POST", "/v1/flush", nil) }

// Quarantined calls fn for each message that was put aside.
func (d Daemon) Quarantined(ctx context.Context, fn func(queue.Quarantine) error) error {
	list, err := d.Stream(ctx, "GET", "/v1/quarantine")
	if err != nil {
		return err
	}
	return readList(list, func(q quarantined) error { return fn(q.Quarantine) })
}

// QuarantinePart returns the record or the body of one, which the caller closes.
func (d Daemon) QuarantinePart(ctx context.Context, seq uint64, part string) (io.ReadCloser, error) {
	return d.Stream(ctx, "GET", fmt.Sprintf("/v1/quarantine/%d/%s", seq, part))
}
