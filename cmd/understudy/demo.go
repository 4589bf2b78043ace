package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue"
)

//go:embed demo_policy.toml
var demoPolicy string

// demoCmd plays one outage: a toy primary and a DNS server stand in for the
// world, everything between them is what serve runs.
type demoCmd struct {
	Messages   int  `default:"300" placeholder:"N" help:"How many messages arrive during the outage, 20 to 5000 (default: ${default})."`
	ShowPolicy bool `help:"Print the policy that the demo enforces, and do no more."`
}

// Help is shown by `understudy demo --help`.
func (*demoCmd) Help() string {
	return `A toy primary and a DNS server on the loopback interface stand in for the world; everything between them is what serve runs. The primary goes down, good mail and spam arrive, the primary comes back; that takes about fifteen seconds. Exit code 0 says that every accepted message was relayed unaltered or is held.`
}

// demoTimeout bounds the whole show.
const demoTimeout = time.Minute

// Run plays the demo on out.
func (c *demoCmd) Run(ctx context.Context, out io.Writer) error {
	if c.ShowPolicy {
		_, err := io.WriteString(out, demoPolicy)
		return err
	}
	if c.Messages < 20 || c.Messages > 5000 {
		return mistakes{fmt.Errorf("--messages: %d is not between 20 and 5000", c.Messages)}
	}
	// A reader that goes away must not leave the state directory behind.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, errDemoSlow)
	defer cancel()

	s := &show{screen: newScreen(out, giveUp), books: newDemoBooks(), log: newDemoLog()}
	err := s.open(ctx)
	if err == nil {
		err = s.play(ctx, c.Messages)
	}
	if e := s.close(); err == nil && e != nil {
		err = fmt.Errorf("clean up: %w", e)
	}
	if err == nil {
		return nil
	}
	s.endBar()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if w := s.log.warnings(); w != "" && (ctx.Err() == nil || errors.Is(err, errDemoSlow)) {
		fmt.Fprintf(s.w, "\nWarnings of the server meanwhile:\n%s", w)
	}
	return fmt.Errorf("demo: %w", err)
}

var errDemoSlow = fmt.Errorf("not over after %s", demoTimeout)

// show is all that the demo runs.
type show struct {
	*screen
	books   *demoBooks
	log     *demoLog
	dir     string // removed at the end
	dns     *demo.DNS
	primary demo.Primary
	daemon  *daemon
	stop    context.CancelFunc
	ended   chan error // the daemon's end; nil before its start
}

// open sets the stage.
func (s *show) open(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "understudy-demo-"); err != nil {
		return err
	}
	if s.dns, err = demo.StartDNS(demoRecords()...); err != nil {
		return err
	}
	s.primary.Keep = 1 // the hashes do
	if err := s.primary.Start(); err != nil {
		return err
	}
	policy := filepath.Join(s.dir, "policy.toml")
	if err := os.WriteFile(policy, []byte(demoPolicy), 0o600); err != nil {
		return err
	}
	if s.daemon, err = newDaemon(s.config(policy), slog.New(s.log)); err != nil {
		return err
	}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.daemon.run(ctx) }()
	return s.knock(ctx)
}

// knock returns once the server has greeted.
func (s *show) knock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", s.smtp())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, _, err = demo.ReadReply(bufio.NewReader(c))
	return err
}

func (s *show) config(policy string) *config.Config {
	cfg := config.Default()
	cfg.Hostname = "mx2." + demoDomain
	cfg.StateDir = filepath.Join(s.dir, "state")
	cfg.SMTP.Listen = []string{"127.0.0.1:0"}
	cfg.SMTP.XClientFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	cfg.SMTP.ShutdownTimeout = time.Second
	cfg.Primary.Address = s.primary.Addr()
	cfg.Primary.ProbeInterval = 200 * time.Millisecond
	cfg.Primary.MaxConnections = demoConnections
	cfg.Policy.File = policy
	cfg.Queue.MinFree = 16 << 20
	cfg.Queue.MinFreeInodes = 0
	cfg.DNS.Servers = []string{s.dns.Addr()}
	cfg.Metrics.Listen = ""
	return cfg
}

// close ends all that open began, however far it came.
func (s *show) close() error {
	var err error
	if s.ended != nil {
		s.stop()
		err = <-s.ended
	}
	s.primary.Stop()
	if s.dns != nil {
		s.dns.Close()
	}
	if s.dir == "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// play tells the story.
func (s *show) play(ctx context.Context, messages int) error {
	for _, part := range []func(context.Context) error{
		s.playUp,
		s.playDown,
		func(ctx context.Context) error { return s.playArrivals(ctx, messages) },
		s.playQueue,
		s.playDrain,
		s.playHeld,
		s.playSummary,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wait returns once done does, which it asks every 20 ms. It fails when the
// daemon or ctx has ended.
func (s *show) wait(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("the server ended: %w", err)
		}
	}
	return nil
}

// up says that the daemon knows the primary to be up.
func (s *show) up() bool {
	all := s.daemon.relay.Status()
	return len(all) == 1 && all[0].Up
}

// held returns what the queue holds, with the operator's view of it.
func (s *show) held(ctx context.Context) (pairs []demoPair, infos []queue.Info, err error) {
	err = s.daemon.queue.Walk(ctx, func(i queue.Info) error {
		for _, r := range i.Recipients {
			if r.State == "held" {
				pairs = append(pairs, demoPair{s.books.ids[i.ID], r.Address})
				infos = append(infos, i)
			}
		}
		return nil
	})
	return pairs, infos, err
}

// refusedAfterwards is the primary's reply for demoGone.
var refusedAfterwards = envelope.NewReply(550, "5.2.1", "Mailbox closed this morning")
