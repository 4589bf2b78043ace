package test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// accept sends one message for one recipient, which must be accepted, and
// books it.
func accept(t *testing.T, s *secondary, books *testmx.Ledger, to string) {
	t.Helper()
	content := message("to "+to, 3000)
	o := testmx.Send(t, s.addr, demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{to}, Content: []byte(content)})
	if !o.Final.Positive() {
		t.Fatalf("%s: %s", to, o.Last())
	}
	books.Accepted("", to, sum(content))
}

// sum is what the books know a message by: its content with the line ends of
// a maildir, where they are compared.
func sum(content string) [32]byte {
	return testmx.Sum([]byte(strings.ReplaceAll(content, "\r\n", "\n")))
}

// closeBooks compares what was accepted with what the primary delivered: all
// there, byte for byte, and no message more often than mayRepeat allows, which
// is what a crash had in flight.
func closeBooks(t *testing.T, books *testmx.Ledger, p *postfix, mayRepeat int) {
	t.Helper()
	p.settle()
	for _, d := range p.deliveries(hostname) {
		books.Relayed(d.to, testmx.Sum(d.content))
	}
	books.Close(t)
	if n := books.Totals().Duplicates; n > mayRepeat {
		t.Errorf("%d messages were relayed more than once; the crash explains at most %d", n, mayRepeat)
	}
}

// policyFor lists the recipients that the tests send to. smtp-source numbers
// its recipients, so those come by pattern.
func policyFor(recipients ...string) string {
	return fmt.Sprintf("domains = [\"example.org\"]\nrecipients = [%s]\n", `"`+strings.Join(recipients, `", "`)+`"`)
}

func numbered(format string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(format, i))
	}
	return all
}

// TestOutage is the product's promise as one story: the primary is down, 500
// messages of 1 octet to 5 MB arrive, the secondary is killed in the middle of
// accepting and again in the middle of the drain, and in the end the primary
// has every message that was answered 250, byte for byte.
func TestOutage(t *testing.T) {
	sizes := []int{1, 2, 100, 1000, 4096, 60_000, 65_536, 70_000, 500_000, 5_000_000}
	const bySource, bySender = 250, 250
	var recipients []string
	for i := range sizes {
		recipients = append(recipients, numbered(fmt.Sprintf("%%dsource%d@example.org", i), bySource/len(sizes)+1)...)
	}
	recipients = append(recipients, numbered("sender%d@example.org", bySender)...)

	primary := newPostfix(t)
	secondary := newSecondary(t, primary.addr, policyFor(recipients...), "")
	secondary.start()
	var books testmx.Ledger

	// 250 messages from smtp-source.
	for i, size := range sizes {
		content := message(fmt.Sprintf("source %d", i), size)
		file := filepath.Join(secondary.dir, "message")
		write(t, file, strings.ReplaceAll(content, "\r\n", "\n"))
		n := bySource / len(sizes)
		if err := smtpSource(t, secondary.addr, file, fmt.Sprintf("source%d@example.org", i), n, 5); err != nil {
			t.Fatal(err)
		}
		content += "\r\n" // smtp-source ends a file with an empty line of its own
		for k := range n {
			books.Accepted("", fmt.Sprintf("%dsource%d@example.org", k+firstNumber, i), sum(content))
		}
	}

	// 250 from senders that try again until they have their 250; a SIGKILL falls in between.
	var senders sync.WaitGroup
	work := make(chan int)
	for range 8 {
		senders.Go(func() {
			for i := range work {
				sendUntilAccepted(t, &books, secondary.addr, fmt.Sprintf("sender%d@example.org", i),
					message(fmt.Sprintf("sender %d", i), sizes[i%(len(sizes)-1)]))
			}
		})
	}
	for i := range bySender {
		if i == bySender/2 {
			secondary.kill()
			secondary.start()
		}
		work <- i
	}
	close(work)
	senders.Wait()
	if got := books.Totals().Accepted; got != bySource+bySender {
		t.Fatalf("accepted %d messages, want %d", got, bySource+bySender)
	}
	if got := secondary.metric("understudy_queue_messages"); got < bySource+bySender {
		t.Fatalf("%v messages queued, %d were accepted", got, bySource+bySender)
	}

	// The primary returns; the secondary is killed during the drain.
	primary.start()
	back := time.Now()
	eventually(t, 30*time.Second, "the drain has begun", func() bool { return len(primary.deliveries(hostname)) >= 50 })
	if took := time.Since(back); took > 30*time.Second {
		t.Errorf("the backlog began to move after %v; the probe interval is 1 s", took)
	}
	secondary.kill()
	secondary.start()
	eventually(t, 2*time.Minute, "the queue is empty", func() bool { return secondary.metric("understudy_queue_messages") == 0 })
	secondary.stop()
	// Five sessions, each with at most one message unanswered and one pipelined behind it.
	closeBooks(t, &books, primary, 10)
}

// sendUntilAccepted behaves like a sending MTA: what isn't answered 250 is
// tried again.
func sendUntilAccepted(t *testing.T, books *testmx.Ledger, addr, to, content string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	mail := demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{to}, Content: []byte(content)}
	for {
		o, err := demo.Send(ctx, addr, mail)
		switch {
		case o.Final.Positive():
			books.Accepted("", to, sum(content))
			return
		case o.Data.Code == 354 && o.Final.Zero(): // perhaps all of it was sent
			books.Unanswered(to, sum(content))
		}
		select {
		case <-ctx.Done():
			t.Errorf("%s: not accepted within a minute: %s %v", to, o.Last(), err)
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
