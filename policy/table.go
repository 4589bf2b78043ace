package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// Types of look-up tables.
const (
	typeSet    = "set"    // keys without values: recipients
	typeHash   = "hash"   // keys with values, equal but for case
	typeCIDR   = "cidr"   // networks with values, the first that matches wins
	typeStatic = "static" // one value for every key
)

// Table is an immutable look-up table. Keys are folded to lower case, as
// Postfix does for its indexed tables.
type Table struct {
	typ    string
	keys   store
	vals   []uint32 // hash: for each key its index in values
	values []string // hash, cidr, static: the distinct values
	rules  []cidrRule
}

type cidrRule struct {
	net netip.Prefix
	val uint32
}

// NewSet returns a table of keys without values. It takes keys over.
func NewSet(keys []string) (*Table, error) {
	for i := range keys {
		keys[i] = fold(keys[i])
	}
	s, _, err := newStore(keys)
	if err != nil {
		return nil, err
	}
	return &Table{typ: typeSet, keys: s}, nil
}

// NewHash returns a table of keys with values.
func NewHash(entries map[string]string) (*Table, error) {
	folded := make(map[string]string, len(entries))
	for k, v := range entries {
		f := fold(k)
		if _, dup := folded[f]; dup {
			return nil, fmt.Errorf("key %q appears twice", f)
		}
		folded[f] = v
	}
	s, _, err := newStore(slices.Collect(maps.Keys(folded)))
	if err != nil {
		return nil, err
	}
	t := &Table{typ: typeHash, keys: s, vals: make([]uint32, s.len())}
	intern := map[string]uint32{}
	for i := range t.vals {
		t.vals[i] = t.intern(intern, folded[string(s.key(i))])
	}
	return t, nil
}

// NewCIDR returns a table of networks, each a [prefix, value] pair: the first
// that matches wins.
func NewCIDR(rules [][2]string) (*Table, error) {
	t := &Table{typ: typeCIDR, rules: make([]cidrRule, 0, len(rules))}
	intern := map[string]uint32{}
	for _, r := range rules {
		p, err := parsePrefix(r[0])
		if err != nil {
			return nil, err
		}
		t.rules = append(t.rules, cidrRule{p, t.intern(intern, r[1])})
	}
	return t, nil
}

// NewStatic returns a table that has one value for every key.
func NewStatic(value string) *Table { return &Table{typ: typeStatic, values: []string{value}} }

func (t *Table) intern(m map[string]uint32, v string) uint32 {
	i, ok := m[v]
	if !ok {
		i = uint32(len(t.values))
		t.values = append(t.values, v)
		m[v] = i
	}
	return i
}

// Len returns the number of entries.
func (t *Table) Len() int {
	if t.typ == typeCIDR {
		return len(t.rules)
	}
	return max(t.keys.len(), len(t.values[:min(1, len(t.values))]))
}

// parsePrefix reads an address or a prefix without host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an IP address; write 192.0.2.1 or 2001:db8::1", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an IP prefix; write 192.0.2.0/24 or 2001:db8::/32", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits; write %s", s, p.Masked())
	}
	return p, nil
}

type tableJSON struct {
	Type    string            `json:"type"`
	Keys    []string          `json:"keys,omitempty"`
	Entries map[string]string `json:"entries,omitempty"`
	Rules   [][2]string       `json:"rules,omitempty"`
	Value   string            `json:"value,omitempty"`
}

// MarshalJSON writes the table with its keys sorted, or its rules in order.
func (t *Table) MarshalJSON() ([]byte, error) {
	j := tableJSON{Type: t.typ}
	switch t.typ {
	case typeSet:
		j.Keys = make([]string, t.keys.len())
		for i := range j.Keys {
			j.Keys[i] = string(t.keys.key(i))
		}
	case typeHash:
		j.Entries = make(map[string]string, t.keys.len())
		for i, v := range t.vals {
			j.Entries[string(t.keys.key(i))] = t.values[v]
		}
	case typeCIDR:
		for _, r := range t.rules {
			j.Rules = append(j.Rules, [2]string{prefixString(r.net), t.values[r.val]})
		}
	case typeStatic:
		j.Value = t.values[0]
	}
	return marshalJSON(j)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Table) UnmarshalJSON(b []byte) error {
	var j tableJSON
	if err := strictJSON(b, &j); err != nil {
		return err
	}
	var n *Table
	var err error
	switch j.Type {
	case typeSet:
		n, err = NewSet(j.Keys)
	case typeHash:
		n, err = NewHash(j.Entries)
	case typeCIDR:
		n, err = NewCIDR(j.Rules)
	case typeStatic:
		n = NewStatic(j.Value)
	default:
		err = fmt.Errorf("unknown table type %q", j.Type)
	}
	if err == nil {
		*t = *n
	}
	return err
}

func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// table is a Table that a Snapshot uses, under the name it goes by.
type table struct {
	*Table
	name    string
	nets    *bart.Table[uint32] // cidr: index in rules
	actions []access            // for each of values, when an access restriction uses the table
}

func newTable(name string, t *Table) *table {
	c := &table{Table: t, name: name}
	if t.typ != typeCIDR {
		return c
	}
	c.nets = new(bart.Table[uint32])
	for i, r := range t.rules {
		// The first match wins in Postfix, the longest here: a later rule
		// inside an earlier one can never match and is left out.
		if _, covered := c.nets.LookupPrefix(r.net); !covered {
			c.nets.Insert(r.net, uint32(i))
		}
	}
	return c
}

// hit is an entry of a table, or none.
type hit struct {
	t     *table
	entry int
}

func (h hit) ok() bool { return h.t != nil }

// key spells the entry's key.
func (h hit) key() string {
	switch h.t.typ {
	case typeCIDR:
		return prefixString(h.t.rules[h.entry].net)
	case typeStatic:
		return ""
	}
	return string(h.t.keys.key(h.entry))
}

func (h hit) access() *access {
	switch h.t.typ {
	case typeCIDR:
		return &h.t.actions[h.t.rules[h.entry].val]
	case typeHash:
		return &h.t.actions[h.t.vals[h.entry]]
	}
	return &h.t.actions[0]
}

// find looks a folded key up. addr is the key as an address, when it is one
// and isn't a part of what is looked for: only those match a cidr table.
func (t *table) find(key []byte, addr netip.Addr) hit {
	switch t.typ {
	case typeStatic:
		return hit{t, 0}
	case typeCIDR:
		if addr.IsValid() {
			if i, ok := t.nets.Lookup(addr); ok {
				return hit{t, int(i)}
			}
		}
		return hit{}
	}
	if i := t.keys.find(key); i >= 0 {
		return hit{t, i}
	}
	return hit{}
}

// fold brings a key to the case in which tables hold it. It returns s itself
// when there is nothing to fold.
func fold(s string) string { return strings.ToLower(s) }

// strictJSON refuses fields that v doesn't know and anything after the value.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
