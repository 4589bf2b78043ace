// Package operator has the operator's three interfaces to running processes, in HTTP
// and JSON, each with its handler and its client.
//
//	GET  /v1/queue                    the messages, a JSON object a line, and a last one that says that all are there
//	POST /v1/queue/ID/release         puts one back in line
//	GET  /v1/status                   what waits, and how the next hops are
//	GET  /v1/parity/live              how the snapshot agrees with the primary; ?all: with each difference that is kept
//	POST /v1/stand-in?for=2h&reason=X opens a planned window; DELETE closes it
//	POST /v1/sync/approve/VERSION     lets a mass deletion take effect
//	POST /v1/invite?name=mx2          on the primary: invites a secondary
//
// The daemon serves the queue's and the policy's (Daemon), the publisher the third
// (Publisher). There is no access control here: package control carries requests
// over a socket that only its owner can open.
package operator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/understudy-mx/understudy/internal/control"
)

// answer sends v as JSON, or why there is none.
func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		control.Fail(w, http.StatusConflict, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only when the asker has gone
}

// ending is the last line of a list: it says that the list is complete, or why not.
// The status code can't, because it goes out first. In other lines it is empty.
type ending struct {
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

func (e ending) ended() ending { return e }

// serveList streams a JSON object a line.
func serveList[T any](w http.ResponseWriter, walk func(func(T) error) error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	err := walk(func(v T) error { return e.Encode(v) })
	last := ending{End: err == nil}
	if err != nil {
		last.Error = err.Error()
	}
	_ = e.Encode(last) // fails only when the asker has gone
}

// readList calls fn for each line of a list.
func readList[T interface{ ended() ending }](list io.ReadCloser, fn func(T) error) error {
	defer list.Close()
	d := json.NewDecoder(list)
	for {
		var item T
		if err := d.Decode(&item); err != nil {
			return fmt.Errorf("read the daemon's list: cut short: %w", err)
		}
		switch e := item.ended(); {
		case e.Error != "":
			return errors.New(e.Error)
		case e.End:
			return nil
		}
		if err := fn(item); err != nil {
			return err
		}
	}
}

// serveBody streams what a message holds.
func serveBody(w http.ResponseWriter, r *http.Request, contentType string, body io.ReadCloser, err error) {
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer body.Close()
	w.Header().Set("Content-Type", contentType)
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler) // so that the asker sees that it is incomplete
	}
}
