package postfix

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/filters"
)

// unknownFilter is why a filter can't be followed of which no configuration is found.
const unknownFilter = "what listens there isn't known; it decides live"

// unreadable is what is done about a filter whose configuration can't be read: it
// may refuse anything.
var unreadable = []string{fidelity.Defer, fidelity.Ignore}

// milters translates the filters of content, in the order in which Postfix asks
// them.
func (i *importer) milters() {
	const parameter = "smtpd_milters"
	i.asking()
	var before []*filters.Filter // nil: one that can't be followed
	for _, w := range words(i.set[parameter]) {
		f, why, options := i.filter(w)
		if f != nil && options != nil && f.DMARC != nil {
			if unheard := i.hears(f, before); unheard != "" {
				f.DMARC = nil
				why += "; " + unheard
			}
		}
		class := i.followed(f, options)
		if i.set["smtpd_milter_maps"] != "" && options != nil {
			class, why = fidelity.NotReplicated, why+"; smtpd_milter_maps has other milters for some clients"
		}
		before = append(before, nil)
		if f != nil && (options == nil || class != fidelity.NotReplicated || f.Live) && (!f.Verifies || f.DKIM != nil) {
			before[len(before)-1] = f
		}
		if class != fidelity.NotReplicated {
			if options != nil || f.Live || f.DKIM != nil && i.hasDMARC() {
				i.carry(policy.Milter{Where: w, Program: f.Program, DKIM: f.DKIM, DMARC: f.DMARC})
			}
			i.item(parameter, w, class, why, "")
			continue
		}
		choice := i.choose(parameter, w, options...)
		m := policy.Milter{Where: w, Defer: choice == fidelity.Defer}
		if f != nil {
			m.Program = f.Program
		}
		if f != nil && f.Program == filters.Rspamd {
			var note string
			if m.Greylist, note = i.rspamd(f.File); note != "" {
				why += "; " + note
			}
		}
		if !i.carry(m) && choice == fidelity.Defer {
			i.deferFor(parameter)
		}
		i.item(parameter, w, class, why, choice, options...)
	}
}

// carry puts a milter into the policy, where a filter of the secondary can stand
// for it. It says whether that can be.
func (i *importer) carry(m policy.Milter) bool {
	if _, err := i.spec.Filters.Asking.Use(m.Where); err != nil {
		m.Where = "" // no milter that Postfix could reach
		if m.DKIM == nil && m.DMARC == nil {
			return false
		}
	}
	i.spec.Filters.Milters = append(i.spec.Filters.Milters, m)
	if r := &i.spec.Restrictions; m.Defer && !slices.ContainsFunc(r.Data, func(r policy.Restriction) bool { return r.Kind == deferUnfiltered }) {
		r.Data = slices.Insert(r.Data, 0, policy.Restriction{Kind: deferUnfiltered})
	}
	return true
}

const deferUnfiltered = "defer_unfiltered"

// macroLists are the parameters that name macros, and what a policy calls them.
var macroLists = map[string]string{
	"milter_connect_macros": "connect", "milter_helo_macros": "helo", "milter_mail_macros": "mail", "milter_rcpt_macros": "rcpt",
	"milter_data_macros": "data", "milter_end_of_header_macros": "end_of_header", "milter_end_of_data_macros": "end_of_data",
	"milter_unknown_command_macros": "unknown_command",
}

// asking translates how milters are asked.
func (i *importer) asking() {
	if i.set["smtpd_milters"]+i.set["smtpd_milter_maps"] == "" {
		return
	}
	seconds := func(name string) int {
		d, err := policy.ParseTime(i.set[name])
		if err != nil {
			i.errorf("%s: %w", name, err)
		}
		return int(d / time.Second)
	}
	s := &policy.MilterSettings{
		Hostname: i.set["myhostname"], Protocol: i.set["milter_protocol"], DefaultAction: i.set["milter_default_action"],
		ConnectTimeout: seconds("milter_connect_timeout"), CommandTimeout: seconds("milter_command_timeout"), ContentTimeout: seconds("milter_content_timeout"),
		HeaderSize: i.spec.Limits.HeaderBytes,
		Macros:     map[string][]string{},
		Values:     map[string]string{"v": i.set["milter_macro_v"], "daemon_name": i.set["milter_macro_daemon_name"]},
		Defaults:   map[string]string{},
	}
	for parameter, name := range macroLists {
		s.Macros[name] = words(i.set[parameter])
	}
	for _, w := range words(i.set["milter_macro_defaults"]) {
		if inside, braced := unbrace(w); braced && !strings.Contains(w[strings.LastIndexByte(w, '}'):], "=") {
			w = inside
		}
		name, value, _ := strings.Cut(w, "=")
		name = strings.Trim(strings.TrimSpace(name), "{}")
		if _, there := s.Defaults[name]; !there {
			s.Defaults[name] = strings.TrimSpace(value)
		}
	}
	i.spec.Filters.Asking = s
	i.milterMaps()
}

