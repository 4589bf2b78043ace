// Mutants breaks the program in small ways and looks whether a test notices: a
// change that none does is a missing test.
//
// All mutants of a package are compiled into one test binary, each behind a
// switch (m(7) in the source that the compiler sees; the tree isn't touched), so
// that one costs a run and no build. A first run of each test by itself tells
// which tests reach which mutants; a mutant is then met by those tests alone,
// the quick ones first. Which mutants are tried depends on the seed and on their
// own text, not on their neighbours'.
//
//	go run ./test/mutants -n 60 ./sync ./queue+./queue/move
//
// The tests of ./queue/move may notice what becomes of ./queue as well.
//
// Survivors that can't be noticed, or needn't be, are explained in
// equivalent.txt. It exits 0 when all are, and no line there is stale: about a
// mutant that is gone, or that a test does notice.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	n := flag.Int("n", 60, "mutants of each package")
	seed := flag.String("seed", "1", "which ones")
	only := flag.String("only", "", "none but those whose description contains this")
	files := flag.String("files", "", "none but those of files whose name matches this")
	run := flag.String("run", "^Test", "the tests that may notice")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0)+1, "how many are tried at a time: some hang until their time is over")
	list := flag.String("explained", "test/mutants/equivalent.txt", "survivors with their reasons")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	reasons, err := readReasons(*list)
	if flag.NArg() == 0 {
		err = errors.New("name the directories of packages, such as ./sync")
	}
	failing := 0
	for _, dirs := range flag.Args() {
		if err != nil {
			break
		}
		var left int
		left, err = try(ctx, os.Stdout, strings.Split(dirs, "+"), selection{*n, *workers, *seed, *only, *files, *run}, reasons)
		failing += left
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if failing > 0 {
		os.Exit(1)
	}
}

// readReasons reads lines of "file: mutation # reason".
func readReasons(name string) (map[string]bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	reasons := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		what, why, found := strings.Cut(s.Text(), " # ")
		if found && strings.TrimSpace(why) != "" {
			reasons[strings.TrimSpace(what)] = true
		}
	}
	return reasons, nil
}

// selection says which mutants are tried, and by which tests.
type selection struct {
	n, workers             int
	seed, only, files, run string
}

// try tries the mutants of the first package by the tests of all and returns how
// many survive unexplained, and how many explanations are stale.
func try(ctx context.Context, out io.Writer, dirs []string, s selection, reasons map[string]bool) (failing int, err error) {
	start, dir := time.Now(), dirs[0]
	temp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(temp)
	p, err := load(ctx, dir)
	if err != nil {
		return 0, err
	}
	all := len(p.mutants)
	for what := range reasons {
		file, _, _ := strings.Cut(what, ": ")
		if filepath.Dir(file) == filepath.Clean(dir) && !slices.ContainsFunc(p.mutants, func(m *mutant) bool { return m.what == what }) {
			failing++
			fmt.Fprintf(out, "%-9s %s: there is no such mutant\n", stale, what)
		}
	}
	if err := p.choose(s); err != nil {
		return 0, err
	}
	var tests []test
	for i, d := range dirs {
		b := &binary{name: filepath.Join(temp, fmt.Sprint("test", i)), dir: d}
		if err := p.compile(ctx, temp, b.name, d); err != nil {
			return 0, err
		}
		more, err := b.reach(ctx, s.run, s.workers)
		if err != nil {
			return 0, err
		}
		tests = append(tests, more...)
	}
	p.mutants = p.mutants[:min(s.n, len(p.mutants))]
	slices.SortFunc(tests, func(x, y test) int { return cmp.Or(int(x.took-y.took), strings.Compare(x.name, y.name)) })
	fmt.Fprintf(out, "%s: %d of %d mutants, %d tests reach some, after %s\n", dir, len(p.mutants), all, len(tests), time.Since(start).Round(time.Second))
	count, err := meetAll(ctx, out, p.mutants, tests, s.workers, reasons)
	left := count[survived] + count[unmet]
	fmt.Fprintf(out, "%s: %d mutants, %d killed, %d explained, %d survive, %d of them met by no test, %d stale, %s\n", dir, len(p.mutants),
		count[killed], count[explained], left, count[unmet], failing+count[stale], time.Since(start).Round(time.Second))
	return failing + left + count[stale], err
}

// meetAll tries mutants, some at a time, and counts what becomes of them.
func meetAll(ctx context.Context, out io.Writer, mutants []*mutant, tests []test, workers int, reasons map[string]bool) (map[string]int, error) {
	var mu sync.Mutex // guards count and out
	count := map[string]int{}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(workers)
	for _, m := range mutants {
		work.Go(func() error {
			result, by, err := meet(ctx, m.id, tests)
			if err != nil {
				return err
			}
			switch {
			case reasons[m.what] && result == killed:
				result = stale
			case reasons[m.what]:
				result = explained
			}
			mu.Lock()
			defer mu.Unlock()
			count[result]++
			fmt.Fprintf(out, "%-9s line %d of %s %s\n", result, m.line, m.what, by)
			return nil
		})
	}
	err := work.Wait()
	return count, err
}

