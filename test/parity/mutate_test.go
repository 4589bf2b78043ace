package parity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
)

// played is a session, by its number, with the primary's replies.
type played struct {
	n       int
	primary parity.Transcript
}

// mutant is a policy that differs from the imported one in a single place.
type mutant struct {
	what string
	spec []byte
}

// mutator makes mutants of a tree, which is a policy's canonical encoding.
type mutator struct {
	t    *testing.T
	tree map[string]any
	all  []mutant
}

// mutants changes every rule of a policy in turn: it takes out each element of
// a list and each entry of a table, turns each action around and each switch
// over, and resets each setting that isn't Postfix's default.
func mutants(t *testing.T, spec *policy.Spec) []mutant {
	t.Helper()
	m := mutator{t: t, tree: tree(t, spec)}
	if filters, ok := m.tree["filters"].(map[string]any); ok { // no filter of the secondary's stands in here
		delete(filters, "milters")
		delete(filters, "milter_settings")
	}
	m.walk(m.tree, tree(t, policy.NewSpec()), "", nil)
	return m.all
}

func tree(t *testing.T, spec *policy.Spec) map[string]any {
	t.Helper()
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(snap.Encode(), &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// add puts value in place of old while a mutant is made.
func (m *mutator) add(what string, set func(any), value, old any) {
	set(value)
	b, err := json.Marshal(m.tree)
	if err != nil {
		m.t.Fatal(err)
	}
	set(old)
	m.all = append(m.all, mutant{strings.TrimPrefix(what, "."), b})
}

// walk changes what is at a path of the tree, where set puts a value; nil takes
// it away. def is Postfix's default.
func (m *mutator) walk(v, def any, path string, set func(any)) {
	switch v := v.(type) {
	case map[string]any:
		defs, _ := def.(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(v)) {
			put := func(x any) {
				if v[k] = x; x == nil {
					delete(v, k)
				}
			}
			if strings.HasSuffix(path, ".entries") {
				m.add(strings.TrimSuffix(path, ".entries")+" without "+k, put, nil, v[k])
			}
			if k != "version" && k != "type" {
				m.walk(v[k], defs[k], path+"."+k, put)
			}
		}
	case []any:
		for i, e := range v {
			name := strings.TrimSuffix(strings.TrimSuffix(path, ".keys"), ".rules")
			m.add(fmt.Sprint(name, " without ", e), set, slices.Concat(v[:i:i], v[i+1:]), v)
			if rule, ok := e.([]any); ok && len(rule) == 2 {
				m.turn(fmt.Sprint(name, " with ", rule[0]), rule[1], func(x any) { rule[1] = x })
			} else if restriction, ok := e.(string); ok {
				if zone, _, filtered := strings.Cut(restriction, "="); filtered && strings.Contains(restriction, " ") {
					m.add(path+" with "+zone+" unfiltered", func(x any) { v[i] = x }, zone, e)
				}
			} else {
				m.walk(e, nil, fmt.Sprint(path, ".", i), func(x any) { v[i] = x })
			}
		}
	case bool:
		m.add(fmt.Sprint(path, " = ", !v), set, !v, v)
	default:
		switch {
		case strings.Contains(path, ".entries.") || strings.HasSuffix(path, ".value"):
			m.turn(path, v, set)
		case v != nil && v != def:
			m.add(fmt.Sprint(path, " reset"), set, def, v)
		}
	}
}

// turn makes an action of an access table its opposite.
func (m *mutator) turn(path string, value any, set func(any)) {
	text, _ := value.(string)
	word, _, _ := strings.Cut(text, " ")
	turned := "OK"
	switch word = strings.ToUpper(word); {
	case word == "OK" || word == "DUNNO":
		turned = "REJECT"
	case word != "REJECT" && word != "DEFER" && word != "DISCARD" && (word < "4" || word > "6"):
		return
	}
	m.add(fmt.Sprint(path, " = ", turned), set, turned, value)
}

// mutations asserts that the tester sees: each step-th mutant must differ in
// one of the sessions. Those that no session can tell from the original are in
// same, with the reason. A sample (a step beyond 1), which has fewer sessions
// too, may miss one in four.
func (r *run) mutations(t *testing.T, step int, same map[string]string) {
	t.Helper()
	all := mutants(t, r.primary.spec)
	var mu sync.Mutex // guards the counts
	var seen, unseen, excused, invalid int
	used := map[string]bool{}
	try := func(m mutant) {
		snap, err := policy.Decode("mutant", bytes.NewReader(m.spec), nil)
		var d *parity.Difference
		if err == nil {
			d = r.find(t, snap.Spec())
		}
		mu.Lock()
		defer mu.Unlock()
		excuse := expected(same, m.what)
		used[excuse] = true
		switch {
		case err != nil: // a class or table that others need
			invalid++
		case d != nil && excuse != "":
			t.Errorf("mutant %s: seen, though it is said to be the same: %s\n%s", m.what, same[excuse], d)
		case d != nil:
			seen++
		case excuse != "":
			excused++
		case step == 1:
			t.Errorf("mutant %s: no session of %d sees it", m.what, len(r.trace))
		default:
			unseen++
			t.Logf("mutant %s: no session of %d sees it; more may", m.what, len(r.trace))
		}
	}
	var wg sync.WaitGroup
	for w := range parallel {
		wg.Go(func() {
			for i := w * step; i < len(all); i += parallel * step {
				m := all[i]
				m.what = strings.ReplaceAll(m.what, r.primary.dir+"/conf", "@DIR@")
				try(m)
			}
		})
	}
	wg.Wait()
	for excuse := range same {
		if step == 1 && !used[excuse] && !strings.HasPrefix(excuse, " ") {
			t.Errorf("no mutant is called %q", excuse)
		}
	}
	if 4*unseen > seen+unseen {
		t.Errorf("of %d mutants that can be told apart only %d are seen", seen+unseen, seen)
	}
	t.Logf("mutants %d of %d played, %d seen, %d not, %d the same, %d not valid", (len(all)+step-1)/step, len(all), seen, unseen, excused, invalid)
}

// expected is the excuse for a mutant: its whole name or, behind a space, the
// end of it.
func expected(same map[string]string, what string) string {
	for k := range same {
		if k == what || k[0] == ' ' && strings.HasSuffix(" "+what, k) {
			return k
		}
	}
	return ""
}

// find plays the sessions on a mutant until one differs; it plays that one
// twice, as what only one of the two shows is chance.
func (r *run) find(t *testing.T, spec *policy.Spec) *parity.Difference {
	t.Helper()
	local, stop := serve(t, spec, r.nameserver, false)
	defer stop()
	for _, s := range r.trace {
		var d *parity.Difference
		var err error
		for range 2 {
			d, err = parity.Check(t.Context(), local, r.material.Nth(r.seed, s.n), s.primary)
			if d == nil && err == nil { // an error: not even the tester is greeted
				break
			}
		}
		if d == nil && err != nil {
			d = &parity.Difference{Primary: s.primary}
		}
		if d != nil {
			return d
		}
	}
	return nil
}
