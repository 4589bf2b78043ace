package policy

import (
	"strings"
	"testing"
)

// TestDNSQuery: what dnsdb asks for, and what isn't asked.
func TestDNSQuery(t *testing.T) {
	for s, want := range map[string]string{
		"ptr=192.0.2.1":                        "ptr 192.0.2.1",
		">: defer_never,ptr=2001:db8::1":       "ptr 2001:db8::1",
		"defer_strict,mx=a.example":            "mx a.example",
		"a=one.example:two.example":            "a one.example two.example",
		">;, retrans_1s,retry_2,txt=x.example": "txt x.example",
		"x.example":                            "txt x.example",
	} {
		q, err := parseDNSQuery(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if got := q.typ + " " + strings.Join(q.names, " "); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
	for _, s := range []string{"tlsa=x.example", "whatever,a=x"} {
		if CheckDNSQuery(s) == nil {
			t.Errorf("%s: no error", s)
		}
	}
}
