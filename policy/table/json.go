package table

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

type tableJSON struct {
	Type    string            `json:"type"`
	Secret  *Secret           `json:"secret,omitempty"` // then keys are digests in hexadecimal
	Keys    []string          `json:"keys,omitempty"`
	Entries map[string]string `json:"entries,omitempty"`
	Rules   [][2]string       `json:"rules,omitempty"`
	Value   string            `json:"value,omitempty"`
	Tables  []string          `json:"tables,omitempty"`
}

// MarshalJSON writes the table with its keys sorted, or its rules in order. It
// leaves "<>" and "&" as they are.
func (t *Table) MarshalJSON() ([]byte, error) {
	j := tableJSON{Type: t.typ, Secret: t.secret, Tables: t.tables}
	spell := func(key []byte) string { return string(key) }
	if t.secret != nil {
		spell = hex.EncodeToString
	}
	switch t.typ {
	case TypeSet:
		j.Keys = make([]string, 0, t.Len())
		for key := range t.Entries(0, t.Len()) {
			j.Keys = append(j.Keys, spell(key))
		}
	case TypeHash:
		j.Entries = make(map[string]string, t.Len())
		for key, value := range t.Entries(0, t.Len()) {
			j.Entries[spell(key)] = value
		}
	case TypeCIDR, TypeRegexp, TypePCRE:
		for key, value := range t.Entries(0, t.Len()) {
			j.Rules = append(j.Rules, [2]string{string(key), value})
		}
	case TypeStatic:
		j.Value = t.values[0]
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(j)
	return bytes.TrimSpace(b.Bytes()), err
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Table) UnmarshalJSON(b []byte) error {
	var j tableJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return err
	}
	var n *Table
	var err error
	switch {
	case j.Secret != nil:
		n, err = unmarshalDigests(&j)
	case j.Type == TypeSet:
		n, err = NewSet(j.Keys)
	case j.Type == TypeHash:
		n, err = NewHash(j.Entries)
	case hasRules(j.Type):
		n, err = newRules(j.Type, j.Rules)
	case j.Type == TypeStatic:
		n = NewStatic(j.Value)
	case j.Type == TypeUnion:
		n = NewUnion(j.Tables)
	case j.Type == TypePipe:
		n = NewPipe(j.Tables)
	default:
		err = fmt.Errorf("unknown table type %q", j.Type)
	}
	if err == nil {
		*t = *n
	}
	return err
}

// unmarshalDigests reads a table of digests.
func unmarshalDigests(j *tableJSON) (*Table, error) {
	b, err := NewBuilder(hashedPrefix+j.Type, j.Secret)
	if err != nil {
		return nil, err
	}
	b.Like(nil)
	keys := j.Keys
	if j.Type == TypeHash {
		keys = slices.Collect(maps.Keys(j.Entries))
	}
	slices.Sort(keys)
	for _, k := range keys {
		digest, err := hex.DecodeString(k)
		if err == nil {
			err = b.Add(digest, []byte(j.Entries[k]))
		}
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k, err)
		}
	}
	return b.Table()
}
