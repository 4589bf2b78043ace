package lister

import (
	"context"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// contentSync is the control of RFC 4533, which the overlay syncprov brings.
const contentSync = "1.3.6.1.4.1.4203.1.9.1.1"

// State is a mark that every change below a base sets anew; "" is all entries.
// It is contextCSN, as OpenLDAP's overlay syncprov keeps it, of each naming
// context that has a part of the base. The mark is "" where the directory can't
// tell: without the overlay there may be such a number, too, that slapadd wrote
// and nobody keeps. Writes that aren't replicated, such as the times of logins,
// don't change it; and it may stay behind a write that came at once after one
// that failed, until the next.
func (d *Directory) State(base string) (string, error) {
	root, err := d.Ask(Search{Scope: "base", Filter: "(objectClass=*)", Attributes: []string{"namingContexts", "supportedControl"}}, 0)
	if err != nil || len(root) != 1 || !slices.Contains(root[0].Values("supportedControl"), contentSync) {
		return "", d.noSchema(err)
	}
	state := ""
	for _, suffix := range root[0].Values("namingContexts") {
		if !related(base, suffix) {
			continue
		}
		e, err := d.Ask(Search{Base: suffix, Scope: "base", Filter: "(objectClass=*)", Attributes: []string{"contextCSN"}}, 0)
		if err != nil || len(e) != 1 || len(e[0].Values("contextCSN")) == 0 {
			return "", d.noSchema(err)
		}
		state += suffix + " " + strings.Join(slices.Sorted(slices.Values(e[0].Values("contextCSN"))), ";") + "\n"
	}
	return state, nil
}

// related says that one name is below the other.
func related(a, b string) bool {
	x, errX := ldap.ParseDN(a)
	y, errY := ldap.ParseDN(b)
	return errX == nil && errY == nil && (x.EqualFold(y) || x.AncestorOfFold(y) || y.AncestorOfFold(x))
}

// UUID names an entry for as long as it lives, RFC 4530.
type UUID [16]byte

// Changes finds what is new of a search since the directory had a state of one
// naming context, RFC 4533: entries that came or changed. gone says of any other
// whether the search would find it no more. ErrRefused: the directory can't
// tell.
func (d *Directory) Changes(search Search, state string, changed func(UUID, Entry) error) (gone func(UUID) bool, err error) {
	request, err := d.s.ldapRequest(search)
	if err != nil {
		return nil, err
	}
	at := strings.LastIndexByte(state, ' ')
	if at < 0 || strings.Count(state, "\n") != 1 {
		return nil, ErrRefused
	}
	if err := d.connect(&d.pages); err != nil {
		return nil, err
	}
	const consumer = "rid=344" // any number
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	r := d.pages.Syncrepl(ctx, request, 1, ldap.SyncRequestModeRefreshOnly, []byte(consumer+",csn="+strings.TrimSpace(state[at+1:])), false)
	c := &changes{there: map[UUID]bool{}, away: map[UUID]bool{}}
	for r.Next() {
		for _, control := range r.Controls() {
			id, isNew := c.take(control)
			if !isNew || r.Entry() == nil {
				continue
			}
			e, err := d.entry(r.Entry())
			if err == nil {
				err = changed(id, e)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	switch err := r.Err(); {
	case ldap.IsErrorWithCode(err, ldap.ErrorNetwork), d.ctx.Err() != nil:
		return nil, d.failed(err)
	case err != nil, !c.done: // so it is too long ago, or this user mayn't ask
		return nil, ErrRefused
	}
	return c.gone, nil
}

// changes are what a directory says of entries.
type changes struct {
	there, away map[UUID]bool
	deletes     bool // who isn't mentioned is there
	done        bool // nothing more is said
}

func (c *changes) gone(id UUID) bool { return c.away[id] || !c.deletes && !c.there[id] }

// take notes a control. isNew: an entry comes with it.
func (c *changes) take(control ldap.Control) (id UUID, isNew bool) {
	switch control := control.(type) {
	case *ldap.ControlSyncState:
		id = UUID(control.EntryUUID)
		if control.State == ldap.SyncStateDelete {
			c.away[id] = true
			return id, false
		}
		c.there[id] = true
		return id, control.State != ldap.SyncStatePresent
	case *ldap.ControlSyncInfo:
		if set := control.SyncIdSet; set != nil {
			into := c.there
			if set.RefreshDeletes {
				into = c.away
			}
			for _, id := range set.SyncUUIDs {
				into[UUID(id)] = true
			}
		}
	case *ldap.ControlSyncDone:
		c.done, c.deletes = true, control.RefreshDeletes
	}
	return id, false
}
