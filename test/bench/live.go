package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// Peers of the live rows. smtp-sink can't be the primary: it offers XCLIENT
// without ADDR.
const (
	direct  = "direct"  // the load goes to the primary itself
	through = "through" // … and here through Understudy to it
	between = "between" // … or through a go-between that does nothing else
)

const primaryEHLO = "250-primary.example.org\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 XCLIENT NAME ADDR PORT PROTO REVERSE_NAME HELO\r\n"

// servePrimary is a primary that takes everything, XCLIENT too, and keeps nothing.
func servePrimary(ctx context.Context, addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		c, err := ln.Accept()
		if err != nil {
			return ctx.Err()
		}
		go func() {
			defer c.Close()
			takeAll(c)
		}()
	}
}

func takeAll(c net.Conn) {
	br := bufio.NewReaderSize(c, 16<<10)
	out := []byte("220 primary.example.org ESMTP\r\n")
	for {
		if br.Buffered() == 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(string(line[:min(4, len(line))])) {
		case "EHLO":
			out = append(out, primaryEHLO...)
		case "XCLI":
			out = append(out, "220 primary.example.org ESMTP\r\n"...)
		case "DATA":
			if _, err := c.Write(append(out, "354 Go\r\n"...)); err != nil || skipMessage(br) != nil {
				return
			}
			out = append(out[:0], "250 2.0.0 Ok: queued as 4711\r\n"...)
		case "QUIT":
			_, _ = c.Write(append(out, "221 2.0.0 Bye\r\n"...))
			return
		default:
			out = append(out, "250 2.0.0 Ok\r\n"...)
		}
	}
}

// skipMessage reads up to the end of data.
func skipMessage(br *bufio.Reader) error {
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil || bytes.Equal(line, []byte(".\r\n")) {
			return err
		}
	}
}

// startPrimary runs the primary as a process of its own.
func startPrimary(addr string) (*testmx.Daemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return testmx.StartDaemon(addr, nil, self, "-primary", addr)
}

// liveCells are sessions that are played through, beside sessions with the
// primary itself.
func liveCells() []cell {
	three := []string{direct, through, between}
	var all []cell
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, sessions := range []int{1, 20, 100} {
			for _, many := range []bool{false, true} {
				c := acceptCell(size, sessions, many, three)
				c.name = strings.Replace(c.name, "accept", "live", 1)
				c.count, c.factor, c.rounds = 8000, 1, 0
				if size > 4<<10 {
					c.count = 400
				}
				if sessions == 1 {
					c.count /= 2
				}
				if !many {
					c.count /= 2
				}
				all = append(all, c)
				if size == 4<<10 {
					c.name, c.real, c.count = c.name+", a Postfix", true, c.count/4
					all = append(all, c)
				}
			}
		}
	}
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		all = append(all,
			cell{name: fmt.Sprintf("latency of a session, ms, %v away", rtt), peers: three, rtt: rtt, size: 4 << 10, count: 25, factor: 1, measure: latency},
			cell{name: fmt.Sprintf("latency of a further message, ms, %v away", rtt), peers: three, rtt: rtt, size: 4 << 10, count: 25, factor: 1, many: true, measure: latency})
	}
	for _, size := range []int{0, 4 << 10, 64 << 10, 1 << 20, 8 << 20} {
		all = append(all, cell{name: fmt.Sprintf("memory, %d KiB of the message sent", size>>10), peers: three[1:2], sessions: 100, size: size, measure: liveMemory, rounds: 1})
	}
	for i := range all {
		all[i].live = true
	}
	return all
}

// settled waits until the door plays sessions through.
func (p *peer) settled(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.metric(`understudy_primary_up{route="primary"}`) == 1 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("the primary isn't up")
}

// latency is the median time that one message takes, in milliseconds: from
// connect to its 250, or from its MAIL.
func latency(_ context.Context, _ *bench, p *peer, c cell) (figures, error) {
	body, err := randomText(c.size)
	if err != nil {
		return figures{}, err
	}
	var took []float64
	var conn *client
	for range c.count + 1 {
		start := time.Now()
		if conn == nil {
			if conn, err = dial(p.addr); err != nil {
				return figures{}, err
			}
			if err := conn.talk("", "220", "EHLO client.sender.example", "250"); err != nil {
				return figures{}, err
			}
		}
		if err := conn.talk("MAIL FROM:<"+sender+">", "250", "RCPT TO:<"+known+">", "250", "DATA", "354", body, "250"); err != nil {
			return figures{}, err
		}
		took = append(took, time.Since(start).Seconds()*1000)
		if !c.many {
			conn.Close()
			conn = nil
		}
	}
	if conn != nil {
		conn.Close()
	}
	slices.Sort(took[1:]) // the first warms up
	return figures{Rate: took[1+c.count/2], Messages: c.count}, nil
}

// liveMemory is what a session takes that has come as far as that many octets of
// its message: PSS, less what it was before, in KiB.
func liveMemory(_ context.Context, _ *bench, p *peer, c cell) (figures, error) {
	if err := randomMail(p.addr, 4, 4<<10, 200); err != nil { // all code is there, all pools are warm
		return figures{}, err
	}
	settle(p.group())
	before := resident(p.group())
	var all []*client
	defer func() {
		for _, conn := range all {
			conn.Close()
		}
	}()
	line := bytes.Repeat([]byte("x"), 1022)
	line = append(line, "\r\n"...)
	for range c.sessions {
		conn, err := dial(p.addr)
		if err != nil {
			return figures{}, err
		}
		all = append(all, conn)
		if err := conn.talk("", "220", "EHLO client.sender.example", "250", "MAIL FROM:<"+sender+">", "250", "RCPT TO:<"+known+">", "250"); err != nil {
			return figures{}, err
		}
		if c.size == 0 {
			continue
		}
		if err := conn.talk("DATA", "354"); err != nil {
			return figures{}, err
		}
		for range c.size >> 10 {
			if _, err := conn.Write(line); err != nil {
				return figures{}, err
			}
		}
	}
	settle(p.group())
	if n := p.metric("understudy_live_sessions_open"); int(n) < c.sessions {
		return figures{}, fmt.Errorf("only %.0f live sessions are open", n)
	}
	return figures{Rate: float64(resident(p.group())-before) / float64(c.sessions) / 1024}, nil
}

// printLive writes the live rows in Markdown.
func (r *report) printLive(w io.Writer) {
	fmt.Fprintf(w, "%s UTC, %s, %s in all. Medians [min–max].\n\n", r.When, r.Machine, r.Took)
	fmt.Fprintln(w, "| messages a second, milliseconds, KiB | to the primary | through Understudy | ÷ to the primary | through a bare go-between | Understudy ÷ that | Understudy's CPU, ms | the go-between's |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, c := range r.Cells {
		to, by, bare := c.of(direct, rate), c.of(through, rate), c.of(between, rate)
		if by.median == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", c.Cell, to.show("%.4g"), by.show("%.4g"), ratio(by, to, "%.2f"),
			bare.show("%.4g"), ratio(by, bare, "%.2f"), c.of(through, cpu).show("%.3f"), c.of(between, cpu).show("%.3f"))
	}
}
