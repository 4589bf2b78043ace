package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestPatternTakesTooLong: a pattern that would take years is answered later.
func TestPatternTakesTooLong(t *testing.T) {
	spec := NewSpec()
	table, err := NewPCRE([][2]string{{`/^(?=a)(a+)+$/s`, "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*Table{"evil": table}
	spec.Restrictions.Sender = []Restriction{{"check_sender_access", "evil"}}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	evil := envelope.ReversePath{Mailbox: envelope.Mailbox{Local: strings.Repeat("a", 60), Domain: "x.example"}}
	s.Mail(t.Context(), evil, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Reply.Code != 451 || v.Reply.Enhanced != "4.3.0" {
		t.Errorf("got %v", v.Reply)
	}
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Action != Permit {
		t.Errorf("got %v, the failure outlived its look-up", v.Reply)
	}
}

// FuzzRules: a rule that is taken can be looked up, and comes back.
func FuzzRules(f *testing.F) {
	for d, rule := range []string{"/^a.*b$/ix", "!/^(?=a)b/is"} {
		f.Add(byte(d), rule, "adsl")
	}
	f.Fuzz(func(t *testing.T, d byte, rule, subject string) {
		typ := []string{typeRegexp, typePCRE}[d&1]
		rules, err := newRules(typ, [][2]string{{rule, "yes $$"}})
		if err != nil {
			return
		}
		key, value := rules.Entry(0)
		if again, err := newRules(typ, [][2]string{{string(key), value}}); err != nil || again.rules[0].key() != string(key) {
			t.Errorf("%s doesn't come back: %v", key, err)
		}
		f := finder{}
		h := f.one([]*table{newTable("t", rules)}, subject[:min(len(subject), 1000)], "", netip.Addr{}, true)
		if h.ok() && f.value(h) != "yes $" {
			t.Errorf("value %q", f.value(h))
		}
	})
}

// TestRulesTravel takes every table of the decisions apart and puts it together
// again, entry by entry.
func TestRulesTravel(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/decisions/tables.txtar")
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, f := range ar.Files {
		parts[f.Name] = f.Data
	}
	seen := map[string]bool{}
	for name, table := range loadParts(t, parts).Spec().Tables {
		seen[table.Type()] = true
		b, err := NewTableBuilder(table.Type(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range table.Len() {
			key, value := table.Entry(i)
			if err := b.Add(key, []byte(value)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		again, err := b.Table()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, _ := table.MarshalJSON()
		got, _ := again.MarshalJSON()
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	for _, typ := range []string{typeCIDR, typeRegexp, typePCRE, typeUnion, typePipe} {
		if !seen[typ] {
			t.Errorf("no table of type %s", typ)
		}
	}
}

// TestBadTables: what can't be honoured is refused by name.
func TestBadTables(t *testing.T) {
	for _, test := range []struct{ name, table, want string }{
		{"endif", `{"type":"cidr","rules":[["endif",""]]}`, "an endif without its if"},
		{"recursion", `{"type":"pcre","rules":[["/(?R)/is","x"]]}`, `rule "/(?R)/is": (?R is not supported`},
		{"basic", `{"type":"regexp","rules":[["/a/i","x"]]}`, "basic regular expressions"},
		{"group", `{"type":"pcre","rules":[["/(a)/is","REJECT $2"]]}`, "$2 is no group"},
		{"negated group", `{"type":"pcre","rules":[["!/(a)/is","REJECT $1"]]}`, "$1 is no group"},
		{"value", `{"type":"pcre","rules":[["if /a/is","x"]]}`, "has a value"},
		{"flag", `{"type":"pcre","rules":[["/a/q","x"]]}`, "flag 'q'"},
		{"itself", `{"type":"union","tables":["t"]}`, "contains itself"},
		{"unknown", `{"type":"pipe","tables":["nobody"]}`, `no table is called "nobody"`},
		{"empty", `{"type":"union"}`, "names no table"},
	} {
		spec := NewSpec()
		err := strictJSON([]byte(`{"tables":{"t":`+test.table+`}}`), spec)
		if err == nil {
			_, err = Compile(spec)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}
