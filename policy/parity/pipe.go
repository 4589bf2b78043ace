package parity

import (
	"context"
	"net"
	"sync"
)

// Pipe is a listener in memory: what Dial connects to arrives at Accept, from
// the address 127.0.0.1. No port is opened for it.
type Pipe struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewPipe returns a listener; its owner must Close it.
func NewPipe() *Pipe { return &Pipe{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Dial is a Dialer.
func (p *Pipe) Dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- pipeConn{server}:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept is net.Listener's.
func (p *Pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and Dial.
func (p *Pipe) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

// Addr is net.Listener's.
func (p *Pipe) Addr() net.Addr { return loopback }

var loopback = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25}

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return loopback }
