package main

import (
	"context"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// guarded are the databases of a policy that this command can read as root outside of
// the sandbox, while the publisher, whose unit is shown, can't.
func guarded(cfg *config.Policy, spec *policy.Spec, unit map[string]string) (gaps []doctor.Gap) {
	if !publisher.HostOf(cfg).Local() || unit["LoadState"] != "loaded" {
		return nil
	}
	if unit["MemoryDenyWriteExecute"] == "yes" && slices.ContainsFunc(spec.Filters.Milters, func(m policy.Milter) bool { return m.Greylist != nil }) {
		gaps = append(gaps, doctor.Gap{What: "rspamd", Why: "the unit understudy-publish has MemoryDenyWriteExecute, with which rspamadm doesn't run", Remedy: postfix.RspamdRemedy})
	}
	if readsAll(unit) {
		return gaps
	}
	var names []string
	for _, g := range spec.Filters.Greylists {
		names = append(names, "postgrey:"+g.Database)
	}
	if spec.Postscreen != nil {
		for _, name := range spec.Postscreen.GreetPassed {
			names = append(names, strings.TrimSuffix(name, "#postscreen"))
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if !slices.ContainsFunc(cfg.PostfixList, func(l string) bool { return strings.HasPrefix(l, name+"=") }) {
			gaps = append(gaps, doctor.Gap{What: name, Why: "the unit understudy-publish has no CAP_DAC_READ_SEARCH", Remedy: postfix.ReadRemedy})
		}
	}
	return gaps
}

// readsAll tells whether a unit may read any file.
func readsAll(unit map[string]string) bool {
	return unit["User"] == "root" || slices.Contains(strings.Fields(unit["AmbientCapabilities"]), "cap_dac_read_search")
}

// unitOf is what systemd says of a unit; nothing where there is no systemd.
func unitOf(ctx context.Context, name string) map[string]string {
	text, err := command(ctx, "systemctl", "show", "--property=LoadState,User,AmbientCapabilities,MemoryDenyWriteExecute,SupplementaryGroups,ProtectHome", name)
	if err != nil {
		return nil
	}
	all := map[string]string{}
	for line := range strings.Lines(text) {
		property, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[property] = value
	}
	return all
}
