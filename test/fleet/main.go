// Command fleet tries three secondaries with one database until enough has gone
// wrong: `make fleet`, as root, with Debian's patroni and etcd-server.
//
// Three network namespaces stand for three machines. On each runs an etcd, a PostgreSQL under
// Patroni, and a secondary; the primary, a Postfix, and the senders are outside:
//
//	machine 1 (10.99.0.1)  etcd, patroni + postgres, understudy serve
//	machine 2 (10.99.0.2)  …
//	machine 3 (10.99.0.3)  …
//	here (10.99.0.254)     Postfix, senders
//
// A fault is drawn (the seed is printed) every few seconds: see faults in faults.go. In the end
// everything that was answered 250 must be at the primary, octet for octet; what came
// twice is counted.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

var (
	faultsWanted = flag.Int("faults", 200, "how many faults")
	mailWanted   = flag.Int("messages", 100_000, "how many messages at least")
	limit        = flag.Duration("limit", 4*time.Hour, "when to stop and count in any case")
	senders      = flag.Int("senders", 12, "sessions at once")
	seed         = flag.Uint64("seed", 1, "of the order of the faults")
)

func main() {
	flag.Parse()
	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	s, err := newStage(dir)
	defer s.end()
	if err != nil {
		return err
	}
	log.Printf("%s, seed %d", dir, *seed)
	if err := s.start(ctx); err != nil {
		return err
	}
	mail, stop := newMail(ctx, s, *senders)
	began, done := time.Now(), 0
	rnd := rand.New(rand.NewPCG(*seed, 0))
	counts := map[string]int{}
	for ; ctx.Err() == nil && time.Since(began) < *limit && (done < *faultsWanted || mail.total() < *mailWanted); done++ {
		f := faults[rnd.IntN(len(faults))]
		m := s.machines[rnd.IntN(len(s.machines))]
		counts[f.name]++
		if err := s.revive(); err != nil {
			return err
		}
		before := mail.total()
		if err := f.do(ctx, s, m, rnd); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if !wait(ctx, time.Minute, func() bool { return mail.total() >= before+20 }) {
			log.Printf("after %s of machine %d no mail is accepted for a minute", f.name, m.n)
		}
		log.Printf("%d: %s of machine %d; %d messages accepted", done+1, f.name, m.n, mail.total())
	}
	stop()
	s.primaryUp(true)
	log.Printf("%d faults, %d messages in %v; draining", done, mail.total(), time.Since(began).Round(time.Second))
	if !wait(ctx, 10*time.Minute, func() bool { return s.revive() == nil && s.drained() }) {
		log.Print("not drained after ten minutes")
	}
	lost, twice, wrong, err := mail.compare(filepath.Join(dir, "postfix/mail/all/new"))
	if err != nil {
		return err
	}
	fmt.Printf("faults %d %v\nmessages %d (%d refused for now, %d unanswered) in %v\nlost %d\ntwice %d\nchanged %d\n", done, counts, mail.total(), mail.refused, mail.unanswered,
		time.Since(began).Round(time.Second), lost, twice, wrong)
	if lost+wrong > 0 {
		return fmt.Errorf("%d lost, %d changed; logs in %s", lost, wrong, dir)
	}
	return os.RemoveAll(dir)
}

// wait looks until ok, for at most so long.
func wait(ctx context.Context, most time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			return ok()
		case <-tick.C:
		}
	}
	return true
}

// pause waits without a condition: a fault lasts for a while.
func pause(ctx context.Context, d time.Duration) { wait(ctx, d, func() bool { return false }) }
