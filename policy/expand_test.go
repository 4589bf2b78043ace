package policy

import (
	"testing"
)

func TestExpand(t *testing.T) {
	value := func(name string) string {
		return map[string]string{"a": "A", "code": "554", "nested": "$a"}[name]
	}
	for _, test := range []struct{ template, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$a", "A"},
		{"${a}b", "Ab"},
		{"$code x$a.", "554 xA."},
		{"cost: $$5", "cost: $5"},
		{"${a?yes}", "yes"},
		{"${none?yes}", ""},
		{"${a:no}", ""},
		{"${none:no}", "no"},
		{"${a?{yes $a}:{no}}", "yes A"},
		{"${none?{yes}:{no $a}}", "no A"},
		{"${none?{yes}}", ""},
		{"${a?${code?in}}", "in"},
		{"$nested", "$a"}, // a value isn't expanded again
	} {
		if got, ok := expand(test.template, value); !ok || got != test.want {
			t.Errorf("%s: got %q, %v, want %q", test.template, got, ok, test.want)
		}
	}
	for _, bad := range []string{"$", "$ x", "${a", "${}", "${a!b}", "${a?{b}", "${a?{b}x}", "${a?$}"} {
		if got, ok := expand(bad, value); ok {
			t.Errorf("%s: got %q, want an error", bad, got)
		}
	}
}
