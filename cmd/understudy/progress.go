package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// progressLine tells a person how far long work is: what is done, how fast it goes,
// and for how long yet. It is silent where standard error is no terminal, and
// about what takes less than a second.
type progressLine struct {
	out   io.Writer // nil: silent
	noun  string
	total int // 0: nobody knows
	now   func() time.Time

	mu          sync.Mutex // guards what follows
	done        int
	begun, said time.Time
}

func newProgress(noun string, total int) *progressLine {
	p := &progressLine{noun: noun, total: total, now: time.Now, begun: time.Now()}
	if isTerminal(os.Stderr) && os.Getenv("TERM") != "dumb" {
		p.out = os.Stderr
	}
	p.said = p.begun.Add(time.Second / 2)
	return p
}

// step counts n more as done.
func (p *progressLine) step(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	now := p.now()
	if p.out == nil || now.Sub(p.said) < time.Second/2 {
		return
	}
	p.said = now
	fmt.Fprintf(p.out, "\r%s\x1b[K", p.text(now.Sub(p.begun))) // a terminal that has gone shows nothing
}

func (p *progressLine) text(took time.Duration) string {
	rate := float64(p.done) / took.Seconds()
	if p.total < p.done {
		return fmt.Sprintf("%s, %.0f/s", plural(p.done, p.noun), rate)
	}
	left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second))
	return fmt.Sprintf("%d of %s, %.0f/s, %s to go", p.done, plural(p.total, p.noun), rate, age(left))
}

// end takes the line away.
func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil && p.said.After(p.begun.Add(time.Second/2)) {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	p.out = nil
}
