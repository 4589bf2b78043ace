package table

import (
	"net/netip"
	"testing"
)

// FuzzRules: a rule that is taken can be looked up, and comes back.
func FuzzRules(f *testing.F) {
	for d, rule := range []string{"/^a.*b$/ix", "!/^(?=a)b/is"} {
		f.Add(byte(d), rule, "adsl")
	}
	f.Fuzz(func(t *testing.T, d byte, rule, subject string) {
		typ := []string{TypeRegexp, TypePCRE}[d&1]
		rules, err := newRules(typ, [][2]string{{rule, "yes $$"}})
		if err != nil {
			return
		}
		key, value := rules.Entry(0)
		if again, err := newRules(typ, [][2]string{{string(key), value}}); err != nil || again.rules[0].key() != string(key) {
			t.Errorf("%s doesn't come back: %v", key, err)
		}
		var r Reader
		key = []byte(subject[:min(len(subject), 1000)])
		i, err := r.Find(rules, key, netip.Addr{})
		if i < 0 || err != nil {
			return
		}
		if v, err := r.Value(rules, i, key); err == nil && v != "yes $" {
			t.Errorf("value %q", v)
		}
	})
}
