package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
)

// mail is the senders and their books.
type mail struct {
	s    *stage
	mu   sync.Mutex // guards the rest
	next int        // number of a message
	// A message is accepted, or else refused for now, or its 250 didn't come: the connection
	// broke after its end. What could be sent to no machine counts as refused.
	accepted   map[int]bool
	refused    map[int]bool
	unanswered map[int]bool
	lately     map[*machine]int // accepted by it
}

// content of a message follows from its number.
func content(n int) []byte {
	lines := 3 + n%60
	if n%200 == 0 {
		lines = 2000
	}
	return []byte(fmt.Sprintf("Subject: fleet\r\nX-Fleet: %d\r\n\r\n%s", n, strings.Repeat(fmt.Sprintf("line of message %d, as long as lines are\r\n", n), lines)))
}

// newMail starts so many senders, who send rate messages a second together. The function
// that it returns ends them.
func newMail(ctx context.Context, s *stage, senders, rate int) (*mail, func()) {
	ctx, stop := context.WithCancel(ctx)
	m := &mail{s: s, accepted: map[int]bool{}, refused: map[int]bool{}, unanswered: map[int]bool{}, lately: map[*machine]int{}}
	var wait sync.WaitGroup
	turns := make(chan struct{}, 30*rate) // what a fault holds up is made up for
	wait.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case turns <- struct{}{}:
			default:
			}
		}
	})
	for w := range senders {
		wait.Go(func() {
			for k := w; ; k++ {
				select {
				case <-ctx.Done():
					return
				case <-turns:
				}
				m.send(ctx, k)
			}
		})
	}
	return m, func() { stop(); wait.Wait() }
}

// send sends the next message to the first machine from k on that answers.
func (m *mail) send(ctx context.Context, k int) {
	m.mu.Lock()
	m.next++
	n := m.next
	m.mu.Unlock()
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	var o demo.Outcome
	var to *machine
	for i := range m.s.machines {
		to = m.s.machines[(k+i)%3]
		if o, _ = demo.Send(one, to.addr(), demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{fmt.Sprintf("fleet%d@example.org", n%50)}, Content: content(n)}); !o.Banner.Zero() {
			break
		}
	}
	m.mu.Lock()
	switch {
	case o.Final.Positive():
		m.accepted[n] = true
		m.lately[to]++
	case o.Data.Code == 354 && o.Final.Zero():
		m.unanswered[n] = true
	default:
		m.refused[n] = true
	}
	m.mu.Unlock()
	if !o.Final.Positive() {
		pause(ctx, 200*time.Millisecond)
	}
}

func (m *mail) total() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.accepted)
}

// answers waits for the next 250 of a machine, if there is one.
func (m *mail) answers(ctx context.Context, of *machine) {
	count := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.lately[of]
	}
	before := count()
	for deadline := time.Now().Add(5 * time.Second); count() == before && ctx.Err() == nil && time.Now().Before(deadline); {
		pause(ctx, time.Millisecond)
	}
}

// result is what the primary has.
type result struct {
	lost, changed int
	// There though their senders were told to try again, or nothing.
	refused, unanswered int
	twice               map[int][]arrival
}

// compare reads what the primary delivered.
func (m *mail) compare(dir string) (r result, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	seen := map[int][]arrival{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return r, err
		}
		n := 0
		_, after, _ := bytes.Cut(b, []byte("\nX-Fleet: "))
		fmt.Sscan(string(after[:min(20, len(after))]), &n)
		_, body, _ := bytes.Cut(b, []byte("\n\n"))
		_, want, _ := bytes.Cut(bytes.ReplaceAll(content(n), []byte("\r\n"), []byte("\n")), []byte("\n\n"))
		if n == 0 || sha256.Sum256(body) != sha256.Sum256(want) {
			r.changed++
			fmt.Println("changed:", e.Name())
		}
		a, err := m.s.arrival(b)
		if err != nil {
			return r, fmt.Errorf("%s: %w", e.Name(), err)
		}
		seen[n] = append(seen[n], a)
	}
	for n := range m.accepted {
		if len(seen[n]) == 0 {
			r.lost++
			fmt.Println("lost:", n)
		}
	}
	for n := range seen {
		switch {
		case m.refused[n]:
			r.refused++
		case m.unanswered[n]:
			r.unanswered++
		}
	}
	maps.DeleteFunc(seen, func(_ int, copies []arrival) bool { return len(copies) == 1 })
	r.twice = seen
	return r, nil
}
