package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

const (
	understudy = "understudy"
	postfix    = "postfix"
	door       = "door"      // the ceiling: ours without its queue
	sink       = "smtp-sink" // the load generator's ceiling
)

// recipients is the length of the recipient list; user0 to user9999.
const recipients = 10_000

// peer is a mail server under load. Its processes are one group.
type peer struct {
	kind    string
	dir     string
	addr    string // SMTP
	primary string // where it relays to: nobody listens there at first
	web     string // metrics, of Understudy
	argv    []string
	run     *testmx.Daemon
	behind  *testmx.Daemon // the primary of a live peer
	link    *testmx.Link   // … and the line to it, nil for none
}

func (b *bench) newPeer(ctx context.Context, c cell, kind, dir string) (*peer, error) {
	p := &peer{kind: kind, dir: dir, addr: testmx.FreeAddr(), primary: testmx.FreeAddr(), web: testmx.FreeAddr()}
	switch kind {
	case direct, through, between:
		return p, b.newLivePeer(ctx, c, p)
	case understudy, door:
		file, err := b.imported(ctx, c.held)
		if err != nil {
			return nil, err
		}
		if kind == door {
			self, err := os.Executable()
			p.argv = []string{self, "-door", file, "-addr", p.addr, "-dns", b.dns}
			return p, err
		}
		p.argv = []string{b.binary, "serve", "-c", filepath.Join(dir, "understudy.toml")}
		return p, b.configureUnderstudy(p, file, c.clients > 0)
	case postfix:
		p.argv = testmx.PostfixCommand(filepath.Join(dir, "conf"))
		return p, configurePostfix(dir, p.addr, p.primary, c.held)
	}
	p.argv = sinkArgs(p.addr, c.ceiling...)
	return p, nil
}

func sinkArgs(addr string, more ...string) []string {
	return append(append([]string{"smtp-sink", "-u", "nobody"}, more...), addr, "1024")
}

func (b *bench) configureUnderstudy(p *peer, policy string, xclient bool) error {
	config := fmt.Sprintf(`hostname = "mx2.example.org"
state_dir = %q
[smtp]
listen = [%q]
max_connections_per_client = 1000
xclient_from = ["127.0.0.1"]
[policy]
file = %q
[dns]
servers = [%q]
[metrics]
listen = %q
[log]
format = "json"
[primary]
address = %q
probe_interval = "200ms"
xclient = %v
live_max_connections = 400
`, filepath.Join(p.dir, "state"), p.addr, policy, b.dns, p.web, p.primary, xclient)
	return os.WriteFile(filepath.Join(p.dir, "understudy.toml"), []byte(config), 0o644)
}

// start runs the server and returns when it listens, if it is to listen for SMTP.
func (p *peer) start() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if p.argv == nil {
		return nil // it runs already
	}
	p.run, err = testmx.StartDaemon(p.addr, log, p.argv...)
	return err
}

func (p *peer) group() int {
	if p.run == nil {
		return p.behind.Pid()
	}
	return p.run.Pid()
}

// stop kills the group: nothing in a spool is needed any more.
func (p *peer) stop() {
	for _, d := range []*testmx.Daemon{p.run, p.behind} {
		if d == nil {
			continue
		}
		if err := d.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if p.link != nil {
		p.link.Close()
	}
}

// newLivePeer makes p a primary that is up, or Understudy before one.
func (b *bench) newLivePeer(ctx context.Context, c cell, p *peer) (err error) {
	at := p.primary
	if c.rtt > 0 {
		at = testmx.FreeAddr()
		addr := p.primary
		if p.kind == direct {
			addr = p.addr
		}
		if p.link, err = testmx.NewLink(addr, at, c.rtt); err != nil {
			return err
		}
	} else if p.kind == direct {
		at = p.addr
	}
	if c.real {
		primary, err := b.postfixPrimary(ctx, p)
		if err != nil {
			return err
		}
		p.behind, p.primary = primary.run, primary.addr
		if p.kind == direct {
			p.addr = primary.addr
		}
	} else {
		p.behind, err = startPrimary(at)
	}
	if err != nil || p.kind == direct {
		return err
	}
	if p.kind == between {
		self, err := os.Executable()
		p.argv = []string{self, "-between", p.primary, "-addr", p.addr}
		return err
	}
	file, err := b.imported(ctx, false)
	if err != nil {
		return err
	}
	p.argv = []string{b.binary, "serve", "-c", filepath.Join(p.dir, "understudy.toml")}
	return b.configureUnderstudy(p, file, true)
}

func (b *bench) startDNS() (func(), error) {
	d, err := demo.StartDNS(
		"1.0.0.127.in-addr.arpa. 3600 IN PTR localhost.",
		"localhost. 3600 IN A 127.0.0.1",
		"sender.example. 3600 IN A 127.0.0.1")
	if err != nil {
		return nil, err
	}
	b.dns = d.Addr()
	return d.Close, nil
}
