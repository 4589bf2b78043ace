package relay

import (
	"fmt"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// TestAuthResults: our field is on top, forged ones are gone, all else is as it came;
// and nothing at all changes where nobody asked for that, and in reports of our own.
func TestAuthResults(t *testing.T) {
	const rest = "Authentication-Results: mx.other.example; spf=fail\r\n.dot: x\r\nSubject: it\r\n\r\nAuthentication-Results: mx2.example; x\r\n.body\r\n"
	const forged = "Received: x\r\nauthentication-results:\r\n (a) MX2.example;\r\n\tspf=pass smtp.mailfrom=bank.example\r\n" + rest
	const ours = "Authentication-Results: mx2.example;\r\n\tspf=softfail smtp.mailfrom=x.example\r\n"
	for _, tt := range []struct {
		name       string
		on, report bool
		stated     int64 // more octets than there are
		want       string
	}{
		{"on", true, false, 0, ours + "Received: x\r\n" + rest},
		{"off", false, false, 0, forged},
		{"a report", true, true, 0, forged},
		{"too short", true, false, 5, ""},
		{"too long", true, false, -5, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &primary{}
			c := newClient(t, Route{AuthResults: tt.on}, p.serve)
			var o outbox
			env := mail("a@x.example", "b@y.example")
			env.Auth, env.Report = envelope.Auth{Checked: true, SPF: "softfail"}, tt.report
			o.add(forged, env).Size += tt.stated
			err := c.Relay(t.Context(), dest, o.next)
			o.check(t)
			if (err != nil) != (tt.want == "") {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(p.accepted) != 0 {
					t.Errorf("accepted: %+v", p.accepted)
				}
				return
			}
			if len(p.accepted) != 1 || p.accepted[0].content != tt.want {
				t.Fatalf("%+v, want %q", p.accepted, tt.want)
			}
			var size int64
			_, params, _ := strings.Cut(p.accepted[0].from, " SIZE=")
			if fmt.Sscan(params, &size); size < int64(len(tt.want)) || size > int64(len(forged)+len(ours)) {
				t.Errorf("SIZE=%d of %d octets, in %q", size, len(tt.want), p.accepted[0].from)
			}
		})
	}
}
