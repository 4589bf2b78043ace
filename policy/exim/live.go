package exim

import (
	"context"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// Option asks a live Exim for the value in force of a main option. An Exim that was
// built without what the option is for fails.
func (s *Source) Option(ctx context.Context, name string) (string, error) {
	out, err := s.run(ctx, "-bP", name)
	if err != nil {
		return "", err
	}
	got, value := setting(strings.TrimSpace(out))
	if got != name { // configure_file is printed without its name
		return got, nil
	}
	return value, nil
}

// InHosts looks an address up in a host list. The first element that fits decides; known
// is false where one before it can't be judged by the address alone.
func InHosts(list string, a netip.Addr) (in, known bool) {
	for _, e := range expansion.List(list) {
		e, not := strings.CutPrefix(strings.TrimSpace(e), "!")
		e = strings.TrimSpace(e)
		fits := e == "*"
		if p, err := netip.ParsePrefix(e); err == nil {
			fits = p.Contains(a)
		} else if one, err := netip.ParseAddr(e); err == nil {
			fits = one == a
		} else if e != "*" && e != "" {
			return false, false
		}
		if fits {
			return !not, true
		}
	}
	return false, true
}
