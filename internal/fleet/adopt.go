package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/understudy-mx/understudy/queue/move"
	"github.com/understudy-mx/understudy/queue/store"
)

// orphan is a member whose mail nobody cares for, "" when there is none.
func (f *Fleet) orphan() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return ""
	}
	for _, m := range f.last {
		silent := m.Seen < 0 || m.Seen >= f.o.AdoptAfter.Seconds()
		// A member whose first beat we wait for may live: the database's clock alone says that it is silent.
		silent = silent && time.Since(f.heard[m.Name].since) >= f.o.DeadAfter
		if m.Name != f.o.Self && silent && m.Holder == "" && m.Messages > 0 && !time.Now().Before(f.resting[m.Name]) {
			return m.Name
		}
	}
	return ""
}

// back says that a member is heard of again.
func (f *Fleet) back(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.last {
		if m.Name == name {
			return m.Alive
		}
	}
	return false
}

// rests leaves a member alone for a while: what is left there can't be moved now.
func (f *Fleet) rests(name string) {
	f.mu.Lock()
	f.resting[name] = time.Now().Add(f.o.AdoptAfter)
	f.mu.Unlock()
}

func (f *Fleet) setAdopts(name string) {
	f.mu.Lock()
	f.adopts = name
	f.mu.Unlock()
}

// adoptOne moves the mail of a dead member here. Of several members that try, the
// first to take the spool has it.
func (f *Fleet) adoptOne(ctx context.Context) {
	name := f.orphan()
	if name == "" {
		if err := f.settleComing(ctx); err != nil && !errors.Is(err, store.ErrReopening) { // the queue says so itself
			f.often.Warn(f.o.Log, "", "a move that was cut short isn't settled", "err", err)
		}
		return
	}
	o := f.o.Spool(name)
	o.Patience = 0
	s, err := o.Open(nil)
	if errors.Is(err, store.ErrLocked) {
		return // another was quicker
	}
	if err != nil {
		f.often.Warn(f.o.Log, name, "spool of a silent member not opened", "member", name, "err", err)
		return
	}
	f.setAdopts(name)
	defer f.setAdopts("")
	f.o.Log.Warn("a member is silent; its mail is moved here", "member", name)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done, err := move.Move{From: s, To: f.queue, Route: f.o.Route, Gently: true, Ask: func(origin, to, id string) (move.Whereabouts, error) {
		return f.ask(ctx, origin, to, id)
	}, Moved: func(n int) {
		f.o.Metrics.FleetAdopted.Add(float64(n))
		if f.back(name) {
			cancel(errBack)
		}
	}}.Run(ctx)
	if context.Cause(ctx) == errBack {
		err = errBack
	}
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	switch {
	case errors.Is(err, errBack):
		f.o.Log.Info("the member is back, and has its spool again", "member", name, "messages", done.Messages)
	case err != nil:
		f.rests(name)
		f.o.Log.Warn("mail of a silent member moved in part; this is tried again", "member", name, "messages", done.Messages, "err", err)
	default:
		f.rests(name)
		f.o.Log.Info("mail of a silent member is here", "member", name, "messages", done.Messages, "quarantined", done.Quarantined, "left", done.Left(), "why", done.Why())
	}
}

var errBack = errors.New("the member is back")

// ask finds out whose a message is that came to one spool from another.
func (f *Fleet) ask(ctx context.Context, origin, to, id string) (move.Whereabouts, error) {
	found, there, movedTo, err := f.members.Ask(ctx, origin, id)
	switch {
	case err != nil:
		return move.Still, err
	case !found:
		return move.Gone, nil
	case there:
		return move.Still, nil
	case movedTo == to:
		return move.Came, nil
	}
	return move.Settled, nil
}

// settleComing ends moves to this queue that were cut short, and whose origin has been
// in service since.
func (f *Fleet) settleComing(ctx context.Context) error {
	here, err := f.queue.Identity()
	if err != nil {
		return err
	}
	for _, origin := range f.queue.Origins() {
		for _, id := range f.queue.Coming(origin) {
			where, err := f.ask(ctx, origin, here, id)
			switch {
			case err != nil:
				return err
			case where == move.Came:
				err = f.queue.Confirm(origin, []string{id}, false)
			case where != move.Gone: // Gone: a directory of this member
				err = f.queue.Forget(origin, []string{id})
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
