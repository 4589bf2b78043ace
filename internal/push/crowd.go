package push

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// crowd is a listener that holds at most so many connections. Whoever has no token
// may open all of them and say nothing, so a new one takes the place of one that
// hasn't shown a token: the oldest of the address that has the most of them. Nobody is
// kept out by another's silence.
type crowd struct {
	net.Listener
	most int

	mu    sync.Mutex // guards what follows
	idle  []*guest   // without a token, or between two requests; the oldest first
	count int
}

// guest is a connection of a crowd.
type guest struct {
	net.Conn
	crowd *crowd
	from  netip.Prefix
	gone  bool // guarded by the crowd's mu
}

// Accept takes the next connection. Where all places are those of clients with a
// token, it is closed.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g := &guest{Conn: conn, crowd: c, from: network(conn.RemoteAddr())}
		oldest := c.enter(g)
		if oldest != nil {
			_ = oldest.Close()
		}
		if oldest != g {
			return g, nil
		}
	}
}

// enter makes a place for g, and returns whom to close for it: g itself, if nobody
// else may be.
func (c *crowd) enter(g *guest) (oldest *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	c.idle = append(c.idle, g)
	if c.count <= c.most {
		return nil
	}
	of := map[netip.Prefix]int{}
	for _, other := range c.idle {
		of[other.from]++
	}
	for _, other := range c.idle {
		if oldest == nil || of[other.from] > of[oldest.from] {
			oldest = other
		}
	}
	return oldest
}

// network is an IPv4 address or a /64, which one client may have to itself.
func network(a net.Addr) netip.Prefix {
	ap, _ := netip.ParseAddrPort(a.String())
	ip, bits := ap.Addr().Unmap(), 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

// Close gives the place back.
func (g *guest) Close() error {
	c := g.crowd
	c.mu.Lock()
	if !g.gone {
		g.gone = true
		c.count--
		c.drop(g)
	}
	c.mu.Unlock()
	return g.Conn.Close()
}

// busy keeps a guest's place for it while a request of its is served.
func (g *guest) busy(yes bool) {
	c := g.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(g)
	if !yes && !g.gone {
		c.idle = append(c.idle, g)
	}
}

// drop takes g out of those that may be closed. The caller holds mu.
func (c *crowd) drop(g *guest) {
	for i, other := range c.idle {
		if other == g {
			c.idle = append(c.idle[:i], c.idle[i+1:]...)
			return
		}
	}
}

type guestKey struct{}

// withGuest notes a connection in the context of its requests.
func withGuest(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	g, _ := conn.(*guest)
	return context.WithValue(ctx, guestKey{}, g)
}

// seat keeps the place of a request's connection until leave is called.
func seat(r *http.Request) (leave func()) {
	g, _ := r.Context().Value(guestKey{}).(*guest)
	if g == nil { // a test's request
		return func() {}
	}
	g.busy(true)
	return func() { g.busy(false) }
}
