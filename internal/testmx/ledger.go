package testmx

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/understudy-mx/understudy/internal/demo"
)

// Ledger keeps account of promises: each (message, recipient) that was
// answered 250 must be relayed, held or returned. A message is known by the
// SHA-256 of its content without our Received field (Sum), so messages in one
// test must differ; ids may be "" where the queue's view isn't used.
//
// Its methods may be called concurrently.
type Ledger struct {
	mu      sync.Mutex
	entries map[ledgerKey]*ledgerEntry
	stray   []string // outcomes of what was never accepted
}

type ledgerKey struct {
	sum  [32]byte
	rcpt string
}

type ledgerEntry struct {
	id         string
	accepted   int
	unanswered int
	relayed    int
	held       int
	returned   int
}

// Sum returns what the ledger knows content by: content as it was sent, or as
// it was relayed with our Received field first.
func Sum(content []byte) [32]byte { return demo.BodySum(content) }

// Accepted notes that the message was answered 250 for rcpt. id is the queue's.
func (l *Ledger) Accepted(id, rcpt string, sum [32]byte) {
	l.note(rcpt, sum, func(e *ledgerEntry) { e.id = id; e.accepted++ })
}

// Unanswered notes that the message was sent for rcpt, but the connection
// ended before the reply: it may be relayed, and need not (RFC 1047).
func (l *Ledger) Unanswered(rcpt string, sum [32]byte) {
	l.note(rcpt, sum, func(e *ledgerEntry) { e.unanswered++ })
}

// Relayed notes that the primary has the message for rcpt.
func (l *Ledger) Relayed(rcpt string, sum [32]byte) {
	l.note(rcpt, sum, func(e *ledgerEntry) { e.relayed++ })
}

// RelayedTo notes all that p received.
func (l *Ledger) RelayedTo(p *demo.Primary) {
	for _, m := range p.Received() {
		for _, to := range m.To {
			l.Relayed(to, m.BodySum)
		}
	}
}

// Held notes that the queue holds message id for rcpt.
func (l *Ledger) Held(id, rcpt string) {
	l.noteID("held", id, rcpt, func(e *ledgerEntry) { e.held++ })
}

// Returned notes that the sender of message id got a DSN about rcpt, or that
// the operator removed it.
func (l *Ledger) Returned(id, rcpt string) {
	l.noteID("returned", id, rcpt, func(e *ledgerEntry) { e.returned++ })
}

func (l *Ledger) note(rcpt string, sum [32]byte, change func(*ledgerEntry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := ledgerKey{sum, strings.ToLower(rcpt)}
	if l.entries == nil {
		l.entries = make(map[ledgerKey]*ledgerEntry)
	}
	e := l.entries[k]
	if e == nil {
		e = new(ledgerEntry)
		l.entries[k] = e
	}
	change(e)
}

func (l *Ledger) noteID(what, id, rcpt string, change func(*ledgerEntry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, e := range l.entries {
		if id != "" && e.id == id && k.rcpt == strings.ToLower(rcpt) {
			change(e)
			return
		}
	}
	l.stray = append(l.stray, fmt.Sprintf("%s: message %s for %s was never accepted", what, id, rcpt))
}

// Totals counts (message, recipient) pairs.
type Totals struct{ Accepted, Relayed, Held, Returned, Duplicates int }

// Totals returns the counts so far. A pair that was relayed more often than
// it was sent counts in Duplicates for each time too many.
func (l *Ledger) Totals() (t Totals) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		t.Accepted += e.accepted
		t.Relayed += e.relayed
		t.Held += e.held
		t.Returned += e.returned
		if e.accepted+e.unanswered > 0 {
			t.Duplicates += max(0, e.relayed-e.accepted-e.unanswered)
		}
	}
	return t
}

// Missing describes every accepted pair with no outcome, and every outcome of
// what was never accepted: an altered message shows up as one of each.
func (l *Ledger) Missing() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.stray)
	for k, e := range l.entries {
		settled := e.relayed + e.held + e.returned
		switch {
		case settled < e.accepted:
			out = append(out, fmt.Sprintf("message %s (%x…) for %s: accepted %d, relayed %d, held %d, returned %d",
				e.id, k.sum[:6], k.rcpt, e.accepted, e.relayed, e.held, e.returned))
		case e.accepted+e.unanswered == 0:
			out = append(out, fmt.Sprintf("content %x… for %s: relayed %d, but never accepted like this", k.sum[:6], k.rcpt, e.relayed))
		}
	}
	slices.Sort(out)
	return out
}

// TB is what Close needs of testing.TB.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// Close fails the test unless the accounts are even. Duplicates are logged;
// whether a test may have any is for the test to say.
func (l *Ledger) Close(t TB) {
	t.Helper()
	missing := l.Missing()
	for _, m := range missing[:min(len(missing), 20)] {
		t.Errorf("ledger: %s", m)
	}
	if n := len(missing); n > 20 {
		t.Errorf("ledger: and %d more", n-20)
	}
	t.Logf("ledger: %+v", l.Totals())
}
