package lister

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
)

// meter counts what a listing takes.
type meter struct {
	limits Limits
	host   *host.Host // whose addresses are dialled
	rows   int
	octets atomic.Int64
	over   atomic.Bool // of octets
}

func (m *meter) row() error {
	if m.rows++; m.rows > m.limits.Rows {
		return ErrRows
	}
	return nil
}

func (m *meter) take(n int) error {
	if m.octets.Add(int64(n)) > m.limits.Bytes {
		m.over.Store(true)
		return ErrBytes
	}
	return nil
}

// metered is a stream whose octets count.
type metered struct {
	io.Reader
	m *meter
}

func (r metered) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if over := r.m.take(n); over != nil {
		return 0, over
	}
	return n, err
}

// meteredConn is a connection whose incoming octets count.
type meteredConn struct {
	net.Conn
	m *meter
}

func (c meteredConn) Read(p []byte) (int, error) { return metered{c.Conn, c.m}.Read(p) }

// connectTimeout bounds the way to one host, so that the next has its turn.
const connectTimeout = 10 * time.Second

func (m *meter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := m.host.Dial(ctx, network, address, connectTimeout)
	if err != nil {
		return nil, err
	}
	return meteredConn{c, m}, nil
}
