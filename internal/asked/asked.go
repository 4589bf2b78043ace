// Package asked remembers which recipients a primary has, where nothing but asking
// tells: MAIL FROM:<>, RCPT TO:<somebody>, and never DATA; VRFY is not used, which most
// servers have switched off. It is Postfix's verify(8), with its ages:
//
//	         kept     asked again after
//	yes      31 days  7 days
//	no       3 days   3 hours, when somebody wants it
//
// What is known so is learned, not listed: who was never asked about is put off while
// the primary is down, and who was deleted may be let in for a month. A "no" doesn't
// replace a "yes" before that has expired, as with verify(8): a primary that refuses
// everybody for an hour makes nobody unknown.
//
// Who talks to us chooses what is asked, so questions are few: for each client, and
// in all. Beyond that nobody is asked, and the recipient is put off.
package asked

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
)

// The ages of answers, Postfix's address_verify_* by default.
const (
	yesKept  = 31 * 24 * time.Hour
	yesAgain = 7 * 24 * time.Hour
	noKept   = 3 * 24 * time.Hour
	noAgain  = 3 * time.Hour
)

// Bounds of what is remembered and asked.
const (
	maxYes       = 100_000
	maxNo        = 20_000
	maxAddress   = 320    // octets
	maxClients   = 10_000 // whose questions are counted
	clientBurst  = 20     // questions of a client at once,
	clientEvery  = time.Minute
	totalBurst   = 100 // and of all together
	totalEvery   = time.Second
	refreshEvery = 2 * time.Second // one question of our own
	saveEvery    = time.Minute
	retryAfter   = 10 * time.Minute // a question of our own that brought no answer
)

// ErrLimit says that too much was asked already.
var ErrLimit = errors.New("too many questions about recipients: the primary isn't asked")

// Ask asks the primary about a recipient. An error says that it can't be asked.
type Ask func(ctx context.Context, m envelope.Mailbox) (envelope.Reply, error)

// Options say where to remember, and how to ask.
type Options struct {
	File    string
	Ask     Ask
	Domains func() []string // whose recipients the policy has asked about
	Log     *slog.Logger
	Metrics *metrics.Metrics
	Now     func() time.Time // nil: time.Now
}

// entry is what is known of a recipient.
type entry struct {
	Address string    `json:"a"`
	Yes     bool      `json:"y,omitempty"`
	At      time.Time `json:"t"`           // of the last answer that counts
	Asked   time.Time `json:"q,omitzero"`  // of the last question; zero: never, it is from a log
	Log     bool      `json:"l,omitempty"` // the answer was read in a log
}

// Book remembers.
type Book struct {
	o Options

	saving sync.Mutex // one file at a time

	mu      sync.Mutex // guards what follows
	entries map[string]*entry
	yes     int
	dirty   bool
	total   bucket
	clients map[netip.Prefix]*bucket
	asking  map[string]*question
	trials  map[string]trial // by domain
}

// question is one under way, for all who want its answer.
type question struct {
	done  chan struct{}
	reply envelope.Reply
	err   error
}

// Open reads what was remembered. A file that can't be read is given up: it is
// only a memory.
func Open(o Options) *Book {
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &Book{o: o, entries: map[string]*entry{}, clients: map[netip.Prefix]*bucket{}, asking: map[string]*question{}, trials: map[string]trial{}}
	text, err := os.ReadFile(o.File)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			o.Log.Error("what was learned of recipients is lost", "err", err)
		}
		return b
	}
	for line := range bytes.Lines(text) {
		if e, err := readEntry(line, o.Now()); err == nil {
			b.keep(e)
		}
	}
	return b
}

// readEntry reads a line of the file. What is dated in the future, by a clock that
// went wrong, is as old as now: else it would never expire.
func readEntry(line []byte, now time.Time) (*entry, error) {
	e := &entry{}
	if err := json.Unmarshal(line, e); err != nil {
		return nil, err
	}
	m, err := envelope.ParseMailbox(e.Address)
	if err != nil || strings.ToLower(m.String()) != e.Address || len(e.Address) > maxAddress {
		return nil, errors.New("no address that is kept")
	}
	for _, t := range []*time.Time{&e.At, &e.Asked} {
		if t.After(now) {
			*t = now.UTC().Truncate(time.Second)
		}
	}
	return e, nil
}

// keep remembers e, in place of others of its kind when there are too many. The
// caller holds mu, or has the book for itself.
func (b *Book) keep(e *entry) {
	if old := b.entries[e.Address]; old != nil {
		b.forget(old)
	}
	if e.Yes && b.yes >= maxYes {
		return
	}
	if !e.Yes && len(b.entries)-b.yes >= maxNo {
		for _, old := range b.entries { // any: maps are in no order
			if !old.Yes {
				b.forget(old)
				break
			}
		}
	}
	b.entries[e.Address], b.dirty = e, true
	if e.Yes {
		b.yes++
	}
}

