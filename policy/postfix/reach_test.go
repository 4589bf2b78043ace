package postfix_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// TestTurnedAway: which domains get no mail at all, and what the report says of
// whom it can't know.
func TestTurnedAway(t *testing.T) {
	for _, tt := range []struct {
		name, main string
		want       string   // domains turned away
		lists      string   // of domains that can't be known
		concerns   []string // of each item about what can't be known
	}{
		{"all is known", "", "", "", nil},
		{"nobody is known", "virtual_mailbox_domains = b.example a.example\nvirtual_mailbox_maps = tcp:127.0.0.1:1\n", "a.example b.example", "",
			[]string{"all but the 0 known addresses of 2 domains: a.example, b.example"}},
		{"somebody is", "virtual_mailbox_domains = b.example a.example\nvirtual_mailbox_maps = tcp:127.0.0.1:1 inline:{x@a.example=x}\n", "b.example", "",
			[]string{"all but the 1 known address of 2 domains: a.example, b.example"}},
		{"by a catch-all", "virtual_mailbox_domains = a.example\nvirtual_mailbox_maps = tcp:127.0.0.1:1 inline:{@a.example=x}\n", "", "",
			[]string{"all but the 1 known address of 1 domain: a.example"}},
		{"by a pattern", "virtual_mailbox_domains = a.example\nvirtual_mailbox_maps = tcp:127.0.0.1:1 regexp:{{/^x/ x}}\n", "", "",
			[]string{"all but the 0 known addresses of 1 domain: a.example"}},
		{"everybody is", "virtual_mailbox_domains = a.example\nvirtual_mailbox_maps = tcp:127.0.0.1:1 static:x\n", "", "", []string{""}},
		{"bare local users", "local_recipient_maps = tcp:127.0.0.1:1 inline:{root=x}\n", "", "", []string{"all but the 1 known address of 1 domain: mx.example.org"}},
		{"no local users", "local_recipient_maps = tcp:127.0.0.1:1\n", "mx.example.org", "", []string{"all but the 0 known addresses of 1 domain: mx.example.org"}},
		{"relayed whole", "relay_domains = r.example\nvirtual_alias_maps = tcp:127.0.0.1:1\n", "", "",
			[]string{"every address in the domains that it holds, whichever these are", "all but the 1 known address of 1 domain: mx.example.org"}},
		{"subdomains, too", "relay_domains = r.example\nrelay_recipient_maps = tcp:127.0.0.1:1\n", "r.example", "", []string{"all but the 0 known addresses of 1 domain: r.example"}},
		{"domains", "relay_domains = tcp:127.0.0.1:1\n", "", "relay_domains: tcp:127.0.0.1:1", []string{"every address in the domains that it holds, whichever these are"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, report := load(t, install(t, map[string]string{"main.cf": base + "parent_domain_matches_subdomains = relay_domains\n" + tt.main}))
			if got := strings.Join(fidelity.TurnedAway(spec), " "); got != tt.want {
				t.Errorf("turned away: %q, want %q", got, tt.want)
			}
			if got := strings.Join(report.DomainsUnknown(), " "); got != tt.lists {
				t.Errorf("unknown lists: %q, want %q", got, tt.lists)
			}
			var concerns []string
			for _, it := range report.Items {
				if strings.Contains(it.Element, "tcp:") {
					concerns = append(concerns, it.Concerns)
					if it.Unknown != (it.Concerns != "") {
						t.Errorf("%s is unknown: %v", it.ID(), it.Unknown)
					}
				}
			}
			if diff := cmp.Diff(tt.concerns, concerns); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
