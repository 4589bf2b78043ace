package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/queue"
)

// pages is what the control socket serves.
func (d *daemon) pages() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", queuePages(d.queue))
	mux.HandleFunc("GET /v1/status", serveStatus(d.queue, d.relay))
	mux.Handle("/v1/sync/", syncPages(d.primary))
	return mux
}

// queuePages is the queue, for the subcommands of `understudy queue`.
func queuePages(q *queue.Queue) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/queue", func(w http.ResponseWriter, r *http.Request) { serveList(w, r, q) })
	mux.HandleFunc("GET /v1/queue/{id}", func(w http.ResponseWriter, r *http.Request) {
		info, err := q.Get(r.PathValue("id"))
		if err != nil {
			refuse(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(info) // fails only when the asker has gone
	})
	mux.HandleFunc("GET /v1/queue/{id}/body", func(w http.ResponseWriter, r *http.Request) { serveBody(w, r, q) })
	mux.HandleFunc("POST /v1/queue/{id}/hold", settle(q.Hold))
	mux.HandleFunc("POST /v1/queue/{id}/release", settle(q.Release))
	mux.HandleFunc("DELETE /v1/queue/{id}", settle(q.Remove))
	mux.HandleFunc("POST /v1/flush", func(http.ResponseWriter, *http.Request) { q.Flush() })
	mux.HandleFunc("GET /v1/quarantine", func(w http.ResponseWriter, r *http.Request) { serveQuarantine(w, r, q) })
	mux.HandleFunc("GET /v1/quarantine/{id}/{part}", func(w http.ResponseWriter, r *http.Request) { serveQuarantinePart(w, r, q) })
	return mux
}

func settle(do func(id string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := do(r.PathValue("id")); err != nil {
			refuse(w, r, err)
		}
	}
}

func refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, queue.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, queue.ErrBusy):
		status = http.StatusConflict
	}
	control.Fail(w, status, fmt.Errorf("message %q: %w", r.PathValue("id"), err))
}

// serveList streams a JSON object a message, and one that says that the list
// is complete: a status code could not, it goes out first.
func serveList(w http.ResponseWriter, r *http.Request, q *queue.Queue) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	err := q.Walk(r.Context(), func(info queue.Info) error { return e.Encode(info) })
	last := listItem{End: err == nil}
	if err != nil {
		last.Error = err.Error()
	}
	_ = e.Encode(last) // fails only when the asker has gone
}

func serveBody(w http.ResponseWriter, r *http.Request, q *queue.Queue) {
	body, err := q.Body(r.PathValue("id"))
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer body.Close()
	w.Header().Set("Content-Type", "message/rfc822")
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler) // so that the asker sees that it is incomplete
	}
}
