package smtpd

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// letsIn is a snapshot that lets all in, but nobody.
type letsIn struct{ resets int }

func (*letsIn) Decide(_ context.Context, c *Command) (d Decision) {
	if c.At == policy.Rcpt && c.To.Path.Local == "nobody" {
		d.Action, d.Reply = policy.Reject, envelope.NewReply(550, "5.1.1", "no")
	}
	return d
}
func (l *letsIn) Reset() { l.resets++ }
func (*letsIn) Close()   {}

// comes has a client come with a recipient, and says what it got.
func comes(p *PutOff, client, from, to string) int {
	c := &Command{At: policy.Rcpt, Env: &envelope.Envelope{From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: from, Domain: "x.example"}}},
		To:     &envelope.Recipient{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: to, Domain: "corp.example"}}},
		Client: func(context.Context) envelope.Client { return envelope.Client{Addr: netip.MustParseAddr(client)} }}
	d := p.Around(&letsIn{}).Decide(context.Background(), c)
	if d.Action == policy.Permit {
		return 250
	}
	return d.Reply.Code
}

// TestPutOff: who comes back often enough and late enough is taken, by its
// network or by its sender and recipient; nobody else, and nobody when the
// primary is down.
func TestPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := true
		p := &PutOff{Up: func(domain string) bool { return up && domain == "corp.example" }}
		start := time.Now()
		for _, step := range []struct {
			after        time.Duration
			client, from string
			to           string
			want         int
		}{
			{0, "192.0.2.1", "a", "alice", 451},
			{0, "192.0.2.1", "a", "nobody", 550},
			{time.Second, "192.0.2.1", "a", "alice", 451}, // hammering is one try
			{time.Minute, "192.0.2.1", "a", "alice", 451},
			{5 * time.Minute, "192.0.2.1", "a", "alice", 451},
			{15 * time.Minute, "192.0.2.1", "a", "alice", 451}, // the third, but too early
			{29 * time.Minute, "192.0.2.1", "a", "alice", 451},
			{31 * time.Minute, "192.0.2.1", "a", "alice", 250},
			{31 * time.Minute, "192.0.2.99", "b", "carol", 250},   // the network is known
			{31 * time.Minute, "198.51.100.1", "a", "alice", 250}, // so is the pair: a pool of clients
			{31 * time.Minute, "198.51.100.1", "a", "carol", 451},
			{31 * time.Minute, "2001:db8::1", "c", "carol", 451},
			{70 * time.Minute, "2001:db8::1", "c", "carol", 451}, // two tries are too few
			{48 * time.Hour, "192.0.2.1", "a", "dora", 451},      // long forgotten
		} {
			time.Sleep(time.Until(start.Add(step.after)))
			if got := comes(p, step.client, step.from, step.to); got != step.want {
				t.Errorf("%v: %s %s %s: %d, want %d", step.after, step.client, step.from, step.to, got, step.want)
			}
		}
		if up = false; comes(p, "203.0.113.1", "x", "alice") != 250 {
			t.Error("put off while the primary is down")
		}
	})
}

// TestPutOffBack: for five minutes after an outage nobody is put off; after that who
// came in them once isn't better off.
func TestPutOffBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back time.Time
		p := &PutOff{Up: func(string) bool { return true }, Back: func(domain string) time.Time {
			if domain != "corp.example" {
				t.Errorf("asked about %s", domain)
			}
			return back
		}}
		if got := comes(p, "192.0.2.1", "a", "alice"); got != 451 {
			t.Errorf("no outage was seen: %d", got)
		}
		back = time.Now()
		for _, step := range []struct {
			after time.Duration
			to    string
			want  int
		}{{0, "alice", 250}, {0, "nobody", 550}, {putOffBack - time.Second, "alice", 250}, {putOffBack, "alice", 451}} {
			time.Sleep(time.Until(back.Add(step.after)))
			if got := comes(p, "198.51.100.1", "b", step.to); got != step.want {
				t.Errorf("%v after the outage, %s: %d, want %d", step.after, step.to, got, step.want)
			}
		}
	})
}

// TestPutOffCrowd: a hostile crowd fills what is bounded, and pushes out nobody
// who came back.
func TestPutOffCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &PutOff{Up: func(string) bool { return true }}
		n := 0
		flood := func() {
			for range 2 * putOffSize {
				n++
				comes(p, fmt.Sprintf("2001:%x:%x::1", n>>16&0xffff, n&0xffff), fmt.Sprint("s", n), "alice")
			}
		}
		comes(p, "192.0.2.1", "a", "alice")
		time.Sleep(5 * time.Minute)
		comes(p, "192.0.2.1", "a", "alice")
		flood()
		time.Sleep(30 * time.Minute)
		flood()
		if got := comes(p, "192.0.2.1", "a", "alice"); got != 250 {
			t.Errorf("who came back gets %d", got)
		}
		for name, kind := range map[string]*tries{"networks": &p.networks, "pairs": &p.pairs} {
			if got := len(kind.known); got > 2*putOffSize+2 || got != kind.once.Len()+kind.back.Len() {
				t.Errorf("%d %s are known: %d, %d", got, name, kind.once.Len(), kind.back.Len())
			}
		}
	})
}

// TestPutOffDialogue: what a client hears, and that it is no error of its own.
func TestPutOffDialogue(t *testing.T) {
	s, spool := newServer(t)
	p := &PutOff{Up: func(string) bool { return true }}
	s.Decide = p.Around
	talk(t, s, "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 451 4.7.1 <alice@corp.example>: Recipient address rejected: the primary is up\nC: RCPT TO:<nobody@corp.example>\nS: 550 5.1.1\nC: DATA\nS: 554\n")
	if len(spool.accepted()) != 0 {
		t.Error("it is accepted")
	}
}

// TestPutOffApart: tries that are four minutes apart count each.
func TestPutOffApart(t *testing.T) {
	for apart, want := range map[time.Duration]int{4 * time.Minute: 250, 4*time.Minute - time.Second: 451} {
		synctest.Test(t, func(t *testing.T) {
			p := &PutOff{Up: func(string) bool { return true }}
			comes(p, "192.0.2.1", "a", "alice")
			time.Sleep(apart)
			comes(p, "192.0.2.1", "a", "alice")
			time.Sleep(30*time.Minute - apart)
			if got := comes(p, "192.0.2.1", "a", "alice"); got != want {
				t.Errorf("%v apart: %d, want %d", apart, got, want)
			}
		})
	}
}
