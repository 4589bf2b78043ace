package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// aclRouter is a router compiled.
type aclRouter struct {
	*ACLRouter
}

func (o *ACLRouter) flag(name string, otherwise bool) bool {
	switch o.Options[name] {
	case "true":
		return true
	case "false":
		return false
	}
	return otherwise
}

// routerStrings are the options that are expanded.
var routerStrings = []string{
	"domains", "local_parts", "senders", "condition", "data", "cannot_route_message", "address_data", "router_home_directory", "require_files",
	"route_data", "unseen", "ignore_target_hosts", "qualify_domain", "local_part_prefix", "local_part_suffix",
}

func (c *compiler) router(a *acl, r *ACLRouter) aclRouter {
	where := "acl.routers." + r.Name
	if !slices.Contains(routerDrivers, r.Driver) {
		c.errorf("%s: unknown driver %q", where, r.Driver)
	}
	for _, name := range routerStrings {
		if v := r.Options[name]; v != "" {
			c.parse(a, where+"."+name, v)
		}
	}
	for _, pattern := range RoutePatterns(r.Options["route_list"]) {
		c.parse(a, where+".route_list", pattern)
	}
	if next := r.Options["pass_router"]; next != "" && !slices.ContainsFunc(a.ACL.Routers, func(o ACLRouter) bool { return o.Name == next }) {
		c.errorf("%s.pass_router: no router is called %q", where, next)
	}
	return aclRouter{ACLRouter: r}
}

// aclAddress is an address with what its verification came to.
type aclAddress struct {
	address string
	rc      outcome
	message string // the reason
	user    string // as the client may hear it even where the sender is verified
	pass    bool   // even where temporary errors aren't explained
	forced  bool   // by :fail:, perhaps without a reason
	remote  bool   // it is relayed to another server
	data    string // $address_data
}

// routing is the verification of an address under way.
type routing struct {
	sender   bool
	address  string
	parents  []routed
	original string

	given                         string // the local-part as it came
	local, domain, prefix, suffix string
	domainData, localData         string
	home, uid, gid                string
	addressData                   string
	message, user                 string
	pass, forced                  bool
	children                      []string
	router                        *aclRouter
}

// routed is an ancestor of an address and the router that made it one.
type routed struct {
	router, address string
}

// Bounds of the children of addresses.
const (
	maxParents  = 100
	maxChildren = 1000
)

// results of a router.
type routeResult uint8

const (
	routeDone routeResult = iota // the address is good, or has children
	routeFail
	routeDefer
	routeDecline
	routePass
	routeSkip // a precondition isn't met
)

// routed verifies an address as the primary's routers do, up to the first with
// several children.
func (r *aclRun) routed(address string, sender, onRedirect bool) *aclAddress {
	out := &aclAddress{address: address}
	t := &routing{sender: sender, original: address}
	saved := r.route
	r.route = t
	defer func() { r.route = saved }()
	for {
		t.begin(address)
		rc := r.throughRouters(t)
		out.rc, out.data, out.pass = rc, t.addressData, t.pass
		out.remote = rc == aclOK && len(t.children) == 0 && t.router.remote()
		if rc != aclOK {
			out.message, out.user, out.forced = t.message, t.user, t.forced
			return out
		}
		if len(t.children) != 1 || onRedirect || isDelivery(t.children[0]) {
			return out
		}
		t.parents = append(t.parents, routed{t.router.Name, t.address})
		address = t.children[0]
	}
}

func (t *routing) begin(address string) {
	at := strings.LastIndexByte(address, '@')
	t.address, t.given, t.domain = address, address[:max(0, at)], expansion.Lower(address[at+1:])
	t.forced, t.message, t.user, t.pass, t.children, t.router, t.addressData = false, "", "", false, nil, nil, ""
}

