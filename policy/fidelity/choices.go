package fidelity

import (
	"fmt"
	"slices"
	"strings"
)

// Choices say for an Item, by its ID, which of its Options to take.
type Choices map[string]string

// ParseChoices reads "parameter: element=choice"; an element may hold a "=".
func ParseChoices(list []string) Choices {
	c := Choices{}
	for _, s := range list {
		i := strings.LastIndexByte(s, '=')
		c[s[:i]] = s[i+1:]
	}
	return c
}

// Of returns the operator's choice for an item, by default the first option.
func (c Choices) Of(it Item, options []string) (string, error) {
	choice, given := c[it.ID()]
	switch {
	case !given:
		return options[0], nil
	case slices.Contains(options, choice):
		return choice, nil
	}
	return options[0], fmt.Errorf("choice %q: %q is none of %q", it.ID(), choice, options)
}

// Unknown returns the choices that no item of r offers, sorted.
func (c Choices) Unknown(r *Report) (ids []string) {
	for id := range c {
		if !slices.ContainsFunc(r.Items, func(it Item) bool { return it.ID() == id && len(it.Options) > 1 }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
