package policysync

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestResign: a version is signed anew every minute, and a poll that waits
// sees each signature.
func TestResign(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p, err := OpenPublisher(PublisherOptions{Dir: dir, Metrics: newMetrics()})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.Publish(snapshot(t, newSpec(t, []string{"example.org"}, "a@example.org"))); err != nil {
			t.Fatal(err)
		}
		last := p.head
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.resign(ctx) }()
		for range 3 {
			p.mu.Lock()
			changed := p.changed
			p.mu.Unlock()
			h, err := openHead(p.await(ctx, changed), p.keys.policies())
			if err != nil {
				t.Fatal(err)
			}
			if err := judge(last, h, p.name, Pin{}, time.Now()); err != nil {
				t.Error(err)
			}
			if h.identity != last.identity || h.Created.Sub(last.Created) != longPoll {
				t.Errorf("identity %x after %x, %s later", h.identity[:4], last.identity[:4], h.Created.Sub(last.Created))
			}
			last = h
		}
		cancel()
		<-done
	})
}
