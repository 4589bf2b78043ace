package operator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/dnslist"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/policy/greylist"
	policysync "github.com/understudy-mx/understudy/sync"
)

// Invitation is what a secondary needs to pair.
type Invitation struct {
	Name  string `json:"name"`
	Token string `json:"token"`
}

// Shadow is how the published policy agrees with the verdicts in the primary's log.
type Shadow struct {
	meter.Report
	meter.LogStatus
}

// ServePublisher is what a publisher answers. shadow is nil where it reads no log.
func ServePublisher(p *policysync.Publisher, lists *dnslist.Watch, learned *greylist.Learned, shadow func(all bool) Shadow) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/greylist", func(w http.ResponseWriter, _ *http.Request) { serveList(w, learned.Walk) })
	mux.HandleFunc("GET /v1/parity/shadow", func(w http.ResponseWriter, r *http.Request) {
		if shadow == nil {
			answer(w, nil, errors.New(`the primary's log isn't read; add log = "auto" under [publish] and restart understudy publish`))
			return
		}
		answer(w, shadow(r.URL.Query().Has("all")), nil)
	})
	mux.HandleFunc("POST /v1/invite", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		if name == "" {
			name = freeName(p.Peers())
		}
		token, err := p.Invite(name)
		answer(w, Invitation{name, token}, err)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s := p.Status()
		boundCounts(s.Counts)
		answer(w, s, nil)
	})
	mux.HandleFunc("GET /v1/lists", func(w http.ResponseWriter, _ *http.Request) { answer(w, lists.Views(), nil) })
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.Peers(), nil) })
	mux.HandleFunc("DELETE /v1/peers/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, p.Revoke(r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/rotate", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, p.RotateKeys()) })
	mux.HandleFunc("POST /v1/rotate/finish", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, p.FinishRotation(r.URL.Query().Get("force") != ""))
	})
	return mux
}

// freeName is a name for a secondary that none has.
func freeName(peers []policysync.Peer) string {
	for n := 2; ; n++ {
		name := fmt.Sprintf("mx%d", n)
		if !slices.ContainsFunc(peers, func(p policysync.Peer) bool { return p.Name == name }) {
			return name
		}
	}
}

// Publisher asks a publisher.
type Publisher struct{ *control.Client }

// Parity returns how the published policy agrees with the primary's log, with every
// difference that is kept if wanted.
func (p Publisher) Parity(ctx context.Context, all bool) (s Shadow, err error) {
	err = p.Call(ctx, "GET", parityTarget("shadow", all), &s)
	return s, err
}

// Status returns what is published.
func (p Publisher) Status(ctx context.Context) (s policysync.PublisherStatus, err error) {
	err = p.Call(ctx, "GET", "/v1/status", &s)
	return s, err
}

// Lists returns the policy's DNS lists as this side sees them.
func (p Publisher) Lists(ctx context.Context) (all []dnslist.View, err error) {
	err = p.Call(ctx, "GET", "/v1/lists", &all)
	return all, err
}

// Invite makes an invitation; without a name it finds one.
func (p Publisher) Invite(ctx context.Context, name string) (i Invitation, err error) {
	err = p.Call(ctx, "POST", "/v1/invite?name="+url.QueryEscape(name), &i)
	return i, err
}

// Peers returns the paired secondaries.
func (p Publisher) Peers(ctx context.Context) ([]policysync.Peer, error) {
	peers := []policysync.Peer{}
	err := p.Call(ctx, "GET", "/v1/peers", &peers)
	return peers, err
}

// Revoke ends a secondary's access.
func (p Publisher) Revoke(ctx context.Context, name string) error {
	return p.Call(ctx, "DELETE", "/v1/peers/"+url.PathEscape(name), nil)
}

// Rotate makes new keys and announces them.
func (p Publisher) Rotate(ctx context.Context) error { return p.Call(ctx, "POST", "/v1/rotate", nil) }

// FinishRotation takes the announced keys into use; force: even if a secondary
// hasn't heard of them.
func (p Publisher) FinishRotation(ctx context.Context, force bool) error {
	target := "/v1/rotate/finish"
	if force {
		target += "?force=1"
	}
	return p.Call(ctx, "POST", target, nil)
}
