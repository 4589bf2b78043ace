package lister

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// AttributeType is what a directory's schema says of an attribute, RFC 4512
// §4.1.2, with what it inherits.
type AttributeType struct {
	Names    []string // small letters, the first is the one that the server uses
	Equality string   // matching rule, small letters; "" when there is none
	Substr   string   // the same for parts
	Syntax   string   // OID

	sup string
}

// Schema are the attribute types by each of their names, in small letters.
type Schema map[string]*AttributeType

// Schema asks the directory for the schema that governs it, and for the names
// under which it holds entries.
func (d *Directory) Schema() (schema Schema, contexts []string, err error) {
	root, err := d.Ask(Search{Scope: "base", Filter: "(objectClass=*)", Attributes: []string{"subschemaSubentry", "namingContexts"}}, 0)
	if err != nil || len(root) != 1 {
		return nil, nil, d.noSchema(err)
	}
	contexts = root[0].Values("namingContexts")
	for _, dn := range root[0].Values("subschemaSubentry") {
		sub, err := d.Ask(Search{Base: dn, Scope: "base", Filter: "(objectClass=subschema)", Attributes: []string{"attributeTypes"}}, 0)
		if err != nil || len(sub) != 1 {
			return nil, contexts, d.noSchema(err)
		}
		schema = parseSchema(sub[0].Values("attributeTypes"))
	}
	if len(schema) == 0 {
		return nil, contexts, d.noSchema(nil)
	}
	return schema, contexts, nil
}

// noSchema leaves a failure as it is; a refusal isn't one.
func (d *Directory) noSchema(err error) error {
	if errors.Is(err, ErrNoObject) || errors.Is(err, ErrRefused) {
		return nil
	}
	return err
}

func parseSchema(definitions []string) Schema {
	schema := Schema{}
	for _, text := range definitions {
		t := parseAttributeType(text)
		for _, n := range t.Names {
			schema[n] = t
		}
	}
	const deepest = 32 // of inheritance
	for range deepest {
		changed := false
		for _, t := range schema {
			if up := schema[t.sup]; up != nil {
				before := *t
				t.Equality = cmp.Or(t.Equality, up.Equality)
				t.Substr = cmp.Or(t.Substr, up.Substr)
				t.Syntax = cmp.Or(t.Syntax, up.Syntax)
				changed = changed || before.Equality != t.Equality || before.Substr != t.Substr || before.Syntax != t.Syntax
			}
		}
		if !changed {
			break
		}
	}
	return schema
}

// parseAttributeType reads ( OID NAME 'a' EQUALITY rule … ).
func parseAttributeType(text string) *AttributeType {
	tokens := strings.FieldsFunc(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(text), func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' })
	t := &AttributeType{}
	if len(tokens) > 1 {
		t.Names = []string{tokens[1]}
	}
	for n := 2; n+1 < len(tokens); n++ {
		next := strings.ToLower(strings.Trim(tokens[n+1], "'"))
		switch tokens[n] {
		case "NAME":
			end := n + 2
			if next == "(" {
				end = n + max(1, slices.Index(tokens[n:], ")"))
			}
			names := t.Names
			t.Names = nil
			for _, w := range tokens[n+1 : end] {
				if w = strings.ToLower(strings.Trim(w, "'")); w != "(" {
					t.Names = append(t.Names, w)
				}
			}
			t.Names = append(t.Names, names...)
		case "DESC":
			for n+1 < len(tokens) && !strings.HasSuffix(tokens[n+1], "'") {
				n++
			}
			n++
		case "SUP":
			t.sup = next
		case "EQUALITY":
			t.Equality = next
		case "SUBSTR":
			t.Substr = next
		case "SYNTAX":
			t.Syntax, _, _ = strings.Cut(next, "{")
		}
	}
	return t
}

// Below are the types whose values count as an attribute's own: itself and
// those that are made from it.
func (s Schema) Below(name string) (all []*AttributeType) {
	top := s[name]
	if top == nil {
		return nil
	}
	seen := map[*AttributeType]bool{}
	for _, t := range s {
		for up, depth := t, 0; up != nil && depth < 32; up, depth = s[up.sup], depth+1 {
			if up == top && !seen[t] {
				seen[t] = true
				all = append(all, t)
			}
		}
	}
	return all
}
