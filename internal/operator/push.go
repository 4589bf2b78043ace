package operator

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/pushed"
)

var errNoPush = errors.New("no lists are pushed here; set listen and domains under [push] and restart")

// WithPush adds the requests about lists that are pushed, which a daemon and a
// publisher answer alike, to h. store is nil where none are.
func WithPush(h http.Handler, store *pushed.Store) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	handle := func(pattern string, do func(domain string) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if store == nil {
				answer(w, nil, errNoPush)
				return
			}
			v, err := do(r.PathValue("domain"))
			answer(w, v, err)
		})
	}
	handle("GET /v1/push", func(string) (any, error) { return store.Status(), nil })
	handle("POST /v1/push/{domain}/token", func(d string) (any, error) { return store.NewToken(d) })
	handle("DELETE /v1/push/{domain}/token", func(d string) (any, error) { return nil, store.RevokeToken(d) })
	handle("POST /v1/push/{domain}/approve", func(d string) (any, error) { return nil, store.Approve(d) })
	handle("POST /v1/push/{domain}/reject", func(d string) (any, error) { return nil, store.Reject(d) })
	return mux
}

// Pushed asks a daemon or a publisher about the lists that are pushed to it.
type Pushed struct{ *control.Client }

// Lists returns them all.
func (p Pushed) Lists(ctx context.Context) (all []pushed.Status, err error) {
	err = p.Call(ctx, "GET", "/v1/push", &all)
	return all, err
}

// NewToken makes a domain's token, and ends the one before.
func (p Pushed) NewToken(ctx context.Context, domain string) (token string, err error) {
	err = p.Call(ctx, "POST", p.target(domain, "token"), &token)
	return token, err
}

// RevokeToken ends a domain's token.
func (p Pushed) RevokeToken(ctx context.Context, domain string) error {
	return p.Call(ctx, "DELETE", p.target(domain, "token"), nil)
}

// Approve lets a staged deletion take effect.
func (p Pushed) Approve(ctx context.Context, domain string) error {
	return p.Call(ctx, "POST", p.target(domain, "approve"), nil)
}

// Reject puts the list before a staged deletion back.
func (p Pushed) Reject(ctx context.Context, domain string) error {
	return p.Call(ctx, "POST", p.target(domain, "reject"), nil)
}

func (Pushed) target(domain, what string) string {
	return "/v1/push/" + url.PathEscape(domain) + "/" + what
}
