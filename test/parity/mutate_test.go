package parity

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
)

// played is a session with the primary's replies.
type played struct {
	session parity.Session
	primary parity.Transcript
}

// mutant is a policy that differs from the imported one in a single place.
type mutant struct {
	what string
	spec []byte
}

// mutants takes out each restriction, domain, network and entry of a table in
// turn, and turns each action of an access table around.
func mutants(t *testing.T, spec *policy.Spec) []mutant {
	t.Helper()
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(snap.Encode(), &tree); err != nil {
		t.Fatal(err)
	}
	var all []mutant
	add := func(what string) {
		b, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, mutant{what, b})
	}
	for _, at := range []string{"restrictions", "restriction_classes"} {
		lists, _ := tree[at].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(lists)) {
			without(lists, name, at+"."+name, add)
		}
	}
	without(tree, "mynetworks", "mynetworks", add)
	addresses := tree["addresses"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		if class, ok := addresses[name].(map[string]any); ok {
			without(class, "domains", name+".domains", add)
		}
	}
	tables, _ := tree["tables"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		table := tables[name].(map[string]any)
		for _, field := range []string{"keys", "rules"} {
			without(table, field, name, add)
		}
		entries, _ := table["entries"].(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			value := entries[key]
			delete(entries, key)
			add(name + " without " + key)
			if s, _ := value.(string); action(s) {
				entries[key] = map[bool]string{true: "REJECT mutated", false: "OK"}[strings.EqualFold(s, "OK") || strings.EqualFold(s, "DUNNO")]
				add(fmt.Sprint(name, " with ", key, " = ", entries[key]))
			}
			entries[key] = value
		}
	}
	return all
}

func action(value string) bool {
	word, _, _ := strings.Cut(value, " ")
	return slices.Contains([]string{"OK", "DUNNO", "REJECT", "DEFER", "DISCARD"}, strings.ToUpper(word))
}

// without takes each element of the list in[field] out in turn.
func without(in map[string]any, field, what string, add func(string)) {
	list, _ := in[field].([]any)
	for i, e := range list {
		in[field] = slices.Concat(list[:i:i], list[i+1:])
		add(fmt.Sprint(what, " without ", e))
	}
	if list != nil {
		in[field] = list
	}
}

// mutations asserts that the tester sees: of the mutants, each step-th is
// played, until its first difference. Those that can't be told from the
// original by any session are in same, with the reason. With a step of 1 every
// other must be seen; a sample, which has fewer sessions too, must show half.
func mutations(t *testing.T, spec *policy.Spec, nameserver string, sessions []played, step int, same map[string]string) {
	t.Helper()
	all := mutants(t, spec)
	var seen, unseen, excused, skipped int
	for i := 0; i < len(all); i += step {
		m := all[i]
		snap, err := policy.Parse("mutant", m.spec, nil)
		if err != nil {
			skipped++ // a class or table that others need
			continue
		}
		found := found(t, snap.Spec(), nameserver, sessions)
		reason, known := expected(same, m.what)
		switch {
		case found && known:
			t.Errorf("mutant %s: seen, though it is said to be the same: %s", m.what, reason)
		case found:
			seen++
		case known:
			excused++
		case step == 1:
			t.Errorf("mutant %s: no session of %d sees it", m.what, len(sessions))
		default:
			unseen++
			t.Logf("mutant %s: no session of %d sees it; more may", m.what, len(sessions))
		}
	}
	if unseen > seen && len(sessions) > defaultSessions/2 {
		t.Errorf("of a sample of %d mutants only %d are seen", seen+unseen, seen)
	}
	t.Logf("mutants %d of %d played, %d seen, %d not, %d the same, %d not valid", (len(all)+step-1)/step, len(all), seen, unseen, excused, skipped)
}

func expected(same map[string]string, what string) (string, bool) {
	for k, reason := range same {
		if strings.Contains(what, k) {
			return reason, true
		}
	}
	return "", false
}

func found(t *testing.T, spec *policy.Spec, nameserver string, sessions []played) bool {
	t.Helper()
	local, stop := serve(t, spec, nameserver)
	defer stop()
	for _, s := range sessions {
		if differs(t, local, s) {
			return true
		}
	}
	return false
}

// differs plays a session twice: what only one of the two shows is chance.
func differs(t *testing.T, local parity.Dialer, s played) bool {
	t.Helper()
	for range 2 {
		d, err := parity.Check(t.Context(), local, s.session, s.primary)
		if d == nil && err == nil { // an error: not even the tester is greeted
			return false
		}
	}
	return true
}
