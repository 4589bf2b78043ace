package pushed

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// Result is what a push has done.
type Result struct {
	ETag    string  `json:"etag"`
	Count   int     `json:"count"`
	Changed bool    `json:"changed"`
	Staged  *Staged `json:"staged,omitempty"`
}

// Replace takes a whole list from read, which adds addresses in any order and
// returns an error if they aren't all there: then nothing is changed. match is the
// ETag of the list that it replaces, "" for any.
func (s *Store) Replace(domain, match string, read func(add func(addr string) error) error) (Result, error) {
	return s.change(domain, match, func(l *list, w *writer) error {
		in := &sorter{l: l, most: s.MaxEntries()}
		defer in.close()
		if err := read(func(text string) error {
			addr, err := Address(text, domain)
			if err != nil {
				return err
			}
			return in.add(addr)
		}); err != nil {
			return err
		}
		return in.each(w.add)
	})
}

// Change adds addresses to the list that match names, and removes some.
func (s *Store) Change(domain, match string, added, removed []string) (Result, error) {
	if match == "" {
		return Result{}, ErrETag
	}
	for _, list := range [][]string{added, removed} {
		for i := range list {
			var err error
			if list[i], err = Address(list[i], domain); err != nil {
				return Result{}, err
			}
		}
		slices.Sort(list)
	}
	for _, a := range removed {
		if _, both := slices.BinarySearch(added, a); both {
			return Result{}, fmt.Errorf("%w: %.80q is both added and removed", ErrContent, a)
		}
	}
	return s.change(domain, match, func(l *list, w *writer) error {
		old, err := l.walk(listFile)
		if err != nil {
			return err
		}
		defer old.close()
		add := slices.Compact(slices.Clone(added))
		put := func(addr string) error {
			if w.n >= s.MaxEntries() {
				return ErrTooLong
			}
			return w.add(addr)
		}
		for err = old.next(); err == nil; err = old.next() {
			for len(add) > 0 && add[0] < old.line && err == nil {
				err, add = put(add[0]), add[1:]
			}
			if len(add) > 0 && add[0] == old.line {
				add = add[1:]
			}
			if _, gone := slices.BinarySearch(removed, old.line); !gone && err == nil {
				err = put(old.line)
			}
			if err != nil {
				return err
			}
		}
		for err == io.EOF && len(add) > 0 {
			if e := put(add[0]); e != nil {
				return e
			}
			add = add[1:]
		}
		if err != io.EOF {
			return err
		}
		return nil
	})
}

// change has write make the new list, and puts it in place of the old.
func (s *Store) change(domain, match string, write func(*list, *writer) error) (r Result, err error) {
	l := s.list(domain)
	if l == nil {
		return r, ErrUnknown
	}
	if !l.writes.TryLock() {
		return r, ErrBusy
	}
	defer l.writes.Unlock()
	st := l.get()
	if match != "" && match != st.ETag {
		return r, ErrETag
	}
	w, err := l.create()
	if err != nil {
		return r, err
	}
	defer s.o.disk.Remove(w.f.Name())
	if err = write(l, w); err == nil && w.n == 0 {
		err = fmt.Errorf("%w: it is empty", ErrContent)
	}
	if err != nil {
		return r, errors.Join(err, w.f.Close())
	}
	etag, err := w.finish()
	if err != nil {
		return r, err
	}
	if etag == st.Rejected {
		return r, ErrRejected
	}
	changed := etag != st.ETag
	if changed || st.Staged != nil { // staged: a crash may have come before the list
		err = l.install(&st, w.f.Name(), etag, w.n)
	}
	if err == nil {
		st.Pushed = s.o.Now().UTC().Truncate(time.Second)
		err = l.commit(st)
	}
	return Result{etag, w.n, changed, st.Staged}, err
}

// install puts a new list in place of the old: first what must not be lost if
// a crash comes between, then the list.
func (l *list) install(st *state, temp, etag string, n int) error {
	d, now := l.store.o.disk, l.store.o.Now().UTC().Truncate(time.Second)
	staged, err := l.guard(st, temp)
	if err != nil {
		return err
	}
	since := now
	if st.Staged != nil {
		since = st.Staged.Since
	}
	if err := l.rebase(st, now, staged != nil); err != nil {
		return err
	}
	st.Staged = staged
	if staged != nil {
		staged.Since = since
		held, err := d.Exists(l.path(heldFile))
		if err == nil && !held {
			err = errors.Join(d.Link(l.path(listFile), l.path(heldFile)), d.SyncDir(l.store.o.Dir))
		}
		if err == nil {
			err = l.put(*st)
		}
		if err == nil {
			err = l.mark(*st)
		}
		if err != nil {
			return err
		}
	}
	if err := d.Rename(temp, l.path(listFile)); err != nil {
		return err
	}
	if err := d.SyncDir(l.store.o.Dir); err != nil {
		return err
	}
	if st.ETag != etag {
		st.ETag, st.Count, st.Changed, st.Rejected = etag, n, now, ""
	}
	return nil
}

