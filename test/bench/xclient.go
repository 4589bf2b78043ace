package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// drainPostfix fills the queue with mail of c.clients clients by turns, lets a
// Postfix primary come back, and times from the first message that it takes to
// the last. Postfix takes a client's identity by XCLIENT once a session.
func drainPostfix(ctx context.Context, b *bench, p *peer, c cell) (figures, error) {
	body, err := randomText(c.size)
	if err != nil {
		return figures{}, err
	}
	var next atomic.Int64
	err = each(50, c.count, func() error {
		conn, err := dial(p.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		i := int(next.Add(1)) % max(1, c.clients)
		return conn.talk("", "220", "EHLO sender.example", "250",
			fmt.Sprintf("XCLIENT NAME=[UNAVAILABLE] ADDR=10.0.%d.%d", i>>8, i&0xff), "220",
			"EHLO sender.example", "250", "MAIL FROM:<"+sender+">", "250", "RCPT TO:<"+known+">", "250",
			"DATA", "354", body, "250", "QUIT", "221")
	})
	if err != nil {
		return figures{}, fmt.Errorf("fill the queue: %w", err)
	}
	primary, err := b.postfixPrimary(ctx, p)
	if err != nil {
		return figures{}, err
	}
	defer primary.stop()
	settle(p.group())
	return meter(p, c.count, c.size, func() (time.Duration, error) {
		link, err := testmx.NewLink(p.primary, primary.addr, c.rtt)
		if err != nil {
			return 0, err
		}
		defer link.Close()
		var first time.Time
		for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) { // each look costs the daemon over 1 ms
			switch left := int(p.metric("understudy_queue_messages")); {
			case left == 0:
				return time.Since(first), nil
			case left < c.count && first.IsZero():
				first = time.Now()
			}
		}
		return 0, fmt.Errorf("%.0f messages are left", p.metric("understudy_queue_messages"))
	})
}

// postfixPrimary starts a Postfix that is p's primary: it takes identities from
// p, and all mail, and delivers none.
func (b *bench) postfixPrimary(ctx context.Context, p *peer) (*peer, error) {
	dir := filepath.Join(p.dir, "primary")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	primary, err := b.newPeer(ctx, cell{}, postfix, dir)
	if err != nil {
		return nil, err
	}
	more := "myhostname = primary.example.org\nrelay_transport = discard:\nsmtpd_authorized_xclient_hosts = 127.0.0.1\n"
	main := filepath.Join(dir, "conf", "main.cf")
	text, err := os.ReadFile(main)
	if err == nil {
		err = os.WriteFile(main, []byte(testmx.Override(string(text), more)), 0o644)
	}
	if err != nil {
		return nil, err
	}
	return primary, primary.start()
}