// throughRouters asks each router in turn.
func (r *aclRun) throughRouters(t *routing) outcome {
	routers := r.acl.routers
	if len(t.parents) > maxParents {
		return aclDefer
	}
loop:
	for i := 0; i < len(routers); i++ {
		ro := &routers[i]
		t.router = ro
		if t.looped(ro) || !t.affixes(ro) {
			continue
		}
		rc := r.preconditions(t, ro)
		if rc == routeDone {
			if rc = r.runRouter(t, ro); rc == routeDone && r.unseen(ro) {
				if len(t.children) == 0 {
					continue // the address goes on alone
				}
				t.children = append(t.children, t.address)
			}
			if rc == routeDone && ro.flag(map[bool]string{true: "fail_verify_sender", false: "fail_verify_recipient"}[t.sender], ro.flag("fail_verify", false)) {
				t.message = ro.Name + " router forced verify failure"
				return aclFail
			}
		}
		switch rc {
		case routeDone:
			return aclOK
		case routeFail:
			return aclFail
		case routeDefer:
			return aclDefer
		case routeSkip:
		case routePass:
			if next := ro.Options["pass_router"]; next != "" {
				i = slices.IndexFunc(routers, func(o aclRouter) bool { return o.Name == next }) - 1
				if i >= 0 && i < slices.IndexFunc(routers, func(o aclRouter) bool { return o.Name == ro.Name }) {
					return aclDefer // backwards: Exim doesn't allow it
				}
			}
		case routeDecline:
			if !ro.flag("more", true) {
				break loop
			}
		}
	}
	if t.message == "" {
		t.message = "Unrouteable address"
		if t.router != nil && t.router.Options["cannot_route_message"] != "" {
			if text, err := r.expand(t.router.Options["cannot_route_message"]); err == nil {
				t.message = text
			}
		}
		t.user = t.message
	}
	return aclFail
}

// unseen says that an address which a router takes goes on to the next one, too.
func (r *aclRun) unseen(ro *aclRouter) bool {
	text := ro.Options["unseen"]
	if text == "" {
		return false
	}
	v, err := r.expand(text)
	return err == nil && (strings.EqualFold(v, "true") || strings.EqualFold(v, "yes"))
}

// remote says that a router's transport speaks to another server.
func (o *ACLRouter) remote() bool {
	return slices.Contains([]string{"dnslookup", "manualroute", "ipliteral"}, o.Driver) || o.flag("remote", false)
}

// looped says that an ancestor of the address has been through the router.
func (t *routing) looped(ro *aclRouter) bool {
	return slices.ContainsFunc(t.parents, func(p routed) bool {
		return p.router == ro.Name && (!ro.flag("repeat_use", true) || strings.EqualFold(p.address, t.address))
	})
}

// affixes takes the router's prefix and suffix off the local-part.
func (t *routing) affixes(ro *aclRouter) bool {
	t.local, t.prefix, t.suffix = expansion.Lower(t.given), "", ""
	if ro.flag("caseful_local_part", false) {
		t.local = t.given
	}
	if list := ro.Options["local_part_prefix"]; list != "" {
		n := affix(t.local, list, true)
		if n == 0 && !ro.flag("local_part_prefix_optional", false) {
			return false
		}
		t.prefix, t.local = t.local[:n], t.local[n:]
	}
	if list := ro.Options["local_part_suffix"]; list != "" {
		n := affix(t.local, list, false)
		if n == 0 && !ro.flag("local_part_suffix_optional", false) {
			return false
		}
		t.suffix, t.local = t.local[len(t.local)-n:], t.local[:len(t.local)-n]
	}
	return true
}

// affix is the length of the first affix of the list that s has.
func affix(s, list string, prefix bool) int {
	for _, a := range expansion.List(list) {
		switch {
		case prefix && strings.HasPrefix(a, "*"):
			for i := len(s) - len(a) + 1; i >= 0; i-- {
				if strings.EqualFold(s[i:min(len(s), i+len(a)-1)], a[1:]) {
					return i + len(a) - 1
				}
			}
		case prefix:
			if len(s) >= len(a) && strings.EqualFold(s[:len(a)], a) {
				return len(a)
			}
		case strings.HasSuffix(a, "*"):
			for i := 0; i+len(a)-1 <= len(s); i++ {
				if strings.EqualFold(s[i:i+len(a)-1], a[:len(a)-1]) {
					return len(s) - i
				}
			}
		case len(s) >= len(a) && strings.EqualFold(s[len(s)-len(a):], a):
			return len(a)
		}
	}
	return 0
}

