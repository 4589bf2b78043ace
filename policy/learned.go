package policy

import (
	"maps"
	"slices"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// learned finds the tables of keys that learned tables don't have.
func (c *compiler) learned() {
	spec := c.s.spec
	for _, name := range slices.Sorted(maps.Keys(spec.Learned)) {
		t, absent := c.tables[name], c.tables[spec.Learned[name].Absent]
		if t != nil {
			t.unsure, t.unless = spec.Learned[name].Unsure, spec.Learned[name].Unless
			t.unknown, t.except = c.keySet(name, spec.Learned[name].Unknown), c.keySet(name, spec.Learned[name].Except)
		}
		switch {
		case t == nil || !t.Keyed():
			c.errorf("learned.%s: no set or hash is called so", name)
		case spec.Learned[name].Absent == "":
			t.wholes = spec.Learned[name].Whole
		case absent == nil || !absent.Is(table.TypeSet) || absent == t:
			c.errorf("learned.%s: no set is called %q", name, spec.Learned[name].Absent)
		default:
			t.absent, t.wholes = absent, spec.Learned[name].Whole
		}
	}
}

// keySet finds a set that belongs to a learned table, nil for "".
func (c *compiler) keySet(of, name string) *dict {
	if name == "" {
		return nil
	}
	t := c.tables[name]
	if t == nil || !t.Is(table.TypeSet) || name == of {
		c.errorf("learned.%s: no set is called %q", of, name)
		return nil
	}
	return t
}

// Unasked returns for each learned table the sorted keys that decide whether
// recipients exist, and for which the primary must be asked. It skips recipients
// that aren't addresses at one of the policy's domains.
func (s *Snapshot) Unasked(recipients []string) map[string][]string {
	unasked := map[string][]string{}
	f := finder{snap: s, ask: func(table string, key []byte) { unasked[table] = append(unasked[table], string(key)) }}
	for _, r := range recipients {
		m, err := envelope.ParseMailbox(r)
		if err != nil {
			continue
		}
		a := s.resolve(&f, m, true)
		if a.bad || a.class == classDefault {
			continue
		}
		for _, tables := range [][]*dict{s.rcptCanonical, s.canonical, s.virtualAlias, s.recipients[a.class]} {
			if f.recipient(tables, &a).ok() {
				break
			}
		}
	}
	for table, keys := range unasked {
		slices.Sort(keys)
		unasked[table] = slices.Compact(keys)
	}
	return unasked
}
