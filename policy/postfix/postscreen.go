package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// postscreen translates what stands before smtpd.
func (i *importer) postscreen() {
	ps := i.conf.postscreen
	if ps == nil {
		return
	}
	to := &policy.Postscreen{DenylistAction: i.screenAction("postscreen_denylist_action", "postscreen_blacklist_action")}
	passed := i.screenAccess(to)
	if len(to.Access) > 0 {
		i.item("postscreen_denylist_action", to.DenylistAction, fidelity.Exact, "", "")
	}
	i.screenDNSBL(to, passed)
	i.screenGreet(to, passed)
	i.spec.Postscreen = to
}

// screenGreet translates the wait before the greeting. Without a test, there is
// nothing to wait for.
func (i *importer) screenGreet(to *policy.Postscreen, passed string) {
	ps := i.conf.postscreen
	action := i.screenAction("postscreen_greet_action")
	switch {
	case action == "ignore":
	case passed != "":
		i.item("postscreen_greet_action", action, fidelity.NotReplicated, "nobody gets past "+passed+" of postscreen_access_list", fidelity.Pass)
	default:
		to.GreetAction = action
		to.GreetWait = min(i.seconds(i.conf.postscreen, "postscreen_greet_wait"), 60) // no client waits longer
		to.GreetBanner = strings.TrimSpace(strings.TrimPrefix(ps["postscreen_greet_banner"], i.set["myhostname"]))
		why := whyPassed
		if cache := ps["postscreen_cache_map"]; cache != "" {
			to.GreetTTL = i.seconds(ps, "postscreen_greet_ttl")
			if err := i.screenPassed(to, cache); err != nil {
				why = whyPassed + "; " + cache + " " + whyScreenUnread + ": " + err.Error()
			}
		}
		i.item("postscreen_greet_action", action, fidelity.Approximated, why, "")
		i.item("postscreen_greet_wait", ps["postscreen_greet_wait"], fidelity.Exact, "", "")
	}
}

// screenAction is what a failed test leads to, by the first of the names that
// this Postfix has.
func (i *importer) screenAction(names ...string) string {
	for _, n := range names {
		v, known := i.conf.postscreen[n]
		if !known {
			continue
		}
		if v = strings.ToLower(v); !slices.Contains([]string{"ignore", "enforce", "drop"}, v) {
			i.errorf("%s: Postfix wants ignore, enforce or drop, not %q", n, v)
		}
		return v
	}
	return "ignore"
}

// screenAccess translates postscreen_access_list. passed names the table at
// which all clients pass that come to it, since what it holds isn't known.
func (i *importer) screenAccess(to *policy.Postscreen) (passed string) {
	const parameter = "postscreen_access_list"
	for _, w := range words(i.conf.postscreen[parameter]) {
		switch lower := strings.ToLower(w); {
		case lower == "permit_mynetworks":
			to.Access = append(to.Access, lower)
			i.item(parameter, w, fidelity.Exact, "", "")
			continue
		case lower == "permit" || lower == "reject" || lower == "dunno":
			i.screenEvery(to, lower)
			i.item(parameter, w, fidelity.Exact, "", "")
			return "" // it decides about everybody who comes to it
		case !strings.Contains(w, ":"):
			i.errorf("%s: %q is neither permit_mynetworks nor a table", parameter, w)
			continue
		}
		name, reason := tableName(w)
		var t *Table
		if reason == nil {
			if t, reason = i.table(parameter, name); t == nil && reason == nil {
				continue // the import has failed
			}
		}
		if reason == nil {
			reason = i.useScreen(name, t)
		}
		if reason == nil {
			to.Access = append(to.Access, "table:"+specName(name)+screened)
			i.item(parameter, name, fidelity.Exact, "", "")
			continue
		}
		choice := i.choose(parameter, name, fidelity.Pass, fidelity.Ignore)
		i.item(parameter, name, fidelity.NotReplicated, reason.Error(), choice, fidelity.Pass, fidelity.Ignore)
		if choice == fidelity.Pass {
			i.screenEvery(to, "permit")
			return name
		}
	}
	return ""
}

// screened ends the names of postscreen's tables: another list may use the
// same table, with other values.
const screened = "#postscreen"

// screenEvery decides about all clients alike.
func (i *importer) screenEvery(to *policy.Postscreen, value string) {
	name := "static:" + value
	i.spec.Tables[name] = table.NewStatic(value)
	to.Access = append(to.Access, "table:"+name)
}