func (b *Book) forget(e *entry) {
	if e.Yes {
		b.yes--
	}
	delete(b.entries, e.Address)
	b.dirty = true
}

// expired says that an answer is too old to count.
func (e *entry) expired(now time.Time) bool {
	kept := noKept
	if e.Yes {
		kept = yesKept
	}
	return now.Sub(e.At) > kept
}

// due says that an answer should be asked for again.
func (e *entry) due(now time.Time) bool {
	again := noAgain
	if e.Yes {
		again = yesAgain
	}
	return now.Sub(e.At) > again && now.Sub(e.Asked) > retryAfter || e.Asked.IsZero()
}

var (
	replyYes     = envelope.NewReply(250, "2.1.5", "Ok")
	replyUnknown = envelope.NewReply(550, "5.1.1", "Recipient address rejected: User unknown")
)

// Lookup returns what the primary has said of a recipient, or asks it: 250, 550 for
// an unknown one, or its own temporary reply. An error says that it can't be asked.
func (b *Book) Lookup(ctx context.Context, client netip.Addr, m envelope.Mailbox) (envelope.Reply, error) {
	key := strings.ToLower(m.String())
	now := b.o.Now()
	b.mu.Lock()
	e := b.entries[key]
	if e != nil && e.expired(now) {
		e = nil
	}
	if e != nil && (e.Yes || !e.due(now)) {
		b.mu.Unlock()
		return b.remembered(e), nil
	}
	q := b.asking[key]
	first := q == nil
	if first {
		if !b.allow(now, client) {
			b.mu.Unlock()
			if e != nil {
				return b.remembered(e), nil
			}
			b.count("limited")
			return envelope.Reply{}, ErrLimit
		}
		q = &question{done: make(chan struct{})}
		b.asking[key] = q
	}
	b.mu.Unlock()
	if first {
		q.reply, q.err = b.ask(ctx, key, m)
		b.mu.Lock()
		delete(b.asking, key)
		b.mu.Unlock()
		close(q.done)
	}
	select {
	case <-q.done:
		if q.err != nil && e != nil {
			return b.remembered(e), nil
		}
		return q.reply, q.err
	case <-ctx.Done():
		return envelope.Reply{}, ctx.Err()
	}
}

// remembered is the answer that e has.
func (b *Book) remembered(e *entry) envelope.Reply {
	b.count("remembered")
	if e.Yes {
		return replyYes
	}
	return replyUnknown
}

func (b *Book) count(result string) { b.o.Metrics.RecipientsAsked.WithLabelValues(result).Inc() }

// ask asks the primary, and remembers a definite answer.
func (b *Book) ask(ctx context.Context, key string, m envelope.Mailbox) (envelope.Reply, error) {
	reply, err := b.o.Ask(ctx, m)
	now := b.o.Now().UTC().Truncate(time.Second)
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.entries[key]
	if old != nil {
		asked := *old // readers have the old one
		asked.Asked = now
		b.entries[key], b.dirty = &asked, true
	}
	switch {
	case err != nil:
		b.count("unasked")
		return reply, err
	case reply.Positive():
		b.learn(key, true, now)
		b.count("yes")
		return replyYes, nil
	case unknown(reply):
		b.learn(key, false, now)
		b.count("no")
		return replyUnknown, nil
	}
	b.count("unsure")
	return envelope.Reply{}, errors.New("the primary's answer isn't about the recipient: " + reply.String())
}

// learn keeps an answer; a "no" only where no "yes" of the primary's counts. The caller
// holds mu.
func (b *Book) learn(key string, yes bool, now time.Time) {
	if old := b.entries[key]; yes || old == nil || !old.Yes || old.expired(now) || old.Log {
		b.keep(&entry{Address: key, Yes: yes, At: now, Asked: now})
	}
}

