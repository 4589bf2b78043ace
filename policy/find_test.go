package policy

import (
	"strings"
	"testing"
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
