package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// PolicyStatus is how a secondary follows its primary.
type PolicyStatus struct {
	policysync.Status
	Counts map[string]uint64 `json:"counts"` // recipients by domain, "" for local names
}

// maxCounts bounds the domains in a status, and maxDiff what a difference names.
const (
	maxCounts = 10_000
	maxDiff   = 1000
)

func boundCounts(counts map[string]uint64) {
	for i, d := range slices.Sorted(maps.Keys(counts)) {
		if i >= maxCounts {
			delete(counts, d)
		}
	}
}

func servePolicy(f *inforce.Primary) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(r *http.Request, p *policysync.Follower) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var v any
			err := errors.New("the policy comes from policy.file, not from a primary; put domains = [...] under [sync] in its place and restart `understudy serve`")
			if f != nil {
				err = f.Use(func(p *policysync.Follower) (err error) {
					v, err = do(r, p)
					return err
				})
			}
			answer(w, v, err)
		})
	}
	handle("GET /v1/sync/status", func(_ *http.Request, p *policysync.Follower) (any, error) {
		s := PolicyStatus{p.Status(), p.Counts()}
		boundCounts(s.Counts)
		return s, nil
	})
	handle("GET /v1/sync/pending", func(_ *http.Request, p *policysync.Follower) (any, error) { return p.Pending(), nil })
	handle("POST /v1/sync/approve/{version}", decide((*policysync.Follower).Approve))
	handle("POST /v1/sync/reject/{version}", decide((*policysync.Follower).Reject))
	handle("GET /v1/sync/diff/{from}/{to}", func(r *http.Request, p *policysync.Follower) (any, error) {
		from, err1 := strconv.ParseUint(r.PathValue("from"), 10, 64)
		to, err2 := strconv.ParseUint(r.PathValue("to"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return p.Diff(from, to, maxDiff)
	})
	handle("POST /v1/sync/rotate", func(r *http.Request, p *policysync.Follower) (any, error) { return nil, p.RotateKey(r.Context()) })
	mux.HandleFunc("GET /v1/sync/snapshot", func(w http.ResponseWriter, _ *http.Request) {
		var s *policy.Snapshot
		if f != nil {
			s = f.Current()
		}
		if s == nil {
			control.Fail(w, http.StatusConflict, errors.New("the daemon has no policy from a primary"))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.Encode()) // fails only when the asker has gone
	})
	mux.HandleFunc("POST /v1/sync/join", func(w http.ResponseWriter, r *http.Request) {
		if f == nil {
			control.Fail(w, http.StatusConflict, errors.New("the daemon was started without [sync]; restart `understudy serve`, then join"))
			return
		}
		joined, err := f.Join(r.Context(), r.URL.Query().Get("token"))
		answer(w, joined, err)
	})
	return mux
}

func decide(do func(*policysync.Follower, uint64) error) func(*http.Request, *policysync.Follower) (any, error) {
	return func(r *http.Request, p *policysync.Follower) (any, error) {
		n, err := strconv.ParseUint(r.PathValue("version"), 10, 64)
		if err != nil {
			return nil, err
		}
		return nil, do(p, n)
	}
}

// Policy returns how a secondary follows its primary.
func (d Daemon) Policy(ctx context.Context) (s PolicyStatus, err error) {
	err = d.Call(ctx, "GET", "/v1/sync/status", &s)
	return s, err
}

// Pending returns the mass deletion that waits for a decision, nil for none.
func (d Daemon) Pending(ctx context.Context) (p *policysync.Pending, err error) {
	err = d.Call(ctx, "GET", "/v1/sync/pending", &p)
	return p, err
}

// Approve lets a mass deletion take effect.
func (d Daemon) Approve(ctx context.Context, version uint64) error {
	return d.Call(ctx, "POST", fmt.Sprint("/v1/sync/approve/", version), nil)
}

// Reject keeps the version before a mass deletion.
func (d Daemon) Reject(ctx context.Context, version uint64) error {
	return d.Call(ctx, "POST", fmt.Sprint("/v1/sync/reject/", version), nil)
}

// Diff returns what changed between two versions that are held; 0 from is the one
// before, 0 to the one in force.
func (d Daemon) Diff(ctx context.Context, from, to uint64) (c policysync.Change, err error) {
	err = d.Call(ctx, "GET", fmt.Sprintf("/v1/sync/diff/%d/%d", from, to), &c)
	return c, err
}

// RotateKey gives the secondary a new key.
func (d Daemon) RotateKey(ctx context.Context) error {
	return d.Call(ctx, "POST", "/v1/sync/rotate", nil)
}

// Join pairs the secondary by an invitation.
func (d Daemon) Join(ctx context.Context, invitation string) (*policysync.Joined, error) {
	joined := new(policysync.Joined)
	return joined, d.Call(ctx, "POST", "/v1/sync/join?token="+url.QueryEscape(invitation), joined)
}

// Snapshot returns the policy in force.
func (d Daemon) Snapshot(ctx context.Context) (*policy.Snapshot, error) {
	body, err := d.Stream(ctx, "GET", "/v1/sync/snapshot")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read the policy in force: %w", err)
	}
	return policy.Decode("policy in force", bytes.NewReader(b), nil)
}