// milterMaps translates the milters of certain clients.
func (i *importer) milterMaps() {
	const parameter = "smtpd_milter_maps"
	for _, w := range words(i.set[parameter]) {
		name, reason := tableName(w)
		var t *Table
		if reason == nil {
			t, reason = i.table(parameter, name)
		}
		if t != nil {
			reason = t.unlisted()
		}
		why := "filters of the secondary can stand for its milters; where none does, they decide nothing"
		if reason != nil {
			why = reason.Error()
		} else if t != nil {
			i.keep(&i.spec.Filters.MilterMaps, name, t, true)
		}
		i.item(parameter, name, fidelity.NotReplicated, why, fidelity.Ignore)
	}
}

// followed says how well a filter is followed.
func (i *importer) followed(f *filters.Filter, options []string) fidelity.Class {
	switch {
	case options == nil:
		return fidelity.Exact
	case f == nil || !f.Judges() || f.DKIM == nil && f.DMARC == nil && f.SPF == nil && f.Grey == nil:
		return fidelity.NotReplicated
	case len(f.Notes) > 0:
		return fidelity.Approximated
	case f.Grey != nil:
		return fidelity.Exact
	}
	return fidelity.GivenDNS
}

// hears tells opendmarc whose results it hears. It returns why that can't be
// known, "" where it can.
func (i *importer) hears(f *filters.Filter, before []*filters.Filter) string {
	if slices.Contains(before, nil) {
		return "what the milters before it tell it isn't known"
	}
	trusts := func(id string) bool {
		return slices.ContainsFunc(f.Trusts, func(t string) bool { return i.server(t) == i.server(id) })
	}
	for _, b := range before {
		f.DMARC.DKIM = f.DMARC.DKIM || b.Verifies && trusts(b.ServerID)
	}
	ignores := f.DMARC.SPF != ""
	f.DMARC.SPF = ""
	for _, s := range i.services {
		switch {
		case ignores:
		case s.filter == nil:
			return "what the policy service " + s.where + " tells it isn't known"
		case s.filter.SPF != nil && (s.filter.SPF.Header == "SPF" || s.filter.SPF.Header == "AR" && trusts(s.filter.ServerID)):
			f.DMARC.SPF = s.name
		}
	}
	return ""
}

// server is an authserv-id; by default that of Postfix.
func (i *importer) server(id string) string {
	if id == "HOSTNAME" {
		id = i.src.Host.Hostname(i.ctx)
	}
	return strings.ToLower(cmp.Or(id, i.set["myhostname"]))
}

// policyservice is one that the restrictions name.
type policyservice struct {
	where, name string
	filter      *filters.Filter // nil for one that can't be followed
}

// policyService translates a policy service, or returns what takes its place.
func (i *importer) policyService(parameter string, e element) []policy.Restriction {
	f, why, options := i.filter(e.arg)
	grey := ""
	if f != nil && f.Grey != nil {
		var note string
		var err error
		if _, chosen := i.src.Choices[fidelity.Item{Parameter: parameter, Element: e.text()}.ID()]; chosen {
			why += "; it could be followed, but for your choice"
			f.Grey = nil
		} else if grey, note, err = i.greylist(f.Grey); err != nil {
			why += "; " + whyGreyUnread + ": " + err.Error()
			f.Grey = nil
		} else if note != "" {
			f.Notes = append(f.Notes, note)
			why += "; " + note
		}
	}
	class := i.followed(f, options)
	s := policyservice{where: secretFree(e.arg), filter: f}
	if class == fidelity.NotReplicated {
		if f == nil || f.Program != filters.Postgrey { // which writes no results
			s.filter = nil
		}
		i.services = append(i.services, s)
		return i.restriction(parameter, e, class, why, append(options, fidelity.Ask, fidelity.AskElseIgnore))
	}
	i.restriction(parameter, e, class, why, nil)
	if f.Grey != nil {
		i.services = append(i.services, s)
		return []policy.Restriction{{Kind: "check_greylist", Arg: grey}}
	}
	if f.SPF == nil || options == nil && !i.hasDMARC() {
		return nil
	}
	svc := *f.SPF
	if options == nil { // it only tells opendmarc
		svc.HELO, svc.MailFrom, svc.NotPass = "False", "False", nil
	}
	s.name = fmt.Sprintf("policyd-spf-%d", len(i.spec.Filters.SPF)+1)
	if i.spec.Filters.SPF == nil {
		i.spec.Filters.SPF = map[string]policy.SPFService{}
	}
	i.spec.Filters.SPF[s.name] = svc
	i.services = append(i.services, s)
	return []policy.Restriction{{Kind: "check_spf", Arg: s.name}}
}

