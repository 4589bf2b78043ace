// Command bench measures Understudy beside a real Postfix in the same role, on
// one machine and in one run: a backup MX with a list of 10,000 recipients,
// whose primary is down and then comes back. Every cell is run by turns (A B A
// B); what counts are the ratios within one run, of medians.
//
// Load comes from Postfix's own smtp-source. Understudy runs whole: the policy
// imported from that Postfix's main.cf, metrics and a log file. Two ceilings are
// taken in the same turns: our door with a spool that forgets, and smtp-sink,
// which is as fast as smtp-source gets.
//
// It needs root, Postfix and ports of the loopback, and writes a table to
// standard output and JSON to -json.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// bench is one run of the program.
type bench struct {
	full   bool
	rounds int
	within time.Duration // 0: as long as it takes
	only   *regexp.Regexp
	dir    string // scratch, for spools and logs
	binary string // understudy
	runs   int    // number of the spool to come
	dns    string
	report report
}

func main() {
	log.SetFlags(0)
	b := &bench{}
	only := flag.String("only", "", "run only the cells whose name matches this `regexp`")
	out := flag.String("json", "bench.json", "write all figures to this `file`")
	flag.StringVar(&b.binary, "understudy", "", "measure this `binary`; default: built from the source")
	flag.StringVar(&b.dir, "dir", "", "put the spools below this `directory`; default: a temporary one")
	flag.BoolVar(&b.full, "full", false, "more messages, more rounds, and Postfix's best over a long link")
	doorOf := flag.String("door", "", "serve the policy in this `file` at -addr, and keep nothing: how the benchmark starts one of its peers")
	addr := flag.String("addr", "", "see -door")
	dns := flag.String("dns", "", "see -door")
	channel := flag.Bool("sync", false, "measure the policy channel instead, beside rsync and postmap")
	live := flag.Bool("live", false, "measure sessions that are played through to the primary instead")
	primaryAt := flag.String("primary", "", "be a primary at this `address`: how the benchmark starts one of its peers")
	betweenOf := flag.String("between", "", "pass sessions at -addr on to the primary at this `address`: how the benchmark starts one of its peers")
	flag.IntVar(&b.rounds, "rounds", 0, "rounds of each cell; default 3, with -full 5")
	all := flag.Bool("all", false, "measure the daemon beside Postfix, and live sessions, too")
	flag.DurationVar(&b.within, "within", 0, "leave out later rounds of cells that would end after this `time`")
	flag.Parse()
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		log.Fatal(err)
	}
	if b.rounds == 0 {
		b.rounds = 3
		if b.full {
			b.rounds = 5
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case *doorOf != "":
		err = serveDoor(ctx, *doorOf, *addr, *dns)
	case *primaryAt != "":
		err = servePrimary(ctx, *primaryAt)
	case *betweenOf != "":
		err = serveBetween(ctx, *addr, *betweenOf)
	default:
		err = b.main(ctx, *channel, *live, *all, *out)
	}
	if err != nil {
		log.Print(err)
		stop()
		os.Exit(1)
	}
}

// main measures, and writes what came of it.
func (b *bench) main(ctx context.Context, channel, live, all bool, out string) error {
	measure, print := b.cellsOf(b.cells()), b.report.print
	switch {
	case channel:
		measure, print = b.channel, b.report.printSync
	case live:
		measure, print = b.cellsOf(liveCells()), b.report.printLive
	case all:
		measure, print = b.cellsOf(append(b.cells(), liveCells()...)), func(w io.Writer) {
			b.report.print(w)
			fmt.Fprintln(w)
			b.report.printLive(w)
		}
	}
	if err := b.run(ctx, measure); err != nil {
		return err
	}
	print(os.Stdout)
	return b.report.save(out)
}

func (b *bench) run(ctx context.Context, measure func(context.Context) error) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("run this as root: Postfix's master needs it")
	}
	dir, err := os.MkdirTemp(b.dir, "understudy-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	b.dir = dir
	if b.binary == "" {
		b.binary = filepath.Join(dir, "understudy")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "./cmd/understudy").CombinedOutput(); err != nil {
			return fmt.Errorf("build understudy: %w\n%s", err, out)
		}
	}
	b.report.describe()
	start := time.Now()
	err = measure(ctx)
	b.report.Took = time.Since(start).Round(time.Second).String()
	return err
}

// cellsOf measures cells, round by round: the time that -within gives goes first
// to one round of each.
func (b *bench) cellsOf(cells []cell) func(context.Context) error {
	return func(ctx context.Context) error {
		stopDNS, err := b.startDNS()
		if err != nil {
			return err
		}
		defer stopDNS()
		began, took := time.Now(), map[string]time.Duration{}
		for round := range b.rounds {
			for _, c := range cells {
				start := time.Now()
				switch {
				case !b.only.MatchString(c.name), c.rounds > 0 && round >= c.rounds:
					continue
				case b.within > 0 && start.Sub(began)+took[c.name] > b.within:
					continue
				}
				if err := b.cell(ctx, c, round); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				took[c.name] = time.Since(start)
			}
		}
		return nil
	}
}

// cell runs one round of a cell, the peers by turns.
func (b *bench) cell(ctx context.Context, c cell, round int) error {
	append4K, err := syncedAppend(b.dir)
	if err != nil {
		return err
	}
	b.report.Appends = append(b.report.Appends, append4K.Seconds()*1000)
	for _, kind := range c.peers {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := b.once(ctx, c, kind)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		f.Round = round
		b.report.add(c, kind, f)
		log.Printf("%-34s %-10s %s", c.name, kind, f)
	}
	return nil
}

// patience bounds one run of a cell.
const patience = 6 * time.Minute

// once starts a peer with an empty spool, measures and stops it.
func (b *bench) once(ctx context.Context, c cell, kind string) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b.runs++
	dir := filepath.Join(b.dir, fmt.Sprint("run", b.runs))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return figures{}, err
	}
	defer os.RemoveAll(dir)
	p, err := b.newPeer(ctx, c, kind, dir)
	if err != nil {
		return figures{}, err
	}
	if err := p.start(); err != nil {
		return figures{}, err
	}
	defer p.stop()
	if kind == through {
		if err := p.settled(ctx); err != nil {
			return figures{}, err
		}
	}
	f, err := c.measure(ctx, b, p, c)
	if err != nil {
		if tail, rerr := os.ReadFile(filepath.Join(dir, "log")); rerr == nil {
			err = fmt.Errorf("%w\n%s", err, tail[max(0, len(tail)-2000):])
		}
	}
	return f, err
}