// What becomes of a mutant.
const (
	killed    = "killed"
	survived  = "SURVIVED"
	unmet     = "UNMET"     // survived: no test comes by
	explained = "explained" // survived, and equivalent.txt says why
	stale     = "STALE"     // killed, and equivalent.txt says why it survives
)

// binary is the test binary with all mutants.
type binary struct{ name, dir string }

// test is a test that reaches mutants.
type test struct {
	in      *binary
	name    string
	took    time.Duration
	reaches map[int]bool
}

// run runs tests against a mutant, 0 for none. What they reach goes to the file
// log, unless that is "".
func (b *binary) run(ctx context.Context, mutant int, pattern string, limit time.Duration, log string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.name, "-test.short", "-test.failfast", "-test.timeout", limit.String(), "-test.run", pattern)
	cmd.Dir = b.dir
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), fmt.Sprint("MUTANT=", mutant), "MUTANTS_REACHED="+log)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// reach runs each test by itself without a mutant.
func (b *binary) reach(ctx context.Context, pattern string, workers int) (tests []test, err error) {
	cmd := exec.CommandContext(ctx, b.name, "-test.list", pattern)
	cmd.Dir = b.dir
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list tests of %s: %w", b.dir, err)
	}
	var mu sync.Mutex // guards tests
	var work errgroup.Group
	work.SetLimit(workers)
	for _, name := range strings.Fields(string(list)) {
		if !strings.HasPrefix(name, "Test") {
			continue
		}
		work.Go(func() error {
			log := b.name + "-reached-" + name
			start := time.Now()
			if out, err := b.run(ctx, 0, "^"+name+"$", 10*time.Minute, log); err != nil {
				fmt.Fprintf(os.Stderr, "%s: left out, it fails without a mutant: %v\n%s\n", name, err, out[max(0, len(out)-500):])
				return nil
			}
			t := test{b, name, time.Since(start), map[int]bool{}}
			reached, _ := os.ReadFile(log) // there is none when it reaches nothing
			for _, f := range strings.Fields(string(reached)) {
				var id int
				if _, err := fmt.Sscan(f, &id); err == nil {
					t.reaches[id] = true
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if len(t.reaches) > 0 {
				tests = append(tests, t)
			}
			return nil
		})
	}
	_ = work.Wait()
	return tests, ctx.Err()
}

// quick is how long the tests of a batch take together, at least.
const quick = 2 * time.Second

// meet lets the tests that reach a mutant meet it, until one kills it.
func meet(ctx context.Context, id int, tests []test) (result, by string, err error) {
	tests = slices.DeleteFunc(slices.Clone(tests), func(t test) bool { return !t.reaches[id] })
	if len(tests) == 0 {
		return unmet, "", ctx.Err()
	}
	var batch []string
	var took time.Duration
	for i, t := range tests {
		batch = append(batch, t.name)
		took += t.took
		if took < quick && i+1 < len(tests) && tests[i+1].in == t.in {
			continue
		}
		if by := t.in.kill(ctx, id, batch, 5*took+5*time.Second); by != "" {
			return killed, "by " + by, ctx.Err()
		}
		batch, took = nil, 0
	}
	return survived, "", ctx.Err()
}

// kill says which of some tests kills a mutant. Under load a test may fail of
// its own: so it has to fail twice, and where all that is known is that they
// didn't end well, they must do so without the mutant.
func (b *binary) kill(ctx context.Context, id int, batch []string, limit time.Duration) (by string) {
	pattern := "^(" + strings.Join(batch, "|") + ")$"
	for range 2 {
		out, err := b.run(ctx, id, pattern, limit, "")
		if err == nil {
			return ""
		}
		before := by
		if by = failing(out); by != "" && by == before {
			return by
		}
		if by == "" { // a panic, a time-out, or TestMain
			if _, err := b.run(ctx, 0, pattern, limit, ""); err == nil {
				return strings.Join(batch, " ")
			}
			limit *= 2
			continue
		}
		if _, err := b.run(ctx, id, "^"+by+"$", limit, ""); err != nil {
			return by
		}
	}
	return ""
}

// failing finds the test that failed.
func failing(out string) string {
	for line := range strings.Lines(out) {
		if rest, found := strings.CutPrefix(line, "--- FAIL: "); found {
			name, _, _ := strings.Cut(rest, " ")
			return name
		}
	}
	return ""
}