// Heard takes the primary's reply to a client's own RCPT, in a session that was played
// through. That one may be refused for what it is: only the plain word that the
// recipient is unknown is a "no".
func (b *Book) Heard(m envelope.Mailbox, reply envelope.Reply) {
	key, yes := strings.ToLower(m.String()), reply.Positive()
	if !yes && !reply.UserUnknown() || len(key) > maxAddress {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learn(key, yes, b.o.Now().UTC().Truncate(time.Second))
}

// unknown says that a reply to RCPT means that there is no such recipient. Others are
// about us, the sender or the moment: nobody is unknown because of them. Exchange
// Online says 5.4.1 for who isn't in its directory.
func unknown(r envelope.Reply) bool {
	if !slices.Contains([]int{550, 551, 553}, r.Code) {
		return false
	}
	return r.Enhanced == "" || slices.Contains([]string{"5.1.0", "5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1", "5.4.1"}, r.Enhanced)
}

// bucket counts questions: it fills up again with time.
type bucket struct {
	used float64
	at   time.Time
}

func (k *bucket) level(now time.Time, every time.Duration) float64 {
	return max(0, k.used-float64(now.Sub(k.at))/float64(every))
}

// allow says whether client may cause another question. The caller holds mu.
func (b *Book) allow(now time.Time, client netip.Addr) bool {
	bits := 32
	if client = client.Unmap(); client.Is6() {
		bits = 64
	}
	who, _ := client.Prefix(bits)
	k := b.clients[who]
	if k == nil {
		if len(b.clients) >= maxClients {
			for p, other := range b.clients {
				if other.level(now, clientEvery) == 0 {
					delete(b.clients, p)
				}
			}
		}
		if len(b.clients) >= maxClients {
			return false
		}
		k = &bucket{}
		b.clients[who] = k
	}
	own, all := k.level(now, clientEvery), b.total.level(now, totalEvery)
	if own+1 > clientBurst || all+1 > totalBurst {
		return false
	}
	*k, b.total = bucket{own + 1, now}, bucket{all + 1, now}
	return true
}

// Status counts what is known.
type Status struct {
	Domains   []string  `json:"domains"`
	Everybody []string  `json:"everybody,omitempty"` // domains of which the primary accepts recipients that are made up
	Yes       int       `json:"yes"`
	No        int       `json:"no"`
	Log       int       `json:"log"` // of yes, those that were only read in a log
	Since     time.Time `json:"since,omitzero"`
}

// Status returns it.
func (b *Book) Status() (s Status) {
	s.Domains = b.o.Domains()
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Everybody = b.everybody()
	for _, e := range b.entries {
		if e.Yes {
			s.Yes++
		} else {
			s.No++
		}
		if e.Log {
			s.Log++
		}
		if s.Since.IsZero() || e.At.Before(s.Since) {
			s.Since = e.At
		}
	}
	return s
}

// Warm takes addresses that a log says were delivered to. They are asked about
// soon. It returns how many were new. They are saved at once.
func (b *Book) Warm(addresses []string) (n int) {
	if n = b.warm(addresses); n > 0 {
		b.save()
	}
	return n
}

func (b *Book) warm(addresses []string) (n int) {
	now, domains := b.o.Now().UTC().Truncate(time.Second), b.o.Domains()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range addresses {
		m, err := envelope.ParseMailbox(a)
		if err != nil || len(a) > maxAddress || !slices.Contains(domains, strings.ToLower(m.Domain)) {
			continue
		}
		key := strings.ToLower(m.String())
		if b.entries[key] == nil && b.yes < maxYes {
			b.keep(&entry{Address: key, Yes: true, At: now, Log: true})
			n++
		}
	}
	return n
}

// Run asks again in time, since the answers are wanted when the primary is gone, and
// saves, until ctx ends.
func (b *Book) Run(ctx context.Context) error {
	ask, save := time.NewTicker(refreshEvery), time.NewTicker(saveEvery)
	defer ask.Stop()
	defer save.Stop()
	var due []string
	for {
		select {
		case <-ctx.Done():
			b.save()
			return nil
		case <-save.C:
			b.save()
			due = b.due()
		case <-ask.C:
			if domain := b.untried(); domain != "" {
				b.try(ctx, domain)
			} else if len(due) > 0 {
				b.refresh(ctx, due[0])
				due = due[1:]
			}
		}
	}
}

// due drops what has expired, and lists what should be asked again, the oldest first.
func (b *Book) due() (keys []string) {
	now := b.o.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, e := range b.entries {
		switch {
		case e.expired(now):
			b.forget(e)
		case e.due(now) && e.Yes: // a "no" is asked again when somebody wants it
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(x, y string) int {
		return cmp.Or(b.entries[x].Asked.Compare(b.entries[y].Asked), cmp.Compare(x, y))
	})
	return keys[:min(len(keys), int(saveEvery/refreshEvery))]
}

func (b *Book) refresh(ctx context.Context, key string) {
	m, err := envelope.ParseMailbox(key)
	if err == nil && slices.Contains(b.o.Domains(), m.Domain) {
		_, _ = b.ask(ctx, key, m) // counted; it is tried again later
	}
}

// save writes what is known, if that has changed.
func (b *Book) save() {
	b.saving.Lock()
	defer b.saving.Unlock()
	b.mu.Lock()
	if !b.dirty {
		b.mu.Unlock()
		return
	}
	b.dirty = false
	var out bytes.Buffer
	w := json.NewEncoder(&out)
	for _, e := range b.entries {
		_ = w.Encode(e) // nothing in it can fail
	}
	b.mu.Unlock()
	if err := service.ReplaceFile(b.o.File, out.Bytes()); err != nil {
		b.o.Log.Error("what was learned of recipients isn't saved", "err", err)
	}
}
