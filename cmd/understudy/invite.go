package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/understudy-mx/understudy/internal/operator"
	policysync "github.com/understudy-mx/understudy/sync"
)

type inviteCmd struct {
	Name string `arg:"" optional:"" help:"What to call the secondary here; by default mx2, or the next that is free. A secondary that has the name is replaced when the invitation is used."`
	publishFlag
	Wait bool `help:"Wait until the secondary has joined, and print its fingerprint."`
}

func (inviteCmd) Help() string {
	return `Prints the command to paste on the secondary. It holds a secret: it is good once, for 15 minutes, and only for the publisher that printed it.

Both sides show the same fingerprint afterwards; see ` + "`understudy peers`" + `.

Examples:

    understudy invite
    ssh -t mx2 sudo $(understudy invite mx2 | head -1)`
}

func (c *inviteCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Publisher) error {
		before, err := p.Peers(ctx)
		if err != nil {
			return err
		}
		inv, err := p.Invite(ctx, c.Name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "understudy join %s\n", inv.Token); err != nil {
			return err
		}
		if !c.Wait {
			_, err := fmt.Fprintf(out, "\nPaste this line on the secondary %q within 15 minutes; it works once. `understudy peers` then shows its fingerprint.\n", inv.Name)
			return err
		}
		return awaitPeer(ctx, out, p, inv.Name, peerNamed(before, inv.Name))
	})
}

// awaitPeer returns when a secondary of that name has paired that isn't the old
// one.
func awaitPeer(ctx context.Context, out io.Writer, publisher operator.Publisher, name string, old policysync.Peer) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(15 * time.Minute); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end:
			return fmt.Errorf("nobody joined as %s; the invitation is over", name)
		case <-tick.C:
		}
		now, err := publisher.Peers(ctx)
		if err != nil {
			return err
		}
		if p := peerNamed(now, name); p.Name != "" && (p.Fingerprint != old.Fingerprint || !p.Paired.Equal(old.Paired)) {
			_, err := fmt.Fprintf(out, "%s joined. Fingerprint, the same on both sides: %s\n", p.Name, p.Fingerprint)
			return err
		}
	}
}

func peerNamed(peers []policysync.Peer, name string) policysync.Peer {
	for _, p := range peers {
		if p.Name == name {
			return p
		}
	}
	return policysync.Peer{}
}