// preconditions are a router's, in Exim's order.
func (r *aclRun) preconditions(t *routing, ro *aclRouter) routeResult {
	t.domainData, t.localData, t.home, t.uid, t.gid = "", "", "", "", ""
	verify := "verify_recipient"
	if t.sender {
		verify = "verify_sender"
	}
	if !ro.flag(verify, ro.flag("verify", true)) {
		return routeSkip
	}
	if rc := r.routerList(ro, "domains", listDomain, t.domain, &t.domainData); rc != routeDone {
		return rc
	}
	local := t.given[len(t.prefix) : len(t.given)-len(t.suffix)]
	if rc := r.routerList(ro, "local_parts", listLocal, local, &t.localData); rc != routeDone {
		return rc
	}
	if ro.flag("check_local_user", false) {
		if !r.localUser(t) {
			return routeSkip
		}
	}
	if h := ro.Options["router_home_directory"]; h != "" {
		home, err := r.expand(h)
		if err != nil && !errors.Is(err, expansion.ErrForced) {
			return routeDefer
		}
		if err == nil {
			t.home = home
		}
	}
	if rc := r.routerList(ro, "senders", listAddress, r.senderNow(), nil); rc != routeDone {
		return rc
	}
	if rc := r.requireFiles(ro); rc != routeDone {
		return rc
	}
	if rc := r.routerCondition(ro); rc != routeDone {
		return rc
	}
	if d := ro.Options["address_data"]; d != "" {
		v, err := r.expand(d)
		switch {
		case errors.Is(err, expansion.ErrForced):
			return routeDecline
		case err != nil:
			return routeDefer
		}
		t.addressData = v
	}
	return routeDone
}

func (r *aclRun) routerCondition(ro *aclRouter) routeResult {
	c := ro.Options["condition"]
	if c == "" {
		return routeDone
	}
	v, err := r.expand(c)
	switch {
	case err != nil && !errors.Is(err, expansion.ErrForced) && errors.Is(err, expansion.ErrDefer):
		r.route.message = "condition check lookup defer"
		return routeDefer
	case err != nil, v == "", v == "0", strings.EqualFold(v, "no"), strings.EqualFold(v, "false"):
		return routeSkip
	}
	return routeDone
}

func (r *aclRun) routerList(ro *aclRouter, option string, kind listKind, what string, value *string) routeResult {
	list, given := ro.Options[option]
	if !given {
		return routeDone
	}
	switch r.matches(kind, what, list, value) {
	case aclOK:
		return routeDone
	case aclFail:
		return routeSkip
	}
	r.route.message = option + " check lookup or other defer"
	return routeDefer
}

// localUser looks the local-part up among the login names.
func (r *aclRun) localUser(t *routing) bool {
	if r.acl.users == nil || t.local == "" || t.local != expansion.Lower(t.local) {
		return false
	}
	v, found, err := r.get(r.acl.users, t.local)
	if err != nil || !found {
		return false
	}
	f := strings.SplitN(v, " ", 3)
	if len(f) == 3 {
		t.uid, t.gid, t.home = f[0], f[1], f[2]
	}
	t.localData = t.local
	return true
}

// requireFiles is the option of that name, for files that are there or not.
func (r *aclRun) requireFiles(ro *aclRouter) routeResult {
	list := ro.Options["require_files"]
	if list == "" {
		return routeDone
	}
	text, err := r.expand(list)
	switch {
	case errors.Is(err, expansion.ErrForced):
		return routeDone
	case err != nil:
		return routeDefer
	}
	for _, f := range expansion.List(text) {
		f = strings.TrimPrefix(f, "+")
		not := strings.HasPrefix(f, "!")
		f = strings.TrimSpace(strings.TrimPrefix(f, "!"))
		if !strings.HasPrefix(f, "/") {
			continue // a user under whom the next files are looked for
		}
		if r.acl.exist[f] == not {
			return routeSkip
		}
	}
	return routeDone
}

// runRouter does what a router does once its preconditions are met.
func (r *aclRun) runRouter(t *routing, ro *aclRouter) routeResult {
	switch ro.Driver {
	case "accept":
		return routeDone
	case "redirect":
		return r.redirect(t, ro)
	case "dnslookup":
		return r.dnsRoute(t, ro)
	case "manualroute":
		return r.manualRoute(t, ro)
	case "ipliteral":
		if _, err := netip.ParseAddr(strings.TrimPrefix(strings.Trim(t.domain, "[]"), "ipv6:")); err != nil || !strings.HasPrefix(t.domain, "[") {
			return routeDecline
		}
		return routeDone
	}
	if ro.Options["choice"] == "ignore" {
		return routeDecline
	}
	return routeDefer
}
