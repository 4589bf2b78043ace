package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/policy/table"
)

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
		{"pipe of a set", `{"type":"pipe","tables":["s"]}`, "has no values"},
	} {
		spec := NewSpec()
		err := strictJSON([]byte(`{"tables":{"s":{"type":"set"},"t":`+test.table+`}}`), spec)
		if err == nil {
			_, err = Compile(spec)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}

// TestNesting: as many members, and as deep, as may be, and one more.
func TestNesting(t *testing.T) {
	for _, tt := range []struct {
		members, depth int
		want           string
	}{{maxMembers, maxUnions, ""}, {maxMembers + 1, 1, "more than 16"}, {1, maxUnions + 1, "nests too deeply"}} {
		recipients, err := table.NewSet([]string{"a@example.org"})
		if err != nil {
			t.Fatal(err)
		}
		spec := NewSpec()
		spec.Tables = map[string]*table.Table{"0": recipients}
		for i := range tt.depth {
			spec.Tables[fmt.Sprint(i+1)] = table.NewUnion(slices.Repeat([]string{fmt.Sprint(i)}, tt.members))
		}
		if _, err := Compile(spec); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d members, %d deep: %v", tt.members, tt.depth, err)
		}
	}
}

// TestActions: each value of a table is read once, however often it occurs and
// is asked, and one with $1 when the key is known.
func TestActions(t *testing.T) {
	hash, err := table.NewHash(map[string]string{"a.example": "REJECT", "b.example": "REJECT", "c.example": "OK"})
	if err != nil {
		t.Fatal(err)
	}
	pcre, err := table.NewPCRE([][2]string{{"/^empty/", ""}, {"/^(.)b/", "REJECT $1"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"hash": hash, "pcre": pcre}
	spec.Restrictions.Client = []Restriction{{"check_client_access", "hash"}, {"check_client_access", "pcre"}}
	spec.Restrictions.Helo = []Restriction{{"check_helo_access", "hash"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	h, p := snap.client[0].table, snap.client[1].table
	if got := snap.Stats().Rules; len(h.actions) != 3 || got != 3+3+2 {
		t.Errorf("%d actions, %d rules", len(h.actions), got)
	}
	f := finder{snap: snap}
	for key, want := range map[string]accessOp{"a.example": opReject, "c.example": opOK, "empty": opOK, "xb": opTemplate} {
		d := h
		if !strings.Contains(key, ".") {
			d = p
		}
		if a := f.one([]*dict{d}, key, "", netip.Addr{}, true).access(); a == nil && want != opTemplate || a != nil && a.op != want {
			t.Errorf("%s: %v, want %d", key, a, want)
		}
	}
	if spec.Tables["set"], err = table.NewSet(nil); err != nil {
		t.Fatal(err)
	}
	spec.Restrictions.Helo = []Restriction{{"check_helo_access", "set"}}
	if _, err := Compile(spec); err == nil || !strings.Contains(err.Error(), "a set has no actions") {
		t.Errorf("a set: %v", err)
	}
}
