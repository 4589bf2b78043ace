package postgres

import (
	"context"
	"sync"
	"time"
)

// maxPooled is how many connections are used at a time, beside the writer's.
const maxPooled = 8

// pool is the connections of those who read, and of bodies.
type pool struct {
	connect func(context.Context) (*session, error)
	slots   chan struct{} // one for each in use

	mu         sync.Mutex // guards what follows
	idle       []*session
	generation uint64 // older connections aren't used again
	closed     bool
}

func (p *pool) init(connect func(context.Context) (*session, error)) {
	p.connect, p.slots = connect, make(chan struct{}, maxPooled)
}

// renew has every connection replaced.
func (p *pool) renew() {
	p.mu.Lock()
	old := p.idle
	p.idle = nil
	p.generation++
	p.mu.Unlock()
	for _, n := range old {
		n.close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.renew()
}

func (p *pool) get(ctx context.Context, fresh bool) (n *session, reused bool, err error) {
	p.mu.Lock()
	generation, closed := p.generation, p.closed
	if last := len(p.idle) - 1; last >= 0 && !fresh {
		n, p.idle = p.idle[last], p.idle[:last]
	}
	p.mu.Unlock()
	switch {
	case closed:
		return nil, false, errClosed
	case n != nil:
		return n, true, nil
	}
	if n, err = p.connect(ctx); err == nil {
		n.pooled = generation
	}
	return n, false, err
}

func (p *pool) put(n *session) {
	p.mu.Lock()
	keep := !p.closed && n.pooled == p.generation && !n.conn.IsClosed()
	if keep {
		n.used = time.Now()
		p.idle = append(p.idle, n)
	}
	p.mu.Unlock()
	if !keep {
		n.close()
	}
}

// with lends a connection. One that turns out to be dead is replaced, and use is
// called again: it must be a thing that may be done twice.
func (p *pool) with(ctx context.Context, use func(*session) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.slots }()
	for fresh := false; ; fresh = true {
		n, reused, err := p.get(ctx, fresh)
		if err != nil {
			return err
		}
		err = use(n)
		p.put(n)
		if err == nil || !reused || answered(err) || ctx.Err() != nil || !n.conn.IsClosed() {
			return err
		}
	}
}
