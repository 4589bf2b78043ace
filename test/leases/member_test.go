package leases

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/relay"
)

// Variables of a member's process.
const (
	memberVariable  = "LEASES_MEMBER"
	dsnVariable     = "LEASES_DSN"
	primaryVariable = "LEASES_PRIMARY"
)

// What would take a minute with a fleet's own times.
const (
	lease      = 600 * time.Millisecond
	adoptAfter = 800 * time.Millisecond
	beat       = 150 * time.Millisecond
	deadAfter  = 600 * time.Millisecond
)

const nextHop = "primary"

func TestMain(m *testing.M) {
	if name := os.Getenv(memberVariable); name != "" {
		if err := member(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// member is a secondary without a door: it accepts messages of its own making until SIGUSR1,
// and relays until SIGTERM. It logs to its standard output.
func member(name string) error {
	log := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	config, err := postgres.ParseDSN(os.Getenv(dsnVariable))
	if err != nil {
		return err
	}
	own := postgres.Opener{Config: config, Password: func() (string, error) { return listertest.Password, nil },
		Member: name, OneMachine: true, Lease: lease, Log: log}
	spool := func(of string) postgres.Opener {
		o := own
		o.Spool = of
		return o
	}
	route := func(string) string { return nextHop }
	met := metrics.New(prometheus.NewRegistry())
	f, err := fleet.New(fleet.Options{Spool: spool, Self: name, Route: route, Says: func() fleet.Says { return fleet.Says{} }, Changed: func() {},
		AdoptAfter: adoptAfter, Beat: beat, DeadAfter: deadAfter, Log: log, Metrics: met})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	f.Beat(ctx)
	var q *queue.Queue
	c := relay.New(relay.Options{Hostname: name, Log: log, Metrics: met, OnUp: func(dest string) { q.Wake(dest) },
		Routes: map[string]relay.Route{nextHop: {Name: nextHop, Address: os.Getenv(primaryVariable), TLS: relay.TLSOff, ProbeInterval: beat}}})
	o := spool(name)
	o.Patience = time.Minute
	if q, err = queue.Open(queue.Options{Store: o, Route: route, Relayer: c, MaxConnections: func(string) int { return 4 }, Log: log, Metrics: met}); err != nil {
		return err
	}
	accepting, last := signal.NotifyContext(ctx, syscall.SIGUSR1)
	defer last()
	var all sync.WaitGroup
	all.Go(func() { c.Run(ctx) })
	all.Go(func() { q.Run(ctx) })
	all.Go(func() { f.Run(ctx, q) })
	for range 4 {
		all.Go(func() { accept(accepting, q, log) })
	}
	all.Go(func() { tell(ctx, q, log) })
	all.Wait()
	return q.Close()
}

// accept takes messages, one in fifty of them with a body outside of the keys.
func accept(ctx context.Context, q *queue.Queue, log *slog.Logger) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		env := &envelope.Envelope{From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "s", Domain: "example.org"}},
			To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "r", Domain: "example.com"}}}}}
		env.Client.Addr = netip.MustParseAddr("192.0.2.1")
		size := 1 + rand.IntN(40)
		if n%50 == 0 {
			size = 5000
		}
		d, err := q.Begin(env)
		if err == nil {
			fmt.Fprintf(d, "X-Message: %s\r\n\r\n%s", d.ID(), strings.Repeat("a line of forty octets, with its CRLF..\r\n", size))
			err = d.Commit(context.Background())
		}
		if err == nil {
			log.Info("accepted", "id", d.ID())
		}
	}
}

// tell logs now and then how much is left here.
func tell(ctx context.Context, q *queue.Queue, log *slog.Logger) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := q.Healthy() // as a daemon's beat does: who has lost the spool notices
		log.Info("left", "messages", q.Stats().Messages, "healthy", err == nil)
	}
}
