package exim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// routerLists are options that are lists.
var routerLists = map[string]string{"domains": "domainlist", "local_parts": "localpartlist", "senders": "addresslist", "ignore_target_hosts": "hostlist"}

// routerTexts are options that are expanded otherwise.
var routerTexts = []string{"condition", "cannot_route_message", "address_data", "router_home_directory", "route_data", "qualify_domain", "unseen"}

// routerFlags take part in a verification.
var routerFlags = []string{
	"verify", "verify_sender", "verify_recipient", "fail_verify", "fail_verify_sender", "fail_verify_recipient", "more", "check_local_user", "caseful_local_part",
	"local_part_prefix_optional", "local_part_suffix_optional", "repeat_use", "allow_fail", "allow_defer", "forbid_blackhole", "forbid_smtp_code", "skip_syntax_errors",
	"check_ancestor", "qualify_preserve_domain", "pass_on_timeout",
}

// routerPlain are options that are taken as they are.
var routerPlain = []string{"local_part_prefix", "local_part_suffix", "pass_router", "self"}

// routerNone decide nothing when an address is verified.
var routerNone = []string{
	"driver", "transport", "user", "group", "initgroups", "debug_print", "address_test", "disable_logging", "dsn_lasthop", "errors_to", "expn", "headers_add",
	"headers_remove", "log_as_local", "redirect_router", "retry_use_local_part", "fallback_hosts", "transport_home_directory", "transport_current_directory",
	"directory_transport", "file_transport", "pipe_transport", "reply_transport", "same_domain_copy_routing", "rewrite", "rewrite_headers", "hosts_randomize",
	"host_all_ignored", "host_find_failed", "syntax_errors_to", "syntax_errors_text", "allow_filter", "allow_freeze", "check_owner", "check_group", "owners", "owngroups",
	"modemask", "one_time", "hide_child_in_errmsg", "ignore_eacces", "ignore_enotdir", "include_directory", "sieve_subaddress", "sieve_useraddress", "sieve_vacation_directory",
	"forbid_include", "forbid_exim_filter", "forbid_file", "forbid_pipe", "forbid_filter_run", "forbid_filter_lookup", "forbid_filter_perl", "forbid_filter_existstest",
	"forbid_filter_dlfunc", "forbid_filter_logwrite", "forbid_filter_readfile", "forbid_filter_readsocket", "forbid_filter_reply", "forbid_sieve_filter", "dnssec_request_domains",
	"verify_only", "qualify_single", "widen_domains", "search_parents", "set", "headers_rewrite", "translate_ip_address",
}

// routers translates those that verify addresses.
func (i *importer) routers() {
	i.routing = true
	defer func() { i.routing = false }()
	for n := range i.conf.routers {
		r := &i.conf.routers[n]
		if r.options["verify"] == "false" && r.options["verify_recipient"] != "true" && r.options["verify_sender"] != "true" {
			continue
		}
		i.acl.Routers = append(i.acl.Routers, i.router(r))
	}
	known := func(name string) bool {
		return slices.ContainsFunc(i.acl.Routers, func(r policy.ACLRouter) bool { return r.Name == name })
	}
	for n := range i.acl.Routers {
		if next := i.acl.Routers[n].Options["pass_router"]; next != "" && !known(next) {
			delete(i.acl.Routers[n].Options, "pass_router")
		}
	}
}

