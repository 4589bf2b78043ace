package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// Member is a table that a unionmap or pipemap asks.
type Member struct {
	Name string
	*Table
}

// combined reads unionmap:{a, b} and pipemap:{a, b}. What keys and values say
// by themselves becomes one table; for the rest the engine asks the members.
func (i *importer) combined(parameter, typ, arg string) (*Table, error) {
	inside, ok := unbrace(arg)
	if !ok {
		i.errorf("%s: table %s:%s: want { type:table, … }", parameter, typ, arg)
		return nil, nil
	}
	all := &Table{Type: typ, Kind: Combined}
	flat := true
	var lost error
	for n, w := range words(inside) {
		name, reason := tableName(w)
		if reason != nil {
			return nil, reason
		}
		t, reason := i.table(parameter, name)
		if t == nil && reason != nil && typ == "unionmap" && !fails(reason) { // what the others hold is there all the same
			all.Partial = cmp.Or(all.Partial, name+": "+reason.Error())
			lost = reason
			continue
		}
		if t == nil && typ == "pipemap" && n > 0 && fails(reason) { // for who gets as far
			return nil, errors.New(reason.Error())
		}
		if t == nil {
			return nil, reason
		}
		// A constant can be looked up in, not gone through.
		flat = flat && t.Unless == "" && len(t.Except) == 0 && len(t.Unknown) == 0 && (t.Kind == Indexed || t.Kind == Constant && typ == "pipemap" && n > 0)
		all.Members = append(all.Members, Member{name, t})
	}
	if len(all.Members) == 0 && lost != nil {
		return nil, lost
	}
	if len(all.Members) == 0 {
		i.errorf("%s: table %s:%s: names no table", parameter, typ, arg)
		return nil, nil
	}
	if flat {
		all.flatten()
	}
	for _, m := range all.Members {
		all.Partial = cmp.Or(all.Partial, m.Partial)
		if len(m.Unknown) > 0 {
			all.Partial = cmp.Or(all.Partial, fmt.Sprintf("%s: look-ups fail for %d keys", m.Name, len(m.Unknown)))
		}
		all.DomainWide = all.DomainWide || m.DomainWide && (typ == "unionmap" || m.Table == all.Members[0].Table)
	}
	if flat {
		all.Members = nil
	}
	return all, nil
}

// flatten makes an Indexed table of members that are.
func (t *Table) flatten() {
	t.Kind, t.Entries = Indexed, map[string]string{}
	from := t.Members
	if t.Type == "pipemap" {
		from = from[:1]
	}
	for _, m := range from {
		for k := range m.Entries {
			if v, found := ask(t.Type, t.Members, k); found {
				t.Entries[k] = v
			}
		}
	}
}

// find looks a key up, but in no patterns and networks.
func (t *Table) find(key string) (string, bool) {
	switch t.Kind {
	case Constant:
		return t.Value, true
	case Combined:
		return ask(t.Type, t.Members, key)
	}
	key = foldKey(key)
	v, ok := t.Entries[key]
	switch at := strings.LastIndexByte(key, '@'); {
	case !t.DomainWide || at < 0:
	case at == 0 && t.Stands:
		return "", false
	case !ok && !t.excepted(key[:at]) && !t.Except[key]:
		v, ok = t.Entries[key[at:]]
	}
	return v, ok
}

// excepted says that "@domain" doesn't answer to a local-part.
func (t *Table) excepted(local string) bool {
	return strings.ContainsAny(local, t.Unless) || strings.Contains(t.Unless, "é") && !ascii(local)
}

// ask returns all the values of a unionmap, or where a pipemap leads.
func ask(typ string, members []Member, key string) (value string, found bool) {
	var values []string
	for _, m := range members {
		v, ok := m.find(key)
		switch {
		case typ == "unionmap" && ok:
			values = append(values, v)
		case typ == "pipemap" && !ok:
			return "", false
		case typ == "pipemap":
			key, values = v, []string{v}
		}
	}
	return strings.Join(values, ","), len(values) > 0
}

// useMembers puts the members into the Spec.
func (i *importer) useMembers(t *Table) (*table.Table, error) {
	const most = 16 // see policy.Compile
	if len(t.Members) > most {
		return nil, fmt.Errorf("more than %d tables in one %s", most, t.Type)
	}
	var names []string
	for _, m := range t.Members {
		if err := i.use(m.Name, m.Table, true); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		names = append(names, specName(m.Name))
	}
	if t.Type == "pipemap" {
		return table.NewPipe(names), nil
	}
	return table.NewUnion(names), nil
}

// any says whether a value of the table is such.
func (t *Table) any(f func(string) bool) bool {
	for _, v := range t.Entries {
		if f(v) {
			return true
		}
	}
	members := t.Members
	if t.Type == "pipemap" && len(members) > 0 { // what the others say is a key
		members = members[len(members)-1:]
	}
	return t.Kind == Constant && f(t.Value) || slices.ContainsFunc(t.Rules, func(r Rule) bool { return r.Op == Match && f(r.Value) }) ||
		slices.ContainsFunc(members, func(m Member) bool { return m.any(f) })
}
