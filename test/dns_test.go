package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestDeadDNS: with no DNS server a blocklist lets clients in, as the primary's
// does, or puts them off, as [dns] on_failure has it. The log says so once.
func TestDeadDNS(t *testing.T) {
	for _, tt := range []struct{ mode, reply string }{
		{"as-primary", "250 2.1.5"},
		{"defer", "450 4.7.1 Service unavailable; [192.0.2.1] can't be looked up"},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			extra := fmt.Sprintf("[dns]\nservers = [%q]\ntimeout = \"100ms\"\non_failure = %q\n", testmx.FreeAddr(), tt.mode)
			s := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org")+"[[dnsbl]]\nzone = \"bl.example\"\n", extra)
			s.start()
			for range 5 {
				if got := sendAs(t, s.addr, "192.0.2.1", nil); !strings.HasPrefix(got, tt.reply) {
					t.Errorf("RCPT is answered %q, want %q", got, tt.reply)
				}
				sendAs(t, s.addr, "192.0.2.2", nil) // asked anew
			}
			for _, client := range []string{"192.0.2.3", "192.0.2.4", "192.0.2.5"} {
				sendAs(t, s.addr, client, nil)
			}
			if n := s.metric("understudy_dns_failing"); n != 1 {
				t.Errorf("understudy_dns_failing is %v", n)
			}
			s.stop()
			if n := strings.Count(readFile(t, s.path("log")), "DNS fails"); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}
