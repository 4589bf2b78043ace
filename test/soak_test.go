package test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
)

var (
	kills     = flag.Int("kills", 20, "how often TestSoak kills the daemon; see `make soak`")
	soakLimit = flag.Duration("soak-limit", time.Hour, "when TestSoak stops killing and counts")
)

// TestSoak kills the real daemon again and again while mail comes in and goes
// out: SIGKILL at any moment. In the end every message that was answered 250
// is at the primary, byte for byte. Each start is ready within two seconds.
func TestSoak(t *testing.T) {
	primary := &demo.Primary{}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	defer primary.Stop()
	recipients := numbered("soak%d@example.org", 50)
	s := newSecondary(t, primary.Addr(), policyFor(recipients...), "")
	s.binary = plainBinary(t)
	s.start()
	var books testmx.Ledger
	ctx, cancel := context.WithCancel(context.Background())
	var senders sync.WaitGroup
	for w := range 4 {
		senders.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				soakSend(ctx, &books, s.addr, recipients[(n*4+w)%len(recipients)], fmt.Sprintf("soak %d of %d", n, w), n)
			}
		})
	}
	began, slowest, done := time.Now(), time.Duration(0), 0
	for ; done < *kills && time.Since(began) < *soakLimit; done++ {
		switch done % 10 { // an outage now and then, so that the queue grows and drains
		case 2:
			primary.Stop()
		case 7:
			startAgain(t, primary)
		}
		select { // not to synchronise: the moment of the kill is to be any
		case <-time.After(time.Duration(rand.IntN(150)) * time.Millisecond):
		case <-ctx.Done():
		}
		s.kill()
		at := time.Now()
		s.start()
		slowest = max(slowest, time.Since(at))
	}
	cancel()
	senders.Wait()
	primary.Stop()
	startAgain(t, primary)
	eventually(t, 2*time.Minute, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	books.RelayedTo(primary)
	books.Close(t)
	t.Logf("%d kills in %v, the slowest start took %v: %+v", done, time.Since(began), slowest, books.Totals())
	if done < *kills {
		t.Errorf("only %d kills of %d in %v", done, *kills, *soakLimit)
	}
	if slowest > readyWithin {
		t.Errorf("a start took %v", slowest)
	}
}

func startAgain(t *testing.T, p *demo.Primary) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
}

var plain = sync.OnceValues(func() (string, error) {
	name := filepath.Join(filepath.Dir(binary), "plain") // TestMain removes it
	return name, exec.Command("go", "build", "-o", name, "../cmd/understudy").Run()
})

// plainBinary is the program as users have it: the race detector would slow
// it down where the test is about time.
func plainBinary(t *testing.T) string {
	t.Helper()
	name, err := plain()
	if err != nil {
		t.Fatalf("build understudy: %v", err)
	}
	return name
}

// readyWithin is how soon a start takes mail: within two seconds, and five times
// that on a busy machine. The tests log what it was.
const readyWithin = 10 * time.Second

// soakSend sends one message and books what came of it.
func soakSend(ctx context.Context, books *testmx.Ledger, addr, to, subject string, n int) {
	size := 200 + n%5*1000
	if n%20 == 0 {
		size = 100_000
	}
	content := message(subject, size)
	mail := demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{to}, Content: []byte(content)}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o, _ := demo.Send(ctx, addr, mail)
	switch {
	case o.Final.Positive():
		books.Accepted("", to, testmx.Sum([]byte(content)))
	case o.Data.Code == 354 && o.Final.Zero(): // perhaps all of it was sent
		books.Unanswered(to, testmx.Sum([]byte(content)))
	case o.Banner.Zero(): // between kill and start
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// TestReadyWithLongQueue kills the daemon with a long queue: the next start
// is ready within readyWithin.
func TestReadyWithLongQueue(t *testing.T) {
	const messages = 100_000
	s := newSecondary(t, "127.0.0.1:1", policyFor("alice@example.org"), "")
	s.binary = plainBinary(t) // the race detector costs more than it finds here
	fillQueue(t, s.path("state/queue"), messages)
	s.start()
	s.kill()
	at := time.Now()
	s.start()
	took := time.Since(at)
	if n := s.metric("understudy_queue_messages"); n != messages {
		t.Errorf("%v messages after the kill", n)
	}
	t.Logf("ready with %d messages after %v", messages, took)
	if took > readyWithin {
		t.Errorf("ready after %v", took)
	}
	s.kill()
	if err := os.RemoveAll(s.path("state")); err != nil {
		t.Error(err)
	}
}

// fillQueue accepts n small messages for alice.
func fillQueue(t *testing.T, dir string, n int) {
	t.Helper()
	q, err := queue.Open(queue.Options{Store: leveldb.Dir{Path: dir}, Route: func(string) string { return "primary" }})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for w := range 64 {
		work.Go(func() {
			for i := w; i < n; i += 64 {
				env := &envelope.Envelope{To: []envelope.Recipient{{Path: envelope.ForwardPath{
					Mailbox: envelope.Mailbox{Local: "alice", Domain: "example.org"}}}}}
				d, err := q.Begin(env)
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(d, "Subject: %d\r\n\r\nbody\r\n", i)
				if err := d.Commit(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}
