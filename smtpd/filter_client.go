package smtpd

import (
	"context"

	"github.com/understudy-mx/understudy/internal/milter"
)

// filterClient is a filter, and what it has heard.
type filterClient struct {
	*milter.Client
	filter    *Filter
	connected bool
	out       bool // it never heard of the client, and isn't asked
	helos     int
	mailed    bool
	rcpts     int
	data      bool
	decided   milter.Answer // about the whole transaction, at a command that the primary had taken
}

// miss has a filter not hear what one before it has decided.
func (c *filterClient) miss(f *filtering) {
	c.out = c.out || !c.connected
	c.helos, c.mailed, c.rcpts, c.data = f.helos, f.mail != nil, len(f.rcpts), f.data
}

// knows says that a filter has nothing left to hear before the message.
func (c *filterClient) knows(f *filtering) bool {
	return c.connected && c.helos == f.helos && c.mailed == (f.mail != nil) && c.rcpts == len(f.rcpts) && c.data == f.data
}

// tell brings one filter up to what was said, and returns its answer to that.
func (f *filtering) tell(ctx context.Context, c *filterClient) (a milter.Answer) {
	if !c.connected {
		c.connected = true
		client := f.s.known(ctx)
		a = c.Connect(ctx, client.Name, client.Addr, client.Port)
	} else {
		a = c.Standing()
	}
	if c.helos < f.helos && !closes(a) {
		c.helos = f.helos
		a = c.Helo(ctx, f.helo)
	}
	if f.mail == nil || closes(a) {
		return a
	}
	if !c.mailed {
		c.mailed = true
		if a = c.Mail(ctx, f.mail); a.Action == milter.Refuse || a.Action == milter.Discard {
			c.decided = a
		}
	}
	for ; c.rcpts < len(f.rcpts) && c.decided.Action == milter.Continue; c.rcpts++ {
		f.current = &f.rcpts[c.rcpts]
		if f.current.refused.Zero() || c.WantsRejected() {
			a = c.Rcpt(ctx, f.current.args)
		}
		if a.Action == milter.Discard && f.current.refused.Zero() {
			c.decided = a
		}
		if !f.current.refused.Zero() || c.rcpts < len(f.rcpts)-1 {
			a = c.Standing() // it is decided already, by others
		}
		f.current = nil
	}
	if c.decided.Action != milter.Continue {
		return c.decided
	}
	if f.data && !c.data {
		c.data = true
		a = c.Data(ctx)
	}
	return a
}

// closes says that a refusal ends the session.
func closes(a milter.Answer) bool { return a.Action == milter.Refuse && a.Reply.Code == 421 }
