package operator

import (
	"context"
	"net/http"
	"net/url"

	"github.com/understudy-mx/understudy/internal/asked"
)

// learnAtOnce is how many addresses one request names.
const learnAtOnce = 50

// serveAsked answers about recipients that are known by asking the primary.
func serveAsked(mux *http.ServeMux, b *asked.Book) {
	mux.HandleFunc("GET /v1/asked", func(w http.ResponseWriter, _ *http.Request) { answer(w, b.Status(), nil) })
	mux.HandleFunc("POST /v1/asked", func(w http.ResponseWriter, r *http.Request) {
		answer(w, b.Warm(r.URL.Query()["add"]), nil)
	})
}

// Asked returns what is known by asking.
func (d Daemon) Asked(ctx context.Context) (s asked.Status, err error) {
	err = d.Call(ctx, "GET", "/v1/asked", &s)
	return s, err
}

// Learn takes recipients that a log says exist, and returns how many were new.
func (d Daemon) Learn(ctx context.Context, addresses map[string]bool) (all int, err error) {
	var some []string
	send := func() {
		n := 0
		if err == nil && len(some) > 0 {
			err = d.Call(ctx, "POST", "/v1/asked?"+url.Values{"add": some}.Encode(), &n)
		}
		all, some = all+n, some[:0]
	}
	for a := range addresses {
		if some = append(some, a); len(some) == learnAtOnce {
			send()
		}
	}
	send()
	return all, err
}
