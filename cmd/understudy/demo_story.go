package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
)

const (
	demoConnections = 4               // to the primary
	demoSenders     = 8               // at a time
	demoArrivals    = 5 * time.Second // what the arrivals are stretched to
	demoDrain       = 5 * time.Second // what the primary's slowness stretches the drain to, about
)

func (s *show) playUp(ctx context.Context) error {
	s.act("Understudy starts as mx2.%s, the backup of a toy primary at %s", demoDomain, s.primary.Addr())
	s.say("Everything is on this machine: SMTP at %s, DNS at %s,", s.smtp(), s.dns.Addr())
	s.say("state in %s. `understudy demo --show-policy` prints the policy.", s.dir)
	if err := s.wait(ctx, s.up); err != nil {
		return err
	}
	good, _ := demoKinds()
	m := demoMail{from(goodNet, 0, "friend@example.com"), good}
	m.To = []string{"alice@" + demoDomain}
	m.Content = []byte("From: <friend@example.com>\r\nTo: <alice@example.org>\r\nSubject: Before the outage\r\n\r\nHello.\r\n")
	began := time.Now()
	r := s.send(ctx, m)
	s.books.enter(r.demoMail, r.outcome, r.err)
	if err := s.wait(ctx, func() bool { return s.primary.Count() > 0 }); err != nil {
		return err
	}
	s.say("The primary is up: a message for alice is with it %d ms after it was sent.", time.Since(began).Milliseconds())
	return nil
}

func (s *show) playDown(ctx context.Context) error {
	s.primary.Stop()
	s.act("The primary goes down")
	s.say("%s refuses connections. Senders turn to the backup MX, and so do spammers.", s.primary.Addr())
	return s.wait(ctx, func() bool { return !s.up() })
}

// sent is a message and what became of it.
type sent struct {
	demoMail
	outcome demo.Outcome
	err     error
}

func (s *show) send(ctx context.Context, m demoMail) sent {
	o, err := demo.Send(ctx, s.smtp(), m.Mail)
	return sent{m, o, err}
}

func (s *show) smtp() string { return s.daemon.doors[0].Addr().String() }

func (s *show) playArrivals(ctx context.Context, messages int) error {
	s.act("%d messages arrive: good mail and spam", messages)
	results := s.sendAll(ctx, messages)
	shown := make(map[string]bool)
	done := 0
	for r := range results {
		done++
		s.books.enter(r.demoMail, r.outcome, r.err)
		if !shown[r.kind.name] {
			shown[r.kind.name] = true
			s.introduce(r)
		}
		q := s.daemon.queue.Stats()
		s.bar(done, messages, "%d of %d  accepted %d  refused %d  queue %d", done, messages,
			s.books.messages, s.books.sent-s.books.messages, q.Messages)
	}
	return ctx.Err()
}

// sendAll sends n messages over a few connections at a time, paced, and closes
// the channel after the last.
func (s *show) sendAll(ctx context.Context, n int) <-chan sent {
	queue := make(chan demoMail)
	results := make(chan sent)
	var senders sync.WaitGroup
	for range demoSenders {
		senders.Go(func() {
			for m := range queue {
				results <- s.send(ctx, m)
			}
		})
	}
	go func() {
		defer close(results)
		defer senders.Wait()
		defer close(queue)
		pace := time.NewTicker(demoArrivals / time.Duration(n))
		defer pace.Stop()
		for i := range n {
			select {
			case <-pace.C:
				queue <- demoMessage(i, n)
			case <-ctx.Done():
				return
			}
		}
	}()
	return results
}

// introduce shows the first message of a kind.
func (s *show) introduce(r sent) {
	reply := r.outcome.Last()
	client := clientOf(r.Mail)
	verdict := s.paint(green, "accepted")
	if !reply.Positive() {
		verdict = s.paint(red, "refused ")
	}
	s.say("%s %s: %s, <%s> to <%s>", verdict, r.kind.name, client, r.From, strings.Join(r.To, ">, <"))
	s.say("         %s", printable(reply.String()))
	if rule := s.log.rule(client); !reply.Positive() && rule != "" {
		s.say("         %s", s.paint(dim, "rule: "+printable(rule)))
	}
}

