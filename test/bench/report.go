package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is all that was measured.
type report struct {
	When    string    `json:"when"`
	Machine string    `json:"machine"`
	Took    string    `json:"took"`
	Appends []float64 `json:"synced_append_ms"` // of 4 KiB, before each cell
	Backlog []figures `json:"backlog"`          // each tenth
	Cells   []result  `json:"cells"`
}

type result struct {
	Cell   string               `json:"cell"`
	Target string               `json:"target,omitempty"`
	Runs   map[string][]figures `json:"runs"` // by peer
	c      cell
}

func (r *report) describe() {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	r.When = time.Now().UTC().Format(time.DateTime)
	r.Machine = fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}

func (r *report) add(c cell, peer string, f figures) {
	at := slices.IndexFunc(r.Cells, func(x result) bool { return x.Cell == c.name })
	if at < 0 {
		at = len(r.Cells)
		r.Cells = append(r.Cells, result{Cell: c.name, Target: c.target, Runs: map[string][]figures{}, c: c})
	}
	runs := r.Cells[at].Runs
	runs[peer] = append(runs[peer], f)
}

func (r *report) save(file string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// spread is a figure's median with its range.
type spread struct{ median, low, high float64 }

func (r *result) of(peer string, figure func(figures) float64) spread {
	var all []float64
	for _, f := range r.Runs[peer] {
		all = append(all, figure(f))
	}
	return spreadOf(all)
}

func spreadOf(all []float64) (s spread) {
	if len(all) == 0 {
		return s
	}
	slices.Sort(all)
	mid := len(all) / 2
	s = spread{all[mid], all[0], all[len(all)-1]}
	if len(all)%2 == 0 {
		s.median = (all[mid-1] + all[mid]) / 2
	}
	return s
}

func (s spread) show(format string) string {
	if s.median == 0 {
		return "–"
	}
	return fmt.Sprintf(format+" ["+format+"–"+format+"]", s.median, s.low, s.high)
}

func ratio(a, b spread, format string) string {
	if a.median == 0 || b.median == 0 {
		return "–"
	}
	return fmt.Sprintf(format, a.median/b.median)
}

func rate(f figures) float64    { return f.Rate }
func cpu(f figures) float64     { return f.CPU }
func amount(f figures) float64  { return f.Written }
func held(f figures) float64    { return f.Resident }
func most(f figures) float64    { return f.Peak }
func commits(f figures) float64 { return f.Commits }
func flushes(f figures) float64 { return f.Flushes }

// print writes the tables in Markdown.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s UTC, %s, %s in all. Medians [min–max]. One writer's synced append of 4 KiB took %s ms.\n\n",
		r.When, r.Machine, r.Took, spreadOf(slices.Clone(r.Appends)).show("%.2f"))
	r.printRates(w)
	fmt.Fprintln(w, "\n| costs | Postfix CPU ms | Understudy CPU ms | Postfix ÷ ours | device flushes, Postfix | ours | our commits | written, Postfix | written, ours | synced before the 250 |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, c := range r.Cells {
		u, p := c.of(understudy, cpu), c.of(postfix, cpu)
		if u.median == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", c.Cell, p.show("%.2f"), u.show("%.3f"), ratio(p, u, "%.1f"),
			one(c.of(postfix, flushes)), one(c.of(understudy, flushes)), one(c.of(understudy, commits)),
			c.of(postfix, amount).show("%.2f"), c.of(understudy, amount).show("%.2f"), cmp.Or(c.c.syncs, "–"))
	}
	fmt.Fprintln(w, "\n| memory, MiB | Postfix PSS | Understudy PSS | Understudy's peak RSS |")
	fmt.Fprintln(w, "| --- | --- | --- | --- |")
	for _, c := range r.Cells {
		if u := c.of(understudy, most); u.median != 0 {
			fmt.Fprintf(w, "| %s | %s | %s | %s |\n", c.Cell, c.of(postfix, held).show("%.0f"), c.of(understudy, held).show("%.0f"), u.show("%.0f"))
		}
	}
	r.printBacklog(w)
}

func (r *report) printRates(w io.Writer) {
	fmt.Fprintln(w, "| messages or sessions a second | Postfix | Understudy | × Postfix | our door, no queue | of it | smtp-sink | of it | target |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, c := range r.Cells {
		u, p := c.of(understudy, rate), c.of(postfix, rate)
		if u.median == 0 && p.median == 0 {
			continue
		}
		d, s, share := c.of(door, rate), c.of(sink, rate), spread{median: 100 * u.median}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", c.Cell, p.show("%.0f"), u.show("%.0f"), ratio(u, p, "**%.1f**"),
			d.show("%.0f"), ratio(share, d, "%.0f %%"), s.show("%.0f"), ratio(share, s, "%.0f %%"), c.Target)
	}
}

// printBacklog tells each tenth of the long backlog.
func (r *report) printBacklog(w io.Writer) {
	if len(r.Backlog) == 0 {
		return
	}
	fmt.Fprintln(w, "\n| queued, random 4 KiB | messages a second | CPU ms | written | PSS, MiB | peak RSS, MiB |")
	fmt.Fprintln(w, "| ---: | ---: | ---: | ---: | ---: | ---: |")
	n := 0
	for _, f := range r.Backlog {
		n += f.Messages
		fmt.Fprintf(w, "| %d | %.0f | %.3f | %.2f | %.0f | %.0f |\n", n, f.Rate, f.CPU, f.Written, f.Resident, f.Peak)
	}
}

func one(s spread) string {
	if s.median == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", s.median)
}
