package postfix

import (
	"slices"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// TestOctets reads sets of octets, and says which aren't the primary's to the
// letter.
func TestOctets(t *testing.T) {
	for _, tt := range []struct {
		in    string
		want  string
		class fidelity.Class
	}{
		{"", "", ""},
		{`\a\b\f\n\t\v`, "\a\b\t\n\v\f", fidelity.Exact},
		{`\1\012\00177`, "\x01\n7", fidelity.Approximated},
		{`\377\777\8`, "8\xff", fidelity.Approximated},
		{`\200\`, "\x80", fidelity.Exact},
		{"é", "\xa9\xc3", fidelity.Exact},
		{`\\`, `\`, fidelity.Approximated},
		{`\0`, "\x00", fidelity.NotReplicated},
		{`\r\1`, "\x01\r", fidelity.NotReplicated},
	} {
		i := &importer{set: settings{"p": tt.in}, spec: policy.NewSpec()}
		var want []int
		for _, b := range []byte(tt.want) {
			want = append(want, int(b))
		}
		got := i.octets("p", "the door", fidelity.NotReplicated)
		var class fidelity.Class
		if len(i.report.Items) > 0 {
			class = i.report.Items[0].Class
		}
		if !slices.Equal(got, want) || class != tt.class {
			t.Errorf("%s: %v, %s", tt.in, got, class)
		}
	}
}

// TestSkipsReceived says which header_checks can't see the Received field that
// the primary adds.
func TestSkipsReceived(t *testing.T) {
	for _, tt := range []struct {
		rules string
		want  bool
	}{
		{"/^Subject:/ REJECT", true},
		{"/^(Subject|From): x|y/ REJECT", false},
		{"/^(Subject|From): (x|y)/ REJECT", true},
		{"/^(?:To|Cc):.*\\|/ REJECT", true},
		{"/^(Re|Subject)/ REJECT", false},
		{"/evil/ REJECT", false},
		{"/evil/ WARN", true},
		{"/evil/ $1 x", false},
		{"/^received:.*evil/ REJECT", false},
		{"/^re/ DISCARD", false},
		{"/^x?received/ HOLD", false},
		{"/^x+received/ HOLD", true},
		{"!/^Subject:/ REJECT", false},
		{"/^Subject:/m REJECT", false},
		{"if /^Subject:/\n/evil/ REJECT\nendif", true},
		{"if /^Subject:/\nendif\n/evil/ REJECT", false},
		{"if /x/\n/evil/ REJECT\nendif", false},
		{"/^[^S]/ REJECT", false},
	} {
		tab := &Table{Type: "pcre", Kind: Patterns}
		tab.parse("rules", tt.rules, nil)
		if got := tab.skipsReceived(); got != tt.want {
			t.Errorf("%q: %v", tt.rules, got)
		}
	}
}
