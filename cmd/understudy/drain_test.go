//go:build !race

// Its disk fails in merges, too: see queue/faults_test.go.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/relay"
)

// chaos is a primary that does whatever primaries do on a bad day, but never
// refuses a message for good, and later is a good one.
type chaos struct {
	mu    sync.Mutex // guards the rest
	rnd   *rand.Rand
	bad   float64             // how many replies of all are bad ones
	taken map[string]int      // by recipient and content
	conns int                 // so far
	deeds map[string]struct{} // what it did
}

// deed chooses what to do in place of a good reply, "" for nothing.
func (c *chaos) deed(verb string) string {
	deeds := []string{"hang up", "421", "451", "garbage", "long", "mixed", "silence", "slow", "503", "502"}
	switch verb {
	case "greeting":
		deeds = append(deeds, "554", "late")
	case "XCLIENT":
		deeds = append(deeds, "250", "501", "550", "354")
	case "MAIL", "RSET":
		deeds = append(deeds, "530", "500")
	case ".":
		deeds = append(deeds, "take and hang up", "take and be silent")
	case "content":
		deeds = []string{"hang up", "421", "552 and hang up", "silence"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rnd.Float64() >= c.bad {
		return ""
	}
	d := deeds[c.rnd.IntN(len(deeds))]
	c.deeds[verb+" "+d] = struct{}{}
	return d
}

// chat is one session of it.
type chat struct {
	*chaos
	conn net.Conn
	br   *bufio.Reader
}

// reply answers a command, in its way. It says whether the session and what the
// command is about go on.
func (c *chat) reply(verb, good string) (went, goOn bool) {
	say := func(s string) bool {
		_, err := io.WriteString(c.conn, s+"\r\n")
		return err == nil
	}
	switch d := c.deed(verb); d {
	case "":
		return true, say(good)
	case "hang up", "take and hang up":
		return d != "hang up", false
	case "421":
		say("421 4.3.2 not now")
		return false, false
	case "552 and hang up":
		say("452 4.3.1 disk full")
		return false, false
	case "garbage":
		return false, say("\x00\xffwhat? 250")
	case "long":
		return true, say(good[:4] + strings.Repeat("x", 9000))
	case "mixed":
		return false, say("250-x\r\n450 x")
	case "silence", "take and be silent":
		io.Copy(io.Discard, c.br)
		return d != "silence", false
	case "slow", "late":
		time.Sleep(45 * time.Second)
		return true, say(good)
	default:
		return d == "250", say(d + " 5.3.2 whatever")
	}
}

func (c *chaos) serve(conn net.Conn) {
	defer conn.Close()
	s := &chat{c, conn, bufio.NewReader(conn)}
	c.mu.Lock()
	c.conns++
	c.mu.Unlock()
	if _, ok := s.reply("greeting", "220 primary.example ESMTP"); !ok {
		return
	}
	var to []string
	from, identified := false, false
	for {
		line, err := s.br.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		went, ok := true, true
		switch verb {
		case "EHLO", "HELO":
			good := "250-primary.example\r\n250-PIPELINING\r\n250-XCLIENT NAME ADDR HELO\r\n250 DSN"
			if identified {
				good = "250-primary.example\r\n250-PIPELINING\r\n250 DSN"
			}
			_, ok = s.reply(verb, good)
		case "XCLIENT":
			went, ok = s.reply(verb, "220 primary.example ESMTP")
			identified = went
		case "RSET":
			if went, ok = s.reply(verb, "250 2.0.0 Ok"); went {
				from, to = false, nil
			}
		case "MAIL":
			if from {
				_, err = io.WriteString(conn, "503 5.5.1 nested MAIL\r\n")
				ok = err == nil
				break
			}
			from, ok = s.reply(verb, "250 2.1.0 Ok")
		case "RCPT":
			if !from {
				_, err = io.WriteString(conn, "503 5.5.1 need MAIL\r\n")
				ok = err == nil
				break
			}
			if went, ok = s.reply(verb, "250 2.1.5 Ok"); went {
				to = append(to, arg)
			}
		case "DATA":
			if len(to) == 0 {
				_, err = io.WriteString(conn, "554 5.5.1 no valid recipients\r\n")
				ok = err == nil
				break
			}
			if went, ok = s.reply(verb, "354 Go ahead"); went && ok {
				ok = s.content(to)
				from, to = false, nil
			}
		case "QUIT":
			io.WriteString(conn, "221 2.0.0 Bye\r\n")
			return
		default:
			_, err = io.WriteString(conn, "500 5.5.1 what?\r\n")
			ok = err == nil
		}
		if !ok {
			return
		}
	}
}

// content reads a message and keeps it, if it answers that it did or may have.
func (s *chat) content(to []string) bool {
	var b strings.Builder
	for n := 0; ; n++ {
		line, err := s.br.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(line, "."))
		if n == 5 {
			if d := s.deed("content"); d != "" {
				if d == "421" || d == "552 and hang up" {
					io.WriteString(s.conn, "421 4.3.1 disk full\r\n")
				}
				if d == "silence" {
					time.Sleep(20 * time.Minute)
				}
				return false
			}
		}
	}
	went, ok := s.reply(".", "250 2.0.0 queued")
	if went {
		s.mu.Lock()
		for _, rcpt := range to {
			path, _, _ := strings.Cut(rcpt, ">")
			s.taken[path+">"+b.String()]++
		}
		s.mu.Unlock()
	}
	return ok
}

// TestChaoticPrimary drains a backlog into chaos, from a disk that fails now and
// then: in the end the primary has all of it, whole, nothing is held, and nobody
// connected without pause.
func TestChaoticPrimary(t *testing.T) {
	deeds := map[string]struct{}{}
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { drainInto(t, seed, deeds) })
		})
	}
	if len(deeds) < 80 {
		t.Errorf("only %d kinds of chaos were met: %v", len(deeds), deeds)
	}
}

