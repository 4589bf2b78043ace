package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// connection carries a client's octets: it ends lines, keeps replies until the
// client has nothing more to say for now, and bounds every wait. It knows no
// SMTP beyond that. drain and hurry may be called from anywhere, the rest from
// the session's goroutine.
type connection struct {
	ln    *listener
	raw   net.Conn // below TLS
	place int      // how many connections there were with this one

	in      input
	skipped int    // octets dropped of a line that is too long
	out     []byte // replies not yet written

	writeBy time.Time // conn's deadline for writing

	mu       sync.Mutex // guards the rest
	conn     net.Conn   // what is read and written: raw, or TLS over it
	deadline time.Time  // of the reads until the next await
	readBy   time.Time  // conn's, perhaps an earlier one; zero: none
	reading  bool
	waiting  bool // for a command, so that a drain may break the wait
	draining bool
	listed   bool // a connect rule refuses the client
}

var (
	errDraining = errors.New("shutting down")
	errBusy     = errors.New("under stress")
)

func openConnection(l *listener, c net.Conn) *connection {
	return &connection{ln: l, raw: c, conn: c, in: newInput(), out: make([]byte, 0, 512)}
}

// await gives the client d from now on, under stress less, but not beyond last
// unless that is zero.
func (c *connection) await(d time.Duration, last time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = time.Now().Add(c.ln.srv.crowd.patience(d))
	if !last.IsZero() && last.Before(c.deadline) {
		c.deadline = last
	}
}

// fill writes what is to be written and reads what the client sends. A wait for
// a command ends when the server drains, or needs the place.
func (c *connection) fill(command bool) error {
	err := c.flush()
	for again := err == nil; again; {
		again, err = c.read(command)
	}
	return err
}

// read reads once. It leaves an earlier deadline of conn's in force, which costs
// a second read now and then and spares setting one for each: again says so.
func (c *connection) read(command bool) (again bool, err error) {
	c.mu.Lock()
	err = c.interruption(command)
	if err == nil && (c.readBy.IsZero() || c.readBy.After(c.deadline)) {
		err = c.readUntil(c.deadline)
	}
	if err != nil {
		c.mu.Unlock()
		return false, err
	}
	c.reading, c.waiting = true, command
	c.mu.Unlock()
	err = c.in.fill(c.conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading, c.waiting = false, false
	if err == nil {
		return false, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.readBy = time.Time{}
		again = time.Now().Before(c.deadline)
	}
	if why := c.interruption(command); why != nil {
		return false, why
	}
	return again, err
}

// readUntil sets the deadline of reads; c.mu is locked.
func (c *connection) readUntil(t time.Time) error {
	c.readBy = t
	return c.conn.SetReadDeadline(t)
}

// interruption says why to wait for no more commands; c.mu is locked.
func (c *connection) interruption(command bool) error {
	switch {
	case command && c.draining:
		return errDraining
	case command && c.listed && c.ln.srv.crowd.stressed.Load():
		return errBusy
	}
	return nil
}

// interrupted is interruption for who doesn't wait.
func (c *connection) interrupted() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.interruption(true)
}

// line reads a command line, its line feed included.
func (c *connection) line() ([]byte, error) {
	c.in.shrink()
	for {
		if err := c.interrupted(); err != nil {
			return nil, err
		}
		line, err := c.in.line(&c.skipped)
		if line != nil || err != nil {
			return line, err
		}
		if err := c.fill(true); err != nil {
			return nil, err
		}
	}
}

// drain ends the wait for a command.
func (c *connection) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.waiting {
		_ = c.readUntil(time.Unix(1, 0))
	}
}

// hurry shortens the wait when stress begins. A client that is listed needn't
// wait at all: fill says errBusy.
func (c *connection) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	by := time.Now().Add(stressTimeout)
	if c.waiting && c.listed {
		by = time.Unix(1, 0)
	}
	if !by.Before(c.deadline) {
		return
	}
	c.deadline = by
	if c.reading {
		_ = c.readUntil(by)
	}
}

// setListed says whether a connect rule refuses the client.
func (c *connection) setListed(listed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed = listed
}

// flush writes the replies that wait.
func (c *connection) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	out := c.out
	c.out = c.out[:0]
	if cap(c.out) > maxCommand {
		c.out = nil
	}
	if now, wait := time.Now(), c.ln.srv.CommandTimeout; c.writeBy.Sub(now) < wait {
		c.writeBy = now.Add(wait + wait/16)
		if err := c.conn.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	_, err := c.conn.Write(out)
	return err
}

// secure starts TLS.
func (c *connection) secure(config *tls.Config) (*tls.ConnectionState, error) {
	if err := c.flush(); err != nil {
		return nil, err
	}
	conn := tls.Server(c.raw, config)
	if err := conn.SetDeadline(time.Now().Add(min(time.Minute, c.ln.srv.CommandTimeout))); err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(context.Background()); err != nil { // the deadline bounds it
		return nil, err
	}
	c.mu.Lock()
	c.conn, c.readBy, c.writeBy = conn, time.Time{}, time.Time{}
	c.mu.Unlock()
	state := conn.ConnectionState()
	return &state, nil
}

// linger lets the client read our last reply: to close while its octets lie
// unread would reset the connection and may destroy the reply.
func (c *connection) linger() {
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	raw := c.raw
	if p, ok := raw.(*proxyproto.Conn); ok {
		raw = p.Raw()
	}
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if raw.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(raw, 256<<10))
	}
}
