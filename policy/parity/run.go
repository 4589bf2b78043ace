package parity

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Options say what to compare.
type Options struct {
	Primary, Local Dialer
	Material       *Material
	Sessions       int
	Seed           uint64
	Parallel       int // sessions at once; 1 when 0
	// Even, if not nil, makes two replies alike that count as such: codes and texts
	// that differ between two programs.
	Even func(primary, local *Reply)
	// Observe, if not nil, is called from several goroutines with session n, the
	// primary's replies and the Difference, if any. When it returns true the
	// Difference doesn't count.
	Observe func(n int, s Session, d *Difference, primary Transcript) (explained bool)
}

// Result is what a run found.
type Result struct {
	Sessions    int
	Decisions   int // replies that were compared
	Differences int
	Distinct    []Difference // one of each kind, as short as it can be
}

// maxDistinct bounds the differences that are kept and made shorter.
const maxDistinct = 50

// Nth is session n of a seed's.
func (m *Material) Nth(seed uint64, n int) Session {
	return m.session(rand.New(rand.NewPCG(seed, uint64(n))))
}

// Run plays sessions and compares. The error says that one of the servers can't be
// asked; the Result counts the sessions before that.
func Run(ctx context.Context, o Options) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var mu sync.Mutex // guards res and kinds
	var res Result
	kinds := map[string]bool{}
	var wg sync.WaitGroup
	for range max(1, o.Parallel) {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := int(next.Add(1)) - 1
				if n >= o.Sessions {
					return
				}
				d, differs, err := o.compare(ctx, n)
				if err != nil {
					cancel(fmt.Errorf("session %d: %w", n, err))
					return
				}
				mu.Lock()
				res.add(d, differs, kinds)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	err := context.Cause(ctx)
	for i := range res.Distinct {
		if err == nil {
			err = o.minimise(context.WithoutCancel(ctx), &res.Distinct[i])
		}
	}
	return res, err
}

func (r *Result) add(d Difference, differs bool, kinds map[string]bool) {
	r.Sessions++
	r.Decisions += min(len(d.Primary), len(d.Local))
	if !differs {
		return
	}
	r.Differences++
	if k := d.signature(); !kinds[k] && len(r.Distinct) < maxDistinct {
		kinds[k] = true
		r.Distinct = append(r.Distinct, d)
	}
}

// compare plays session n on both.
func (o *Options) compare(ctx context.Context, n int) (d Difference, differs bool, err error) {
	d.Session = o.Material.Nth(o.Seed, n)
	if err := o.both(ctx, &d); err != nil {
		return d, false, err
	}
	differs = at(d.Primary, d.Local) >= 0
	if o.Observe != nil {
		seen := &d
		if !differs {
			seen = nil
		}
		differs = !o.Observe(n, d.Session, seen, d.Primary) && differs
	}
	return d, differs, nil
}

func (o *Options) both(ctx context.Context, d *Difference) error {
	var err error
	if d.Primary, err = o.Primary.Play(ctx, d.Session); err != nil {
		return fmt.Errorf("primary: %w", err)
	}
	if d.Local, err = o.Local.Play(ctx, d.Session); err != nil {
		return fmt.Errorf("local: %w", err)
	}
	even(o.Even, d.Primary, d.Local)
	return nil
}

func even(how func(primary, local *Reply), primary, local Transcript) {
	for i := range min(len(primary), len(local)) {
		if how != nil {
			how(&primary[i], &local[i])
		}
	}
}

// minimise leaves out of a differing session what it can, as long as the two
// still differ in the same way.
func (o *Options) minimise(ctx context.Context, d *Difference) error {
	kind := d.signature()
	try := func(s Session) (bool, error) {
		c := Difference{Session: s}
		if err := o.both(ctx, &c); err != nil {
			return false, err
		}
		if at(c.Primary, c.Local) < 0 || c.signature() != kind {
			return false, nil
		}
		*d = c
		return true, nil
	}
	// Every cut is tried from the end, where most of the rest is.
	for i := len(d.Session.Commands) - 1; i >= 0; i-- {
		cs := d.Session.Commands
		if i >= len(cs) {
			continue
		}
		s := d.Session
		s.Commands = append(append([]Command(nil), cs[:i]...), cs[i+1:]...)
		if _, err := try(s); err != nil {
			return err
		}
	}
	plain := d.Session
	plain.Client.Name, plain.Client.Reverse = "", ""
	if plain.Client != d.Session.Client && !plain.Proxied {
		_, err := try(plain)
		return err
	}
	return nil
}

// Check plays a recorded session on one server and returns the Difference, if
// there is one.
func Check(ctx context.Context, d Dialer, s Session, primary Transcript) (*Difference, error) {
	local, err := d.Play(ctx, s)
	if err != nil {
		return nil, err
	}
	if at(primary, local) < 0 {
		return nil, nil
	}
	return &Difference{Session: s, Primary: primary, Local: local}, nil
}

// Print writes the differences and, last, the counts.
func (r Result) Print(w io.Writer) error {
	for i := range r.Distinct {
		fmt.Fprintf(w, "difference %d:\n%s\n", i+1, r.Distinct[i].String())
	}
	if n := r.Differences - len(r.Distinct); n > 0 && len(r.Distinct) > 0 {
		fmt.Fprintf(w, "%d more sessions differ in the same ways\n", n)
	}
	_, err := fmt.Fprintf(w, "sessions %d, decisions %d, differences %d\n", r.Sessions, r.Decisions, r.Differences)
	return err
}
