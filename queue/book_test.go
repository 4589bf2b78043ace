package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// fate is what may be found of a message after a power cut: a set.
type fate uint8

const (
	isGone fate = 1 << iota
	isQueued
	isDeferred
	isHeld
	isUnanswered // offered, and not answered yet: may be there or not
	isReturned   // gone, and a DSN about it is there
)

var fates = map[string]fate{"queued": isQueued, "deferred": isDeferred, "held": isHeld}

// book is what the outside world was promised: of each message that was ever
// offered, its content and its possible fates. A change that was begun adds
// one, a change that was confirmed leaves one.
type book struct {
	mu    sync.Mutex // guards the rest
	mails map[string]promise
	tried map[string]bool
}

type promise struct {
	body string
	may  fate
}

// must says that the message has to be there.
func (p promise) must() bool { return p.may&(isGone|isUnanswered) == 0 }

func newBook() *book { return &book{mails: map[string]promise{}, tried: map[string]bool{}} }

// now is a copy.
func (b *book) now() map[string]promise {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(map[string]promise, len(b.mails))
	for id, p := range b.mails {
		c[id] = p
	}
	return c
}

// begin adds a fate, and confirm leaves only it.
func (b *book) begin(id string, f fate)   { b.set(id, f, false) }
func (b *book) confirm(id string, f fate) { b.set(id, f, true) }

func (b *book) set(id string, f fate, only bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, known := b.mails[id]
	if !known {
		return
	}
	if only {
		p.may = 0
	}
	p.may |= f
	b.mails[id] = p
}

// accept offers a message; it is promised once that returns without error.
func (b *book) accept(q *Queue, body string, to ...string) (string, error) {
	return b.acceptEnv(q, body, mailTo(to...))
}

func (b *book) acceptEnv(q *Queue, body string, env *envelope.Envelope) (string, error) {
	d, err := q.Begin(env)
	if err != nil {
		return "", err
	}
	if env.Auth.Vouched != "" {
		env.EnvID = d.ID() // so that a DSN tells
	}
	b.mu.Lock()
	b.mails[d.ID()] = promise{body, isUnanswered | isQueued}
	b.mu.Unlock()
	for rest := body; rest != ""; {
		n := min(len(rest), 30_000)
		if _, err := d.Write([]byte(rest[:n])); err != nil {
			d.Abort()
			return "", err
		}
		rest = rest[n:]
	}
	if err := d.Commit(context.Background()); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.mails[d.ID()] // the drain may have it already
	p.may &^= isUnanswered
	b.mails[d.ID()] = p
	return d.ID(), nil
}

// change does to a message what makes it f, in any case.
func (b *book) change(id string, f fate, do func(string) error) {
	b.begin(id, f)
	if do(id) == nil {
		b.confirm(id, f)
	}
}

