package policy

import (
	"fmt"
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
