package policysync

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"
)

// ListView is how one side sees a DNS list of the policy: the two ask by
// different resolvers, and a list may well answer only one of them.
type ListView struct {
	Zone         string    `json:"zone"`
	State        string    `json:"state"`
	Since        time.Time `json:"since"`
	Checked      time.Time `json:"checked"`
	Milliseconds int64     `json:"milliseconds"` // of the slowest answer
}

// Bounds of what a side tells about its DNS lists. A request has to fit into
// maxRequest.
const (
	maxLists     = 64
	maxListsJSON = 32 << 10
)

// listsMessage is the body of POST /v1/lists and of its answer.
type listsMessage struct {
	Lists []ListView `json:"lists"`
}

// clipLists bounds what the other side wrote.
func clipLists(list []ListView) []ListView {
	list = slices.Clone(list[:min(len(list), maxLists)])
	for i := range list {
		list[i].Zone, list[i].State = clipText(list[i].Zone, 255), clipText(list[i].State, 32)
	}
	return list
}

// exchangeLists tells the primary how we see the DNS lists, and asks how it does.
// What fails is of no consequence to the policy: the next report tries again.
func (f *Follower) exchangeLists(ctx context.Context) {
	if f.o.Lists == nil {
		return
	}
	m := listsMessage{clipLists(f.o.Lists())}
	for {
		b, err := json.Marshal(m)
		if err == nil && len(b) <= maxRequest {
			break
		}
		m.Lists = m.Lists[:len(m.Lists)/2]
	}
	b, err := f.remote().post(ctx, "/v1/lists", m, maxListsJSON)
	var a listsMessage
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		if !errors.Is(err, errGone) { // a publisher that doesn't know of it
			f.o.Log.Debug("DNS lists not compared with the primary's", "err", clip(err.Error()))
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists = clipLists(a.Lists)
}

// Lists returns how the primary sees the DNS lists, as last reported.
func (f *Follower) Lists() []ListView {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.lists)
}

// serveLists takes a follower's view of the DNS lists, and answers ours.
func (p *Publisher) serveLists(w http.ResponseWriter, r *http.Request, q *peer) {
	var m listsMessage
	if !readJSON(w, r, &m) {
		return
	}
	m.Lists = clipLists(m.Lists)
	p.mu.Lock()
	if s := p.seen[q.Name]; s != nil {
		s.lists = m.Lists
	}
	p.mu.Unlock()
	var ours []ListView
	if p.o.Lists != nil {
		ours = clipLists(p.o.Lists())
	}
	writeJSON(w, listsMessage{ours})
}
