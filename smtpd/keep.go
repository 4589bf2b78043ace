package smtpd

import (
	"context"
	"errors"
	"io"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Keeper keeps accepted mail. An error that is or wraps an *envelope.ReplyError
// names the client's reply; any other is answered 451 4.3.0.
type Keeper interface {
	// Ready says whether a message of size octets could be kept now.
	Ready(size int64) error
	// Begin opens a message and sets env.ID. The Draft reads env at Commit.
	Begin(env *envelope.Envelope) (Draft, error)
}

// Draft is a message being written: our Received field, then the content with
// CRLF line ends and without dot-stuffing. Exactly one of Commit and Abort
// ends it.
type Draft interface {
	io.Writer
	// Spare, before the first Write, says that the message will probably be
	// aborted: little of it should stay in memory.
	Spare()
	// Open reads from the start what was written so far; the reader is closed
	// before the next call.
	Open() (io.ReadCloser, error)
	// Commit returns nil only when the message would survive a power cut.
	Commit(ctx context.Context) error
	Abort()
}

// Nowhere is a Keeper that takes messages and forgets them: for a server whose
// verdicts alone matter. Never give it to one that senders reach.
type Nowhere struct{}

func (Nowhere) Ready(int64) error { return nil }

func (Nowhere) Begin(e *envelope.Envelope) (Draft, error) {
	e.ID = "nowhere"
	return forgotten{}, nil
}

type forgotten struct{}

func (forgotten) Write(b []byte) (int, error)  { return len(b), nil }
func (forgotten) Commit(context.Context) error { return nil }
func (forgotten) Spare()                       {}
func (forgotten) Open() (io.ReadCloser, error) { return nil, errors.New("nothing is kept") }
func (forgotten) Abort()                       {}
