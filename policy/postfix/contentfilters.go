package postfix

import (
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/filters"
)

// afterQueue is what is said of a filter that sees a message after the reply to it.
const afterQueue = "no verdict: it decides after the primary's 250, and when the message is relayed"

// contentFilters reports the programs to which Postfix hands messages over: after its
// reply, or before.
func (i *importer) contentFilters() {
	const after, before = "content_filter", "smtpd_proxy_filter"
	if to := i.set[after]; to != "" {
		i.item(after, to, fidelity.Exact, i.afterwards(to), "")
	}
	for _, to := range sortedKeys(i.filterActions) {
		i.item(after, "FILTER "+to, fidelity.Exact, i.afterwards(to), "")
	}
	to := i.set[before]
	if to == "" {
		return
	}
	_, why, options := i.filter(string(filters.ProxyEndpoint(to, i.set["queue_directory"])))
	if options == nil {
		i.item(before, to, fidelity.Exact, why, "")
		return
	}
	choice := i.choose(before, to, options...)
	if choice == fidelity.Defer {
		i.deferFor(before)
	}
	i.item(before, to, fidelity.NotReplicated, why, choice, options...)
}

// afterwards says what stands at the end of a transport, and what it does.
func (i *importer) afterwards(to string) string {
	place, found := i.transported(to)
	if !found {
		return afterQueue + "; what it does then isn't known"
	}
	f, err := i.readFilter(place)
	if err != nil {
		return afterQueue + "; what " + place.String() + " does then isn't known: " + err.Error()
	}
	return afterQueue + "; " + place.String() + " " + f.Describe()
}

// transported finds the program at the end of "transport:nexthop".
func (i *importer) transported(to string) (filters.Place, bool) {
	transport, nexthop, _ := strings.Cut(to, ":")
	for _, s := range slices.Backward(i.conf.services) {
		if s.name != transport || s.typ != "unix" {
			continue
		}
		if argv := s.argv(); s.command == "pipe" && argv != nil {
			return filters.Spawned(argv)
		}
		return i.place(filters.ProxyEndpoint(nexthop, i.set["queue_directory"]))
	}
	return filters.Place{}, false
}

// noteFilters keeps the destinations of a table's FILTER actions.
func (i *importer) noteFilters(t *Table) {
	t.any(func(value string) bool {
		action, to, _ := strings.Cut(strings.TrimSpace(value), " ")
		if to = strings.TrimSpace(to); strings.EqualFold(action, "FILTER") && strings.Contains(to, ":") && !strings.ContainsAny(to, "$\\") {
			i.filterActions[to] = true
		}
		return false
	})
}
