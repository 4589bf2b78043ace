package policysync

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Bounds of the recipients that followers ask their primary about. Any client of a
// secondary can name them.
const (
	maxUnsure       = 1000    // kept by a follower
	maxUnsureAll    = 10_000  // kept by a publisher
	maxUnsureReport = 4 << 10 // octets of JSON in one report
	maxUnsureLength = 320     // octets of one
)

// unsure is a bounded set of recipients; the zero value is empty. A full set drops
// new ones: their senders try again.
type unsure struct {
	mu  sync.Mutex // guards set
	set map[string]struct{}
}

func (u *unsure) add(recipient string, most int) {
	if recipient == "" || len(recipient) > maxUnsureLength || !utf8.ValidString(recipient) ||
		strings.ContainsFunc(recipient, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.set == nil {
		u.set = map[string]struct{}{}
	}
	if len(u.set) < most {
		u.set[recipient] = struct{}{}
	}
}

// take removes and returns as many as fit into octets of JSON, sorted.
func (u *unsure) take(octets int) (list []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for r := range u.set {
		b, _ := json.Marshal(r) // a string has no error
		if octets -= len(b) + 1; octets < 0 {
			break
		}
		list = append(list, r)
		delete(u.set, r)
	}
	slices.Sort(list)
	return list
}

// Unsure notes a recipient that the primary has to be asked about
// (policy.Verdict.Unsure). The next report names it. It doesn't block.
func (f *Follower) Unsure(recipient string) { f.unsure.add(recipient, maxUnsure) }

// Unsure returns the recipients that followers have asked about since it was
// called last, sorted. They are what strangers wrote: none need exist.
func (p *Publisher) Unsure() []string { return p.unsure.take(1 << 30) }
