package policysync

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Passed is a client or a triplet that a secondary's greylisting has let in, in the
// terms of the policy's greylist. First and Last are Unix times.
type Passed struct {
	Service string `json:"service"`
	Kind    string `json:"kind"` // "client" or "triplet"
	Key     string `json:"key"`
	First   int64  `json:"first"`
	Last    int64  `json:"last"`
	Count   int64  `json:"count"` // of a client: how often
}

// Bounds of one request, which has to fit into maxRequest, and of those that follow
// one report. Clients of a secondary can bring entries about.
const (
	maxPassed         = 50
	maxPassedKey      = 1200 // octets
	maxPassedRequests = 20
)

// Learnt is what a follower tells its primary of greylisting.
type Learnt interface {
	// Learnt returns entries that the primary hasn't been told, at most so many.
	Learnt(most int) []Passed
	// Told notes that it has.
	Told([]Passed)
}

// passedMessage is the body of POST /v1/passed.
type passedMessage struct {
	Passed []Passed `json:"passed"`
}

// tellPassed tells the primary whom greylisting has let in. What fails, or is too
// much, is told after the next report.
func (f *Follower) tellPassed(ctx context.Context) {
	for range maxPassedRequests {
		if f.o.Learnt == nil || !f.tellSome(ctx) {
			return
		}
	}
}

// tellSome makes one request of it. more says that another may follow.
func (f *Follower) tellSome(ctx context.Context) (more bool) {
	m := passedMessage{f.o.Learnt.Learnt(maxPassed)}
	for len(m.Passed) > 0 {
		if b, err := json.Marshal(m); err == nil && len(b) <= maxRequest {
			break
		}
		m.Passed = m.Passed[:len(m.Passed)/2]
	}
	if len(m.Passed) == 0 {
		return false
	}
	if _, err := f.remote().post(ctx, "/v1/passed", m, 1024); err != nil {
		if !errors.Is(err, errGone) { // a publisher that doesn't know of it
			f.o.Log.Debug("whom greylisting has let in isn't told the primary", "err", clip(err.Error()))
		}
		return false
	}
	f.o.Learnt.Told(m.Passed)
	return true
}

// servePassed takes what a follower's greylisting has let in.
func (p *Publisher) servePassed(w http.ResponseWriter, r *http.Request, q *peer) {
	var m passedMessage
	if !readJSON(w, r, &m) {
		return
	}
	now := p.o.now()
	good := m.Passed[:0]
	for _, e := range m.Passed[:min(len(m.Passed), maxPassed)] {
		if e.valid(now) {
			good = append(good, e)
		}
	}
	if p.o.Passed != nil && len(good) > 0 {
		p.o.Passed(q.Name, good)
	}
	w.WriteHeader(http.StatusNoContent)
}

// valid says that an entry is one that a greylist can have.
func (e *Passed) valid(now time.Time) bool {
	last := now.Add(time.Hour).Unix() // clocks differ
	return (e.Kind == "client" || e.Kind == "triplet") && word(e.Service, 64) && word(e.Key, maxPassedKey) &&
		e.First >= 0 && e.Last > 0 && e.First <= e.Last && e.Last <= last && e.Count >= 0 && e.Count <= 1<<30
}

// word says that s is printable text of at most n octets.
func word(s string, n int) bool {
	return s != "" && len(s) <= n && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
