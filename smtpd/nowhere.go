package smtpd

import (
	"context"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Nowhere is a Spool that takes messages and forgets them: for a server whose
// verdicts alone matter. Never give it to one that senders reach.
type Nowhere struct{}

func (Nowhere) Ready(int64) error { return nil }

func (Nowhere) Begin(e *envelope.Envelope) (Draft, error) {
	e.ID = "nowhere"
	return forgotten{}, nil
}

type forgotten struct{}

func (forgotten) Write(b []byte) (int, error)  { return len(b), nil }
func (forgotten) ID() string                   { return "nowhere" }
func (forgotten) Commit(context.Context) error { return nil }
func (forgotten) Abort()                       {}
