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

// Tokens beside the one.
const (
	another = "another" // made, while the one before stays good for a time
	former  = "former"
)

// WithPush adds the requests about lists that are pushed, which a daemon and a
// publisher answer alike, to h. store is nil where none are.
func WithPush(h http.Handler, store *pushed.Store) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	handle := func(pattern string, do func(domain, which string) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if store == nil {
				answer(w, nil, errNoPush)
				return
			}
			v, err := do(r.PathValue("domain"), r.FormValue("which"))
			answer(w, v, err)
		})
	}
	handle("GET /v1/push", func(string, string) (any, error) { return store.Status(), nil })
	handle("POST /v1/push/{domain}/token", func(d, which string) (any, error) { return store.NewToken(d, which == another) })
	handle("DELETE /v1/push/{domain}/token", func(d, which string) (any, error) { return nil, store.RevokeToken(d, which == former) })
	handle("POST /v1/push/{domain}/approve", func(d, _ string) (any, error) { return nil, store.Approve(d) })
	handle("POST /v1/push/{domain}/reject", func(d, _ string) (any, error) { return nil, store.Reject(d) })
	return mux
}

// Pushed asks a daemon or a publisher about the lists that are pushed to it.
type Pushed struct{ *control.Client }

// Lists returns them all.
func (p Pushed) Lists(ctx context.Context) (all []pushed.Status, err error) {
	err = p.Call(ctx, "GET", "/v1/push", &all)
	return all, err
}

// NewToken makes a domain's token. The one before ends, at once unless it is to be
// rotated.
func (p Pushed) NewToken(ctx context.Context, domain string, rotate bool) (token string, err error) {
	err = p.Call(ctx, "POST", p.target(domain, "token"+which(rotate, another)), &token)
	return token, err
}

// RevokeToken ends a domain's tokens, or the one before a rotation only.
func (p Pushed) RevokeToken(ctx context.Context, domain string, before bool) error {
	return p.Call(ctx, "DELETE", p.target(domain, "token"+which(before, former)), nil)
}

func which(is bool, name string) string {
	if is {
		return "?which=" + name
	}
	return ""
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