// settle confirms what the queue shows, once it has nothing under way: what it
// lists is in the store, and what it doesn't list has left.
func (b *book) settle(q *Queue) error {
	if err := q.Healthy(); err != nil { // everything handed over before is written
		return err
	}
	seen := map[string]bool{}
	err := q.Walk(context.Background(), func(i Info) error {
		if i.Report {
			id, err := returnedID(q, i.ID)
			seen[id] = true
			b.confirm(id, isReturned)
			return err
		}
		seen[i.ID] = true
		b.confirm(i.ID, fateOf(i))
		if r := i.Recipients[0]; i.Auth.Vouched != "" && r.Reason == "refused" {
			b.begin(i.ID, isReturned) // by the next Run
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id := range b.now() {
		if !seen[id] {
			b.confirm(id, isGone)
		}
	}
	return nil
}

func fateOf(i Info) (f fate) {
	for _, r := range i.Recipients {
		f |= fates[r.State]
	}
	return f
}

// returnedID is the ID of the message that a DSN returns: its ENVID.
func returnedID(q *Queue, id string) (string, error) {
	body, err := readBody(q, id)
	if err != nil {
		return "", err
	}
	_, after, found := strings.Cut(body, "Original-Envelope-Id: ")
	if !found || !strings.HasSuffix(body, "--\r\n") {
		return "", fmt.Errorf("DSN %s is half: %q", id, body)
	}
	envid, _, _ := strings.Cut(after, "\r\n")
	return envid, nil
}

// hop is a Relayer that takes, defers or refuses by destination: what is for
// two destinations is never taken by both.
type hop struct{ b *book }

// first says that a message was not deferred before.
func (h hop) first(id string) bool {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	tried := h.b.tried[id]
	h.b.tried[id] = true
	return !tried
}

func (hop) Up(string) bool { return true }

func (h hop) Relay(_ context.Context, dest string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		id := t.Envelope.ID
		reply := envelope.NewReply(250, "2.0.0", "ok")
		switch {
		case dest == "mx.defer.example", dest == "mx.later.example" && h.first(id):
			h.b.begin(id, isDeferred|isHeld) // held when it expires
			reply = envelope.NewReply(450, "4.2.0", "later")
		case t.Envelope.Report:
			text, err := readAll(t)
			if err != nil {
				t.Settle(nil, err)
				return err
			}
			_, after, _ := strings.Cut(text, "Original-Envelope-Id: ")
			about, _, _ := strings.Cut(after, "\r\n")
			h.b.begin(about, isGone)
		case dest == "mx.refuse.example":
			h.b.begin(id, isHeld)
			if t.Envelope.Auth.Vouched != "" {
				h.b.begin(id, isReturned)
			}
			reply = envelope.NewReply(550, "5.1.1", "never")
		default:
			f, err := t.Open()
			if err != nil {
				t.Settle(nil, err)
				return err
			}
			f.Close()
			if !strings.Contains(h.b.now()[id].body, "for two") {
				h.b.begin(id, isGone)
			}
		}
		replies := make([]envelope.Reply, len(t.Envelope.To))
		for i := range replies {
			replies[i] = reply
		}
		t.Settle(replies, nil)
	}
	return nil
}

// verdict is what a store that was opened after a power cut is checked for: no
// accepted message lost or half, none back that had left, each in a state that
// it may be in, nothing damaged, no alarm. With drain, all of it is relayed too.
func verdict(what string, disk *testmx.Disk, mails map[string]promise, drain bool) error {
	taker := &taker{mails: mails}
	o := options(disk)
	o.Relayer = taker
	q, err := Open(o)
	if err != nil {
		return fmt.Errorf("%s: Open: %w", what, err)
	}
	defer q.Close()
	if err := inspect(q, mails, taker); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n := testutil.ToFloat64(o.Metrics.Quarantined); n != 0 || q.Quarantined() != 0 {
		return fmt.Errorf("%s: %v records damaged now, %d in all", what, n, q.Quarantined())
	}
	if n := testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues("missing")); n != 0 {
		return fmt.Errorf("%s: counts are off", what)
	}
	if drain {
		if err := taker.drain(q); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// inspect compares what is in the queue with what was promised.
func inspect(q *Queue, mails map[string]promise, t *taker) error {
	seen := map[string]bool{}
	err := q.Walk(context.Background(), func(i Info) error {
		if i.Report {
			id, err := returnedID(q, i.ID)
			if err != nil {
				return err
			}
			if seen[id] || mails[id].may&isReturned == 0 {
				return fmt.Errorf("DSN %s about %s, which is there too (%v) or wasn't to be returned: %06b", i.ID, id, seen[id], mails[id].may)
			}
			seen[id] = true
			if i.Recipients[0].State != "held" {
				t.want++
			}
			return nil
		}
		if seen[i.ID] {
			return fmt.Errorf("message %s is there, and returned", i.ID)
		}
		seen[i.ID] = true
		p := mails[i.ID]
		if f := fateOf(i); f&^p.may != 0 || p.may == isGone {
			return fmt.Errorf("message %s (%+v) is in a state that it can't be in, %05b not in %05b", i.ID, i.Recipients, f, p.may)
		}
		if got, err := readBody(q, i.ID); err != nil || got != p.body {
			return fmt.Errorf("message %s: %d octets of %d, %w", i.ID, len(got), len(p.body), err)
		}
		for _, r := range i.Recipients {
			if r.State != "held" {
				t.want++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, p := range mails {
		if p.must() && !seen[id] {
			return fmt.Errorf("accepted message %s is lost", id)
		}
	}
	return nil
}

// taker is a Relayer that takes everything and compares it.
type taker struct {
	mails map[string]promise
	want  int // recipients

	mu   sync.Mutex // guards what follows
	got  int
	bad  error
	done func()
}

func (*taker) Up(string) bool { return true }

func (k *taker) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		body, err := readAll(t)
		k.mu.Lock()
		if t.Envelope.Report {
			if err == nil && !strings.Contains(body, "Action: failed") {
				err = fmt.Errorf("no DSN: %q", body)
			}
			k.bad = errors.Join(k.bad, err)
		} else if err != nil || body != k.mails[t.Envelope.ID].body {
			k.bad = fmt.Errorf("message %s relayed with %d octets of %d, %w", t.Envelope.ID, len(body), len(k.mails[t.Envelope.ID].body), err)
		}
		k.got += len(t.Envelope.To)
		if k.got >= k.want {
			k.done()
		}
		k.mu.Unlock()
		replies := make([]envelope.Reply, len(t.Envelope.To))
		for i := range replies {
			replies[i] = envelope.NewReply(250, "2.0.0", "ok")
		}
		t.Settle(replies, nil)
	}
	return nil
}

func readAll(t *envelope.Transfer) (string, error) {
	f, err := t.Open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// drain relays all that is not held.
func (k *taker) drain(q *Queue) error {
	if k.want == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	k.done = cancel
	q.Flush()
	if err := q.Run(ctx); err != nil {
		return err
	}
	if err := q.Healthy(); err != nil {
		return err
	}
	left := 0
	err := q.Walk(context.Background(), func(i Info) error {
		if fateOf(i) != isHeld {
			left++
		}
		return nil
	})
	if k.bad != nil {
		return k.bad
	}
	if err == nil && (left > 0 || k.got != k.want) {
		err = fmt.Errorf("%d messages not relayed, %d recipients of %d", left, k.got, k.want)
	}
	return err
}
