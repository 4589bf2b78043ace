package smtpd

import (
	"cmp"
	"container/list"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// event is what clients are limited in, see policy.ClientLimits.
type event int

const (
	newConnection event = iota
	newMessage
	newRecipient
	newTLS
	events // how many there are
)

// ratesSize is how many clients are counted at least. Those that are connected
// always are; beyond that the one that has been away for the longest is
// forgotten, and nobody is refused for lack of room.
const ratesSize = 20_000

// rates counts what each client does, as Postfix's anvil(8): in whole seconds,
// from its first event on until the unit of time has passed, then from the
// next event on. A client is forgotten one unit after its last session.
type rates struct {
	mu      sync.Mutex // guards the two below
	clients map[netip.Prefix]*rate
	idle    list.List // of *rate without a session, the latest in front
}

type rate struct {
	who    netip.Prefix
	open   int           // sessions
	idle   *list.Element // nil while there are any
	left   int64         // when the last ended
	start  int64         // of counts
	counts [events]int32
}

// get returns the counts of who at now, making them if need be.
func (r *rates) get(who netip.Prefix, unit, now int64) *rate {
	for e := r.idle.Back(); e != nil && e.Value.(*rate).left+unit <= now; e = r.idle.Back() {
		r.drop(e)
	}
	c := r.clients[who]
	if c == nil {
		if e := r.idle.Back(); e != nil && len(r.clients) >= ratesSize {
			r.drop(e)
		}
		if r.clients == nil {
			r.clients = make(map[netip.Prefix]*rate)
		}
		c = &rate{who: who, start: now, left: now}
		c.idle = r.idle.PushFront(c)
		r.clients[who] = c
	}
	if c.start+unit < now {
		c.start, c.counts = now, [events]int32{}
	}
	return c
}

func (r *rates) drop(e *list.Element) { delete(r.clients, r.idle.Remove(e).(*rate).who) }

// enter counts a session of who, and returns how many there are and how many
// began within unit.
func (r *rates) enter(who netip.Prefix, unit int64) (open, began int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.get(who, unit, time.Now().Unix())
	if c.idle != nil {
		r.idle.Remove(c.idle)
		c.idle = nil
	}
	c.open++
	c.counts[newConnection]++
	return c.open, int(c.counts[newConnection])
}

// leave ends a session that enter counted.
func (r *rates) leave(who netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.clients[who]
	if c.open--; c.open == 0 {
		c.left = time.Now().Unix()
		c.idle = r.idle.PushFront(c)
	}
}

// count adds n to the count of what within unit and returns it.
func (r *rates) count(who netip.Prefix, what event, n int32, unit int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.get(who, unit, time.Now().Unix())
	if c.counts[what] < math.MaxInt32 {
		c.counts[what] += n
	}
	return int(c.counts[what])
}

// counting returns as whom the policy's limits count the client, and their unit
// of time. As in Postfix they don't concern who may use XCLIENT, nor those of
// its exceptions. Where each address counts for itself, whether it is one of
// these is asked only once a limit is exceeded, for it may take the client's
// name.
func (s *session) counting() (who netip.Prefix, unit int64, counts bool) {
	l := &s.lim.Client
	who = prefix(s.client.Addr, cmp.Or(l.IPv4Prefix, 32), cmp.Or(l.IPv6Prefix, 128))
	counts = !s.xclient && who.IsValid() && (who.IsSingleIP() || !s.policy.Unlimited(s.ctx))
	return who, int64(cmp.Or(l.RateTime, 60)), counts
}

// admitted counts the session, and sends a client away that has too many.
func (s *session) admitted() bool {
	l := &s.lim.Client
	who, unit, counts := s.counting()
	if !counts || max(l.Connections, l.ConnectionRate, l.MessageRate, l.RecipientRate, l.NewTLSRate) == 0 {
		return true
	}
	open, began := s.srv.crowd.rates.enter(who, unit)
	s.entered = who
	limit := ""
	switch {
	case l.Connections > 0 && open > l.Connections:
		limit = "client_connections"
	case l.ConnectionRate > 0 && began > l.ConnectionRate:
		limit = "client_connection_rate"
	}
	if limit == "" || s.policy.Unlimited(s.ctx) {
		return true
	}
	s.limit(limit)
	s.hangUp("refused", s.tooMany(s.client.Addr.String()))
	return false
}

// tooMany refuses a connection of client.
func (s *session) tooMany(client string) envelope.Reply {
	return envelope.NewReply(421, "4.7.0", "%s Error: too many connections from %s", s.srv.Hostname, client)
}

// exceeds counts n of what, and says that they are now more than limit allows.
func (s *session) exceeds(what event, n int32, limit int, name string) bool {
	who, unit, counts := s.counting()
	if limit <= 0 || !counts || s.srv.crowd.rates.count(who, what, n, unit) <= limit || s.policy.Unlimited(s.ctx) {
		return false
	}
	s.limit(name)
	return true
}

// tooMuchMail counts a MAIL, and refuses it where the client has sent too many.
func (s *session) tooMuchMail() bool {
	over := s.exceeds(newMessage, 1, s.lim.Client.MessageRate, "client_messages")
	if over {
		s.reply(envelope.NewReply(450, "4.7.1", "Error: too much mail from %s", s.client.Addr))
	}
	return over
}

// tooManyRecipients does that for RCPT and VRFY.
func (s *session) tooManyRecipients() bool {
	over := s.exceeds(newRecipient, 1, s.lim.Client.RecipientRate, "client_recipients")
	if over {
		s.reply(envelope.NewReply(450, "4.7.1", "Error: too many recipients from %s", s.client.Addr))
	}
	return over
}

// tooManyHandshakes counts n new TLS sessions. It refuses none: STARTTLS and
// what follows it do that in different ways.
func (s *session) tooManyHandshakes(n int32) bool {
	return s.exceeds(newTLS, n, s.lim.Client.NewTLSRate, "client_tls_sessions")
}

func (s *session) tooManyTLS(code int, status, host string) envelope.Reply {
	c := s.policy.Client(s.ctx)
	return envelope.NewReply(code, status, "%sError: too many new TLS sessions from %s[%s]", host, c.Name, c.Addr)
}