// useScreen puts an access list's table into the Spec, its values reduced to
// the word that decides.
func (i *importer) useScreen(name string, t *Table) (reason error) {
	if err := t.unlisted(); err != nil {
		return err
	}
	if t.Kind == Combined {
		return errors.New("a table that combines others")
	}
	word := func(v string) string {
		ws := words(strings.ToLower(v))
		switch {
		case len(ws) == 0:
			return "dunno"
		case ws[0] == "permit_mynetworks" && len(ws) > 1:
			reason = fmt.Errorf("value %q: a list", v)
		case !slices.Contains([]string{"permit", "reject", "dunno", "permit_mynetworks"}, ws[0]):
			reason = fmt.Errorf("value %q: not permit, reject or dunno", v)
		}
		return ws[0]
	}
	c := *t
	c.Value = word(t.Value)
	c.Entries, c.Rules = map[string]string{}, slices.Clone(t.Rules)
	for k, v := range t.Entries {
		c.Entries[k] = word(v)
	}
	for n := range c.Rules {
		if c.Rules[n].Op == Match {
			c.Rules[n].Value = word(c.Rules[n].Value)
		}
	}
	if reason != nil {
		return reason
	}
	pt, reason := c.spec(true)
	if reason == nil {
		i.spec.Tables[specName(name)+screened] = pt
	}
	return reason
}

// screenDNSBL translates the weighted DNS lists.
func (i *importer) screenDNSBL(to *policy.Postscreen, passed string) {
	ps := i.conf.postscreen
	to.DNSBLAction = i.screenAction("postscreen_dnsbl_action")
	threshold, err := strconv.Atoi(ps["postscreen_dnsbl_threshold"])
	if err != nil || threshold < 1 {
		i.errorf("postscreen_dnsbl_threshold: %q is no number that fits here", ps["postscreen_dnsbl_threshold"])
	}
	allow := cmp.Or(ps["postscreen_dnsbl_allowlist_threshold"], ps["postscreen_dnsbl_whitelist_threshold"], "0")
	if to.AllowlistThreshold, err = strconv.Atoi(allow); err != nil || to.AllowlistThreshold > 0 {
		i.errorf("postscreen_dnsbl_allowlist_threshold: %q is no number that fits here", allow)
	}
	sites := i.sites(ps["postscreen_dnsbl_sites"])
	waives := to.AllowlistThreshold < 0 && ps["postscreen_greet_action"] != "ignore"
	if passed != "" {
		for _, s := range sites {
			i.item("postscreen_dnsbl_sites", siteName(s), fidelity.NotReplicated, "nobody gets past "+passed+" of postscreen_access_list", fidelity.Pass)
		}
		return
	}
	if len(sites) == 0 || to.DNSBLAction == "ignore" && !waives {
		for _, s := range sites {
			i.item("postscreen_dnsbl_sites", siteName(s), fidelity.Exact, "postscreen_dnsbl_action is ignore", "")
		}
		return
	}
	i.spec.DNSBL.Sites, i.spec.DNSBL.Threshold = sites, threshold
	for _, s := range sites {
		why := whyMemory
		if !strings.Contains(s.Zone, "=") {
			why += "; " + whyRefusing
		}
		i.item("postscreen_dnsbl_sites", siteName(s), fidelity.Approximated, why, "")
	}
	i.item("postscreen_dnsbl_action", to.DNSBLAction, fidelity.Exact, "", "")
	i.item("postscreen_dnsbl_threshold", ps["postscreen_dnsbl_threshold"], fidelity.Exact, "", "")
	if waives {
		i.item("postscreen_dnsbl_allowlist_threshold", allow, fidelity.Approximated, whyWaived, "")
	}
	i.replyMap(to)
}

func siteName(s policy.DNSBLSite) string {
	return fmt.Sprintf("%s*%d", secretFree(s.Zone), s.Weight)
}

// replyMap translates what hides the keys in the names of DNS lists.
func (i *importer) replyMap(to *policy.Postscreen) {
	const parameter = "postscreen_dnsbl_reply_map"
	for _, w := range words(i.conf.postscreen[parameter]) {
		name, reason := tableName(w)
		var t *Table
		if reason == nil {
			t, reason = i.table(parameter, name)
		}
		switch {
		case reason == nil && t == nil: // the import has failed
		case reason == nil && i.keep(&to.DNSBLReply, name, t, true):
			i.item(parameter, name, fidelity.Exact, "", "")
		default:
			i.item(parameter, name, fidelity.NotReplicated, fmt.Sprint("replies show the names of DNS lists: ", reason), fidelity.Ignore)
		}
	}
}

// sites reads postscreen_dnsbl_sites: zone[=filter][*weight].
func (i *importer) sites(value string) []policy.DNSBLSite {
	var sites []policy.DNSBLSite
	for _, w := range words(value) {
		zone, weight, weighted := strings.Cut(w, "*")
		s := policy.DNSBLSite{Zone: zone, Weight: 1}
		if weighted {
			var err error
			if s.Weight, err = strconv.Atoi(weight); err != nil {
				i.errorf("postscreen_dnsbl_sites: %q has no number after *", w)
			}
		}
		sites = append(sites, s)
	}
	return sites
}
