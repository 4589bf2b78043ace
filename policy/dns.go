package policy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/mailauth"
)

// dnsStatus is the outcome of a look-up.
type dnsStatus uint8

const (
	dnsFound dnsStatus = iota
	dnsNotFound
	dnsTemp
	dnsNullMX
	dnsMalformed // there are records, but what they name can't be a host
)

func statusOf(err error) dnsStatus {
	var de *net.DNSError
	switch {
	case err == nil:
		return dnsFound
	case errors.As(err, &de) && de.IsNotFound:
		return dnsNotFound
	}
	return dnsTemp
}

// answer is the outcome of one look-up, or of two that belong together. done is
// closed when the rest may be read; it is nil in the answer to a caller that
// didn't wait long enough.
type answer struct {
	done   chan struct{}
	status dnsStatus
	addrs  []netip.Addr
	hosts  []string
	best   int // how many of the hosts have the best preference
	txt    string
	spf    mailauth.Result

	name, reverse             string // of the client
	nameStatus, reverseStatus envelope.NameStatus

	failed bool // a look-up after it failed temporarily
}

// outcome is the outcome of a look-up for a.
func (a *answer) outcome(err error) dnsStatus {
	st := statusOf(err)
	a.failed = a.failed || st == dnsTemp
	return st
}

// Bounds of one session's look-ups.
const (
	maxFanOut  = 8    // at once, ahead of being asked for
	maxAnswers = 1000 // remembered
	maxTXT     = 500  // octets of a DNS list's text, as Postfix
	maxServers = 100  // addresses behind the MX or NS records of a name
	maxNames   = 100  // names that an Exim's list may ask for, which clients may fill; beyond them it defers
)

// lookups remembers the DNS answers of one session, so that a session never
// sees two answers to one question. Answers about the client live as long as
// the session, others as long as the transaction.
type lookups struct {
	r      Resolver
	ctx    context.Context // of the look-ups that nobody has asked for yet
	cancel context.CancelFunc
	wg     sync.WaitGroup

	session map[string]*answer // by question
	trans   map[string]*answer
}

func (l *lookups) init(r Resolver) {
	l.r = r
	l.session = map[string]*answer{}
	l.trans = map[string]*answer{}
}

// question is a look-up that can be made ahead.
type question struct {
	key string
	ask func(context.Context, *answer)
}

// ended is a context that is over: a look-up under it gets what the Resolver
// remembers, or nothing.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// closed is the done of an immediate answer.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// start makes look-ups about the client: at once those that the Resolver
// remembers the answers of, the others in the background, a few at a time,
// until close is called. It uses ctx's values, not its end, which is the end of a
// command.
func (l *lookups) start(ctx context.Context, qs []question) {
	var slow []question
	for _, q := range qs {
		if l.session[q.key] != nil {
			continue
		}
		a := &answer{done: closed}
		if q.ask(ended, a); a.failed {
			slow = append(slow, q)
			continue
		}
		l.session[q.key] = a
	}
	if len(slow) > 0 {
		l.startSlow(ctx, slow)
	}
}

func (l *lookups) startSlow(ctx context.Context, qs []question) {
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	work := make(chan func(), len(qs))
	for _, q := range qs {
		a := &answer{done: make(chan struct{})}
		l.session[q.key] = a
		work <- func() {
			defer close(a.done)
			q.ask(l.ctx, a)
		}
	}
	close(work)
	for range min(maxFanOut, len(work)) {
		l.wg.Go(func() {
			for f := range work {
				f()
			}
		})
	}
}

// close ends the background look-ups and waits for them.
func (l *lookups) close() {
	if l.cancel != nil {
		l.cancel()
	}
	l.wg.Wait()
}

func (l *lookups) reset() {
	clear(l.trans)
}

// get answers a question: from memory, by waiting for the look-up under way,
// or by asking now. An answer that ctx's end cut short isn't remembered.
func (l *lookups) get(ctx context.Context, q question) *answer {
	a := l.session[q.key]
	if a == nil {
		a = l.trans[q.key]
	}
	if a != nil {
		select {
		case <-a.done:
			return a
		default:
		}
		select {
		case <-a.done:
			return a
		case <-ctx.Done():
			return &answer{
				status: dnsTemp, name: unknown, reverse: unknown,
				nameStatus: envelope.NameTemp, reverseStatus: envelope.NameTemp,
			}
		}
	}
	a = &answer{done: closed}
	q.ask(ctx, a)
	if ctx.Err() == nil && len(l.trans) < maxAnswers {
		l.trans[q.key] = a
	}
	return a
}

