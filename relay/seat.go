package relay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How long a session waits for its client to go on, after a transaction and
// inside of one.
const (
	seatRest = 5 * time.Second
	liveRest = time.Minute
)

var errNoSeat = errors.New("too many sessions at once")

// pool has the places for sessions to one next hop that clients of ours wait
// for. A session that rests has to give up its place when another wants one.
type pool struct {
	seats     chan struct{} // a token for each session that is open
	perClient int           // of one client's at a time, 0 for any number
	open      prometheus.Gauge

	mu      sync.Mutex // guards what follows
	wanted  int        // how many wait for a place
	short   int        // how many didn't get one since use was called
	spare   int        // places that are not for us
	held    int        // of them, those that nobody can take
	resting []*seat    // the one that rests longest first
	clients map[netip.Addr]int
}

// newPool returns a pool. open counts the sessions, and may be nil.
func newPool(places, perClient int, open prometheus.Gauge) *pool {
	return &pool{seats: make(chan struct{}, places), perClient: perClient, open: open, clients: make(map[netip.Addr]int)}
}

// seat is a place in a pool, and the session in it.
type seat struct {
	pool   *pool
	client netip.Addr  // whose it is, where that counts
	s      *session    // nil: none is open
	yields time.Time   // from when on it gives up its place, while it rests
	timer  *time.Timer // ends the rest
}

// sit waits for a place.
func (p *pool) sit(ctx context.Context) error {
	select {
	case p.seats <- struct{}{}:
		return nil
	default:
	}
	p.mu.Lock()
	p.wanted++
	p.makeRoom()
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.wanted--
		p.mu.Unlock()
	}()
	select {
	case p.seats <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errNoSeat
	}
}

// sitNow takes a place for client if there is one now.
func (p *pool) sitNow(client netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.perClient > 0 && p.clients[client] >= p.perClient {
		return errNoSeat
	}
	if len(p.seats) == cap(p.seats) {
		p.makeRoom()
	}
	select {
	case p.seats <- struct{}{}:
		p.clients[client]++
		p.count(1)
		return nil
	default:
		p.short++
		return errNoSeat
	}
}

// use tells how many places can be taken now, and how many would be.
func (p *pool) use() (most, want int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want = len(p.seats) - p.held + p.wanted + p.short
	p.short = 0
	return cap(p.seats) - p.held, want
}

// withhold keeps n places from being taken. Those that are taken now are withheld once
// they are free.
func (p *pool) withhold(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = n
	for ; p.held > n; p.held-- {
		<-p.seats
	}
	for p.held < n {
		select {
		case p.seats <- struct{}{}:
			p.held++
		default:
			return
		}
	}
}

// makeRoom ends the session that rests longest of those that yield. The caller
// holds mu.
func (p *pool) makeRoom() {
	for _, a := range p.resting {
		if !time.Now().Before(a.yields) {
			p.oust(a)
			return
		}
	}
}

// oust ends a session that rests, if it still does. The caller holds mu.
func (p *pool) oust(a *seat) {
	if i := slices.Index(p.resting, a); i >= 0 {
		p.resting = slices.Delete(p.resting, i, i+1)
		a.timer.Stop()
		a.s.raw.Close()
		p.free(a)
	}
}

// free gives a's place back. The caller holds mu.
func (p *pool) free(a *seat) {
	if p.clients[a.client]--; p.clients[a.client] <= 0 {
		delete(p.clients, a.client)
	}
	p.count(-1)
	if p.held < p.spare {
		p.held++
		return
	}
	<-p.seats
}

func (p *pool) count(n float64) {
	if p.open != nil {
		p.open.Add(n)
	}
}

// rest keeps the session until its client goes on, so long at most. Once it has
// rested for the time yields, it makes way for who wants its place.
func (a *seat) rest(long, yields time.Duration) {
	p := a.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting, a.yields = append(p.resting, a), time.Now().Add(yields)
	a.timer = time.AfterFunc(long, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.oust(a)
	})
	if p.wanted > 0 {
		p.makeRoom()
	}
}

// wake says whether the session is still there after its rest.
func (a *seat) wake() bool {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	i := slices.Index(a.pool.resting, a)
	if i < 0 {
		a.s = nil
		return false
	}
	a.pool.resting = slices.Delete(a.pool.resting, i, i+1)
	a.timer.Stop()
	return true
}

// leave gives the place back, which has no session any more.
func (a *seat) leave() {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	a.pool.free(a)
	a.s = nil
}

// end ends the session, tidily or at once.
func (a *seat) end(tidily bool) {
	if tidily {
		a.s.quit()
	}
	a.s.raw.abort()
	a.leave()
}