func drainInto(t *testing.T, seed uint64, deeds map[string]struct{}) {
	c := &chaos{rnd: rand.New(rand.NewPCG(seed, 1)), bad: .05 + .4*float64(seed%8)/8, taken: map[string]int{}, deeds: deeds}
	m := metrics.New(prometheus.NewRegistry())
	var q *queue.Queue
	disk := testmx.NewDisk()
	var serving sync.WaitGroup
	client := relay.New(relay.Options{
		Routes:   map[string]relay.Route{"primary": {Name: "primary", Address: "primary.example:25", TLS: relay.TLSOff, XClient: true}},
		Hostname: "mx2.example", Metrics: m, OnUp: func(dest string) { q.Wake(dest) },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			serving.Go(func() { c.serve(there) })
			return here, nil
		},
	})
	options := queue.Options{Store: leveldb.Dir{Path: "/q", Disk: disk}, Route: func(string) string { return "primary" },
		Relayer: client, Metrics: m, ByClient: func(string) bool { return true }}
	q, err := queue.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for i := range 60 {
		body := fmt.Sprintf("Subject: %d\r\n\r\n%s", i, strings.Repeat(fmt.Sprintf(".line of %d\r\n", i), 1+i%3*4000))
		env := &envelope.Envelope{Client: envelope.Client{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 5)}), Helo: "h.example"}}
		for k := range 1 + i%4 {
			to := envelope.Mailbox{Local: fmt.Sprint("r", k), Domain: "example.org"}
			env.To = append(env.To, envelope.Recipient{Path: envelope.ForwardPath{Mailbox: to}})
			want["TO:<"+to.String()+">"+body] = true
		}
		d, err := q.Begin(env)
		if err == nil {
			_, err = io.WriteString(d, body)
		}
		if err == nil {
			err = d.Commit(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { client.Run(ctx) })
	running.Go(func() { q.Run(ctx) })
	disk.Fault(func(op testmx.Op) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.bad > 0 && c.rnd.Float64() < .02 {
			return syscall.EIO
		}
		return nil
	})
	const hours = 3
	for range hours {
		time.Sleep(time.Hour)
		q.Walk(ctx, func(i queue.Info) error {
			for _, r := range i.Recipients {
				if r.State == "held" {
					t.Errorf("%s is held: %s", i.ID, r.Reply)
				}
			}
			return nil
		})
	}
	c.mu.Lock()
	c.bad = 0
	conns := c.conns
	c.mu.Unlock()
	if most := hours*3600/2 + 10*len(want); conns > most { // every two seconds a probe
		t.Errorf("%d connections in %d hours, want at most %d", conns, hours, most)
	}
	time.Sleep(3 * time.Hour)
	if n := q.Stats().Messages; n != 0 {
		q.Walk(t.Context(), func(i queue.Info) error { t.Errorf("%+v", i); return nil })
		t.Errorf("%d messages are left, %+v, %+v", n, q.Status(), client.Status())
	}
	cancel()
	running.Wait()
	// When a fault met LevelDB's list of tables, it writes no table any more
	// until it is opened again, and says so at last: the journal has all of it.
	if err := q.Close(); err != nil && !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	serving.Wait()
	if q, err = queue.Open(options); err != nil {
		t.Fatal(err)
	}
	if n := q.Stats(); n.Messages != 0 {
		t.Errorf("opened again, it has %+v", n)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	for key := range want {
		if c.taken[key] == 0 {
			t.Errorf("lost: %.60q", key)
		}
	}
	for key := range c.taken {
		if !want[key] {
			t.Errorf("the primary has what nobody sent: %.60q, %d octets", key, len(key))
		}
	}
	time.Sleep(2 * time.Second) // goleveldb's last goroutine
}
