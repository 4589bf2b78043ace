package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/publisher"
	policysync "github.com/understudy-mx/understudy/sync"
)

// dial finds the publisher to ask.
func (f publishFlag) dial() (*control.Client, error) {
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	c := control.Dial(control.SocketPath(publisher.Dir(cfg)))
	c.Program = "understudy publish"
	return c, nil
}

// publishPages is what a publisher's control socket serves.
func publishPages(p *policysync.Publisher) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/invite", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		if name == "" {
			name = freeName(p.Peers())
		}
		token, err := p.Invite(name)
		answer(w, invitation{name, token}, err)
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s := p.Status()
		boundCounts(s.Counts)
		answer(w, s, nil)
	})
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.Peers(), nil) })
	mux.HandleFunc("DELETE /v1/peers/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, p.Revoke(r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/rotate", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, p.RotateKeys()) })
	mux.HandleFunc("POST /v1/rotate/finish", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, p.FinishRotation(r.URL.Query().Get("force") != ""))
	})
	return mux
}

// invitation is the answer to POST /v1/invite.
type invitation struct {
	Name  string `json:"name"`
	Token string `json:"token"`
}

// freeName is a name for a secondary that none has.
func freeName(peers []policysync.Peer) string {
	for n := 2; ; n++ {
		name := fmt.Sprintf("mx%d", n)
		if !slices.ContainsFunc(peers, func(p policysync.Peer) bool { return p.Name == name }) {
			return name
		}
	}
}

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
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	var before []policysync.Peer
	if err := client.Call(ctx, "GET", "/v1/peers", &before); err != nil {
		return err
	}
	var inv invitation
	if err := client.Call(ctx, "POST", "/v1/invite?name="+url.QueryEscape(c.Name), &inv); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "understudy join %s\n", inv.Token); err != nil {
		return err
	}
	if !c.Wait {
		_, err := fmt.Fprintf(out, "\nPaste this line on the secondary %q within 15 minutes; it works once. `understudy peers` then shows its fingerprint.\n", inv.Name)
		return err
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	old := peerNamed(before, inv.Name)
	for end := time.After(15 * time.Minute); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end:
			return fmt.Errorf("nobody joined as %s; the invitation is over", inv.Name)
		case <-tick.C:
		}
		var now []policysync.Peer
		if err := client.Call(ctx, "GET", "/v1/peers", &now); err != nil {
			return err
		}
		if p := peerNamed(now, inv.Name); p.Name != "" && (p.Fingerprint != old.Fingerprint || !p.Paired.Equal(old.Paired)) {
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