// hasDMARC says that one of the milters goes by what policyd-spf says.
func (i *importer) hasDMARC() bool {
	return slices.ContainsFunc(words(i.set["smtpd_milters"]), func(w string) bool {
		f, _, _ := i.filter(w)
		return f != nil && f.DMARC != nil
	})
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
	place, known := i.place(at)
	if !known {
		return nil, unknownFilter, options
	}
	f, err = i.readFilter(place)
	switch {
	case err != nil:
		return nil, fmt.Sprintf("%s can't be read: %v", place, err), slices.Clone(unreadable)
	case f.Harmless():
		why = place.String() + " refuses nothing by its settings"
		if len(f.Handles) > 0 {
			why += "; accepted, and then thrown away, returned or quarantined: " + strings.Join(f.Handles, ", ")
		}
		return f, why, nil
	case len(f.Refuses) == 0:
		return f, fmt.Sprintf("%s can't be followed: %s", place, strings.Join(f.Unsure, "; ")), options
	}
	why = fmt.Sprintf("%s refuses %s", place, strings.Join(f.Refuses, ", "))
	if more := slices.Concat(f.Unsure, f.Notes); len(more) > 0 {
		why += "; " + strings.Join(more, "; ")
	}
	return f, why, options
}

// place finds the filter that listens at an endpoint.
func (i *importer) place(at filters.Endpoint) (place filters.Place, known bool) {
	queue := i.set["queue_directory"]
	if place, known = i.placed()[at]; known {
		return place, true
	}
	if place, known = i.spawned(at, queue); known {
		return place, true
	}
	place, files, known := filters.Find(i.ctx, i.filterHost(), at, queue)
	i.watch(files)
	return place, known
}

func (i *importer) readFilter(p filters.Place) (*filters.Filter, error) {
	f, err := filters.Read(i.ctx, i.filterHost(), p.Program, p.File)
	i.watch(f.Files)
	return f, err
}

// watch notes files of filters that the policy depends on.
func (i *importer) watch(names []string) {
	for _, name := range names {
		i.files[filepath.Join(i.src.Root, name)] = true
	}
}

// filterHost is where the filters' configurations are.
func (i *importer) filterHost() *host.Host {
	if i.src.Root != "" {
		return &host.Host{Root: i.src.Root}
	}
	return i.src.Host
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
		return filters.Spawned(s.argv())
	}
	return filters.Place{}, false
}

// filterRemedy is what the operator can do about a filter that isn't followed.
func filterRemedy(parameter, element, why string) string {
	where, _, _ := strings.Cut(strings.Trim(strings.TrimPrefix(element, "check_policy_service "), "{ }"), ",")
	if where = strings.TrimSpace(where); where == "" {
		where = "ENDPOINT"
	}
	var remedies []string
	if why == unknownFilter {
		remedies = append(remedies, fmt.Sprintf("--filter '%s=PROGRAM:FILE', if it is one of %s", where, strings.Join(filters.For(parameter), ", ")))
	}
	if parameter == "smtpd_milters" && (why == unknownFilter || strings.Contains(why, filters.WhyLive)) {
		remedies = append(remedies, fmt.Sprintf("a [[filter]] of the secondary, with milter = %q", where))
	}
	if strings.Contains(why, whyRspamdUnread+": rspamadm") {
		remedies = append(remedies, RspamdRemedy)
	}
	return strings.Join(remedies, "; or ")
}
