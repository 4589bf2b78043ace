package resolver

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/miekg/dns"
)

// flight is one question on its way to the servers, and all who wait for it.
type flight struct {
	cancel  context.CancelFunc
	waiters int           // guarded by Resolver.mu
	done    chan struct{} // closed by the flight's goroutine once answer is set
	answer  answer
}

// lookup answers from the cache, also when ctx has ended; else it joins the
// flight that asks the same question, or starts one. x/sync's singleflight won't do: a flight there
// either ends with the caller that started it or outlives them all.
func (r *Resolver) lookup(ctx context.Context, host string, qtype uint16) (answer, error) {
	name, ok := canonical(host)
	if !ok {
		return answer{}, notFound(host)
	}
	q := question{name, qtype}
	r.mu.Lock()
	if a, ok := r.cache.get(q, r.now()); ok {
		r.mu.Unlock()
		r.observe(dns.TypeToString[qtype], "cached", 0)
		return a, a.err(host)
	}
	if ctx.Err() != nil {
		r.mu.Unlock()
		return answer{}, cutShort(ctx, host)
	}
	f, joined := r.flights[q]
	if !joined {
		f = r.start(q)
	}
	f.waiters++
	r.mu.Unlock()

	if joined {
		r.observe(dns.TypeToString[qtype], "cached", 0)
	}
	select {
	case <-f.done:
		return f.answer, f.answer.err(host)
	case <-ctx.Done():
		r.leave(q, f)
		return answer{}, cutShort(ctx, host)
	}
}

func cutShort(ctx context.Context, host string) *net.DNSError {
	return &net.DNSError{
		UnwrapErr: ctx.Err(), Err: ctx.Err().Error(), Name: host,
		IsTimeout: errors.Is(ctx.Err(), context.DeadlineExceeded), IsTemporary: true,
	}
}

// start launches q's flight. The caller holds mu.
func (r *Resolver) start(q question) *flight {
	budget := r.timeout * time.Duration(triesPerServer*len(r.servers))
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	f := &flight{cancel: cancel, done: make(chan struct{})}
	r.flights[q] = f
	go func() {
		defer close(f.done)
		defer cancel()
		begun := time.Now()
		f.answer = r.ask(ctx, q)
		r.mu.Lock()
		if r.flights[q] == f { // else all have left: what was cut short is not kept
			delete(r.flights, q)
			r.cache.put(q, f.answer, r.now())
		}
		r.mu.Unlock()
		r.observe(dns.TypeToString[q.qtype], f.answer.status.String(), time.Since(begun))
	}()
	return f
}

// leave is called by a waiter whose context ended. The last one to leave ends
// the flight and waits for it.
func (r *Resolver) leave(q question, f *flight) {
	r.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && r.flights[q] == f {
		delete(r.flights, q)
	}
	r.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

// ask puts q to the servers once a slot is free, and follows a CNAME chain
// that the server left unfinished.
func (r *Resolver) ask(ctx context.Context, q question) answer {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return answer{status: timeout}
	}
	c := chain{qtype: q.qtype, name: q.name, ttl: maxTTL}
	for {
		m, server, st := r.exchange(ctx, question{c.name, q.qtype})
		if st != ok {
			return answer{status: st, server: server, ttl: failureTTL}
		}
		asked := c.name
		a := c.follow(m)
		if a.status != nodata || c.name == asked || a.authoritative {
			a.server = server
			return a
		}
	}
}

// canonical returns name in lower case, with its final dot, spelt as
// dns.Msg.Unpack spells it. It is false for what is no domain name, or none
// that we would ask for: empty, the root, over 253 octets, a label over 63,
// anything but printable ASCII.
func canonical(name string) (string, bool) {
	if n := len(name); n > 0 && name[n-1] == '.' {
		name = name[:n-1]
	}
	if name == "" || len(name) > 253 {
		return "", false
	}
	out := make([]byte, 0, len(name)+8)
	label := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = -1
		case c <= ' ' || c > '~':
			return "", false
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c == '\'' || c == '@' || c == ';' || c == '(' || c == ')' || c == '"' || c == '\\':
			out = append(out, '\\')
		}
		if label++; label > 63 {
			return "", false
		}
		out = append(out, c)
	}
	if label == 0 {
		return "", false
	}
	return string(append(out, '.')), true
}