func (i *importer) router(r *routerText) policy.ACLRouter {
	out := policy.ACLRouter{Name: r.name, Driver: r.options["driver"], Options: map[string]string{}}
	var why error
	fail := func(name string, err error) {
		if err != nil && why == nil {
			why = fmt.Errorf("%s: %s: %w", cmp.Or(r.at[name], r.where), name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.options)) {
		value := r.withHome(name)
		i.here = cmp.Or(r.at[name], r.where)
		kind, isList := routerLists[name]
		var err error
		switch {
		case isList:
			value, err = i.listString(value, kind)
		case name == "require_files":
			err = i.requireFiles(value)
		case name == "data":
			i.include(value)
			value, err = i.str(value)
		case name == "route_list":
			err = i.routes(value)
		case name == "file":
			err = fmt.Errorf("what is in a file of each user decides")
		case slices.Contains(routerTexts, name):
			value, err = i.str(value)
		case slices.Contains(routerFlags, name), slices.Contains(routerPlain, name):
		case slices.Contains(routerNone, name):
			continue
		case strings.HasPrefix(name, "set "):
			continue
		case name == "check_secondary_mx" && value == "false":
			continue
		default:
			err = fmt.Errorf("it isn't known")
		}
		if err != nil {
			fail(name, err)
			continue
		}
		out.Options[name] = value
	}
	if t := r.options["transport"]; out.Driver == "accept" && (strings.Contains(t, "$") || i.conf.drivers[t] == "smtp") {
		out.Options["remote"] = "true"
	}
	if r.options["check_local_user"] == "true" {
		fail("check_local_user", i.users())
	}
	if !slices.Contains([]string{"accept", "redirect", "dnslookup", "manualroute", "ipliteral"}, out.Driver) {
		fail("driver", fmt.Errorf("%s asks another program", out.Driver))
	}
	class := fidelity.Exact
	if out.Driver == "dnslookup" {
		class = fidelity.GivenDNS
	}
	if why == nil {
		i.item("router "+r.name, out.Driver, class, "", "")
		return out
	}
	i.notFollowed(&out, why)
	return out
}

// routes lists what the domains of a route_list refer to.
func (i *importer) routes(list string) error {
	for _, pattern := range policy.RoutePatterns(list) {
		got, err := i.listString(pattern, "domainlist")
		if err == nil && got != pattern {
			err = errors.New("a query in route_list isn't followed; use route_data")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// notFollowed has a router that isn't followed decide as the operator chooses.
func (i *importer) notFollowed(r *policy.ACLRouter, why error) {
	name := "router " + r.Name
	choice := i.choose(name, r.Driver, fidelity.Defer, fidelity.Ignore)
	i.item(name, r.Driver, fidelity.NotReplicated, why.Error(), choice, fidelity.Defer, fidelity.Ignore)
	it := &i.report.Items[len(i.report.Items)-1]
	it.Unknown, it.Concerns = choice == fidelity.Defer, "recipients that no router before it has"
	r.Driver, r.Options["choice"] = "unknown", choice
}

var homeVariable = regexp.MustCompile(`\$home\b|\$\{home\}`)

// withHome is an option with what its $home stands for, so that the files in it can be
// listed.
func (r *routerText) withHome(name string) string {
	home := r.options["router_home_directory"]
	if home == "" && r.options["check_local_user"] == "true" {
		home = "${extract{5}{:}{${lookup passwd{$local_part}}}}"
	}
	if home == "" || name == "router_home_directory" {
		return r.options[name]
	}
	return homeVariable.ReplaceAllLiteralString(r.options[name], home)
}

// requireFiles notes which of the files are there.
func (i *importer) requireFiles(s string) error {
	got, err := i.str(s)
	if err != nil {
		return err
	}
	p, err := expansion.Parse(got)
	if err != nil {
		return err
	}
	globs, ok := p.Shapes(i.values)
	if !ok {
		return fmt.Errorf("which files it asks for depends on too much")
	}
	var files []string
	for _, glob := range globs {
		files = append(files, expansion.List(glob)...)
	}
	for _, f := range files {
		f = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(f, "+"), "!"))
		if strings.HasPrefix(f, "/") {
			if err := i.existing(f); err != nil {
				return err
			}
		} else if strings.Contains(f, "/") {
			return fmt.Errorf("%q may be any file", f)
		}
	}
	return nil
}

// rewriting reports the rules that change addresses of the envelope.
func (i *importer) rewriting() {
	for _, rule := range i.conf.rewrite {
		line := rule.arg
		at := strings.LastIndexAny(line, " \t")
		flags := ""
		if at >= 0 {
			flags = line[at+1:]
		}
		if strings.Trim(flags, "EFTbcfhrstSQqRw") != "" { // no flags: all of it
			flags = "EFT"
		}
		if strings.ContainsAny(flags, "EFTS") {
			why := "senders aren't rewritten before they are verified"
			if strings.ContainsAny(flags, "ETS") {
				why = "recipients aren't rewritten before they are verified"
			}
			i.item("rewrite", line, fidelity.Approximated, rule.where+": "+why, "the address as it came")
		}
	}
}
