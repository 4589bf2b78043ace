package postfix

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/filters"
)

// unknownFilter is why a filter can't be followed of which no configuration is found.
const unknownFilter = "what listens there isn't known; it decides live"

// unreadable is what is done about a filter whose configuration can't be read: it
// may refuse anything.
var unreadable = []string{fidelity.Defer, fidelity.Ignore}

// milters reports the filters of content, in the order in which Postfix asks
// them.
func (i *importer) milters() {
	const parameter = "smtpd_milters"
	for _, w := range words(i.set[parameter]) {
		_, why, options := i.filter(w)
		if options == nil {
			i.item(parameter, w, fidelity.Exact, why, "")
			continue
		}
		choice := i.choose(parameter, w, options...)
		if choice == fidelity.Defer {
			i.deferFor(parameter)
		}
		i.item(parameter, w, fidelity.NotReplicated, why, choice, options...)
	}
}

// policyService reports a policy service, and returns what takes its place.
func (i *importer) policyService(parameter string, e element) []policy.Restriction {
	_, why, options := i.filter(e.arg)
	if options == nil {
		return i.restriction(parameter, e, fidelity.Exact, why, nil)
	}
	return i.restriction(parameter, e, fidelity.NotReplicated, why, append(options, fidelity.Ask, fidelity.AskElseIgnore))
}

// filter says what stands behind an endpoint, and what can be done instead;
// options are nil for a filter that refuses nothing.
func (i *importer) filter(where string) (f *filters.Filter, why string, options []string) {
	options = slices.Clone(refuses)
	queue := i.set["queue_directory"]
	at, err := filters.ParseEndpoint(where, queue)
	if err != nil {
		return nil, err.Error(), options
	}
	place, known := i.placed()[at]
	if !known {
		place, known = i.spawned(at, queue)
	}
	if !known {
		var files []string
		place, files, known = filters.Find(i.src.Root, at, queue)
		for _, name := range files {
			i.files[filepath.Join(i.src.Root, name)] = true
		}
	}
	if !known {
		return nil, unknownFilter, options
	}
	f, err = filters.Read(i.src.Root, place.Program, place.File)
	for _, name := range f.Files {
		i.files[filepath.Join(i.src.Root, name)] = true
	}
	switch {
	case err != nil:
		return nil, fmt.Sprintf("%s can't be read: %v", place, err), slices.Clone(unreadable)
	case f.Harmless():
		return f, place.String() + " refuses nothing by its settings", nil
	case len(f.Refuses) == 0:
		return f, fmt.Sprintf("%s can't be followed: %s", place, strings.Join(f.Unsure, "; ")), options
	}
	why = fmt.Sprintf("%s refuses %s", place, strings.Join(f.Refuses, ", "))
	if len(f.Unsure) > 0 {
		why += "; " + strings.Join(f.Unsure, "; ")
	}
	return f, why, options
}

// placed are the filters that the operator names.
func (i *importer) placed() map[filters.Endpoint]filters.Place {
	all, err := filters.ParsePlaces(i.src.Filters, i.set["queue_directory"])
	if err != nil && !i.badPlaces {
		i.badPlaces = true
		i.errorf("postfix_filter: %w", err)
	}
	return all
}

// spawned finds the program that spawn(8) starts for an endpoint.
func (i *importer) spawned(at filters.Endpoint, queue string) (filters.Place, bool) {
	for _, s := range i.conf.services {
		if s.command != "spawn" {
			continue
		}
		names := []string{"unix:private/" + s.name, "unix:public/" + s.name}
		if s.typ == "inet" {
			names = []string{"inet:" + s.name}
			if !strings.Contains(s.name, ":") {
				names = []string{"inet:localhost:" + s.name}
			}
		}
		if !slices.ContainsFunc(names, func(n string) bool {
			e, err := filters.ParseEndpoint(n, queue)
			return err == nil && e == at
		}) {
			continue
		}
		argv := slices.IndexFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "argv=") })
		if argv < 0 {
			return filters.Place{}, false
		}
		args := slices.Clone(s.args[argv:])
		args[0] = strings.TrimPrefix(args[0], "argv=")
		return filters.Spawned(args)
	}
	return filters.Place{}, false
}

// filterRemedy is what the operator can do about a filter that isn't followed.
func filterRemedy(where, why string) string {
	if why != unknownFilter {
		return ""
	}
	where, _, _ = strings.Cut(cmp.Or(strings.Trim(where, "{ }"), "ENDPOINT"), ",")
	return fmt.Sprintf("--filter '%s=PROGRAM:FILE', if it is one of %s", strings.TrimSpace(where), strings.Join(filters.Programs(), ", "))
}
