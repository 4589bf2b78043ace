// Command fleet tries three secondaries with one database until enough has gone
// wrong: `make fleet`, as root, with Debian's patroni, etcd-server, faketime, iptables and strace.
//
// Three network namespaces stand for three machines. On each runs an etcd, a PostgreSQL under
// Patroni, and a secondary; the primary, a Postfix, and the senders are outside:
//
//	machine 1 (10.99.0.1)  etcd, patroni + postgres, understudy serve
//	machine 2 (10.99.0.2)  …
//	machine 3 (10.99.0.3)  …
//	here (10.99.0.254)     Postfix, senders
//
// The databases' clocks differ by ten minutes each from the start, so that a failover always
// meets another time. One fault after the other is drawn (the seed is printed): see
// faults.go. Each waits until three databases run again, and mail is taken.
//
// In the end everything that was answered 250 must be at the primary, octet for octet. What
// came twice must have done so in one of the documented windows (twice.go), and is counted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	faultsWanted = flag.Int("faults", 200, "how many faults")
	mailWanted   = flag.Int("messages", 100_000, "how many messages at least")
	limit        = flag.Duration("limit", 4*time.Hour, "when to stop and count in any case")
	senders      = flag.Int("senders", 30, "sessions at once")
	rate         = flag.Int("rate", 100, "messages a second")
	seed         = flag.Uint64("seed", 1, "of the order of the faults")
	only         = flag.String("only", "", "faults with this in their names, separated by commas; all by default")
	short        = flag.Bool("short", false, "a few kinds of faults only, and a program with the right time")
	program      = flag.String("understudy", "", "what an earlier run built; by default another is built")
	report       = flag.String("report", "", "a file for the log, beside standard error")
)

func main() {
	flag.Parse()
	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	if *report != "" {
		f, err := os.Create(*report)
		if err != nil {
			return err
		}
		log.SetOutput(io.MultiWriter(os.Stderr, f))
	}
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
	began := time.Now()
	mail, stop := newMail(ctx, s, *senders, *rate)
	counts, failed := play(ctx, s, mail)
	stop()
	took := time.Since(began).Round(time.Second)
	if failed != nil {
		log.Print("no more faults: ", failed)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := errors.Join(failed, count(ctx, s, mail, counts, took)); err != nil {
		return fmt.Errorf("%w; logs in %s", err, dir)
	}
	s.end()
	return os.RemoveAll(dir)
}

// play has one fault after the other happen, and counts them by kind. Each kind comes once
// before any comes again.
func play(ctx context.Context, s *stage, mail *mail) (counts map[string]int, err error) {
	rnd := rand.New(rand.NewPCG(*seed, 0))
	counts = map[string]int{}
	began := time.Now()
	kinds := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool {
		return *short && !f.short || !slices.ContainsFunc(strings.Split(*only, ","), func(part string) bool { return strings.Contains(f.name, part) })
	})
	var left []fault
	for done := 0; time.Since(began) < *limit && (done < *faultsWanted || mail.total() < *mailWanted); done++ {
		if len(left) == 0 {
			left = slices.Clone(kinds)
			rnd.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		}
		f := left[0]
		left = left[1:]
		r := &round{s: s, m: s.machines[rnd.IntN(len(s.machines))], mail: mail, rnd: rnd}
		counts[f.name]++
		start, before, line := time.Now(), mail.total(), ""
		if rnd.IntN(2) == 0 { // it meets a queue
			s.primaryUp(false)
			wait(ctx, shortly, func() bool { return mail.total() >= before+100 })
			line = "; mail waited"
		}
		if err := f.do(ctx, r); err != nil {
			return counts, fmt.Errorf("%s, machine %d: %w", f.name, r.m.n, err)
		}
		lasted := time.Since(start)
		if err := s.recovered(ctx, mail); err != nil {
			return counts, fmt.Errorf("after %s, machine %d: %w", f.name, r.m.n, err)
		}
		s.primaryUp(true)
		log.Printf("%3d %-26s machine %d: %4.1f s, and %4.1f s until all was well; %d of %d messages accepted%s", done+1, f.name, r.m.n,
			lasted.Seconds(), (time.Since(start) - lasted).Seconds(), mail.total()-before, mail.total(), line)
	}
	return counts, nil
}

// recovered waits until the databases are well and mail is taken.
func (s *stage) recovered(ctx context.Context, mail *mail) error {
	var why string
	before := -1
	if !wait(ctx, 2*time.Minute, func() bool {
		ok := false
		if err := s.revive(); err != nil {
			why = err.Error()
		} else if ok, why = s.healthy(); !ok {
			before = -1
		} else if before < 0 {
			before = mail.total()
		}
		return ok && before >= 0 && mail.total() >= before+20
	}) {
		return fmt.Errorf("two minutes later not all is well: %s", why)
	}
	return ctx.Err()
}

// count drains, and compares what was accepted with what the primary has.
func count(ctx context.Context, s *stage, mail *mail, counts map[string]int, took time.Duration) error {
	s.primaryUp(true)
	log.Printf("%d messages in %v; draining", mail.total(), took)
	if !wait(ctx, 5*time.Minute, func() bool { return s.revive() == nil && s.drained() }) {
		log.Print("not drained after five minutes")
	}
	r, err := mail.compare(filepath.Join(s.dir, "postfix/mail/all/new"))
	if err != nil {
		return err
	}
	windows, err := s.explain(r.twice)
	if err != nil {
		return err
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		log.Printf("%5d × %s", counts[name], name)
		total += counts[name]
	}
	log.Printf("faults %d, messages accepted %d, refused for now %d (%d delivered), unanswered %d (%d delivered), in %v", total, mail.total(), len(mail.refused), r.refused, len(mail.unanswered), r.unanswered, took)
	log.Printf("lost %d, changed %d, twice %d:", r.lost, r.changed, len(r.twice))
	for _, name := range slices.Sorted(maps.Keys(windows)) {
		log.Printf("%5d × %s", windows[name], name)
	}
	if r.lost+r.changed+windows[outsideOfAny] > 0 {
		return fmt.Errorf("%d lost, %d changed, %d twice outside of any window", r.lost, r.changed, windows[outsideOfAny])
	}
	return nil
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
