package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
)

// mail is the senders and their books.
type mail struct {
	mu         sync.Mutex // guards the rest
	accepted   map[int]bool
	unanswered int
	refused    int
	next       int
}

// content of a message follows from its number.
func content(n int) []byte {
	lines := 3 + n%60
	if n%50 == 0 {
		lines = 2000
	}
	return []byte(fmt.Sprintf("Subject: fleet\r\nX-Fleet: %d\r\n\r\n%s", n, strings.Repeat(fmt.Sprintf("line of message %d, as long as lines are\r\n", n), lines)))
}

func newMail(ctx context.Context, s *stage, senders int) (*mail, func()) {
	ctx, stop := context.WithCancel(ctx)
	m := &mail{accepted: map[int]bool{}}
	var wait sync.WaitGroup
	for w := range senders {
		wait.Go(func() {
			for k := w; ctx.Err() == nil; k++ {
				m.send(ctx, s.machines[k%3].addr())
			}
		})
	}
	return m, func() { stop(); wait.Wait() }
}

func (m *mail) send(ctx context.Context, addr string) {
	m.mu.Lock()
	m.next++
	n := m.next
	m.mu.Unlock()
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	o, _ := demo.Send(one, addr, demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{fmt.Sprintf("fleet%d@example.org", n%50)}, Content: content(n)})
	m.mu.Lock()
	switch {
	case o.Final.Positive():
		m.accepted[n] = true
	case o.Data.Code == 354 && o.Final.Zero():
		m.unanswered++
	default:
		m.refused++
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

// compare reads what the primary delivered.
func (m *mail) compare(dir string) (lost, twice, wrong int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, 0, err
	}
	seen := map[int]int{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, 0, 0, err
		}
		n := 0
		_, after, _ := bytes.Cut(b, []byte("\nX-Fleet: "))
		fmt.Sscan(string(after[:min(20, len(after))]), &n)
		_, body, _ := bytes.Cut(b, []byte("\n\n"))
		_, want, _ := bytes.Cut(bytes.ReplaceAll(content(n), []byte("\r\n"), []byte("\n")), []byte("\n\n"))
		if n == 0 || sha256.Sum256(body) != sha256.Sum256(want) {
			wrong++
		}
		if seen[n]++; seen[n] > 1 {
			twice++
		}
	}
	for n := range m.accepted {
		if seen[n] == 0 {
			lost++
			fmt.Println("lost:", n)
		}
	}
	return lost, twice, wrong, nil
}
