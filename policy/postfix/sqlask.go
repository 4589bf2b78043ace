package postfix

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// askPatience is how long a table's keys are asked for. A query that reads
// whole tables for each could take hours.
const askPatience = 4 * time.Minute

// maxUnknown bounds the keys of a table whose look-ups fail.
const maxUnknown = 10_000

// answers are what a table says to the keys that it is asked for.
type answers struct {
	li      *listing
	stands  map[string]string // a random address: the "@domain" that it tells of
	direct  map[string]bool   // "@domain" that is a key itself
	unknown map[string]bool   // keys whose look-ups fail
	reason  string            // of the first of these
	broken  int               // failures that aren't of one key's values
	late    int               // keys that weren't asked for
}

// askAll asks about the keys that were collected. Of "@domain", when it is wide,
// a random address tells.
func (li *listing) askAll(wide byte) error {
	var keys []string
	kept := 0 // of which nothing has changed
	a := &answers{li: li, stands: map[string]string{}, direct: map[string]bool{}, unknown: map[string]bool{}}
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	only, err := li.again()
	if err != nil {
		return err
	}
	maps.DeleteFunc(li.ask.all, func(k string, _ bool) bool { return li.neverAsked(k) })
	for k := range li.ask.all {
		delete(li.table.Entries, k) // what was listed of it isn't all
		if only != nil && li.before.asked[k] && !only.key(k) {
			if v, there := li.before.table.Entries[k]; there {
				li.table.Entries[k] = v
				kept++
			}
			continue
		}
		if wide == 'd' && k[0] == '@' {
			p := probe(r) + k
			a.stands[p] = k
			keys = append(keys, p)
			if li.template.user {
				li.table.Stands = true
				continue // Postfix doesn't ask for it
			}
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	li.table.How.Put, li.table.How.Asked = len(li.ask.all), len(keys)
	if kept > 0 {
		li.table.DomainWide = li.table.DomainWide || li.before.table.DomainWide
		li.table.Stands = li.table.Stands || li.before.table.Stands
	}
	li.until = time.Now().Add(askPatience)
	defer func() { li.until = time.Time{} }()
	if err := li.look(keys, a.found, a.fails); err != nil {
		return err
	}
	if a.broken > 0 && a.broken == len(keys) {
		return fmt.Errorf("its query fails: %s", a.reason)
	}
	if wide == 'd' && li.table.DomainWide {
		if err := a.askHoles(); err != nil {
			return err
		}
	}
	a.doubts(len(keys))
	return nil
}

func (a *answers) found(key, value string) {
	if domain := a.stands[key]; domain != "" {
		value = strings.ReplaceAll(value, key[:len(key)-len(domain)], "") // "@domain" as a value has it too, see virtual(5)
		key = domain
		a.li.table.DomainWide = true
	} else if key[0] == '@' {
		a.direct[key] = true
	}
	a.li.table.Entries[key] = value
}

func (a *answers) fails(key string, err error) {
	if errors.Is(err, errLate) {
		a.late++
		return
	}
	if a.reason == "" {
		a.reason = fmt.Sprintf("%q %v", key, err)
	}
	if !errors.Is(err, errExpansion) && !errors.Is(err, errEncoding) {
		a.broken++
	}
	a.unknown[key] = true
}

// unknown notes the keys whose look-ups fail. Where these are very many it is
// the table that isn't known.
func (t *Table) unknown(failed map[string]bool) {
	if len(failed) > maxUnknown {
		t.Partial = fmt.Sprintf("look-ups fail for %d keys", len(failed))
	} else if len(failed) > 0 {
		t.Unknown = failed
	}
}

// askHoles asks for the keys that a domain's own may not stand for.
func (a *answers) askHoles() error {
	li := a.li
	stands := func(k string) bool {
		at := strings.LastIndexByte(k, '@')
		if at <= 0 {
			return false
		}
		_, there := li.table.Entries[k[at:]]
		return there
	}
	var keys []string
	for k := range li.holes.all {
		if !li.ask.all[k] && stands(k) && !li.neverAsked(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	li.table.How.Put, li.table.How.Asked = li.table.How.Put+len(keys), li.table.How.Asked+len(keys)
	if err := li.look(keys, a.found, a.fails); err != nil {
		return err
	}
	li.table.Except = map[string]bool{}
	for _, set := range []map[string]bool{li.holes.all, li.ask.all} {
		for k := range set {
			if _, there := li.table.Entries[k]; !there && stands(k) {
				li.table.Except[k] = true
				li.table.Stands = li.table.Stands || !a.direct[k[strings.LastIndexByte(k, '@'):]]
			}
		}
	}
	if li.table.Stands { // where "@domain" is a key, Postfix finds it next
		maps.DeleteFunc(li.table.Except, func(k string, _ bool) bool { return a.direct[k[strings.LastIndexByte(k, '@'):]] })
	}
	return nil
}

// doubts says what isn't known after all.
func (a *answers) doubts(asked int) {
	t := a.li.table
	for p, domain := range a.stands {
		if a.unknown[p] {
			delete(a.unknown, p)
			a.unknown[domain] = true
		}
	}
	t.unknown(a.unknown)
	if a.late > 0 {
		t.Partial = fmt.Sprintf("its query is slow: %d of %d keys weren't asked for within %v", a.late, asked, askPatience)
	}
}

// again says which of the keys that were asked for before are to be asked for
// again, nil: all.
func (li *listing) again() (*touched, error) {
	if li.stamps == nil || len(li.ask.all) == 0 {
		return nil, nil
	}
	t, err := li.changes()
	if t == nil {
		return nil, err
	}
	if b := li.before.table; b.Partial != "" && b.How.Exact || len(b.Unknown) > 0 || len(b.Except) > 0 || len(li.holes.all) > 0 {
		return nil, err // more than the keys' values counts
	}
	return t, err
}

// neverAsked says that Postfix doesn't ask for a key as it stands.
func (li *listing) neverAsked(key string) bool {
	return key != foldKey(key) || li.db.latin() && !ascii(key)
}
