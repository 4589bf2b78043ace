package listertest

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// Wire is the network between a program and a PostgreSQL, without TLS. It knows
// the protocol's messages, and may be cut at any of them.
type Wire struct {
	listener net.Listener
	to       string

	mu    sync.Mutex // guards the rest
	down  bool
	conns map[net.Conn]bool
	watch func(toServer bool, message []byte) (pass int)
}

// NewWire leads to a server.
func NewWire(t testing.TB, to string) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		w.Cut(true)
	})
	go w.serve()
	return w
}

// DSN is how the user "understudy" finds its database over the wire.
func (w *Wire) DSN() string {
	return "postgres://understudy@" + w.listener.Addr().String() + "/understudy?sslmode=disable"
}

// Cut ends all connections, and refuses others until it is over.
func (w *Wire) Cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for c := range w.conns {
		if down {
			c.Close()
		}
	}
}

// Watch is shown every message, and says how many of its octets arrive; after
// fewer than all of them the connection is cut. nil lets all pass.
func (w *Wire) Watch(f func(toServer bool, message []byte) (pass int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watch = f
}

func (w *Wire) serve() {
	for {
		c, err := w.listener.Accept()
		if err != nil {
			return
		}
		go w.carry(c)
	}
}

func (w *Wire) carry(c net.Conn) {
	s, err := net.Dial("tcp", w.to)
	w.mu.Lock()
	if err != nil || w.down {
		w.mu.Unlock()
		c.Close()
		if s != nil {
			s.Close()
		}
		return
	}
	w.conns[c], w.conns[s] = true, true
	w.mu.Unlock()
	end := func() {
		c.Close()
		s.Close()
		w.mu.Lock()
		delete(w.conns, c)
		delete(w.conns, s)
		w.mu.Unlock()
	}
	go func() {
		defer end()
		w.pass(s, c, true)
	}()
	defer end()
	w.pass(c, s, false)
}

// pass copies message by message: a client's first has no type.
func (w *Wire) pass(to io.Writer, from io.Reader, toServer bool) {
	for first := toServer; ; first = false {
		message := make([]byte, 5, 64)
		if first {
			message = message[:4]
		}
		if _, err := io.ReadFull(from, message); err != nil {
			return
		}
		head := len(message)
		size := int(binary.BigEndian.Uint32(message[head-4:])) - 4
		message = append(message, make([]byte, max(0, size))...)
		if _, err := io.ReadFull(from, message[head:]); err != nil {
			return
		}
		w.mu.Lock()
		pass := len(message)
		if w.watch != nil {
			pass = w.watch(toServer, message)
		}
		w.mu.Unlock()
		if _, err := to.Write(message[:pass]); err != nil || pass < len(message) {
			return
		}
	}
}
