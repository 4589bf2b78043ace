package postfix

import (
	"testing"
)

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
		tab.parse(tt.rules, nil)
		if got := tab.skipsReceived(); got != tt.want {
			t.Errorf("%q: %v", tt.rules, got)
		}
	}
}
