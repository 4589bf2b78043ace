package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// book is what the outside world knows: messages that were accepted, and those
// that may be gone because a next hop or the operator took them.
type book struct {
	mu       sync.Mutex // guards the rest
	accepted map[string]string
	leaving  map[string]bool
}

func newBook() *book { return &book{accepted: map[string]string{}, leaving: map[string]bool{}} }

// copy returns the IDs that must be there now, with their bodies.
func (b *book) due() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	due := map[string]string{}
	for id, body := range b.accepted {
		if !b.leaving[id] {
			due[id] = body
		}
	}
	return due
}

func (b *book) accept(q *Queue, body string, to ...string) (string, error) {
	id, err := accept(q, body, to...)
	if err == nil {
		b.mu.Lock()
		b.accepted[id] = body
		b.mu.Unlock()
	}
	return id, err
}

func (b *book) leave(id string) {
	b.mu.Lock()
	b.leaving[id] = true
	b.mu.Unlock()
}

// takeAll is a Relayer that accepts mail for one destination and defers or
// refuses it for the others.
type takeAll struct{ b *book }

func (takeAll) Up(string) bool { return true }

func (r takeAll) Relay(_ context.Context, dest string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		reply := envelope.NewReply(250, "2.0.0", "ok")
		switch dest {
		case "mx.defer.example":
			reply = envelope.NewReply(450, "4.2.0", "later")
		case "mx.refuse.example":
			reply = envelope.NewReply(550, "5.1.1", "never")
		default:
			f, err := t.Open()
			if err != nil {
				t.Settle(nil, err)
				return err
			}
			f.Close()
			r.b.leave(t.Envelope.ID)
		}
		replies := make([]envelope.Reply, len(t.Envelope.To))
		for i := range replies {
			replies[i] = reply
		}
		t.Settle(replies, nil)
	}
	return nil
}

// play does a bit of everything. Errors are expected while faults are injected.
func play(q *Queue, b *book, seed int) {
	to := []string{"a@defer.example", "a@refuse.example", "a@example.com"}
	var ids []string
	for i := range 9 {
		body := bodyOf(100*i, seed+i)
		if i%4 == 3 {
			body = bodyOf(maxInline+1000*i, seed+i)
		}
		if id, err := b.accept(q, body, to[i%3]); err == nil {
			ids = append(ids, id)
		}
	}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { b.accept(q, bodyOf(50_000*i, seed+10+i), to[0]) })
	}
	wg.Wait()
	for i, id := range ids {
		switch i {
		case 0:
			q.Hold(id)
		case 3:
			b.leave(id)
			q.Remove(id)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); q.Run(ctx) }()
	time.Sleep(100 * time.Millisecond) // in a bubble: until nothing is left to do
	cancel()
	<-done
	if len(ids) > 0 {
		q.Release(ids[0])
	}
}

// verify opens what a power cut left and looks for everything that is due.
func verify(t *testing.T, what string, disk *memDisk, due map[string]string) {
	t.Helper()
	o := options(disk)
	q, err := Open(o)
	if err != nil {
		t.Errorf("%s: Open: %v", what, err)
		return
	}
	for id, body := range due {
		if got, err := readBody(q, id); err != nil || got != body {
			t.Errorf("%s: accepted message %s: %d octets of %d, %v", what, id, len(got), len(body), err)
		}
	}
	if n := testutil.ToFloat64(o.Metrics.Quarantined); n != 0 {
		t.Errorf("%s: %v records damaged", what, n)
	}
	if n := testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues("missing")); n != 0 {
		t.Errorf("%s: counts are off", what)
	}
	if err := q.Close(); err != nil {
		t.Errorf("%s: Close: %v", what, err)
	}
}

// TestPowerCut cuts the power ahead of every single operation on the disk,
// under both models of what a directory entry needs.
func TestPowerCut(t *testing.T) {
	for _, lax := range []bool{false, true} {
		bubble(t, fmt.Sprintf("lax=%v", lax), func(t *testing.T) {
			disk, b := newMemDisk(), newBook()
			disk.lax = lax
			rnd := rand.New(rand.NewPCG(1, 2))
			type image struct {
				what string
				disk *memDisk
				due  map[string]string
			}
			var images []image
			disk.before = func(n int, op, name string) error {
				l := left(n % 3)
				images = append(images, image{fmt.Sprintf("cut before %d (%s %s), unsynced left: %d", n, op, name, l),
					disk.cut(l, rnd), b.due()})
				return nil
			}
			for round := range 3 {
				o := options(disk)
				o.Relayer = takeAll{b}
				q := mustOpen(t, o)
				play(q, b, 100*round)
				mustClose(t, q)
			}
			if len(b.due()) < 10 || len(images) < 200 {
				t.Fatalf("too little happened: %d messages, %d cuts", len(b.due()), len(images))
			}
			for _, i := range images {
				if verify(t, i.what, i.disk, i.due); t.Failed() {
					break
				}
			}
			t.Logf("%d crash states", len(images))
		})
	}
}

// TestFaults fails the Nth operation on the disk, for every N, goes on
// writing, cuts the power, and looks for everything that was accepted.
func TestFaults(t *testing.T) {
	for _, fault := range []struct {
		name  string
		err   error
		times int
	}{{"EIO once", syscall.EIO, 1}, {"ENOSPC for a while", syscall.ENOSPC, 7}} {
		bubble(t, fault.name, func(t *testing.T) {
			hit := true
			for n := 1; hit; n++ {
				disk, b := newMemDisk(), newBook()
				hit = false
				disk.before = func(at int, op, name string) error {
					if at >= n && at < n+fault.times {
						hit = true
						return &fs.PathError{Op: op, Path: name, Err: fault.err}
					}
					return nil
				}
				playFault(t, n, disk, b)
				disk.mu.Lock()
				disk.before = nil
				image := disk.cut(leftNothing, nil)
				disk.mu.Unlock()
				if verify(t, fmt.Sprintf("fault at %d", n), image, b.due()); t.Failed() {
					return
				}
			}
		})
	}
}

func playFault(t *testing.T, n int, disk *memDisk, b *book) {
	o := options(disk)
	o.Relayer = takeAll{b}
	q, err := Open(o)
	for range 20 {
		if err == nil {
			break
		}
		o.Metrics = nil
		q, err = Open(o)
	}
	if err != nil {
		t.Fatalf("fault at %d: Open does not recover: %v", n, err)
	}
	play(q, b, n)
	// A fault that has passed needs no restart.
	for try := 0; ; try++ {
		_, err := b.accept(q, "after", "a@defer.example")
		if err == nil {
			break
		}
		var r *envelope.ReplyError
		if !errors.As(err, &r) || try > 10 {
			t.Fatalf("fault at %d: still %v", n, err)
		}
		time.Sleep(500 * time.Millisecond) // of the bubble's time
	}
	play(q, b, n+1000)
	q.Close()
}
