package postfix

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/lister"
)

// listLDAP lists a table, as far as its directory says that anything has changed
// since the last time.
func (d *Database) listLDAP(ctx context.Context, l Lister, hints []string) (t *Table, err error) {
	before := d.memo.of(d.Table)
	if before != nil && (!before.fits(d) || time.Since(before.full) > askAgain) {
		before = nil
	}
	err = l.Directory(ctx, d, func(dir Directory) error {
		var now map[string]string
		if d.memo != nil {
			if now, err = d.Search.state(dir); err != nil {
				return err
			}
		}
		if t = before.same(d, now); t != nil {
			return nil
		}
		r, err := d.Search.changed(dir, before, now)
		if r == nil && err == nil {
			r, err = d.Search.anew(dir, now, hints)
		}
		if err != nil {
			return err
		}
		t = r.table
		d.memo.keep(d.Table, r)
		return nil
	})
	return t, err
}

// state are the directory's marks of the table's part of it: of all of it where
// results or aliases lead elsewhere.
func (se *Search) state(dir Directory) (map[string]string, error) {
	base := se.listBase
	if se.leadsElsewhere() {
		base = ""
	}
	state, err := dir.State(base)
	if state == "" {
		return nil, err
	}
	return map[string]string{base: state}, err
}

func (se *Search) leadsElsewhere() bool {
	return len(se.result.special) > 0 || !slices.Contains([]string{"", "0"}, se.db.Settings["dereference"])
}

// anew lists all of the table.
func (se *Search) anew(dir Directory, now map[string]string, hints []string) (*remembered, error) {
	x, t := newExpansion(dir, se), &Table{Type: se.db.Type, Kind: Indexed, Entries: map[string]string{}}
	// Where more than an entry's own attributes decides about its keys, what
	// changed doesn't tell which.
	if now != nil && !se.leadsElsewhere() && len(se.dns) == 0 && !se.whole {
		x.behind, x.more = map[lister.UUID][]asked{}, []string{"entryUUID"}
	}
	if err := se.list(x, t, hints); err != nil {
		return nil, err
	}
	return &remembered{db: se.db, stamps: now, table: t, behind: x.behind, full: time.Now()}, nil
}

// note remembers which keys an entry may answer to.
func (x *expansion) note(e lister.Entry, keys map[asked]certainty) {
	if x.behind == nil {
		return
	}
	id, ok := uuidOf(e)
	if !ok || len(x.behind) >= maxRemembered {
		x.behind = nil
		return
	}
	if list := possible(keys); len(list) > 0 {
		x.behind[id] = list
	}
}

func uuidOf(e lister.Entry) (id lister.UUID, ok bool) {
	values := e.Values("entryUUID")
	if len(values) != 1 {
		return id, false
	}
	octets, err := hex.DecodeString(strings.ReplaceAll(values[0], "-", ""))
	return id, err == nil && copy(id[:], octets) == len(octets) && len(octets) == len(id)
}

func possible(keys map[asked]certainty) (list []asked) {
	for k, holds := range keys {
		if holds != surelyNot {
			list = append(list, k)
		}
	}
	return list
}

// changed brings a listing up to date: it asks for the keys of the entries that
// came, went or changed. nil: all has to be listed.
func (se *Search) changed(dir Directory, before *remembered, now map[string]string) (*remembered, error) {
	base := se.listBase
	if before == nil || before.behind == nil || now[base] == "" || before.table.Partial != "" || len(before.table.Unknown) > 0 {
		return nil, nil
	}
	if _, err := se.resolve(dir); err != nil {
		return nil, unlessFull(err)
	}
	touched, fresh := map[asked]bool{}, map[lister.UUID][]asked{}
	const most = 2000 // beyond it, listing is quicker
	touch := func(keys []asked) error {
		for _, k := range keys {
			touched[k] = true
		}
		if len(touched) > most {
			return errTooMany
		}
		return nil
	}
	_, filter := se.finds()
	search := lister.Search{Base: base, Scope: se.scope, Filter: filter, Attributes: se.attributes()}
	gone, err := dir.Changes(search, before.stamps[base], func(id lister.UUID, e lister.Entry) error {
		keys, err := se.answers(e, ^uint64(0))
		if err != nil {
			return err
		}
		fresh[id] = possible(keys)
		return cmp.Or(touch(fresh[id]), touch(before.behind[id]))
	})
	if err != nil {
		return nil, unlessFull(err)
	}
	behind := maps.Clone(before.behind)
	for id, keys := range before.behind {
		if fresh[id] == nil && gone(id) {
			if err := touch(keys); err != nil {
				return nil, unlessFull(err)
			}
			delete(behind, id)
		}
	}
	maps.Copy(behind, fresh)
	t, err := se.askTouched(dir, before.table, touched)
	if t == nil || err != nil {
		return nil, err
	}
	return &remembered{db: se.db, stamps: now, table: t, behind: behind, full: before.full}, nil
}

// unlessFull passes over errors that say that all has to be listed.
func unlessFull(err error) error {
	if errors.Is(err, lister.ErrRefused) || errors.Is(err, errTooMany) || errors.As(err, new(errInexact)) {
		return nil
	}
	return err
}

// askTouched asks anew for some keys of a table. nil: a look-up fails.
func (se *Search) askTouched(dir Directory, old *Table, touched map[asked]bool) (*Table, error) {
	x, t := newExpansion(dir, se), *old
	t.Entries = maps.Clone(old.Entries)
	for k := range touched {
		delete(t.Entries, k.key)
		if err := x.ask(k); err != nil {
			return nil, err
		}
	}
	t.How = Listing{Exact: true, Put: old.How.Put, Asked: len(touched)}
	if err := x.finish(&t); err != nil || len(t.Unknown) > 0 {
		return nil, err
	}
	return &t, checkListing(x, &t, se.db.Unlisted)
}
