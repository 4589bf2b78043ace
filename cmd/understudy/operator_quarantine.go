package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/understudy-mx/understudy/queue"
)

// quarantineItem is a line of the daemon's list of what was put aside; the
// last one has no message, see listItem.
type quarantineItem struct {
	queue.Quarantine
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

func serveQuarantine(w http.ResponseWriter, r *http.Request, q *queue.Queue) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	err := q.WalkQuarantine(r.Context(), func(i queue.Quarantine) error {
		return e.Encode(quarantineItem{Quarantine: i})
	})
	last := quarantineItem{End: err == nil}
	if err != nil {
		last.Error = err.Error()
	}
	_ = e.Encode(last) // fails only when the asker has gone
}

func serveQuarantinePart(w http.ResponseWriter, r *http.Request, q *queue.Queue) {
	seq, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		refuse(w, r, queue.ErrNotFound)
		return
	}
	body, err := quarantinePart(q, seq, r.PathValue("part"))
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer body.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler) // so that the asker sees that it is incomplete
	}
}

// quarantinePart is what a Queue and a View have in common.
func quarantinePart(q interface {
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
