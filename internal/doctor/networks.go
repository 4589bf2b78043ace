package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Matches looks an address up in a list of networks, as Postfix does: the first
// element that fits decides, and ! turns it round.
func (p *Publisher) Matches(ctx context.Context, parameter string, a netip.Addr) (bool, error) {
	return p.inList(ctx, p.Postconf[parameter], a, 0)
}

// maxNesting bounds files that name files.
const maxNesting = 5

func (p *Publisher) inList(ctx context.Context, list string, a netip.Addr, depth int) (bool, error) {
	for _, element := range fields(list) {
		element, not := strings.CutPrefix(element, "!")
		var fits bool
		var err error
		network := strings.NewReplacer("[", "", "]", "").Replace(element)
		if prefix, perr := netip.ParsePrefix(network); perr == nil {
			fits = prefix.Contains(a)
		} else if one, aerr := netip.ParseAddr(network); aerr == nil {
			fits = one == a
		} else if strings.HasPrefix(element, "/") && depth < maxNesting {
			fits, err = p.inFile(ctx, element, a, depth+1)
		} else if strings.Contains(element, ":") {
			_, fits, err = p.Lookup(ctx, element, a.String())
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", element, err)
		}
		if fits {
			return !not, nil
		}
	}
	return false, nil
}

// maxList bounds a file of networks.
const maxList = 1 << 20

func (p *Publisher) inFile(ctx context.Context, name string, a netip.Addr, depth int) (bool, error) {
	text, err := p.ReadFile(ctx, name, maxList)
	if err != nil {
		return false, err
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			kept = append(kept, line)
		}
	}
	return p.inList(ctx, strings.Join(kept, " "), a, depth)
}

// fields splits a list of Postfix's.
func fields(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
}
