package main

import (
	"fmt"

	"github.com/understudy-mx/understudy/internal/demo"
)

// demoBooks is the demo's ledger: each recipient that a message was accepted
// for must be found at the primary, with the same content, or held.
type demoBooks struct {
	sent     int
	messages int                 // accepted ones
	refused  map[string]int      // by kind
	accepted map[demoPair]int    // how often relayed or held so far
	ids      map[string][32]byte // content by queue ID
	wrong    []string            // outcomes other than those that must be
}

// demoPair is a message, known by its content, and one recipient of it.
type demoPair struct {
	sum  [32]byte
	rcpt string
}

func newDemoBooks() *demoBooks {
	return &demoBooks{refused: make(map[string]int), accepted: make(map[demoPair]int), ids: make(map[string][32]byte)}
}

// enter books what became of one message.
func (b *demoBooks) enter(m demoMail, o demo.Outcome, err error) {
	b.sent++
	last := o.Last()
	switch {
	case err != nil:
		b.complain("%s from %s: connection broke: %v", m.kind.name, m.From, err)
	case last.Code != m.kind.code:
		b.complain("%s from %s: replied %q, not %d", m.kind.name, m.From, last, m.kind.code)
	}
	to := o.Accepted(m.To)
	if len(to) == 0 {
		b.refused[m.kind.name]++
		return
	}
	b.messages++
	sum := demo.BodySum(m.Content)
	for _, rcpt := range to {
		b.accepted[demoPair{sum, rcpt}] = 0
	}
	b.ids[queuedAs(last.Text)] = sum
}

func (b *demoBooks) complain(format string, args ...any) {
	if len(b.wrong) < 10 {
		b.wrong = append(b.wrong, fmt.Sprintf(format, args...))
	}
}

// account is the books' end.
type account struct {
	accepted, relayed, held int // recipients
	lost, altered, twice    int
}

// close compares what was accepted with what the primary has and what the
// queue holds.
func (b *demoBooks) close(received []demo.Received, held []demoPair) account {
	a := account{accepted: len(b.accepted)}
	for _, m := range received {
		for _, rcpt := range m.To {
			p := demoPair{m.BodySum, rcpt}
			n, known := b.accepted[p]
			switch {
			case !known:
				a.altered++
			case n > 0:
				a.twice++
			default:
				a.relayed++
			}
			if known {
				b.accepted[p]++
			}
		}
	}
	for _, p := range held {
		if n, known := b.accepted[p]; known && n == 0 {
			a.held++
			b.accepted[p]++
		}
	}
	a.lost = a.accepted - a.relayed - a.held
	return a
}

// even says that nothing is amiss.
func (a account) even() bool { return a.lost == 0 && a.altered == 0 && a.twice == 0 }
