package smtpd

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// TestFilterWhileLive: while the primary decides the filters hear nothing. When it
// dies, they are told all that was said, and judge what follows.
func TestFilterWhileLive(t *testing.T) {
	const hello = "S: 220\nC: EHLO mail.x.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\nC: RCPT TO:<alice@corp.example>\nS: 250\nC: DATA\nS: 354\nC: X-eom: 550 5.7.1 Spam\nC:\nC: x\nC: .\n"
	for _, tt := range []struct {
		name, last string // the primary's answer to the message
		reply      string
		hears      bool
	}{
		{"the primary takes the message", "", "S: 250 2.0.0 Ok: queued as PRIMARY\n", false},
		{"it may have taken it", "behind", "S: 250 2.0.0 Ok: queued as ID1\n", false},
		{"it dies", "gone", "S: 550 5.7.1 Spam\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &actor{answers: map[string]string{".": tt.last}}
			s, _ := liveServer(t, a)
			m, addr := &testmx.Milter{Name: "A"}, testmx.FreeAddr()
			if err := m.Start(addr); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(m.Close)
			s.Filters = []*Filter{{Name: "f", For: "inet:localhost:8891", Dial: func(ctx context.Context) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", addr)
			}}}
			snap := snapshot(t, func(spec *policy.Spec) {
				spec.Filters.Milters = []policy.Milter{{Where: "inet:127.0.0.1:8891"}}
			})
			s.Policy = func() *policy.Snapshot { return snap }
			talk(t, s, hello+tt.reply)
			least := 0
			if tt.hears {
				least = 1
			}
			heard := strings.Join(m.Heard(least), "")
			for _, event := range []string{"\nC ", "\nH ", "\nM ", "\nR ", "\nT ", "\nL ", "\nB ", "\nE "} {
				if strings.Contains(heard, event) != tt.hears {
					t.Errorf("event %q: the filter heard\n%s", event, heard)
				}
			}
		})
	}
}