// guard compares the new list with those that count: the list before, the one
// before a staged deletion, and that at the window's begin.
func (l *list) guard(st *state, temp string) (*Staged, error) {
	if l.store.o.Unguarded {
		return nil, nil
	}
	var worst *Staged
	for _, ending := range []string{listFile, heldFile, baseFile} {
		removed, of, err := l.lost(ending, temp)
		if err != nil {
			return nil, err
		}
		if removed > 0 && (2*removed >= of || removed > minDeletion && removed*100 > of*deletionPct) && (worst == nil || removed > worst.Removed) {
			worst = &Staged{Removed: removed, Of: of}
		}
	}
	return worst, nil
}

// lost counts the addresses of a list that a new one lacks.
func (l *list) lost(ending, temp string) (removed, of int, err error) {
	old, err := l.walk(ending)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer old.close()
	now, err := l.open(temp)
	if err != nil {
		return 0, 0, err
	}
	defer now.close()
	more := now.next() // the header
	if more == nil {
		more = now.next()
	}
	for err = old.next(); err == nil; err = old.next() {
		of++
		for more == nil && now.line < old.line {
			more = now.next()
		}
		if more != nil || now.line != old.line {
			removed++
		}
	}
	if err == io.EOF {
		err = nil
	}
	if more != nil && more != io.EOF {
		err = errors.Join(err, more)
	}
	return removed, of, err
}

// rebase moves the lists with which deletions are compared on, so that a list can't
// be removed in slices. The state goes first: a crash then leaves an older list,
// which is stricter.
func (l *list) rebase(st *state, now time.Time, staged bool) error {
	if st.ETag == "" || st.BaseAt.IsZero() || st.NextAt.After(now) {
		st.BaseAt, st.NextAt = now, now
		if st.ETag == "" {
			return nil
		}
		return l.forgetDeletions()
	}
	d := l.store.o.disk
	base, err := d.Exists(l.path(baseFile))
	if err != nil {
		return err
	}
	if !base {
		return l.forgetDeletions()
	}
	if now.Sub(st.NextAt) < window || staged {
		return nil
	}
	st.BaseAt, st.NextAt = st.NextAt, now
	if err := l.put(*st); err != nil {
		return err
	}
	if err := d.Rename(l.path(nextFile), l.path(baseFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.Link(l.path(listFile), l.path(nextFile))
}

// forgetDeletions has deletions compared with the list in force.
func (l *list) forgetDeletions() error {
	d := l.store.o.disk
	return errors.Join(d.Link(l.path(listFile), l.path(baseFile)), d.Link(l.path(listFile), l.path(nextFile)))
}

var errNothing = errors.New("no deletion waits for a decision")

// Approve lets a staged deletion take effect.
func (s *Store) Approve(domain string) error {
	return s.decide(domain, func(l *list, st *state) error {
		st.BaseAt, st.NextAt, st.Rejected = s.o.Now(), s.o.Now(), "" // Reject may have been cut short
		return l.forgetDeletions()
	})
}

// Reject puts the list before a staged deletion back, and refuses the one with the
// deletion from now on.
func (s *Store) Reject(domain string) error {
	return s.decide(domain, func(l *list, st *state) error {
		etag, n, err := l.sum(heldFile)
		if err != nil {
			return err
		}
		d, temp := s.o.disk, filepath.Join(s.o.Dir, tempPrefix+domain)
		st.Rejected = st.ETag
		if err := l.put(*st); err != nil {
			return err
		}
		if err := errors.Join(d.Link(l.path(heldFile), temp), d.Rename(temp, l.path(listFile))); err != nil {
			return err
		}
		st.ETag, st.Count, st.Changed = etag, n, s.o.Now().UTC().Truncate(time.Second)
		return d.SyncDir(s.o.Dir)
	})
}

func (s *Store) decide(domain string, do func(*list, *state) error) error {
	l := s.list(domain)
	if l == nil {
		return ErrUnknown
	}
	l.writes.Lock()
	defer l.writes.Unlock()
	st := l.get()
	if st.Staged == nil {
		return errNothing
	}
	if err := do(l, &st); err != nil {
		return err
	}
	st.Staged = nil
	return l.commit(st)
}