// clientNames looks up the PTR name and whether it maps back, as Postfix's
// smtpd_peer.c does.
func (l *lookups) clientNames(addr netip.Addr) question {
	return question{"ptr " + addr.String(), func(ctx context.Context, a *answer) {
		a.name, a.reverse = unknown, unknown
		names, err := l.r.LookupAddr(ctx, addr.String())
		ptr := ""
		if len(names) > 0 {
			ptr = trimDot(names[0])
		}
		if a.status = a.outcome(err); a.status == dnsFound && ptr == "" {
			a.status = dnsNotFound
		}
		if a.status != dnsFound {
			a.nameStatus = nameStatus(a.status)
			a.reverseStatus = a.nameStatus
			return
		}
		if !envelope.ValidHostname(ptr) { // a bare address included
			a.nameStatus, a.reverseStatus = envelope.NameNotFound, envelope.NameNotFound
			return
		}
		a.reverse, a.reverseStatus = ptr, envelope.NameOK
		network := "ip4"
		if addr.Is6() {
			network = "ip6"
		}
		addrs, err := l.r.LookupNetIP(ctx, network, ptr)
		a.nameStatus = envelope.NameForged
		if a.outcome(err) == dnsTemp {
			a.nameStatus = envelope.NameTemp
		}
		for _, x := range addrs {
			if err == nil && x.Unmap() == addr {
				a.name, a.nameStatus = ptr, envelope.NameOK
			}
		}
	}}
}

const unknown = "unknown"

func nameStatus(s dnsStatus) envelope.NameStatus {
	if s == dnsTemp {
		return envelope.NameTemp
	}
	return envelope.NameNotFound
}

// listed asks a DNS list for a name, and for the text when it is listed.
func (l *lookups) listed(name string) question {
	return question{"list " + name, func(ctx context.Context, a *answer) {
		addrs, err := l.r.LookupNetIP(ctx, "ip4", name)
		if a.status = a.outcome(err); a.status != dnsFound {
			return
		}
		if len(addrs) == 0 {
			a.status = dnsNotFound
			return
		}
		a.addrs = addrs
		if texts, err := l.r.LookupTXT(ctx, name); a.outcome(err) == dnsFound {
			a.txt = strings.Join(texts, " / ")
			a.txt = a.txt[:min(len(a.txt), maxTXT)]
		}
	}}
}

// hostLike says that Postfix takes what a record names for a host: an address is one,
// and so is a wildcard. It passes over other records.
func hostLike(host string) bool {
	host = trimDot(host)
	return envelope.ValidHostaddr(host) || envelope.ValidHostname(strings.TrimPrefix(host, "*."))
}

// exists asks whether a name has MX or address records, of which the MX come
// first or last. Any record decides; else a temporary failure does.
func (l *lookups) exists(name string, mxFirst bool) question {
	name = toASCII(name)
	key := "addr " + name
	if mxFirst {
		key = "mail " + name
	}
	return question{key, func(ctx context.Context, a *answer) {
		a.status = dnsNotFound
		if !envelope.ValidHostname(name) {
			return
		}
		mx := func() dnsStatus {
			mxs, err := l.r.LookupMX(ctx, name)
			st := a.outcome(err)
			switch {
			case st == dnsFound && len(mxs) == 1 && (mxs[0].Host == "." || mxs[0].Host == ""):
				st = dnsNullMX
			case st == dnsFound && !slices.ContainsFunc(mxs, func(mx *net.MX) bool { return hostLike(mx.Host) }):
				st = dnsMalformed
			}
			return st
		}
		ip := func(network string) func() dnsStatus {
			return func() dnsStatus {
				addrs, err := l.r.LookupNetIP(ctx, network, name)
				st := a.outcome(err)
				if st == dnsFound && len(addrs) == 0 {
					st = dnsNotFound
				}
				return st
			}
		}
		asks := []func() dnsStatus{ip("ip4"), ip("ip6"), mx}
		if mxFirst {
			asks = []func() dnsStatus{mx, ip("ip4"), ip("ip6")}
		}
		for _, ask := range asks {
			switch st := ask(); st {
			case dnsFound, dnsNullMX, dnsMalformed:
				a.status = st
				return
			case dnsTemp:
				a.status = dnsTemp
			}
		}
	}}
}
