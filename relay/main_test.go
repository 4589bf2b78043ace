package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parcel is a message of a test and what became of it.
type parcel struct {
	envelope.Transfer
	name    string
	settled int
	replies []envelope.Reply
	err     error
}

// outbox is what the queue is to Relay.
type outbox struct {
	mu   sync.Mutex
	todo []*parcel
	all  []*parcel
}

func (o *outbox) next(wait time.Duration) *envelope.Transfer {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.todo) == 0 {
		return nil
	}
	p := o.todo[0]
	o.todo = o.todo[1:]
	return &p.Transfer
}

// add queues a message with the given content.
func (o *outbox) add(content string, env envelope.Envelope) *parcel {
	p := &parcel{name: fmt.Sprintf("message %d", len(o.all)+1)}
	p.Envelope = &env
	p.Size = int64(len(content))
	p.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(content))), nil }
	p.Settle = func(replies []envelope.Reply, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		p.settled++
		p.replies, p.err = replies, err
	}
	o.todo = append(o.todo, p)
	o.all = append(o.all, p)
	return p
}

// check looks after what must hold of every message, whatever happened.
func (o *outbox) check(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := len(o.all) - len(o.todo)
	for i, p := range o.all {
		want := 0
		if i < taken {
			want = 1
		}
		if p.settled != want {
			t.Errorf("%s: settled %d times, want %d", p.name, p.settled, want)
		}
		if p.settled == 0 || p.err != nil {
			continue
		}
		if len(p.replies) != len(p.Envelope.To) {
			t.Errorf("%s: settled with %d replies for %d recipients", p.name, len(p.replies), len(p.Envelope.To))
		}
		for _, r := range p.replies {
			if r.Zero() {
				t.Errorf("%s: settled without an error and without a reply: %v", p.name, p.replies)
			}
		}
	}
}

func mailbox(s string) envelope.Mailbox {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '@' {
			return envelope.Mailbox{Local: s[:i], Domain: s[i+1:]}
		}
	}
	return envelope.Mailbox{Local: s}
}

func mail(from string, to ...string) envelope.Envelope {
	e := envelope.Envelope{From: envelope.ReversePath{Mailbox: mailbox(from)}}
	for _, s := range to {
		e.To = append(e.To, envelope.Recipient{Path: envelope.ForwardPath{Mailbox: mailbox(s)}})
	}
	return e
}

func codes(replies []envelope.Reply) (c []int) {
	for _, r := range replies {
		c = append(c, r.Code)
	}
	return c
}

const dest = "primary"

// newClient returns a Client with one route, over connections that serve
// handles in a goroutine that t waits for.
func newClient(t *testing.T, r Route, serve func(net.Conn)) *Client {
	if r.Name == "" {
		r.Name = "default"
	}
	if r.Address == "" {
		r.Address = "primary.example:25"
	}
	if r.TLS == "" {
		r.TLS = TLSOff
	}
	if r.Timeouts.Idle == 0 {
		r.Timeouts.Idle = time.Millisecond
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return New(Options{
		Routes:   map[string]Route{dest: r},
		Hostname: "mx2.example",
		Metrics:  metrics.New(prometheus.NewRegistry()),
		Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			wg.Go(func() {
				defer theirs.Close()
				serve(theirs)
			})
			return ours, nil
		},
	})
}
