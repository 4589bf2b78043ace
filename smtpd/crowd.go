package smtpd

import (
	"container/list"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// crowd knows who is inside. It tells when the server is under stress: from
// four fifths of max connections on, until they are fewer than seven tenths.
// Then waits shrink to stressTimeout, clients that a connect rule refuses are
// hung up on, and the last tenth of the places is for clients with a history.
type crowd struct {
	max, perClient, perNetwork int
	stressed                   atomic.Bool
	good                       history // whose mail was accepted, by group
	passed                     history // who waited for the policy's postscreen, by address
	rates                      rates

	mu   sync.Mutex               // guards the two below
	all  map[*connection]struct{} // open connections
	from map[netip.Prefix]int     // of them, by client and by network
}

// stressTimeout is how long a client may be silent under stress: Postfix's
// stress-adaptive smtpd_timeout.
const stressTimeout = 10 * time.Second

// historySize is how many clients a history remembers.
const historySize = 10_000

// add counts conn in. A connection that is refused takes a place until it has
// read its refusal; far beyond max there is none even for that, and add says
// no.
func (c *crowd) add(conn *connection) bool {
	c.mu.Lock()
	n := len(c.all) + 1
	if n > c.max+max(c.max/4, 16) {
		c.mu.Unlock()
		return false
	}
	c.all[conn] = struct{}{}
	conn.place = n
	begins := 5*n >= 4*c.max && !c.stressed.Swap(true)
	c.mu.Unlock()
	if begins {
		c.each(nil, (*connection).hurry)
	}
	return true
}

// each calls do with every open connection, or those of one listener.
func (c *crowd) each(of *listener, do func(*connection)) {
	c.mu.Lock()
	var some []*connection
	for conn := range c.all {
		if of == nil || conn.ln == of {
			some = append(some, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range some {
		do(conn)
	}
}

// enter counts a connection of client and names the limit that it breaks, or
// returns "".
func (c *crowd) enter(client netip.Addr) (limit string) {
	single, subnet := group(client), network(client)
	if !single.IsValid() {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from[single]++
	c.from[subnet]++
	switch {
	case c.from[single] > c.perClient:
		return "connections_per_client"
	case c.from[subnet] > c.perNetwork:
		return "connections_per_network"
	}
	return ""
}

// full says that the place of a connection is beyond those for its client.
func (c *crowd) full(place int, client netip.Addr) bool {
	if !c.good.has(group(client), 0) {
		place += c.max / 10
	}
	return place > c.max
}

// leave forgets conn, and the client that enter counted it for, if any.
func (c *crowd) leave(conn *connection, client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
	if 10*len(c.all) < 7*c.max {
		c.stressed.Store(false)
	}
	for _, p := range []netip.Prefix{group(client), network(client)} {
		if !p.IsValid() {
			continue
		}
		if c.from[p]--; c.from[p] <= 0 {
			delete(c.from, p)
		}
	}
}

// patience is how long to wait where d is usual.
func (c *crowd) patience(d time.Duration) time.Duration {
	if c.stressed.Load() {
		return min(d, stressTimeout)
	}
	return d
}

// group is what counts as one client.
func group(a netip.Addr) netip.Prefix { return prefix(a, 32, 64) }

// alone is an address by itself.
func alone(a netip.Addr) netip.Prefix { return prefix(a, 32, 128) }

// network is what counts as one network.
func network(a netip.Addr) netip.Prefix { return prefix(a, 24, 48) }

func prefix(a netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits4
	if a.Is6() {
		bits = bits6
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// history remembers the clients that did something last, historySize of them.
// It is gone after a restart.
type history struct {
	mu     sync.Mutex // guards the two below
	recent list.List  // of deed, the latest in front
	byAddr map[netip.Prefix]*list.Element
}

type deed struct {
	who  netip.Prefix
	when time.Time
}

// add notes that who did it now.
func (h *history) add(who netip.Prefix) {
	if !who.IsValid() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, known := h.byAddr[who]; known {
		e.Value = deed{who, time.Now()}
		h.recent.MoveToFront(e)
		return
	}
	if h.byAddr == nil {
		h.byAddr = make(map[netip.Prefix]*list.Element)
	}
	h.byAddr[who] = h.recent.PushFront(deed{who, time.Now()})
	if h.recent.Len() > historySize {
		delete(h.byAddr, h.recent.Remove(h.recent.Back()).(deed).who)
	}
}

// forget undoes add.
func (h *history) forget(who netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, known := h.byAddr[who]; known {
		delete(h.byAddr, h.recent.Remove(e).(deed).who)
	}
}

// has says that who did it, less than within ago unless that is 0.
func (h *history) has(who netip.Prefix, within time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, known := h.byAddr[who]
	return known && (within == 0 || time.Since(e.Value.(deed).when) < within)
}

// Sessions counts the open connections.
func (s *Server) Sessions() int {
	s.crowd.mu.Lock()
	defer s.crowd.mu.Unlock()
	return len(s.crowd.all)
}