// clientOf is the address that the sender states by XCLIENT.
func clientOf(m demo.Mail) string {
	first, _, _ := strings.Cut(m.XClient, " ")
	return strings.TrimPrefix(first, "ADDR=")
}

func (s *show) playQueue(context.Context) error {
	q := s.daemon.queue.Stats()
	s.act("The queue keeps %d messages, %s", q.Messages, bytesText(q.Bytes))
	s.say("Each was on disk, synced, before its sender got 250: a power cut now would lose none.")
	return nil
}

func (s *show) playDrain(ctx context.Context) error {
	total := s.daemon.queue.Stats().Messages
	s.primary.Delay = demoDrain * demoConnections / time.Duration(max(1, total))
	s.primary.Script(demoGone, refusedAfterwards)
	s.act("The primary comes back")
	began := time.Now()
	if err := s.primary.Start(); err != nil {
		return err
	}
	if err := s.wait(ctx, func() bool { return s.up() || s.left() < total }); err != nil {
		return err
	}
	s.say("Noticed after %d ms. The backlog moves, oldest first.", time.Since(began).Milliseconds())
	began = time.Now()
	err := s.wait(ctx, func() bool {
		left := s.left()
		rate := float64(total-left) / time.Since(began).Seconds()
		eta := "–"
		if rate > 0 {
			eta = fmt.Sprintf("%.0f s", float64(left)/rate)
		}
		s.bar(total-left, total, "%d of %d  %.0f/s  ETA %s", total-left, total, rate, eta)
		return left == 0
	})
	if err != nil {
		return err
	}
	s.endBar()
	s.say("Drained in %.1f s.", time.Since(began).Seconds())
	return nil
}

// left is the number of messages that still wait to be relayed.
func (s *show) left() int {
	q := s.daemon.queue.Stats()
	return q.Messages - q.Held
}

func (s *show) playHeld(ctx context.Context) error {
	_, infos, err := s.held(ctx)
	if err != nil {
		return err
	}
	for _, i := range infos {
		r := i.Recipients[0]
		s.act("The primary refused one message after all: it is held")
		s.say("%s <%s> to <%s>", printable(i.ID), printable(i.From), printable(r.Address))
		s.say("         %s", printable(r.Reply))
		s.say("         %s", s.paint(dim, "let in by: "+printable(r.Rule)))
		s.say("Its sender has our 250, and may be forged: so no bounce, but the operator's decision")
		s.say("(`understudy queue show`, `release`, `remove`).")
	}
	return nil
}

func (s *show) playSummary(ctx context.Context) error {
	pairs, _, err := s.held(ctx)
	if err != nil {
		return err
	}
	b := s.books
	a := b.close(s.primary.Received(), pairs)
	s.act("The ledger")
	s.say("%5d messages sent", b.sent)
	s.say("%5d refused, with the replies that the primary would have given", b.sent-b.messages)
	_, spam := demoKinds()
	for _, k := range spam {
		s.say("      %5d %s", b.refused[k.name], k.name)
	}
	s.say("%5d accepted, for %d recipients; of these", b.messages, a.accepted)
	s.say("      %5d relayed, byte-identical at the primary", a.relayed)
	s.say("      %5d held", a.held)
	s.say("      %5d lost, %d altered, %d relayed twice", a.lost, a.altered, a.twice)
	for _, w := range b.wrong {
		s.say("%s %s", s.paint(red, "unexpected:"), printable(w))
	}
	if !a.even() {
		return fmt.Errorf("the ledger does not close: %+v", a)
	}
	if len(b.wrong) > 0 {
		return errors.New("the ledger closes, but the verdicts are not those expected")
	}
	s.say("%s %d accepted = %d relayed + %d held", s.paint(green, "It closes:"), a.accepted, a.relayed, a.held)
	return nil
}

var queueID = regexp.MustCompile(`queued as ([0-9A-Za-z]+)`)

// queuedAs finds the queue ID in the reply to a message.
func queuedAs(text string) string {
	if m := queueID.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}
