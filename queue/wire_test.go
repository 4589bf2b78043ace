package queue

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

var wireCuts = flag.Int("wire-cuts", 24, "how many places TestWireCut cuts the connection at, spread over all; 0 is every one, each in two ways")

// TestWireCut has a queue live in a database, and cuts the connection at one
// message of the protocol after the other, in either direction: before it, and in
// the middle of it. What was answered 250 is there afterwards, whole; what was
// answered 451 isn't; and mail is accepted again without a restart.
func TestWireCut(t *testing.T) {
	node := listertest.Primary(t)
	life := &wireLife{t: t, wire: listertest.NewWire(t, node.Address())}
	total := life.cutAt(0, false)
	step := 1
	if *wireCuts > 0 {
		step = max(1, total / *wireCuts)
	}
	began, lives := time.Now(), 0
	for n := 1; n <= total && !t.Failed(); n += step {
		if *wireCuts > 0 {
			life.cutAt(n, lives%2 == 1)
			lives++
			continue
		}
		life.cutAt(n, false)
		life.cutAt(n, true)
		lives += 2
	}
	t.Logf("%d lives of %d messages in %v: %d accepted, %d put off", lives, total, time.Since(began), life.accepted, life.putOff)
	if life.accepted == 0 || life.putOff == 0 {
		t.Error("the cuts cut nothing")
	}
}

type wireLife struct {
	t                *testing.T
	wire             *listertest.Wire
	lives            int
	accepted, putOff int
}

// cutAt lives a life whose nth message arrives in half or not at all; 0 is none.
// It tells how many there were.
func (w *wireLife) cutAt(n int, half bool) int {
	t := w.t
	w.lives++
	hop := newFakeHop()
	hop.setDown("mx.example.com", true)
	o := options(nil)
	in := inDatabase(t, w.wire.DSN(), fmt.Sprint("spool ", w.lives))
	in.OneMachine, in.Lease = true, time.Hour // no heartbeat counts
	o.Store, o.Relayer = in, hop
	var at atomic.Int64
	w.wire.Watch(func(_ bool, message []byte) int {
		switch {
		case at.Add(1) != int64(n):
			return len(message)
		case half:
			return len(message) / 2
		}
		return 0
	})
	q, err := Open(o)
	if err != nil { // as a service manager does
		q = mustOpen(t, o)
	}
	b := &wireBook{wireLife: w, q: q, n: n, body: map[string]string{}}
	for _, size := range []int{1000, 300 << 10, 2000, 3000} {
		b.send(size)
	}
	if len(b.good) > 1 {
		_ = q.Hold(b.good[0]) // held, or who knows
		if err := q.Remove(b.good[1]); err != nil {
			b.unknown = b.good[1]
		}
		b.good = slices.Delete(b.good, 1, 2)
	}
	stop := run(t, q)
	hop.setDown("mx.example.com", false)
	q.Wake("")
	again := time.Now().Add(30 * time.Second)
	for !b.send(500) {
		if time.Now().After(again) {
			t.Fatalf("cut at %d: no mail is accepted any more", n)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for q.Stats().Messages > q.Stats().Held && time.Now().Before(again) {
		time.Sleep(5 * time.Millisecond)
	}
	count := int(at.Load())
	w.wire.Watch(nil)
	stop()
	b.q = mustOpen(t, o)
	b.check(hop.taken())
	mustClose(t, b.q)
	return count
}

// wireBook is what senders were told in one life.
type wireBook struct {
	*wireLife
	q         *Queue
	n         int
	body      map[string]string
	good, bad []string
	unknown   string // to be removed, and perhaps it was
}

func (b *wireBook) send(size int) bool {
	body := bodyOf(size, b.lives)
	id, err := accept(b.q, body, "a@example.com")
	if err == nil {
		b.good, b.body[id] = append(b.good, id), body
		b.accepted++
		return true
	}
	b.putOff++
	var r *envelope.ReplyError
	if !errors.As(err, &r) || r.Reply.Code != 451 {
		b.t.Errorf("cut at %d: %v", b.n, err)
	}
	b.bad = append(b.bad, id)
	return false
}

// check compares the queue, opened anew, and what was relayed with that.
func (b *wireBook) check(relayed []string) {
	b.t.Helper()
	there := map[string]bool{}
	for _, info := range walk(b.t, b.q) {
		there[info.ID] = true
	}
	gone := map[string]bool{}
	for _, line := range relayed {
		id, _, _ := strings.Cut(line, " ")
		gone[id] = true
	}
	for _, id := range b.good {
		if got, err := readBody(b.q, id); !gone[id] && (err != nil || got != b.body[id]) {
			b.t.Errorf("cut at %d: %s was accepted, and now: %d octets, %v", b.n, id, len(got), err)
		}
	}
	for _, id := range b.bad {
		if there[id] || gone[id] {
			b.t.Errorf("cut at %d: %s was put off; in the queue: %v, relayed: %v", b.n, id, there[id], gone[id])
		}
	}
	for id := range there {
		if !slices.Contains(b.good, id) && id != b.unknown {
			b.t.Errorf("cut at %d: %s is there", b.n, id)
		}
	}
	if err := b.q.store.Bodies(func(id string) error {
		if !there[id] {
			return errors.New("a body without a message: " + id)
		}
		return nil
	}); err != nil {
		b.t.Errorf("cut at %d: %v", b.n, err)
	}
	if s := b.q.Stats(); s.Messages != len(there) {
		b.t.Errorf("cut at %d: %+v, %d are there", b.n, s, len(there))
	}
}
